//! Cases of rules that look for a socket of this host, or give a packet to a transparent proxy, with such sockets.

use std::net::SocketAddr;
use std::os::fd::{AsRawFd as _, OwnedFd};

use netdiag_common::forwarding::Packet;
use netdiag_common::forwarding::packet::{Origin, UDP, udp};
use socket2::{Domain, Socket, Type};

use crate::fixed::{Case, in_port, in_tcp, in_tcp6, in_udp};
use crate::lab::{Lab, ip};
use crate::traffic::whole;

const NFT: &str = "nft";
const IPTABLES: &str = "iptables-nft-restore";

/// Where packets with mark 9 are delivered, whatever address they are for.
const DELIVERING: [&str; 4] = [
    "rule add fwmark 9 table 109",
    "-6 rule add fwmark 9 table 109",
    "route add local default dev lo table 109",
    "-6 route add local default dev lo table 109",
];

/// A proxy on port 50080 of either family, with mark 0x200, and a server on port 8088 with mark 0x300. Port 50099 has
/// nobody.
pub fn open() -> Vec<OwnedFd> {
    for words in &DELIVERING {
        ip(words);
    }
    let mut sockets = Vec::new();
    for kind in [Type::STREAM, Type::DGRAM] {
        for address in ["0.0.0.0:50080", "[::]:50080"] {
            sockets.push(socket(address, kind, true, 0x200));
        }
        sockets.push(socket("10.1.0.1:8088", kind, false, 0x300));
    }
    sockets
}

fn socket(address: &str, kind: Type, transparent: bool, mark: u32) -> OwnedFd {
    let address: SocketAddr = address.parse().unwrap();
    let socket = Socket::new(Domain::for_address(address), kind, None).unwrap();
    if address.is_ipv6() {
        socket.set_only_v6(true).unwrap();
    }
    let (level, option) =
        if address.is_ipv6() { (libc::SOL_IPV6, libc::IPV6_TRANSPARENT) } else { (libc::SOL_IP, libc::IP_TRANSPARENT) };
    let value = libc::c_int::from(transparent);
    let bytes = libc::socklen_t::try_from(size_of_val(&value)).unwrap();
    // SAFETY: the kernel reads the value, of the given size.
    let set = unsafe { libc::setsockopt(socket.as_raw_fd(), level, option, (&raw const value).cast(), bytes) };
    assert_eq!(set, 0, "{}", std::io::Error::last_os_error());
    socket.set_mark(mark).unwrap();
    socket.bind(&address.into()).unwrap();
    if kind == Type::STREAM {
        socket.listen(16).unwrap();
    }
    socket.into()
}

/// To a port that nobody answers from.
fn to_proxy(lab: &Lab, source: &str, destination: &str, port: u16) -> Packet {
    let ends = (source.parse().unwrap(), destination.parse().unwrap());
    whole(lab, Origin::Received { interface: lab.r0 }, ends, UDP, &udp(port, 9999, b"question"))
}

pub const CASES: [Case; 4] = [
    Case {
        fact: "a rule of nft finds the socket of a packet, with what is known of it",
        tool: NFT,
        rules: "table inet t {
            chain a { type filter hook prerouting priority -150;
                tcp dport 8088 socket transparent 0 counter
                tcp dport 8088 socket wildcard 0 counter
                socket mark 0x300 counter
                socket mark 0x200 counter
                socket wildcard 1 counter
                socket transparent 1 drop
            }
            chain b { type filter hook input priority 0; socket wildcard 0 counter; socket wildcard 1 counter; }
        }",
        packets: |lab| {
            vec![
                in_tcp(lab, 20_000),
                in_port(lab, "10.1.0.1", 8088, 20_001),
                in_port(lab, "10.2.0.1", 8088, 20_002),
                in_port(lab, "10.1.0.1", 50_080, 20_003),
                in_udp(lab, "10.1.0.2", "10.1.0.1", 20_004),
                in_udp(lab, "fd01::2", "fd01::1", 20_005),
            ]
        },
    },
    Case {
        fact: "tproxy of nft goes on with a proxy, does not match without one, and what has one is not forwarded",
        tool: NFT,
        rules: "table inet t {
            chain a { type filter hook prerouting priority -150;
                tcp dport 81 tproxy to :50080 meta mark set 9 accept
                udp dport 9999 tproxy to :50080 meta mark set 9 accept
                tcp dport 82 tproxy to :50099 meta mark set 9 accept
                tcp dport 8081 tproxy ip to 10.1.0.1:8088 meta mark set 9 accept
                tcp dport 83 tproxy to :50080 counter
                counter
            }
            chain b { type filter hook input priority 0; socket transparent 1 socket mark 0x200 counter; }
        }",
        packets: |lab| {
            vec![
                in_tcp(lab, 20_000),
                in_port(lab, "10.2.0.2", 81, 20_001),
                in_port(lab, "10.2.0.2", 82, 20_002),
                in_port(lab, "10.2.0.2", 83, 20_003),
                in_port(lab, "10.2.0.2", 8081, 20_004),
                to_proxy(lab, "10.1.0.2", "10.2.0.2", 20_005),
                to_proxy(lab, "fd01::2", "fd02::2", 20_006),
            ]
        },
    },
    Case {
        fact: "the match socket takes who listens everywhere for no socket, and gives the packet its mark",
        tool: IPTABLES,
        rules: "*mangle
:PREROUTING ACCEPT
:DIVERT -
-A PREROUTING -p tcp -m socket --transparent -m comment --comment transparent-bound
-A PREROUTING -p tcp -m socket --transparent --nowildcard --restore-skmark -j DIVERT
-A PREROUTING -p tcp -m socket -m comment --comment bound
-A PREROUTING -p udp -m socket -m comment --comment bound
-A PREROUTING -p udp -m socket --nowildcard -m comment --comment any
-A DIVERT -j ACCEPT
:INPUT ACCEPT
-A INPUT -m socket --nowildcard -m comment --comment delivered
COMMIT
",
        packets: |lab| {
            vec![
                in_tcp(lab, 20_000),
                in_port(lab, "10.1.0.1", 8088, 20_001),
                in_port(lab, "10.1.0.1", 50_080, 20_002),
                in_udp(lab, "10.1.0.2", "10.1.0.1", 20_003),
                in_udp(lab, "10.1.0.2", "10.2.0.2", 20_004),
            ]
        },
    },
    Case {
        fact: "the target TPROXY accepts with a mark, and drops without a proxy",
        tool: IPTABLES,
        rules: "*mangle
:PREROUTING ACCEPT
-A PREROUTING -p tcp -m tcp --dport 81 -j TPROXY --on-port 50080 --on-ip 0.0.0.0 --tproxy-mark 0x9/0xf
-A PREROUTING -p tcp -m tcp --dport 82 -j TPROXY --on-port 50099 --on-ip 0.0.0.0 --tproxy-mark 0x9/0xf
-A PREROUTING -p tcp -m tcp --dport 83 -j TPROXY --on-port 8088 --on-ip 10.1.0.1 --tproxy-mark 0x9/0xf
-A PREROUTING -p udp -m udp --dport 9999 -j TPROXY --on-port 50080 --on-ip 10.1.0.1 --tproxy-mark 0x9/0xf
-A PREROUTING -m comment --comment behind
:INPUT ACCEPT
-A INPUT -m socket --transparent --nowildcard -m comment --comment of-the-proxy
COMMIT
",
        packets: |lab| {
            vec![
                in_tcp(lab, 20_000),
                in_port(lab, "10.2.0.2", 81, 20_001),
                in_port(lab, "10.2.0.2", 82, 20_002),
                in_port(lab, "10.2.0.2", 83, 20_003),
                to_proxy(lab, "10.1.0.2", "10.2.0.2", 20_004),
                in_tcp6(lab, 20_005),
            ]
        },
    },
];
