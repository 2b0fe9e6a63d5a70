//! Cases of parts that a kernel may be built without: where one lacks them, its case is skipped and says so.

use netdiag_common::forwarding::packet::{ICMP, icmp};

use crate::fixed::{Case, in_packet, in_port, in_tcp, in_tcp6, in_udp, out_tcp};

const NFT: &str = "nft";
const IPTABLES: &str = "iptables-nft-restore";

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
