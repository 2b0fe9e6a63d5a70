//! Flows in use that connection tracking sends where no rule leads today. Pure.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use netdiag_common::observation::flow::{Flow, FlowSnapshot};
use netdiag_common::observation::{Observation, Protocol};
use netdiag_common::{Need, Reading, Topic};

use super::{Difference, Entrance, Kind, NodeDrift, Readings, gap, node};

/// An entry without a packet for longer ends by itself (`nf_conntrack_udp_timeout` is 30 s).
const IN_USE_S: u32 = 30;

pub(super) fn compare(readings: &Readings, drift: &mut NodeDrift) {
    let snapshot = match readings.get(&Need::host(drift.node.as_str(), Topic::Flows)) {
        Some(Reading::Seen { value: Observation::Flows(flows), .. }) => &flows.snapshot,
        // Nothing makes this kernel track.
        Some(Reading::Absent { .. }) => return,
        Some(Reading::Unavailable { gap }) => return drift.gaps.push(gap.clone()),
        _ => return drift.gaps.push(node::unasked(&drift.node, "tracked flows")),
    };
    let mut kept: BTreeMap<(SocketAddr, SocketAddr), Vec<&Flow>> = BTreeMap::new();
    for flow in snapshot.outdated.iter().filter(|flow| is_kept(flow)) {
        let asked = SocketAddr::new(flow.original.destination, flow.original.destination_port);
        let endpoint = SocketAddr::new(flow.reply.source, flow.reply.source_port);
        kept.entry((asked, endpoint)).or_default().push(flow);
    }
    for ((asked, endpoint), flows) in kept {
        let latest = flows.iter().filter_map(|flow| flow.latest_packet_s).min().unwrap_or_default();
        drift.differences.push(Difference {
            kind: Kind::Flow,
            service: service(snapshot, asked, endpoint),
            entrance: Some(Entrance::Address(asked.ip(), Protocol::Udp, asked.port())),
            expected: "flows in use go where the node's rules lead".to_owned(),
            found: format!("{} go to {endpoint}, the latest packet {latest} s ago", flows.len()),
            rule: "connection tracking".to_owned(),
        });
    }
    let listed = snapshot.outdated.len() as u64;
    if snapshot.outdated_flows > listed {
        let why = format!("{} outdated entries, and {listed} are listed", snapshot.outdated_flows);
        drift.gaps.push(gap(&drift.node, "tracked flows", why, "`conntrack -L -p udp` on the node lists all"));
    }
    if !snapshot.limits.is_empty() {
        drift.gaps.push(gap(&drift.node, "tracked flows", snapshot.limits.join("; "), "ask again"));
    }
}

/// UDP alone: a connection of TCP ends with its endpoint, and a new one has a new port.
fn is_kept(flow: &Flow) -> bool {
    flow.protocol() == Some(Protocol::Udp)
        && !flow.is_offloaded()
        && flow.latest_packet_s.is_some_and(|age_s| age_s <= IN_USE_S)
}

fn service(snapshot: &FlowSnapshot, asked: SocketAddr, endpoint: SocketAddr) -> String {
    let is_it = |mapping: &&netdiag_common::observation::flow::FlowMapping| {
        (mapping.address, mapping.port) == (asked.ip(), asked.port())
            && (mapping.endpoint.address, mapping.endpoint.port) == (endpoint.ip(), endpoint.port())
    };
    snapshot.mappings.iter().find(is_it).and_then(|mapping| mapping.service.clone()).unwrap_or_default()
}
