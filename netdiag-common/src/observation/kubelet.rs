//! What the kubelet of one node writes into its pods' resolv.conf.

use std::fmt;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};

/// The DNS settings of a kubelet, as its command line and its files say now: it has read them when it was started.
///
/// A pod whose `dnsPolicy` is `ClusterFirst` gets `cluster_dns`, and a search list that ends with `cluster_domain`; without any
/// address, and with `dnsPolicy: Default`, it gets what `resolv_conf` has (kubelet `pkg/kubelet/network/dns/dns.go`: `GetPodDNS`).
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Kubelet {
    /// `clusterDNS`; by default there is none.
    pub cluster_dns: Setting<Vec<IpAddr>>,
    /// Words of `clusterDNS` that are no addresses: the kubelet leaves them out.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unusable: Vec<String>,
    /// `clusterDomain`; empty by default: then no names of the cluster are searched.
    pub cluster_domain: Setting<String>,
    /// `resolvConf`, a path; `/etc/resolv.conf` by default, empty for none.
    pub resolv_conf: Setting<String>,
}

/// A value, and who says it.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Setting<T> {
    pub value: T,
    pub from: SettingFrom,
}

/// Flags go before files, and files before defaults.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(tag = "by", rename_all = "snake_case")]
pub enum SettingFrom {
    #[default]
    Default,
    /// `--cluster-dns`.
    Flag { name: String },
    /// The path, as the kubelet sees it.
    File { path: String },
}

impl fmt::Display for SettingFrom {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("by default"),
            Self::Flag { name } => write!(f, "by its flag {name}"),
            Self::File { path } => write!(f, "by {path}"),
        }
    }
}
