//! What connection tracking knows of a packet, and how it judges one that it has no entry for.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use super::fact::Fact;
use super::packet::{ICMP, ICMPV6, Packet, Protocol, TCP};

/// `enum ip_conntrack_status`
pub mod status {
    pub const EXPECTED: u32 = 1;
    pub const SEEN_REPLY: u32 = 1 << 1;
    pub const ASSURED: u32 = 1 << 2;
    pub const CONFIRMED: u32 = 1 << 3;
    pub const SOURCE_NAT: u32 = 1 << 4;
    pub const DESTINATION_NAT: u32 = 1 << 5;
    pub const SEQUENCE_ADJUSTED: u32 = 1 << 6;
    pub const SOURCE_NAT_DONE: u32 = 1 << 7;
    pub const DESTINATION_NAT_DONE: u32 = 1 << 8;
    pub const NAT_CLASH: u32 = 1 << 12;
    pub const HELPER: u32 = 1 << 13;
    /// A flowtable has it.
    pub const OFFLOADED: u32 = 1 << 14;
}

/// What the table has for a packet when it arrives.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Connection {
    /// No entry: the packet may begin one.
    New,
    Existing(Entry),
}

/// An entry of the table, seen from one packet.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Entry {
    pub direction: Direction,
    /// Bits of [`status`].
    pub status: u32,
    pub mark: u32,
    pub zone: u16,
    pub original: Tuple,
    pub reply: Tuple,
    /// The interface that its packets have to leave by, since it was masqueraded there; none when it was not.
    /// The kernel does not show it (`nf_conn_nat.masq_index`).
    pub masqueraded: Fact<Option<u32>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Direction {
    Original,
    Reply,
}

/// `struct nf_conntrack_tuple`. ICMP keeps its identifier in place of the source port, type and code in place of the
/// destination port; protocols without either keep zeros.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Tuple {
    pub source: IpAddr,
    pub destination: IpAddr,
    /// IANA number.
    pub protocol: u8,
    pub source_port: u16,
    pub destination_port: u16,
}

/// `net.netfilter.nf_conntrack_tcp_*` of a namespace; none where the kernel does not show them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct TrackingSettings {
    /// Connections of TCP may be picked up in their middle.
    pub tcp_loose: Option<bool>,
    /// Segments outside of the window of their connection are part of it all the same.
    pub tcp_be_liberal: Option<bool>,
}

/// `enum ip_conntrack_info` without its direction.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    New,
    Established,
    Related,
}

impl Tuple {
    /// As `nf_ct_get_tuple` (Linux 6.18); none for fragments and broken headers.
    pub fn of(packet: &Packet) -> Option<Self> {
        let transport = packet.transport().filter(|transport| transport.fragment == 0)?;
        let (source_port, destination_port) = match transport.protocol {
            ICMP | ICMPV6 => (packet.number(transport.offset + 4)?, packet.number(transport.offset)?),
            _ => packet.ports().unwrap_or((0, 0)),
        };
        let (source, destination) = (packet.source(), packet.destination());
        Some(Self { source, destination, protocol: transport.protocol, source_port, destination_port })
    }

    /// As `nf_ct_invert_tuple`.
    #[must_use]
    pub fn inverted(&self) -> Self {
        let (source_port, destination_port) = match self.protocol {
            ICMP | ICMPV6 => {
                let [kind, code] = self.destination_port.to_be_bytes();
                (self.source_port, u16::from_be_bytes([inverse(self.protocol, kind), code]))
            }
            _ => (self.destination_port, self.source_port),
        };
        Self {
            source: self.destination,
            destination: self.source,
            protocol: self.protocol,
            source_port,
            destination_port,
        }
    }
}

/// The answer to a question of ICMP (`nf_conntrack_invert_icmp_tuple`, `nf_conntrack_invert_icmpv6_tuple`).
fn inverse(protocol: u8, kind: u8) -> u8 {
    match (protocol, kind) {
        (ICMP, 8) => 0,
        (ICMP, 0) => 8,
        (ICMP, 13) => 14,
        (ICMP, 14) => 13,
        (ICMP, 15) => 16,
        (ICMP, 16) => 15,
        (ICMP, 17) => 18,
        (ICMP, 18) => 17,
        (ICMPV6, 128) => 129,
        (ICMPV6, 129) => 128,
        (ICMPV6, 139) => 140,
        (ICMPV6, 140) => 139,
        (_, kind) => kind,
    }
}

/// How `nf_conntrack_in` (Linux 6.18) takes a packet that the table has no entry for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Newcomer {
    /// It begins a connection.
    New,
    /// Of a TCP connection in its middle, which begins with it for this host where `nf_conntrack_tcp_loose` is on, and is invalid
    /// elsewhere (`tcp_new`).
    MidStream,
    Invalid,
    /// Never tracked: neighbour discovery, router solicitations.
    Untracked,
    /// It belongs to the connection that its payload quotes.
    Error,
}

pub(super) fn newcomer(packet: &Packet) -> Newcomer {
    let Some(transport) = packet.transport().filter(|transport| transport.fragment == 0) else {
        return Newcomer::Invalid;
    };
    let header = packet.bytes.get(transport.offset..).unwrap_or_default();
    match (transport.protocol, packet.protocol) {
        (TCP, _) => tcp(header, packet, transport.offset),
        (ICMP, Protocol::Ipv4) => match header {
            // Echo, timestamp, information and address mask requests.
            [8 | 13 | 15 | 17, _, _, _, _, _, _, _, ..] => Newcomer::New,
            [3 | 4 | 5 | 11 | 12, _, _, _, _, _, _, _, ..] => Newcomer::Error,
            _ => Newcomer::Invalid,
        },
        (ICMPV6, Protocol::Ipv6) => match header {
            // Echo request, node information query.
            [128 | 139, _, _, _, _, _, _, _, ..] => Newcomer::New,
            // Multicast listeners and neighbour discovery (`nf_conntrack_icmpv6_error`).
            [130..=136 | 143, _, _, _, _, _, _, _, ..] => Newcomer::Untracked,
            [0..=127, _, _, _, _, _, _, _, ..] => Newcomer::Error,
            _ => Newcomer::Invalid,
        },
        // Eight bytes are what `nf_ct_get_tuple` asks for of protocols with ports.
        (17 | 33 | 132 | 136, _) if header.len() < 8 => Newcomer::Invalid,
        _ => Newcomer::New,
    }
}

/// `tcp_error`, `tcp_valid_flags` and the column "no state yet" of `tcp_conntracks`.
fn tcp(header: &[u8], packet: &Packet, offset: usize) -> Newcomer {
    const FIN: u8 = 1;
    const SYN: u8 = 2;
    const RST: u8 = 4;
    const ACK: u8 = 16;
    const URG: u8 = 32;
    const SYN_URG: u8 = SYN | URG;
    const ACK_URG: u8 = ACK | URG;
    let (Some(flags), Some(words)) = (header.get(13), header.get(12).map(|byte| usize::from(byte >> 4))) else {
        return Newcomer::Invalid;
    };
    let whole = usize::try_from(packet.length).unwrap_or(usize::MAX);
    if words < 5 || offset + words * 4 > whole {
        return Newcomer::Invalid;
    }
    // ECN bits and PSH do not count.
    let flags = flags & (FIN | SYN | RST | ACK | URG);
    match flags {
        SYN | SYN_URG => Newcomer::New,
        ACK | ACK_URG => Newcomer::MidStream,
        // Everything else is a combination that TCP does not have, or one that cannot come first.
        _ => Newcomer::Invalid,
    }
}

#[cfg(test)]
mod tests {
    use super::super::packet::{Origin, icmp, tcp, udp};
    use super::*;

    fn packet(protocol: u8, transport: &[u8]) -> Packet {
        let (source, destination) = ("10.0.0.1".parse().unwrap(), "10.0.0.2".parse().unwrap());
        Packet::between(Origin::Sent, source, destination, protocol, transport).unwrap()
    }

    #[test]
    fn only_some_tcp_packets_may_come_first() {
        let of = |flags| newcomer(&packet(TCP, &tcp(1, 2, flags)));
        assert_eq!(of(2), Newcomer::New);
        assert_eq!(of(16), Newcomer::MidStream);
        assert_eq!(of(18), Newcomer::Invalid);
        assert_eq!(of(4), Newcomer::Invalid);
        assert_eq!(of(0), Newcomer::Invalid);
    }

    #[test]
    fn an_echo_reply_begins_nothing() {
        assert_eq!(newcomer(&packet(ICMP, &icmp(8, 0, 7))), Newcomer::New);
        assert_eq!(newcomer(&packet(ICMP, &icmp(0, 0, 7))), Newcomer::Invalid);
        assert_eq!(newcomer(&packet(ICMP, &icmp(3, 1, 0))), Newcomer::Error);
    }

    #[test]
    fn the_inverse_of_an_echo_request_is_its_reply() {
        let tuple = Tuple::of(&packet(ICMP, &icmp(8, 0, 7))).unwrap();
        let inverse = tuple.inverted();
        assert_eq!((inverse.source_port, inverse.destination_port), (7, 0));
        assert_eq!(inverse.inverted(), tuple);
        let tuple = Tuple::of(&packet(17, &udp(5, 6, b""))).unwrap();
        assert_eq!((tuple.inverted().source_port, tuple.inverted().destination_port), (6, 5));
    }
}
