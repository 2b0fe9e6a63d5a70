//! Random packets, and the ones that answer them.

use std::net::IpAddr;

use netdiag_common::forwarding::Fact;
use netdiag_common::forwarding::conntrack::{Connection, Direction, Entry};
use netdiag_common::forwarding::packet::{ICMP, ICMPV6, Origin, Packet, Protocol, Socket, TCP, UDP, icmp, tcp, udp};
use netdiag_common::forwarding::path::{End, Path};

use crate::lab::{Lab, MARKER};
use crate::random::Random;
use crate::rules::{PORTS, V4, V6};
use crate::wire;

/// A packet that no connection of this test has had: `number` makes its source port.
pub fn packet(lab: &Lab, random: &mut Random, number: u16) -> Packet {
    let v6 = random.percent(30);
    let origin = match random.below(10) {
        0..=3 => Origin::Received { interface: lab.r0 },
        4 | 5 => Origin::Received { interface: lab.r1 },
        _ => Origin::Sent,
    };
    let source = match (origin, v6) {
        (Origin::Received { interface }, false) if interface == lab.r0 => {
            random.pick(&["10.1.0.2", "10.1.0.3", "10.1.0.9", "192.0.2.1"])
        }
        (Origin::Received { .. }, false) => random.pick(&["10.2.0.2", "10.2.0.3", "10.2.0.9", "192.0.2.1"]),
        (Origin::Received { interface }, true) if interface == lab.r0 => {
            random.pick(&["fd01::2", "fd01::9", "2001:db8::1"])
        }
        (Origin::Received { .. }, true) => random.pick(&["fd02::2", "fd02::9", "2001:db8::1"]),
        (Origin::Sent, false) => random.pick(&["10.1.0.1", "10.2.0.1", "10.2.0.5"]),
        (Origin::Sent, true) => random.pick(&["fd01::1", "fd02::1"]),
    };
    let destination = if v6 { random.pick(&V6) } else { random.pick(&V4) };
    let port =
        if random.percent(85) { random.pick_value(&PORTS) } else { u16::try_from(1 + random.below(60_000)).unwrap() };
    let (protocol, transport) = match random.below(20) {
        0..=9 => {
            let flags = if random.percent(75) {
                2
            } else {
                random.pick_value(&[0x10, 0x12, 0x04, 0x01, 0x11, 0x14, 0x00, 0x29, 0x02, 0xc2])
            };
            (TCP, segment(number, port, flags, (1000, 0), random.percent(30)))
        }
        10..=15 => (UDP, udp(number, port, &vec![7; random.below(80)])),
        _ if v6 => (ICMPV6, icmp(random.pick_value(&[128, 128, 129]), 0, number)),
        _ => (ICMP, icmp(random.pick_value(&[8, 8, 0, 13]), 0, number)),
    };
    let mut packet = whole(lab, origin, (source.parse().unwrap(), destination.parse().unwrap()), protocol, &transport);
    if random.percent(10) {
        let at = if v6 { 7 } else { 8 };
        packet.bytes[at] = random.pick_value(&[1, 2, 3]);
    }
    if random.percent(15) {
        if v6 {
            packet.bytes[0] = 0x62;
        } else {
            packet.bytes[1] = random.pick_value(&[0x20, 0xb8, 0x08]);
        }
    }
    if origin == Origin::Sent && random.percent(20) {
        packet.mark = Fact::Known(random.pick_value(&[1, 7, 0x10]));
    }
    packet.fill_checksums();
    packet
}

/// A TCP header with these numbers (sequence, acknowledgement), and the option of the largest segment.
pub fn segment(source: u16, destination: u16, flags: u8, numbers: (u32, u32), option: bool) -> Vec<u8> {
    let mut header = tcp(source, destination, flags);
    header[4..8].copy_from_slice(&numbers.0.to_be_bytes());
    header[8..12].copy_from_slice(&numbers.1.to_be_bytes());
    if option {
        header[12] = 0x60;
        header.extend([2, 4, 0x05, 0xb4]);
    }
    header
}

/// A packet as this lab sends it.
pub fn whole(lab: &Lab, origin: Origin, ends: (IpAddr, IpAddr), protocol: u8, transport: &[u8]) -> Packet {
    let mut packet = Packet::between(origin, ends.0, ends.1, protocol, transport).unwrap();
    wire::mark(&mut packet, MARKER);
    match origin {
        Origin::Received { interface } => packet.link = lab.link_header(interface, packet.protocol),
        Origin::Sent => {
            let class = Fact::Unknown("nobody asked for the class of this test".into());
            packet.socket = Fact::Known(Some(Socket { uid: Fact::Known(0), gid: Fact::Known(0), class }));
        }
    }
    packet.fill_checksums();
    packet
}

/// What answers a packet that took this path; none when nothing would.
pub fn answer(lab: &Lab, path: &Path) -> Option<Packet> {
    let entry = path.connection.as_ref().filter(|_| path.packet.unknown.is_empty())?;
    let origin = match path.end {
        End::Sent { interface, .. } => Origin::Received { interface },
        // This host itself answers to a segment that nobody wanted, and closes the connection with it.
        // So it does for a datagram.
        End::Delivered if entry.original.protocol == UDP && !is_open(path.packet.ports()?.1) => return None,
        End::Delivered if entry.original.protocol != TCP => Origin::Sent,
        _ => return None,
    };
    let tuple = &entry.reply;
    // Sockets have a source when they look for a route, and do not find one from 127.0.0.1; this test's packets do.
    if origin == Origin::Sent && tuple.source.is_loopback() && !tuple.destination.is_loopback() {
        return None;
    }
    let transport = match tuple.protocol {
        TCP => segment(tuple.source_port, tuple.destination_port, 0x12, (5000, 1001), false),
        UDP => udp(tuple.source_port, tuple.destination_port, &[9; 4]),
        _ => icmp(tuple.destination_port.to_be_bytes()[0], 0, tuple.source_port),
    };
    let mut packet = whole(lab, origin, (tuple.source, tuple.destination), tuple.protocol, &transport);
    packet.connection = Fact::Known(Connection::Existing(Entry { direction: Direction::Reply, ..entry.clone() }));
    Some(packet)
}

/// Whether a socket of the test listens for datagrams there.
fn is_open(port: u16) -> bool {
    PORTS.contains(&port) || (8000..=8003).contains(&port) || port == 9090
}

/// The next packet of whoever began, from where the first one came from.
pub fn next(lab: &Lab, first: &Packet, entry: &Entry) -> Packet {
    let tuple = &entry.original;
    let transport = match tuple.protocol {
        TCP => segment(tuple.source_port, tuple.destination_port, 0x10, (1001, 5001), false),
        UDP => udp(tuple.source_port, tuple.destination_port, &[8; 9]),
        _ => icmp(tuple.destination_port.to_be_bytes()[0], 0, tuple.source_port),
    };
    let mut packet = whole(lab, first.origin, (tuple.source, tuple.destination), tuple.protocol, &transport);
    packet.mark = first.mark.clone();
    packet.connection = Fact::Known(Connection::Existing(Entry { direction: Direction::Original, ..entry.clone() }));
    packet
}

/// True for packets that begin a connection which is worth an answer.
pub fn begins(packet: &Packet) -> bool {
    match packet.transport() {
        Some(transport) if transport.protocol == TCP => packet.bytes[transport.offset + 13] == 2,
        // This host answers a request for its time.
        Some(transport) if transport.protocol == ICMP => packet.bytes[transport.offset] != 13,
        Some(_) => true,
        None => false,
    }
}

pub fn words(packet: &Packet) -> String {
    let transport = packet.transport().unwrap();
    let flags = packet.bytes.get(transport.offset + 13).copied().unwrap_or(0);
    format!(
        "{:?} {} > {} protocol {} ports {:?} flags {flags:#x} hops {} service {:#x} mark {:?} length {} connection {:?}",
        packet.origin,
        packet.source(),
        packet.destination(),
        transport.protocol,
        packet.ports(),
        packet.hops_left(),
        packet.service(),
        packet.mark,
        packet.length,
        packet.connection,
    )
}

/// The packet's mark for the socket that sends it.
pub fn mark_of(packet: &Packet) -> u32 {
    packet.mark.known().copied().unwrap_or(0)
}

/// The packet behind all others.
pub fn last(lab: &Lab) -> Packet {
    let ends = ("10.1.0.2".parse().unwrap(), "10.1.0.1".parse().unwrap());
    let mut packet = whole(lab, Origin::Received { interface: lab.r0 }, ends, UDP, &udp(1, 9, b""));
    wire::mark(&mut packet, crate::lab::LAST);
    packet.fill_checksums();
    assert_eq!(packet.protocol, Protocol::Ipv4);
    packet
}
