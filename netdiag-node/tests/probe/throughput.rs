//! A link is filled only where the operator wants that, and what arrived is counted by the far side's acknowledgements.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use netdiag_common::observation::series::ProbeStage::Body;
use netdiag_common::observation::series::{FailureClass, Probe, SeriesAttempt, ThroughputProbe};

use crate::host::{failure, reset, why};
use crate::support::patient;
use crate::way::{TARGET, Way, report};

const BYTES: u64 = 4 * 1024 * 1024;

fn fill(way: &Way, port: u16) -> SeriesAttempt {
    fill_for(way, port, 8_000)
}

/// It must end soon after its time, with no more bytes than may go.
fn fill_for(way: &Way, port: u16, duration_ms: u32) -> SeriesAttempt {
    let to = SocketAddr::new(TARGET[0].parse().unwrap(), port);
    let probe = Probe::Throughput(ThroughputProbe { to, duration_ms, max_bytes: BYTES });
    let started = Instant::now();
    let attempt = way.series(probe, true).unwrap().attempts.remove(0);
    let limit = patient(Duration::from_millis(u64::from(duration_ms) + 5_000));
    assert!(started.elapsed() < limit, "ended after {:?}", started.elapsed());
    if attempt.failure.as_ref().is_none_or(|failure| failure.class == FailureClass::Reset) {
        let found = report!(attempt, Throughput);
        assert!(found.bytes + found.received_bytes <= BYTES, "{attempt:?}");
    }
    attempt
}

#[test]
fn all_bytes_are_acknowledged_by_a_server_that_takes_them() {
    let Some(way) = Way::new("all_bytes_are_acknowledged_by_a_server_that_takes_them") else { return };
    let listener = way.target.run(|| TcpListener::bind("0.0.0.0:9").unwrap());
    let discard = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let (mut bytes, mut total) = (vec![0; 65_536], 0);
        // It ends with RST: nothing stays in TIME_WAIT.
        while let Ok(length @ 1..) = stream.read(&mut bytes) {
            total += length as u64;
        }
        total
    });
    let attempt = fill(&way, 9);
    assert_eq!(discard.join().unwrap(), BYTES);
    let found = report!(attempt, Throughput);
    assert_eq!((attempt.failure.as_ref(), found.bytes, found.received_bytes), (None, BYTES, 0), "{attempt:?}");
    assert!(found.elapsed_us > 0 && found.idle_rtt_us > 0 && found.send_mss == Some(1_448), "{attempt:?}");
}

#[test]
fn server_that_hangs_up_is_a_reset_with_what_arrived() {
    let Some(way) = Way::new("server_that_hangs_up_is_a_reset_with_what_arrived") else { return };
    let listener = way.target.run(|| TcpListener::bind("0.0.0.0:9").unwrap());
    let hangs_up = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        // Closed with bytes unread, so it is a RST.
        stream.read_exact(&mut [0; 1_000]).unwrap();
    });
    let attempt = fill(&way, 9);
    hangs_up.join().unwrap();
    assert_eq!(attempt.failure.as_ref().unwrap().class, FailureClass::Reset, "{attempt:?}");
    assert!(report!(attempt, Throughput).bytes < BYTES);
}

#[test]
fn server_that_never_reads_takes_what_its_kernel_holds_until_the_time_is_over() {
    let test = "server_that_never_reads_takes_what_its_kernel_holds_until_the_time_is_over";
    let Some(way) = Way::new(test) else { return };
    let listener = way.target.run(|| TcpListener::bind("0.0.0.0:9").unwrap());
    socket2::SockRef::from(&listener).set_recv_buffer_size(65_536).unwrap();
    // Nobody accepts it: the kernel alone shakes hands.
    let attempt = fill_for(&way, 9, 1_000);
    let found = report!(attempt, Throughput);
    assert_eq!((failure(&attempt), found.received_bytes), (None, 0), "{attempt:?}");
    assert!(found.bytes > 0 && found.bytes < BYTES, "{attempt:?}");
    assert!(found.elapsed_us >= 1_000_000, "the rest was waited for: {attempt:?}");
}

/// Writes until the far side is gone.
fn pour(mut stream: TcpStream) {
    while stream.write_all(&vec![b'x'; 65_536]).is_ok() {}
}

#[test]
fn server_that_sends_without_end_is_heard_so_far() {
    let Some(way) = Way::new("server_that_sends_without_end_is_heard_so_far") else { return };
    let listener = way.target.run(|| TcpListener::bind("0.0.0.0:9").unwrap());
    let pours = std::thread::spawn(move || {
        // The first one is sent to before it is read from.
        let (mut stream, _) = listener.accept().unwrap();
        stream.write_all(&[b'x'; 4_096]).unwrap();
        let also = stream.try_clone().unwrap();
        let reads = std::thread::spawn(move || {
            let mut bytes = vec![0; 65_536];
            while matches!(stream.read(&mut bytes), Ok(1..)) {}
        });
        pour(also);
        reads.join().unwrap();
        // The second one is not read from.
        pour(listener.accept().unwrap().0);
    });
    let attempt = fill(&way, 9);
    let found = report!(attempt, Throughput);
    assert_eq!((failure(&attempt), found.bytes + found.received_bytes), (None, BYTES), "{attempt:?}");
    assert!(found.received_bytes > 0, "{attempt:?}");

    let attempt = fill_for(&way, 9, 2_000);
    assert_eq!(failure(&attempt), None, "{attempt:?}");
    assert!(report!(attempt, Throughput).received_bytes > 0, "{attempt:?}");
    pours.join().unwrap();
}

#[test]
fn reset_in_the_middle_is_told_with_the_bytes_of_both_directions() {
    const SENT: usize = 262_144;
    let Some(way) = Way::new("reset_in_the_middle_is_told_with_the_bytes_of_both_directions") else { return };
    let listener = way.target.run(|| TcpListener::bind("0.0.0.0:9").unwrap());
    let resets = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        // So much goes into no buffer: when all of it is written, some has been read.
        socket2::SockRef::from(&stream).set_send_buffer_size(4_096).unwrap();
        stream.write_all(&vec![b'x'; SENT]).unwrap();
        stream.read_exact(&mut [0; 1_000]).unwrap();
        reset(stream);
    });
    let attempt = fill(&way, 9);
    resets.join().unwrap();
    let found = report!(attempt, Throughput);
    assert_eq!(failure(&attempt), Some((FailureClass::Reset, Body, Some("ECONNRESET"))), "{attempt:?}");
    assert!(found.received_bytes > 0 && found.received_bytes <= SENT as u64, "{attempt:?}");
    assert!(why(&attempt).ends_with(&format!("after {} bytes", found.bytes + found.received_bytes)), "{attempt:?}");
}

#[test]
fn nobody_listening_is_refused() {
    let Some(way) = Way::new("nobody_listening_is_refused") else { return };
    assert_eq!(fill(&way, 9).failure.unwrap().class, FailureClass::Refused);
}

#[test]
fn agent_without_the_flag_sends_nothing_and_names_it() {
    let Some(way) = Way::new("agent_without_the_flag_sends_nothing_and_names_it") else { return };
    let to = SocketAddr::new(TARGET[0].parse().unwrap(), 9);
    let refused = way.series(Probe::Throughput(ThroughputProbe { to, duration_ms: 100, max_bytes: 1 }), false);
    assert!(refused.unwrap_err().to_string().contains("no throughput probes"));
    let too_much = Probe::Throughput(ThroughputProbe { to, duration_ms: 10_001, max_bytes: 1 });
    assert!(way.series(too_much, true).unwrap_err().to_string().contains("10000"));
}
