//! Who wrote a rule, by the names that each program gives its tables and chains.

use netdiag_common::observation::rules::{Chain, Rule, Table};

/// Whose rule it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Owner {
    /// kube-proxy or the kubelet.
    Kubernetes,
    /// A network plugin or policy engine, by name.
    Plugin(&'static str),
    Firewalld,
    Ufw,
    Docker,
    /// Nobody we know: a person or their tools.
    Administrator,
}

/// A name's beginning and the program behind it. The first that fits counts.
const CHAINS: &[(&str, Owner)] = &[
    ("KUBE-POD-FW-", Owner::Plugin("kube-router")),
    ("KUBE-NWPLCY-", Owner::Plugin("kube-router")),
    ("KUBE-ROUTER-", Owner::Plugin("kube-router")),
    ("KUBE-", Owner::Kubernetes),
    ("cali-", Owner::Plugin("Calico")),
    ("CILIUM_", Owner::Plugin("Cilium")),
    ("FLANNEL-", Owner::Plugin("flannel")),
    ("WEAVE", Owner::Plugin("Weave Net")),
    ("ANTREA", Owner::Plugin("Antrea")),
    ("AZURE-NPM", Owner::Plugin("Azure NPM")),
    ("CNI-", Owner::Plugin("a CNI plugin")),
    ("ISTIO_", Owner::Plugin("Istio")),
    ("PROXY_INIT_", Owner::Plugin("Linkerd")),
    ("AWS-", Owner::Plugin("the AWS network plugin")),
    ("ufw", Owner::Ufw),
    ("DOCKER", Owner::Docker),
];

const TABLES: &[(&str, Owner)] = &[
    ("kube-proxy", Owner::Kubernetes),
    ("kube-network-policies", Owner::Plugin("kube-network-policies")),
    ("kindnet", Owner::Plugin("kindnet")),
    ("calico", Owner::Plugin("Calico")),
    ("cilium", Owner::Plugin("Cilium")),
    ("flannel", Owner::Plugin("flannel")),
    ("antrea", Owner::Plugin("Antrea")),
    ("firewalld", Owner::Firewalld),
    ("docker", Owner::Docker),
];

/// Programs that set the policy of a base chain of the shared iptables tables to drop.
const DROPPING: &[(&str, Owner)] = &[("ufw", Owner::Ufw), ("DOCKER", Owner::Docker)];

pub fn owner(table: &Table, chain: &Chain, rule: Option<&Rule>) -> Owner {
    if let Some(owner) = by(TABLES, &table.name).or_else(|| by(CHAINS, &chain.name)) {
        return owner;
    }
    let Some(rule) = rule else {
        return table.chains.iter().find_map(|other| by(DROPPING, &other.name)).unwrap_or(Owner::Administrator);
    };
    by_comment(rule.comment.as_deref())
}

/// The same of a rule by names alone: of its table, its chain, and the chain it jumps to.
pub fn owner_by_names(table: &str, chain: &str, jumps_to: Option<&str>, comment: Option<&str>) -> Owner {
    let of_names = by(TABLES, table).or_else(|| by(CHAINS, chain)).or_else(|| by(CHAINS, jumps_to?));
    of_names.unwrap_or_else(|| by_comment(comment))
}

fn by_comment(comment: Option<&str>) -> Owner {
    match comment {
        Some(comment) if comment.starts_with("cali:") => Owner::Plugin("Calico"),
        Some(comment) if comment.starts_with("kubernetes ") => Owner::Kubernetes,
        Some(comment) if comment.starts_with("cilium") => Owner::Plugin("Cilium"),
        Some(comment) if comment.starts_with("kube-router") => Owner::Plugin("kube-router"),
        _ => Owner::Administrator,
    }
}

fn by(names: &[(&str, Owner)], name: &str) -> Option<Owner> {
    names.iter().find(|(prefix, _)| name.starts_with(prefix)).map(|(_, owner)| *owner)
}

impl Owner {
    /// Part of Kubernetes' own network: other conditions speak about it.
    pub fn is_cluster(self) -> bool {
        matches!(self, Self::Kubernetes | Self::Plugin(_))
    }

    /// As in `a rule of ufw`.
    pub fn words(self) -> &'static str {
        match self {
            Self::Kubernetes => "Kubernetes",
            Self::Plugin(name) => name,
            Self::Firewalld => "firewalld",
            Self::Ufw => "ufw",
            Self::Docker => "Docker",
            Self::Administrator => "an administrator",
        }
    }
}
