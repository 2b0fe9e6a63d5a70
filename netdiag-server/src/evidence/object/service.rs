//! Services and the EndpointSlices behind them.

use std::collections::BTreeMap;
use std::net::IpAddr;

use serde::Deserialize;

use super::{IntOrString, KubeProtocol, Meta, TargetRef, null_default};

#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
pub struct Service {
    pub metadata: Meta,
    #[serde(default)]
    pub spec: ServiceSpec,
}

#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ServiceSpec {
    /// `ClusterIP`, `NodePort`, `LoadBalancer`, `ExternalName`; empty means `ClusterIP`.
    #[serde(rename = "type")]
    pub kind: String,
    /// `None` for headless Services.
    #[serde(rename = "clusterIP")]
    pub cluster_ip: String,
    #[serde(rename = "clusterIPs")]
    pub cluster_ips: Vec<String>,
    #[serde(deserialize_with = "null_default")]
    pub selector: BTreeMap<String, String>,
    pub ports: Vec<ServicePort>,
    pub external_name: String,
    pub internal_traffic_policy: String,
    pub external_traffic_policy: String,
    pub session_affinity: String,
    pub publish_not_ready_addresses: bool,
}

#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ServicePort {
    pub name: String,
    pub protocol: KubeProtocol,
    pub port: u16,
    pub target_port: Option<IntOrString>,
    pub node_port: u16,
}

impl Service {
    /// The virtual addresses; empty for headless and ExternalName Services.
    pub fn cluster_ips(&self) -> Vec<IpAddr> {
        let listed: Vec<IpAddr> = self.spec.cluster_ips.iter().filter_map(|ip| ip.parse().ok()).collect();
        if listed.is_empty() { self.spec.cluster_ip.parse().into_iter().collect() } else { listed }
    }

    pub fn is_headless(&self) -> bool {
        self.spec.cluster_ip == "None"
    }

    /// `80/TCP (http), 443/TCP (https)`.
    pub fn ports_in_words(&self) -> String {
        let words = self.spec.ports.iter().map(|port| match port.name.as_str() {
            "" => format!("{}/{}", port.port, port.protocol.0.kubernetes()),
            name => format!("{}/{} ({name})", port.port, port.protocol.0.kubernetes()),
        });
        words.collect::<Vec<_>>().join(", ")
    }
}

#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct EndpointSlice {
    pub metadata: Meta,
    #[serde(default)]
    pub address_type: String,
    #[serde(default, deserialize_with = "null_default")]
    pub endpoints: Vec<Endpoint>,
    #[serde(default, deserialize_with = "null_default")]
    pub ports: Vec<EndpointPort>,
}

#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Endpoint {
    pub addresses: Vec<String>,
    pub conditions: EndpointConditions,
    #[serde(deserialize_with = "null_default")]
    pub node_name: String,
    pub target_ref: Option<TargetRef>,
    /// Set when the endpoint is meant for some zones or nodes alone; then a proxy may leave it out.
    pub hints: Option<serde_json::Value>,
}

#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
#[serde(default)]
pub struct EndpointConditions {
    /// Missing means true (EndpointSlice API).
    pub ready: Option<bool>,
    pub serving: Option<bool>,
    pub terminating: Option<bool>,
}

#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
#[serde(default)]
pub struct EndpointPort {
    #[serde(deserialize_with = "null_default")]
    pub name: String,
    pub port: Option<u16>,
    pub protocol: KubeProtocol,
}

impl EndpointSlice {
    /// The Service it belongs to, by the label `kubernetes.io/service-name`.
    pub fn service_name(&self) -> &str {
        self.metadata.labels.get("kubernetes.io/service-name").map_or("", String::as_str)
    }
}
