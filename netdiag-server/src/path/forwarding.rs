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
    /// Some node has an endpoint that could be used: without one connections are refused, otherwise dropped.
    pub anywhere: bool,
    /// Zone or node hints let a proxy choose fewer (topology-aware routing).
    pub hinted: bool,
    /// The newest change of the Service's slices.
    pub changed_at: Option<Timestamp>,
}

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
    wanted_of(slices, service, port, address.is_ipv4(), node, traffic)
}

/// The same of slices that were found before.
pub fn wanted_of<'s>(
    slices: impl IntoIterator<Item = &'s EndpointSlice>,
    service: &Service,
    port: &ServicePort,
    ipv4: bool,
    node: &str,
    traffic: Traffic,
) -> Wanted {
    let policy = match traffic {
        Traffic::Internal => &service.spec.internal_traffic_policy,
        Traffic::External => &service.spec.external_traffic_policy,
    };
    endpoints_of(slices, port, ipv4, (policy == "Local").then_some(node))
}

/// The endpoints of a Service's port, of all nodes or of one.
pub fn endpoints(
    cluster: &Cluster,
    service: &Service,
    port: &ServicePort,
    like: IpAddr,
    only_on: Option<&str>,
) -> Wanted {
    endpoints_of(cluster.slices_of(service).map(AsRef::as_ref), port, like.is_ipv4(), only_on)
}

/// kube-proxy takes the ready endpoints, and when there is none those that still serve while they terminate
/// (`pkg/proxy/topology.go`, `CategorizeEndpoints`). A traffic policy `Local` looks at those of one node alone.
fn endpoints_of<'s>(
    slices: impl IntoIterator<Item = &'s EndpointSlice>,
    port: &ServicePort,
    ipv4: bool,
    only_on: Option<&str>,
) -> Wanted {
    let mut found = Wanted::default();
    let (mut ready, mut serving) = (BTreeSet::new(), BTreeSet::new());
    for slice in slices {
        found.changed_at = found.changed_at.max(slice.metadata.changed_at);
        let Some(number) = number_of(slice, port) else { continue };
        for endpoint in &slice.endpoints {
            let is_within_reach = only_on.is_none_or(|node| endpoint.node_name == node);
            found.hinted |= is_within_reach && endpoint.hints.is_some();
            let conditions = &endpoint.conditions;
            let is_ready = conditions.ready.unwrap_or(true);
            let set = if is_ready {
                &mut ready
            } else if conditions.terminating == Some(true) && conditions.serving.unwrap_or(is_ready) {
                &mut serving
            } else {
                continue;
            };
            let mut usable = addresses(endpoint, ipv4).map(|address| Endpoint { address, port: number }).peekable();
            found.anywhere |= usable.peek().is_some();
            if is_within_reach {
                set.extend(usable);
            }
        }
    }
    found.endpoints = if ready.is_empty() { serving } else { ready };
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

/// kube-proxy keeps to the ready endpoints that are hinted for its node, or else for its zone, where every ready endpoint has
/// such a hint and one is for it (`pkg/proxy/topology.go`, `topologyModeFromHints`). Both ways where both would do: hints for
/// nodes may be switched off, so that only the node's rules tell which one it went. None where hints leave nothing out.
pub fn kept_by_hints(cluster: &Cluster, service: &Service, port: &ServicePort, like: IpAddr, node: &Node) -> Vec<Kept> {
    let mut ready: BTreeMap<Endpoint, Option<&EndpointHints>> = BTreeMap::new();
    for slice in cluster.slices_of(service) {
        let Some(number) = number_of(slice, port) else { continue };
        for endpoint in slice.endpoints.iter().filter(|endpoint| endpoint.conditions.ready.unwrap_or(true)) {
            let hints = endpoint.hints.as_ref();
            let of_family = addresses(endpoint, like.is_ipv4());
            ready.extend(of_family.map(|address| (Endpoint { address, port: number }, hints)));
        }
    }
    let by_node = kept(&ready, "node", &node.metadata.name, |hints| &hints.for_nodes);
    let by_zone = kept(&ready, "zone", node.zone(), |hints| &hints.for_zones);
    by_node.into_iter().chain(by_zone).collect()
}

fn kept(
    ready: &BTreeMap<Endpoint, Option<&EndpointHints>>,
    kind: &str,
    name: &str,
    list: fn(&EndpointHints) -> &Vec<HintedFor>,
) -> Option<Kept> {
    let (mut endpoints, mut left_out) = (BTreeSet::new(), BTreeSet::new());
    for (endpoint, hints) in ready {
        let hinted = list((*hints)?);
        if hinted.is_empty() {
            return None;
        }
        let set = if hinted.iter().any(|hint| hint.name == name) { &mut endpoints } else { &mut left_out };
        set.insert(endpoint.clone());
    }
    let divides = !endpoints.is_empty() && !left_out.is_empty();
    divides.then(|| Kept { whose: format!("{kind} {name}"), endpoints, left_out })
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
