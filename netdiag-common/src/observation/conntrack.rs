//! Connection tracking of one network namespace: how full, what it could not do, and the settings in force.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::counter::Counter;

/// Sums over all CPUs since the namespace was made. Names as in the kernel's `ip_conntrack_stat`
/// (`net/netfilter/nf_conntrack_netlink.c`, `IPCTNL_MSG_CT_GET_STATS_CPU`). The kernel counts in 32 bits for each CPU: a
/// difference between two readings must wrap.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Conntrack {
    /// Entries of this namespace now.
    pub entries: u64,
    /// `nf_conntrack_max`: one limit for the whole kernel, compared with each namespace's own count.
    pub limit: u64,
    pub found: u64,
    pub invalid: u64,
    pub insert_failed: u64,
    /// Packets dropped because no entry could be made.
    pub drop: u64,
    pub early_drop: u64,
    pub search_restart: u64,
    pub clash_resolve: u64,
    pub chain_too_long: u64,
    /// Seconds that `failures` are about. 0 for a pod: the agent follows the statistics of the node's own namespace only.
    #[serde(default)]
    pub window_s: f64,
    /// As in [`FlowChanges::failures`](super::flow::FlowChanges::failures), without a pass over the table.
    #[serde(default)]
    pub failures: BTreeMap<String, Counter>,
    /// One per CPU, in the kernel's order.
    #[serde(default)]
    pub cpus: Vec<ConntrackCpu>,
    /// The sysctls `nf_conntrack_*` of this namespace, by name: timeouts, `tcp_loose`, `events`, `buckets`, whatever this
    /// kernel has.
    #[serde(default)]
    pub settings: BTreeMap<String, String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ConntrackCpu {
    pub cpu: u16,
    /// Counters that are not 0, by the kernel's name; `attribute_N` for one that this build has no name for.
    pub counters: BTreeMap<String, u64>,
}
