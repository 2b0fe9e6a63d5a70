//! Whether what pods may send fits the way to the other nodes. Pure.

use std::collections::BTreeMap;

use netdiag_common::observation::network::Network;

use super::pods::{self, Inside};
use super::{Difference, Kind, NodeDrift, gap};
use crate::evidence::Cluster;
use crate::evidence::object::Pod;
use crate::path::route::{inside, is_steered, words};

/// The narrowest way from a node to other nodes' pods.
struct Way {
    bytes: u32,
    to_node: String,
    words: String,
}

pub(super) fn compare(cluster: &Cluster, host: &Network, inside: &[Inside<'_>], drift: &mut NodeDrift) {
    if inside.is_empty() {
        return;
    }
    // Which table packets of pods are routed by is not told by the main one then.
    if is_steered(host) {
        let why = "policy routing decides about packets of pods".to_owned();
        drift.gaps.push(gap(&drift.node, "MTU of pods", why, "follow one packet with netdiag trace"));
        return;
    }
    let Some(narrowest) = narrowest(cluster, &drift.node, host) else { return };
    let mut wider: BTreeMap<u32, Vec<&Pod>> = BTreeMap::new();
    for Inside { pod, network } in inside {
        if let Some(bytes) = sends(network).filter(|bytes| *bytes > narrowest.bytes) {
            wider.entry(bytes).or_default().push(pod);
        }
    }
    for (bytes, pods) in wider {
        drift.differences.push(Difference {
            kind: Kind::Mtu,
            service: String::new(),
            entrance: None,
            expected: format!(
                "pods send at most {} bytes, as the way to the pods of node {} carries ({})",
                narrowest.bytes, narrowest.to_node, narrowest.words
            ),
            found: format!("{bytes} bytes in {} pods: {}", pods.len(), pods::list(&pods)),
            rule: "MTU of the pods' links".to_owned(),
        });
    }
}

fn narrowest(cluster: &Cluster, name: &str, host: &Network) -> Option<Way> {
    let others = cluster.nodes.iter().filter(|other| other.metadata.name != name);
    let nets = others.flat_map(|other| other.spec.pod_cidrs.iter().map(move |net| (other, net)));
    let ways = nets.filter_map(|(other, net)| {
        let route = host.route_to(inside(net))?;
        let bytes = route.mtu.or(host.link(route.link_index?).map(|link| link.mtu))?;
        Some(Way { bytes, to_node: other.metadata.name.clone(), words: words(route, host) })
    });
    ways.min_by_key(|way| way.bytes)
}

/// By the pod's widest default route; a route's own MTU comes before its link's.
fn sends(network: &Network) -> Option<u32> {
    let defaults = network.routes.iter().filter(|route| route.table == 254 && route.destination.prefix_len() == 0);
    defaults.filter_map(|route| route.mtu.or(network.link(route.link_index?).map(|link| link.mtu))).max()
}
