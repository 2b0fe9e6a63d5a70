//! Services and the EndpointSlices behind them.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;
use serde::Deserialize;

use super::{IntOrString, KubeProtocol, Meta, TargetRef, null_default};

#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
pub struct Service {
    pub metadata: Meta,
    #[serde(default)]
    pub spec: ServiceSpec,
    #[serde(default)]
    pub status: ServiceStatus,
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
    /// `PreferClose`, `PreferSameZone`, `PreferSameNode`: the slices' controller writes hints.
    pub traffic_distribution: Option<String>,
    pub session_affinity: String,
    /// `SingleStack`, `PreferDualStack`, `RequireDualStack`; empty for ExternalName Services.
    pub ip_family_policy: String,
    pub publish_not_ready_addresses: bool,
    #[serde(rename = "externalIPs", deserialize_with = "null_default")]
    pub external_ips: Vec<String>,
    #[serde(deserialize_with = "null_default")]
    pub load_balancer_source_ranges: Vec<String>,
    /// Where load balancers ask a node whether it has an endpoint; 0 for none.
    pub health_check_node_port: u16,
}

#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ServiceStatus {
    pub load_balancer: LoadBalancerStatus,
}

#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
#[serde(default)]
pub struct LoadBalancerStatus {
    #[serde(deserialize_with = "null_default")]
    pub ingress: Vec<LoadBalancerIngress>,
}

#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct LoadBalancerIngress {
    /// Empty when the load balancer is known by a name alone.
    pub ip: String,
    /// Empty when it has an address.
    pub hostname: String,
    /// `VIP` unless said otherwise; with `Proxy` the nodes leave the address to the load balancer.
    pub ip_mode: String,
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

    /// The load balancer's addresses that nodes translate themselves.
    pub fn load_balancer_ips(&self) -> impl Iterator<Item = IpAddr> + '_ {
        let ingress = self.status.load_balancer.ingress.iter().filter(|ingress| ingress.ip_mode != "Proxy");
        ingress.filter_map(|ingress| ingress.ip.parse().ok())
    }

    /// `spec.externalIPs`
    pub fn listed_external_ips(&self) -> impl Iterator<Item = IpAddr> + '_ {
        self.spec.external_ips.iter().filter_map(|ip| ip.parse().ok())
    }

    /// Addresses from outside of the cluster that nodes translate: load balancers' and `externalIPs`.
    pub fn external_ips(&self) -> impl Iterator<Item = IpAddr> + '_ {
        self.load_balancer_ips().chain(self.listed_external_ips())
    }

    /// Where people outside come to it: every address of load balancers, also those that nodes leave to them, and `externalIPs`.
    pub fn outside_ips(&self) -> impl Iterator<Item = IpAddr> + '_ {
        let ingress = self.status.load_balancer.ingress.iter();
        ingress.filter_map(|ingress| ingress.ip.parse().ok()).chain(self.listed_external_ips())
    }

    /// Load balancers that are known by a name alone.
    pub fn load_balancer_names(&self) -> impl Iterator<Item = &str> + '_ {
        let ingress = self.status.load_balancer.ingress.iter().filter(|ingress| ingress.ip.is_empty());
        ingress.map(|ingress| ingress.hostname.as_str()).filter(|name| !name.is_empty())
    }

    /// The clients that the load balancer's addresses take, as far as they can be read.
    pub fn load_balancer_source_ranges(&self) -> impl Iterator<Item = IpNet> + '_ {
        self.spec.load_balancer_source_ranges.iter().filter_map(|range| range.trim().parse().ok())
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
    pub hints: Option<EndpointHints>,
}

/// Whom an endpoint is meant for (`discovery.k8s.io/v1`, `EndpointHints`).
#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct EndpointHints {
    #[serde(deserialize_with = "null_default")]
    pub for_zones: Vec<HintedFor>,
    /// Since Kubernetes 1.33 (KEP-3015).
    #[serde(deserialize_with = "null_default")]
    pub for_nodes: Vec<HintedFor>,
}

#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
#[serde(default)]
pub struct HintedFor {
    pub name: String,
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
