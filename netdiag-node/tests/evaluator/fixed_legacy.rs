//! Cases of legacy tables: what random rules seldom have, and a ruleset as kube-proxy writes it.

use netdiag_common::forwarding::packet::{ICMP, Origin, TCP, icmp};

use crate::fixed::{Case, in_packet, in_port, in_tcp, in_tcp6, in_udp, out_port, out_udp, to_services};
use crate::legacy::{IP6TABLES, IPTABLES};
use crate::traffic::{segment, whole};

pub const CASES: [Case; 9] = [
    Case {
        fact: "a table without rules drops by its policy",
        tool: IPTABLES,
        rules: "*filter
:INPUT DROP
:FORWARD DROP
:OUTPUT ACCEPT
COMMIT
",
        packets: |lab| vec![in_tcp(lab, 20_000), in_udp(lab, "10.1.0.2", "10.1.0.1", 20_001)],
    },
    Case {
        fact: "a goto does not come back, a return from a base chain is its policy, and a rule may have no target",
        tool: IPTABLES,
        rules: "*filter
:FORWARD DROP
:A -
:B -
:C -
:D -
-A FORWARD -m comment --comment nothing
-A FORWARD -j A
-A FORWARD -j ACCEPT
-A A -g B
-A A -j DROP
-A B -j C
-A B -p tcp -j RETURN
-A B -j DROP
-A C -p udp -j RETURN
-A C -p icmp -g D
-A D -p icmp
-A C
:INPUT DROP
-A INPUT -p udp -j RETURN
-A INPUT -j ACCEPT
COMMIT
",
        packets: |lab| {
            vec![
                in_tcp(lab, 20_000),
                in_udp(lab, "10.1.0.2", "10.2.0.2", 20_001),
                in_udp(lab, "10.1.0.2", "10.1.0.1", 20_002),
                in_packet(lab, ICMP, &icmp(8, 0, 20_003)),
            ]
        },
    },
    Case {
        fact: "chains are as deep as somebody made them",
        tool: IPTABLES,
        rules: include_str!("../fixtures/rules/deep.iptables"),
        packets: |lab| vec![in_tcp(lab, 20_000)],
    },
    Case {
        fact: "interfaces by the beginning of their name, and what is negated",
        tool: IPTABLES,
        rules: "*mangle
:PREROUTING ACCEPT
-A PREROUTING -i r+ -m comment --comment cable
-A PREROUTING -i lo+ -m comment --comment lo
-A PREROUTING -i + -m comment --comment any
-A PREROUTING ! -i r1 -m comment --comment not-r1
-A PREROUTING ! -s 10.1.0.0/16 ! -d 10.2.0.0/255.255.0.255 ! -p udp -m comment --comment others
-A PREROUTING -d 10.0.0.2/255.0.0.255 -m comment --comment holes
:POSTROUTING ACCEPT
-A POSTROUTING -o r -j DROP
-A POSTROUTING ! -o r+ -m comment --comment lo
COMMIT
",
        packets: |lab| {
            vec![
                in_tcp(lab, 20_000),
                out_udp(lab, "10.1.0.1", "10.2.0.2", 20_001),
                out_udp(lab, "10.2.0.5", "10.1.0.1", 20_002),
            ]
        },
    },
    Case {
        fact: "a packet that a rule traces is not changed by that, and neither by a list or a log",
        tool: IPTABLES,
        rules: "*raw
:PREROUTING ACCEPT
-A PREROUTING -p udp --dport 53 -j TRACE
-A PREROUTING -p udp -m recent --name seen --set
-A PREROUTING -p udp -j NFLOG --nflog-group 7
COMMIT
",
        packets: |lab| vec![in_udp(lab, "10.1.0.2", "10.2.0.2", 20_000)],
    },
    Case {
        fact: "mangle at output finds a new route when a rule has changed the mark",
        tool: IPTABLES,
        rules: "*mangle
:OUTPUT ACCEPT
-A OUTPUT -p udp -j MARK --set-mark 7
-A OUTPUT -p tcp -j TOS --set-tos 0x10/0xff
:POSTROUTING ACCEPT
-A POSTROUTING -o r0 -m mark --mark 7 -m comment --comment here
COMMIT
",
        packets: |lab| vec![out_udp(lab, "10.1.0.1", "10.2.0.2", 20_000), out_port(lab, "10.2.0.2", 80, 20_001)],
    },
    Case {
        fact: "TCP without the option of the largest segment gets one, and others a smaller one",
        tool: IPTABLES,
        rules: "*mangle
:FORWARD ACCEPT
-A FORWARD -p tcp -m tcp --tcp-flags SYN,RST SYN -j TCPMSS --set-mss 900
-A FORWARD -p tcp -m tcpmss --mss 900 -m comment --comment smaller
-A FORWARD -p tcp -m tcpmss --mss 536 -m comment --comment added
COMMIT
",
        packets: |lab| {
            let with = segment(20_001, 80, 2, (1000, 0), true);
            vec![in_tcp(lab, 20_000), in_packet(lab, TCP, &with)]
        },
    },
    Case {
        fact: "protocols of IPv6 are looked for behind extension headers",
        tool: IP6TABLES,
        rules: "*filter
:FORWARD ACCEPT
:LAST -
-A FORWARD -p tcp -m comment --comment tcp
-A FORWARD ! -p udp -m comment --comment not-udp
-A FORWARD -p all -m comment --comment any
-A FORWARD -p ipv6-icmp -m comment --comment icmp
-A FORWARD -s fd01::/ffff::ff -g LAST
-A LAST -j REJECT
COMMIT
",
        packets: |lab| {
            // Hop-by-hop options that are padding, then TCP.
            let mut transport = vec![TCP, 0, 1, 4, 0, 0, 0, 0];
            transport.extend(segment(20_001, 80, 2, (1000, 0), false));
            let ends = ("fd01::2".parse().unwrap(), "fd02::2".parse().unwrap());
            let behind = whole(lab, Origin::Received { interface: lab.r0 }, ends, 0, &transport);
            vec![in_tcp6(lab, 20_000), in_udp(lab, "fd01::2", "fd02::2", 20_002), behind]
        },
    },
    Case {
        fact: "kube-proxy's chains: Services, endpoints at random, affinity, masquerade by mark, and what has none",
        tool: IPTABLES,
        rules: include_str!("../fixtures/rules/kube-proxy.iptables"),
        packets: |lab| {
            let mut packets = to_services(lab);
            packets.extend((0..8).map(|number| in_port(lab, "10.96.0.83", 443, 23_000 + number)));
            packets
        },
    },
];
