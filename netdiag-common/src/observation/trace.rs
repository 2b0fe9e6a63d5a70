//! What the kernel did with the packets of one tuple: `nftrace`, armed for a few packets and seconds.

use std::collections::BTreeSet;
use std::net::IpAddr;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::Protocol;
use super::fate::FateInterface;
use crate::forwarding::conntrack::{Direction, Tuple};
use crate::forwarding::expression::Verdict;
use crate::forwarding::state::{Family, Hook};

/// Longest that an agent keeps a trace armed, in seconds.
pub const MAX_TRACE_SECONDS: u8 = 30;
/// Most packets that an agent lets the kernel trace for one request.
pub const MAX_TRACE_PACKETS: u8 = 64;

/// Most other tuples that the connection may have, of one request.
pub const MAX_TRACE_ALTERNATIVES: usize = 16;

/// What to trace. Hard limits are the agent's: [`MAX_TRACE_SECONDS`], [`MAX_TRACE_PACKETS`].
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct TraceRequest {
    /// As the packets have it when they enter the namespace, before any translation.
    pub tuple: TraceTuple,
    /// Of the answers, when they are traced too. It is `tuple` turned around only where no address is translated.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reply: Option<TraceTuple>,
    /// Other tuples that the same connection may have here, when it is not known yet which endpoint it is translated to.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub alternatives: Vec<TraceAlternative>,
    /// Only packets of `tuple` that arrive on this interface; none for all that arrive or are sent by processes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interface: Option<String>,
    pub seconds: u8,
    /// Both directions together. The trace ends with the last of them.
    pub packets: u8,
    /// For the agent's log.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub asked_by: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct TraceAlternative {
    pub tuple: TraceTuple,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reply: Option<TraceTuple>,
}

/// The packets of one connection in one direction, or of all connections to one port when the source port is not given.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct TraceTuple {
    pub protocol: Protocol,
    pub source: IpAddr,
    pub destination: IpAddr,
    /// None for any, and for ICMP.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source_port: Option<u16>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub destination_port: Option<u16>,
}

/// What was traced. No packets: none of the tuple came while it was armed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TraceRecord {
    pub armed: Timestamp,
    pub disarmed: Timestamp,
    /// Packets of the tuples that came while the trace was armed, also those beyond the limit; none when the count was
    /// not read.
    #[serde(default)]
    pub matched: Option<u64>,
    /// In the order of their first events.
    pub packets: Vec<TracedPacket>,
    /// The kernel had more to say than the socket could hold (ENOBUFS), so events are missing.
    #[serde(default)]
    pub lost: bool,
    /// Events that were not kept: beyond the agent's limit, or not understood.
    #[serde(default)]
    pub left_out: u64,
    /// Those that events name.
    pub interfaces: Vec<FateInterface>,
}

/// The events of one packet, as far as the namespace had it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TracedPacket {
    /// `NFTA_TRACE_ID`. The kernel may give it to a later packet again.
    pub id: u32,
    /// Of [`TraceRequest::tuple`], or of its reply.
    pub direction: Direction,
    /// Without those of the rules that armed the trace.
    pub events: Vec<TraceEvent>,
}

/// `NFT_MSG_TRACE`: one rule that matched, the end of a chain, or a policy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TraceEvent {
    pub family: Family,
    pub table: String,
    pub chain: String,
    pub kind: TraceKind,
    /// Of base chains, as they were listed when the trace was armed; the events themselves do not say it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hook: Option<Hook>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub priority: Option<i32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub handle: Option<u64>,
    pub verdict: Verdict,
    /// The packet's mark afterwards; the kernel leaves zero out.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub mark: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub input: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub output: Option<u32>,
    /// What the packet's headers said; the kernel gives them with the first event of each base chain.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub headers: Option<Tuple>,
    /// Since Linux 6.16.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub connection: Option<TraceConnection>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TraceKind {
    Rule,
    /// The end of a chain without a verdict, or a rule that returns: kernels differ.
    Return,
    Policy,
}

/// The entry of connection tracking that the packet belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct TraceConnection {
    /// `CTA_ID`; none when the packet is not tracked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub direction: Option<Direction>,
    /// Bits of `enum ip_conntrack_status`.
    pub status: u32,
    /// Bits as `ct state` compares them: 1 invalid, 2 established, 4 related, 8 new, 64 untracked.
    pub state: u32,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
fn is_zero(value: &u32) -> bool {
    *value == 0
}

impl TraceRequest {
    /// All tuples of one direction, each once.
    pub fn tuples(&self, direction: Direction) -> BTreeSet<TraceTuple> {
        let of = |tuple: TraceTuple, reply: Option<TraceTuple>| match direction {
            Direction::Original => Some(tuple),
            Direction::Reply => reply,
        };
        let others = self.alternatives.iter().filter_map(|other| of(other.tuple, other.reply));
        of(self.tuple, self.reply).into_iter().chain(others).collect()
    }
}

impl std::fmt::Display for TraceTuple {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let end = |address: IpAddr, port: Option<u16>| match port {
            Some(port) => format!("{address} port {port}"),
            None => address.to_string(),
        };
        let (from, to) = (end(self.source, self.source_port), end(self.destination, self.destination_port));
        write!(f, "{} {from} → {to}", self.protocol)
    }
}
