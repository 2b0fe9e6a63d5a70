//! Whether ranges of addresses overlap that must not: of the nodes' pods, of Services, and of the networks that a node is in. Pure.

use ipnet::IpNet;
use netdiag_common::observation::Observation;
use netdiag_common::observation::network::{Network, Route, RouteKind};
use netdiag_common::{Need, Reading, Topic};

use super::pods::host;
use super::{Difference, Kind, NodeDrift, Readings};
use crate::condition::pod_range_overlaps_network::TUNNELS;
use crate::condition::service_range::ranges_in_rules;
use crate::evidence::Cluster;
use crate::evidence::object::{Node, Object, SERVICE_RANGE_FLAG};
use crate::path::route::{inside, is_steered, words};

pub(super) fn compare(cluster: &Cluster, readings: &Readings, drift: &mut NodeDrift) {
    let Some(node) = cluster.nodes.get("", &drift.node) else { return };
    let services = services(cluster, readings, drift);
    let mut found = Vec::new();
    for own in &node.spec.pod_cidrs {
        for (other, net) in of_others(cluster, node).filter(|(_, net)| overlap(own, net)) {
            let words = format!("the node's pods have {own}, and those of node {} {net}", other.metadata.name);
            found.push((words, "spec.podCIDRs of both Nodes".to_owned()));
        }
        for (net, place) in services.iter().filter(|(net, _)| overlap(own, net)) {
            found.push((format!("the node's pods have {own}, and Services {net}"), place.clone()));
        }
    }
    for address in node.internal_ips() {
        for (net, place) in services.iter().filter(|(net, _)| net.contains(&address)) {
            found.push((format!("the node has {address}, and Services {net}"), place.clone()));
        }
    }
    // Without the node's routes, what is missing is said where they are compared.
    if let Some(host) = host(readings, &drift.node) {
        for route in host.routes.iter().filter(|route| is_network(route, host)) {
            // Its pods' own range is compared already.
            if node.spec.pod_cidrs.iter().any(|own| own.contains(&route.destination)) {
                continue;
            }
            let own = words(route, host);
            for (net, place) in services.iter().filter(|(net, _)| overlap(&route.destination, net)) {
                found.push((format!("the node is in the network {own}, and Services have {net}"), place.clone()));
            }
            // The pods of all nodes may be in one network, as Weave Net has them: this node's own are there, too.
            if node.spec.pod_cidrs.iter().any(|net| host.route_to(inside(net)) == Some(route)) {
                continue;
            }
            for (other, net) in of_others(cluster, node).filter(|(_, net)| is_taken(cluster, host, route, net)) {
                let name = &other.metadata.name;
                let words = format!("the node is in the network {own}, and pods of node {name} have {net}");
                found.push((words, "routing table main".to_owned()));
            }
        }
    }
    drift.differences.extend(found.into_iter().map(|(found, rule)| Difference {
        kind: Kind::Overlap,
        service: String::new(),
        entrance: None,
        expected: "pods, Services and nodes share no addresses".to_owned(),
        found,
        rule,
    }));
}

/// Ranges of Services, each with where it was read. Where the API has no ServiceCIDRs, the API server's own pod may tell them, or
/// kube-proxy's rules; else that is a gap of the cluster, which no node can fill.
fn services(cluster: &Cluster, readings: &Readings, drift: &mut NodeDrift) -> Vec<(IpNet, String)> {
    let Some(gap) = cluster.service_cidrs.gap() else {
        let ranges = cluster.service_cidrs.iter();
        return ranges
            .flat_map(|range| range.spec.cidrs.iter().map(move |net| (*net, range.reference().to_string())))
            .collect();
    };
    let started_with = of_api_servers(cluster);
    if !started_with.is_empty() {
        return started_with;
    }
    let in_rules = match readings.get(&Need::host(&drift.node, Topic::Rules)) {
        Some(Reading::Seen { value: Observation::Rules(rules), .. }) => ranges_in_rules(rules),
        _ => Vec::new(),
    };
    if in_rules.is_empty() {
        drift.cluster_gaps.push(gap.clone());
    }
    in_rules.into_iter().map(|net| (net, "chain cluster-ips-check of table kube-proxy".to_owned())).collect()
}

/// Where API servers are static pods, as kubeadm makes them. The kubelet shows such a pod in the API, and its Node owns it
/// (`CreateMirrorPod`, pkg/kubelet/pod/mirror_client.go, Kubernetes 1.32).
fn of_api_servers(cluster: &Cluster) -> Vec<(IpNet, String)> {
    let mut found: Vec<(IpNet, String)> = Vec::new();
    if cluster.pods.gap().is_some() {
        return found;
    }
    for pod in cluster.pods.in_namespace("kube-system") {
        if pod.metadata.controller.as_ref().is_none_or(|(kind, _)| kind != "Node") {
            continue;
        }
        for container in pod.spec.containers.iter().filter(|container| container.name == "kube-apiserver") {
            for net in container.service_ranges() {
                if !found.iter().any(|(known, _)| *known == net) {
                    found.push((net, format!("{SERVICE_RANGE_FLAG} of {}", pod.reference())));
                }
            }
        }
    }
    found
}

fn of_others<'c>(cluster: &'c Cluster, node: &'c Node) -> impl Iterator<Item = (&'c Node, &'c IpNet)> {
    let others = cluster.nodes.iter().map(AsRef::as_ref);
    let others = others.filter(move |other: &&Node| other.metadata.name != node.metadata.name);
    others.flat_map(|other| other.spec.pod_cidrs.iter().map(move |net| (other, net)))
}

fn overlap(one: &IpNet, other: &IpNet) -> bool {
    one.contains(&other.network()) || other.contains(&one.network())
}

/// A network that an address of the node's own has made, other than a tunnel's.
fn is_network(route: &Route, host: &Network) -> bool {
    let kind = route.link_index.and_then(|index| host.link(index)).map_or("", |link| link.kind.as_str());
    route.table == 254
        && route.kind == RouteKind::Unicast
        && route.protocol == "kernel"
        && route.gateway.is_none()
        && route.destination.prefix_len() < route.destination.max_prefix_len()
        && !TUNNELS.contains(&kind)
}

/// Packets for these pods, or for some of them, stay in the network. Where nodes are in it as well, pods and nodes may share it.
fn is_taken(cluster: &Cluster, host: &Network, route: &Route, pods: &IpNet) -> bool {
    let is_shared = || {
        let mut addresses = cluster.nodes.iter().flat_map(|node| node.internal_ips());
        addresses.any(|address| route.destination.contains(&address))
    };
    let is_part = pods.contains(&route.destination) && *pods != route.destination;
    let is_way = || overlap(pods, &route.destination) && host.route_to(inside(pods)) == Some(route);
    !is_steered(host) && (is_part || is_way()) && !is_shared()
}
