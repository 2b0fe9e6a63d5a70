//! The question: a packet in a person's words, and how it becomes bytes.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::forwarding::conntrack::{Connection, Entry};
use crate::forwarding::packet::{ICMP, ICMPV6, Origin, TCP, UDP, UnknownBytes, icmp, tcp, udp};
use crate::forwarding::{Fact, Packet, Without};
use crate::observation::Protocol;

/// A packet in a person's words. It is not sent: its way is read from the rules.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct FateRequest {
    pub origin: FateOrigin,
    /// None for the address that the kernel gives to a socket of this namespace which is not bound.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<IpAddr>,
    pub destination: IpAddr,
    pub transport: FateTransport,
    #[serde(default, skip_serializing_if = "is_zero")]
    pub mark: u32,
    /// What connection tracking has for it, seen from this packet; none when it begins a connection. Of an answer, the
    /// `connection` of the path that the question took, with its direction turned around.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub connection: Option<Entry>,
    /// Of the whole IP packet, in bytes; none for one without a payload.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub length: Option<u16>,
    /// Routers may fragment it (IPv4). What sockets of Linux send by themselves says that they may not.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub may_be_fragmented: bool,
    /// Whom on the link its sender gave it to, a router or the destination itself: a bridge routes what is for the host, and hands on
    /// what is not. None where that is not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_hop: Option<IpAddr>,
    /// A tunnel's device makes it, and one takes it where it is delivered: no process has a socket for it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub by_kernel: bool,
    /// Rules that are taken not to be there, at most [`MAX_WITHOUT`]. An agent that knows how says of each what it does
    /// ([`Fate::left_out`](super::Fate::left_out)).
    #[serde(default, skip_serializing_if = "Without::is_empty")]
    pub without: Without,
}

/// Rules that one question may leave out. Each of them is one more evaluation.
pub const MAX_WITHOUT: usize = 16;

/// Where the packet comes from.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FateOrigin {
    /// A process of this namespace sends it.
    Sent,
    /// It arrives on this interface.
    Received(FateInterfaceKey),
}

/// Which interface of the namespace.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FateInterfaceKey {
    Name(String),
    /// As [`Peer::index`](super::Peer::index) has it.
    Index(u32),
}

/// The transport header. A port that is not given is not known: where rules ask for it, both answers are followed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(tag = "protocol", rename_all = "snake_case")]
pub enum FateTransport {
    Tcp {
        #[serde(default, skip_serializing_if = "Option::is_none")]
        source_port: Option<u16>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        destination_port: Option<u16>,
        /// As in byte 13 of the header: 2 is SYN, 16 is ACK, 18 is both.
        flags: u8,
    },
    Udp {
        #[serde(default, skip_serializing_if = "Option::is_none")]
        source_port: Option<u16>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        destination_port: Option<u16>,
    },
    /// Or ICMPv6, by the addresses' family. An echo request is of kind 8, or 128.
    Icmp { kind: u8, code: u8, identifier: u16 },
    /// Another packet of IPv4, of which nothing is known.
    Ipip,
}

/// The header of a packet of IPv4 without options, in bytes.
const IPV4_HEADER: usize = 20;

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
fn is_zero(value: &u32) -> bool {
    *value == 0
}

impl FateRequest {
    /// A packet that begins a connection between processes, without mark and payload. Whom on the link its sender gave it to is not
    /// known, and no rule is left out.
    pub fn new(origin: FateOrigin, source: Option<IpAddr>, destination: IpAddr, transport: FateTransport) -> Self {
        Self {
            origin,
            source,
            destination,
            transport,
            mark: 0,
            connection: None,
            length: None,
            may_be_fragmented: false,
            next_hop: None,
            by_kernel: false,
            without: Without::new(),
        }
    }

    /// The packet that is meant; none when the addresses are of two families. `source` is for requests without one.
    pub fn packet(&self, origin: Origin, source: IpAddr) -> Option<Packet> {
        let source = self.source.unwrap_or(source);
        let (from, to) = self.transport.ports();
        let (from_known, to_known) = (from.unwrap_or(0), to.unwrap_or(0));
        let (protocol, header) = match self.transport {
            FateTransport::Tcp { flags, .. } => (TCP, tcp(from_known, to_known, flags)),
            FateTransport::Udp { .. } => (UDP, udp(from_known, to_known, b"")),
            FateTransport::Icmp { kind, code, identifier } => {
                (if source.is_ipv4() { ICMP } else { ICMPV6 }, icmp(kind, code, identifier))
            }
            FateTransport::Ipip => (Protocol::Ipip.number(), vec![0; IPV4_HEADER]),
        };
        let mut packet = Packet::between(origin, source, self.destination, protocol, &header)?;
        if self.may_be_fragmented {
            packet.allow_fragments();
        }
        if let Some(length) = self.length {
            packet.set_length(length.into());
        }
        packet.fill_checksums();
        packet.next_hop = self.next_hop;
        if protocol == TCP || protocol == UDP {
            let transport = packet.bytes.len() - header.len();
            let ports = [(transport, from, "the source port"), (transport + 2, to, "the destination port")];
            let unknown = ports
                .into_iter()
                .filter(|(_, port, _)| port.is_none())
                .map(|(offset, _, what)| UnknownBytes { offset, bytes: 2, why: format!("{what} was not given") });
            packet.unknown.extend(unknown);
        }
        if self.transport == FateTransport::Ipip {
            let (bytes, why) = (IPV4_HEADER, "the packet inside was not given".to_owned());
            packet.unknown.push(UnknownBytes { offset: packet.bytes.len() - bytes, bytes, why });
        }
        packet.mark = Fact::Known(self.mark);
        if let Some(entry) = &self.connection {
            packet.connection = Fact::Known(Connection::Existing(entry.clone()));
        }
        Some(packet)
    }

    /// `tcp 10.0.0.1:* → 10.96.0.1:443`
    pub fn words(&self) -> String {
        let source = self.source.map_or_else(|| "this host".to_owned(), |source| source.to_string());
        let port = |port: Option<u16>| port.map_or_else(|| "*".to_owned(), |port| port.to_string());
        let name = match self.transport {
            FateTransport::Tcp { .. } => "tcp",
            FateTransport::Udp { .. } => "udp",
            FateTransport::Icmp { kind, .. } => return format!("icmp type {kind} {source} → {}", self.destination),
            FateTransport::Ipip => return format!("ipip {source} → {}", self.destination),
        };
        let (from, to) = self.transport.ports();
        format!("{name} {source} port {} → {} port {}", port(from), self.destination, port(to))
    }
}

impl FateTransport {
    /// Source and destination port, as far as they are given; none of ICMP.
    pub fn ports(&self) -> (Option<u16>, Option<u16>) {
        match *self {
            Self::Tcp { source_port, destination_port, .. } | Self::Udp { source_port, destination_port } => {
                (source_port, destination_port)
            }
            Self::Icmp { .. } | Self::Ipip => (None, None),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(transport: FateTransport) -> FateRequest {
        let origin = FateOrigin::Received(FateInterfaceKey::Name("eth0".into()));
        FateRequest::new(origin, Some("10.0.0.1".parse().unwrap()), "10.0.0.2".parse().unwrap(), transport)
    }

    #[test]
    fn a_long_packet_says_so_in_its_headers() {
        let udp = FateTransport::Udp { source_port: Some(1), destination_port: Some(2) };
        let request = FateRequest { length: Some(1400), may_be_fragmented: true, ..request(udp) };
        let packet = request.packet(Origin::Sent, "0.0.0.0".parse().unwrap()).unwrap();
        assert_eq!((packet.length, &packet.bytes[2..4], &packet.bytes[24..26]), (1400, &[5, 120][..], &[5, 100][..]));
        assert_eq!(packet.bytes[6], 0);
        // Never less than its headers.
        let short =
            FateRequest { length: Some(3), ..request }.packet(Origin::Sent, "0.0.0.0".parse().unwrap()).unwrap();
        assert_eq!(short.length, 28);
    }

    #[test]
    fn a_port_that_is_not_given_is_not_known() {
        let syn = |source_port| FateTransport::Tcp { source_port, destination_port: Some(80), flags: 2 };
        let any = "0.0.0.0".parse().unwrap();
        let packet = request(syn(None)).packet(Origin::Sent, any).unwrap();
        assert_eq!((packet.unknown[0].offset, packet.unknown[0].bytes), (20, 2));
        let packet = request(syn(Some(4242))).packet(Origin::Sent, any).unwrap();
        assert!(packet.unknown.is_empty());
        assert_eq!((packet.source().to_string(), packet.ports()), ("10.0.0.1".to_owned(), Some((4242, 80))));
    }

    #[test]
    fn a_packet_in_a_packet_is_known_by_its_outer_header_alone() {
        let packet = request(FateTransport::Ipip).packet(Origin::Sent, "0.0.0.0".parse().unwrap()).unwrap();
        assert_eq!((packet.transport().unwrap().protocol, packet.ports(), packet.length), (4, None, 40));
        assert_eq!((packet.unknown[0].offset, packet.unknown[0].bytes), (20, 20));
    }

    #[test]
    fn addresses_of_two_families_make_no_packet() {
        let mut request = request(FateTransport::Udp { source_port: None, destination_port: Some(53) });
        request.destination = "fd00::1".parse().unwrap();
        assert!(request.packet(Origin::Sent, "10.0.0.1".parse().unwrap()).is_none());
    }

    #[test]
    fn a_need_with_it_is_read_back() {
        let request = request(FateTransport::Icmp { kind: 8, code: 0, identifier: 7 });
        let read_back = |request: &FateRequest| {
            let text = serde_json::to_string(&crate::Need::host("n1", crate::Topic::Fate(request.clone()))).unwrap();
            let need: crate::Need = serde_json::from_str(&text).unwrap();
            assert_eq!(serde_json::to_string(&need).unwrap(), text);
            text
        };
        let text = read_back(&request);
        assert!(text.contains(r#""origin":{"received":{"name":"eth0"}}"#), "{text}");
        // Agents that do not know these are asked as before.
        assert!(!text.contains("without") && !text.contains("by_kernel"), "{text}");
        let by_kernel = read_back(&FateRequest { by_kernel: true, ..request.clone() });
        assert!(by_kernel.contains(r#""by_kernel":true"#), "{by_kernel}");
        let without = Without::from(["inet site fw 2".parse().unwrap()]);
        let text = read_back(&FateRequest { without, ..request });
        let rule = r#"{"chain":{"family":"inet","table":"site","chain":"fw"},"handle":2}"#;
        assert!(text.contains(&format!(r#""without":[{rule}]"#)), "{text}");
    }
}
