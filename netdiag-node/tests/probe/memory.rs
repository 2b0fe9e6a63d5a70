//! What a thousand waiting probes cost, in a process of their own.

use std::io::Read as _;
use std::net::TcpListener;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use netdiag_common::observation::series::http::HttpVersion;
use netdiag_common::observation::series::tls::TlsWords;
use netdiag_common::observation::series::{HttpProbe, Probe, TlsProbe};

use crate::host::{Host, LOCAL};
use crate::http::get;
use crate::support::eventually;

/// Set for the process that measures.
const ALONE: &str = "NETDIAG_PROBES_ALONE";
const PROBES: u16 = 1_000;
/// The target of issue 6's benchmark.
const MOST_KIB: usize = 40 * 1024;

/// Runs one test of this file again, without the others beside it. False: this is that run.
fn alone(test: &str) -> bool {
    if std::env::var_os(ALONE).is_some() {
        return false;
    }
    let program = std::env::current_exe().unwrap();
    // Both ends of each connection are this process's.
    let shell = ["-c", "ulimit -n 4096 && exec \"$0\" \"$@\""];
    let mut command = Command::new("sh");
    command.args(shell).arg(program).args(["--exact", test, "--nocapture"]).env(ALONE, "1");
    let output = command.output().unwrap();
    let text = [output.stdout, output.stderr].concat();
    let text = String::from_utf8_lossy(&text);
    print!("{text}");
    assert!(output.status.success(), "{text}");
    true
}

/// Resident memory of this process, KiB.
#[expect(clippy::disallowed_methods, reason = "a test reads its own process")]
fn resident_kib() -> usize {
    let text = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").trim().parse().unwrap()
}

/// A server that takes every connection and says nothing; the bytes that each one's client says first are counted as one.
fn silent(host: &Host) -> (std::net::SocketAddr, Arc<AtomicUsize>) {
    let listener = host.namespace.run(|| TcpListener::bind((LOCAL[0], 0)).unwrap());
    let address = listener.local_addr().unwrap();
    let asked = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&asked);
    std::thread::spawn(move || {
        let mut held = Vec::new();
        for mut stream in listener.incoming().flatten() {
            if matches!(stream.read(&mut [0; 16]), Ok(count) if count > 0) {
                counted.fetch_add(1, Ordering::Relaxed);
            }
            held.push(stream);
        }
    });
    (address, asked)
}

fn cost_kib(probe: impl Fn(std::net::SocketAddr) -> Probe) -> Option<usize> {
    let host = Host::new("a thousand waiting probes")?;
    let (address, asked) = silent(&host);
    // What is made once, at first use, is not theirs.
    host.attempt(probe(address), 200);
    let before = (resident_kib(), asked.load(Ordering::Relaxed));
    let probe = probe(address);
    let cost = std::thread::scope(|scope| {
        let series = scope.spawn(|| host.series(probe, PROBES, 15_000, None));
        eventually("a thousand requests", || {
            let most = usize::from(PROBES) + before.1;
            (asked.load(Ordering::Relaxed) >= most).then_some(())
        });
        let cost = resident_kib().saturating_sub(before.0);
        let result = series.join().unwrap();
        assert_eq!((result.made, result.failed), (PROBES.into(), PROBES.into()), "{:?}", result.attempts.first());
        cost
    });
    println!("{PROBES} waiting probes cost {cost} KiB");
    Some(cost)
}

#[test]
fn thousand_waiting_http_probes_are_small() {
    if alone("memory::thousand_waiting_http_probes_are_small") {
        return;
    }
    for version in [HttpVersion::Http1, HttpVersion::Http2] {
        let Some(cost) = cost_kib(|to| Probe::Http(HttpProbe { version, ..get(to) })) else { return };
        assert!(cost < MOST_KIB, "{version:?}: {cost} KiB");
    }
}

#[test]
fn thousand_waiting_handshakes_are_small() {
    if alone("memory::thousand_waiting_handshakes_are_small") {
        return;
    }
    let probe = |to| Probe::Tls(TlsProbe { to, source_port: None, words: TlsWords::default(), each_version: false });
    let Some(cost) = cost_kib(probe) else { return };
    assert!(cost < MOST_KIB, "{cost} KiB");
}
