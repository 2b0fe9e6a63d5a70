//! What packets of one path met, for conditions that ask about single connections of it.

use std::net::{IpAddr, SocketAddr};

use netdiag_common::Netns;
use netdiag_common::observation::Protocol;
use netdiag_common::observation::kfree_skb::DropTuple;
use netdiag_common::observation::reject::RejectKind;

use crate::evidence::{Look, View};
use crate::finding::{Fate, Proof};
use crate::path::{Backend, Client, MAX_BACKEND_PROBES, MAX_CLIENT_PROBES, Path};

/// What the probe of one endpoint met.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Met {
    GotThrough,
    Failed(Fate),
    /// Not sent, not answered, or failed for reasons of the agent's own.
    Nothing,
}

/// The client's probe of this endpoint: the same that shows the symptom, so that it is sent once.
pub fn probe_of(path: &Path, view: &mut View, client: &Client, backend: &Backend) -> Met {
    // Beyond the first clients and endpoints, and between address families, no probe is made: asking for it would send one.
    let own = |other: &Client| other.node == client.node && other.netns == client.netns;
    if !client.speaks_to(backend.address) || !path.clients.iter().take(MAX_CLIENT_PROBES).any(own) {
        return Met::Nothing;
    }
    let index = path.ready_backends().position(|other| other.address == backend.address);
    let request = if path.service().is_none() {
        path.address_probe(backend.address)
    } else if index.is_some_and(|index| index < MAX_BACKEND_PROBES) {
        path.backend_probe(backend)
    } else {
        None
    };
    let Some(request) = request else { return Met::Nothing };
    let Look::Seen(seen) = view.probe(&client.node, &client.netns, request) else { return Met::Nothing };
    if seen.value.succeeded() > 0 {
        return Met::GotThrough;
    }
    seen.value.attempts.iter().find_map(|attempt| Fate::of(&attempt.outcome)).map_or(Met::Nothing, Met::Failed)
}

/// One direction of a connection, after the Service's translation.
#[derive(Debug, Clone, Copy)]
pub struct Packets {
    pub source: IpAddr,
    pub destination: SocketAddr,
    pub protocol: Protocol,
}

/// Packets of this connection that one node's kernel dropped for one of these reasons.
pub fn dropped(view: &mut View, node: &str, packets: &Packets, reasons: &[&str]) -> Option<Proof> {
    let Look::Seen(drops) = view.drops(node, &Netns::Host) else { return None };
    let group = drops.value.groups.iter().find(|group| {
        reasons.contains(&group.reason.as_str()) && group.tuple.as_ref().is_some_and(|tuple| packets.are(tuple))
    })?;
    let text = format!(
        "{} packets from {} to {}/{} dropped in {:.0} s: {} at {}",
        group.packets,
        packets.source,
        packets.destination,
        packets.protocol,
        drops.value.window_s,
        group.reason,
        group.location
    );
    Some(Proof::observed("dropped packets", node, drops.at, text))
}

/// Packets of this connection that one node answered with an ICMP error: a rule that rejects, and none that drops.
pub fn rejected(view: &mut View, node: &str, packets: &Packets) -> Option<Proof> {
    let Look::Seen(rejects) = view.rejects(node, &Netns::Host) else { return None };
    let group = rejects.value.groups.iter().find(|group| {
        matches!(group.kind, RejectKind::IcmpSent { .. })
            && group.tuple.as_ref().is_some_and(|tuple| packets.are(tuple))
    })?;
    let text = format!(
        "{} packets from {} to {}/{} answered with ICMP {} in {:.0} s",
        group.packets,
        packets.source,
        packets.destination,
        packets.protocol,
        group.kind.icmp_meaning().unwrap_or("error"),
        rejects.value.window_s
    );
    Some(Proof::observed("refusals", node, rejects.at, text))
}

impl Packets {
    fn are(&self, tuple: &DropTuple) -> bool {
        tuple.source == self.source
            && tuple.destination == self.destination.ip()
            && tuple.protocol == Some(self.protocol)
            && tuple.port_is_destination
            && tuple.service_port == self.destination.port()
    }
}
