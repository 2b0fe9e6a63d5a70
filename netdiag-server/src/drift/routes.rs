//! Whether a node has routes to the other nodes' pods. Pure.

use netdiag_common::observation::Observation;
use netdiag_common::observation::network::Network;
use netdiag_common::{Need, Reading, Topic};

use super::{Difference, Kind, NodeDrift, Readings, gap, node};
use crate::evidence::Cluster;
use crate::path::route::{Way, inside, is_steered, way, words};

/// Other nodes asked besides, to learn how this pod network is made.
const NEIGHBOURS: usize = 3;

/// Whose routes are read.
pub(super) fn nodes(cluster: &Cluster, asked: &[String]) -> Vec<String> {
    let others = cluster.nodes.iter().map(|node| node.metadata.name.clone()).filter(|name| !asked.contains(name));
    asked.iter().cloned().chain(others.take(NEIGHBOURS)).collect()
}

pub(super) fn compare(cluster: &Cluster, name: &str, readings: &Readings, drift: &mut NodeDrift) {
    let network = match readings.get(&Need::host(name, Topic::Network)) {
        Some(Reading::Seen { value: Observation::Network(network), .. }) => network,
        Some(Reading::Unavailable { gap }) => return drift.gaps.push(gap.clone()),
        _ => return drift.gaps.push(node::unasked(name, "routes")),
    };
    let others = || cluster.nodes.iter().filter(|other| other.metadata.name != name);
    let mut unclear: Vec<String> = Vec::new();
    for other in others() {
        for net in &other.spec.pod_cidrs {
            let found = match way(network, inside(net)) {
                Way::Known(_) => continue,
                Way::Refused(route) => words(&route, network),
                Way::OnlyDefault(route) => words(&route, network),
                Way::Nothing => "no route fits".to_owned(),
            };
            // Without such routes anywhere, a gateway or a program may be what brings packets to pods.
            if !network.left_out.is_empty()
                || is_steered(network)
                || !by_routes(cluster, readings, net.addr().is_ipv4())
            {
                unclear.push(net.to_string());
                continue;
            }
            drift.differences.push(Difference {
                kind: Kind::Route,
                service: String::new(),
                entrance: None,
                expected: format!("a route to {net}, the pods of node {}", other.metadata.name),
                found,
                rule: "routing table main".to_owned(),
            });
        }
    }
    if !unclear.is_empty() {
        let why = format!(
            "no route of its own leads to {}, and nothing shows that pods are reached by routes",
            unclear.join(", ")
        );
        drift.gaps.push(gap(name, "routes to other nodes' pods", why, "follow one packet with netdiag trace"));
    }
}

/// Some node has a route to another one's pods.
fn by_routes(cluster: &Cluster, readings: &Readings, ipv4: bool) -> bool {
    let knows = |name: &str, network: &Network| {
        let others = cluster.nodes.iter().filter(|other| other.metadata.name != name);
        let mut nets = others.flat_map(|other| &other.spec.pod_cidrs).filter(|net| net.addr().is_ipv4() == ipv4);
        nets.any(|net| way(network, inside(net)).is_known())
    };
    readings.iter().any(|(need, reading)| match reading {
        Reading::Seen { value: Observation::Network(network), .. } => knows(&need.node, network),
        _ => false,
    })
}
