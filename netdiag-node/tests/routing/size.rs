//! Long packets on a cable: which pass, which are fragmented, and which come back as an ICMP error, against what the
//! evaluator says.
//!
//! Frames sent out of p0 come in on v0; what leaves by v1 is seen on p1. All is worked off before sending returns.

use std::os::fd::{AsRawFd as _, OwnedFd};

use netdiag_common::forwarding::packet::{Origin, Packet, Protocol, UDP, udp};
use netdiag_common::forwarding::path::{Decision, End, Path, Reject, Size};
use netdiag_node::host::forwarding::evaluate;
use nix::sched::{CpuSet, sched_setaffinity};
use nix::sys::socket::{MsgFlags, recv, send};
use nix::unistd::Pid;

use crate::cable::packet_socket;
use crate::lab::{self, Setup, in_namespace, index};
use crate::query::address;
use crate::random::Random;

const NAME: &str = "long_packets_fare_as_the_evaluator_says";
const SETUPS: u64 = 40;
const PACKETS: usize = 12;

const LINES: &str = "
    link set v0 address 02:00:00:00:00:10
    link set v1 address 02:00:00:00:00:11
    neigh replace 10.0.0.9 lladdr 02:00:00:00:00:09 dev v0 nud permanent
    neigh replace fd00::9 lladdr 02:00:00:00:00:09 dev v0 nud permanent
    neigh replace 10.1.0.9 lladdr 02:00:00:00:00:99 dev v1 nud permanent
    neigh replace fd01::9 lladdr 02:00:00:00:00:99 dev v1 nud permanent";

/// What became of a packet.
#[derive(Debug, PartialEq, Eq)]
enum Fate {
    Whole,
    Pieces,
    /// The sender was told this MTU.
    Told(u32),
    Gone,
}

#[test]
fn long_packets_fare_as_the_evaluator_says() {
    let (mut cases, mut seen, mut complaints) = (0, [0; 4], Vec::new());
    for seed in 0..SETUPS {
        let Some(of_setup) = in_namespace(NAME, || one_setup(seed)) else { return };
        for (case, predicted, fate) in of_setup {
            cases += 1;
            seen[match fate {
                Fate::Whole => 0,
                Fate::Pieces => 1,
                Fate::Told(_) => 2,
                Fate::Gone => 3,
            }] += 1;
            if predicted != fate {
                complaints.push(format!("setup {seed}: {case}: {fate:?}, not {predicted:?}"));
            }
        }
    }
    let [whole, pieces, told, gone] = seen;
    println!(
        "{NAME}: {cases} cases, {} disagreements ({SETUPS} setups; {whole} whole, {pieces} in pieces, {told} refused, {gone} \
         gone)",
        complaints.len()
    );
    complaints.iter().take(20).for_each(|complaint| println!("{complaint}"));
    assert!(complaints.is_empty(), "{} disagreements", complaints.len());
    assert!(seen.iter().all(|count| *count > 0), "not every end was seen");
}

fn one_setup(seed: u64) -> Vec<(String, Fate, Fate)> {
    let mut random = Random(seed);
    let mut first = CpuSet::new();
    first.set(0).unwrap();
    sched_setaffinity(Pid::from_raw(0), &first).unwrap();
    let setup = setup(&mut random);
    lab::apply(&setup);
    lab::set("ipv4/icmp_ratelimit", "0");
    lab::set("ipv6/icmp/ratelimit", "0");
    let (cable, far) = (packet_socket("p0"), packet_socket("p1"));
    let mut found = Vec::new();
    for _ in 0..PACKETS {
        let packet = packet(&mut random);
        let evaluation = evaluate(&packet).unwrap();
        let [path] = &evaluation.outcome.paths[..] else { panic!("{:?}", evaluation.outcome) };
        let may = packet.protocol == Protocol::Ipv4 && packet.bytes[6] & 0x40 == 0;
        let fragments = if may { "fragments allowed" } else { "not to be fragmented" };
        let case = format!("{} bytes to {}, {fragments}, with {:?}", packet.length, packet.destination(), setup.lines);
        // What becomes of pieces is left open where there are any, and nothing else.
        let in_pieces = path.decisions.iter().any(|it| matches!(it, Decision::Measured { size: Size::Fragmented, .. }));
        assert!(
            path.gaps.iter().all(|gap| in_pieces && gap.starts_with("the packet leaves in pieces")),
            "{case}: {:?}",
            path.gaps
        );
        found.push((case, predicted(path), fate(&packet, &cable, &far)));
    }
    found
}

fn setup(random: &mut Random) -> Setup {
    let mut setup = Setup::of(LINES);
    let devices = ["1280", "1300", "1400", "1500", "1500"];
    setup.lines.push(format!("link set v1 mtu {}", random.pick_value(&devices)));
    setup.lines.push(format!("link set p1 mtu {}", random.pick_value(&devices)));
    let route = random.pick_value(&["", "mtu 1290", "mtu lock 1290", "mtu 1450", "mtu lock 1450", "mtu 1004"]);
    setup.lines.push(format!("-4 route replace 10.1.0.9/32 dev v1 {route}"));
    let route = random.pick_value(&["", "mtu 1290", "mtu lock 1290", "mtu 1450", "mtu lock 1450"]);
    setup.lines.push(format!("-6 route replace fd01::9/128 dev v1 {route}"));
    setup.settings.push(("ipv4/conf/v0/forwarding".into(), "1".into()));
    setup.settings.push(("ipv6/conf/all/forwarding".into(), "1".into()));
    setup
}

fn packet(random: &mut Random) -> Packet {
    let v0 = Origin::Received { interface: index("v0") };
    let length: usize =
        random.pick_value(&["1000", "1280", "1281", "1291", "1304", "1305", "1404", "1405", "1500"]).parse().unwrap();
    let v4 = random.percent(60);
    let (source, destination, header) = if v4 { ("10.0.0.9", "10.1.0.9", 28) } else { ("fd00::9", "fd01::9", 48) };
    let payload = udp(1000, 9, &vec![0; length - header]);
    let mut packet = Packet::between(v0, address(source), address(destination), UDP, &payload).unwrap();
    if random.percent(50) {
        packet.allow_fragments();
    }
    packet
}

fn predicted(path: &Path) -> Fate {
    match &path.end {
        End::Sent { .. } => match path.decisions.last() {
            Some(Decision::Measured { size: Size::Fragmented, .. }) => Fate::Pieces,
            _ => Fate::Whole,
        },
        End::TooBig { mtu, with: Some(Reject::Unreachable { .. }), .. } => Fate::Told(*mtu),
        _ => Fate::Gone,
    }
}

fn fate(packet: &Packet, cable: &OwnedFd, far: &OwnedFd) -> Fate {
    let mut buffer = [0; 2048];
    for socket in [cable, far] {
        while recv(socket.as_raw_fd(), &mut buffer, MsgFlags::MSG_DONTWAIT).is_ok() {}
    }
    let mut packet = packet.clone();
    packet.fill_checksums();
    let v4 = packet.protocol == Protocol::Ipv4;
    let kind: u16 = if v4 { 0x0800 } else { 0x86dd };
    let frame = [&[2, 0, 0, 0, 0, 0x10], &[2, 0, 0, 0, 0, 9], &kind.to_be_bytes()[..], &packet.bytes].concat();
    assert_eq!(send(cable.as_raw_fd(), &frame, MsgFlags::empty()), Ok(frame.len()));
    let mut lengths = Vec::new();
    while let Ok(length @ 34..) = recv(far.as_raw_fd(), &mut buffer, MsgFlags::MSG_DONTWAIT) {
        if buffer[6..12] == [2, 0, 0, 0, 0, 0x11]
            && buffer[12..14] == kind.to_be_bytes()
            && is_udp(&buffer[14..length], v4)
        {
            lengths.push(length - 14);
        }
    }
    // Of a fragmented packet that the device behind refuses, the shorter last piece arrives.
    let all: usize = lengths.iter().map(|length| length - 20).sum();
    if lengths == [packet.bytes.len()] {
        return Fate::Whole;
    }
    if lengths.len() > 1 && all == packet.bytes.len() - 20 {
        return Fate::Pieces;
    }
    while let Ok(length @ 34..) = recv(cable.as_raw_fd(), &mut buffer, MsgFlags::MSG_DONTWAIT) {
        // Destination unreachable with the MTU in its second word; packet too big.
        let told = match &buffer[14..length] {
            [0x45, rest @ ..] if v4 && rest.get(8) == Some(&1) && rest.get(19..21) == Some(&[3, 4]) => {
                rest.get(25..27).map(|mtu| u32::from(u16::from_be_bytes(mtu.try_into().unwrap())))
            }
            bytes if !v4 && bytes.get(6) == Some(&58) && bytes.get(40) == Some(&2) => {
                bytes.get(44..48).map(|mtu| u32::from_be_bytes(mtu.try_into().unwrap()))
            }
            _ => None,
        };
        if let Some(mtu) = told {
            return Fate::Told(mtu);
        }
    }
    Fate::Gone
}

fn is_udp(packet: &[u8], v4: bool) -> bool {
    packet.get(if v4 { 9 } else { 6 }) == Some(&UDP)
}
