//! Cases of parts that a kernel may be built without: where one lacks them, its case is skipped and says so.

use netdiag_common::forwarding::packet::{ICMP, Origin, TCP, icmp};

use crate::fixed::{Case, in_packet, in_port, in_tcp, in_tcp6, in_udp, out_tcp};
use crate::traffic::{segment, whole};

const NFT: &str = "nft";
const IPTABLES: &str = "iptables-nft-restore";
const IP6TABLES: &str = "ip6tables-nft-restore";

pub const FLOWTABLE: Case = Case {
    fact: "what a flowtable takes passes no rules from then on, and is translated as before",
    tool: NFT,
    rules: "table inet t {
        flowtable f { hook ingress priority 0; devices = { r0, r1 }; }
        chain a { type nat hook prerouting priority -100; udp dport 53 ip daddr 10.2.0.3 dnat ip to 10.2.0.2; }
        chain b { type filter hook forward priority 0;
            meta l4proto { tcp, udp } flow add @f counter
            ct state established counter
        }
    }",
    packets: |lab| {
        vec![
            in_udp(lab, "10.1.0.2", "10.2.0.2", 20_000),
            in_udp(lab, "10.1.0.2", "10.2.0.3", 20_001),
            in_udp(lab, "fd01::2", "fd02::2", 20_002),
            in_tcp(lab, 20_003),
            in_tcp6(lab, 20_004),
        ]
    },
};

pub const QUEUE: Case = Case {
    fact: "one of several queues by the packet's addresses, by the processor, or by a number that the rule computes",
    tool: NFT,
    rules: "table inet t {
        chain a { type filter hook forward priority 0;
            meta l4proto icmp queue flags bypass to symhash mod 2 offset 40000
            meta l4proto udp queue flags bypass,fanout to 20-21
            tcp dport 81 queue to 7
            queue flags bypass to 10-13
        }
        chain b { type filter hook postrouting priority 0; counter; }
    }",
    packets: |lab| {
        vec![
            in_tcp(lab, 20_000),
            in_udp(lab, "10.1.0.2", "10.2.0.2", 20_001),
            in_packet(lab, ICMP, &icmp(8, 0, 20_002)),
            in_port(lab, "10.2.0.2", 81, 20_003),
        ]
    },
};

pub const QUEUE_OF_IPTABLES: Case = Case {
    fact: "what nobody takes from a queue is dropped, or goes on where its rule says so",
    tool: IPTABLES,
    rules: "*mangle
:FORWARD ACCEPT
-A FORWARD -p udp -j NFQUEUE --queue-balance 10:13 --queue-bypass
-A FORWARD -p icmp -j NFQUEUE --queue-balance 20:21 --queue-bypass --queue-cpu-fanout
-A FORWARD -p tcp -j NFQUEUE --queue-num 40000
COMMIT
*filter
:FORWARD ACCEPT
-A FORWARD -m comment --comment behind
COMMIT
",
    packets: |lab| {
        vec![
            in_tcp(lab, 20_000),
            in_udp(lab, "10.1.0.2", "10.2.0.2", 20_001),
            in_packet(lab, ICMP, &icmp(8, 0, 20_002)),
        ]
    },
};

pub const PROGRAM: Case = Case {
    fact: "a program of classic BPF begins at the network header, and what it cannot load ends it",
    tool: IPTABLES,
    rules: include_str!("../fixtures/rules/bpf.iptables"),
    packets: |lab| {
        vec![
            in_tcp(lab, 20_000),
            in_port(lab, "10.2.0.2", 81, 20_001),
            in_udp(lab, "10.1.0.2", "10.2.0.2", 20_002),
            in_packet(lab, ICMP, &icmp(8, 0, 20_003)),
            out_tcp(lab, 20_004),
        ]
    },
};

pub const CLASS: Case = Case {
    fact: "what a socket here sends has the class of its control group",
    tool: NFT,
    rules: "table inet t {
        chain a { type filter hook output priority 0; meta cgroup 0 counter; meta cgroup 1048577 counter; }
        chain b { type filter hook forward priority 0; meta cgroup 0 counter; }
    }",
    packets: |lab| vec![out_tcp(lab, 20_000), in_tcp(lab, 20_001)],
};

/// Matches and targets of the kernel's own parts.
pub const CASES: [Case; 4] = [
    Case {
        fact: "an address is on a list as often and as late as its packets came, with this one",
        tool: IPTABLES,
        rules: "*mangle
:FORWARD ACCEPT
-A FORWARD -p udp -m recent --name a --rcheck -m comment --comment seen
-A FORWARD -p udp -m recent --name a ! --rcheck --seconds 3600 --hitcount 2 -m comment --comment once
-A FORWARD -p udp -m recent --name a --set
-A FORWARD -p udp -m recent --name a --rcheck --seconds 3600 -m comment --comment now
-A FORWARD -p udp -m recent --name a --update --seconds 3600 --hitcount 4 -j DROP
-A FORWARD -p udp -m recent --name b --set --rdest
-A FORWARD -p icmp -m recent --name a --remove -m comment --comment removed
-A FORWARD -p tcp -m recent --name a --rcheck --rttl -m comment --comment near
-A FORWARD -p tcp -m recent --name b --rcheck --rdest -m comment --comment destination
COMMIT
",
        packets: |lab| {
            vec![
                in_tcp(lab, 20_000),
                in_udp(lab, "10.1.0.2", "10.2.0.2", 20_001),
                in_tcp(lab, 20_002),
                in_udp(lab, "10.1.0.2", "10.2.0.2", 20_003),
                in_packet(lab, ICMP, &icmp(8, 0, 20_004)),
                in_tcp(lab, 20_005),
                in_udp(lab, "10.1.0.2", "10.2.0.2", 20_006),
            ]
        },
    },
    Case {
        fact: "no rule about a header of IPv6 matches a packet without it, and negation changes nothing",
        tool: IP6TABLES,
        rules: "*filter
:FORWARD ACCEPT
-A FORWARD -m rt --rt-type 0 -j DROP
-A FORWARD -m rt ! --rt-type 0 -j DROP
-A FORWARD -m frag --fragid 7 -j DROP
-A FORWARD -m frag ! --fragid 7 -j DROP
-A FORWARD -m dst --dst-len 8 -j DROP
-A FORWARD -m dst ! --dst-len 8 -j DROP
-A FORWARD -m ah ! --ahspi 7 -j DROP
-A FORWARD -m hbh --hbh-len 8 -m comment --comment options
-A FORWARD -m ipv6header --header hop-by-hop --soft -m comment --comment some-options
-A FORWARD -m ipv6header --header protocol -m comment --comment plain
-A FORWARD -m ipv6header ! --header protocol -m comment --comment not-plain
-A FORWARD -m eui64 -m comment --comment own-address
COMMIT
",
        packets: |lab| {
            // Hop-by-hop options that are padding, then TCP.
            let mut behind = vec![TCP, 0, 1, 4, 0, 0, 0, 0];
            behind.extend(segment(20_001, 80, 2, (1000, 0), false));
            let of = |source: &str, next: u8, transport: &[u8]| {
                let ends = (source.parse().unwrap(), "fd02::2".parse().unwrap());
                whole(lab, Origin::Received { interface: lab.r0 }, ends, next, transport)
            };
            // Nobody answers it: this address has no neighbour.
            let own = of("fd01::ff:fe00:9", TCP, &segment(20_002, 80, 0x10, (1000, 0), false));
            vec![in_tcp6(lab, 20_000), of("fd01::2", 0, &behind), own]
        },
    },
    Case {
        fact: "synproxy answers what has SYN, and drops what answers no cookie of its own",
        tool: NFT,
        rules: "table ip t {
            chain a { type filter hook prerouting priority -300; tcp dport { 80, 81 } notrack; }
            chain b { type filter hook forward priority 0;
                meta l4proto udp counter
                tcp dport 81 synproxy mss 1460 wscale 7 timestamp sack-perm
                counter
            }
        }",
        packets: |lab| {
            let flags = |port: u16, flags: u8| in_packet(lab, TCP, &segment(port, 81, flags, (1000, 5), false));
            vec![in_tcp(lab, 20_000), flags(20_001, 2), flags(20_002, 0x12), flags(20_003, 0x10), flags(20_004, 4)]
        },
    },
    Case {
        fact: "the target SYNPROXY leaves what begins no connection to the next rule",
        tool: IPTABLES,
        rules: "*raw
:PREROUTING ACCEPT
-A PREROUTING -p tcp --dport 81 -j CT --notrack
COMMIT
*filter
:FORWARD ACCEPT
-A FORWARD -p tcp --dport 81 -j SYNPROXY --sack-perm --timestamp --wscale 7 --mss 1460
-A FORWARD -p tcp --dport 81 -m comment --comment behind
COMMIT
",
        packets: |lab| {
            let flags = |port: u16, flags: u8| in_packet(lab, TCP, &segment(port, 81, flags, (1000, 5), false));
            vec![flags(20_001, 2), flags(20_002, 0x12), flags(20_003, 0x10), flags(20_004, 0x14), flags(20_005, 4)]
        },
    },
];

/// Whether a tool says that the kernel has no such thing, and not that it does not understand.
pub fn is_missing(why: &str) -> bool {
    let words = [
        // With a guess at a chain that was meant, or without.
        "Error: No such file or directory",
        "Could not process rule: No such file or directory",
        "Could not process rule: Operation not supported",
        "missing kernel module",
    ];
    words.iter().any(|words| why.contains(words))
}
