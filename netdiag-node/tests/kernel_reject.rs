//! Refusals and full sockets are counted exactly, on the running kernel, against the namespaces' own counters; and a rule
//! that rejects is told from one that drops. Needs root, BTF and the built programs.
#![expect(clippy::unwrap_used, reason = "a test that cannot be set up fails")]

#[expect(dead_code, reason = "shared with the other kernel tests")]
mod support;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, TcpListener, TcpStream, UdpSocket};
use std::time::Duration;

use netdiag_common::Window;
use netdiag_common::observation::reject::{RejectGroup, RejectKind, Rejects};
use netdiag_common::observation::{Owner, Protocol};
use netdiag_node::clock::now;
use netdiag_node::kernel::{EventSize, KernelDrops, KernelRejects, KernelUdp, Sizes};
use support::{Namespace, eventually, is_reason, lacks, load_part, owner, patient, skipped};

const CLIENT4: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 78, 0, 1));
const SERVER4: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 78, 0, 2));
const SERVER6: IpAddr = IpAddr::V6(Ipv6Addr::new(0xfd78, 0, 0, 0, 0, 0, 0, 2));

fn pair() -> (Namespace, Namespace) {
    let (client, server) = (Namespace::new(), Namespace::new());
    client.connect("eth0", &server, "eth0");
    for (space, n) in [(&client, 1), (&server, 2)] {
        space.sh(&format!("ip addr add 10.78.0.{n}/24 dev eth0; ip addr add fd78::{n}/64 dev eth0 nodad"));
        space.sh("echo 0 >/proc/sys/net/ipv4/icmp_ratelimit");
    }
    (client, server)
}

fn harvested(rejects: &mut KernelRejects, resolve: &dyn Fn(u64) -> Owner) -> Rejects {
    rejects.harvest(now());
    let seen = rejects.observe(now(), Window::FiveMinutes, resolve);
    assert_eq!(seen.accounts.unaccounted(), 0, "{:?}", seen.accounts);
    let by_kind = seen.accounts.icmp_sent + seen.accounts.resets_sent + seen.accounts.resets_received;
    assert_eq!(by_kind + seen.accounts.errors, seen.accounts.total, "{:?}", seen.accounts);
    seen
}

fn refusals(seen: &Rejects, pod: &str, wanted: impl Fn(&RejectGroup) -> bool) -> u64 {
    let ours = seen.groups.iter().filter(|group| group.netns == Owner::Pod { uid: pod.to_owned() });
    ours.filter(|group| wanted(group)).map(|group| group.packets).sum()
}

/// A namespace's own counter, by its column in /proc/net/snmp.
fn counter(space: &Namespace, protocol: &str, name: &str) -> u64 {
    let text = space.sh("cat /proc/net/snmp");
    let mut lines = text.lines().filter(|line| line.split(':').next() == Some(protocol));
    let column = lines.next().unwrap().split(' ').position(|column| column == name).unwrap();
    lines.next().unwrap().split(' ').nth(column).unwrap().parse().unwrap()
}

/// Before Linux 6.10 a RST has no reason, and one for a packet without a socket is not traced.
fn resets_have_reasons() -> bool {
    const REASON: &[u8] = b"SK_RST_REASON_NO_SOCKET";
    #[expect(clippy::disallowed_methods, reason = "the kernel's own types, to know what to expect")]
    let types = std::fs::read("/sys/kernel/btf/vmlinux").unwrap();
    types.windows(REASON.len()).any(|bytes| bytes == REASON)
}

#[test]
fn a_closed_port_is_a_reset_here_and_there() {
    const TEST: &str = "a_closed_port_is_a_reset_here_and_there";
    let Some(mut rejects) = load_part(TEST, Sizes::for_this_machine(), KernelRejects::load) else {
        return;
    };
    let (client, server) = pair();
    let owner = owner(&[(&client, "client"), (&server, "server")]);
    for to in [SERVER4, SERVER6] {
        client.run(|| (0..7).for_each(|_| assert!(TcpStream::connect((to, 81)).is_err())));
    }
    // An application that closes without reading sends a RST by its own decision.
    let listener = server.run(|| TcpListener::bind((SERVER4, 8080)).unwrap());
    client.run(|| {
        let mut stream = TcpStream::connect((SERVER4, 8080)).unwrap();
        std::io::Write::write_all(&mut stream, b"never read").unwrap();
        let (accepted, _) = listener.accept().unwrap();
        eventually("data in the server's socket", || accepted.peek(&mut [0; 4]).ok());
        drop(accepted);
        let error = std::io::Read::read(&mut stream, &mut [0]).unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
    });
    let seen = harvested(&mut rejects, &owner);
    let aborted = |group: &RejectGroup| matches!(group.kind, RejectKind::Aborted { .. });
    let has_reasons = resets_have_reasons();
    for to in [SERVER4, SERVER6] {
        let to_port = |group: &RejectGroup| {
            let tuple = group.tuple.as_ref().unwrap();
            tuple.destination == to
                && (tuple.service_port, tuple.port_is_destination) == (81, true)
                && tuple.protocol == Some(Protocol::Tcp)
        };
        let sent = refusals(&seen, "server", |group| {
            matches!(&group.kind, RejectKind::ResetSent { reason } if reason == "NO_SOCKET") && to_port(group)
        });
        let received = refusals(&seen, "client", |group| {
            group.kind == RejectKind::ResetReceived { state: "SYN_SENT".to_owned() } && to_port(group)
        });
        assert_eq!((sent, received), (if has_reasons { 7 } else { 0 }, 7), "{to}: {:#?}", seen.groups);
    }
    assert_eq!(refusals(&seen, "server", aborted), 1, "{:#?}", seen.groups);
    let sent = refusals(&seen, "server", |group| aborted(group) || matches!(group.kind, RejectKind::ResetSent { .. }));
    if has_reasons {
        assert_eq!(sent, counter(&server, "Tcp", "OutRsts"));
    }
    let established = RejectKind::ResetReceived { state: "ESTABLISHED".to_owned() };
    assert_eq!(refusals(&seen, "client", |group| group.kind == established), 1);
}

#[test]
fn a_closed_udp_port_is_an_icmp_error_and_a_sockets_error() {
    const TEST: &str = "a_closed_udp_port_is_an_icmp_error_and_a_sockets_error";
    let Some(mut rejects) = load_part(TEST, Sizes::for_this_machine(), KernelRejects::load) else {
        return;
    };
    if ["icmp_send", "inet_sk_error_report"].iter().any(|hook| lacks(TEST, &rejects.checks(), hook)) {
        return;
    }
    let (client, server) = pair();
    let owner = owner(&[(&client, "client"), (&server, "server")]);
    client.run(|| {
        let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
        socket.connect((SERVER4, 5353)).unwrap();
        socket.set_read_timeout(Some(patient(Duration::from_secs(5)))).unwrap();
        for _ in 0..5 {
            socket.send(b"anybody?").unwrap();
            assert_eq!(socket.recv(&mut [0]).unwrap_err().kind(), std::io::ErrorKind::ConnectionRefused);
        }
    });
    let seen = harvested(&mut rejects, &owner);
    let about = |group: &RejectGroup| {
        let tuple = group.tuple.as_ref().unwrap();
        (tuple.source, tuple.destination, tuple.service_port) == (CLIENT4, SERVER4, 5353)
            && tuple.protocol == Some(Protocol::Udp)
    };
    let sent =
        refusals(&seen, "server", |group| group.kind == RejectKind::IcmpSent { icmp_type: 3, code: 3 } && about(group));
    assert_eq!(sent, counter(&server, "Icmp", "OutDestUnreachs"), "{:#?}", seen.groups);
    assert_eq!(sent, 5);
    let told = refusals(&seen, "client", |group| {
        group.kind == RejectKind::Error { errno: libc::ECONNREFUSED } && about(group)
    });
    assert_eq!(told, 5, "{:#?}", seen.groups);
}

#[test]
fn a_rule_that_rejects_is_told_from_one_that_drops() {
    const TEST: &str = "a_rule_that_rejects_is_told_from_one_that_drops";
    /// The kernel lets 50 answers pass at once, and takes up to two of them for one (`icmp_global_consume()`).
    const PACKETS: usize = 20;
    let both = |sizes| Ok((KernelDrops::load(sizes)?, KernelRejects::load(sizes)?));
    let Some((mut drops, mut rejects)) = load_part(TEST, Sizes::for_this_machine(), both) else { return };
    if lacks(TEST, &rejects.checks(), "icmp_send") {
        return;
    }
    let (client, server) = pair();
    let owner = owner(&[(&client, "client"), (&server, "server")]);
    server.sh("nft 'table inet guard {
           chain i { type filter hook input priority 0; udp dport 7001 reject; udp dport 7002 drop; }
         }'");
    for port in [7001, 7002] {
        client.send(SERVER4, port, 1, PACKETS);
    }
    eventually("all packets at the rules", || {
        drops.harvest(now());
        let seen = drops.observe(now(), Window::FiveMinutes, &owner);
        let refused = harvested(&mut rejects, &owner);
        let dropped = |port: u16| {
            let to_port = |group: &&netdiag_common::observation::kfree_skb::DropGroup| {
                let tuple = group.tuple.as_ref();
                is_reason(&group.reason, "NETFILTER_DROP") && tuple.is_some_and(|tuple| tuple.service_port == port)
            };
            let groups: Vec<_> = seen.groups.iter().filter(to_port).collect();
            let packets: u64 = groups.iter().map(|group| group.packets).sum();
            let explained = refused.groups.iter().filter(|reject| groups.iter().any(|group| reject.explains(group)));
            (packets, explained.map(|reject| reject.packets).sum::<u64>())
        };
        let all = PACKETS as u64;
        (dropped(7001).0 == all && dropped(7002).0 == all).then(|| {
            assert_eq!(dropped(7001), (all, all), "each was answered: {:#?}", refused.groups);
            assert_eq!(dropped(7002), (all, 0), "none was answered: {:#?}", refused.groups);
        })
    });
}

#[test]
fn a_scan_of_ports_loses_detail_and_no_refusal() {
    const TEST: &str = "a_scan_of_ports_loses_detail_and_no_refusal";
    const PORTS: u16 = 400;
    let mut sizes = Sizes::for_this_machine();
    sizes.rejects = EventSize { ipv4: 4, ipv6: 4 };
    let Some(mut rejects) = load_part(TEST, sizes, KernelRejects::load) else { return };
    let (client, server) = pair();
    let owner = owner(&[(&client, "client"), (&server, "server")]);
    client.run(|| (100..100 + PORTS).for_each(|port| assert!(TcpStream::connect((SERVER4, port)).is_err())));
    let seen = harvested(&mut rejects, &owner);
    let told = refusals(&seen, "client", |group| matches!(group.kind, RejectKind::ResetReceived { .. }));
    assert_eq!(told, u64::from(PORTS), "{:#?}", seen.groups);
    if !resets_have_reasons() {
        return skipped(TEST, "before Linux 6.10 a RST for a packet without a socket is not traced");
    }
    assert!(seen.accounts.coarse > 0 && seen.accounts.total_only == 0, "{:?}", seen.accounts);
    let sent = refusals(&seen, "server", |group| matches!(group.kind, RejectKind::ResetSent { .. }));
    assert_eq!(sent, counter(&server, "Tcp", "OutRsts"), "{:#?}", seen.groups);
    assert_eq!(sent, u64::from(PORTS));
}

#[test]
fn a_full_socket_is_named_by_its_port() {
    const TEST: &str = "a_full_socket_is_named_by_its_port";
    let Some(mut udp) = load_part(TEST, Sizes::for_this_machine(), KernelUdp::load) else { return };
    let (client, server) = pair();
    let owner = owner(&[(&client, "client"), (&server, "server")]);
    let full = server.run(|| {
        let socket = UdpSocket::bind((SERVER4, 6000)).unwrap();
        socket2::SockRef::from(&socket).set_recv_buffer_size(1).unwrap();
        socket
    });
    client.send(SERVER4, 6000, 1, 1000);
    let lost = eventually("packets without room", || {
        let before = counter(&server, "Udp", "RcvbufErrors");
        std::thread::sleep(Duration::from_millis(100));
        (before > 500 && counter(&server, "Udp", "RcvbufErrors") == before).then_some(before)
    });
    drop(full);
    udp.harvest(now());
    let seen = udp.observe(now(), Window::FiveMinutes, &owner);
    assert_eq!(seen.accounts.unaccounted(), 0, "{:?}", seen.accounts);
    let group = seen.groups.iter().find(|group| group.netns == Owner::Pod { uid: "server".to_owned() }).unwrap();
    assert_eq!((group.port, group.errno, group.packets), (Some(6000), libc::ENOMEM, lost), "{:#?}", seen.groups);
    assert!(group.first_at <= group.last_at && group.last_at <= now());
}
