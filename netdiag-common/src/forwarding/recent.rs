//! Lists of addresses that rules of iptables keep and ask for (`xt_recent.c`, Linux 6.18).

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

/// An address of a list.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RecentEntry {
    pub address: IpAddr,
    /// Time to live, or hop limit, of its last packet; 0 of an address that was written by hand.
    pub hops: u8,
    /// How long ago its packets were seen, as far as the list remembers them.
    pub ages_ms: Vec<u64>,
}

/// What the packet itself changed in a list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum RecentChange {
    /// Seen now, with this many hops left if that is known.
    Seen(Option<u8>),
    Removed,
    /// A rule that removes the oldest address may have removed this one.
    Reaped,
}
