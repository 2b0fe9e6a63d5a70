//! Slim Kubernetes objects: only what is judged, straight from the API's JSON.

use std::collections::BTreeMap;

use jiff::Timestamp;
use netdiag_common::observation::Protocol;
use serde::{Deserialize, Deserializer};

use super::meta::{Meta, ObjectRef};
use super::selector::LabelSelector;

mod gateway;
mod grant;
mod ingress;
mod node;
mod pod;
mod policy;
mod route;
mod service;
mod service_cidr;
mod workload;

pub use gateway::{GATEWAY_GROUP, Gateway, Listener, SecretRef};
pub use grant::{GrantFrom, ReferenceGrant};
pub use ingress::{Ingress, IngressBackend, IngressPath, IngressTls};
pub use node::{Node, NodeAddress, NodeSpec, NodeStatus, ZONE_LABEL};
pub use pod::{
    Container, ContainerPort, ContainerState, ContainerStatus, Pod, PodIp, PodSpec, PodStatus, SERVICE_RANGE_FLAG,
    StateDetail,
};
pub use policy::{IpBlock, NetworkPolicy, NetworkPolicySpec, PolicyPeer, PolicyPort, PolicyRule};
pub use route::{
    BackendRef, GrpcMatch, GrpcRoute, GrpcRule, HttpMatch, HttpRoute, HttpRule, MethodMatch, ParentRef, Route, Rule,
    TlsRoute, TlsRule, ValueMatch,
};
pub use service::{
    Endpoint, EndpointConditions, EndpointHints, EndpointPort, EndpointSlice, HintedFor, Service, ServicePort,
    ServiceSpec,
};
pub use service_cidr::{ServiceCidr, ServiceCidrSpec};
pub use workload::{PodTemplate, TemplateContainer, Workload, WorkloadSpec, WorkloadStatus};

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
object!(Namespace, Node, Service, EndpointSlice, NetworkPolicy, Event, ConfigMap, Ingress, Gateway, ReferenceGrant);

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
#[serde(default)]
pub struct TargetRef {
    pub kind: String,
    pub namespace: String,
    pub name: String,
    pub uid: String,
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

impl Event {
    /// When it happened last, where it says.
    pub fn last_at(&self) -> Option<Timestamp> {
        self.last_timestamp.or(self.event_time)
    }

    /// Whether it tells of this very object, among events of the object's kind and namespace: not of an earlier one of that name.
    pub fn is_of(&self, meta: &Meta) -> bool {
        let object = &self.involved_object;
        object.uid == meta.uid || (object.uid.is_empty() && object.name == meta.name)
    }
}

/// Read for CoreDNS alone.
#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
#[serde(default)]
pub struct ConfigMap {
    pub metadata: Meta,
    #[serde(deserialize_with = "null_default")]
    pub data: BTreeMap<String, String>,
}
