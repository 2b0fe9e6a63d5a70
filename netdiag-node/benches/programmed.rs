//! What one question about one packet costs in the network namespace it is started in: evaluated with what is read already, and
//! with reading it from the kernel. `cargo xtask bench programmed` makes the namespace and the rules.
//!
//! Arguments: interface, source and destination (ADDRESS:PORT), samples; or `rules`, samples and a file, to which kube-proxy's rules
//! are written as the agent sends them. Times are criterion's, in the folder `CRITERION_HOME`; the rest is printed, a line for each
//! value.
#![expect(clippy::unwrap_used, clippy::disallowed_methods, reason = "a measurement that cannot be made fails")]

use std::net::SocketAddr;
use std::os::fd::AsRawFd as _;
use std::time::Duration;

use criterion::{Criterion, SamplingMode};
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
    if let [what, samples, file] = words.as_slice()
        && what == "rules"
    {
        return all_rules(samples.parse().unwrap(), file);
    }
    let [interface, source, destination, samples] = words.as_slice() else {
        println!("usage: INTERFACE SOURCE:PORT DESTINATION:PORT SAMPLES");
        return;
    };
    let interface = nix::net::if_::if_nametoindex(interface.as_str()).unwrap();
    let (source, destination): (SocketAddr, SocketAddr) = (source.parse().unwrap(), destination.parse().unwrap());
    let samples: usize = samples.parse().unwrap();
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
    let mut criterion = measure();
    let mut group = criterion.benchmark_group("packet");
    group.bench_function("loaded", |bench| {
        bench.iter(|| {
            let Step::Done(outcome) = step(&evaluation.state, &packet) else { panic!("everything was read") };
            outcome
        });
    });
    group.sample_size(samples).sampling_mode(SamplingMode::Flat);
    group.bench_function("read", |bench| bench.iter(|| evaluate(&packet).unwrap()));
    group.finish();
    // Last: to ask for the table makes one where there was none.
    if let Some(bytes) = legacy_table_bytes() {
        println!("table_bytes {bytes}");
    }
}

/// The reading that drift is made of.
fn all_rules(samples: usize, file: &str) {
    let before = forget_peak();
    let sent = serde_json::to_vec(&Observation::ServiceRules(service_rules::read().unwrap())).unwrap();
    println!("memory_kib {}", memory_kib("VmHWM:").saturating_sub(before));
    std::fs::write(file, &sent).unwrap();
    let mut criterion = measure();
    let mut group = criterion.benchmark_group("drift");
    group.sample_size(samples).sampling_mode(SamplingMode::Flat);
    group.bench_function("read", |bench| {
        bench.iter(|| serde_json::to_vec(&Observation::ServiceRules(service_rules::read().unwrap())).unwrap());
    });
    group.finish();
}

fn measure() -> Criterion {
    Criterion::default().without_plots().warm_up_time(Duration::from_millis(500))
}

/// Size of the table nat of iptables-legacy, where there is one: `struct ipt_getinfo` (`IPT_SO_GET_INFO`,
/// linux/netfilter_ipv4/ip_tables.h).
fn legacy_table_bytes() -> Option<u32> {
    const GET_INFO: libc::c_int = 64;
    const SIZE_AT: usize = 80;
    let socket =
        socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::RAW, Some(libc::IPPROTO_RAW.into())).unwrap();
    let mut info = [0_u8; 84];
    info[..3].copy_from_slice(b"nat");
    let mut length = libc::socklen_t::try_from(info.len()).unwrap();
    // SAFETY: the kernel writes at most `length` bytes, which `info` has.
    let result = unsafe {
        libc::getsockopt(socket.as_raw_fd(), libc::IPPROTO_IP, GET_INFO, info.as_mut_ptr().cast(), &raw mut length)
    };
    let size = info[SIZE_AT..].try_into().unwrap();
    (result == 0).then(|| u32::from_ne_bytes(size)).filter(|bytes| *bytes > 0)
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
