//! Real packets on a cable: which are let in and on, against what the evaluator says of source validation and forwarding.
//!
//! Frames sent out of p0 come in on v0; what leaves by v1 is seen on p1. All is worked off before sending returns.

use std::net::UdpSocket;
use std::os::fd::{AsRawFd as _, OwnedFd};

use netdiag_common::forwarding::packet::{Origin, Packet, Protocol, UDP, udp};
use netdiag_common::forwarding::path::End;
use netdiag_node::host::forwarding::evaluate;
use nix::sched::{CpuSet, sched_setaffinity};
use nix::sys::socket::{MsgFlags, recv, send};
use nix::unistd::Pid;

use crate::cable::packet_socket;
use crate::lab::{self, Setup, in_namespace, index};
use crate::query::address;
use crate::random::Random;

const NAME: &str = "received_packets_are_let_in_as_the_evaluator_says";
const SETUPS: u64 = 30;

/// Discard: a port that somebody listens on.
const PORT: u16 = 9;

const ROUTES: &str = "
    -4 route add default via 10.1.0.254
    -4 route add blackhole 203.0.113.0/24
    -4 route add unreachable 10.9.0.0/16
    -4 route add 192.0.2.0/24 via 10.0.0.254
    -6 route add default via fd01::fe
    link set v0 address 02:00:00:00:00:10
    link set v1 address 02:00:00:00:00:11
    neigh replace 10.0.0.7 lladdr 02:00:00:00:00:99 dev v0 nud permanent
    neigh replace 10.0.0.254 lladdr 02:00:00:00:00:99 dev v0 nud permanent
    neigh replace 10.1.0.9 lladdr 02:00:00:00:00:99 dev v1 nud permanent
    neigh replace 10.1.0.254 lladdr 02:00:00:00:00:99 dev v1 nud permanent
    neigh replace fd01::fe lladdr 02:00:00:00:00:99 dev v1 nud permanent
    neigh replace fd01::9 lladdr 02:00:00:00:00:99 dev v1 nud permanent";

const SOURCES: [&str; 10] = [
    "10.0.0.9",
    "10.1.0.9",
    "10.2.0.9",
    "192.0.2.9",
    "8.8.8.8",
    "10.1.0.1",
    "127.0.0.2",
    "10.0.0.255",
    "203.0.113.9",
    "10.9.0.9",
];
const DESTINATIONS: [&str; 8] =
    ["10.0.0.1", "10.1.0.1", "10.1.0.9", "10.0.0.7", "198.51.100.1", "10.0.0.255", "127.0.0.1", "203.0.113.1"];

/// What became of a packet.
#[derive(Debug, PartialEq)]
enum Fate {
    Delivered,
    /// Out of this link.
    Sent(&'static str),
    /// Counted as `IPReversePathFilter`.
    Filtered,
    Gone,
}

#[test]
fn received_packets_are_let_in_as_the_evaluator_says() {
    let (mut cases, mut filtered, mut complaints) = (0, 0, Vec::new());
    for seed in 0..SETUPS {
        let Some(of_setup) = in_namespace(NAME, || one_setup(seed)) else { return };
        for (case, predicted, end, fate) in of_setup {
            cases += 1;
            filtered += usize::from(fate == Fate::Filtered);
            if predicted != fate {
                complaints.push(format!("setup {seed}: {case}: {fate:?}, not {end}"));
            }
        }
    }
    println!(
        "{NAME}: {cases} cases, {} disagreements ({SETUPS} setups, {filtered} stopped by the filter)",
        complaints.len()
    );
    complaints.iter().take(20).for_each(|complaint| println!("{complaint}"));
    assert!(complaints.is_empty(), "{} disagreements", complaints.len());
    assert!(filtered > 0, "the filter stopped nothing");
}

fn one_setup(seed: u64) -> Vec<(String, Fate, String, Fate)> {
    let mut random = Random(seed);
    let mut first = CpuSet::new();
    first.set(0).unwrap();
    sched_setaffinity(Pid::from_raw(0), &first).unwrap();
    let setup = setup(&mut random);
    lab::apply(&setup);
    let cable = packet_socket("p0");
    let others = [("v0", packet_socket("p0")), ("v1", packet_socket("p1"))];
    let listener = UdpSocket::bind(("0.0.0.0", PORT)).unwrap();
    listener.set_nonblocking(true).unwrap();
    let mut found = Vec::new();
    let v0 = Origin::Received { interface: index("v0") };
    for number in 0..20 {
        let packet = if number < 17 {
            let (source, destination) = (random.pick(&SOURCES), random.pick(&DESTINATIONS));
            Packet::between(v0, address(source), address(destination), UDP, &udp(1000, PORT, b"hello")).unwrap()
        } else {
            // No next header: nothing that had to be right.
            let destination = random.pick(&["fd01::9", "2001:db8::1"]);
            Packet::between(v0, address("fd00::9"), address(destination), 59, &[]).unwrap()
        };
        let evaluation = evaluate(&packet).unwrap();
        let [path] = &evaluation.outcome.paths[..] else { panic!("{:?}", evaluation.outcome) };
        let case = format!("{} > {} with {:?}", packet.source(), packet.destination(), setup);
        let words = format!("{:?} (gaps {:?})", path.end, path.gaps);
        let predicted = match &path.end {
            _ if !path.gaps.is_empty() => Fate::Gone,
            End::Delivered => Fate::Delivered,
            End::Sent { interface, .. } if *interface == index("v0") => Fate::Sent("v0"),
            End::Sent { .. } => Fate::Sent("v1"),
            End::Discarded(discard) if discard.reason == "IP_RPFILTER" => Fate::Filtered,
            _ => Fate::Gone,
        };
        assert!(path.gaps.is_empty(), "{case}: {words}");
        let fate = fate(&packet, &cable, &others, &listener);
        found.push((case, predicted, words, fate));
    }
    found
}

fn setup(random: &mut Random) -> Setup {
    let mut setup = Setup::of(ROUTES);
    for of in ["all", "v0"] {
        for (setting, values) in [
            ("rp_filter", ["0", "1", "2", "1"]),
            ("accept_local", ["0", "0", "0", "1"]),
            ("route_localnet", ["0", "0", "0", "1"]),
            ("send_redirects", ["0", "1", "0", "1"]),
        ] {
            setup.settings.push((format!("ipv4/conf/{of}/{setting}"), random.pick_value(&values).into()));
        }
    }
    let on = |random: &mut Random| if random.percent(80) { "1" } else { "0" };
    setup.settings.push(("ipv4/conf/v0/forwarding".into(), on(random).into()));
    setup.settings.push(("ipv6/conf/all/forwarding".into(), on(random).into()));
    if random.percent(40) {
        setup.lines.push("-4 rule add from 10.0.0.0/8 iif lo table 100".into());
        setup.lines.push("-4 rule add iif v1 table 100".into());
        setup.lines.push("-4 route add 8.8.8.0/24 dev v0 table 100".into());
        setup.lines.push("-4 route add 10.2.0.0/16 dev v0 table 100".into());
    }
    setup
}

fn fate(packet: &Packet, cable: &OwnedFd, others: &[(&'static str, OwnedFd); 2], listener: &UdpSocket) -> Fate {
    let mut buffer = [0; 2048];
    for (_, other) in others {
        while recv(other.as_raw_fd(), &mut buffer, MsgFlags::MSG_DONTWAIT).is_ok() {}
    }
    let before = filtered();
    let mut packet = packet.clone();
    packet.fill_checksums();
    let kind: u16 = if packet.protocol == Protocol::Ipv4 { 0x0800 } else { 0x86dd };
    let frame = [&[2, 0, 0, 0, 0, 0x10], &[2, 0, 0, 0, 0, 9], &kind.to_be_bytes()[..], &packet.bytes].concat();
    assert_eq!(send(cable.as_raw_fd(), &frame, MsgFlags::empty()), Ok(frame.len()));
    if listener.recv(&mut buffer).is_ok() {
        return Fate::Delivered;
    }
    for (link, other) in others {
        while let Ok(length @ 34..) = recv(other.as_raw_fd(), &mut buffer, MsgFlags::MSG_DONTWAIT) {
            let same = buffer[6..12] == [2, 0, 0, 0, 0, if *link == "v0" { 0x10 } else { 0x11 }];
            let packet_bytes = &buffer[14..length];
            let addresses = if kind == 0x0800 { 12..20 } else { 8..40 };
            if same && packet_bytes.get(addresses.clone()) == packet.bytes.get(addresses) {
                return Fate::Sent(link);
            }
        }
    }
    if filtered() > before { Fate::Filtered } else { Fate::Gone }
}

/// `IPReversePathFilter` of this namespace.
#[expect(clippy::disallowed_methods, reason = "a test compares with what the kernel counts")]
fn filtered() -> u64 {
    let text = std::fs::read_to_string("/proc/thread-self/net/netstat").unwrap();
    let mut lines = text.lines().filter(|line| line.starts_with("TcpExt:"));
    let (names, values) = (lines.next().unwrap(), lines.next().unwrap());
    let at = names.split(' ').position(|name| name == "IPReversePathFilter").unwrap();
    values.split(' ').nth(at).unwrap().parse().unwrap()
}
