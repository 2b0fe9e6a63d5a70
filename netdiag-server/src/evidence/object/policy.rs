//! NetworkPolicies (networking.k8s.io/v1).

use ipnet::IpNet;
use serde::Deserialize;

use super::{IntOrString, KubeProtocol, LabelSelector, Meta, null_default};

#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
pub struct NetworkPolicy {
    pub metadata: Meta,
    #[serde(default)]
    pub spec: NetworkPolicySpec,
}

#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct NetworkPolicySpec {
    pub pod_selector: LabelSelector,
    /// Defaulted by the API server: Ingress always, Egress when egress rules exist.
    pub policy_types: Vec<String>,
    pub ingress: Vec<PolicyRule>,
    pub egress: Vec<PolicyRule>,
}

/// One ingress or egress rule; `from` and `to` are both read as `peers`.
#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
#[serde(default)]
pub struct PolicyRule {
    #[serde(alias = "from", alias = "to", deserialize_with = "null_default")]
    pub peers: Vec<PolicyPeer>,
    #[serde(deserialize_with = "null_default")]
    pub ports: Vec<PolicyPort>,
}

#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PolicyPeer {
    pub pod_selector: Option<LabelSelector>,
    pub namespace_selector: Option<LabelSelector>,
    pub ip_block: Option<IpBlock>,
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct IpBlock {
    pub cidr: IpNet,
    #[serde(default)]
    pub except: Vec<IpNet>,
}

#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PolicyPort {
    pub protocol: KubeProtocol,
    pub port: Option<IntOrString>,
    pub end_port: Option<u16>,
}
