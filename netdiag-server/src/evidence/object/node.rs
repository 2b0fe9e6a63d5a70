//! Nodes: addresses, pod networks, readiness.

use std::net::IpAddr;

use ipnet::IpNet;
use serde::Deserialize;

use super::{Meta, ObjectCondition, null_default};

/// What a node's zone is known by (k8s.io/api/core/v1, `LabelTopologyZone`).
pub const ZONE_LABEL: &str = "topology.kubernetes.io/zone";

#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
pub struct Node {
    pub metadata: Meta,
    #[serde(default)]
    pub spec: NodeSpec,
    #[serde(default)]
    pub status: NodeStatus,
}

#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct NodeSpec {
    #[serde(rename = "podCIDRs")]
    pub pod_cidrs: Vec<IpNet>,
    pub unschedulable: bool,
}

#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct NodeStatus {
    #[serde(deserialize_with = "null_default")]
    pub addresses: Vec<NodeAddress>,
    #[serde(deserialize_with = "null_default")]
    pub conditions: Vec<ObjectCondition>,
}

#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
#[serde(default)]
pub struct NodeAddress {
    #[serde(rename = "type")]
    pub kind: String,
    pub address: String,
}

impl Node {
    /// The addresses of type InternalIP.
    pub fn internal_ips(&self) -> impl Iterator<Item = IpAddr> + '_ {
        self.status.addresses.iter().filter(|a| a.kind == "InternalIP").filter_map(|a| a.address.parse().ok())
    }

    /// Of [`ZONE_LABEL`]; empty without one.
    pub fn zone(&self) -> &str {
        self.metadata.labels.get(ZONE_LABEL).map_or("", String::as_str)
    }

    pub fn is_ready(&self) -> bool {
        self.status.conditions.iter().any(|c| c.kind == "Ready" && c.status == "True")
    }
}
