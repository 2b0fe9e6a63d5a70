//! How a node sends to another node's pods through a tunnel: by which device, and in which outer packet.

use std::net::IpAddr;

use netdiag_common::observation::network::{Link, Network, Route, Tunnel};

use super::route::{Way, way};

/// The tunnel that a node's route to another node's pod leads into.
#[derive(Debug, Clone, Copy)]
pub struct Entrance<'n> {
    pub link: &'n Link,
    pub tunnel: &'n Tunnel,
}

/// The outer packet that carries a packet for one address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Outer {
    /// None: the node's route to the destination decides.
    pub source: Option<IpAddr>,
    /// The other node, as this one knows it.
    pub destination: IpAddr,
    /// UDP port; none for tunnels that are protocols of their own.
    pub port: Option<u16>,
    /// VNI or key.
    pub id: Option<u32>,
}

/// None where the route to `address` leads into no tunnel whose parameters the agent tells.
pub fn entrance(network: &Network, address: IpAddr) -> Option<Entrance<'_>> {
    let Way::Known(route) = way(network, address) else { return None };
    let link = network.link(route.link_index?)?;
    link.tunnel.as_ref().map(|tunnel| Entrance { link, tunnel })
}

/// Where the tunnel sends what is for `address`. None where nothing that is written down says so: it floods, learns, asks, or
/// is told with each packet.
pub fn outer(network: &Network, entrance: Entrance<'_>, address: IpAddr) -> Option<Outer> {
    let Entrance { link, tunnel } = entrance;
    if tunnel.external {
        return None;
    }
    let base = Outer { source: tunnel.local, destination: address, port: tunnel.port, id: tunnel.id };
    if let Some(remote) = tunnel.remote.filter(|remote| !remote.is_multicast()) {
        return Some(Outer { destination: remote, ..base });
    }
    let Way::Known(Route { gateway, .. }) = way(network, address) else { return None };
    let hop = gateway.unwrap_or(address);
    let neighbour = network.neighbours.iter().find(|known| known.link_index == link.index && known.address == hop)?;
    let mac = neighbour.mac.as_ref()?;
    let mut entries = network.forwarding.iter().filter(|entry| entry.link_index == link.index && entry.mac == *mac);
    let entry = entries.find(|entry| entry.destination.is_some())?;
    Some(Outer { destination: entry.destination?, port: entry.port.or(base.port), id: entry.id.or(base.id), ..base })
}

/// The device of another node that takes what comes out of `entrance`: the one that leads back to `address`, else the one of
/// the same name, since one program makes both.
pub fn exit<'n>(network: &'n Network, entrance: Entrance<'_>, address: Option<IpAddr>) -> Option<Entrance<'n>> {
    let back = address.and_then(|address| self::entrance(network, address));
    back.filter(|back| back.link.kind == entrance.link.kind).or_else(|| {
        let link = network.links.iter().find(|link| link.name == entrance.link.name)?;
        link.tunnel.as_ref().map(|tunnel| Entrance { link, tunnel })
    })
}
