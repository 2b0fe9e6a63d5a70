//! Who an address or a namespace is: pods by UID and address, Services by address and by what is behind them.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use netdiag_common::observation::Owner;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::evidence::Cluster;
use crate::evidence::object::{Pod, Service};

/// Whose network namespace, and on which node.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
pub struct Place {
    pub node: String,
    /// Empty unless it is a pod's that the API knows.
    pub namespace: String,
    pub pod: String,
    /// As a reader names it: `shop/web-1`, `host`, `pod of UID …`, `namespace 4026532…`.
    pub name: String,
}

/// One end of a connection.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
pub struct Peer {
    /// `10.96.0.10:53`; without a port where none is known.
    pub address: String,
    /// `pod shop/web-1`, `service shop/web`, `node n1`; empty for addresses that belong to nothing in the cluster.
    pub name: String,
}

/// Indexes over one cluster's objects, made once for all rows.
pub struct Names<'c> {
    pods_by_uid: BTreeMap<&'c str, &'c Pod>,
    pods_by_address: BTreeMap<IpAddr, &'c Pod>,
    services_by_address: BTreeMap<IpAddr, &'c Service>,
    nodes_by_address: BTreeMap<IpAddr, &'c str>,
}

impl<'c> Names<'c> {
    pub fn of(cluster: &'c Cluster) -> Self {
        let pods = || cluster.pods.iter().map(|pod| &**pod);
        // A finished pod's address may be another's by now.
        let own_address = |pod: &&Pod| !pod.spec.host_network && !pod.is_finished();
        let addresses = |pod: &'c Pod| pod.addresses().map(move |address| (address, pod)).collect::<Vec<_>>();
        let service_addresses =
            |service: &'c Service| service.cluster_ips().into_iter().map(move |address| (address, service));
        Self {
            pods_by_uid: pods().map(|pod| (pod.metadata.uid.as_str(), pod)).collect(),
            pods_by_address: pods().filter(own_address).flat_map(addresses).collect(),
            services_by_address: cluster.services.iter().flat_map(|service| service_addresses(service)).collect(),
            nodes_by_address: cluster
                .nodes
                .iter()
                .flat_map(|node| node.internal_ips().map(|address| (address, node.metadata.name.as_str())))
                .collect(),
        }
    }

    pub fn place(&self, node: &str, owner: &Owner) -> Place {
        let (namespace, pod, name) = match owner {
            Owner::Host => (String::new(), String::new(), "host".to_owned()),
            Owner::Pod { uid } => match self.pods_by_uid.get(uid.as_str()) {
                Some(pod) => {
                    let meta = &pod.metadata;
                    (meta.namespace.clone(), meta.name.clone(), format!("{}/{}", meta.namespace, meta.name))
                }
                // Static pods are known to the API by another UID than to their node; a pod may be gone already.
                None => (String::new(), String::new(), format!("pod of UID {uid}")),
            },
            Owner::Unknown { id: 0 } => (String::new(), String::new(), "unknown".to_owned()),
            Owner::Unknown { id } => (String::new(), String::new(), format!("namespace {id}")),
        };
        Place { node: node.to_owned(), namespace, pod, name }
    }

    pub fn peer(&self, socket: SocketAddr) -> Peer {
        let address = if socket.port() == 0 { socket.ip().to_string() } else { socket.to_string() };
        Peer { address, name: self.name(socket.ip()) }
    }

    /// Empty for an address that belongs to nothing in the cluster.
    pub fn name(&self, address: IpAddr) -> String {
        if let Some(pod) = self.pods_by_address.get(&address) {
            return format!("pod {}/{}", pod.metadata.namespace, pod.metadata.name);
        }
        if let Some(service) = self.services_by_address.get(&address) {
            return format!("service {}/{}", service.metadata.namespace, service.metadata.name);
        }
        self.nodes_by_address.get(&address).map_or_else(String::new, |node| format!("node {node}"))
    }
}

/// Addresses and UIDs of some pods.
pub(super) fn ends<'c>(pods: impl Iterator<Item = &'c Pod>) -> (BTreeSet<String>, BTreeSet<IpAddr>) {
    let (mut uids, mut addresses) = (BTreeSet::new(), BTreeSet::new());
    for pod in pods.filter(|pod| !pod.spec.host_network && !pod.is_finished()) {
        uids.insert(pod.metadata.uid.clone());
        addresses.extend(pod.addresses());
    }
    (uids, addresses)
}

impl Place {
    /// The node's own namespace.
    pub(super) fn is_host(&self) -> bool {
        self.name == "host"
    }
}

impl Peer {
    /// The name with the address behind it, or the bare address.
    pub fn words(&self) -> String {
        match (self.name.as_str(), self.address.rsplit_once(':')) {
            ("", _) => self.address.clone(),
            (name, Some((_, port))) if self.address.parse::<SocketAddr>().is_ok() => format!("{name}:{port}"),
            (name, _) => name.to_owned(),
        }
    }
}
