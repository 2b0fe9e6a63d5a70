//! Ingresses (networking.k8s.io/v1): which hosts and paths lead to which Service.

use serde::Deserialize;

use super::{Meta, null_default};

#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
pub struct Ingress {
    pub metadata: Meta,
    #[serde(default)]
    pub spec: IngressSpec,
    #[serde(default)]
    pub status: IngressStatus,
}

#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct IngressSpec {
    /// Gets what no rule takes.
    pub default_backend: Option<IngressBackend>,
    #[serde(deserialize_with = "null_default")]
    pub rules: Vec<IngressRule>,
    #[serde(deserialize_with = "null_default")]
    pub tls: Vec<IngressTls>,
}

#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
#[serde(default)]
pub struct IngressRule {
    /// `shop.example`, `*.shop.example`; empty for every host.
    pub host: String,
    pub http: Option<IngressHttp>,
}

#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
#[serde(default)]
pub struct IngressHttp {
    #[serde(deserialize_with = "null_default")]
    pub paths: Vec<IngressPath>,
}

#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct IngressPath {
    /// Empty means `/` where the type is not `Exact`.
    pub path: String,
    /// `Exact`, `Prefix` or `ImplementationSpecific`.
    pub path_type: String,
    pub backend: IngressBackend,
}

#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
#[serde(default)]
pub struct IngressBackend {
    /// None where it is a resource of the controller's own.
    pub service: Option<IngressService>,
}

#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
#[serde(default)]
pub struct IngressService {
    pub name: String,
    pub port: IngressServicePort,
}

/// By one of the two.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(default)]
pub struct IngressServicePort {
    pub name: String,
    pub number: u16,
}

#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct IngressTls {
    /// Empty for every host of the Ingress.
    #[serde(deserialize_with = "null_default")]
    pub hosts: Vec<String>,
    /// Empty where the controller has a certificate of its own.
    pub secret_name: String,
}

#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct IngressStatus {
    pub load_balancer: IngressLoadBalancer,
}

#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
#[serde(default)]
pub struct IngressLoadBalancer {
    #[serde(deserialize_with = "null_default")]
    pub ingress: Vec<IngressAddress>,
}

/// Where the controller is reached, as it wrote itself.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(default)]
pub struct IngressAddress {
    /// Empty when it is known by a name alone.
    pub ip: String,
    pub hostname: String,
}
