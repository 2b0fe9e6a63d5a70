//! Which hooks of which nodes a connection passes on its way to an endpoint, and by which interfaces.

use std::net::{IpAddr, SocketAddr};

use netdiag_common::Netns;
use netdiag_common::observation::network::Network;
use netdiag_common::observation::rules::Hook;

use super::filter::Packet;
use super::{Backend, Client, Path};

/// One node's part of the way.
#[derive(Debug)]
pub struct NodeHop<'p> {
    pub node: &'p str,
    pub hooks: &'static [Hook],
    /// The Service's address was translated on a node before this one.
    pub translated: bool,
}

/// The client's node first, then the endpoint's when it is another one.
pub fn nodes<'p>(client: &'p Client, backend: &'p Backend) -> Vec<NodeHop<'p>> {
    let from_host = client.netns == Netns::Host;
    let to_host = backend.pod.as_ref().is_some_and(|pod| pod.spec.host_network);
    let same = client.node == backend.node;
    let hooks: &[Hook] = match (from_host, same && to_host) {
        (true, false) => &[Hook::Output, Hook::Postrouting],
        (true, true) => &[Hook::Output, Hook::Postrouting, Hook::Prerouting, Hook::Input],
        (false, true) => &[Hook::Prerouting, Hook::Input],
        (false, false) => &[Hook::Prerouting, Hook::Forward, Hook::Postrouting],
    };
    let mut hops = vec![NodeHop { node: &client.node, hooks, translated: false }];
    if !same && !backend.node.is_empty() {
        let hooks: &[Hook] = if to_host {
            &[Hook::Prerouting, Hook::Input]
        } else {
            &[Hook::Prerouting, Hook::Forward, Hook::Postrouting]
        };
        hops.push(NodeHop { node: &backend.node, hooks, translated: true });
    }
    hops
}

/// The first packet of the connection on this node. Interfaces are those of the node's routes; a host's own address is left
/// open, since the host chooses it.
pub fn packet<'n>(path: &Path, client: &Client, backend: &Backend, network: Option<&'n Network>) -> Packet<'n> {
    let own = client.addresses.iter().copied().find(|own| own.is_ipv4() == backend.address.is_ipv4());
    let source = own.filter(|_| client.netns != Netns::Host);
    let endpoint = SocketAddr::new(backend.address, backend.port);
    let dialled = match (path.address_like(backend.address), path.port) {
        (Some(address), Some(port)) => SocketAddr::new(address, port),
        _ => endpoint,
    };
    let link = |address: Option<IpAddr>| {
        let network = network?;
        let index = network.route_to(address?)?.link_index?;
        network.link(index).map(|link| link.name.as_str())
    };
    Packet {
        source,
        dialled,
        endpoint,
        protocol: path.protocol,
        input: link(source),
        output: link(Some(backend.address)),
    }
}
