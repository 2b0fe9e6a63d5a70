//! What can be chosen of a cluster, and which choices are refused.

use anyhow::{Result, bail};
use serde::{Deserialize, Serialize};

/// What a cluster is made of.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Options {
    pub(crate) name: String,
    pub(crate) nodes: u8,
    pub(crate) mode: ProxyMode,
    pub(crate) cni: Cni,
    pub(crate) dual_stack: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self { name: "netdiag".to_owned(), nodes: 2, mode: ProxyMode::Nftables, cni: Cni::Ptp, dual_stack: false }
    }
}

/// How kube-proxy programs Services.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub(crate) enum ProxyMode {
    Nftables,
    Iptables,
}

impl ProxyMode {
    /// As kube-proxy's configuration calls it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Nftables => "nftables",
            Self::Iptables => "iptables",
        }
    }
}

/// Who connects pods, and so who may enforce NetworkPolicy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Cni {
    /// Routed pods by the `ptp` plugin; nothing enforces NetworkPolicy.
    Ptp,
    /// One bridge per node by the `bridge` plugin, hairpin on; nothing enforces NetworkPolicy.
    Bridge,
    /// Routed pods by the `ptp` plugin, and between nodes a VXLAN as flannel makes it; nothing enforces NetworkPolicy.
    Vxlan,
    /// Routed pods by the `ptp` plugin; kube-router enforces NetworkPolicy with iptables and ipsets, for IPv4 alone.
    KubeRouter,
    /// Cilium connects pods and enforces NetworkPolicy; kube-proxy stays.
    Cilium,
}

/// The longest name whose interface `NAME-root` fits the kernel's 15 characters.
const LONGEST_NAME: usize = 10;

/// Enough for every test; each node costs about 0.3 GiB.
const MOST_NODES: u8 = 9;

impl Options {
    /// Whether such a cluster can be.
    pub(super) fn check(&self) -> Result<()> {
        let name = &self.name;
        let letters = name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit());
        if !letters || !name.starts_with(|first: char| first.is_ascii_lowercase()) || name.len() > LONGEST_NAME {
            bail!(
                "a cluster's name is 1 to {LONGEST_NAME} lower-case letters and digits, a letter first; not {name:?}"
            );
        }
        if !(1..=MOST_NODES).contains(&self.nodes) {
            bail!("a cluster has 1 to {MOST_NODES} nodes, not {}", self.nodes);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_make_bad_interfaces_are_refused() {
        let checked = |name: &str| Options { name: name.to_owned(), ..Options::default() }.check().is_ok();
        assert!(checked("a") && checked("netdiag") && checked("e2enft1234"));
        for name in ["", "1a", "A", "a-b", "a/b", "..", "elevenchars"] {
            assert!(!checked(name), "{name}");
        }
    }

    #[test]
    fn a_cluster_has_at_least_one_node() {
        let checked = |nodes| Options { nodes, ..Options::default() }.check().is_ok();
        assert!(checked(1) && checked(9) && !checked(0) && !checked(10));
    }
}
