//! What would become of one packet in one network namespace, as the agent's evaluator of the packet filter finds it.

use std::net::{IpAddr, SocketAddr};

use serde::{Deserialize, Serialize};

use super::listener::Process;
use super::network::{BridgePort, Vlan};
use super::rules::Counter;
use super::{Owner, Protocol};
use crate::Gap;
use crate::forwarding::conntrack::{Connection, Entry};
use crate::forwarding::packet::{ICMP, ICMPV6, Origin, TCP, UDP, UnknownBytes, icmp, tcp, udp};
use crate::forwarding::state::ChainKey;
use crate::forwarding::{Fact, Outcome, Packet, RuleKey, Without};

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
    /// Rules that are taken not to be there, at most [`MAX_WITHOUT`]. An agent that knows how says of each what it does
    /// ([`Fate::left_out`]).
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
    /// As [`Peer::index`] has it.
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

/// The answer. Its rules and interfaces are those that [`Fate::outcome`] and [`Fate::left_out`] name, and interfaces beside those:
/// the master of a port, the device below a VLAN, the port behind which a neighbour is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Fate {
    /// nf_tables generation id while all of this was read.
    #[serde(default)]
    pub generation: Option<u32>,
    /// As it was evaluated.
    pub packet: Packet,
    pub outcome: Outcome,
    pub rules: Vec<FateRule>,
    pub interfaces: Vec<FateInterface>,
    /// Who takes what is delivered; only for paths of TCP and UDP that end so, and of which the destination port is known.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub deliveries: Vec<FateDelivery>,
    /// Who on the link is given what is sent; only for paths that end on a link where addresses are resolved.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub neighbours: Vec<FateNeighbour>,
    /// What of the words could not be read; what was not evaluated is with each path.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unseen: Vec<Gap>,
    /// One for each rule of [`FateRequest::without`]. The words of those that are there are among [`Fate::rules`].
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub left_out: Vec<LeftOut>,
}

/// A rule that was taken not to be there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeftOut {
    pub rule: RuleKey,
    pub role: LeftOutRole,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LeftOutRole {
    /// The namespace has no such rule.
    Absent,
    /// It is there, and the packet goes the same way with it: it does not come to it, or does not match it.
    NotMet,
    /// With it, and without the others, the packet is not decided about in the same way.
    Met,
}

/// The kernel's lookup of a socket at the end of a path.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FateDelivery {
    /// Number of the path in [`Outcome::paths`].
    pub path: usize,
    /// One; several of which the kernel chooses one (`SO_REUSEPORT`); or none: TCP is answered with a reset, UDP with ICMP
    /// port unreachable.
    pub sockets: Vec<FateSocket>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FateSocket {
    /// What it is bound to.
    pub address: SocketAddr,
    /// The other end, when it is connected; else it listens.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub remote: Option<SocketAddr>,
    /// Who holds it; none when it could not be found.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub process: Option<Process>,
}

/// The kernel's entry for the next hop of a path (ARP of RFC 826, neighbour discovery of RFC 4861), as it is now. It ends no path:
/// whatever its state, the kernel asks for the address when it has to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FateNeighbour {
    /// Number of the path in [`Outcome::paths`].
    pub path: usize,
    pub interface: u32,
    /// The router, or the destination itself.
    pub address: IpAddr,
    /// As [`Neighbour::state`](super::network::Neighbour::state); none without an entry.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mac: Option<String>,
    /// Of a bridge: the port that its forwarding database has this Ethernet address behind; none where it has it behind none, or
    /// behind several.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<u32>,
}

/// A rule on the way, in words.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FateRule {
    pub chain: ChainKey,
    pub handle: u64,
    /// Close to `nft list ruleset`, or to `iptables -S`.
    pub text: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub comment: Option<String>,
    /// Of the rule's own `counter`, when it was read. Two readings tell whether packets pass it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub counter: Option<Counter>,
}

/// An interface on the way.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FateInterface {
    pub index: u32,
    pub name: String,
    /// `veth`, `bridge`, `vxlan`, …; empty for devices that no link type made.
    #[serde(default)]
    pub kind: String,
    /// Bridge, bond or VRF that it is a port of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub master_index: Option<u32>,
    /// Of a port of a bridge.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<BridgePort>,
    /// Of a VLAN device.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vlan: Option<Vlan>,
    /// The other end of a veth or netkit device: where what leaves here arrives.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peer: Option<Peer>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Peer {
    /// In its own namespace.
    pub index: u32,
    /// `IFLA_LINK_NETNSID`: what this namespace calls the peer's; none when it is this one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub netns_id: Option<i32>,
    /// Whose namespace that is; none when it is neither this node's nor one of its pods'.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner: Option<Owner>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
fn is_zero(value: &u32) -> bool {
    *value == 0
}

impl FateRequest {
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

impl FateSocket {
    /// `pid 4711 (nginx) listening on 0.0.0.0:80`
    pub fn words(&self) -> String {
        let whose = match &self.process {
            Some(process) => format!("pid {} ({})", process.pid, process.name),
            None => "a socket of an unknown process".to_owned(),
        };
        match self.remote {
            Some(remote) => format!("{whose} connected to {remote}"),
            None => format!("{whose} listening on {}", self.address),
        }
    }
}

impl FateNeighbour {
    /// `neighbour 10.0.0.2: 02:00:00:00:00:09 (reachable)`
    pub fn words(&self) -> String {
        let entry = match (self.state.as_deref(), &self.mac) {
            (Some("failed"), _) => {
                "did not answer when it was asked last (failed), and is asked again for this packet".to_owned()
            }
            (Some("incomplete"), _) => "is being asked for its link address (incomplete)".to_owned(),
            (Some(state), Some(mac)) => format!("{mac} ({state})"),
            _ => "no entry yet, so that it will be resolved for this packet".to_owned(),
        };
        format!("neighbour {}: {entry}", self.address)
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
        FateRequest {
            origin: FateOrigin::Received(FateInterfaceKey::Name("eth0".into())),
            source: Some("10.0.0.1".parse().unwrap()),
            destination: "10.0.0.2".parse().unwrap(),
            transport,
            mark: 0,
            connection: None,
            length: None,
            may_be_fragmented: false,
            without: Without::new(),
        }
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
    fn a_neighbour_that_does_not_answer_is_told_as_one_that_is_asked_again() {
        let neighbour = |state: Option<&str>, mac: Option<&str>| FateNeighbour {
            path: 0,
            interface: 2,
            address: "10.0.0.2".parse().unwrap(),
            state: state.map(str::to_owned),
            mac: mac.map(str::to_owned),
            port: None,
        };
        let mac = Some("02:00:00:00:00:09");
        let unresolved = "no entry yet, so that it will be resolved for this packet";
        for (state, mac, entry) in [
            (Some("stale"), mac, "02:00:00:00:00:09 (stale)"),
            (Some("incomplete"), None, "is being asked for its link address (incomplete)"),
            (None, None, unresolved),
            (Some("none"), None, unresolved),
        ] {
            assert_eq!(neighbour(state, mac).words(), format!("neighbour 10.0.0.2: {entry}"));
        }
        let failed = neighbour(Some("failed"), None).words();
        assert!(failed.contains("(failed)") && failed.contains("asked again"), "{failed}");
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
        assert!(text.contains(r#""origin":{"received":{"name":"eth0"}}"#) && !text.contains("without"), "{text}");
        let without = Without::from(["inet site fw 2".parse().unwrap()]);
        let text = read_back(&FateRequest { without, ..request });
        let rule = r#"{"chain":{"family":"inet","table":"site","chain":"fw"},"handle":2}"#;
        assert!(text.contains(&format!(r#""without":[{rule}]"#)), "{text}");
    }
}
