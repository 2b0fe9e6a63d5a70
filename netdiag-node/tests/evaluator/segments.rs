//! Segments of TCP by the settings that tracking has for them: those without a connection, and those outside of its window.

use netdiag_common::forwarding::Packet;
use netdiag_common::forwarding::packet::TCP;
use netdiag_node::host::forwarding::evaluate;

use crate::compare::{Compared, Connections, Traces, compare};
use crate::fixed::{Case, in_packet, in_tcp};
use crate::lab::{self, Lab};
use crate::trace::{self, Tracer};
use crate::traffic::{self, segment};
use crate::{Tally, load_case, repeat};

const CASE: Case = Case {
    fact: "a connection is picked up in its middle, or its segments are invalid",
    tool: "nft",
    rules: "table inet t {
        chain a { type filter hook forward priority 0;
            ct state invalid counter
            ct state new counter
            ct state established counter
        }
        chain b { type nat hook postrouting priority 100; tcp dport 81 meta nfproto ipv4 snat ip to 10.2.0.100; }
    }",
    packets: |lab| {
        let of = |port, to, flags| in_packet(lab, TCP, &segment(port, to, flags, (1000, 5000), false));
        // ACK, the same to a port whose connections are translated, SYN and ACK, FIN and ACK, RST.
        let middles = [(80, 0x10), (81, 0x10), (80, 0x12), (80, 0x11), (80, 0x04)];
        (20_000..).zip(middles).map(|(port, (to, flags))| of(port, to, flags)).collect()
    },
};

/// Says why the kernel of this machine has no such setting, if it has none.
fn set(setting: &str, value: &str) -> Result<(), String> {
    let path = format!("/proc/sys/net/netfilter/{setting}");
    std::fs::write(&path, value).map_err(|error| format!("cannot write {path}: {error}"))
}

#[test]
fn segments_without_a_connection_do_what_the_evaluator_says() {
    let name = "segments_without_a_connection_do_what_the_evaluator_says";
    lab::in_lab(name, move |lab| {
        load_case(&CASE).unwrap();
        for loose in ["1", "0"] {
            if let Err(why) = set("nf_conntrack_tcp_loose", loose) {
                println!("netdiag-skip: {name}: {why}");
                return;
            }
            repeat(name, lab, &[&CASE], None);
        }
    });
}

/// Opens a connection from this port, and sends a segment far outside of its window. What compared, and the gaps of its paths.
fn outside(lab: &Lab, traces: &Traces, port: u16, tally: &mut Tally) -> (Compared, Vec<String>) {
    let mut connections = Connections::default();
    let mut check = |packet: &Packet| {
        let compared = compare(lab, traces, packet, &mut connections);
        tally.add(compared, packet, CASE.fact, CASE.rules).expect("a connection that begins")
    };
    let first = in_tcp(lab, port);
    let begun = check(&first);
    let answered = check(&traffic::answer(lab, &begun).unwrap());
    let mut packet = traffic::next(lab, &first, &answered.connection.unwrap());
    let sequence = packet.transport().unwrap().offset + 4;
    packet.bytes[sequence..sequence + 4].copy_from_slice(&0x4000_0000_u32.to_be_bytes());
    packet.fill_checksums();
    let gaps = evaluate(&packet).unwrap().outcome.paths.into_iter().flat_map(|path| path.gaps).collect();
    (compare(lab, traces, &packet, &mut connections), gaps)
}

#[test]
fn segments_outside_of_their_window_are_invalid_unless_tracking_is_liberal() {
    let name = "segments_outside_of_their_window_are_invalid_unless_tracking_is_liberal";
    lab::in_lab(name, move |lab| {
        load_case(&CASE).unwrap();
        trace::forget_connections();
        let traces = Traces { tracer: Tracer::open(), log: None };
        let mut tally = Tally::default();
        for (port, liberal) in [(20_000, "1"), (20_001, "0")] {
            if let Err(why) = set("nf_conntrack_tcp_be_liberal", liberal) {
                println!("netdiag-skip: {name}: {why}");
                return;
            }
            let (compared, gaps) = outside(lab, &traces, port, &mut tally);
            match (liberal, compared) {
                ("1", Compared::Same(_)) => assert!(gaps.is_empty(), "{gaps:?}"),
                // The kernel finds it invalid, which the evaluator does not know, and says.
                ("0", Compared::Differs(_)) => {
                    assert!(gaps.len() == 1 && gaps[0].contains("nf_conntrack_tcp_be_liberal is 0"), "{gaps:?}");
                }
                (_, Compared::Differs(why)) => panic!("liberal {liberal}: {why}"),
                _ => panic!("liberal {liberal}: the kernel takes it for part of the connection"),
            }
        }
        println!("{name}: {}", tally.words());
    });
}
