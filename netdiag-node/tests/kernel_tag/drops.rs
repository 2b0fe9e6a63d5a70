//! Ten drops, each in its place: which namespace, for what reason, in which function of the kernel.

use std::net::{IpAddr, SocketAddr, TcpStream};

use netdiag_common::forwarding::conntrack::Direction;
use netdiag_common::observation::Protocol;
use netdiag_common::observation::rules::Hook;
use netdiag_common::observation::tag::{TagPoint, Tagged};

use crate::attach::drop_all;
use crate::lab::{CLIENT, Lab, SERVER, SERVER6, request, way, whose};
use crate::support::{is_reason, skipped};

const DISCARD: u16 = 9;

/// Where the packet was dropped: whose namespace, why, where, and in which hook of netfilter.
fn dropped(tagged: &Tagged) -> (&str, &str, &str, Option<Hook>) {
    let drops = tagged.events.iter().filter(|event| event.direction == Direction::Original);
    let found: Vec<_> = drops
        .filter_map(|event| match &event.point {
            TagPoint::Dropped { reason, function, hook } => Some((whose(event), &**reason, &**function, *hook)),
            _ => None,
        })
        .collect();
    let [only] = found[..] else { panic!("{:#?}", tagged.events) };
    only
}

/// The names that kernels have for one drop differ: the first is that of Linux 6.18.
fn check(tagged: &Tagged, whose: &str, reasons: &[&str], functions: &[&str]) -> Option<Hook> {
    let (owner, reason, function, hook) = dropped(tagged);
    println!("{owner} {reason} {function} {hook:?}");
    assert_eq!(owner, whose, "{:#?}", tagged.events);
    assert!(reasons.iter().any(|wanted| is_reason(reason, wanted)), "{reason} at {function}");
    assert!(functions.iter().any(|wanted| function.starts_with(wanted)), "{reason} at {function}");
    hook
}

#[test]
fn a_host_firewalls_drop() {
    let Some(mut lab) = Lab::start("a_host_firewalls_drop") else { return };
    lab.router.sh("nft 'table inet t { chain c { type filter hook forward priority 0; udp dport 9 drop; }; }'");
    for to in [SERVER, SERVER6] {
        let tagged = lab.datagram(to, DISCARD, 3, |_| ());
        let hook = check(&tagged, "router", &["NETFILTER_DROP"], &["nft_do_chain", "nf_hook_slow"]);
        assert_eq!(hook, Some(Hook::Forward));
        assert_eq!(way(&tagged, Direction::Original), ["client sent", "router received", "router dropped"]);
    }
}

/// As plugins do it: what no rule accepts is dropped at the pod.
#[test]
fn a_policys_drop() {
    let Some(mut lab) = Lab::start("a_policys_drop") else { return };
    lab.server
        .sh("nft 'table inet t { chain c { type filter hook input priority 0; policy drop; tcp dport 80 accept; }; }'");
    let tagged = lab.datagram(SERVER, DISCARD, 5, |_| ());
    let hook = check(&tagged, "server", &["NETFILTER_DROP"], &["nft_do_chain", "nf_hook_slow"]);
    assert_eq!(hook, Some(Hook::Input));
    let wanted = ["client sent", "router received", "router sent", "server received", "server dropped"];
    assert_eq!(way(&tagged, Direction::Original), wanted);
}

#[test]
fn nobody_listens() {
    let Some(mut lab) = Lab::start("nobody_listens") else { return };
    let (from, to) = (ends(CLIENT, 41_001), ends(SERVER, 81));
    let tagged = lab.follow(&request(Protocol::Tcp, from, to), 9, |lab| {
        lab.client.run(|| assert!(connect(from, to).is_err()));
    });
    check(&tagged, "server", &["NO_SOCKET"], &["tcp_v4_rcv"]);
    let back = way(&tagged, Direction::Reply);
    assert_eq!(back[..4], ["server sent", "router received", "router sent", "client received"], "{back:?}");
    let reset = tagged.events.iter().find(|event| event.direction == Direction::Reply).unwrap();
    assert_eq!(reset.tcp_flags & 4, 4, "a RST: {reset:?}");
}

#[test]
fn a_packet_too_large_for_the_next_link() {
    let Some(mut lab) = Lab::start("a_packet_too_large_for_the_next_link") else { return };
    lab.router.sh("ip link set toServer mtu 1000");
    let tagged = lab.datagram(SERVER, DISCARD, 3, |socket| {
        option(socket, libc::IP_MTU_DISCOVER, libc::IP_PMTUDISC_DO);
    });
    check(&tagged, "router", &["PKT_TOO_BIG", "NOT_SPECIFIED"], &["ip_forward"]);
}

#[test]
fn a_source_that_would_be_answered_elsewhere() {
    let Some(mut lab) = Lab::start("a_source_that_would_be_answered_elsewhere") else { return };
    lab.client.sh("ip addr add 10.79.9.1/32 dev lo");
    lab.router.sh("ip route add 10.79.9.0/24 via 10.79.2.2; echo 1 >/proc/sys/net/ipv4/conf/toClient/rp_filter");
    let (from, to) = ("10.79.9.1".parse().unwrap(), ends(SERVER, DISCARD));
    let tagged = lab.datagram_from(from, to, 3, |_| ());
    check(&tagged, "router", &["IP_RPFILTER", "NOT_SPECIFIED"], &["ip_rcv", "ip_sublist_rcv"]);
}

#[test]
fn a_ttl_that_is_used_up() {
    let Some(mut lab) = Lab::start("a_ttl_that_is_used_up") else { return };
    let tagged = lab.datagram(SERVER, DISCARD, 3, |socket| socket.set_ttl(1).unwrap());
    check(&tagged, "router", &["IP_INHDR", "NOT_SPECIFIED"], &["ip_forward"]);
    assert!(tagged.events.iter().all(|event| event.ttl == 1), "{:#?}", tagged.events);
}

#[test]
fn a_packet_that_no_connection_has() {
    let Some(mut lab) = Lab::start("a_packet_that_no_connection_has") else { return };
    lab.router.sh("nft 'table ip t { chain c { type filter hook forward priority 0; ct state invalid drop; }; }'");
    let (from, to) = (ends(CLIENT, 41_002), ends(SERVER, 80));
    let tagged = lab.follow(&request(Protocol::Tcp, from, to), 3, |lab| lab.client.run(|| wrong_checksum(from, to)));
    let hook = check(&tagged, "router", &["NETFILTER_DROP"], &["nft_do_chain", "nf_hook_slow"]);
    assert_eq!(hook, Some(Hook::Forward));
}

#[test]
fn nobody_knows_the_way() {
    let Some(mut lab) = Lab::start("nobody_knows_the_way") else { return };
    let tagged = lab.datagram("10.80.0.1", DISCARD, 3, |_| ());
    check(&tagged, "router", &["IP_INNOROUTES", "IP_INADDRERRORS", "NOT_SPECIFIED"], &["ip_error", "ip_rcv"]);
}

#[test]
fn a_neighbour_that_does_not_answer() {
    let Some(mut lab) = Lab::start("a_neighbour_that_does_not_answer") else { return };
    let settings = "/proc/sys/net/ipv4/neigh/toServer";
    lab.router.sh(&format!("echo 1 >{settings}/mcast_solicit; echo 50 >{settings}/retrans_time_ms"));
    let tagged = lab.datagram("10.79.2.77", DISCARD, 3, |_| ());
    check(&tagged, "router", &["NEIGH_FAILED", "NOT_SPECIFIED"], &["arp_error_report", "neigh_invalidate"]);
}

#[test]
fn a_program_of_a_device() {
    const TEST: &str = "a_program_of_a_device";
    let Some(mut lab) = Lab::start(TEST) else { return };
    let attached = lab.router.run(|| drop_all("tcx-ingress", nix::net::if_::if_nametoindex("toClient").unwrap()));
    let _program = match attached {
        Ok(program) => program,
        Err(error) => return skipped(TEST, format!("this kernel attaches no programs to tcx: {error}")),
    };
    let tagged = lab.datagram(SERVER, DISCARD, 3, |_| ());
    check(&tagged, "router", &["TC_INGRESS"], &["sch_handle_ingress", "__netif_receive_skb_core", "tcf"]);
}

pub fn ends(address: &str, port: u16) -> SocketAddr {
    (address.parse::<IpAddr>().unwrap(), port).into()
}

pub fn connect(from: SocketAddr, to: SocketAddr) -> std::io::Result<TcpStream> {
    let socket = socket2::Socket::new(socket2::Domain::for_address(from), socket2::Type::STREAM, None)?;
    socket.set_reuse_address(true)?;
    socket.bind(&from.into())?;
    socket.connect(&to.into())?;
    Ok(socket.into())
}

fn option(socket: &impl std::os::fd::AsRawFd, name: libc::c_int, value: libc::c_int) {
    let length = libc::socklen_t::try_from(size_of_val(&value)).unwrap();
    // SAFETY: the kernel reads `length` bytes of a value that lives for the call.
    let set =
        unsafe { libc::setsockopt(socket.as_raw_fd(), libc::IPPROTO_IP, name, (&raw const value).cast(), length) };
    assert_eq!(set, 0, "{}", std::io::Error::last_os_error());
}

/// A SYN that connection tracking calls invalid: its checksum is wrong.
fn wrong_checksum(from: SocketAddr, to: SocketAddr) {
    let (IpAddr::V4(source), IpAddr::V4(destination)) = (from.ip(), to.ip()) else { panic!("IPv4 alone") };
    let mut packet = vec![0x45, 0, 0, 40, 0, 1, 0, 0, 64, 6, 0, 0];
    packet.extend(source.octets());
    packet.extend(destination.octets());
    packet.extend(from.port().to_be_bytes());
    packet.extend(to.port().to_be_bytes());
    packet.extend([0, 0, 0, 1, 0, 0, 0, 0, 0x50, 2, 0xff, 0xff, 0xba, 0xad, 0, 0]);
    let raw = socket2::Type::from(libc::SOCK_RAW);
    let socket = socket2::Socket::new(socket2::Domain::IPV4, raw, Some(socket2::Protocol::from(libc::IPPROTO_RAW)));
    socket.unwrap().send_to(&packet, &to.into()).unwrap();
}
