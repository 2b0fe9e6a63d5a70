//! Routes of Gateway API (gateway.networking.k8s.io): HTTPRoute and GRPCRoute of v1, TLSRoute of v1 and v1alpha2. They differ in their
//! rules alone.

use serde::Deserialize;

use super::{Meta, Object, ObjectCondition, null_default};

pub type HttpRoute = Route<HttpRule>;
pub type GrpcRoute = Route<GrpcRule>;
pub type TlsRoute = Route<TlsRule>;

/// A route whose rules are of kind `R`.
#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
#[serde(bound(deserialize = "R: Deserialize<'de> + Default"))]
pub struct Route<R> {
    pub metadata: Meta,
    #[serde(default)]
    pub spec: RouteSpec<R>,
    #[serde(default)]
    pub status: RouteStatus,
}

/// A rule of one kind of route.
pub trait Rule {
    /// The route's kind, as in YAML: `HTTPRoute`.
    const ROUTE: &'static str;
    fn backend_refs(&self) -> &[BackendRef];
}

impl<R: Rule> Object for Route<R> {
    const KIND: &'static str = R::ROUTE;

    fn meta(&self) -> &Meta {
        &self.metadata
    }
}

macro_rules! rule {
    ($($rule:ident of $route:literal),*) => {$(
        impl Rule for $rule {
            const ROUTE: &'static str = $route;

            fn backend_refs(&self) -> &[BackendRef] {
                &self.backend_refs
            }
        }
    )*};
}
rule!(HttpRule of "HTTPRoute", GrpcRule of "GRPCRoute", TlsRule of "TLSRoute");

#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
#[serde(rename_all = "camelCase", default, bound(deserialize = "R: Deserialize<'de> + Default"))]
pub struct RouteSpec<R> {
    #[serde(deserialize_with = "null_default")]
    pub parent_refs: Vec<ParentRef>,
    /// Empty for every host of its listeners.
    #[serde(deserialize_with = "null_default")]
    pub hostnames: Vec<String>,
    #[serde(deserialize_with = "null_default")]
    pub rules: Vec<R>,
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
pub struct HttpRule {
    /// Any of them; empty for every request.
    #[serde(deserialize_with = "null_default")]
    pub matches: Vec<HttpMatch>,
    #[serde(deserialize_with = "null_default")]
    pub backend_refs: Vec<BackendRef>,
}

#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct GrpcRule {
    /// Any of them; empty for every call.
    #[serde(deserialize_with = "null_default")]
    pub matches: Vec<GrpcMatch>,
    #[serde(deserialize_with = "null_default")]
    pub backend_refs: Vec<BackendRef>,
}

/// Takes every connection of the route's hosts.
#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct TlsRule {
    #[serde(deserialize_with = "null_default")]
    pub backend_refs: Vec<BackendRef>,
}

/// All of it must hold.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct HttpMatch {
    /// None means the prefix `/`.
    pub path: Option<ValueMatch>,
    #[serde(deserialize_with = "null_default")]
    pub headers: Vec<ValueMatch>,
    #[serde(deserialize_with = "null_default")]
    pub query_params: Vec<ValueMatch>,
    pub method: Option<String>,
}

/// All of it must hold.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(default)]
pub struct GrpcMatch {
    /// None means every method of every service.
    pub method: Option<MethodMatch>,
    /// Of the call's metadata.
    #[serde(deserialize_with = "null_default")]
    pub headers: Vec<ValueMatch>,
}

/// Of a gRPC service and its method; one that is missing is any.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(default)]
pub struct MethodMatch {
    /// `Exact` or `RegularExpression`; empty means `Exact`.
    #[serde(rename = "type", deserialize_with = "null_default")]
    pub kind: String,
    #[serde(deserialize_with = "null_default")]
    pub service: String,
    #[serde(deserialize_with = "null_default")]
    pub method: String,
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
pub struct RouteStatus {
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
