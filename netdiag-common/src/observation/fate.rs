//! What would become of one packet in one network namespace, as the agent's evaluator of the packet filter finds it.

use std::net::{IpAddr, SocketAddr};

use serde::{Deserialize, Serialize};

use super::Owner;
use super::listener::Process;
use super::network::{BridgePort, Vlan};
use super::rules::Counter;
use crate::Gap;
use crate::forwarding::state::ChainKey;
use crate::forwarding::{Outcome, Packet, RuleKey};

mod request;

pub use self::request::{FateInterfaceKey, FateOrigin, FateRequest, FateTransport, MAX_WITHOUT};

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

/// From the least that it does to the most.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LeftOutRole {
    /// The namespace has no such rule.
    Absent,
    /// It is there, and the packet goes the same way with it: it does not come to it, or does not match it.
    NotMet,
    /// The packet comes to it and matches it, and ends with it, and without the others, as it does without it: it counts, logs, or
    /// accepts what is accepted anyway.
    MetInVain,
    /// With it, and without the others, the packet ends in another way, or not all of its paths were followed.
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

#[cfg(test)]
mod tests {
    use super::*;

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
}
