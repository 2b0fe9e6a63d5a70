//! Which component of a node makes NetworkPolicies happen, by what it left in the node's links and rules.

use netdiag_common::observation::network::Network;
use netdiag_common::observation::rules::Ruleset;

use crate::finding::Fate;

/// A policy engine and the trace by which it was recognised.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Enforcer {
    pub name: &'static str,
    /// `link cilium_host`, `chain KUBE-POD-FW-2XR…`.
    pub seen: String,
    /// How its denials look to the client.
    pub denies: &'static [Fate],
}

/// A name's beginning in links or chains, and what it means.
struct Trace {
    prefix: &'static str,
    engine: &'static str,
    denies: &'static [Fate],
}

const fn trace(prefix: &'static str, engine: &'static str, denies: &'static [Fate]) -> Trace {
    Trace { prefix, engine, denies }
}

/// Cilium drops; with `--policy-deny-response=icmp` (1.19) it answers denied egress.
const DROPS_OR_ANSWERS: &[Fate] = &[Fate::Silence, Fate::Unreachable];
const DROPS: &[Fate] = &[Fate::Silence];
/// kube-router ends its pod chains with `REJECT --reject-with icmp-port-unreachable`.
const REJECTS: &[Fate] = &[Fate::Refused];
const ANY: &[Fate] = &[];

/// Links that only a policy engine of that name makes.
const LINKS: &[Trace] = &[
    trace("cilium_", "Cilium", DROPS_OR_ANSWERS),
    trace("cali", "Calico", DROPS),
    trace("antrea-gw", "Antrea", ANY),
    trace("ovn-k8s-mp", "OVN-Kubernetes", DROPS),
];

const CHAINS: &[Trace] = &[
    trace("KUBE-POD-FW-", "kube-router", REJECTS),
    trace("KUBE-NWPLCY-", "kube-router", REJECTS),
    trace("cali-", "Calico", DROPS),
    trace("CILIUM_", "Cilium", DROPS_OR_ANSWERS),
    trace("WEAVE-NPC", "Weave Net", DROPS),
    trace("AZURE-NPM", "Azure NPM", DROPS),
];

const TABLES: &[Trace] = &[
    trace("kube-network-policies", "kube-network-policies", DROPS),
    trace("kindnet-network-policies", "kindnet", DROPS),
];

/// None when nothing that enforces policies left a trace. Rules that could not be read are not looked at; the caller
/// knows that they are missing.
pub fn enforcer(network: Option<&Network>, rules: Option<&Ruleset>) -> Option<Enforcer> {
    let links = network.into_iter().flat_map(|network| &network.links).map(|link| link.name.as_str());
    let tables = || rules.into_iter().flat_map(|rules| &rules.tables);
    let chains = tables().flat_map(|table| &table.chains).map(|chain| chain.name.as_str());
    find(LINKS, "link", links)
        .or_else(|| find(CHAINS, "chain", chains))
        .or_else(|| find(TABLES, "table", tables().map(|table| table.name.as_str())))
}

fn find<'n>(traces: &'static [Trace], word: &str, mut names: impl Iterator<Item = &'n str>) -> Option<Enforcer> {
    names.find_map(|name| {
        let trace = traces.iter().find(|trace| name.starts_with(trace.prefix))?;
        Some(Enforcer { name: trace.engine, seen: format!("{word} {name}"), denies: trace.denies })
    })
}
