//! Slim Kubernetes objects: only what is judged, straight from the API's JSON.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;
use jiff::Timestamp;
use netdiag_common::observation::Protocol;
use serde::{Deserialize, Deserializer};

use super::meta::{Meta, ObjectRef};
use super::selector::LabelSelector;

/// What all slim objects share.
pub trait Object {
    /// As in YAML: `Service`.
    const KIND: &'static str;
    fn meta(&self) -> &Meta;
    fn reference(&self) -> ObjectRef {
        ObjectRef::new(Self::KIND, self.meta())
    }
}

macro_rules! object {
    ($($name:ident),*) => {$(
        impl Object for $name {
            const KIND: &'static str = stringify!($name);
            fn meta(&self) -> &Meta {
                &self.metadata
            }
        }
    )*};
}
object!(Namespace, Node, Service, EndpointSlice, NetworkPolicy, Event, ConfigMap);

impl Object for Pod {
    const KIND: &'static str = "Pod";
    fn meta(&self) -> &Meta {
        &self.metadata
    }
    fn reference(&self) -> ObjectRef {
        ObjectRef::new(Self::KIND, &self.metadata).on_node(&self.spec.node_name)
    }
}

/// JSON's `null` as the type's default: the API writes both `null` and nothing.
fn null_default<'de, D: Deserializer<'de>, T: Default + Deserialize<'de>>(deserializer: D) -> Result<T, D::Error> {
    Option::<T>::deserialize(deserializer).map(Option::unwrap_or_default)
}

/// A port by number or by the name of a container's port.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(untagged)]
pub enum IntOrString {
    Number(u16),
    Name(String),
}

impl std::fmt::Display for IntOrString {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Number(number) => write!(f, "{number}"),
            Self::Name(name) => f.write_str(name),
        }
    }
}

/// `TCP` unless said otherwise, as the API defaults it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KubeProtocol(pub Protocol);

impl Default for KubeProtocol {
    fn default() -> Self {
        Self(Protocol::Tcp)
    }
}

impl<'de> Deserialize<'de> for KubeProtocol {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let name = Option::<String>::deserialize(deserializer)?;
        match name.as_deref() {
            None | Some("TCP" | "") => Ok(Self(Protocol::Tcp)),
            Some("UDP") => Ok(Self(Protocol::Udp)),
            Some("SCTP") => Ok(Self(Protocol::Sctp)),
            Some(other) => Err(serde::de::Error::custom(format!("protocol {other:?} is not TCP, UDP or SCTP"))),
        }
    }
}

#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
pub struct Namespace {
    pub metadata: Meta,
}

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

    pub fn is_ready(&self) -> bool {
        self.status.conditions.iter().any(|c| c.kind == "Ready" && c.status == "True")
    }
}

/// One of `status.conditions`.
#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ObjectCondition {
    #[serde(rename = "type")]
    pub kind: String,
    pub status: String,
    pub reason: String,
    pub message: String,
    pub last_transition_time: Option<Timestamp>,
}

#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
pub struct Pod {
    pub metadata: Meta,
    #[serde(default)]
    pub spec: PodSpec,
    #[serde(default)]
    pub status: PodStatus,
}

#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PodSpec {
    pub node_name: String,
    pub host_network: bool,
    pub dns_policy: String,
    pub containers: Vec<Container>,
}

#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Container {
    pub name: String,
    pub ports: Vec<ContainerPort>,
    /// Set when the container has one; its content is kept as JSON for messages.
    pub readiness_probe: Option<serde_json::Value>,
}

#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ContainerPort {
    pub name: String,
    pub container_port: u16,
    pub protocol: KubeProtocol,
}

#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PodStatus {
    pub phase: String,
    #[serde(rename = "podIP")]
    pub pod_ip: String,
    #[serde(rename = "podIPs", deserialize_with = "null_default")]
    pub pod_ips: Vec<PodIp>,
    pub conditions: Vec<ObjectCondition>,
    pub container_statuses: Vec<ContainerStatus>,
}

#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
#[serde(default)]
pub struct PodIp {
    pub ip: String,
}

#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ContainerStatus {
    pub name: String,
    pub ready: bool,
    pub restart_count: u32,
    #[serde(rename = "containerID")]
    pub container_id: String,
    pub state: ContainerState,
    pub last_state: ContainerState,
}

#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
#[serde(default)]
pub struct ContainerState {
    pub running: Option<serde_json::Value>,
    pub waiting: Option<StateDetail>,
    pub terminated: Option<StateDetail>,
}

#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct StateDetail {
    pub reason: String,
    pub message: String,
    pub exit_code: i32,
}

impl Pod {
    pub fn addresses(&self) -> impl Iterator<Item = IpAddr> + '_ {
        let listed = self.status.pod_ips.iter().map(|ip| ip.ip.as_str());
        let single = Some(self.status.pod_ip.as_str()).filter(|_| self.status.pod_ips.is_empty());
        listed.chain(single).filter_map(|ip| ip.parse().ok())
    }

    pub fn condition(&self, kind: &str) -> Option<&ObjectCondition> {
        self.status.conditions.iter().find(|c| c.kind == kind)
    }

    pub fn is_ready(&self) -> bool {
        self.condition("Ready").is_some_and(|c| c.status == "True")
    }

    /// Succeeded or Failed: holds no address and serves nothing.
    pub fn is_finished(&self) -> bool {
        matches!(self.status.phase.as_str(), "Succeeded" | "Failed")
    }

    /// The number a named port has in this pod.
    pub fn named_port(&self, name: &str, protocol: Protocol) -> Option<u16> {
        let ports = self.spec.containers.iter().flat_map(|c| &c.ports);
        ports.filter(|p| p.name == name && p.protocol.0 == protocol).map(|p| p.container_port).next()
    }
}

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
pub struct TargetRef {
    pub kind: String,
    pub namespace: String,
    pub name: String,
    pub uid: String,
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

/// Deployment, ReplicaSet, DaemonSet or StatefulSet, as far as it explains missing pods.
#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
pub struct Workload {
    /// Filled by the source, since a list's items carry no kind.
    #[serde(default)]
    pub kind: String,
    pub metadata: Meta,
    #[serde(default)]
    pub spec: WorkloadSpec,
    #[serde(default)]
    pub status: WorkloadStatus,
}

impl Workload {
    pub fn reference(&self) -> ObjectRef {
        ObjectRef::new(&self.kind, &self.metadata)
    }
}

#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct WorkloadSpec {
    /// Absent for DaemonSets.
    pub replicas: Option<u32>,
    pub selector: LabelSelector,
    pub template: PodTemplate,
}

#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
#[serde(default)]
pub struct PodTemplate {
    pub metadata: Meta,
}

#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct WorkloadStatus {
    pub replicas: u32,
    pub ready_replicas: u32,
    /// DaemonSets only.
    pub desired_number_scheduled: u32,
    pub number_ready: u32,
    pub conditions: Vec<ObjectCondition>,
}

/// core/v1 Event, the few fields that explain something.
#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Event {
    pub metadata: Meta,
    pub involved_object: TargetRef,
    #[serde(rename = "type")]
    pub kind: String,
    pub reason: String,
    pub message: String,
    pub count: Option<u32>,
    pub last_timestamp: Option<Timestamp>,
    pub event_time: Option<Timestamp>,
}

/// Read for CoreDNS alone.
#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
#[serde(default)]
pub struct ConfigMap {
    pub metadata: Meta,
    #[serde(deserialize_with = "null_default")]
    pub data: BTreeMap<String, String>,
}
