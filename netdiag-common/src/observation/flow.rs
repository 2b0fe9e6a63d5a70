//! Flows that connection tracking knows: how many, where Service addresses lead them, and single entries on request.
//!
//! Status bits, zones and marks are the kernel's own (`include/uapi/linux/netfilter/nf_conntrack_common.h`,
//! `nfnetlink_conntrack.h`).

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::Protocol;
use super::counter::Counter;
use super::service_rules::Endpoint;
use crate::{Gap, Netns};

/// Connection tracking of a node (and of its pods), or of one pod.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Flows {
    /// The namespace that was asked about first, then pods with entries of their own, fullest first.
    pub tables: Vec<FlowTable>,
    /// Pods whose namespace has no entry: nothing in them makes the kernel track. Not in `tables`.
    #[serde(default)]
    pub pods_without_entries: u64,
    /// Pods with entries beyond those listed, and pods that could not be entered.
    #[serde(default)]
    pub pods_left_out: u64,
    /// What came and went in the window. None for a pod: the agent listens in the node's own namespace only.
    #[serde(default)]
    pub changes: Option<FlowChanges>,
    /// The whole table once, counted while it was read.
    pub snapshot: FlowSnapshot,
}

/// How full the table of one namespace is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FlowTable {
    pub netns: Netns,
    pub entries: u64,
    /// `nf_conntrack_max`: one number for the whole kernel, compared with each namespace's own entries.
    pub limit: u64,
}

/// Flows that began and ended in a window, as the kernel announced them (`NFNLGRP_CONNTRACK_NEW` and `_DESTROY`).
///
/// Exact for the time that the agent listened. It listens all the time on a quiet node, and in samples on a busy one.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct FlowChanges {
    /// Start of what the counts are for: the window's, or later when the agent is younger.
    pub since: Timestamp,
    pub window_s: f64,
    /// Seconds of the window in which the agent listened. Less than `window_s`: multiply to estimate the rest.
    pub listened_s: f64,
    /// One per protocol number, most flows first. Protocols beyond the first 16 are together under number 255.
    pub protocols: Vec<FlowRate>,
    /// Announcements that the kernel could not hand over because the socket's buffer was full (ENOBUFS, counted by
    /// `SK_MEMINFO_DROPS`): what is missing from the counts while the agent listened.
    pub lost: u64,
    /// Announcements that could not be decoded.
    #[serde(default)]
    pub undecoded: u64,
    /// Why the agent does not listen, when it does not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub not_listening: Option<String>,
    /// What stays unknown about these changes, with what would show it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub gaps: Vec<Gap>,
    /// The kernel's failure counters that are not 0, summed over the CPUs, with their growth in the window: `insert_failed`,
    /// `drop`, `early_drop`, `invalid`, `clash_resolve`, …
    #[serde(default)]
    pub failures: BTreeMap<String, Counter>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct FlowRate {
    /// IANA number.
    pub protocol_number: u8,
    pub new: u64,
    /// Flows that ended after the agent began to listen to their kind. The kernel announces the end of a flow only when
    /// somebody listened at its beginning (`nf_conntrack_events=2`, the default since Linux 5.19).
    pub ended: u64,
    /// Of those: nobody ever answered.
    pub ended_unreplied: u64,
    /// Of those: the flow was established (TCP) or was a stream (UDP).
    pub ended_assured: u64,
}

/// One pass over the table. The kernel makes no copy for a reader: entries that come or go meanwhile may be missed.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct FlowSnapshot {
    pub at: Timestamp,
    pub took_ms: u64,
    /// Entries that were read.
    pub entries: u64,
    /// What makes this snapshot less than the table: interrupted, cut at a limit, entries that could not be decoded, Service
    /// rules that could not be read. Empty when nothing does.
    #[serde(default)]
    pub limits: Vec<String>,
    /// By protocol and state, most flows first.
    pub groups: Vec<FlowGroup>,
    /// Conntrack zones in use, most flows first; zone 0 is the default one.
    #[serde(default)]
    pub zones: Vec<ZoneUse>,
    /// Flows whose destination was rewritten: from which address to which endpoint; most flows first.
    #[serde(default)]
    pub mappings: Vec<FlowMapping>,
    /// Flows of mappings that are not listed.
    #[serde(default)]
    pub omitted_mapping_flows: u64,
    /// Entries of mappings that today's Service rules would not make, those with the latest packet first. Empty when there are
    /// no Service rules to compare with.
    #[serde(default)]
    pub outdated: Vec<Flow>,
    /// Such entries in all, listed or not.
    #[serde(default)]
    pub outdated_flows: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FlowGroup {
    pub protocol_number: u8,
    /// TCP: `SYN_SENT`, `ESTABLISHED`, … (`enum tcp_conntrack`); none for protocols whose state the kernel does not tell.
    #[serde(default)]
    pub state: Option<String>,
    pub flows: u64,
    pub unreplied: u64,
    pub assured: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ZoneUse {
    pub zone: u16,
    pub flows: u64,
}

/// Where the flows to one address and port were sent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FlowMapping {
    /// What the clients asked for: a Service's address, or another that some rule rewrites.
    pub address: IpAddr,
    pub protocol: Protocol,
    pub port: u16,
    /// Where the packets go instead.
    pub endpoint: Endpoint,
    /// `namespace/name:port` when the Service rules say it.
    #[serde(default)]
    pub service: Option<String>,
    pub flows: u64,
    pub unreplied: u64,
    pub assured: u64,
    /// Seconds since the latest packet of any of these flows, from the entry's remaining time and the timeout in force. None
    /// when that timeout is not known.
    #[serde(default)]
    pub latest_packet_s: Option<u32>,
    pub rules: RulesToday,
}

/// What the Service rules, as they are now, say about a mapping.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RulesToday {
    /// They lead there.
    LeadThere,
    /// They lead from this address to other endpoints only.
    LeadElsewhere,
    /// They refuse or drop: the Service has no endpoint here.
    LeadNowhere,
    /// They do not know this address and port. Something else rewrote it, or the Service is gone.
    SayNothing,
    /// They could not be read, could not be decoded completely, or belong to another namespace.
    NotKnown,
}

impl RulesToday {
    /// The rules know the address, and a new flow would not go there.
    pub fn is_outdated(self) -> bool {
        matches!(self, Self::LeadElsewhere | Self::LeadNowhere)
    }
}

/// What to look for in the table. A field that is none matches everything.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct FlowQuery {
    /// Who opened the flow: the source of the original direction.
    #[serde(default)]
    pub client: Option<IpAddr>,
    /// Where it went: the destination of the original direction (a Service's address), or the source of the reply (an
    /// endpoint).
    #[serde(default)]
    pub server: Option<IpAddr>,
    #[serde(default)]
    pub protocol: Option<Protocol>,
    /// The port that belongs to `server`, in either direction.
    #[serde(default)]
    pub port: Option<u16>,
}

/// Entries that match a [`FlowQuery`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FoundFlows {
    /// At most [`MAX_FOUND_FLOWS`].
    pub flows: Vec<Flow>,
    /// Matching entries beyond those listed.
    #[serde(default)]
    pub omitted: u64,
    /// As in [`FlowSnapshot::limits`].
    #[serde(default)]
    pub limits: Vec<String>,
}

/// Entries in one answer: more say nothing new about one path.
pub const MAX_FOUND_FLOWS: usize = 256;

/// One entry of the table.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Flow {
    pub protocol_number: u8,
    /// As the first packet came.
    pub original: FlowTuple,
    /// As answers are expected: its source is where the packets really go, its destination whom they seem to come from.
    pub reply: FlowTuple,
    /// `enum ip_conntrack_status`; see the methods.
    pub status: u32,
    /// As in [`FlowGroup::state`].
    #[serde(default)]
    pub state: Option<String>,
    /// Seconds until the entry ends unless a packet comes.
    #[serde(default)]
    pub expires_s: Option<u32>,
    /// As in [`FlowMapping::latest_packet_s`].
    #[serde(default)]
    pub latest_packet_s: Option<u32>,
    /// TCP: data of one side waits for the other's acknowledgement (`IP_CT_TCP_FLAG_DATA_UNACKNOWLEDGED`).
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub unacknowledged: bool,
    #[serde(default)]
    pub zone: u16,
    #[serde(default)]
    pub mark: u32,
}

/// One direction. Ports are 0 for protocols without them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct FlowTuple {
    pub source: IpAddr,
    pub destination: IpAddr,
    #[serde(default)]
    pub source_port: u16,
    #[serde(default)]
    pub destination_port: u16,
}

impl Flow {
    /// `IPS_SEEN_REPLY`: packets came back.
    pub fn is_replied(&self) -> bool {
        self.status & 1 << 1 != 0
    }

    /// `IPS_ASSURED`: not evicted early when the table is full.
    pub fn is_assured(&self) -> bool {
        self.status & 1 << 2 != 0
    }

    /// `IPS_SRC_NAT`: the source was rewritten.
    pub fn is_source_rewritten(&self) -> bool {
        self.status & 1 << 4 != 0
    }

    /// `IPS_DST_NAT`: the destination was rewritten.
    pub fn is_destination_rewritten(&self) -> bool {
        self.status & 1 << 5 != 0
    }

    /// `IPS_OFFLOAD` or `IPS_HW_OFFLOAD`: packets go past the rules, and the remaining time says nothing about them.
    pub fn is_offloaded(&self) -> bool {
        self.status & (1 << 14 | 1 << 15) != 0
    }

    /// The first direction's packets as they leave, after every translation.
    pub fn sent(&self) -> FlowTuple {
        self.reply.inverse()
    }

    pub fn protocol(&self) -> Option<Protocol> {
        Protocol::from_number(self.protocol_number)
    }
}

impl FlowTuple {
    /// That of the packets which go the other way.
    pub fn inverse(&self) -> Self {
        let Self { source, destination, source_port, destination_port } = *self;
        Self { source: destination, destination: source, source_port: destination_port, destination_port: source_port }
    }

    /// `from 10.244.1.2:40000 to 10.244.2.3:8080`; for protocols without ports `from 172.30.0.11 to 172.30.0.12`.
    pub fn words(&self) -> String {
        let end = |address: IpAddr, port: u16| match port {
            0 => address.to_string(),
            port => SocketAddr::new(address, port).to_string(),
        };
        format!("from {} to {}", end(self.source, self.source_port), end(self.destination, self.destination_port))
    }
}

impl FlowQuery {
    /// `from 10.244.1.4 to 10.96.0.10 udp port 53`.
    pub fn words(&self) -> String {
        let mut words = Vec::new();
        words.extend(self.client.map(|client| format!("from {client}")));
        words.extend(self.server.map(|server| format!("to {server}")));
        words.extend(self.protocol.map(|protocol| protocol.to_string()));
        words.extend(self.port.map(|port| format!("port {port}")));
        words.join(" ")
    }

    /// Whether an entry with these tuples is meant.
    pub fn matches(&self, protocol_number: u8, original: &FlowTuple, reply: &FlowTuple) -> bool {
        let is_server = |address: IpAddr, port: u16| {
            self.server.is_none_or(|wanted| wanted == address) && self.port.is_none_or(|wanted| wanted == port)
        };
        self.client.is_none_or(|client| client == original.source)
            && self.protocol.is_none_or(|protocol| protocol.number() == protocol_number)
            && (is_server(original.destination, original.destination_port)
                || is_server(reply.source, reply.source_port))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tuple(source: &str, source_port: u16, destination: &str, destination_port: u16) -> FlowTuple {
        let address = |text: &str| text.parse().expect("an address");
        FlowTuple { source: address(source), destination: address(destination), source_port, destination_port }
    }

    #[test]
    fn a_port_is_named_where_there_is_one() {
        assert_eq!(tuple("10.1.0.2", 40_000, "10.1.0.3", 80).words(), "from 10.1.0.2:40000 to 10.1.0.3:80");
        assert_eq!(tuple("fd09::1", 0, "fd09::2", 443).words(), "from fd09::1 to [fd09::2]:443");
    }

    #[test]
    fn a_flow_is_found_by_its_service_and_by_its_endpoint() {
        let original = tuple("10.244.1.4", 40_000, "10.96.0.10", 53);
        let reply = tuple("10.244.2.9", 5353, "10.244.1.4", 40_000);
        let by = |server: &str, port| FlowQuery {
            server: Some(server.parse().expect("an address")),
            port: Some(port),
            ..FlowQuery::default()
        };
        assert!(by("10.96.0.10", 53).matches(17, &original, &reply));
        assert!(by("10.244.2.9", 5353).matches(17, &original, &reply));
        assert!(!by("10.96.0.10", 5353).matches(17, &original, &reply), "address and port belong together");
        let tcp = FlowQuery { protocol: Some(Protocol::Tcp), ..FlowQuery::default() };
        assert!(!tcp.matches(17, &original, &reply));
    }
}
