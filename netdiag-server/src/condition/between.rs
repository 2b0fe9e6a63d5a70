//! Paths from node to node, direction by direction: what conditions about the nodes' routes share.

use std::net::IpAddr;

use netdiag_common::Netns;

use crate::path::{Backend, Client, Path};

/// One direction between two nodes.
pub struct Leg<'p> {
    /// The node whose table is asked.
    pub node: &'p str,
    pub to: IpAddr,
    pub to_node: &'p str,
}

/// Every client with every endpoint that gets connections.
pub fn pairs(path: &Path) -> Vec<(&Client, &Backend)> {
    path.clients.iter().flat_map(|client| path.ready_backends().map(move |backend| (client, backend))).collect()
}

/// The endpoint is a pod of the pod network on another node.
pub fn crosses((client, backend): (&Client, &Backend)) -> bool {
    let in_pod_network = backend.pod.as_ref().is_some_and(|pod| !pod.spec.host_network);
    in_pod_network && !backend.node.is_empty() && backend.node != client.node
}

/// There and, for clients in the pod network, back.
pub fn legs<'p>(client: &'p Client, backend: &'p Backend) -> Vec<Leg<'p>> {
    let mut legs = vec![Leg { node: &client.node, to: backend.address, to_node: &backend.node }];
    let own = client.addresses.iter().copied().find(|own| own.is_ipv4() == backend.address.is_ipv4());
    if let (Netns::Pod(_), Some(own)) = (&client.netns, own) {
        legs.push(Leg { node: &backend.node, to: own, to_node: &client.node });
    }
    legs
}
