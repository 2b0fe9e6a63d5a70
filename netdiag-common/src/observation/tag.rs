//! The way of one connection's packets on a node: every device that they pass, in each namespace, and where they are dropped.
//!
//! Agents follow a tag for a few seconds by kernel programs that run only as long. They change nothing.

use std::net::IpAddr;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::rules::Hook;
use super::{Owner, Protocol};
use crate::Gap;
use crate::forwarding::conntrack::Direction;

/// Longest that an agent keeps a tag armed, in seconds.
pub const MAX_TAG_SECONDS: u8 = 30;
/// Most events that an agent tells of one tag.
pub const MAX_TAG_EVENTS: usize = 256;
/// Most other tuples that the connection may have, of one request: a Service's endpoints.
pub const MAX_TAG_ALTERNATIVES: usize = 16;

/// What to follow. Hard limits are the agent's: [`MAX_TAG_SECONDS`], [`MAX_TAG_EVENTS`].
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct TagRequest {
    /// As the packets are sent. Their answers are followed too.
    pub tuple: TagTuple,
    /// Other tuples that the same connection may have on this node, as they are after a translation.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub alternatives: Vec<TagTuple>,
    /// How long, from when it is armed.
    pub seconds: u8,
    /// For the agent's log.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub asked_by: Option<String>,
}

/// The packets of one connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct TagTuple {
    pub protocol: Protocol,
    /// None, with no port either: the first packets (SYNs, datagrams) of anybody to this destination, because the source is
    /// translated on the way. [`TagEvent::sequence`] tells whose they are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<IpAddr>,
    /// The bound port; of ICMP the identifier of the echo.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source_port: Option<u16>,
    pub destination: IpAddr,
    /// None for ICMP.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub destination_port: Option<u16>,
}

/// What a node saw of a tag. No events: nothing of it came here while it was armed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Tagged {
    pub armed: Timestamp,
    pub disarmed: Timestamp,
    /// In the order in which they happened on this node.
    pub events: Vec<TagEvent>,
    pub accounts: TagAccounts,
    /// What this kernel or these rights do not let us say about an event.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unseen: Vec<Gap>,
}

/// Each term but `missed` is counted where it happens. The identity:
/// `seen = kept + foreign_netns + beyond_limit + ring_full + unaccounted`, where `unaccounted` must be 0.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TagAccounts {
    /// Every event of the tag, on the whole kernel.
    pub seen: u64,
    /// Those told.
    pub kept: u64,
    /// In a namespace that is not this node's.
    pub foreign_netns: u64,
    /// Over the agent's limit for one tag.
    pub beyond_limit: u64,
    /// The agent did not read as fast as they came.
    pub ring_full: u64,
    /// Runs of the programs, for whatever packet, that the kernel skipped because the same program was running already.
    #[serde(default)]
    pub missed: u64,
}

/// One packet at one point of its way.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TagEvent {
    /// The node's monotonic clock in nanoseconds: orders events of one node, and of one node only.
    pub at_ns: u64,
    pub netns: Owner,
    /// The device's index in its namespace, 0 where none is involved.
    #[serde(default)]
    pub ifindex: u32,
    /// Its name; none when it could not be looked up.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interface: Option<String>,
    pub point: TagPoint,
    pub direction: Direction,
    /// As the packet had it there.
    pub source: IpAddr,
    pub destination: IpAddr,
    /// 0 where the protocol has none.
    pub source_port: u16,
    pub destination_port: u16,
    /// IP protocol number. That of ICMP where the tag's is another: an error about one of its packets.
    pub protocol_number: u8,
    /// TTL or hop limit; 0 where the point has no packet.
    #[serde(default)]
    pub ttl: u8,
    /// TCP flags byte, 0 for others.
    #[serde(default)]
    pub tcp_flags: u8,
    /// Of the IP packet, in bytes; 0 where the point has none.
    #[serde(default)]
    pub length: u32,
    /// Of TCP; of DNS the message's identifier; else 0. [`TagPoint::Delivered`] has that of the SYN.
    #[serde(default)]
    pub sequence: u32,
}

/// Where on its way a packet was seen.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "point", rename_all = "snake_case")]
pub enum TagPoint {
    /// A device handed it to the kernel; its own and the namespace's packet filters come behind.
    Received,
    /// It was given to a device, past all packet filters.
    Sent,
    Dropped {
        /// `NETFILTER_DROP`, `NO_SOCKET`, … as this kernel names it; `UNREPORTED` before Linux 5.17.
        reason: String,
        /// The kernel's function, or its address without the right to names.
        function: String,
        /// Where in netfilter, when its function dropped it.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        hook: Option<Hook>,
    },
    /// A listener has a connection with it: its handshake is complete.
    Delivered,
    /// The socket that sent it is connected.
    Connected,
}

impl TagRequest {
    /// All tuples.
    pub fn tuples(&self) -> impl Iterator<Item = &TagTuple> {
        std::iter::once(&self.tuple).chain(&self.alternatives)
    }
}

impl TagAccounts {
    pub fn unaccounted(&self) -> i128 {
        let known = [self.kept, self.foreign_netns, self.beyond_limit, self.ring_full];
        i128::from(self.seen) - known.into_iter().map(i128::from).sum::<i128>()
    }

    /// Events that are missing among those told.
    pub fn lost(&self) -> u64 {
        self.beyond_limit + self.ring_full
    }
}

impl std::fmt::Display for TagTuple {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let end = |address: IpAddr, port: Option<u16>| match port {
            Some(port) => format!("{address} port {port}"),
            None => address.to_string(),
        };
        let from = self.source.map_or_else(|| "anywhere".to_owned(), |source| end(source, self.source_port));
        write!(f, "{} {from} → {}", self.protocol, end(self.destination, self.destination_port))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_identity_names_what_is_missing() {
        let accounts =
            TagAccounts { seen: 10, kept: 6, foreign_netns: 1, beyond_limit: 2, ring_full: 1, ..Default::default() };
        assert_eq!((accounts.unaccounted(), accounts.lost()), (0, 3));
    }

    #[test]
    fn a_tuple_reads_as_a_sentences_part() {
        let tuple = TagTuple {
            protocol: Protocol::Tcp,
            source: Some("10.0.0.1".parse().unwrap()),
            source_port: Some(40_000),
            destination: "10.0.0.2".parse().unwrap(),
            destination_port: Some(80),
        };
        assert_eq!(tuple.to_string(), "tcp 10.0.0.1 port 40000 → 10.0.0.2 port 80");
        let from_anywhere = TagTuple { source: None, source_port: None, ..tuple };
        assert_eq!(from_anywhere.to_string(), "tcp anywhere → 10.0.0.2 port 80");
    }
}
