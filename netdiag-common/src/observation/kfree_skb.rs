//! Packets the kernel dropped (tracepoint `skb:kfree_skb`), counted in the kernel on three levels.

use std::net::{IpAddr, SocketAddr};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::rules::Hook;
use super::{Owner, Protocol};
use crate::Gap;

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Drops {
    /// The window's start; counts are what happened since.
    pub since: Timestamp,
    /// Seconds of the window.
    pub window_s: f64,
    /// The counters of the identity, for the window.
    pub accounts: DropAccounts,
    /// Exact totals by reason, of the whole kernel and not only of this node's namespaces; most first.
    #[serde(default)]
    pub reasons: Vec<ReasonTotal>,
    /// Most packets first.
    pub groups: Vec<DropGroup>,
    /// Groups beyond those listed; their packets are in `accounts` all the same.
    #[serde(default)]
    pub omitted_groups: u64,
    /// A few whole packets, newest first.
    pub exemplars: Vec<DropExemplar>,
    /// What this kernel or these rights do not let us say about a drop: names, hooks, translations.
    #[serde(default)]
    pub unseen: Vec<Gap>,
    /// Signals whose time of first sight was forgotten for want of room; theirs starts anew when they come back.
    #[serde(default)]
    pub forgotten_sights: u64,
}

/// Each term has its own kernel counter. The identity, in packets:
/// `total = attributed + coarse + foreign_netns + reason_only + link + foreign + unparsed + unaccounted`, where
/// `unaccounted` must be 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct DropAccounts {
    /// Every event of the tracepoint.
    pub total: u64,
    /// Counted with the full key.
    pub attributed: u64,
    /// Counted with the coarse key (namespace, interface, reason, place) because the set was full.
    pub coarse: u64,
    /// Counted with either key, in a namespace that is not this node's; not in `attributed` or `coarse`.
    #[serde(default)]
    pub foreign_netns: u64,
    /// Counted by reason alone because the coarse set was full too.
    pub reason_only: u64,
    /// Network packets that are not IP (ARP, an unknown EtherType), of the whole kernel. Groups name their place and
    /// EtherType where they happened in this node's namespaces.
    #[serde(default)]
    pub link: u64,
    /// No network packets (vsock, unix, netlink).
    pub foreign: u64,
    /// IP, but the header could not be read; of the whole kernel, with groups as for `link`.
    pub unparsed: u64,
    /// Of `link` and `unparsed`: those in no group, because the set of their key was full.
    #[serde(default)]
    pub unplaced: u64,
    /// Events that the kernel did not hand to us because the program was already running on that CPU
    /// (`recursion_misses`); not part of `total`.
    pub missed: u64,
    /// Packets whose tuple user space forgot because its window was full; already part of the terms above.
    pub forgotten: u64,
    /// Exemplars: sent, held back by the rate limit, lost because the ring was full.
    pub exemplars_sent: u64,
    pub exemplars_suppressed: u64,
    pub exemplars_lost: u64,
}

impl DropAccounts {
    /// What the identity cannot explain; 0 unless a counter lies.
    pub fn unaccounted(&self) -> i64 {
        let parts = self.attributed
            + self.coarse
            + self.foreign_netns
            + self.reason_only
            + self.link
            + self.foreign
            + self.unparsed;
        self.total.cast_signed() - parts.cast_signed()
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReasonTotal {
    /// As in [`DropGroup::reason`].
    pub reason: String,
    pub packets: u64,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DropGroup {
    pub netns: Owner,
    /// Name in the running kernel's BTF without its prefix: `NETFILTER_DROP`. `UNREPORTED` on kernels that give no reason
    /// (before 5.17).
    pub reason: String,
    /// Function that freed the packet: `nft_do_chain`, or hex without the right to read symbols.
    pub location: String,
    pub ifindex: u32,
    /// None at the coarse level.
    #[serde(default)]
    pub direction: Option<Direction>,
    /// Where in netfilter, as the stacks of this group's exemplars say. None outside netfilter, when no stack was taken, and
    /// when stacks disagree.
    #[serde(default)]
    pub hook: Option<Hook>,
    /// None at the coarse level.
    #[serde(default)]
    pub tuple: Option<DropTuple>,
    /// For packets that are not IP, or whose IP header could not be read; they have no tuple.
    #[serde(default)]
    pub ether_type: Option<u16>,
    /// Whether the packet had a conntrack entry. None where that cannot be read.
    #[serde(default)]
    pub tracked: Option<bool>,
    /// The connection's destination before and after DNAT, of the group's newest connection. None without DNAT.
    #[serde(default)]
    pub translation: Option<Translation>,
    pub packets: u64,
    pub bytes: u64,
    /// First and last packet in the window.
    pub first_at: Timestamp,
    pub last_at: Timestamp,
    /// First packet ever, as far back as the agent remembers: an hour of silence, or want of room, makes it forget.
    #[serde(default)]
    pub since: Option<Timestamp>,
}

/// Which way the packet was going through its namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Direction {
    /// Received by `ifindex` and not yet sent on: also packets that would have been forwarded.
    In,
    /// Received by another interface, being sent by `ifindex`.
    Forwarded,
    /// Sent by this namespace itself.
    Out,
}

/// What DNAT made of a connection's destination. Port 0 for protocols without ports.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Translation {
    /// As the client sent it: a Service's address.
    pub before: SocketAddr,
    /// Where it went: an endpoint.
    pub after: SocketAddr,
}

/// The service side of the connection: the lower port, as the kernel program keeps it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct DropTuple {
    pub source: IpAddr,
    pub destination: IpAddr,
    pub protocol: Option<Protocol>,
    pub protocol_number: u8,
    /// 0 for protocols without ports.
    pub service_port: u16,
    /// Whether `service_port` is the destination's.
    pub port_is_destination: bool,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DropExemplar {
    pub at: Timestamp,
    pub netns: Owner,
    pub reason: String,
    pub location: String,
    pub ifindex: u32,
    pub source: IpAddr,
    pub destination: IpAddr,
    pub protocol_number: u8,
    pub source_port: u16,
    pub destination_port: u16,
    /// TCP flags byte, 0 for others.
    #[serde(default)]
    pub tcp_flags: u8,
    pub length: u32,
    #[serde(default)]
    pub direction: Option<Direction>,
    #[serde(default)]
    pub hook: Option<Hook>,
    #[serde(default)]
    pub tracked: Option<bool>,
    #[serde(default)]
    pub translation: Option<Translation>,
    /// Kernel functions, innermost first; empty when stacks are off.
    #[serde(default)]
    pub stack: Vec<String>,
}
