//! A set of a million addresses: a question reads the elements that its packet leads to, and no others.

use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use netdiag_common::forwarding::Packet;
use netdiag_common::forwarding::path::End;
use netdiag_common::forwarding::set::Elements;
use netdiag_node::host::forwarding::{Evaluation, evaluate};

use crate::compare::{Compared, Connections, Traces, compare};
use crate::fixed::in_udp;
use crate::lab;
use crate::rules::PROBE;
use crate::trace::Tracer;

/// Elements, unless `NETDIAG_ELEMENTS` says otherwise. They begin at 10.64.0.0.
const MANY: u32 = 1_000_000;
const FIRST: u32 = 0x0a40_0000;

/// nft needs several hundred bytes for each element of one transaction.
const AT_ONCE: u32 = 100_000;

/// One question takes milliseconds; a list of all elements takes seconds, and over a hundred bytes for each.
const MOST_TIME: Duration = Duration::from_secs(1);
const MOST_KIB: u64 = 32 << 10;

const RULES: &str = "table ip t {
    set large { type ipv4_addr; }
    chain f { type filter hook forward priority 0; ip saddr @large drop; ip daddr @large drop; }
}
";

#[test]
fn of_a_large_set_only_what_is_asked_for_is_read() {
    let name = "of_a_large_set_only_what_is_asked_for_is_read";
    let many = crate::number("NETDIAG_ELEMENTS").and_then(|many| many.try_into().ok()).unwrap_or(MANY);
    lab::in_lab(name, move |lab| {
        fill(many);
        let listed = in_udp(lab, "10.64.0.9", "10.2.0.2", 20_000);
        let other = in_udp(lab, "10.1.0.2", "10.2.0.2", 20_001);
        let before = forget_peak();
        let (dropped, first) = timed(&listed);
        let (passed, second) = timed(&other);
        let grown_kib = memory_kib("VmHWM:").saturating_sub(before);
        println!("{name}: {first:?} and {second:?} for a question among {many} elements, {grown_kib} KiB more");
        let end = |evaluation: &Evaluation| evaluation.outcome.paths[0].end.clone();
        assert!(matches!(end(&dropped), End::Dropped { .. }), "{:?}", dropped.outcome);
        assert!(matches!(end(&passed), End::Sent { .. }), "{:?}", passed.outcome);
        assert_eq!(asked(&dropped), [vec![10_u8, 64, 0, 9]]);
        // The empty key is that of the element for all others, which a set may have.
        assert_eq!(asked(&passed), [Vec::new(), vec![10_u8, 1, 0, 2], vec![10, 2, 0, 2]]);
        assert!(first.max(second) < MOST_TIME, "{first:?}, {second:?}");
        assert!(grown_kib < MOST_KIB, "{grown_kib} KiB");
        let traces = Traces { tracer: Tracer::open(), log: None };
        for packet in [listed, other] {
            match compare(lab, &traces, &packet, &mut Connections::default()) {
                Compared::Same(_) => {}
                Compared::Differs(why) => panic!("{why}"),
                Compared::SetAside => panic!("nothing was compared"),
            }
        }
    });
}

fn fill(many: u32) {
    lab::nft(&format!("flush ruleset\n{PROBE}{RULES}")).unwrap();
    let mut from = 0;
    while from < many {
        let to = many.min(from + AT_ONCE);
        let addresses: Vec<String> = (from..to).map(|number| Ipv4Addr::from(FIRST + number).to_string()).collect();
        lab::nft(&format!("add element ip t large {{ {} }}\n", addresses.join(", "))).unwrap();
        from = to;
    }
}

fn timed(packet: &Packet) -> (Evaluation, Duration) {
    let began = Instant::now();
    let evaluation = evaluate(packet).unwrap();
    (evaluation, began.elapsed())
}

/// The keys of elements that were read, of all sets.
fn asked(evaluation: &Evaluation) -> Vec<Vec<u8>> {
    let mut keys = Vec::new();
    for set in evaluation.state.sets.0.values().flatten() {
        match &set.elements {
            Elements::Asked(found) => keys.extend(found.0.keys().cloned()),
            Elements::Whole(_) => panic!("a set was read whole"),
        }
    }
    keys.sort();
    keys
}

/// Resident memory now, from which on the highest is kept (proc(5), `clear_refs`).
fn forget_peak() -> u64 {
    std::fs::write("/proc/self/clear_refs", "5").unwrap();
    memory_kib("VmRSS:")
}

#[expect(clippy::disallowed_methods, reason = "a test reads its own process")]
fn memory_kib(field: &str) -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(field)).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}
