//! Flows that connection tracking sends where no rule leads today: of UDP those in use, of TCP and SCTP connections that nobody has
//! ended, to addresses that no pod has any more. Pure.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use netdiag_common::observation::flow::{Flow, FlowSnapshot};
use netdiag_common::observation::{Observation, Protocol};
use netdiag_common::{Need, Reading, Topic};

use super::pods::Pods;
use super::{Difference, Entrance, Kind, NodeDrift, Readings, gap, node};
use crate::evidence::Cluster;

/// An entry without a packet for longer ends by itself (`nf_conntrack_udp_timeout` is 30 s).
const IN_USE_S: u32 = 30;
/// A socket sends what nobody acknowledges again after at most this time (`TCP_RTO_MAX`, `include/net/tcp.h`).
const SENT_AGAIN_S: u32 = 120;

pub(super) fn compare(cluster: &Cluster, pods: &Pods<'_>, readings: &Readings, drift: &mut NodeDrift) {
    let snapshot = match readings.get(&Need::host(drift.node.as_str(), Topic::Flows)) {
        Some(Reading::Seen { value: Observation::Flows(flows), .. }) => &flows.snapshot,
        // Nothing makes this kernel track.
        Some(Reading::Absent { .. }) => return,
        Some(Reading::Unavailable { gap }) => return drift.gaps.push(gap.clone()),
        _ => return drift.gaps.push(node::unasked(&drift.node, "tracked flows")),
    };
    let (mut ageless_flows, mut ageless_connections) = (0, 0);
    let mut kept: BTreeMap<(Protocol, SocketAddr, SocketAddr), Vec<&Flow>> = BTreeMap::new();
    for flow in snapshot.outdated.iter().filter(|flow| !flow.is_offloaded()) {
        let lost = flow.protocol().filter(|protocol| is_lost(cluster, pods, flow, *protocol));
        let Some(protocol) = lost else { continue };
        match flow.latest_packet_s {
            None if protocol == Protocol::Udp => ageless_flows += 1,
            None => ageless_connections += 1,
            Some(age_s) if age_s > in_use_s(flow) => {}
            Some(_) => {
                let asked = SocketAddr::new(flow.original.destination, flow.original.destination_port);
                let endpoint = SocketAddr::new(flow.reply.source, flow.reply.source_port);
                kept.entry((protocol, asked, endpoint)).or_default().push(flow);
            }
        }
    }
    for ((protocol, asked, endpoint), flows) in kept {
        let (count, latest) = (flows.len(), flows.iter().filter_map(|flow| flow.latest_packet_s).min());
        let latest = latest.map(|latest| format!(", the latest packet {latest} s ago")).unwrap_or_default();
        let (expected, found) = if protocol == Protocol::Udp {
            ("flows in use go where the node's rules lead", format!("{count} go to {endpoint}{latest}"))
        } else {
            let found = format!("{count} established ones go to {endpoint}, an address that no pod has{latest}");
            ("connections end with the pod that they lead to", found)
        };
        drift.differences.push(Difference {
            kind: Kind::Flow,
            service: service(snapshot, (protocol, asked), endpoint),
            entrance: Some(Entrance::Address(asked.ip(), protocol, asked.port())),
            expected: expected.to_owned(),
            found,
            rule: "connection tracking".to_owned(),
        });
    }
    for (ageless, go) in [
        (ageless_flows, "UDP flows go where the node's rules do not lead"),
        (ageless_connections, "established connections go to addresses that no pod has"),
    ] {
        if ageless > 0 {
            let why = format!(
                "{ageless} {go}, and whether they are in use is not known: no timeout that was read tells when they had their \
                 latest packet"
            );
            let remedy = "look twice with `conntrack -L` on the node: packets put up the time that an entry has left";
            drift.gaps.push(gap(&drift.node, "tracked flows", why, remedy));
        }
    }
    let listed = snapshot.outdated.len() as u64;
    if snapshot.outdated_flows > listed {
        let why = format!("{} outdated entries, and {listed} are listed", snapshot.outdated_flows);
        drift.gaps.push(gap(&drift.node, "tracked flows", why, "`conntrack -L` on the node lists all"));
    }
    if !snapshot.limits.is_empty() {
        drift.gaps.push(gap(&drift.node, "tracked flows", snapshot.limits.join("; "), "ask again"));
    }
}

/// How old the latest packet of an entry that somebody uses is at most.
fn in_use_s(flow: &Flow) -> u32 {
    if flow.unacknowledged { SENT_AGAIN_S } else { IN_USE_S }
}

/// What is sent by such an entry is lost. A socket of UDP that keeps its port is kept from the endpoints that rules lead to.
fn is_lost(cluster: &Cluster, pods: &Pods<'_>, flow: &Flow, protocol: Protocol) -> bool {
    match protocol {
        Protocol::Udp => true,
        Protocol::Tcp | Protocol::Sctp => is_orphaned(cluster, pods, flow),
        _ => false,
    }
}

/// A connection ends with its pod, and a new one has a new port: what is established to an address of the pod network that no pod
/// and no EndpointSlice has was never told of the end.
fn is_orphaned(cluster: &Cluster, pods: &Pods<'_>, flow: &Flow) -> bool {
    let endpoint = flow.reply.source;
    let is_of_pods = || cluster.nodes.iter().flat_map(|node| &node.spec.pod_cidrs).any(|net| net.contains(&endpoint));
    flow.state.as_deref() == Some("ESTABLISHED")
        && cluster.pods.gap().is_none()
        && is_of_pods()
        && !pods.is_listed(endpoint)
        && cluster.pod_by_address(endpoint).is_none()
}

fn service(snapshot: &FlowSnapshot, (protocol, asked): (Protocol, SocketAddr), endpoint: SocketAddr) -> String {
    let is_it = |mapping: &&netdiag_common::observation::flow::FlowMapping| {
        (mapping.protocol, mapping.address, mapping.port) == (protocol, asked.ip(), asked.port())
            && (mapping.endpoint.address, mapping.endpoint.port) == (endpoint.ip(), endpoint.port())
    };
    snapshot.mappings.iter().find(is_it).and_then(|mapping| mapping.service.clone()).unwrap_or_default()
}
