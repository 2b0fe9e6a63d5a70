//! Cases of rules that decide by what cannot be read: how many connections there are, what a limit or a quota has left, a hash with
//! a secret key. Each is predicted in all its ways, and the kernel has to take one of them.

use netdiag_common::forwarding::packet::{ICMP, icmp};

use crate::fixed::{Case, in_packet, in_port, in_tcp, in_tcp6, in_udp, out_tcp, out_udp};

const NFT: &str = "nft";

pub const CASES: [Case; 5] = [
    Case {
        fact: "connections are counted, all that a rule sees or those of one address",
        tool: NFT,
        rules: "table ip t {
            set many { type ipv4_addr; size 100; flags dynamic; }
            chain a { type filter hook forward priority 0;
                tcp dport 80 ct count over 1 counter
                tcp dport 80 ct count 2 counter
                meta l4proto udp add @many { ip saddr ct count over 1 } counter
            }
        }",
        packets: |lab| {
            vec![
                in_tcp(lab, 20_000),
                in_tcp(lab, 20_001),
                in_tcp(lab, 20_002),
                in_udp(lab, "10.1.0.2", "10.2.0.2", 20_003),
                in_udp(lab, "10.1.0.2", "10.2.0.2", 20_004),
                in_udp(lab, "10.1.0.3", "10.2.0.2", 20_005),
            ]
        },
    },
    Case {
        fact: "symhash gives a packet the same number at each rule, by the same modulus",
        tool: NFT,
        rules: "table inet t {
            chain a { type filter hook prerouting priority -150;
                meta mark set symhash mod 2 offset 16
                meta mark 16 counter
                meta mark 17 counter
            }
            chain b { type filter hook forward priority 0;
                meta mark set 0
                meta mark set symhash mod 2 offset 16
                meta mark 16 counter
            }
            chain c { type filter hook postrouting priority 0; meta mark set symhash mod 5 offset 20; }
        }",
        packets: |lab| {
            let mut packets: Vec<_> = (0..6).map(|number| in_tcp(lab, 20_000 + number)).collect();
            packets.extend([in_tcp6(lab, 20_006), in_udp(lab, "10.1.0.2", "10.2.0.2", 20_007)]);
            packets.push(in_packet(lab, ICMP, &icmp(8, 0, 20_008)));
            packets
        },
    },
    Case {
        fact: "a route has a next hop, which is the destination where no router is, and none before it is chosen",
        tool: NFT,
        rules: "table inet t {
            chain a { type filter hook prerouting priority 0; rt ip nexthop 10.2.0.2 drop; rt ip6 nexthop fd02::2 drop; }
            chain b { type filter hook forward priority 0;
                rt ip nexthop 10.2.0.254 counter
                rt ip nexthop 10.2.0.2 counter
                rt ip6 nexthop fd02::fe counter
                rt ip6 nexthop fd02::2 counter
                rt classid 0 counter
                rt mtu 1460 counter
            }
            chain c { type filter hook input priority 0; rt ip nexthop 10.1.0.1 counter; }
            chain d { type filter hook output priority 0; rt ip nexthop 10.2.0.254 counter; rt classid 0 counter; }
        }",
        packets: |lab| {
            vec![
                in_tcp(lab, 20_000),
                in_tcp6(lab, 20_001),
                in_udp(lab, "10.1.0.2", "192.0.2.1", 20_002),
                in_udp(lab, "fd01::2", "2001:db8::1", 20_003),
                in_udp(lab, "10.1.0.2", "10.1.0.1", 20_004),
                out_udp(lab, "10.2.0.1", "192.0.2.1", 20_005),
                out_tcp(lab, 20_006),
            ]
        },
    },
    Case {
        fact: "limits, quotas and counters with a name, and by a map",
        tool: NFT,
        rules: "table ip t {
            limit slow { rate 1/hour burst 2 packets }
            quota little { 100 bytes }
            quota much { over 1 mbytes }
            counter total { }
            map limits { type inet_service : limit; elements = { 80 : \"slow\", 81 : \"slow\" } }
            map counters { type inet_service : counter; elements = { 80 : \"total\" } }
            chain a { type filter hook forward priority 0;
                limit name \"slow\" counter
                quota name \"little\" counter
                limit name tcp dport map @limits counter
                quota name tcp dport map { 80 : \"little\", 443 : \"much\" } counter
                counter name tcp dport map @counters
                counter name \"total\"
            }
        }",
        packets: |lab| {
            vec![
                in_tcp(lab, 20_000),
                in_tcp(lab, 20_001),
                in_port(lab, "10.2.0.2", 81, 20_002),
                in_port(lab, "10.2.0.2", 443, 20_003),
                in_udp(lab, "10.1.0.2", "10.2.0.2", 20_004),
                in_tcp(lab, 20_005),
            ]
        },
    },
    Case {
        fact: "a socket here has a user and a group, and what passes through has none",
        tool: NFT,
        rules: "table inet t {
            chain a { type filter hook output priority 0;
                meta skuid 0 counter
                meta skuid 1-99 counter
                meta skgid != 0 drop
            }
            chain b { type filter hook postrouting priority 0; meta skuid 0 counter; meta skgid 0 counter; }
        }",
        packets: |lab| vec![out_tcp(lab, 20_000), in_tcp(lab, 20_001), out_udp(lab, "fd02::1", "fd02::2", 20_002)],
    },
];
