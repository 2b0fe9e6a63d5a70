//! What kube-proxy should have written on one node, for every port of every Service (`pkg/proxy/serviceport.go`, Kubernetes 1.36).

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;

use ipnet::IpNet;
use jiff::Timestamp;
use netdiag_common::observation::Protocol;
use netdiag_common::observation::service_rules::Proxier;

use crate::evidence::Cluster;
use crate::evidence::object::{EndpointSlice, Service, ServicePort};
use crate::path::forwarding::{Site, Traffic, Wanted, is_proxied, wanted_by_ipvs, wanted_of};

/// Where connections come in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Entrance {
    Address(IpAddr, Protocol, u16),
    /// On addresses of the node, of one family.
    NodePort {
        ipv6: bool,
        protocol: Protocol,
        port: u16,
    },
}

/// What one entrance should do.
#[derive(Debug, Clone)]
pub(super) struct Intention {
    /// `namespace/name:port`, as kube-proxy writes it.
    pub service: String,
    pub wanted: Wanted,
    /// `sessionAffinity: ClientIP`
    pub sticky: bool,
    /// Who may use it (`loadBalancerSourceRanges`); none for everybody.
    pub sources: Option<BTreeSet<IpNet>>,
    /// The newest change of the Service or its slices.
    pub changed_at: Option<Timestamp>,
}

/// Slices by their Services: a search in the namespace for each of 10 000 Services would take minutes.
pub(super) struct Slices<'c>(HashMap<(&'c str, &'c str), Vec<&'c EndpointSlice>>);

impl<'c> Slices<'c> {
    pub(super) fn of(cluster: &'c Cluster) -> Self {
        let mut slices: HashMap<_, Vec<_>> = HashMap::new();
        for slice in cluster.endpoint_slices.iter() {
            slices.entry((&*slice.metadata.namespace, slice.service_name())).or_default().push(&**slice);
        }
        Self(slices)
    }

    fn of_service<'s>(&'s self, service: &'s Service) -> &'s [&'c EndpointSlice] {
        let key = (&*service.metadata.namespace, &*service.metadata.name);
        self.0.get(&key).map(Vec::as_slice).unwrap_or_default()
    }
}

/// Everything that should lead somewhere on this node.
pub(super) fn intended(
    cluster: &Cluster,
    slices: &Slices<'_>,
    node: &str,
    proxier: Proxier,
) -> BTreeMap<Entrance, Intention> {
    let site = Site::of(cluster, node);
    let mut all = BTreeMap::new();
    for service in cluster.services.iter().filter(|service| is_proxied(service)) {
        for port in &service.spec.ports {
            for (entrance, intention) in of_port(service, port, slices.of_service(service), site, proxier) {
                // Two Services may claim one external address; kube-proxy lets one of them win.
                all.entry(entrance).or_insert(intention);
            }
        }
    }
    all
}

fn of_port(
    service: &Service,
    port: &ServicePort,
    slices: &[&EndpointSlice],
    site: Site<'_>,
    proxier: Proxier,
) -> Vec<(Entrance, Intention)> {
    let mut found = Vec::new();
    let own = service.cluster_ips();
    let external: Vec<IpAddr> = service.listed_external_ips().collect();
    let balanced: Vec<IpAddr> = service.load_balancer_ips().collect();
    let protocol = port.protocol.0;
    let intention = |ipv4: bool, traffic: Traffic, sources: Option<BTreeSet<IpNet>>| {
        let wanted = match proxier {
            Proxier::Ipvs => wanted_by_ipvs(slices, service, port, ipv4, site, traffic),
            _ => wanted_of(slices.iter().copied(), service, port, ipv4, site, traffic),
        };
        let changed_at = wanted.changed_at.max(service.metadata.changed_at);
        let sticky = service.spec.session_affinity == "ClientIP";
        Intention { service: full_name(service, port), wanted, sticky, sources, changed_at }
    };
    for address in &own {
        let entrance = Entrance::Address(*address, protocol, port.port);
        found.push((entrance, intention(address.is_ipv4(), Traffic::Internal, None)));
    }
    // The proxier of a family knows only Services with a cluster IP of that family.
    let families: BTreeSet<bool> = own.iter().map(IpAddr::is_ipv4).collect();
    for ipv4 in families {
        for (addresses, is_balanced) in [(&external, false), (&balanced, true)] {
            for address in addresses.iter().filter(|address| address.is_ipv4() == ipv4 && !own.contains(address)) {
                let sources = if is_balanced { sources(service, ipv4) } else { None };
                let entrance = Entrance::Address(*address, protocol, port.port);
                found.push((entrance, intention(ipv4, Traffic::External, sources)));
            }
        }
        if port.node_port != 0 {
            let entrance = Entrance::NodePort { ipv6: !ipv4, protocol, port: port.node_port };
            found.push((entrance, intention(ipv4, Traffic::External, None)));
        }
    }
    found
}

/// The networks of this family; none when there are none, which lets everybody in.
fn sources(service: &Service, ipv4: bool) -> Option<BTreeSet<IpNet>> {
    let nets: BTreeSet<IpNet> =
        service.load_balancer_source_ranges().filter(|net: &IpNet| net.addr().is_ipv4() == ipv4).collect();
    (!nets.is_empty()).then(|| nets.into_iter().map(|net| net.trunc()).collect())
}

fn full_name(service: &Service, port: &ServicePort) -> String {
    let (namespace, name) = (&service.metadata.namespace, &service.metadata.name);
    if port.name.is_empty() { format!("{namespace}/{name}") } else { format!("{namespace}/{name}:{}", port.name) }
}
