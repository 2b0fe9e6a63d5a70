//! What a namespace is asked about a packet that comes from another one, or that is answered there.

use std::net::IpAddr;

use netdiag_common::forwarding::conntrack::{Direction as Seen, Entry};
use netdiag_common::forwarding::{Packet, Without};
use netdiag_common::observation::Protocol;
use netdiag_common::observation::fate::{FateOrigin, FateRequest, FateTransport};

use super::{Direction, Leg, Place};

const SYN: u8 = 0x02;
const SYN_ACK: u8 = 0x12;

/// The packet as it comes into the next namespace. Marks stay behind (`skb_scrub_packet`, and no wire carries them).
pub(super) fn request(
    legs: &[Leg],
    place: &Place,
    origin: FateOrigin,
    direction: Direction,
    (packet, next_hop): (&Packet, IpAddr),
    protocol: Protocol,
) -> FateRequest {
    let (from, to) = packet.known_ports();
    FateRequest {
        origin,
        source: Some(packet.source()),
        destination: packet.destination(),
        transport: transport(protocol, from, to, direction),
        mark: 0,
        connection: (direction == Direction::Reply).then(|| entry(legs, place)).flatten(),
        length: None,
        may_be_fragmented: false,
        next_hop: Some(next_hop),
        without: without(legs),
    }
}

/// What a server answers to a packet that was delivered.
pub(super) fn answer(legs: &[Leg], place: &Place, packet: &Packet, protocol: Protocol) -> FateRequest {
    let (from, to) = packet.known_ports();
    FateRequest {
        origin: FateOrigin::Sent,
        source: Some(packet.destination()),
        destination: packet.source(),
        transport: transport(protocol, to, from, Direction::Reply),
        mark: 0,
        connection: entry(legs, place),
        length: None,
        may_be_fragmented: false,
        next_hop: None,
        without: without(legs),
    }
}

pub(super) fn transport(
    protocol: Protocol,
    source_port: Option<u16>,
    destination_port: Option<u16>,
    direction: Direction,
) -> FateTransport {
    match protocol {
        Protocol::Udp => FateTransport::Udp { source_port, destination_port },
        _ => {
            let flags = if direction == Direction::Forward { SYN } else { SYN_ACK };
            FateTransport::Tcp { source_port, destination_port, flags }
        }
    }
}

/// What is left out of one namespace is left out of the next.
fn without(legs: &[Leg]) -> Without {
    legs.last().map(|leg| leg.request.without.clone()).unwrap_or_default()
}

/// What a namespace's connection tracking kept of the packet when it came by, as its answer meets it.
fn entry(legs: &[Leg], place: &Place) -> Option<Entry> {
    let there = legs.iter().find(|leg| leg.direction == Direction::Forward && leg.place == *place)?;
    there.connection().map(|entry| Entry { direction: Seen::Reply, ..entry.clone() })
}
