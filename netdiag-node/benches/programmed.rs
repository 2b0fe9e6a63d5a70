//! What one question about one packet costs in the network namespace it is started in: evaluated with what is read already, and
//! with reading it from the kernel. `cargo xtask bench programmed` makes the namespace and the rules.
//!
//! Arguments: interface, source and destination (ADDRESS:PORT), rounds; or `rules`, rounds and a file, to which kube-proxy's rules
//! are written as the agent sends them. Prints one line for each value.
#![expect(clippy::unwrap_used, clippy::disallowed_methods, reason = "a measurement that cannot be made fails")]

use std::net::SocketAddr;
use std::time::Instant;

use netdiag_common::forwarding::packet::{Origin, Packet, TCP, tcp};
use netdiag_common::forwarding::path::End;
use netdiag_common::forwarding::{Step, step};
use netdiag_common::observation::Observation;
use netdiag_node::host::forwarding::evaluate;
use netdiag_node::host::service_rules;

/// `TH_SYN`
const SYN: u8 = 2;

fn main() {
    let words: Vec<String> = std::env::args().skip(1).filter(|word| word != "--bench").collect();
    if let [what, rounds, file] = words.as_slice()
        && what == "rules"
    {
        return all_rules(rounds.parse().unwrap(), file);
    }
    let [interface, source, destination, rounds] = words.as_slice() else {
        println!("usage: INTERFACE SOURCE:PORT DESTINATION:PORT ROUNDS");
        return;
    };
    let interface = nix::net::if_::if_nametoindex(interface.as_str()).unwrap();
    let (source, destination): (SocketAddr, SocketAddr) = (source.parse().unwrap(), destination.parse().unwrap());
    let rounds: usize = rounds.parse().unwrap();
    let segment = tcp(source.port(), destination.port(), SYN);
    let origin = Origin::Received { interface };
    let packet = Packet::between(origin, source.ip(), destination.ip(), TCP, &segment).unwrap();

    // The first reading alone: later ones find memory that the allocator has kept.
    let before = forget_peak();
    let evaluation = evaluate(&packet).unwrap();
    let peak = memory_kib("VmHWM:");
    let paths = &evaluation.outcome.paths;
    let sent = paths.iter().filter(|path| matches!(path.end, End::Sent { .. })).count();
    println!(
        "paths {} of which sent {sent} with gaps {}",
        paths.len(),
        paths.iter().map(|path| path.gaps.len()).sum::<usize>()
    );
    println!("memory_kib {}", peak.saturating_sub(before));
    println!(
        "loaded_us {:.3}",
        median_us(rounds * 100, || {
            let Step::Done(outcome) = step(&evaluation.state, &packet) else { panic!("everything was read") };
            std::hint::black_box(outcome);
        })
    );
    println!(
        "read_us {:.3}",
        median_us(rounds, || {
            std::hint::black_box(evaluate(&packet).unwrap());
        })
    );
}

/// The reading that drift is made of.
fn all_rules(rounds: usize, file: &str) {
    let before = forget_peak();
    let sent = serde_json::to_vec(&Observation::ServiceRules(service_rules::read().unwrap())).unwrap();
    println!("memory_kib {}", memory_kib("VmHWM:").saturating_sub(before));
    std::fs::write(file, &sent).unwrap();
    println!(
        "read_us {:.3}",
        median_us(rounds, || {
            let rules = Observation::ServiceRules(service_rules::read().unwrap());
            std::hint::black_box(serde_json::to_vec(&rules).unwrap());
        })
    );
}

/// Microseconds of one run in the middle of all.
fn median_us(runs: usize, mut work: impl FnMut()) -> f64 {
    let mut times: Vec<f64> = (0..runs.max(1))
        .map(|_| {
            let started = Instant::now();
            work();
            started.elapsed().as_secs_f64() * 1e6
        })
        .collect();
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}

/// Resident memory now, from which on the highest is kept (proc(5), `clear_refs`).
fn forget_peak() -> u64 {
    std::fs::write("/proc/self/clear_refs", "5").unwrap();
    memory_kib("VmRSS:")
}

fn memory_kib(field: &str) -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(field)).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}
