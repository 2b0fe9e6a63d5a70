//! What a network plugin has left on a node after it was removed from the cluster. Pure.
//!
//! Chains or links alone are no leftover: two facts must agree, that no pod of the plugin is in the cluster, and that no network
//! configuration of the node names it. kube-router and flannel are left out: k3s has them in its own process, without a pod.

use netdiag_common::observation::Observation;
use netdiag_common::observation::cni::{Cni, CniFile};
use netdiag_common::{Gap, Need, Reading, Topic};

use super::pods::host;
use super::{Difference, Kind, NodeDrift, Readings, gap, node};
use crate::evidence::Cluster;
use crate::listing::named;
use crate::path::filter::{Owner, owner_by_names};

const WHAT: &str = "network configurations of the node";
/// Chains and links of one plugin that are named.
const MAX_NAMED: usize = 4;

/// A plugin whose agent is a pod.
struct Plugin {
    /// As [`Owner`] calls it.
    name: &'static str,
    /// What its links begin with.
    link: &'static str,
    /// What configurations call its programs.
    cni: &'static [&'static str],
    /// Words in the names of its pods, of other makers', too, and of plugins that name their links as it does (Terway).
    pods: &'static [&'static str],
}

const PLUGINS: [Plugin; 4] = [
    Plugin { name: "Calico", link: "cali", cni: &["calico"], pods: &["calico", "canal", "tigera", "terway"] },
    Plugin { name: "Cilium", link: "cilium_", cni: &["cilium-cni"], pods: &["cilium", "anetd", "terway"] },
    Plugin { name: "Weave Net", link: "weave", cni: &["weave-net"], pods: &["weave"] },
    Plugin { name: "Antrea", link: "antrea-gw", cni: &["antrea"], pods: &["antrea"] },
];

pub(super) fn compare(cluster: &Cluster, readings: &Readings, drift: &mut NodeDrift) {
    // Without pods and rules, what is missing is said where they are compared.
    let rules = match readings.get(&Need::host(&drift.node, Topic::Rules)) {
        Some(Reading::Seen { value: Observation::Rules(rules), .. }) if cluster.pods.gap().is_none() => rules,
        _ => return,
    };
    let links = || host(readings, &drift.node).into_iter().flat_map(|host| &host.links);
    let mut found = Vec::new();
    for plugin in &PLUGINS {
        let chains = rules.tables.iter().flat_map(|table| table.chains.iter().map(move |chain| (table, chain)));
        let is_own = Owner::Plugin(plugin.name);
        let chains: Vec<&str> = chains
            .filter(|(table, chain)| owner_by_names(&table.name, &chain.name, None, None) == is_own)
            .map(|(_, chain)| chain.name.as_str())
            .collect();
        let links: Vec<&str> =
            links().map(|link| link.name.as_str()).filter(|name| name.starts_with(plugin.link)).collect();
        let leaves = !chains.is_empty() || !links.is_empty();
        if leaves && !runs(cluster, plugin) {
            found.push((plugin, chains, links));
        }
    }
    if found.is_empty() {
        return;
    }
    let kinds = match configured(readings, &drift.node) {
        Ok(kinds) => kinds,
        Err(gap) => return drift.gaps.push(gap),
    };
    found.retain(|(plugin, ..)| !plugin.cni.iter().any(|kind| kinds.contains(kind)));
    drift.differences.extend(found.into_iter().map(|(plugin, chains, links)| {
        Difference {
            kind: Kind::PluginLeft,
            service: String::new(),
            entrance: None,
            expected: format!(
                "nothing of {}: no pod of it is in the cluster, and no network configuration of the node names it",
                plugin.name
            ),
            found: [("chains", chains), ("links", links)]
                .into_iter()
                .filter(|(_, names)| !names.is_empty())
                .map(|(what, names)| format!("{} {what}: {}", names.len(), named(names.iter(), MAX_NAMED)))
                .collect::<Vec<_>>()
                .join("; "),
            rule: "packet filter and links of the node".to_owned(),
        }
    }));
}

fn runs(cluster: &Cluster, plugin: &Plugin) -> bool {
    let mut pods = cluster.pods.iter().filter(|pod| !pod.is_finished());
    pods.any(|pod| plugin.pods.iter().any(|word| pod.metadata.name.contains(word)))
}

/// The programs that the node's configurations name.
fn configured<'r>(readings: &'r Readings, node: &str) -> Result<Vec<&'r str>, Gap> {
    let cni: &Cni = match readings.get(&Need::host(node, Topic::Cni)) {
        Some(Reading::Seen { value: Observation::Cni(cni), .. }) => cni,
        Some(Reading::Absent { .. }) => return Ok(Vec::new()),
        Some(Reading::Unavailable { gap }) => return Err(gap.clone()),
        _ => return Err(node::unasked(node, WHAT)),
    };
    if cni.omitted > 0 || cni.files.iter().any(|file| file.network().is_none()) {
        let why =
            "a network plugin that no pod runs has left chains or links, and not all configurations could be read";
        return Err(gap(node, WHAT, why.to_owned(), "look at them on the node"));
    }
    let networks = cni.files.iter().filter_map(CniFile::network);
    Ok(networks.flat_map(|network| &network.plugins).map(|plugin| plugin.kind.as_str()).collect())
}
