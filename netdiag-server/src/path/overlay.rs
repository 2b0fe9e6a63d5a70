//! How a node sends to another node's pods through a tunnel: by which device, and in which outer packet.

use std::net::{IpAddr, SocketAddr};

use netdiag_common::observation::Protocol;
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
    /// What carries the packet; none for tunnels whose packets nothing here looks for.
    pub protocol: Option<Protocol>,
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
    let protocol = protocol(link, tunnel);
    let base = Outer { source: tunnel.local, destination: address, protocol, port: tunnel.port, id: tunnel.id };
    if let Some(remote) = tunnel.remote.filter(|remote| !remote.is_multicast()) {
        return Some(Outer { destination: remote, ..base });
    }
    let Way::Known(Route { gateway, .. }) = way(network, address) else { return None };
    // Such a device has no neighbours: without another end, it sends to the route's gateway itself (`ip_tunnel_xmit`, "NBMA tunnel",
    // net/ipv4/ip_tunnel.c).
    if link.kind == "ipip" {
        return gateway.map(|destination| Outer { destination, ..base });
    }
    let hop = gateway.unwrap_or(address);
    let neighbour = network.neighbours.iter().find(|known| known.link_index == link.index && known.address == hop)?;
    let mac = neighbour.mac.as_ref()?;
    let mut entries = network.forwarding.iter().filter(|entry| entry.link_index == link.index && entry.mac == *mac);
    let entry = entries.find(|entry| entry.destination.is_some())?;
    Some(Outer { destination: entry.destination?, port: entry.port.or(base.port), id: entry.id.or(base.id), ..base })
}

fn protocol(link: &Link, tunnel: &Tunnel) -> Option<Protocol> {
    match (link.kind.as_str(), tunnel.port) {
        // In UDP, whose port is not told (FOU, GUE), or with labels of MPLS.
        _ if tunnel.encapsulated => None,
        ("ipip", _) => Some(Protocol::Ipip),
        (_, Some(_)) => Some(Protocol::Udp),
        _ => None,
    }
}

impl Outer {
    /// Protocol and destination, with port 0 where the protocol has none.
    pub fn to(&self) -> Option<(Protocol, SocketAddr)> {
        Some((self.protocol?, SocketAddr::new(self.destination, self.port.unwrap_or(0))))
    }

    /// What has to pass between the nodes: `UDP port 8472`, `IP protocol 4, IPIP`.
    pub fn words(&self) -> String {
        match (self.port, self.protocol) {
            (Some(port), _) => format!("UDP port {port}"),
            (None, Some(protocol)) => format!("IP protocol {}, {}", protocol.number(), protocol.kubernetes()),
            (None, None) => "its own IP protocol".to_owned(),
        }
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ipip_in_udp_is_not_looked_for_as_ipip() {
        let carries = |encapsulated: bool| {
            let remote = Some("172.30.0.12".parse().unwrap());
            let tunnel = Tunnel { remote, encapsulated, ..Tunnel::default() };
            let link = Link { kind: "ipip".to_owned(), ..Link::default() };
            let entrance = Entrance { link: &link, tunnel: &tunnel };
            let outer = outer(&Network::default(), entrance, "10.244.2.3".parse().unwrap()).unwrap();
            (Some(outer.destination) == remote, outer.protocol)
        };
        assert_eq!(carries(false), (true, Some(Protocol::Ipip)));
        assert_eq!(carries(true), (true, None));
    }
}
