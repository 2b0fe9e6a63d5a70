//! Datagrams that reached a socket and found no room in it.
//!
//! Datagrams for closed ports are among the rejects.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::Owner;
use crate::Gap;

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Udp {
    /// The window's start; counts are what happened since.
    pub since: Timestamp,
    /// Seconds of the window.
    pub window_s: f64,
    /// Of the whole kernel, not only of this node's namespaces.
    pub accounts: UdpAccounts,
    /// Most packets first.
    pub groups: Vec<UdpGroup>,
    /// Groups beyond those listed; their packets are in `accounts` all the same.
    #[serde(default)]
    pub omitted_groups: u64,
    /// What this kernel or these rights do not let us say.
    #[serde(default)]
    pub unseen: Vec<Gap>,
}

/// Each term has its own kernel counter. The identity, in packets:
/// `total = attributed + coarse + foreign_netns + total_only + unaccounted`, where `unaccounted` must be 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct UdpAccounts {
    pub total: u64,
    /// Counted by namespace and port.
    pub attributed: u64,
    /// Counted by namespace alone because the set was full.
    pub coarse: u64,
    /// Counted with either key, in a namespace that is not this node's; not in `attributed` or `coarse`.
    pub foreign_netns: u64,
    /// In no key, because the coarse set was full too.
    pub total_only: u64,
    /// Events that found the programs running on that CPU and were not counted anywhere.
    pub missed: u64,
    /// Events whose key user space forgot because its window was full; part of the terms above.
    pub forgotten: u64,
}

impl UdpAccounts {
    /// What the identity cannot explain; 0 unless a counter lies.
    pub fn unaccounted(&self) -> i64 {
        let parts = self.attributed + self.coarse + self.foreign_netns + self.total_only;
        self.total.cast_signed() - parts.cast_signed()
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UdpGroup {
    pub netns: Owner,
    /// The receiving socket's port; None at the coarse level.
    #[serde(default)]
    pub port: Option<u16>,
    /// Why it was not queued: `ENOMEM` (12) is a full receive buffer, `ENOBUFS` (105) the memory of all UDP sockets.
    pub errno: i32,
    pub packets: u64,
    pub first_at: Timestamp,
    pub last_at: Timestamp,
}
