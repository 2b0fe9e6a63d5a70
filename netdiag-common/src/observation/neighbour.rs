//! Hosts on the link that do not answer, and how full the kernel's neighbour tables are.

use std::collections::BTreeMap;
use std::net::IpAddr;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::counter::Counter;

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
