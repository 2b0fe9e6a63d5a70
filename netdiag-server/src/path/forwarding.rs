//! Where a Service's connections should go from one node: what kube-proxy makes of EndpointSlices.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use jiff::Timestamp;
use netdiag_common::observation::service_rules::Endpoint;

use crate::evidence::Cluster;
use crate::evidence::object::{
    self, EndpointHints, EndpointPort, EndpointSlice, HintedFor, Node, Service, ServicePort,
};

/// The endpoints that one node's proxy should choose from, for one address of a Service.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Wanted {
    /// Empty when connections are to be refused or dropped.
    pub endpoints: BTreeSet<Endpoint>,
    /// What a proxy may choose from instead: hints for nodes may be switched off there, or the node's zone is not known here.
    pub instead: Vec<BTreeSet<Endpoint>>,
    /// What it would choose from without hints.
    pub unhinted: BTreeSet<Endpoint>,
    /// Some node has an endpoint that could be used: without one connections are refused, otherwise dropped.
    pub anywhere: bool,
    /// Endpoints have hints, so that it depends on the node and its zone which ones are chosen (topology-aware routing).
    pub hinted: bool,
    /// The newest change of the Service's slices.
    pub changed_at: Option<Timestamp>,
}

/// Whose proxy it is.
#[derive(Debug, Clone, Copy)]
pub struct Site<'a> {
    pub node: &'a str,
    /// Empty for a node without one, none when the API has no such node.
    pub zone: Option<&'a str>,
}

impl<'a> Site<'a> {
    pub fn of(cluster: &'a Cluster, node: &'a str) -> Self {
        Self { node, zone: cluster.nodes.get("", node).map(|found| found.zone()) }
    }
}

/// Which endpoints come into question.
#[derive(Clone, Copy)]
enum Reach<'a> {
    /// Of all nodes, whoever asks.
    All,
    /// Of one node alone.
    On(&'a str),
    /// Of all nodes, as hints leave them for this one.
    From(Site<'a>),
}

/// Ready endpoints, with what their slices hint.
type Ready<'s> = BTreeMap<Endpoint, Option<&'s EndpointHints>>;

/// Whether the Service is kube-proxy's business at all.
pub fn is_proxied(service: &Service) -> bool {
    !service.cluster_ips().is_empty()
        && service.spec.kind != "ExternalName"
        && !service.metadata.labels.contains_key("service.kubernetes.io/service-proxy-name")
}

/// How a connection comes to the Service, which decides whose traffic policy holds for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Traffic {
    /// To a cluster IP.
    Internal,
    /// To an external address or a node port, from outside the cluster.
    External,
}

/// What one node's proxy should choose from for an address of the Service: one of the cluster, or one from outside, for
/// which rules are about packets from outside.
pub fn wanted(cluster: &Cluster, service: &Service, port: &ServicePort, address: IpAddr, node: &str) -> Wanted {
    let is_own = service.cluster_ips().contains(&address);
    let traffic = if is_own { Traffic::Internal } else { Traffic::External };
    let slices = cluster.slices_of(service).map(AsRef::as_ref);
    wanted_of(slices, service, port, address.is_ipv4(), Site::of(cluster, node), traffic)
}

/// The same of slices that were found before.
pub fn wanted_of<'s>(
    slices: impl IntoIterator<Item = &'s EndpointSlice>,
    service: &Service,
    port: &ServicePort,
    ipv4: bool,
    site: Site<'_>,
    traffic: Traffic,
) -> Wanted {
    let policy = match traffic {
        Traffic::Internal => &service.spec.internal_traffic_policy,
        Traffic::External => &service.spec.external_traffic_policy,
    };
    let reach = if policy == "Local" { Reach::On(site.node) } else { Reach::From(site) };
    endpoints_of(slices, port, ipv4, reach)
}

/// The same in IPVS mode: where a policy `Local` finds no endpoint on the node, a virtual server leads to those of other nodes, for
/// the node's own pods (`syncEndpoint` of `pkg/proxy/ipvs/proxier.go`, since Kubernetes 1.21). A Service that is for pods alone has
/// none then (`UsesClusterEndpoints` of `pkg/proxy/serviceport.go`).
pub fn wanted_by_ipvs(
    slices: &[&EndpointSlice],
    service: &Service,
    port: &ServicePort,
    ipv4: bool,
    site: Site<'_>,
    traffic: Traffic,
) -> Wanted {
    let own = wanted_of(slices.iter().copied(), service, port, ipv4, site, traffic);
    let is_for_others = port.node_port != 0 || service.external_ips().any(|address| address.is_ipv4() == ipv4);
    let is_for_pods_alone = service.spec.internal_traffic_policy == "Local" && !is_for_others;
    if !own.endpoints.is_empty() || is_for_pods_alone {
        return own;
    }
    endpoints_of(slices.iter().copied(), port, ipv4, Reach::From(site))
}

/// The endpoints of a Service's port, of all nodes or of one.
pub fn endpoints(
    cluster: &Cluster,
    service: &Service,
    port: &ServicePort,
    like: IpAddr,
    only_on: Option<&str>,
) -> Wanted {
    let reach = only_on.map_or(Reach::All, Reach::On);
    endpoints_of(cluster.slices_of(service).map(AsRef::as_ref), port, like.is_ipv4(), reach)
}

/// kube-proxy takes the ready endpoints that hints leave for its node, and when there is no ready one those that still serve while
/// they terminate (`pkg/proxy/topology.go`, `CategorizeEndpoints`, Kubernetes 1.31 to 1.36). A traffic policy `Local` looks at those
/// of one node alone, whatever their hints.
fn endpoints_of<'s>(
    slices: impl IntoIterator<Item = &'s EndpointSlice>,
    port: &ServicePort,
    ipv4: bool,
    reach: Reach<'_>,
) -> Wanted {
    let mut found = Wanted::default();
    let (mut ready, mut serving) = (Ready::new(), BTreeSet::new());
    for slice in slices {
        found.changed_at = found.changed_at.max(slice.metadata.changed_at);
        let Some(number) = number_of(slice, port) else { continue };
        for endpoint in &slice.endpoints {
            let is_within_reach = match reach {
                Reach::On(node) => endpoint.node_name == node,
                Reach::All | Reach::From(_) => true,
            };
            let conditions = &endpoint.conditions;
            let is_ready = conditions.ready.unwrap_or(true);
            if !(is_ready || conditions.terminating == Some(true) && conditions.serving.unwrap_or(is_ready)) {
                continue;
            }
            for address in addresses(endpoint, ipv4) {
                found.anywhere = true;
                let own = Endpoint { address, port: number };
                if is_within_reach && is_ready {
                    ready.insert(own, endpoint.hints.as_ref());
                } else if is_within_reach {
                    serving.insert(own);
                }
            }
        }
    }
    found.unhinted = if ready.is_empty() { serving } else { ready.keys().cloned().collect() };
    let Reach::From(site) = reach else {
        found.endpoints.clone_from(&found.unhinted);
        return found;
    };
    found.hinted = ready.values().any(Option::is_some);
    let Hinted { by_node, by_zone } = hinted(&ready, site);
    let mut without_nodes: Vec<BTreeSet<Endpoint>> = by_zone.into_iter().map(|kept| kept.endpoints).collect();
    if without_nodes.is_empty() || site.zone.is_none() {
        without_nodes.insert(0, found.unhinted.clone());
    }
    let mut ways = by_node.map(|kept| kept.endpoints).into_iter().chain(without_nodes);
    found.endpoints = ways.next().unwrap_or_default();
    found.instead = ways.filter(|way| *way != found.endpoints).collect();
    found
}

/// The nodes that the endpoints of a port are on, in order of their names: where a policy `Local` is served.
pub fn nodes_with_endpoints(cluster: &Cluster, service: &Service, port: &ServicePort, like: IpAddr) -> Vec<String> {
    let all: BTreeSet<&str> =
        cluster.slices_of(service).flat_map(|slice| &slice.endpoints).map(|e| e.node_name.as_str()).collect();
    let has = |node: &&str| !endpoints(cluster, service, port, like, Some(node)).endpoints.is_empty();
    all.into_iter().filter(|node| !node.is_empty()).filter(has).map(str::to_owned).collect()
}

/// What the hints of a Service's endpoints leave for one node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kept {
    /// `zone a`, `node n1`.
    pub whose: String,
    /// Ready, and meant for it.
    pub endpoints: BTreeSet<Endpoint>,
    /// As ready, but meant for others.
    pub left_out: BTreeSet<Endpoint>,
}

/// What hints leave for one node. Hints for nodes come first where they are heeded.
struct Hinted {
    /// Heeded by itself since Kubernetes 1.34 (`PreferSameTrafficDistribution`).
    by_node: Option<Kept>,
    /// At most one where the node's zone is known, else one for each zone that it may be in.
    by_zone: Vec<Kept>,
}

/// kube-proxy keeps to the ready endpoints that are hinted for its node, or else for its zone, where every ready endpoint has
/// such a hint and one is for it (`pkg/proxy/topology.go`, `topologyModeFromHints`, Kubernetes 1.33 to 1.36; before, for zones alone,
/// `canUseTopology`). Where neither holds it takes all.
fn hinted(ready: &Ready<'_>, site: Site<'_>) -> Hinted {
    let for_zone = |zone: &str| kept(ready, "zone", zone, |hints| &hints.for_zones);
    let by_zone = match site.zone {
        Some(zone) => for_zone(zone).into_iter().collect(),
        None => {
            let listed = ready.values().flatten().flat_map(|hints| &hints.for_zones);
            let zones: BTreeSet<&str> = listed.map(|zone| zone.name.as_str()).collect();
            zones.into_iter().filter_map(for_zone).collect()
        }
    };
    Hinted { by_node: kept(ready, "node", site.node, |hints| &hints.for_nodes), by_zone }
}

/// What hints leave for one node, where they leave something out. Both ways where both would do: hints for nodes may be switched
/// off, so that only the node's rules tell which one it went.
pub fn kept_by_hints(cluster: &Cluster, service: &Service, port: &ServicePort, like: IpAddr, node: &Node) -> Vec<Kept> {
    let mut ready = Ready::new();
    for slice in cluster.slices_of(service) {
        let Some(number) = number_of(slice, port) else { continue };
        for endpoint in slice.endpoints.iter().filter(|endpoint| endpoint.conditions.ready.unwrap_or(true)) {
            let hints = endpoint.hints.as_ref();
            let of_family = addresses(endpoint, like.is_ipv4());
            ready.extend(of_family.map(|address| (Endpoint { address, port: number }, hints)));
        }
    }
    let Hinted { by_node, by_zone } = hinted(&ready, Site { node: &node.metadata.name, zone: Some(node.zone()) });
    by_node.into_iter().chain(by_zone).filter(|kept| !kept.left_out.is_empty()).collect()
}

fn kept(ready: &Ready<'_>, kind: &str, name: &str, list: fn(&EndpointHints) -> &Vec<HintedFor>) -> Option<Kept> {
    let (mut endpoints, mut left_out) = (BTreeSet::new(), BTreeSet::new());
    for (endpoint, hints) in ready {
        let hinted = list((*hints)?);
        if hinted.is_empty() {
            return None;
        }
        let set = if hinted.iter().any(|hint| hint.name == name) { &mut endpoints } else { &mut left_out };
        set.insert(endpoint.clone());
    }
    (!endpoints.is_empty()).then(|| Kept { whose: format!("{kind} {name}"), endpoints, left_out })
}

/// The number that a slice has for the Service's port of the same name and protocol (EndpointSlice API).
fn number_of(slice: &EndpointSlice, port: &ServicePort) -> Option<u16> {
    let named = |p: &&EndpointPort| p.name == port.name && p.protocol.0 == port.protocol.0;
    slice.ports.iter().find(named).and_then(|p| p.port)
}

fn addresses(endpoint: &object::Endpoint, ipv4: bool) -> impl Iterator<Item = IpAddr> {
    // kube-proxy uses the first address of an endpoint alone; the API says the others mean the same pod.
    let first: Option<IpAddr> = endpoint.addresses.first().and_then(|address| address.parse().ok());
    first.into_iter().filter(move |address| address.is_ipv4() == ipv4)
}

/// What a node's rules lack for every Service of the cluster, as a count of its proxied Services with endpoints.
pub fn services_with_endpoints<'c>(cluster: &'c Cluster, node: &'c str) -> impl Iterator<Item = &'c Service> {
    cluster.services.iter().map(AsRef::as_ref).filter(|service| is_proxied(service)).filter(move |service| {
        service.cluster_ips().iter().any(|address| {
            service.spec.ports.iter().any(|port| !wanted(cluster, service, port, *address, node).endpoints.is_empty())
        })
    })
}
