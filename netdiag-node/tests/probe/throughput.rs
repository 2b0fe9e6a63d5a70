//! A link is filled only where the operator wants that, and what arrived is counted by the far side's acknowledgements.

use std::io::Read as _;
use std::net::{SocketAddr, TcpListener};

use netdiag_common::observation::series::{FailureClass, Probe, SeriesAttempt, ThroughputProbe};

use crate::way::{TARGET, Way, report};

const BYTES: u64 = 4 * 1024 * 1024;

fn fill(way: &Way, port: u16) -> SeriesAttempt {
    let to = SocketAddr::new(TARGET[0].parse().unwrap(), port);
    let probe = Probe::Throughput(ThroughputProbe { to, duration_ms: 8_000, max_bytes: BYTES });
    way.series(probe, true).unwrap().attempts.remove(0)
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
