//! A case: one fault in a healthy world, what its client feels, and what netdiag must say. One YAML file each.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use serde::Deserialize;

use crate::cluster::{Cni, ProxyMode};

/// Every case, in the order of the path a packet takes; the file's name is the case's.
const FILES: &[(&str, &str)] = &[
    ("service_selects_no_pods", include_str!("cases/service_selects_no_pods.yaml")),
    ("service_has_no_ready_endpoints", include_str!("cases/service_has_no_ready_endpoints.yaml")),
    ("cni_agent_not_ready", include_str!("cases/cni_agent_not_ready.yaml")),
    ("service_port_not_defined", include_str!("cases/service_port_not_defined.yaml")),
    ("headless_port_not_translated", include_str!("cases/headless_port_not_translated.yaml")),
    ("address_families_differ", include_str!("cases/address_families_differ.yaml")),
    (
        "internal_traffic_policy_has_no_local_endpoint",
        include_str!("cases/internal_traffic_policy_has_no_local_endpoint.yaml"),
    ),
    (
        "external_traffic_policy_has_no_local_endpoint",
        include_str!("cases/external_traffic_policy_has_no_local_endpoint.yaml"),
    ),
    ("topology_hints_leave_no_working_endpoint", include_str!("cases/topology_hints_leave_no_working_endpoint.yaml")),
    ("session_affinity_keeps_bad_endpoint", include_str!("cases/session_affinity_keeps_bad_endpoint.yaml")),
    (
        "load_balancer_source_ranges_exclude_client",
        include_str!("cases/load_balancer_source_ranges_exclude_client.yaml"),
    ),
    ("target_port_not_listening", include_str!("cases/target_port_not_listening.yaml")),
    ("listener_bound_to_loopback", include_str!("cases/listener_bound_to_loopback.yaml")),
    ("listen_queue_overflows", include_str!("cases/listen_queue_overflows.yaml")),
    ("listen_queue_overflows_in_zone", include_str!("cases/listen_queue_overflows_in_zone.yaml")),
    ("server_cpu_throttled", include_str!("cases/server_cpu_throttled.yaml")),
    // Before the faults of n1's kube-proxy: they cut the server's watches there, and for up to half a minute afterwards it
    // knows of no change of an object.
    ("cluster_dns_has_no_endpoints", include_str!("cases/cluster_dns_has_no_endpoints.yaml")),
    ("cluster_domain_not_served", include_str!("cases/cluster_domain_not_served.yaml")),
    ("conntrack_entry_stale", include_str!("cases/conntrack_entry_stale.yaml")),
    ("kube_proxy_sync_fails", include_str!("cases/kube_proxy_sync_fails.yaml")),
    ("kube_proxy_rules_stale", include_str!("cases/kube_proxy_rules_stale.yaml")),
    ("kube_proxy_stopped", include_str!("cases/kube_proxy_stopped.yaml")),
    ("service_traffic_untracked", include_str!("cases/service_traffic_untracked.yaml")),
    ("notrack_by_iptables", include_str!("cases/notrack_by_iptables.yaml")),
    ("foreign_rule_translates_path", include_str!("cases/foreign_rule_translates_path.yaml")),
    ("name_does_not_exist", include_str!("cases/name_does_not_exist.yaml")),
    ("dns_policy_excludes_cluster_dns", include_str!("cases/dns_policy_excludes_cluster_dns.yaml")),
    ("kubelet_names_wrong_dns", include_str!("cases/kubelet_names_wrong_dns.yaml")),
    ("host_firewall_drops_path", include_str!("cases/host_firewall_drops_path.yaml")),
    ("firewall_before_translation", include_str!("cases/firewall_before_translation.yaml")),
    ("plugin_rule_stops_path", include_str!("cases/plugin_rule_stops_path.yaml")),
    ("pod_default_route_missing", include_str!("cases/pod_default_route_missing.yaml")),
    ("ip_forwarding_off", include_str!("cases/ip_forwarding_off.yaml")),
    ("forwarding_off_at_one_interface", include_str!("cases/forwarding_off_at_one_interface.yaml")),
    ("reverse_path_filter_drops", include_str!("cases/reverse_path_filter_drops.yaml")),
    ("blackhole_route", include_str!("cases/blackhole_route.yaml")),
    ("iptables_legacy_and_nft_mixed", include_str!("cases/iptables_legacy_and_nft_mixed.yaml")),
    ("pod_address_duplicated", include_str!("cases/pod_address_duplicated.yaml")),
    ("pod_address_without_pod", include_str!("cases/pod_address_without_pod.yaml")),
    ("two_network_plugins", include_str!("cases/two_network_plugins.yaml")),
    ("pod_range_overlaps_network", include_str!("cases/pod_range_overlaps_network.yaml")),
    ("pod_network_route_missing", include_str!("cases/pod_network_route_missing.yaml")),
    ("routing_rule_missing", include_str!("cases/routing_rule_missing.yaml")),
    ("networkd_removed_routes", include_str!("cases/networkd_removed_routes.yaml")),
    ("neighbour_unresolved", include_str!("cases/neighbour_unresolved.yaml")),
    ("path_mtu_black_hole", include_str!("cases/path_mtu_black_hole.yaml")),
    ("pods_lost_between_nodes", include_str!("cases/pods_lost_between_nodes.yaml")),
    ("pods_answers_lost", include_str!("cases/pods_answers_lost.yaml")),
    ("conntrack_table_full", include_str!("cases/conntrack_table_full.yaml")),
    ("one_of_three_endpoints", include_str!("cases/one_of_three_endpoints.yaml")),
    ("one_node_of_two", include_str!("cases/one_node_of_two.yaml")),
    ("healthy_with_unenforced_policy", include_str!("cases/healthy_with_unenforced_policy.yaml")),
    ("healthy_by_name", include_str!("cases/healthy_by_name.yaml")),
    ("hairpin_mode_off", include_str!("cases/hairpin_mode_off.yaml")),
    ("bridge_nf_call_iptables_off", include_str!("cases/bridge_nf_call_iptables_off.yaml")),
    ("healthy_on_bridge", include_str!("cases/healthy_on_bridge.yaml")),
    ("overlay_port_blocked", include_str!("cases/overlay_port_blocked.yaml")),
    ("overlay_ends_differ", include_str!("cases/overlay_ends_differ.yaml")),
    ("overlay_lost_between_nodes", include_str!("cases/overlay_lost_between_nodes.yaml")),
    ("checksums_arrive_wrong", include_str!("cases/checksums_arrive_wrong.yaml")),
    ("egress_not_masqueraded", include_str!("cases/egress_not_masqueraded.yaml")),
    ("healthy_on_overlay", include_str!("cases/healthy_on_overlay.yaml")),
    ("healthy_beside_denied", include_str!("cases/healthy_beside_denied.yaml")),
    ("policy_denies_path", include_str!("cases/policy_denies_path.yaml")),
    ("egress_policy_blocks_dns", include_str!("cases/egress_policy_blocks_dns.yaml")),
    ("policy_port_of_service", include_str!("cases/policy_port_of_service.yaml")),
    ("policy_and_or", include_str!("cases/policy_and_or.yaml")),
    ("policy_map_lacks_entry", include_str!("cases/policy_map_lacks_entry.yaml")),
];

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Case {
    #[serde(skip)]
    pub(super) name: &'static str,
    pub(super) about: String,
    /// Id in the fault catalogue; controls have none.
    #[serde(default)]
    pub(super) fault: Option<String>,
    /// Who connects the pods in the cluster this case needs.
    #[serde(default = "ptp")]
    pub(super) cni: Cni,
    /// A variant of another case, or one that takes long: run when named or with `--extra`, and never asked with a view taken away.
    #[serde(default)]
    pub(super) extra: bool,
    pub(super) ask: Ask,
    pub(super) inject: Vec<Step>,
    pub(super) restore: Vec<Step>,
    pub(super) symptom: Symptom,
    pub(super) expect: Expect,
}

fn ptp() -> Cni {
    Cni::Ptp
}

fn client() -> String {
    "client".to_owned()
}

/// The question put to netdiag.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Ask {
    #[serde(default)]
    pub(super) from: Option<String>,
    pub(super) to: String,
    /// `udp`; TCP where nothing is said.
    #[serde(default)]
    pub(super) protocol: Option<String>,
}

/// One change of the world.
#[derive(Debug, Clone, Deserialize)]
#[serde(untagged)]
pub(super) enum Step {
    Kubectl {
        kubectl: Vec<String>,
    },
    Apply {
        apply: String,
    },
    /// Shell in the node's namespaces. `$client` is the address of pod shop/client.
    Node {
        node: String,
        run: Script,
    },
    /// Shell in the namespace of the wire between the nodes, where ports are called `port-n1`.
    Wire {
        wire: Script,
    },
    /// Shell in the pod's container, without the API.
    Pod {
        pod: String,
        run: Script,
    },
    /// Pod shop/client asks a name server, `ADDRESS:PORT`, by UDP from this port, and must be answered.
    Lookup {
        lookup: String,
        udp_from: u16,
    },
    StopKubeProxy {
        stop_kube_proxy: String,
    },
    RestartKubeProxy {
        restart_kube_proxy: String,
    },
    /// With another DNS server for the pods that it starts from now on; without, with the cluster's.
    RestartKubelet {
        restart_kubelet: String,
        #[serde(default)]
        cluster_dns: Option<String>,
    },
}

/// The same for both modes of kube-proxy, or one for each.
#[derive(Debug, Clone, Deserialize)]
#[serde(untagged)]
pub(super) enum Script {
    Same(String),
    PerMode(BTreeMap<String, String>),
}

/// What the client must feel, as its own connects say.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Symptom {
    /// The pod of namespace `shop` that connects.
    #[serde(default = "client")]
    pub(super) from: String,
    /// `ADDRESS:PORT`, `NAME:PORT`, `node:NAME:PORT` or `pod:NAMESPACE/NAME:PORT`.
    pub(super) connect: String,
    /// Not the connect counts, which must go well, but an HTTP request of so many bytes behind it.
    #[serde(default)]
    pub(super) bytes: Option<u16>,
    /// Not a connect counts, but a question to a name server by UDP, which always comes from this port.
    #[serde(default)]
    pub(super) udp_from: Option<u16>,
    /// How failing connects may end; empty when none may fail.
    pub(super) ends: Vec<End>,
    /// Only some connects fail.
    #[serde(default)]
    pub(super) some: bool,
}

/// The classes of `agnhost connect`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum End {
    Connected,
    Refused,
    Timeout,
    Dns,
    Other,
}

/// The answer: that cause with those subjects, and no other cause.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Expect {
    /// `broken or degraded` where chance decides.
    pub(super) status: String,
    /// None for healthy worlds.
    #[serde(default)]
    pub(super) code: Option<String>,
    #[serde(default)]
    pub(super) subjects: Vec<String>,
    /// For causes that a node shows.
    #[serde(default)]
    pub(super) names: Option<Names>,
}

/// What the cause must name where a rule, a route or a setting of a node, or its absence, is what fails. Of words with ` or ` between
/// them, one is enough.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Names {
    /// Where the rule was read, or missed.
    pub(super) node: String,
    /// The rule with its place, or the words of its absence: together in one proof of that node.
    pub(super) rule: Vec<String>,
    /// Who wrote it or should have: in the claim or a proof. None where nothing that was found tells it, as of a route that is
    /// missing.
    #[serde(default)]
    pub(super) owner: Option<String>,
    /// What cannot be reached, or whose it is: in the claim, a proof or the subjects.
    pub(super) object: String,
}

/// All cases, or the named ones.
pub(super) fn load(names: &[String], extra: bool) -> Result<Vec<Case>> {
    let known: Vec<&str> = FILES.iter().map(|(name, _)| *name).collect();
    if let Some(unknown) = names.iter().find(|name| !known.contains(&name.as_str())) {
        anyhow::bail!("there is no case {unknown}; the cases are {}", known.join(", "));
    }
    let mut cases = Vec::new();
    for (name, text) in FILES {
        let mut case: Case = serde_saphyr::from_str(text).with_context(|| format!("in cases/{name}.yaml"))?;
        case.name = name;
        let chosen = if names.is_empty() { !case.extra || extra } else { names.iter().any(|wanted| wanted == name) };
        if chosen {
            cases.push(case);
        }
    }
    Ok(cases)
}

/// Another number deals the faults to the modes anew. This one gave each mode its share of every network plugin's.
const SEED: u64 = 1;

impl Case {
    /// The one mode of kube-proxy in which a fault runs unless told otherwise, by its name alone, so that every run is the same
    /// and a new case moves no other. None for controls: nothing may be found in either mode.
    pub(super) fn home(&self) -> Option<ProxyMode> {
        self.fault.as_ref()?;
        // FNV-1a, whose lowest bit is only the parity of the input's.
        let hash = self.name.bytes().fold(0xcbf2_9ce4_8422_2325 ^ SEED, |hash: u64, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
        });
        Some(if hash >> 63 == 0 { ProxyMode::Nftables } else { ProxyMode::Iptables })
    }
}

impl Script {
    pub(super) fn for_mode(&self, mode: ProxyMode) -> Result<&str> {
        match self {
            Self::Same(script) => Ok(script),
            Self::PerMode(scripts) => {
                let scripts = scripts.get(mode.name());
                scripts.map(String::as_str).with_context(|| format!("the step says nothing for mode {}", mode.name()))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_case_file_can_be_read_and_is_listed() {
        let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("src/e2e/cases");
        let mut files: Vec<String> = std::fs::read_dir(folder)
            .unwrap()
            .map(|entry| entry.unwrap().path().file_stem().unwrap().to_string_lossy().into_owned())
            .collect();
        files.sort();
        let mut listed: Vec<&str> = FILES.iter().map(|(name, _)| *name).collect();
        listed.sort_unstable();
        assert_eq!(files, listed);
        assert_eq!(load(&[], true).unwrap().len(), FILES.len());
        assert!(load(&[], false).unwrap().iter().all(|case| !case.extra));
    }

    #[test]
    fn each_mode_has_its_share_of_the_faults() {
        let homes: Vec<_> = load(&[], false).unwrap().iter().filter_map(Case::home).collect();
        let nftables = homes.iter().filter(|home| **home == ProxyMode::Nftables).count();
        assert!((homes.len() / 3..=homes.len() * 2 / 3).contains(&nftables), "{nftables} of {}", homes.len());
        assert!(load(&["healthy_by_name".to_owned()], false).unwrap()[0].home().is_none());
    }

    #[test]
    fn of_25_faults_the_node_the_rule_the_owner_and_the_object_must_be_named() {
        let cases = load(&[], false).unwrap();
        let named: Vec<&Names> = cases.iter().filter_map(|case| case.expect.names.as_ref()).collect();
        assert!(named.len() >= 25, "{} cases", named.len());
        let owned = named.iter().filter(|names| names.owner.is_some()).count();
        assert!(owned >= 25, "{owned} cases");
        assert!(named.iter().all(|names| !names.rule.is_empty() && !names.object.is_empty()));
    }

    #[test]
    fn an_unknown_case_is_answered_with_the_known_ones() {
        let error = load(&["nonsense".to_owned()], false).unwrap_err().to_string();
        assert!(error.contains("nonsense") && error.contains("name_does_not_exist"), "{error}");
    }
}
