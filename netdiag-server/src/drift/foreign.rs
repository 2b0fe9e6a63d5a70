//! Rules of the node's packet filter that stop what pods send to Services, and are neither Kubernetes' nor a network plugin's. Pure.
//!
//! The rules are walked as for `host_firewall_drops_path`: for one pod of the node to each address of a Service, and for one pod of
//! another node to each endpoint on this one. Only stops that are certain count, and none where programs of a network plugin may take
//! packets past the packet filter.

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
use crate::path::route::is_steered;

/// Ways that are walked on one node. What stops Services' packets stops many of them.
const MAX_WAYS: usize = 512;
const WHAT: &str = "rules that stop packets to Services";
/// What links begin with whose makers hand packets from device to device by programs, before the packet filter sees them: Cilium
/// (`redirect_ep` of `bpf/lib/local_delivery.h`) and Calico's eBPF dataplane (`felix/dataplane/linux`).
const PASSING_BY: [&str; 3] = ["cilium_", "bpfin.cali", "bpfout.cali"];

/// One way of a packet, and whose Service it is for.
struct Way<'r> {
    service: String,
    entrance: Option<Entrance>,
    packet: Packet<'r>,
    /// It was translated on another node.
    translated: bool,
    /// The endpoint is the node itself.
    to_host: bool,
    /// IPVS takes it and sends it to the endpoint.
    balanced: bool,
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
    let left_out: Vec<&str> = rules.left_out_elsewhere().collect();
    if !left_out.is_empty() {
        let why = format!("not all rules were read: {}", left_out.join("; "));
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
    let mut doubtful: BTreeMap<String, usize> = BTreeMap::new();
    for way in &ways {
        let Some(stop) = stopped(rules, way) else { continue };
        if !stop.sure {
            *doubtful.entry(place(&stop)).or_default() += 1;
            continue;
        }
        let (_, count) = found.entry(place(&stop)).or_insert_with(|| (difference(way, &stop), 0));
        *count += 1;
    }
    // A chain of Services that was not read may have taken the packet away before.
    if let Some((place, count)) = doubtful.into_iter().next().filter(|_| !rules.left_out.is_empty()) {
        let (all, unread) = (ways.len(), rules.left_out.join("; "));
        let why = format!("{place} may stop {count} of {all} ways to Services, and not all rules were read: {unread}");
        drift.gaps.push(gap(&drift.node, WHAT, why, "follow single connections with netdiag trace"));
    }
    let mut links = host.links.iter().map(|link| link.name.as_str());
    let passing_by = links.find(|name| PASSING_BY.iter().any(|prefix| name.starts_with(prefix)));
    if let (Some(link), Some(place)) = (passing_by, found.keys().next()) {
        let why = format!("{place} stops what meets it, and the programs of link {link} may take packets past it");
        return drift.gaps.push(gap(&drift.node, WHAT, why, "follow single connections with netdiag trace"));
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
    // Without kube-proxy it is not known where the address is translated; that is said with its rules.
    let Some(proxier) = proxier(readings, node) else { return Vec::new() };
    let balanced = proxier == Proxier::Ipvs;
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
        let (service, entrance) = (intention.service, Some(entrance));
        ways.push(Way { service, entrance, packet, translated: false, to_host, balanced });
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
                let (service, entrance) = (String::new(), None);
                ways.push(Way { service, entrance, packet, translated: true, to_host: false, balanced: false });
            }
        }
    }
    ways
}

fn has_ports(protocol: Protocol) -> bool {
    matches!(protocol, Protocol::Tcp | Protocol::Udp | Protocol::Sctp)
}

/// None without rules of kube-proxy.
fn proxier(readings: &Readings, node: &str) -> Option<Proxier> {
    match readings.get(&Need::host(node, Topic::ServiceRules)) {
        Some(Reading::Seen { value: Observation::ServiceRules(rules), .. }) => {
            Some(rules.proxier).filter(|proxier| *proxier != Proxier::None)
        }
        _ => None,
    }
}

/// Where the node sends packets for this address; none where policy routing may send them elsewhere.
fn device(host: &Network, address: IpAddr) -> Option<&str> {
    if is_steered(host) {
        return None;
    }
    let index = host.route_to(address)?.link_index?;
    host.link(index).map(|link| link.name.as_str())
}

/// What stops the packet for certain, else what may, unless the cluster's own rules do.
fn stopped<'r>(rules: &'r Ruleset, way: &Way<'_>) -> Option<Stop<'r>> {
    let stops = if way.balanced { balanced(rules, way) } else { forwarded(rules, way) };
    let is_foreign = |stop: &Stop<'_>| !owner(stop.table, stop.chain, stop.rule).is_cluster();
    let sure = stops.iter().find(|stop| stop.sure).copied();
    match sure {
        Some(stop) => is_foreign(&stop).then_some(stop),
        None => stops.into_iter().find(is_foreign),
    }
}

fn forwarded<'r>(rules: &'r Ruleset, way: &Way<'_>) -> Vec<Stop<'r>> {
    let hooks: &[Hook] = if way.to_host {
        &[Hook::Prerouting, Hook::Input]
    } else {
        &[Hook::Prerouting, Hook::Forward, Hook::Postrouting]
    };
    stops(rules, hooks, &way.packet, way.translated)
}

/// IPVS gets the packet as one to the node itself, which has the Service's address, and sends it as one of its own: it is not forwarded
/// (`ip_vs_in_hook`, and `ip_vs_nat_send_or_cont`, which asks the hook of output; net/netfilter/ipvs, Linux 6.18).
fn balanced<'r>(rules: &'r Ruleset, way: &Way<'_>) -> Vec<Stop<'r>> {
    let taken = Packet { endpoint: way.packet.dialled, output: None, ..way.packet.clone() };
    let sent = Packet { input: None, ..way.packet.clone() };
    let mut all = stops(rules, &[Hook::Prerouting, Hook::Input], &taken, true);
    if !way.to_host && !all.iter().any(|stop| stop.sure) {
        all.extend(stops(rules, &[Hook::Output, Hook::Postrouting], &sent, true));
    }
    all
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
