//! ServiceCIDRs (networking.k8s.io/v1 since Kubernetes 1.33, v1beta1 before): what addresses of Services are taken from (KEP-1880).

use ipnet::IpNet;
use serde::Deserialize;

use super::{Meta, Object, null_default};

#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
pub struct ServiceCidr {
    pub metadata: Meta,
    #[serde(default)]
    pub spec: ServiceCidrSpec,
}

/// One range of each address family at most.
#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
#[serde(default)]
pub struct ServiceCidrSpec {
    #[serde(deserialize_with = "null_default")]
    pub cidrs: Vec<IpNet>,
}

impl Object for ServiceCidr {
    const KIND: &'static str = "ServiceCIDR";

    fn meta(&self) -> &Meta {
        &self.metadata
    }
}
