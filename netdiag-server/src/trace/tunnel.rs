//! Through a tunnel: the outer packet that carries what leaves by a tunnel's device, and where it is taken out again. Pure.

use std::net::IpAddr;

use netdiag_common::forwarding::path::{Decision, End};
use netdiag_common::forwarding::tunnel::{
    Arrived, Encapsulation, Hop, Outer, Packed, Unpacked, Untold, packed, unpacked,
};
use netdiag_common::observation::fate::{FateInterface, FateInterfaceKey, FateOrigin, FateRequest, FateTransport};
use netdiag_common::{Gap, GapReason, Need, Netns};

use super::follow::Readings;
use super::next::{Looked, look, node_behind};
use super::{Leg, Place};
use crate::evidence::Cluster;

/// Device types that pack a packet into another one, for a node that the destination says.
pub(crate) const TUNNELS: [&str; 10] =
    ["vxlan", "geneve", "ipip", "sit", "gre", "ip6gre", "ip6tnl", "wireguard", "gretap", "ip6gretap"];

/// Whether tunnels are looked into.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tunnels {
    /// The outer packet is followed from node to node.
    Followed,
    /// They carry what they are given, by devices of one name: conditions about overlays judge them by themselves.
    Trusted,
}

/// The packet of a leg is a tunnel's, and carries the one of another leg.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Carrier {
    /// That other leg, in [`Way::legs`](super::Way::legs): the one that ends at the tunnel's device.
    pub inside: usize,
    /// `flannel.1`
    pub device: String,
    pub outer: Outer,
}

/// What a device makes of a packet that leaves by it.
pub(super) enum Entered {
    Asks(Box<Need>),
    Sends(Box<Sends>),
    Drops { why: String },
    Untold(Box<Gap>),
}

pub(super) struct Sends {
    pub(super) carrier: Carrier,
    pub(super) request: FateRequest,
    /// Of what the outer packet takes over from the one inside.
    pub(super) gap: Option<Gap>,
}

/// What becomes of an outer packet that is delivered.
pub(super) enum Left {
    Asks(Box<Need>),
    /// What is inside comes in there.
    Comes(FateOrigin),
    Drops {
        why: String,
    },
    Untold(Box<Gap>),
}

/// None where the last leg's packet leaves by no tunnel.
pub(super) fn enter(readings: Readings<'_, '_>, legs: &[Leg]) -> Option<Entered> {
    let leg = legs.last()?;
    let End::Sent { interface, gateway } = leg.path().end else { return None };
    let device = leg.fate.interfaces.iter().find(|device| device.index == interface)?;
    let packet = &leg.path().packet;
    let neighbour = leg.fate.neighbours.iter().find(|neighbour| neighbour.path == leg.path);
    if device.kind == "bridge" {
        let port = neighbour.and_then(|neighbour| neighbour.port);
        let port = leg.fate.interfaces.iter().find(|own| Some(own.index) == port && is_tunnel(own))?;
        return Some(Entered::Untold(Box::new(of_a_bridge(leg, device, port))));
    }
    if !is_tunnel(device) {
        return None;
    }
    if leg.place.netns != Netns::Host {
        return Some(Entered::Untold(Box::new(of_a_pod(leg, device))));
    }
    let network = match look(readings, &leg.place) {
        Looked::Seen(network) => network,
        Looked::Asks(need) => return Some(Entered::Asks(need)),
        Looked::Dark(gap) => return Some(Entered::Untold(gap)),
    };
    let Some(link) = network.link(interface) else {
        let why = format!("{} was not among its devices a moment later", device.name);
        return Some(Entered::Untold(Box::new(gap(leg, &device.name, why, "ask again"))));
    };
    let next = gateway.unwrap_or(packet.destination());
    let mac = neighbour.and_then(|neighbour| neighbour.mac.as_deref()).or_else(|| {
        let known = network.neighbours.iter().find(|known| known.link_index == interface && known.address == next);
        known.and_then(|known| known.mac.as_deref())
    });
    Some(match packed(network, link, Hop { gateway, destination: packet.destination(), mac }) {
        Packed::Sent(outer) => {
            let request = request(leg, &outer);
            let carrier = Carrier { inside: legs.len() - 1, device: device.name.clone(), outer };
            Entered::Sends(Box::new(Sends { carrier, request, gap: unmarked(leg, &device.name) }))
        }
        Packed::Dropped { why } => Entered::Drops { why },
        Packed::Unknown(Untold { why, remedy }) => Entered::Untold(Box::new(gap(leg, &device.name, why, &remedy))),
    })
}

/// Of the last leg's packet, which `carrier` is about, and which is delivered.
pub(super) fn leave(readings: Readings<'_, '_>, leg: &Leg, carrier: &Carrier) -> Left {
    let network = match look(readings, &leg.place) {
        Looked::Seen(network) => network,
        Looked::Asks(need) => return Left::Asks(need),
        Looked::Dark(gap) => return Left::Untold(gap),
    };
    let packet = &leg.path().packet;
    let mut deliveries = leg.fate.deliveries.iter().filter(|delivery| delivery.path == leg.path);
    let arrived = Arrived {
        source: packet.source(),
        destination: packet.destination(),
        has_socket: deliveries.any(|delivery| !delivery.sockets.is_empty()),
    };
    match unpacked(network, &carrier.outer, arrived) {
        Unpacked::By(link) => Left::Comes(FateOrigin::Received(FateInterfaceKey::Index(link.index))),
        Unpacked::Dropped { why } => Left::Drops { why },
        Unpacked::Unknown(Untold { why, remedy }) => Left::Untold(Box::new(gap(leg, &carrier.device, why, &remedy))),
    }
}

/// The outer packet as the device hands it to IP. It keeps the mark of the packet inside, and begins a connection of its own
/// (`iptunnel_xmit` and `skb_scrub_packet` within one namespace, Linux 6.18). The source port of VXLAN and Geneve is a hash of the
/// packet inside (`udp_flow_src_port`), so any may be chosen, and they let routers fragment what they send.
fn request(leg: &Leg, outer: &Outer) -> FateRequest {
    let packet = &leg.path().packet;
    let (transport, may_be_fragmented) = match outer.encapsulation {
        Encapsulation::Vxlan { port, .. } | Encapsulation::Geneve { port, .. } => {
            (FateTransport::Udp { source_port: None, destination_port: Some(port) }, true)
        }
        Encapsulation::Ipip => (FateTransport::Ipip, false),
    };
    let length = packet.length.saturating_add(outer.encapsulation.overhead(outer.destination.is_ipv4()));
    FateRequest {
        mark: packet.mark.known().copied().unwrap_or_default(),
        length: Some(u16::try_from(length).unwrap_or(u16::MAX)),
        may_be_fragmented,
        by_kernel: true,
        without: leg.request.without.clone(),
        ..FateRequest::new(FateOrigin::Sent, outer.source, outer.destination, transport)
    }
}

/// An outer packet that would leave by another device than the one that the tunnel's is bound to: fates are of packets that any
/// device may send.
pub(super) fn off_its_device(leg: &Leg) -> Option<Gap> {
    let carrier = leg.carrier.as_ref()?;
    let End::Sent { interface, .. } = leg.path().end else { return None };
    let bound = carrier.outer.lower_index.filter(|bound| *bound != interface)?;
    if leg.request.origin != FateOrigin::Sent {
        return None;
    }
    let why = format!(
        "{} is bound to interface {bound}, and the routes of node {} lead to {} by interface {interface}",
        carrier.device, leg.place.node, carrier.outer.destination
    );
    let Carrier { device, outer, .. } = carrier;
    let remedy = format!("compare `ip -d link show {device}` with `ip route get {}`", outer.destination);
    Some(gap(leg, device, why, &remedy))
}

/// Packets of an IPIP tunnel are one connection, there and back, which rules may know already when this one comes: what stops a new
/// one may let it pass. Those of VXLAN and Geneve are not: both directions have the same destination port.
pub(super) fn may_be_known(leg: &Leg) -> Option<Gap> {
    let carrier = leg.carrier.as_ref().filter(|carrier| carrier.outer.encapsulation == Encapsulation::Ipip)?;
    let (End::Dropped { by } | End::Rejected { by, .. }) = &leg.path().end else { return None };
    let is_tracked = leg.path().decisions.iter().any(|decision| matches!(decision, Decision::Tracked { .. }));
    let rule = match (&by.chain, by.handle) {
        (Some(chain), Some(handle)) => format!("{chain} rule {handle}"),
        (Some(chain), None) => format!("the policy of {chain}"),
        (None, _) => format!("hook {}", by.hook),
    };
    let why = format!(
        "{rule} stops the {} on node {} if it begins a connection, and the tunnel's may be known there already",
        carrier.words(),
        leg.place.node
    );
    is_tracked.then(|| gap(leg, &carrier.device, why, "look at `conntrack -L -p 4` there, and at that rule"))
}

/// The node that the last leg's outer packet is for: the API tells one address of each, and tunnels may end at another one of the
/// node that the packet inside is for. None where that node does not have it either.
pub(super) fn far_end(
    cluster: &Cluster,
    readings: Readings<'_, '_>,
    legs: &[Leg],
    carrier: &Carrier,
) -> Result<Option<Place>, Box<Need>> {
    let on = |node: String| Place { node, netns: Netns::Host };
    let Some(end) = legs.last().map(|leg| leg.path().packet.destination()) else { return Ok(None) };
    if let Some(node) = cluster.node_by_address(end) {
        return Ok(Some(on(node.metadata.name.clone())));
    }
    let inside = legs.get(carrier.inside).map(|leg| leg.path().packet.destination());
    let Some(place) = inside.and_then(|address| node_behind(cluster, address)).map(on) else { return Ok(None) };
    match look(readings, &place) {
        Looked::Asks(need) => Err(need),
        Looked::Seen(network) if network.addresses.iter().any(|own| own.address == end) => Ok(Some(place)),
        Looked::Seen(_) | Looked::Dark(_) => Ok(None),
    }
}

/// An outer packet for an address that is no node's.
pub(super) fn nobodys(leg: &Leg, carrier: &Carrier) -> Gap {
    let to = leg.path().packet.destination();
    let why = format!("{} sends to {to}, which is no address of a node as the API tells them", carrier.device);
    let remedy = format!("compare `bridge fdb show dev {}` with the addresses of nodes", carrier.device);
    gap(leg, &carrier.device, why, &remedy)
}

/// An outer packet that goes to the other node by somebody who is none.
pub(super) fn by_a_router(leg: &Leg, carrier: &Carrier, router: IpAddr) -> Gap {
    let to = leg.path().packet.destination();
    let device = &carrier.device;
    let why = format!("packets of {device} go to {to} by {router}, which is no node, and its rules are not seen");
    gap(leg, device, why, "look with `tcpdump` at both nodes whether what one sends comes to the other")
}

/// Where what is inside and the outer packet share a mark that is not known.
pub(super) fn unmarked(leg: &Leg, device: &str) -> Option<Gap> {
    let why = "outer packets share the mark of those inside, which is not known here; none was taken".to_owned();
    let is_unknown = leg.path().packet.mark.known().is_none();
    is_unknown.then(|| gap(leg, device, why, "look at the rules of that node that set marks"))
}

fn of_a_bridge(leg: &Leg, bridge: &FateInterface, port: &FateInterface) -> Gap {
    let (bridge, name) = (&bridge.name, &port.name);
    let why = format!("bridge {bridge} hands it to its port {name}, and what bridges hand on is not evaluated");
    gap(leg, &port.name, why, "look with `tcpdump` at both nodes whether what one sends comes to the other")
}

fn of_a_pod(leg: &Leg, device: &FateInterface) -> Gap {
    let why = format!("{} is a pod's own, and may send from another namespace than the pod's", device.name);
    gap(leg, &device.name, why, "look with `tcpdump` at both nodes whether what one sends comes to the other")
}

/// Nothing failed to be read: it is not among what is evaluated.
fn gap(leg: &Leg, device: &str, why: String, remedy: &str) -> Gap {
    Gap {
        what: format!("what becomes of packets in the tunnel {device}"),
        node: Some(leg.place.node.clone()),
        reason: GapReason::Failed,
        why,
        remedy: remedy.to_owned(),
    }
}

fn is_tunnel(device: &FateInterface) -> bool {
    TUNNELS.contains(&device.kind.as_str())
}

impl Carrier {
    /// `outer packet of flannel.1 (VXLAN, VNI 1, UDP port 8472)`
    pub fn words(&self) -> String {
        format!("outer packet of {} ({})", self.device, self.outer.encapsulation.words())
    }
}

#[cfg(test)]
mod tests;
