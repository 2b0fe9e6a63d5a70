//! Gateway API (gateway.networking.k8s.io/v1): Gateways with their listeners, and the HTTPRoutes that are attached to them.

use serde::Deserialize;

use super::{Meta, Object, ObjectCondition, null_default};

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

#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
pub struct HttpRoute {
    pub metadata: Meta,
    #[serde(default)]
    pub spec: HttpRouteSpec,
    #[serde(default)]
    pub status: HttpRouteStatus,
}

impl Object for HttpRoute {
    const KIND: &'static str = "HTTPRoute";

    fn meta(&self) -> &Meta {
        &self.metadata
    }
}

#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct HttpRouteSpec {
    #[serde(deserialize_with = "null_default")]
    pub parent_refs: Vec<ParentRef>,
    /// Empty for every host of its listeners.
    #[serde(deserialize_with = "null_default")]
    pub hostnames: Vec<String>,
    #[serde(deserialize_with = "null_default")]
    pub rules: Vec<RouteRule>,
}

/// What a route is attached to: a Gateway unless kind or group say otherwise.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ParentRef {
    pub group: Option<String>,
    pub kind: Option<String>,
    /// The route's own unless named.
    #[serde(deserialize_with = "null_default")]
    pub namespace: String,
    pub name: String,
    /// A listener's name; empty for all of them.
    #[serde(deserialize_with = "null_default")]
    pub section_name: String,
    pub port: Option<u16>,
}

#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct RouteRule {
    /// Any of them; empty for every request.
    #[serde(deserialize_with = "null_default")]
    pub matches: Vec<RouteMatch>,
    #[serde(deserialize_with = "null_default")]
    pub backend_refs: Vec<BackendRef>,
}

/// All of it must hold.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct RouteMatch {
    /// None means the prefix `/`.
    pub path: Option<ValueMatch>,
    #[serde(deserialize_with = "null_default")]
    pub headers: Vec<ValueMatch>,
    #[serde(deserialize_with = "null_default")]
    pub query_params: Vec<ValueMatch>,
    pub method: Option<String>,
}

/// Of a path, a header field or a query parameter.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(default)]
pub struct ValueMatch {
    /// `Exact`, `PathPrefix`, `RegularExpression`; empty means `PathPrefix` for a path, else `Exact`.
    #[serde(rename = "type", deserialize_with = "null_default")]
    pub kind: String,
    /// Empty for a path.
    pub name: String,
    #[serde(deserialize_with = "null_default")]
    pub value: String,
}

/// A Service unless kind or group say otherwise; in the route's namespace unless another is named.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(default)]
pub struct BackendRef {
    pub group: Option<String>,
    pub kind: Option<String>,
    #[serde(deserialize_with = "null_default")]
    pub namespace: String,
    pub name: String,
    pub port: Option<u16>,
    /// Missing means 1; 0 gets nothing.
    pub weight: Option<u32>,
}

#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
#[serde(default)]
pub struct HttpRouteStatus {
    #[serde(deserialize_with = "null_default")]
    pub parents: Vec<RouteParentStatus>,
}

/// What one Gateway's controller says of the route.
#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct RouteParentStatus {
    pub parent_ref: ParentRef,
    #[serde(deserialize_with = "null_default")]
    pub conditions: Vec<ObjectCondition>,
}
