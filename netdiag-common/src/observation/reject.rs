//! Refusals on the wire: ICMP errors and TCP resets, sent and received, with the packet that caused them.
//!
//! A rule that rejects and a rule that drops leave the same dropped packet; [`RejectGroup::explains`] tells them apart.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::Owner;
use super::kfree_skb::{DropGroup, DropTuple};
use crate::Gap;

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Rejects {
    /// The window's start; counts are what happened since.
    pub since: Timestamp,
    /// Seconds of the window.
    pub window_s: f64,
    /// Of the whole kernel, not only of this node's namespaces.
    pub accounts: RejectAccounts,
    /// Most packets first.
    pub groups: Vec<RejectGroup>,
    /// Groups beyond those listed; their packets are in `accounts` all the same.
    #[serde(default)]
    pub omitted_groups: u64,
    /// What this kernel or these rights do not let us say. Always among it: resets that a packet filter sends
    /// (`reject with tcp reset`) pass none of the kernel's tracepoints.
    #[serde(default)]
    pub unseen: Vec<Gap>,
}

/// Each term has its own kernel counter. The identities:
/// `total = icmp_sent + resets_sent + resets_received + errors` and
/// `total = attributed + coarse + foreign_netns + total_only + unparsed + shed + unaccounted`, where `unaccounted` must be 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct RejectAccounts {
    pub total: u64,
    pub icmp_sent: u64,
    pub resets_sent: u64,
    pub resets_received: u64,
    /// Errors that the network told a socket that is not TCP's.
    pub errors: u64,
    /// Counted with the full key.
    pub attributed: u64,
    /// Counted with a coarse key (namespace and kind) because the set was full.
    pub coarse: u64,
    /// Counted with either key, in a namespace that is not this node's; not in `attributed` or `coarse`.
    pub foreign_netns: u64,
    /// In no key, because the coarse set was full too.
    pub total_only: u64,
    /// The packet's header could not be read.
    pub unparsed: u64,
    /// In a flood, beyond what the programs take apart: counted by kind alone.
    #[serde(default)]
    pub shed: u64,
    /// Events that found the programs running on that CPU and were not counted anywhere.
    pub missed: u64,
    /// Events whose key user space forgot because its window was full; part of the terms above.
    pub forgotten: u64,
}

impl RejectAccounts {
    /// What the identity of keys cannot explain; 0 unless a counter lies.
    pub fn unaccounted(&self) -> i64 {
        let parts = self.attributed + self.coarse + self.foreign_netns + self.total_only + self.unparsed + self.shed;
        self.total.cast_signed() - parts.cast_signed()
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RejectGroup {
    pub netns: Owner,
    pub kind: RejectKind,
    /// The packet that was refused; for what a socket was told, the packets that this socket sends. None at the coarse
    /// level.
    #[serde(default)]
    pub tuple: Option<DropTuple>,
    pub packets: u64,
    pub first_at: Timestamp,
    pub last_at: Timestamp,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(tag = "what", rename_all = "snake_case")]
pub enum RejectKind {
    /// An ICMP error went out. IPv4 only: the kernel has no such tracepoint for ICMPv6.
    IcmpSent { icmp_type: u8, code: u8 },
    /// A RST answered a packet. The reason is the kernel's `sk_rst_reason` without its prefix, `UNREPORTED` before Linux
    /// 6.10.
    ResetSent { reason: String },
    /// A RST ended a connection of ours, by the application's or the kernel's own decision.
    Aborted { reason: String },
    /// A RST came for a socket in this state (`SYN_SENT`, `ESTABLISHED`, …).
    ResetReceived { state: String },
    /// A socket that is not TCP's was told of an error, by ICMP in nearly all cases: `ECONNREFUSED` is a closed port.
    Error { errno: i32 },
}

impl RejectGroup {
    /// Whether dropped packets were answered with these refusals: same namespace, same kind of packet.
    pub fn explains(&self, drop: &DropGroup) -> bool {
        let answers = matches!(self.kind, RejectKind::IcmpSent { .. } | RejectKind::ResetSent { .. });
        let (Some(mine), Some(theirs)) = (&self.tuple, &drop.tuple) else { return false };
        answers && self.netns == drop.netns && mine == theirs
    }
}

impl RejectKind {
    /// RFC 792, RFC 1122 and RFC 1812 in a few words; None for what is not an error of IPv4.
    pub fn icmp_meaning(&self) -> Option<&'static str> {
        let Self::IcmpSent { icmp_type, code } = self else { return None };
        Some(match (icmp_type, code) {
            (3, 0) => "network unreachable",
            (3, 1) => "host unreachable",
            (3, 2) => "protocol unreachable",
            (3, 3) => "port unreachable",
            (3, 4) => "packet too big",
            (3, 5) => "source route failed",
            (3, 9) => "network prohibited",
            (3, 10) => "host prohibited",
            (3, 13) => "prohibited by a filter",
            (3, _) => "destination unreachable",
            (5, _) => "redirect",
            (11, 0) => "time to live exceeded",
            (11, _) => "fragments missing",
            (12, _) => "bad header",
            _ => return None,
        })
    }
}
