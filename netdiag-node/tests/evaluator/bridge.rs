//! Packets that come in by a port of a bridge: for this host or for the other port, with the hooks of IP and without them.

use netdiag_common::forwarding::Packet;
use netdiag_common::forwarding::packet::{Origin, UDP, udp};

use crate::compare::{Connections, Traces, compare};
use crate::fixed::{Case, in_packet, in_port, in_tcp, in_udp};
use crate::fixed_modules::is_missing;
use crate::lab::{self, Lab};
use crate::trace::{self, Tracer};
use crate::{Tally, load_case, traffic};

const SETTINGS: &str = "/proc/sys/net/bridge";

const NATIVE: Case = Case {
    fact: "rules see the bridge in place of both interfaces, and what is switched spends no hop",
    tool: "nft",
    rules: "table inet t {
        chain a { type filter hook prerouting priority 0; iifname br0 counter; iifname r0 drop; ct state new counter; }
        chain b { type filter hook forward priority 0;
            iifname br0 oifname br0 counter
            ip ttl 64 counter
            ip ttl 63 counter
            ct state established counter
            tcp dport 443 drop
        }
        chain c { type filter hook postrouting priority 0; iifname br0 counter; oifname br0 counter; }
        chain d { type nat hook prerouting priority -100; udp dport 53 ip daddr 10.2.0.9 dnat ip to 10.2.0.2:5353; }
        chain e { type nat hook postrouting priority 100; udp dport 8080 masquerade; }
    }",
    packets,
};

const OF_IPTABLES: Case = Case {
    fact: "physdev knows both ports of what is switched, and the first one of what is routed",
    tool: "iptables-nft-restore",
    rules: "*raw
:PREROUTING ACCEPT
-A PREROUTING -m physdev --physdev-in r0 -m comment --comment in
-A PREROUTING -m physdev --physdev-in r1 -m comment --comment other
-A PREROUTING -m physdev --physdev-is-in -m comment --comment is-in
-A PREROUTING -m physdev ! --physdev-is-bridged -m comment --comment not-yet
COMMIT
*filter
:FORWARD ACCEPT
-A FORWARD -m physdev --physdev-is-bridged -m comment --comment bridged
-A FORWARD -m physdev ! --physdev-is-bridged -m comment --comment routed
-A FORWARD -m physdev --physdev-in r0 --physdev-out r1 -m comment --comment forth
-A FORWARD -m physdev --physdev-out r0 -m comment --comment back
-A FORWARD -m physdev --physdev-is-in -m comment --comment is-in
-A FORWARD -p tcp --dport 443 -m physdev --physdev-out r+ -j DROP
COMMIT
*mangle
:POSTROUTING ACCEPT
-A POSTROUTING -m physdev --physdev-is-bridged --physdev-in r0 -m comment --comment bridged
-A POSTROUTING -m physdev ! --physdev-is-bridged --physdev-in r0 -m comment --comment routed
COMMIT
",
    packets,
};

/// Each in a frame to this host, and in one to the host at the other port.
fn packets(lab: &Lab) -> Vec<Packet> {
    let of = |port: u16| {
        [
            in_tcp(lab, port),
            in_udp(lab, "10.1.0.2", "10.2.0.2", port + 1),
            in_udp(lab, "10.1.0.2", "10.2.0.9", port + 2),
            in_port(lab, "10.2.0.2", 443, port + 3),
            in_packet(lab, UDP, &udp(port + 4, 8080, b"question")),
        ]
    };
    let mut packets = Vec::from(of(20_000));
    packets.extend(of(21_000).map(|packet| to_other_end(lab, packet)));
    packets
}

fn to_other_end(lab: &Lab, mut packet: Packet) -> Packet {
    let cable = usize::from(packet.origin == Origin::Received { interface: lab.r0 });
    packet.link[..6].copy_from_slice(&lab.other_end(cable));
    packet
}

/// Says why this machine cannot, if it cannot: without the module nothing has to be turned off.
fn call_ip(calls: bool) -> Result<(), String> {
    if !std::path::Path::new(SETTINGS).exists() {
        return if calls { Err(format!("{SETTINGS} is not there: br_netfilter is not loaded")) } else { Ok(()) };
    }
    for setting in ["bridge-nf-call-iptables", "bridge-nf-call-ip6tables"] {
        let path = format!("{SETTINGS}/{setting}");
        std::fs::write(&path, if calls { "1" } else { "0" })
            .map_err(|error| format!("cannot write {path}: {error}"))?;
    }
    Ok(())
}

fn run(name: &'static str, case: &'static Case, calls: bool) {
    lab::in_lab(name, move |lab| {
        lab.bridge();
        match load_case(case) {
            Err(why) if is_missing(&why) => {
                println!("netdiag-skip: {name}: {}", why.lines().next().unwrap_or_default());
                return;
            }
            loaded => loaded.unwrap(),
        }
        if let Err(why) = call_ip(calls) {
            println!("netdiag-skip: {name}: {why}");
            return;
        }
        trace::forget_connections();
        let traces = Traces { tracer: Tracer::open(), log: None };
        let (mut connections, mut tally) = (Connections::default(), Tally::default());
        let mut check = |packet: &Packet| {
            let compared = compare(lab, &traces, packet, &mut connections);
            tally.add(compared, packet, case.fact, case.rules)
        };
        for packet in (case.packets)(lab) {
            let Some(answer) = check(&packet).and_then(|path| traffic::answer(lab, &path)) else { continue };
            // From the other end, to whom the packet was from.
            let is_switched = packet.link != lab.link_header(lab.r0, packet.protocol);
            let origin = Origin::Received { interface: lab.r1 };
            let answer = Packet { origin, link: lab.link_header(lab.r1, packet.protocol), ..answer };
            check(&if is_switched { to_other_end(lab, answer) } else { answer });
        }
        println!("{name}: {}", tally.words());
        tally.complaints.iter().for_each(|complaint| println!("{complaint}"));
        assert!(tally.complaints.is_empty(), "{} disagreements", tally.complaints.len());
    });
}

#[test]
fn bridges_do_what_the_evaluator_says() {
    run("bridges_do_what_the_evaluator_says", &NATIVE, false);
}

#[test]
fn bridges_with_hooks_of_ip_do_what_the_evaluator_says() {
    run("bridges_with_hooks_of_ip_do_what_the_evaluator_says", &NATIVE, true);
}

#[test]
fn ports_of_bridges_do_what_the_evaluator_says() {
    run("ports_of_bridges_do_what_the_evaluator_says", &OF_IPTABLES, true);
}
