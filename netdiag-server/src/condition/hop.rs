//! What nodes have to send over their links for a path: what conditions about next hops share.

use std::net::SocketAddr;

use super::trace::Packets;
use crate::evidence::object::Pod;
use crate::path::{Backend, Client, Path};

/// What one node has to do for the path: send to this address.
pub struct Leg<'p> {
    pub node: &'p str,
    pub packets: Packets,
    /// The pod that has the address; none for a client that is a node.
    pub pod: Option<&'p Pod>,
    pub to_node: &'p str,
}

/// Clients and the pods that they mean to reach, as far as they speak one address family.
pub fn pairs(path: &Path) -> impl Iterator<Item = (&Client, &Backend, &Pod)> {
    path.clients.iter().flat_map(move |client| {
        path.ready_backends().filter_map(move |backend| {
            // An endpoint may name a pod whose address is another one by now: then nobody should answer.
            let has = |pod: &&Pod| !pod.spec.host_network && pod.addresses().any(|own| own == backend.address);
            let pod = backend.pod.as_deref().filter(has)?;
            let speaks = client.addresses.iter().any(|own| own.is_ipv4() == backend.address.is_ipv4());
            (speaks && !backend.node.is_empty()).then_some((client, backend, pod))
        })
    })
}

/// There, from the client's node and from the endpoint's own; and back the same way.
pub fn legs<'p>(path: &Path, client: &'p Client, backend: &'p Backend, pod: &'p Pod) -> Vec<Leg<'p>> {
    let own = client.addresses.iter().copied().find(|own| own.is_ipv4() == backend.address.is_ipv4());
    let Some(own) = own else { return Vec::new() };
    let there =
        Packets { source: own, destination: SocketAddr::new(backend.address, backend.port), protocol: path.protocol };
    let leg = |node, packets, pod, to_node| Leg { node, packets, pod, to_node };
    let mut legs = vec![leg(client.node.as_str(), there, Some(pod), backend.node.as_str())];
    if backend.node != client.node {
        legs.push(leg(&backend.node, there, Some(pod), &backend.node));
    }
    // A node reaches its own addresses without a neighbour.
    let own_pod = client.pod.as_deref().filter(|pod| !pod.spec.host_network);
    let back = Packets { source: backend.address, destination: SocketAddr::new(own, 0), protocol: path.protocol };
    if backend.node != client.node {
        legs.push(leg(&backend.node, back, own_pod, &client.node));
    }
    if own_pod.is_some() {
        legs.push(leg(&client.node, back, own_pod, &client.node));
    }
    legs
}
