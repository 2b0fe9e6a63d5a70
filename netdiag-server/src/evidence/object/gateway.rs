//! Gateways (gateway.networking.k8s.io/v1) with their listeners.

use serde::Deserialize;

use super::{Meta, null_default};

pub const GATEWAY_GROUP: &str = "gateway.networking.k8s.io";

#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
pub struct Gateway {
    pub metadata: Meta,
    #[serde(default)]
    pub spec: GatewaySpec,
    #[serde(default)]
    pub status: GatewayStatus,
}

#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
#[serde(default)]
pub struct GatewaySpec {
    #[serde(deserialize_with = "null_default")]
    pub listeners: Vec<Listener>,
}

#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Listener {
    pub name: String,
    /// `shop.example`, `*.example`; empty for every host.
    #[serde(deserialize_with = "null_default")]
    pub hostname: String,
    pub port: u16,
    /// `HTTP`, `HTTPS`, `TLS`, `TCP`, `UDP`, or one of the controller's own.
    pub protocol: String,
    pub tls: Option<ListenerTls>,
    pub allowed_routes: Option<AllowedRoutes>,
}

#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ListenerTls {
    /// `Terminate` unless it says `Passthrough`: then TLS is the endpoints' own.
    #[serde(deserialize_with = "null_default")]
    pub mode: String,
    #[serde(deserialize_with = "null_default")]
    pub certificate_refs: Vec<SecretRef>,
}

/// A Secret unless kind or group say otherwise; in the Gateway's namespace unless another is named.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(default)]
pub struct SecretRef {
    pub group: String,
    pub kind: String,
    pub namespace: String,
    pub name: String,
}

#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
#[serde(default)]
pub struct AllowedRoutes {
    pub namespaces: Option<RouteNamespaces>,
    /// Empty for all that its protocol can carry.
    #[serde(deserialize_with = "null_default")]
    pub kinds: Vec<RouteKind>,
}

/// Of Gateway API's own group unless it says another.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(default)]
pub struct RouteKind {
    pub group: Option<String>,
    pub kind: String,
}

impl RouteKind {
    /// Whether it is the kind of Gateway API with this name.
    pub fn is_route(&self, kind: &str) -> bool {
        self.group.as_deref().is_none_or(|group| group == GATEWAY_GROUP) && self.kind == kind
    }
}

#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
#[serde(default)]
pub struct RouteNamespaces {
    /// `Same` unless it says `All` or `Selector`.
    pub from: String,
}

#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
#[serde(default)]
pub struct GatewayStatus {
    #[serde(deserialize_with = "null_default")]
    pub addresses: Vec<GatewayAddress>,
}

#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(default)]
pub struct GatewayAddress {
    /// `IPAddress` unless it says `Hostname` or one of the controller's own.
    #[serde(rename = "type", deserialize_with = "null_default")]
    pub kind: String,
    pub value: String,
}
