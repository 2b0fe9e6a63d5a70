//! Whether packets of pods that leave the cluster get their node's address, as on the other nodes: each node is asked for the fate
//! of one such packet. What a cluster wants is not told anywhere, so nodes are compared with each other. Pure.

use std::net::{IpAddr, Ipv4Addr};

use netdiag_common::forwarding::path::End;
use netdiag_common::observation::Observation;
use netdiag_common::observation::fate::{Fate, FateInterfaceKey, FateOrigin, FateRequest, FateTransport};
use netdiag_common::{Need, Reading, Topic};

use super::pods::{self, Pods, host};
use super::{Difference, Kind, NodeDrift, Readings};
use crate::evidence::Cluster;
use crate::evidence::object::{Object, Pod};
use crate::path::route::is_steered;

/// Nobody's (TEST-NET-1, RFC 5737).
const OUTSIDE: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
const PORT: u16 = 443;
/// Of packets that are asked about.
pub(super) const SOURCE_PORT: u16 = 50_000;
pub(super) const SYN: u8 = 0x02;

/// What to ask the nodes besides, once their links are known.
pub(super) fn needs(pods: &Pods<'_>, nodes: &[String], readings: &Readings) -> Vec<Need> {
    nodes.iter().filter_map(|node| need(pods, node, readings)).collect()
}

fn need(pods: &Pods<'_>, node: &str, readings: &Readings) -> Option<Need> {
    let pod = pods.one(node)?;
    let address = pod.addresses().find(IpAddr::is_ipv4)?;
    let end = pods::end(pod, address, readings, host(readings, node)?)?;
    // A packet of a bridge's port comes in by the bridge.
    let origin = FateOrigin::Received(FateInterfaceKey::Index(end.master_index.unwrap_or(end.index)));
    let transport = FateTransport::Tcp { source_port: Some(SOURCE_PORT), destination_port: Some(PORT), flags: SYN };
    let request = FateRequest::new(origin, Some(address), OUTSIDE.into(), transport);
    Some(Need::host(node, Topic::Fate(request)))
}

pub(super) fn compare(cluster: &Cluster, pods: &Pods<'_>, readings: &Readings, drift: &mut NodeDrift) {
    let Some((pod, address, false)) = masquerades(pods, &drift.node, readings) else { return };
    // Policy routing may send what leaves another way, from another address.
    if host(readings, &drift.node).is_some_and(is_steered) {
        return;
    }
    let others = cluster.nodes.iter().map(|node| node.metadata.name.as_str()).filter(|name| *name != drift.node);
    let Some(other) = others
        .into_iter()
        .find(|name| masquerades(pods, name, readings).is_some_and(|(_, _, masquerades)| masquerades))
    else {
        return;
    };
    drift.differences.push(Difference {
        kind: Kind::Masquerade,
        service: String::new(),
        entrance: None,
        expected: format!("packets of pods leave the cluster with their node's address, as on node {other}"),
        found: format!("one of {} to {OUTSIDE}:{PORT} leaves with {address}", pod.reference()),
        rule: "hook postrouting".to_owned(),
    });
}

/// A pod of the node, its address, and whether its packet gets another one. None when that is not known.
fn masquerades<'c>(pods: &Pods<'c>, node: &str, readings: &Readings) -> Option<(&'c Pod, IpAddr, bool)> {
    let pod = pods.one(node)?;
    let Some(Reading::Seen { value: Observation::Fate(fate), .. }) = readings.get(&need(pods, node, readings)?) else {
        return None;
    };
    let address = pod.addresses().find(IpAddr::is_ipv4)?;
    leaves_with(fate).map(|source| (pod, address, source != address))
}

/// The one source that the packet leaves with, on every way that it can take.
fn leaves_with(fate: &Fate) -> Option<IpAddr> {
    let mut sources = Vec::new();
    for path in &fate.outcome.paths {
        if !matches!(path.end, End::Sent { .. }) || !path.gaps.is_empty() {
            return None;
        }
        sources.push(path.packet.source());
    }
    let first = sources.first().copied()?;
    sources.iter().all(|source| *source == first).then_some(first)
}
