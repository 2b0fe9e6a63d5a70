//! Rules of the node's packet filter that stop what pods send to Services, and are neither Kubernetes' nor a network plugin's. Pure.
//!
//! The rules are walked as for `host_firewall_drops_path`: for one pod of the node to each address of a Service, and for one pod of
//! another node to each endpoint on this one. Only stops that are certain count.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use netdiag_common::observation::network::Network;
use netdiag_common::observation::rules::{Hook, Ruleset};
use netdiag_common::observation::service_rules::Proxier;
use netdiag_common::observation::{Observation, Protocol};
use netdiag_common::{Need, Reading, Topic};

use super::intended::{Entrance, Slices, intended};
use super::pods::{self, Pods, host};
use super::{Difference, Kind, NodeDrift, Readings, gap, node};
use crate::condition::host_firewall_drops_path::{place, words};
use crate::evidence::Cluster;
use crate::path::filter::{Packet, Stop, owner, stops};

/// Ways that are walked on one node. What stops Services' packets stops many of them.
const MAX_WAYS: usize = 512;
const WHAT: &str = "rules that stop packets to Services";

/// One way of a packet, and whose Service it is for.
struct Way<'r> {
    service: String,
    entrance: Option<Entrance>,
    packet: Packet<'r>,
    /// It was translated on another node.
    translated: bool,
    /// The endpoint is the node itself.
    to_host: bool,
}

pub(super) fn compare(
    cluster: &Cluster,
    (slices, pods): (&Slices<'_>, &Pods<'_>),
    readings: &Readings,
    drift: &mut NodeDrift,
) {
    let rules = match readings.get(&Need::host(&drift.node, Topic::Rules)) {
        Some(Reading::Seen { value: Observation::Rules(rules), .. }) => rules,
        Some(Reading::Absent { .. }) => return,
        Some(Reading::Unavailable { gap }) => return drift.gaps.push(gap.clone()),
        _ => return drift.gaps.push(node::unasked(&drift.node, WHAT)),
    };
    if !rules.left_out.is_empty() {
        let why = format!("not all rules were read: {}", rules.left_out.join("; "));
        drift.gaps.push(gap(&drift.node, WHAT, why, "follow single connections with netdiag trace"));
    }
    // Without the node's links, what is missing is said with its routes.
    let Some(host) = host(readings, &drift.node) else { return };
    let name = drift.node.as_str();
    let mut ways = from_here(cluster, slices, pods, readings, (name, host));
    ways.extend(to_here(cluster, pods, readings, (name, host)));
    if ways.len() > MAX_WAYS {
        let why = format!("{MAX_WAYS} of {} ways to Services and endpoints were walked", ways.len());
        drift.gaps.push(gap(&drift.node, WHAT, why, "follow single connections with netdiag trace"));
        ways.truncate(MAX_WAYS);
    }
    let mut found: BTreeMap<String, (Difference, usize)> = BTreeMap::new();
    for way in &ways {
        let Some(stop) = stopped(rules, way) else { continue };
        let (_, count) = found.entry(place(&stop)).or_insert_with(|| (difference(way, &stop), 0));
        *count += 1;
    }
    drift.differences.extend(found.into_values().map(|(difference, count)| Difference {
        found: format!("{count} of {} ways to Services are stopped: {}", ways.len(), difference.found),
        ..difference
    }));
}

/// To each address of a Service, from the first pod of the node.
fn from_here<'r>(
    cluster: &Cluster,
    slices: &Slices<'_>,
    pods: &Pods<'_>,
    readings: &Readings,
    (node, host): (&str, &'r Network),
) -> Vec<Way<'r>> {
    let Some(pod) = pods.one(node) else { return Vec::new() };
    let mut ways = Vec::new();
    // Whatever the mode: where endpoints are is the same.
    for (entrance, intention) in intended(cluster, slices, node, Proxier::Nftables) {
        let Entrance::Address(address, protocol, port) = entrance else { continue };
        let own = pod.addresses().find(|own| own.is_ipv4() == address.is_ipv4());
        let (Some(own), Some(endpoint)) = (own, intention.wanted.endpoints.first()) else { continue };
        let Some(end) = pods::end(pod, own, readings, host) else { continue };
        let input = host.link(end.master_index.unwrap_or(end.index)).map(|link| link.name.as_str());
        let packet = Packet {
            source: Some(own),
            dialled: SocketAddr::new(address, port),
            endpoint: SocketAddr::new(endpoint.address, endpoint.port),
            protocol,
            input,
            output: device(host, endpoint.address),
        };
        let to_host = host.addresses.iter().any(|own| own.address == endpoint.address);
        ways.push(Way { service: intention.service, entrance: Some(entrance), packet, translated: false, to_host });
    }
    ways
}

/// To each endpoint among the node's pods, from a pod of another node.
fn to_here<'r>(
    cluster: &Cluster,
    pods: &Pods<'_>,
    readings: &Readings,
    (node, host): (&str, &'r Network),
) -> Vec<Way<'r>> {
    let mut others = cluster.nodes.iter().map(|other| other.metadata.name.as_str()).filter(|other| *other != node);
    let Some(other) = others.find_map(|other| pods.one(other)) else { return Vec::new() };
    let mut ways = Vec::new();
    for pod in pods.chosen(node).iter().copied().filter(|pod| pods.is_endpoint(pod)) {
        for address in pod.addresses() {
            let source = other.addresses().find(|source| source.is_ipv4() == address.is_ipv4());
            let (Some(source), Some(end)) = (source, pods::end(pod, address, readings, host)) else { continue };
            let output = host.link(end.master_index.unwrap_or(end.index)).map(|link| link.name.as_str());
            for (protocol, port) in pods.served(address).filter(|(protocol, _)| has_ports(*protocol)) {
                let endpoint = SocketAddr::new(address, port);
                let input = device(host, source);
                let packet = Packet { source: Some(source), dialled: endpoint, endpoint, protocol, input, output };
                ways.push(Way { service: String::new(), entrance: None, packet, translated: true, to_host: false });
            }
        }
    }
    ways
}

fn has_ports(protocol: Protocol) -> bool {
    matches!(protocol, Protocol::Tcp | Protocol::Udp | Protocol::Sctp)
}

/// Where the node sends packets for this address.
fn device(host: &Network, address: IpAddr) -> Option<&str> {
    let index = host.route_to(address)?.link_index?;
    host.link(index).map(|link| link.name.as_str())
}

/// What stops the packet for certain, unless the cluster's own rules do.
fn stopped<'r>(rules: &'r Ruleset, way: &Way<'_>) -> Option<Stop<'r>> {
    let hooks: &[Hook] = if way.to_host {
        &[Hook::Prerouting, Hook::Input]
    } else {
        &[Hook::Prerouting, Hook::Forward, Hook::Postrouting]
    };
    let stop = stops(rules, hooks, &way.packet, way.translated).into_iter().find(|stop| stop.sure)?;
    (!owner(stop.table, stop.chain, stop.rule).is_cluster()).then_some(stop)
}

fn difference(way: &Way<'_>, stop: &Stop<'_>) -> Difference {
    let Packet { source, dialled, protocol, .. } = &way.packet;
    let source = source.map(|source| source.to_string()).unwrap_or_default();
    let by = owner(stop.table, stop.chain, stop.rule).words();
    Difference {
        kind: Kind::ForeignDrop,
        service: way.service.clone(),
        entrance: way.entrance,
        expected: format!("a packet from {source} to {dialled}/{protocol} passes the node's rules"),
        found: format!("{} (written by {by})", words(stop)),
        rule: place(stop),
    }
}
