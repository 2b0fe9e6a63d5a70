//! Who wrote a rule, by the names that each program gives its tables and chains.

use netdiag_common::observation::rules::{Chain, Rule, Table, Verdict};

/// Whose rule it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Owner {
    /// kube-proxy or the kubelet, which both make the chain.
    Kubernetes,
    KubeProxy,
    /// A network plugin or policy engine, by name.
    Plugin(&'static str),
    Firewalld,
    Ufw,
    Docker,
    /// Another program of the node, by name.
    Program(&'static str),
    /// Nobody we know: a person or their tools.
    Administrator,
}

/// A name's beginning and the program behind it. The first that fits counts.
const CHAINS: &[(&str, Owner)] = &[
    ("KUBE-POD-FW-", Owner::Plugin("kube-router")),
    ("KUBE-NWPLCY-", Owner::Plugin("kube-router")),
    ("KUBE-ROUTER-", Owner::Plugin("kube-router")),
    // The kubelet's (`pkg/kubelet/kubelet_network_linux.go`, Kubernetes 1.36), of which kube-proxy makes the first as well.
    ("KUBE-FIREWALL", Owner::Kubernetes),
    ("KUBE-IPTABLES-HINT", Owner::Kubernetes),
    ("KUBE-KUBELET-CANARY", Owner::Kubernetes),
    ("KUBE-", Owner::KubeProxy),
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
    ("KIND-MASQ-AGENT", Owner::Plugin("kindnet")),
    ("IP-MASQ", Owner::Plugin("ip-masq-agent")),
    ("ufw", Owner::Ufw),
    ("DOCKER", Owner::Docker),
    // firewalld where it writes through iptables: what its zones forward, and what leads there.
    ("FWDI_", Owner::Firewalld),
    ("FWDO_", Owner::Firewalld),
    ("INPUT_ZONES", Owner::Firewalld),
    ("INPUT_direct", Owner::Firewalld),
    ("FORWARD_IN_ZONES", Owner::Firewalld),
    ("FORWARD_OUT_ZONES", Owner::Firewalld),
    ("FORWARD_direct", Owner::Firewalld),
    ("OUTPUT_direct", Owner::Firewalld),
    ("PREROUTING_ZONES", Owner::Firewalld),
    ("PREROUTING_direct", Owner::Firewalld),
    ("POSTROUTING_ZONES", Owner::Firewalld),
    ("POSTROUTING_direct", Owner::Firewalld),
    ("LIBVIRT_", Owner::Program("libvirt")),
    ("NETAVARK", Owner::Program("Podman")),
    ("ts-input", Owner::Program("Tailscale")),
    ("ts-forward", Owner::Program("Tailscale")),
    ("ts-postrouting", Owner::Program("Tailscale")),
    ("f2b-", Owner::Program("Fail2ban")),
];

const TABLES: &[(&str, Owner)] = &[
    ("kube-proxy", Owner::KubeProxy),
    ("kube-network-policies", Owner::Plugin("kube-network-policies")),
    ("kindnet", Owner::Plugin("kindnet")),
    ("calico", Owner::Plugin("Calico")),
    ("cilium", Owner::Plugin("Cilium")),
    ("flannel", Owner::Plugin("flannel")),
    ("antrea", Owner::Plugin("Antrea")),
    ("ovn-kubernetes", Owner::Plugin("OVN-Kubernetes")),
    ("firewalld", Owner::Firewalld),
    ("docker", Owner::Docker),
    ("cni_", Owner::Plugin("a CNI plugin")),
    ("libvirt_network", Owner::Program("libvirt")),
    ("netavark", Owner::Program("Podman")),
    ("f2b-", Owner::Program("Fail2ban")),
];

/// Programs that set the policy of a base chain of the shared iptables tables to drop.
const DROPPING: &[(&str, Owner)] = &[("ufw", Owner::Ufw), ("DOCKER", Owner::Docker)];

/// The tables that iptables writes to, whoever calls it, and the base chains that it makes there.
const SHARED: [&str; 5] = ["filter", "nat", "mangle", "raw", "security"];
const BUILT_IN: [&str; 5] = ["INPUT", "FORWARD", "OUTPUT", "PREROUTING", "POSTROUTING"];

/// A rule on a packet's way, by what says whose it is.
#[derive(Debug, Clone, Copy)]
pub struct MetRule<'r> {
    pub chain: &'r str,
    /// The chain that it jumps or goes to.
    pub leads_to: Option<&'r str>,
    pub comment: Option<&'r str>,
}

pub fn owner(table: &Table, chain: &Chain, rule: Option<&Rule>) -> Owner {
    if let Some(owner) = by(TABLES, &table.name).or_else(|| by(CHAINS, &chain.name)) {
        return owner;
    }
    let Some(rule) = rule else {
        // A program that sets the policy leads out of this very chain to its own.
        let dropping = |rule: &Rule| match &rule.verdict {
            Verdict::Jump { chain } | Verdict::Goto { chain } => by(DROPPING, chain),
            _ => None,
        };
        return chain.rules.iter().find_map(dropping).unwrap_or(Owner::Administrator);
    };
    by_comment(rule.comment.as_deref())
}

/// The same of a rule by names alone: of its table, its chain, and the chain it jumps to.
pub fn owner_by_names(table: &str, chain: &str, jumps_to: Option<&str>, comment: Option<&str>) -> Owner {
    let of_names = by(TABLES, table).or_else(|| by(CHAINS, chain)).or_else(|| by(CHAINS, jumps_to?));
    of_names.unwrap_or_else(|| by_comment(comment))
}

/// The same of a base chain's policy, by the rules of its table that a packet met. None where it may be anybody's.
pub fn owner_of_policy(table: &str, chain: &str, met: &[MetRule<'_>]) -> Option<Owner> {
    if let Some(owner) = by(TABLES, table).or_else(|| by(CHAINS, chain)) {
        return Some(owner);
    }
    // A program that sets the policy leads out of this very chain to its own.
    if SHARED.contains(&table) && BUILT_IN.contains(&chain) {
        let of_chain = met.iter().filter(|rule| rule.chain == chain);
        return one(of_chain.filter_map(|rule| by(DROPPING, rule.leads_to?)));
    }
    if met.is_empty() {
        return Some(Owner::Administrator);
    }
    one(met.iter().map(|rule| owner_by_names(table, rule.chain, rule.leads_to, rule.comment)))
}

/// The network plugin that gives its VXLAN device such a name: `flannel.1` by the network's number (flannel,
/// pkg/backend/vxlan/vxlan.go), `vxlan.calico` (Calico, felix/dataplane/linux). None where anybody may have made it.
pub fn owner_of_tunnel(kind: &str, name: &str) -> Option<Owner> {
    if kind != "vxlan" {
        return None;
    }
    let is_numbered = |prefix: &str| name.strip_prefix(prefix).is_some_and(|number| number.parse::<u32>().is_ok());
    match name {
        "vxlan.calico" | "vxlan-v6.calico" => Some(Owner::Plugin("Calico")),
        _ if is_numbered("flannel.") || is_numbered("flannel-v6.") => Some(Owner::Plugin("flannel")),
        _ => None,
    }
}

/// Whom all of them are.
fn one(mut owners: impl Iterator<Item = Owner>) -> Option<Owner> {
    let first = owners.next()?;
    owners.all(|other| other == first).then_some(first)
}

fn by_comment(comment: Option<&str>) -> Owner {
    match comment {
        Some(comment) if comment.starts_with("cali:") => Owner::Plugin("Calico"),
        Some(comment) if comment.starts_with("kubernetes ") => Owner::Kubernetes,
        Some(comment) if comment.starts_with("cilium") => Owner::Plugin("Cilium"),
        Some(comment) if comment.starts_with("kube-router") => Owner::Plugin("kube-router"),
        Some(comment) if comment.starts_with("flanneld ") => Owner::Plugin("flannel"),
        Some(comment) if comment.starts_with("AWS, ") || comment.starts_with("AWS SNAT ") => {
            Owner::Plugin("the AWS network plugin")
        }
        _ => Owner::Administrator,
    }
}

fn by(names: &[(&str, Owner)], name: &str) -> Option<Owner> {
    names.iter().find(|(prefix, _)| name.starts_with(prefix)).map(|(_, owner)| *owner)
}

impl Owner {
    /// Part of Kubernetes' own network: other conditions speak about it.
    pub fn is_cluster(self) -> bool {
        matches!(self, Self::Kubernetes | Self::KubeProxy | Self::Plugin(_))
    }

    /// As in `a rule of ufw`.
    pub fn words(self) -> &'static str {
        match self {
            Self::Kubernetes => "Kubernetes",
            Self::KubeProxy => "kube-proxy",
            Self::Plugin(name) | Self::Program(name) => name,
            Self::Firewalld => "firewalld",
            Self::Ufw => "ufw",
            Self::Docker => "Docker",
            Self::Administrator => "an administrator",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(table: &str, chain: &str) -> &'static str {
        owner_by_names(table, chain, None, None).words()
    }

    #[test]
    fn programs_are_known_by_the_names_they_give() {
        for (table, chain, owner) in [
            ("nat", "KUBE-SVC-67NZLRHBNDSAWJRO", "kube-proxy"),
            ("kube-proxy", "services", "kube-proxy"),
            ("filter", "KUBE-FIREWALL", "Kubernetes"),
            ("filter", "KUBE-NWPLCY-X", "kube-router"),
            ("filter", "FWDI_public", "firewalld"),
            ("firewalld", "filter_FWD_public_deny", "firewalld"),
            ("ovn-kubernetes", "udn-isolation", "OVN-Kubernetes"),
            ("filter", "LIBVIRT_FWI", "libvirt"),
            ("libvirt_network", "guest_input", "libvirt"),
            ("nat", "AWS-SNAT-CHAIN-0", "the AWS network plugin"),
            ("filter", "ts-forward", "Tailscale"),
            ("filter", "ts-shop", "an administrator"),
            ("filter", "FORWARD", "an administrator"),
        ] {
            assert_eq!(of(table, chain), owner, "{table} {chain}");
        }
    }

    #[test]
    fn a_rule_of_a_shared_chain_is_known_by_where_it_leads_and_by_its_comment() {
        let of = |target, comment| owner_by_names("filter", "FORWARD", target, comment).words();
        assert_eq!(of(Some("DOCKER-USER"), None), "Docker");
        assert_eq!(of(Some("LIBVIRT_FWI"), None), "libvirt");
        assert_eq!(of(None, Some("flanneld forward")), "flannel");
        assert_eq!(of(None, Some("AWS, primary ENI")), "the AWS network plugin");
        assert_eq!(of(None, Some("maintenance")), "an administrator");
    }

    #[test]
    fn a_policy_is_of_the_program_that_its_own_chain_leads_to() {
        let base = |name: &str, to: &str| {
            let jump = serde_json::json!({"do": "jump", "chain": to});
            serde_json::json!({"name": name, "rules": [{"handle": 1, "matches": [], "verdict": jump, "text": "jump"}]})
        };
        let chains =
            [base("INPUT", "KUBE-FIREWALL"), base("FORWARD", "DOCKER-USER"), base("OUTPUT", "ufw-before-output")];
        let table = serde_json::json!({"backend": "iptables_nft", "family": "ip", "name": "filter", "chains": chains});
        let table: Table = serde_json::from_value(table).expect("a table");
        let of = |name: &str| {
            let chain = table.chains.iter().find(|chain| chain.name == name).expect("a chain");
            owner(&table, chain, None).words()
        };
        assert_eq!(["INPUT", "FORWARD", "OUTPUT"].map(of), ["an administrator", "Docker", "ufw"]);
    }

    #[test]
    fn a_policy_is_of_whom_all_rules_of_its_table_are() {
        let rule = |chain, leads_to| MetRule { chain, leads_to, comment: None };
        let of = |table, chain, met: &[MetRule<'_>]| owner_of_policy(table, chain, met).map(Owner::words);
        assert_eq!(of("firewalld", "filter_FORWARD", &[]), Some("firewalld"));
        assert_eq!(of("site", "fw", &[]), Some("an administrator"));
        assert_eq!(of("site", "fw", &[rule("fw", None), rule("aside", None)]), Some("an administrator"));
        assert_eq!(of("site", "fw", &[rule("fw", None), rule("fw", Some("DOCKER-USER"))]), None);
        // Who writes to iptables' own chains need not have set their policy.
        assert_eq!(of("filter", "FORWARD", &[rule("FORWARD", Some("KUBE-FORWARD"))]), None);
        let ufw = [rule("FORWARD", Some("KUBE-FORWARD")), rule("FORWARD", Some("ufw-before-forward"))];
        assert_eq!(of("filter", "FORWARD", &ufw), Some("ufw"));
        assert_eq!(of("filter", "INPUT", &[rule("FORWARD", Some("DOCKER-USER"))]), None);
        assert_eq!(of("filter", "FORWARD", &[rule("FORWARD", Some("DOCKER-USER")), ufw[1]]), None);
    }

    #[test]
    fn a_tunnel_is_of_the_plugin_that_names_it_so() {
        let of = |kind, name| owner_of_tunnel(kind, name).map(Owner::words);
        assert_eq!(of("vxlan", "flannel.1"), Some("flannel"));
        assert_eq!(of("vxlan", "flannel-v6.4096"), Some("flannel"));
        assert_eq!(of("vxlan", "vxlan.calico"), Some("Calico"));
        for (kind, name) in [("vxlan", "vxlan0"), ("vxlan", "flannel.site"), ("ipip", "flannel.1"), ("ipip", "tunl0")] {
            assert_eq!(of(kind, name), None, "{kind} {name}");
        }
    }

    #[test]
    fn what_programs_of_the_node_write_is_not_the_clusters() {
        assert!(owner_by_names("nat", "KUBE-SERVICES", None, None).is_cluster());
        assert!(!owner_by_names("filter", "LIBVIRT_FWI", None, None).is_cluster());
    }
}
