//! What a namespace is asked about a packet that comes from another one, or that is answered there.

use netdiag_common::forwarding::conntrack::{Direction as Seen, Entry};
use netdiag_common::forwarding::path::End;
use netdiag_common::forwarding::{Packet, Without};
use netdiag_common::observation::Protocol;
use netdiag_common::observation::fate::{FateOrigin, FateRequest, FateTransport};

use super::{Direction, Leg, Place};

const SYN: u8 = 0x02;
const SYN_ACK: u8 = 0x12;

/// The packet of the leg `from` as it comes into the next namespace. Marks stay behind (`skb_scrub_packet`, and no wire carries
/// them).
pub(super) fn request(legs: &[Leg], place: &Place, origin: FateOrigin, from: &Leg, protocol: Protocol) -> FateRequest {
    let (packet, direction) = (&from.path().packet, from.direction);
    let (source_port, destination_port) = packet.known_ports();
    let next_hop = match from.path().end {
        End::Sent { gateway, .. } => Some(gateway.unwrap_or(packet.destination())),
        _ => None,
    };
    let transport = transport(protocol, source_port, destination_port, direction);
    let base = FateRequest {
        next_hop,
        without: without(legs),
        ..FateRequest::new(origin, Some(packet.source()), packet.destination(), transport)
    };
    if from.carrier.is_none() {
        let connection = (direction == Direction::Reply).then(|| entry(legs, place)).flatten();
        return FateRequest { connection, ..base };
    }
    // A tunnel's: each direction is a connection of its own.
    let transport = match from.request.transport {
        FateTransport::Udp { .. } => FateTransport::Udp { source_port, destination_port },
        without_ports => without_ports,
    };
    let FateRequest { length, may_be_fragmented, by_kernel, .. } = from.request;
    FateRequest { transport, length, may_be_fragmented, by_kernel, ..base }
}

/// What a server answers to a packet that was delivered.
pub(super) fn answer(legs: &[Leg], place: &Place, packet: &Packet, protocol: Protocol) -> FateRequest {
    let (from, to) = packet.known_ports();
    let transport = transport(protocol, to, from, Direction::Reply);
    FateRequest {
        connection: entry(legs, place),
        without: without(legs),
        ..FateRequest::new(FateOrigin::Sent, Some(packet.destination()), packet.source(), transport)
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
    let there = |leg: &&Leg| leg.carrier.is_none() && leg.direction == Direction::Forward && leg.place == *place;
    let there = legs.iter().find(there)?;
    there.connection().map(|entry| Entry { direction: Seen::Reply, ..entry.clone() })
}
