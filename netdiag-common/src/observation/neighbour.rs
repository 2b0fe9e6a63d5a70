//! Hosts on the link that do not answer, and how full the kernel's neighbour tables are.

use std::collections::BTreeMap;
use std::net::IpAddr;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::counter::Counter;
use crate::Gap;

#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Neighbours {
    /// As in [`Counters::since`](super::counter::Counters::since).
    #[serde(default)]
    pub since: Option<Timestamp>,
    #[serde(default)]
    pub window_s: f64,
    /// Entries of this namespace in state `failed` or `incomplete`.
    pub unresolved: Vec<Unresolved>,
    /// How many entries of this namespace are in each state.
    pub states: BTreeMap<String, u64>,
    /// One per family. The kernel has one table and one limit for all its namespaces.
    pub tables: Vec<NeighbourTable>,
    /// What was not read or not listed, and why; empty when complete.
    #[serde(default)]
    pub left_out: Vec<String>,
    /// Those that the kernel asked for in vain during the window, counted as it happened; None when no program counts them.
    #[serde(default)]
    pub failures: Option<Failures>,
    /// What this kernel or these rights do not let the programs count.
    #[serde(default)]
    pub unseen: Vec<Gap>,
}

/// Failures of neighbours of one namespace.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Failures {
    /// The window's start; counts are what happened since.
    pub since: Timestamp,
    /// Seconds of the window.
    pub window_s: f64,
    /// Of the whole kernel, not only of this namespace.
    pub accounts: FailureAccounts,
    /// Most often first.
    pub groups: Vec<Failure>,
    /// Groups beyond those listed; their failures are in `accounts` all the same.
    #[serde(default)]
    pub omitted_groups: u64,
}

/// Each term has its own kernel counter. The identity, in failures of either kind:
/// `total = attributed + coarse + foreign_netns + total_only + unaccounted`, where `unaccounted` must be 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct FailureAccounts {
    pub total: u64,
    /// Hosts that were asked for in vain.
    pub failed: u64,
    /// Entries for which there was no room.
    pub refused: u64,
    /// Counted by namespace, device and address.
    pub attributed: u64,
    /// Counted by namespace and device alone because the set was full.
    pub coarse: u64,
    /// Counted with either key, in a namespace that is not this node's; not in `attributed` or `coarse`.
    pub foreign_netns: u64,
    /// In no key, because the coarse set was full too.
    pub total_only: u64,
    /// Failures that the kernel counted and the programs did not see; they are in no other term.
    pub missed: u64,
    /// Failures whose key user space forgot because its window was full; part of the terms above.
    pub forgotten: u64,
}

impl FailureAccounts {
    /// What the identity cannot explain; 0 unless a counter lies.
    pub fn unaccounted(&self) -> i64 {
        let parts = self.attributed + self.coarse + self.foreign_netns + self.total_only;
        self.total.cast_signed() - parts.cast_signed()
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// None at the coarse level.
    #[serde(default)]
    pub address: Option<IpAddr>,
    pub link_index: u32,
    /// Name of the device; empty when it went away meanwhile.
    #[serde(default)]
    pub device: String,
    pub kind: FailureKind,
    pub times: u64,
    pub first_at: Timestamp,
    pub last_at: Timestamp,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FailureKind {
    /// Asked for until the kernel gave up: packets for it were thrown away.
    Failed,
    /// Not asked for, because the table was full (`gc_thresh3`), or there was no memory.
    Refused,
}

/// A host whose link-layer address the kernel asked for and has not got.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unresolved {
    pub address: IpAddr,
    pub link_index: u32,
    /// Name of the device; empty when it went away meanwhile.
    #[serde(default)]
    pub device: String,
    /// `failed`: asked in vain. `incomplete`: asked, no answer yet.
    pub state: String,
    /// Milliseconds since the entry last changed its state.
    #[serde(default)]
    pub changed_ms: Option<u64>,
    /// Milliseconds since somebody wanted to send to it.
    #[serde(default)]
    pub used_ms: Option<u64>,
    /// Questions sent since the last answer.
    #[serde(default)]
    pub probes: Option<u32>,
    /// First look, of those without a good one after it, that found it so.
    #[serde(default)]
    pub first_at: Option<Timestamp>,
}

/// A neighbour table (`RTM_GETNEIGHTBL`), of the whole kernel.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct NeighbourTable {
    /// `arp_cache` or `ndisc_cache`.
    pub name: String,
    /// Entries of all namespaces.
    pub entries: u32,
    /// Below `gc_thresh1` entries nothing is collected, above `gc_thresh2` old ones are, and at `gc_thresh3` new ones are
    /// refused.
    pub gc_thresh1: u32,
    pub gc_thresh2: u32,
    pub gc_thresh3: u32,
    /// `struct ndt_stats` by its names: `allocs`, `res_failed`, `forced_gc_runs`, `table_fulls`, …
    pub statistics: BTreeMap<String, Counter>,
}
