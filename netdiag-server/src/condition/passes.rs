//! Whether the rules and routes of two nodes let packets pass between them: what a condition asks that looks for whoever else
//! keeps them.

use std::sync::Arc;

use jiff::Timestamp;
use netdiag_common::forwarding::path::End;
use netdiag_common::forwarding::{Path as Fated, Without};
use netdiag_common::observation::fate::{Fate, FateInterfaceKey, FateOrigin, FateRequest, FateTransport};
use netdiag_common::observation::{Observation, Protocol};
use netdiag_common::{Gap, GapReason, Need, Netns, Reading, Topic};

use super::overlay::Tunnelled;
use super::way::SOURCE_PORT;
use crate::evidence::View;
use crate::path::{Backend, Client, Path};
use crate::trace::{Begins, Direction, Leg, TUNNELS, Tunnels, WayEnd, ways};

/// What nodes were told to do with packets.
pub(super) enum Programmed {
    /// They let them pass.
    Passes {
        at: Timestamp,
    },
    /// They do not, or not as themselves: the end of a sentence.
    Otherwise(String),
    Dark,
}

/// The packet of one client to one endpoint on another node, and its answer. A tunnel that hides it on the way is none of this.
pub(super) fn there_and_back(path: &Path, client: &Client, backend: &Backend, view: &mut View) -> Programmed {
    let (protocol, destination, port) = (path.protocol, backend.address, backend.port);
    let (source_port, without, tunnels) = (SOURCE_PORT, Without::new(), Tunnels::Trusted);
    let begins = Begins { client, protocol, source_port, destination, port, without: &without, tunnels };
    let (all, needs) = ways(view.cluster(), begins, &mut |need| view.reading(need));
    let Some(at) = all.ways.iter().filter_map(|way| way.legs.first()).map(|leg| leg.at).min() else {
        return Programmed::Dark;
    };
    if !needs.is_empty() || all.cut {
        return Programmed::Dark;
    }
    for way in &all.ways {
        if matches!(way.end, WayEnd::Unseen { .. }) {
            return Programmed::Dark;
        }
        for leg in &way.legs {
            if let Some(why) = why_unknown(leg.path()) {
                view.leave_open(open(&leg.place.node, why));
                return Programmed::Dark;
            }
        }
        match &way.end {
            WayEnd::Answered => {}
            WayEnd::LeftCluster { to } => {
                return Programmed::Otherwise(format!("packets are sent to {to}, which is no node's and no pod's"));
            }
            _ => return Programmed::Otherwise("the rules and routes on its way do not lead there and back".to_owned()),
        }
        let of = |node: &str| way.legs.iter().find(|leg| is_forwarded(leg, node));
        let (Some(sends), Some(takes)) = (of(&client.node), of(&backend.node)) else {
            return Programmed::Otherwise("it does not go from node to node".to_owned());
        };
        if is_hidden(sends.path(), &sends.fate) {
            view.leave_open(open(&client.node, "packets leave it in a tunnel that nothing here looks into".to_owned()));
            return Programmed::Dark;
        }
        if let Some(gap) = untracked(&backend.node, takes.path()) {
            view.leave_open(gap);
            return Programmed::Dark;
        }
    }
    Programmed::Passes { at }
}

/// One packet of a tunnel, from node to node.
pub(super) fn outer(direction: &Tunnelled, view: &mut View) -> Programmed {
    let Tunnelled { from, to, outer: Some(outer), near, far, .. } = direction else { return Programmed::Dark };
    if let Some(mark) = direction.entrance.tunnel.mark {
        view.leave_open(open(from, format!("the tunnel's packets are routed by a mark of their own, {mark:#x}")));
        return Programmed::Dark;
    }
    let transport = match (outer.protocol, outer.port) {
        (Some(Protocol::Udp), destination_port) => FateTransport::Udp { source_port: None, destination_port },
        (Some(Protocol::Ipip), _) => FateTransport::Ipip,
        _ => return Programmed::Dark,
    };
    let Some(source) = direction.source() else { return Programmed::Dark };
    let address = far.network.addresses.iter().find(|own| own.address == outer.destination);
    let Some(arrives) = address.map(|own| own.link_index) else {
        return Programmed::Otherwise(format!("{} is no address of node {to}", outer.destination));
    };
    let request = |origin| FateRequest {
        by_kernel: true,
        ..FateRequest::new(origin, Some(source), outer.destination, transport)
    };
    let sent = fate(from, request(FateOrigin::Sent), view);
    let taken = fate(to, request(FateOrigin::Received(FateInterfaceKey::Index(arrives))), view);
    let (Some(sent), Some(taken)) = (sent, taken) else { return Programmed::Dark };
    for (node, fate) in [(*from, sent), (*to, taken)] {
        if fate.outcome.cut || fate.outcome.paths.is_empty() {
            return Programmed::Dark;
        }
        for path in &fate.outcome.paths {
            if let Some(why) = why_unknown(path) {
                view.leave_open(open(node, why));
                return Programmed::Dark;
            }
            let passes = match path.end {
                End::Sent { .. } => node == *from && !is_hidden(path, fate),
                End::Delivered => node == *to,
                _ => false,
            };
            if !passes {
                return Programmed::Otherwise(format!("the rules and routes of node {node} do not let them pass"));
            }
            if node == *to
                && let Some(gap) = untracked(node, path)
            {
                view.leave_open(gap);
                return Programmed::Dark;
            }
        }
    }
    Programmed::Passes { at: near.at.min(far.at) }
}

/// On its way there, in the node's own namespace.
fn is_forwarded(leg: &Leg, node: &str) -> bool {
    leg.direction == Direction::Forward && leg.place.netns == Netns::Host && leg.place.node == node
}

/// It leaves by a device that packs it.
fn is_hidden(path: &Fated, fate: &Fate) -> bool {
    let End::Sent { interface, .. } = path.end else { return false };
    let device = fate.interfaces.iter().find(|device| device.index == interface);
    device.is_none_or(|device| TUNNELS.contains(&device.kind.as_str()))
}

/// What stands on the path and was not evaluated.
fn why_unknown(path: &Fated) -> Option<String> {
    match &path.end {
        End::Unknown { because, .. } => Some(because.clone()),
        _ => path.gaps.first().cloned(),
    }
}

/// What is not tracked where it arrives leaves no trace that could be missed.
fn untracked(node: &str, path: &Fated) -> Option<Gap> {
    path.connection.is_none().then(|| open(node, "packets from the other node are not tracked there".to_owned()))
}

fn fate<'e>(node: &str, request: FateRequest, view: &mut View<'e>) -> Option<&'e Arc<Fate>> {
    match view.reading(&Need::host(node, Topic::Fate(request)))? {
        Reading::Seen { value: Observation::Fate(fate), .. } => Some(fate),
        _ => None,
    }
}

fn open(node: &str, why: String) -> Gap {
    Gap {
        what: format!("whether node {node} lets packets between the nodes pass"),
        node: Some(node.to_owned()),
        reason: GapReason::Failed,
        why,
        remedy: "look with `tcpdump` at both nodes whether what one sends comes to the other".to_owned(),
    }
}
