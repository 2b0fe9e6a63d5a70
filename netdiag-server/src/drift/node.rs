//! One node: whose rules it has, and what differs. Pure.

use jiff::Timestamp;
use netdiag_common::observation::Observation;
use netdiag_common::observation::service_rules::{Proxier, ServiceRules};
use netdiag_common::{Gap, Need, Reading, Topic};

use super::intended::{Slices, intended};
use super::pods::{Pods, host};
use super::{
    Difference, Kind, NodeDrift, Readings, bridges, flows, foreign, gap, health_ports, masquerade, mtu, node_ports,
    plugins, policies, ranges, routes, services,
};
use crate::evidence::Cluster;

pub(super) fn compare(
    cluster: &Cluster,
    (slices, pods): (&Slices<'_>, &Pods<'_>),
    node: &str,
    readings: &Readings,
    now: Timestamp,
) -> NodeDrift {
    let mut drift = NodeDrift { node: node.to_owned(), ..NodeDrift::default() };
    match readings.get(&Need::host(node, Topic::ServiceRules)) {
        Some(Reading::Seen { value: Observation::ServiceRules(rules), at }) => {
            drift.proxier = Some(rules.proxier);
            match rules.proxier {
                Proxier::None => drift.lacks_rules = true,
                _ => {
                    with_rules(cluster, slices, (rules, readings), (*at, now), &mut drift);
                    node_ports::compare(cluster, rules, readings, &mut drift);
                    health_ports::compare(cluster, rules.proxier, readings, now, &mut drift);
                }
            }
        }
        Some(Reading::Absent { .. }) => drift.lacks_rules = true,
        Some(Reading::Unavailable { gap }) => drift.gaps.push(gap.clone()),
        _ => drift.gaps.push(unasked(node, "rules of kube-proxy")),
    }
    routes::compare(cluster, node, readings, &mut drift);
    ranges::compare(cluster, readings, &mut drift);
    flows::compare(cluster, pods, readings, &mut drift);
    // Without the node's links, what is missing is said with its routes.
    if let Some(host) = host(readings, node) {
        let inside = pods.inside(cluster, readings, &mut drift);
        mtu::compare(cluster, host, &inside, &mut drift);
        bridges::compare(pods, host, &inside, readings, &mut drift);
    }
    foreign::compare(cluster, (slices, pods), readings, &mut drift);
    plugins::compare(cluster, readings, &mut drift);
    masquerade::compare(cluster, pods, readings, &mut drift);
    policies::compare(cluster, pods, readings, &mut drift);
    drift
}

fn with_rules(
    cluster: &Cluster,
    slices: &Slices<'_>,
    (rules, readings): (&ServiceRules, &Readings),
    (read_at, now): (Timestamp, Timestamp),
    drift: &mut NodeDrift,
) {
    let node = drift.node.clone();
    if !rules.hooked {
        let expected = "base chains lead to kube-proxy's chains, in both families".to_owned();
        drift.differences.push(whole(Kind::NotHooked, expected, "no packet of some family gets there", rules.proxier));
    }
    match &rules.others {
        None => drift.gaps.push(old_agent(&node, "rules of other modes of kube-proxy")),
        Some(others) => {
            for other in others {
                let expected = format!("rules of {} alone", name(rules.proxier));
                let found = format!("rules of {} as well", name(*other));
                drift.differences.push(whole(Kind::TwoProxiers, expected, &found, *other));
            }
        }
    }
    match rules.masquerades {
        None => drift.gaps.push(old_agent(&node, "masquerading of packets that kube-proxy marks")),
        Some(true) => {}
        Some(false) => drift.differences.push(unmasqueraded(rules.proxier)),
    }
    let mut compared = services::compare(&intended(cluster, slices, &node, rules.proxier), rules, read_at, now);
    if rules.proxier == Proxier::Ipvs {
        drift.gaps.extend(node_ports::not_meant(cluster, rules, readings, (node.as_str(), &mut compared)));
    }
    drift.compared = compared.entrances;
    drift.settling = compared.settling;
    drift.differences.extend(compared.differences);
    for (why, count) in compared.unknown {
        let why = format!("of {count} addresses and node ports: {why}");
        drift.gaps.push(gap(&node, "rules of single Services", why, "look at them with netdiag trace"));
    }
    for why in &rules.undecoded {
        drift.gaps.push(gap(
            &node,
            "rules of kube-proxy",
            why.clone(),
            "look at them on the node with nft or iptables-save",
        ));
    }
}

/// Says of nodes without rules what that means, once all nodes are compared.
pub(super) fn complete(nodes: &mut [NodeDrift], readings: &Readings) {
    let has_rules = |node: &&NodeDrift| node.proxier.is_some_and(|proxier| proxier != Proxier::None);
    let elsewhere = nodes.iter().find(has_rules).map(|node| node.node.clone());
    for drift in nodes.iter_mut().filter(|drift| drift.lacks_rules) {
        without_rules(elsewhere.as_deref(), readings, drift);
    }
}

/// No rules at all: a fault only where kube-proxy is what serves Services.
fn without_rules(elsewhere: Option<&str>, readings: &Readings, drift: &mut NodeDrift) {
    let runs = match readings.get(&Need::host(drift.node.as_str(), Topic::KubeProxy)) {
        Some(Reading::Seen { value: Observation::KubeProxy(proxy), .. }) => proxy.running,
        Some(Reading::Unavailable { gap }) => return drift.gaps.push(gap.clone()),
        _ => false,
    };
    let expected = match elsewhere {
        _ if runs => "rules of kube-proxy, which runs there".to_owned(),
        Some(other) => format!("rules of kube-proxy, as node {other} has them"),
        None => {
            let why = "there are no rules of kube-proxy, and none runs: another proxy may serve Services".to_owned();
            return drift.gaps.push(gap(&drift.node, "rules for Services", why, "ask that proxy for its state"));
        }
    };
    drift.differences.push(whole(Kind::NoRules, expected, "none", Proxier::None));
}

fn whole(kind: Kind, expected: String, found: &str, proxier: Proxier) -> Difference {
    let rule = match proxier {
        Proxier::Nftables => "tables ip kube-proxy and ip6 kube-proxy",
        Proxier::IptablesNft => "chain KUBE-SERVICES of tables nat (iptables-nft)",
        Proxier::IptablesLegacy => "chain KUBE-SERVICES of tables nat (legacy iptables)",
        Proxier::Ipvs => "virtual servers of IPVS",
        Proxier::None => "",
    };
    Difference {
        kind,
        service: String::new(),
        entrance: None,
        expected,
        found: found.to_owned(),
        rule: rule.to_owned(),
    }
}

fn unmasqueraded(proxier: Proxier) -> Difference {
    let rule = match proxier {
        Proxier::Nftables => "chains mark-for-masquerade and masquerading of tables kube-proxy",
        _ => "chains KUBE-MARK-MASQ and KUBE-POSTROUTING of tables nat",
    };
    Difference {
        rule: rule.to_owned(),
        ..whole(
            Kind::Masquerade,
            "packets that kube-proxy marks leave with the node's address".to_owned(),
            "no rule does that, in some family",
            proxier,
        )
    }
}

fn name(proxier: Proxier) -> &'static str {
    match proxier {
        Proxier::Nftables => "nftables mode",
        Proxier::IptablesNft => "iptables mode through iptables-nft",
        Proxier::IptablesLegacy => "iptables mode through legacy iptables",
        Proxier::Ipvs => "IPVS mode",
        Proxier::None => "no mode",
    }
}

pub(super) fn old_agent(node: &str, what: &str) -> Gap {
    gap(node, what, "the agent does not say".to_owned(), "bring agents and server to the same version")
}

pub(super) fn unasked(node: &str, what: &str) -> Gap {
    gap(node, what, "the node did not answer with it".to_owned(), "ask again")
}
