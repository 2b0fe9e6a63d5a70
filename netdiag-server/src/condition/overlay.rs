//! The ways of a path that go through a tunnel between two nodes, one for each direction.

use std::net::IpAddr;

use jiff::Timestamp;
use netdiag_common::Netns;
use netdiag_common::observation::network::Network;

use super::between::{Leg, crosses, legs, pairs};
use super::trace::{Met, probe_of};
use crate::evidence::{Look, View};
use crate::path::Path;
use crate::path::overlay::{Entrance, Outer, entrance, exit, outer};

/// Packets of one direction, from one node through its tunnel to another.
pub(super) struct Tunnelled<'p, 'n> {
    pub(super) from: &'p str,
    pub(super) to: &'p str,
    pub(super) entrance: Entrance<'n>,
    /// None where nothing that is written down says where it sends to.
    pub(super) outer: Option<Outer>,
    /// The device at the other end; none where that node has none.
    pub(super) exit: Option<Entrance<'n>>,
    pub(super) near: Looked<'n>,
    pub(super) far: Looked<'n>,
}

/// One node's links, addresses and routes, with the time of reading.
#[derive(Clone, Copy)]
pub(super) struct Looked<'n> {
    pub(super) network: &'n Network,
    pub(super) at: Timestamp,
}

/// The directions of one client and one endpoint on another node.
pub(super) struct Crossing<'p> {
    legs: Vec<Leg<'p>>,
    pub(super) met: Met,
}

/// Clients and endpoints on different nodes.
pub(super) fn crossings<'p>(path: &'p Path, view: &mut View) -> Vec<Crossing<'p>> {
    let crossing = pairs(path).into_iter().filter(|pair| crosses(*pair));
    let met = |(client, backend)| Crossing { legs: legs(client, backend), met: probe_of(path, view, client, backend) };
    crossing.map(met).collect()
}

impl<'p> Crossing<'p> {
    /// The directions that go through a tunnel. None: a node's links and routes could not be seen.
    pub(super) fn tunnelled<'n>(&self, view: &mut View<'n>) -> Option<Vec<Tunnelled<'p, 'n>>> {
        let mut found = Vec::new();
        for &Leg { node: from, to: address, to_node: to } in &self.legs {
            let near = looked(from, view)?;
            let Some(entrance) = entrance(near.network, address) else { continue };
            let far = looked(to, view)?;
            let back = self.legs.iter().find(|leg| leg.node == to).map(|leg| leg.to);
            let outer = outer(near.network, entrance, address);
            let exit = exit(far.network, entrance, back);
            found.push(Tunnelled { from, to, entrance, outer, exit, near, far });
        }
        Some(found)
    }
}

impl Tunnelled<'_, '_> {
    /// Where its packets come from: what the device has, or the address of the link that leads to the other end.
    pub(super) fn source(&self) -> Option<IpAddr> {
        let (outer, network) = (self.outer?, self.near.network);
        outer.source.or_else(|| {
            let link = network.route_to(outer.destination)?.link_index?;
            let mut own = network.addresses.iter().filter(|own| own.link_index == link).map(|own| own.address);
            own.find(|own| own.is_ipv4() == outer.destination.is_ipv4())
        })
    }
}

fn looked<'n>(node: &str, view: &mut View<'n>) -> Option<Looked<'n>> {
    match view.network(node, &Netns::Host) {
        Look::Seen(seen) => Some(Looked { network: seen.value, at: seen.at }),
        _ => None,
    }
}
