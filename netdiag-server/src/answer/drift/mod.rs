//! What nodes have programmed against what is intended, schema `netdiag.drift/v1`.

use jiff::Timestamp;
use netdiag_common::Gap;
use netdiag_common::observation::service_rules::Proxier;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{NotSeen, not_seen};
use crate::drift::{Difference, Drift, Kind, NodeDrift};
use crate::evidence::KindName;

mod text;

pub const DRIFT_SCHEMA: &str = "netdiag.drift/v1";
/// Differences listed for one node. A node without any rules is one difference; this many single ones have one cause.
const MAX_DIFFERENCES: usize = 200;

/// What `netdiag drift` says.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct DriftAnswer {
    /// Always `netdiag.drift/v1`.
    pub schema: String,
    pub cluster: String,
    /// RFC 3339.
    #[schemars(with = "String")]
    pub at: Timestamp,
    pub status: DriftStatus,
    pub nodes: Vec<NodeEntry>,
    pub not_seen: Vec<NotSeen>,
}

/// The worst of all nodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(inline)]
pub enum DriftStatus {
    /// Everything of the nodes was compared, and is as intended. What is not known of the cluster itself is in `not_seen`.
    Same,
    Drift,
    /// What was compared is as intended, and not everything was.
    Unknown,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct NodeEntry {
    pub node: String,
    pub status: DriftStatus,
    /// `nftables`, `iptables_nft`, `iptables_legacy`, `ipvs` or `none`; empty when the rules could not be read.
    pub proxier: String,
    /// Addresses and node ports of Service ports that were compared.
    pub compared: usize,
    /// Those not compared because they changed less than 10 s before.
    pub settling: usize,
    /// Packets of pods that NetworkPolicies decide about, and that were followed through the node's rules.
    pub policed: usize,
    /// The first 200.
    pub differences: Vec<DifferenceEntry>,
    /// Differences of this node that are not listed.
    pub left_out: usize,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct DifferenceEntry {
    /// `not_hooked`, `no_rules`, `two_proxiers`, `missing`, `endpoints`, `other_service`, `affinity`, `sources`, `leftover`, `route`,
    /// `mtu`, `hairpin`, `bridge_hooks`, `flow`, `masquerade`, `policy`, `foreign_drop`, `overlap`,
    /// `plugin_leftover`, `node_port_addresses` or `health_port`.
    pub kind: String,
    /// `shop/web:http`; empty for what is about the whole node.
    pub service: String,
    /// `10.96.0.7:80/tcp`, `node port 30080/tcp (IPv4)`; empty for what is about the whole node.
    pub entrance: String,
    pub expected: String,
    pub found: String,
    /// Where the rule is or should be.
    pub rule: String,
}

/// Puts the comparison into words. Pure.
pub fn build(drift: &Drift, at: Timestamp) -> DriftAnswer {
    let nodes: Vec<NodeEntry> = drift.nodes.iter().map(node).collect();
    let kinds = [KindName::Nodes, KindName::Services, KindName::EndpointSlices];
    let of_objects: Vec<&Gap> =
        kinds.into_iter().filter_map(|kind| kind.gap(&drift.cluster)).chain(&drift.cluster.unread).collect();
    let of_nodes = drift.nodes.iter().flat_map(|node| node.gaps.iter().chain(&node.cluster_gaps));
    let not_seen = not_seen::grouped(of_nodes.chain(of_objects.iter().copied()));
    let is_unknown = |node: &NodeEntry| node.status == DriftStatus::Unknown;
    let status = match () {
        () if nodes.iter().any(|node| node.status == DriftStatus::Drift) => DriftStatus::Drift,
        () if nodes.is_empty() || nodes.iter().any(is_unknown) || !of_objects.is_empty() => DriftStatus::Unknown,
        () => DriftStatus::Same,
    };
    DriftAnswer { schema: DRIFT_SCHEMA.to_owned(), cluster: drift.cluster.name.clone(), at, status, nodes, not_seen }
}

fn node(node: &NodeDrift) -> NodeEntry {
    NodeEntry {
        node: node.node.clone(),
        status: match () {
            () if !node.differences.is_empty() => DriftStatus::Drift,
            () if !node.gaps.is_empty() => DriftStatus::Unknown,
            () => DriftStatus::Same,
        },
        proxier: node.proxier.map(proxier).unwrap_or_default().to_owned(),
        compared: node.compared,
        settling: node.settling,
        policed: node.policed,
        differences: node.differences.iter().take(MAX_DIFFERENCES).map(entry).collect(),
        left_out: node.differences.len().saturating_sub(MAX_DIFFERENCES),
    }
}

fn entry(difference: &Difference) -> DifferenceEntry {
    DifferenceEntry {
        kind: kind(difference.kind).to_owned(),
        service: difference.service.clone(),
        entrance: difference.entrance.map(|entrance| entrance.to_string()).unwrap_or_default(),
        expected: difference.expected.clone(),
        found: difference.found.clone(),
        rule: difference.rule.clone(),
    }
}

fn kind(kind: Kind) -> &'static str {
    match kind {
        Kind::NotHooked => "not_hooked",
        Kind::NoRules => "no_rules",
        Kind::TwoProxiers => "two_proxiers",
        Kind::Missing => "missing",
        Kind::Endpoints => "endpoints",
        Kind::OtherService => "other_service",
        Kind::Affinity => "affinity",
        Kind::Sources => "sources",
        Kind::NodePortAddresses => "node_port_addresses",
        Kind::HealthPort => "health_port",
        Kind::Leftover => "leftover",
        Kind::Route => "route",
        Kind::Mtu => "mtu",
        Kind::Hairpin => "hairpin",
        Kind::BridgeHooks => "bridge_hooks",
        Kind::Flow => "flow",
        Kind::Masquerade => "masquerade",
        Kind::Policy => "policy",
        Kind::ForeignDrop => "foreign_drop",
        Kind::Overlap => "overlap",
        Kind::PluginLeft => "plugin_leftover",
    }
}

fn proxier(proxier: Proxier) -> &'static str {
    match proxier {
        Proxier::Nftables => "nftables",
        Proxier::IptablesNft => "iptables_nft",
        Proxier::IptablesLegacy => "iptables_legacy",
        Proxier::Ipvs => "ipvs",
        Proxier::None => "none",
    }
}
