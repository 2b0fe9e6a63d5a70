//! What kube-proxy says about itself on one node, asked on the node's loopback.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// Answers of `:10256/healthz` and `127.0.0.1:10249/{proxyMode,metrics,configz}`. A field is `None` when that endpoint did not answer.
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
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub settings: Option<KubeProxySettings>,
}

/// What of its configuration decides which rules it writes (`KubeProxyConfiguration`, `kubeproxy.config.k8s.io/v1alpha1`).
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct KubeProxySettings {
    /// On which of the node's addresses node ports are: networks, or `primary`. Empty for what the mode takes by itself.
    pub node_port_addresses: Vec<String>,
    /// The address that it takes for the node's own instead of the one that the API has; unspecified or empty for none.
    pub bind_address: String,
    /// How it tells traffic of the cluster's own pods: `ClusterCIDR`, `NodeCIDR`, `BridgeInterface`, `InterfaceNamePrefix`; empty for
    /// what it takes by itself.
    pub detect_local_mode: String,
    /// Networks of pods.
    pub cluster_cidrs: Vec<String>,
    /// Everything that goes to a cluster IP leaves with the node's address.
    pub masquerade_all: bool,
    /// In IPVS mode: the node answers for an address on the interface alone that has it.
    pub strict_arp: bool,
}
