//! What would become of one packet in one network namespace, as the agent's evaluator of the packet filter finds it.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use super::Owner;
use super::rules::Counter;
use crate::Gap;
use crate::forwarding::conntrack::Entry;
use crate::forwarding::state::ChainKey;
use crate::forwarding::{Outcome, Packet};

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
}

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
        destination_port: u16,
        /// As in byte 13 of the header: 2 is SYN, 16 is ACK, 18 is both.
        flags: u8,
    },
    Udp {
        #[serde(default, skip_serializing_if = "Option::is_none")]
        source_port: Option<u16>,
        destination_port: u16,
    },
    /// Or ICMPv6, by the addresses' family. An echo request is of kind 8, or 128.
    Icmp { kind: u8, code: u8, identifier: u16 },
}

/// The answer. Its rules and interfaces are those that [`Fate::outcome`] names.
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
    /// What of the words could not be read; what was not evaluated is with each path.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unseen: Vec<Gap>,
}

/// A rule on the way, in words.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FateRule {
    pub chain: ChainKey,
    pub handle: u64,
    /// Close to `nft list ruleset`.
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
    /// `tcp 10.0.0.1:* → 10.96.0.1:443`
    pub fn words(&self) -> String {
        let source = self.source.map_or_else(|| "this host".to_owned(), |source| source.to_string());
        let port = |port: Option<u16>| port.map_or_else(|| "*".to_owned(), |port| port.to_string());
        let (name, from, to) = match self.transport {
            FateTransport::Tcp { source_port, destination_port, .. } => ("tcp", source_port, destination_port),
            FateTransport::Udp { source_port, destination_port } => ("udp", source_port, destination_port),
            FateTransport::Icmp { kind, .. } => {
                return format!("icmp type {kind} {source} → {}", self.destination);
            }
        };
        format!("{name} {source} port {} → {} port {to}", port(from), self.destination)
    }
}
