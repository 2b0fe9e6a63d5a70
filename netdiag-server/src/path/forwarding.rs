//! Where a Service's connections should go from one node: what kube-proxy makes of EndpointSlices.

use std::collections::BTreeSet;
use std::net::IpAddr;

use jiff::Timestamp;
use netdiag_common::observation::service_rules::Endpoint;

use crate::evidence::Cluster;
use crate::evidence::object::{self, EndpointPort, Service, ServicePort};

/// The endpoints that one node's proxy should choose from, for one address of a Service.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Wanted {
    /// Empty when connections are to be refused or dropped.
    pub endpoints: BTreeSet<Endpoint>,
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

/// kube-proxy takes the ready endpoints, and when there is none those that still serve while they terminate
/// (`pkg/proxy/topology.go`, `CategorizeEndpoints`); `internalTrafficPolicy: Local` takes those of the node alone.
pub fn wanted(cluster: &Cluster, service: &Service, port: &ServicePort, address: IpAddr, node: &str) -> Wanted {
    let mut found = Wanted::default();
    let (mut ready, mut serving) = (BTreeSet::new(), BTreeSet::new());
    let local_only = service.spec.internal_traffic_policy == "Local";
    for slice in cluster.slices_of(service) {
        found.changed_at = found.changed_at.max(slice.metadata.changed_at);
        let named = |p: &&EndpointPort| p.name == port.name && p.protocol.0 == port.protocol.0;
        let Some(number) = slice.ports.iter().find(named).and_then(|p| p.port) else { continue };
        for endpoint in slice.endpoints.iter().filter(|e| !local_only || e.node_name == node) {
            found.hinted |= endpoint.hints.is_some();
            let conditions = &endpoint.conditions;
            let is_ready = conditions.ready.unwrap_or(true);
            let set = if is_ready {
                &mut ready
            } else if conditions.terminating == Some(true) && conditions.serving.unwrap_or(is_ready) {
                &mut serving
            } else {
                continue;
            };
            set.extend(addresses(endpoint, address).map(|address| Endpoint { address, port: number }));
        }
    }
    found.endpoints = if ready.is_empty() { serving } else { ready };
    found
}

fn addresses(endpoint: &object::Endpoint, like: IpAddr) -> impl Iterator<Item = IpAddr> {
    // kube-proxy uses the first address of an endpoint alone; the API says the others mean the same pod.
    let first: Option<IpAddr> = endpoint.addresses.first().and_then(|address| address.parse().ok());
    first.into_iter().filter(move |address| address.is_ipv4() == like.is_ipv4())
}

/// What a node's rules lack for every Service of the cluster, as a count of its proxied Services with endpoints.
pub fn services_with_endpoints<'c>(cluster: &'c Cluster, node: &'c str) -> impl Iterator<Item = &'c Service> {
    cluster.services.iter().map(AsRef::as_ref).filter(|service| is_proxied(service)).filter(move |service| {
        service.cluster_ips().iter().any(|address| {
            service.spec.ports.iter().any(|port| !wanted(cluster, service, port, *address, node).endpoints.is_empty())
        })
    })
}
