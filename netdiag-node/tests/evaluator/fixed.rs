//! Cases in which the evaluator once differed from the kernel, and rulesets as kube-proxy writes them. Each is a page of
//! rules and the packets that showed it.

use netdiag_common::forwarding::Packet;
use netdiag_common::forwarding::packet::{ICMP, ICMPV6, Origin, TCP, UDP, icmp, udp};

use crate::lab::Lab;
use crate::traffic::{segment, whole};

pub struct Case {
    pub fact: &'static str,
    /// `nft`, or a restore command of iptables; of legacy iptables, all other tables are empty.
    pub tool: &'static str,
    pub rules: &'static str,
    pub packets: fn(&Lab) -> Vec<Packet>,
}

const NFT: &str = "nft";
const IPTABLES: &str = "iptables-nft-restore";
const IP6TABLES: &str = "ip6tables-nft-restore";

/// SYN.
const BEGIN: u8 = 2;

pub const CASES: [Case; 18] = [
    Case {
        fact: "an invalid packet is looked at again over lo, and may be kept from being tracked there",
        tool: NFT,
        rules: "table ip t {
            chain a { type filter hook prerouting priority -300; ct state invalid counter; tcp dport 80 notrack; }
            chain b { type filter hook input priority 0; ct state untracked counter; ct state invalid counter; }
        }",
        packets: |lab| {
            let ends = ("10.2.0.5".parse().unwrap(), "10.1.0.1".parse().unwrap());
            [80, 81].map(|port| whole(lab, Origin::Sent, ends, TCP, &segment(20_000, port, 0x12, (1000, 0), false))).into()
        },
    },
    Case {
        fact: "a limit is asked anew each time a packet comes by",
        tool: NFT,
        rules: "table ip t {
            chain c { limit rate 1/hour burst 1 packets counter; }
            chain a { type filter hook forward priority 0; jump c; }
            chain b { type filter hook postrouting priority 0; jump c; }
        }",
        packets: |lab| vec![in_tcp(lab, 20_000), in_tcp(lab, 20_001), in_tcp(lab, 20_002)],
    },
    Case {
        fact: "chains of type nat run only while some rule needs tracking for the packet's protocol",
        tool: NFT,
        rules: "table inet t {
            chain a { type nat hook postrouting priority 100; counter; meta nfproto ipv4 snat ip to 10.2.0.100; }
        }",
        packets: |lab| vec![in_tcp(lab, 20_000), in_tcp6(lab, 20_000)],
    },
    Case {
        fact: "chains of type nat without any such rule do not run",
        tool: NFT,
        rules: "table ip t {
            chain a { type nat hook postrouting priority 100; counter; }
        }",
        packets: |lab| vec![in_tcp(lab, 20_000), out_udp(lab, "10.1.0.1", "10.2.0.2", 20_001)],
    },
    Case {
        fact: "a rule that ends halfway has set the mark all the same",
        tool: NFT,
        rules: "table ip t {
            chain a { type filter hook forward priority 0; meta mark set 0x7 tcp dport 81 accept; }
        }",
        packets: |lab| vec![in_tcp(lab, 20_000)],
    },
    Case {
        fact: "masquerade over lo takes the first address of another interface, or the destination",
        tool: NFT,
        rules: "table inet t {
            chain a { type nat hook postrouting priority 100; masquerade; }
        }",
        packets: |lab| {
            vec![
                out_udp(lab, "10.2.0.5", "10.1.0.1", 20_000),
                out_udp(lab, "10.2.0.1", "10.2.0.1", 20_001),
                out_udp(lab, "fd01::1", "fd02::1", 20_002),
                out_udp(lab, "fd01::1", "fd02::2", 20_003),
            ]
        },
    },
    Case {
        fact: "masquerade with a route by mark ends when the mark, and so the interface, changes",
        tool: NFT,
        rules: "table ip t {
            chain a { type nat hook postrouting priority 100; masquerade; }
            chain b { type filter hook prerouting priority -300; tcp flags syn / syn,ack meta mark set 0x7; }
        }",
        packets: |lab| vec![in_tcp(lab, 20_000)],
    },
    Case {
        fact: "each zone has connections of its own, and what carries a zone until then has a state and nothing else",
        tool: NFT,
        rules: "table ip t {
            chain a { type filter hook output priority -300;
                ct zone set 5; ct state new counter; ct status confirmed drop; ct mark 0x0 counter;
                ct original ip daddr 10.2.0.2 counter; ct original protocol 0 counter; }
            chain b { type filter hook prerouting priority -100; ct state invalid counter; ct state new counter; }
        }",
        packets: |lab| vec![out_tcp(lab, 20_000), out_udp(lab, "10.1.0.1", "10.2.0.2", 20_001)],
    },
    Case {
        fact: "a zone that is set after connections are looked up makes an invalid packet look new",
        tool: NFT,
        rules: "table ip t {
            chain a { type filter hook forward priority 0; ct state invalid ct zone set 5; ct state new counter; }
        }",
        packets: |lab| vec![in_packet(lab, TCP, &segment(20_000, 80, 0x12, (1000, 0), false))],
    },
    Case {
        fact: "fib at input takes a packet over lo for one from lo",
        tool: NFT,
        rules: "table inet t {
            chain a { type filter hook input priority 0; fib saddr . iif oif 0 counter; fib saddr . iif oif lo counter; }
            chain b { type filter hook prerouting priority 0; fib saddr . iif oif 0 drop; fib daddr type local counter; }
        }",
        packets: |lab| {
            vec![out_udp(lab, "10.2.0.5", "10.1.0.1", 20_000), in_udp(lab, "10.1.0.2", "10.1.0.1", 20_001)]
        },
    },
    Case {
        fact: "addresses of a range are chosen by the hash of both ends, or of the source alone",
        tool: NFT,
        rules: "table inet t {
            chain a { type nat hook postrouting priority 100;
                udp sport >= 22000 meta nfproto ipv4 snat ip to 10.2.0.100-10.2.0.103 persistent
                meta nfproto ipv4 snat ip to 10.2.0.100-10.2.0.103
                meta nfproto ipv6 snat ip6 to fd02::100-fd02::103
            }
        }",
        packets: |lab| {
            let mut packets: Vec<Packet> =
                (2..9).map(|host| in_udp(lab, &format!("10.1.0.{host}"), "10.2.0.2", 20_000 + host)).collect();
            packets.extend((2..9).map(|host| in_udp(lab, "10.1.0.2", &format!("10.2.0.{host}"), 21_000 + host)));
            packets.extend((2..9).map(|host| in_udp(lab, "10.1.0.2", &format!("10.2.0.{host}"), 22_000 + host)));
            packets.extend((2..9).map(|host| in_udp(lab, "fd01::2", &format!("fd02::{host}"), 23_000 + host)));
            packets
        },
    },
    Case {
        fact: "a reset for what begins a connection of iptables, and the later revision of CONNMARK",
        tool: IPTABLES,
        rules: "*mangle
:PREROUTING ACCEPT
-A PREROUTING -j MARK --set-xmark 0x12/0xff
-A PREROUTING -j CONNMARK --save-mark --nfmask 0x10 --ctmask 0x10
-A PREROUTING -j MARK --set-xmark 0x0/0xffffffff
-A PREROUTING -j CONNMARK --restore-mark
COMMIT
*filter
:FORWARD ACCEPT
-A FORWARD -p tcp --dport 80 -m conntrack --ctstate NEW -j REJECT --reject-with tcp-reset
COMMIT
",
        packets: |lab| vec![in_tcp(lab, 20_000), in_udp(lab, "10.1.0.2", "10.2.0.2", 20_001)],
    },
    Case {
        fact: "types of IPv6 addresses are told by the address, and by the route only where that is asked",
        tool: IP6TABLES,
        rules: "*filter
:FORWARD ACCEPT
-A FORWARD -m addrtype --dst-type UNICAST -m comment --comment unicast
-A FORWARD -m addrtype --dst-type LOCAL -m comment --comment local
-A FORWARD -m addrtype ! --src-type LOCAL -m comment --comment foreign
:INPUT ACCEPT
-A INPUT -m addrtype --dst-type LOCAL -m comment --comment local
-A INPUT -m addrtype --dst-type UNICAST -m comment --comment unicast
COMMIT
",
        packets: |lab| {
            vec![in_tcp6(lab, 20_000), in_udp(lab, "fd01::2", "fd01::1", 20_001), in_icmp6(lab, 20_002)]
        },
    },
    Case {
        fact: "what must not be tracked does not bring tracking about",
        tool: IPTABLES,
        rules: "*raw
:PREROUTING ACCEPT
-A PREROUTING -s 192.0.2.1 -j CT --notrack
COMMIT
*nat
:POSTROUTING ACCEPT
-A POSTROUTING -m comment --comment nothing
COMMIT
",
        packets: |lab| vec![in_tcp(lab, 20_000)],
    },
    Case {
        fact: "an exact match of ICMP, and any",
        tool: IPTABLES,
        rules: "*filter
:FORWARD ACCEPT
-A FORWARD -p icmp --icmp-type echo-request -m comment --comment request
-A FORWARD -p icmp --icmp-type any -m statistic --mode random --probability 0.5 -j DROP
COMMIT
",
        packets: |lab| (0..6).map(|number| in_packet(lab, ICMP, &icmp(8, 0, 20_000 + number))).collect(),
    },
    Case {
        fact: "an option of TCP is made smaller, never larger, or removed; a rule goes on without it, if it is TCP",
        tool: NFT,
        rules: "table inet t {
            chain a { type filter hook forward priority 0;
                tcp option maxseg size set 1000 counter
                tcp option maxseg size 1000 counter
                tcp option maxseg size set 1200 counter
                tcp option maxseg size 1000 counter
                tcp dport 443 reset tcp option maxseg counter
                tcp option maxseg exists counter
            }
        }",
        packets: |lab| {
            let with_option = |port, to| in_packet(lab, TCP, &segment(port, to, BEGIN, (1000, 0), true));
            vec![
                with_option(20_000, 80),
                with_option(20_001, 443),
                in_tcp(lab, 20_002),
                in_udp(lab, "10.1.0.2", "10.2.0.2", 20_003),
            ]
        },
    },
    Case {
        fact: "what a rule writes into a header is what later rules, the route and the receiver see",
        tool: NFT,
        rules: "table ip t {
            chain a { type filter hook prerouting priority -300;
                ip daddr 10.2.0.2 ip daddr set 10.2.0.3 ip ttl set 9
                udp dport 53 udp dport set 5353 counter
            }
            chain b { type filter hook forward priority 0;
                ip daddr 10.2.0.3 counter
                udp dport 5353 counter
            }
        }",
        packets: |lab| vec![in_udp(lab, "10.1.0.2", "10.2.0.2", 20_000), in_tcp(lab, 20_001)],
    },
    Case {
        fact: "kube-proxy's layout: maps of verdicts, masquerade by mark, endpoints at random, and what has none",
        tool: NFT,
        rules: include_str!("../fixtures/rules/kube-proxy.nft"),
        packets: to_services,
    },
];

/// What kube-proxy's rules of the fixtures are there for.
pub fn to_services(lab: &Lab) -> Vec<Packet> {
    let mut packets = Vec::new();
    for number in 0..8 {
        packets.push(in_port(lab, "10.96.0.80", 80, 20_000 + number));
        packets.push(out_port(lab, "10.96.0.80", 80, 21_000 + number));
    }
    packets.extend([
        // No endpoints; a port that no Service has; an address of no Service; another range; node ports.
        in_port(lab, "10.96.0.81", 80, 22_000),
        in_port(lab, "10.96.0.80", 81, 22_001),
        out_port(lab, "10.96.0.82", 80, 22_002),
        in_port(lab, "10.2.0.1", 30_080, 22_003),
        in_port(lab, "10.2.0.1", 30_081, 22_004),
        out_port(lab, "10.2.0.5", 30_080, 22_005),
        in_udp(lab, "10.1.0.2", "10.96.0.53", 22_006),
        in_udp(lab, "192.0.2.1", "10.96.0.53", 22_007),
    ]);
    packets
}

pub fn in_packet(lab: &Lab, protocol: u8, transport: &[u8]) -> Packet {
    let ends = ("10.1.0.2".parse().unwrap(), "10.2.0.2".parse().unwrap());
    whole(lab, Origin::Received { interface: lab.r0 }, ends, protocol, transport)
}

pub fn in_tcp(lab: &Lab, port: u16) -> Packet {
    in_packet(lab, TCP, &segment(port, 80, BEGIN, (1000, 0), false))
}

pub fn in_tcp6(lab: &Lab, port: u16) -> Packet {
    let ends = ("fd01::2".parse().unwrap(), "fd02::2".parse().unwrap());
    whole(lab, Origin::Received { interface: lab.r0 }, ends, TCP, &segment(port, 80, BEGIN, (1000, 0), false))
}

pub fn in_icmp6(lab: &Lab, identifier: u16) -> Packet {
    let ends = ("fd01::2".parse().unwrap(), "fd02::2".parse().unwrap());
    whole(lab, Origin::Received { interface: lab.r0 }, ends, ICMPV6, &icmp(128, 0, identifier))
}

pub fn in_udp(lab: &Lab, source: &str, destination: &str, port: u16) -> Packet {
    let ends = (source.parse().unwrap(), destination.parse().unwrap());
    whole(lab, Origin::Received { interface: lab.r0 }, ends, UDP, &udp(port, 53, b"question"))
}

pub fn in_port(lab: &Lab, destination: &str, port: u16, source_port: u16) -> Packet {
    let ends = ("10.1.0.2".parse().unwrap(), destination.parse().unwrap());
    let segment = segment(source_port, port, BEGIN, (1000, 0), false);
    whole(lab, Origin::Received { interface: lab.r0 }, ends, TCP, &segment)
}

pub fn out_port(lab: &Lab, destination: &str, port: u16, source_port: u16) -> Packet {
    let ends = ("10.2.0.1".parse().unwrap(), destination.parse().unwrap());
    whole(lab, Origin::Sent, ends, TCP, &segment(source_port, port, BEGIN, (1000, 0), false))
}

pub fn out_tcp(lab: &Lab, port: u16) -> Packet {
    out_port(lab, "10.2.0.2", 80, port)
}

pub fn out_udp(lab: &Lab, source: &str, destination: &str, port: u16) -> Packet {
    let ends = (source.parse().unwrap(), destination.parse().unwrap());
    whole(lab, Origin::Sent, ends, UDP, &udp(port, 53, b"question"))
}
