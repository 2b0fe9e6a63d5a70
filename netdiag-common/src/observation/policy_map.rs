//! What the maps of a policy engine's eBPF programs say about one packet of a pod.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use super::Protocol;

/// The first packet of a connection with a pod of the node.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct PolicyQuery {
    /// The pod whose policies are asked for; it is on this node.
    pub pod: IpAddr,
    /// The connection's other end.
    pub peer: IpAddr,
    /// The peer begins it.
    pub ingress: bool,
    pub protocol: Protocol,
    /// Of the end that does not begin it.
    pub port: u16,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PolicyVerdict {
    /// `Cilium`
    pub engine: String,
    /// What the engine calls the pod.
    pub endpoint: u32,
    /// What the engine takes the peer for: a number for its labels.
    pub identity: u32,
    /// Name of the map that decides.
    pub map: String,
    pub entry: PolicyEntry,
    /// How full that map is. Told where the entry is missing alone: the kernel counts no entries, so that somebody has to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub room: Option<MapRoom>,
}

/// Entries of a map, and how many it takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct MapRoom {
    pub entries: u32,
    /// `max_entries`
    pub limit: u32,
}

/// The map's entry for the packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PolicyEntry {
    Allows,
    /// Through a proxy on this port of the node, which may refuse it.
    Redirects {
        port: u16,
    },
    Denies,
    /// It lets in those who have authenticated themselves to each other.
    WantsAuthentication,
    /// There is none: the packet is dropped.
    Missing,
}

impl PolicyEntry {
    /// What becomes of the packet.
    pub fn word(self) -> &'static str {
        match self {
            Self::Allows => "allowed",
            Self::Redirects { .. } => "redirected to a proxy",
            Self::Denies => "denied",
            Self::WantsAuthentication => "dropped until both ends have authenticated",
            Self::Missing => "dropped, since no entry allows it",
        }
    }
}

impl MapRoom {
    /// Nothing more can be written (`trie_update_elem` of kernel/bpf/lpm_trie.c: `ENOSPC`).
    pub fn is_full(self) -> bool {
        self.entries >= self.limit
    }
}

impl PolicyQuery {
    /// `tcp from 10.244.1.5 to 10.244.2.9:8080`
    pub fn words(&self) -> String {
        let (from, to) = if self.ingress { (self.peer, self.pod) } else { (self.pod, self.peer) };
        format!("{} from {from} to {}", self.protocol, std::net::SocketAddr::new(to, self.port))
    }
}
