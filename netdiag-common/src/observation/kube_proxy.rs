//! What kube-proxy says about itself on one node, asked on the node's loopback.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// Answers of `:10256/healthz` and `127.0.0.1:10249/{proxyMode,metrics}`. A field is `None` when that endpoint did not answer.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct KubeProxy {
    /// A process named `kube-proxy` runs in this node's network namespace.
    pub running: bool,
    /// Status code of `/healthz`: 200 healthy, 503 late with its rules.
    #[serde(default)]
    pub healthz_status: Option<u16>,
    /// `iptables`, `nftables` or `ipvs`.
    #[serde(default)]
    pub mode: Option<String>,
    /// `kubeproxy_sync_proxy_rules_last_timestamp_seconds`.
    #[serde(default)]
    pub last_sync: Option<Timestamp>,
    /// `kubeproxy_sync_proxy_rules_last_queued_timestamp_seconds`: later than `last_sync` when work is waiting.
    #[serde(default)]
    pub last_queued: Option<Timestamp>,
    /// Failed restores or transactions since start (`kubeproxy_sync_proxy_rules_{iptables_restore,nftables_sync}_failures_total`).
    #[serde(default)]
    pub sync_failures: Option<u64>,
}
