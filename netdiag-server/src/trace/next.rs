//! Where a packet that leaves one namespace arrives. Pure: what is not known yet is asked for.

use std::net::IpAddr;

use netdiag_common::observation::fate::{Fate, FateInterface, FateInterfaceKey, FateOrigin};
use netdiag_common::observation::network::Network;
use netdiag_common::observation::{Observation, Owner};
use netdiag_common::{Gap, GapReason, Need, Netns, Reading, Topic};

use super::follow::Readings;
use super::tunnel::TUNNELS;
use super::{Place, WayEnd};
use crate::evidence::Cluster;
use crate::evidence::object::Node;

#[derive(Debug, PartialEq)]
pub(super) enum Next {
    Arrives(Place, FateOrigin),
    Ask(Box<Need>),
    End(WayEnd),
}

/// A namespace's links, addresses and forwarding databases.
pub(super) enum Looked<'e> {
    Seen(&'e Network),
    Asks(Box<Need>),
    Dark(Box<Gap>),
}

/// `interface`, `gateway` and `destination` are those that the packet leaves with.
pub(super) fn next(
    cluster: &Cluster,
    readings: Readings<'_, '_>,
    place: &Place,
    fate: &Fate,
    (interface, gateway, destination): (u32, Option<IpAddr>, IpAddr),
) -> Next {
    let Some(device) = fate.interfaces.iter().find(|device| device.index == interface) else {
        let why = format!("the agent did not tell what interface {interface} is");
        return unseen(place, why, "upgrade netdiag-node to the server's version");
    };
    if let Some(peer) = &device.peer
        && let Some(owner) = &peer.owner
    {
        let netns = match owner {
            Owner::Host => Netns::Host,
            Owner::Pod { uid } => Netns::Pod(uid.clone()),
            Owner::Unknown { .. } => return foreign(place, device),
        };
        let origin = FateOrigin::Received(FateInterfaceKey::Index(peer.index));
        return Next::Arrives(Place { node: place.node.clone(), netns }, origin);
    }
    if TUNNELS.contains(&device.kind.as_str()) {
        let Some(node) = node_behind(cluster, destination) else {
            return Next::End(WayEnd::LeftCluster { to: destination });
        };
        // As far as it is trusted, or not known: both ends are made by one program, which gives them one name.
        let origin = FateOrigin::Received(FateInterfaceKey::Name(device.name.clone()));
        return Next::Arrives(Place { node, netns: Netns::Host }, origin);
    }
    let hop = gateway.unwrap_or(destination);
    if let Some(pod) = cluster.pod_by_address(hop) {
        let arrives = Place { node: pod.spec.node_name.clone(), netns: Netns::Pod(pod.metadata.uid.clone()) };
        return at_address(readings, arrives, hop);
    }
    match cluster.node_by_address(hop) {
        Some(node) => at_address(readings, Place { node: node.metadata.name.clone(), netns: Netns::Host }, hop),
        None => Next::End(WayEnd::LeftCluster { to: hop }),
    }
}

/// The node that a pod's address is on.
pub(super) fn node_behind(cluster: &Cluster, address: IpAddr) -> Option<String> {
    let by_pod = cluster.pod_by_address(address).map(|pod| pod.spec.node_name.clone());
    by_pod.or_else(|| {
        let holds = |node: &&std::sync::Arc<Node>| node.spec.pod_cidrs.iter().any(|network| network.contains(&address));
        cluster.nodes.iter().find(holds).map(|node| node.metadata.name.clone())
    })
}

/// On which interface of a namespace something for its address arrives.
pub(super) fn at_address(readings: Readings<'_, '_>, place: Place, address: IpAddr) -> Next {
    let network = match look(readings, &place) {
        Looked::Seen(network) => network,
        Looked::Asks(need) => return Next::Ask(need),
        Looked::Dark(gap) => return Next::End(WayEnd::Unseen { gap }),
    };
    match network.addresses.iter().find(|own| own.address == address) {
        Some(own) => Next::Arrives(place, FateOrigin::Received(FateInterfaceKey::Index(own.link_index))),
        None => {
            let why = format!("no interface of {} has the address {address}, which the API gives it", place.node);
            unseen(&place, why, "compare the addresses of the object's status with `ip addr` there")
        }
    }
}

pub(super) fn look<'e>(readings: Readings<'e, '_>, place: &Place) -> Looked<'e> {
    let need = place.need(Topic::Network);
    match readings(&need) {
        None => Looked::Asks(Box::new(need)),
        Some(Reading::Seen { value: Observation::Network(network), .. }) => Looked::Seen(network),
        Some(Reading::Unavailable { gap }) => Looked::Dark(Box::new(gap.clone())),
        Some(_) => {
            let why = "its interfaces were not told".to_owned();
            Looked::Dark(Box::new(untold(place, why, "ask the agent again")))
        }
    }
}

fn foreign(place: &Place, device: &FateInterface) -> Next {
    let why = format!(
        "interface {} of node {} leads to a network namespace that belongs to no pod the agent found",
        device.name, place.node
    );
    unseen(place, why, "check with `ip netns` and `lsns -t net` whose namespace it is")
}

fn unseen(place: &Place, why: String, remedy: &str) -> Next {
    Next::End(WayEnd::Unseen { gap: Box::new(untold(place, why, remedy)) })
}

fn untold(place: &Place, why: String, remedy: &str) -> Gap {
    Gap {
        what: "the way of the packet".to_owned(),
        node: Some(place.node.clone()),
        reason: GapReason::Malformed,
        why,
        remedy: remedy.to_owned(),
    }
}
