//! The pods of a node and the links that they hang on, as drift compares them. Pure.

use std::collections::{BTreeSet, HashMap};
use std::net::IpAddr;

use netdiag_common::observation::network::{Link, Network};
use netdiag_common::observation::{Observation, Protocol};
use netdiag_common::{GapReason, Need, Netns, Reading, Topic};

use super::{NodeDrift, Readings, gap, node};
use crate::evidence::Cluster;
use crate::evidence::object::{Object, Pod};
use crate::listing::named;

/// Pods of one node that are looked into: each costs the agent a reading of its own, and what is wrong with their links is wrong
/// with all that one plugin connected.
const MAX_PODS: usize = 64;
/// Pods of one finding that are named.
const MAX_NAMED: usize = 5;

/// What is asked of pods, by their nodes: a search for each of a thousand nodes would take minutes.
pub(super) struct Pods<'c> {
    by_node: HashMap<&'c str, Vec<&'c Pod>>,
    /// Addresses that Services lead to, each with its ports there.
    endpoints: HashMap<IpAddr, BTreeSet<(Protocol, u16)>>,
}

/// A pod that was looked into.
#[derive(Clone, Copy)]
pub(super) struct Inside<'a> {
    pub pod: &'a Pod,
    /// Its own links and routes.
    pub network: &'a Network,
}

impl<'c> Pods<'c> {
    pub fn of(cluster: &'c Cluster) -> Self {
        let mut by_node: HashMap<&str, Vec<&Pod>> = HashMap::new();
        for pod in cluster.pods.iter().filter(|pod| has_links(pod)) {
            by_node.entry(&pod.spec.node_name).or_default().push(pod);
        }
        let mut endpoints: HashMap<IpAddr, BTreeSet<_>> = HashMap::new();
        for slice in cluster.endpoint_slices.iter() {
            // Without a number it is every port (EndpointSlice API).
            let ports = slice.ports.iter().filter_map(|port| Some((port.protocol.0, port.port?)));
            let listed = slice.endpoints.iter().flat_map(|endpoint| &endpoint.addresses);
            for address in listed.filter_map(|text| text.parse().ok()) {
                endpoints.entry(address).or_default().extend(ports.clone());
            }
        }
        Self { by_node, endpoints }
    }

    /// Those that are looked into.
    pub fn chosen(&self, node: &str) -> &[&'c Pod] {
        let all = self.by_node.get(node).map_or(&[][..], Vec::as_slice);
        &all[..all.len().min(MAX_PODS)]
    }

    pub fn needs(&self, node: &str) -> impl Iterator<Item = Need> {
        self.chosen(node).iter().map(|pod| need(pod))
    }

    /// The first one, which is asked for the way of its packets.
    pub fn one(&self, node: &str) -> Option<&'c Pod> {
        self.chosen(node).first().copied()
    }

    pub fn is_endpoint(&self, pod: &Pod) -> bool {
        pod.addresses().any(|own| self.endpoints.contains_key(&own))
    }

    /// Some EndpointSlice has this address.
    pub fn is_listed(&self, address: IpAddr) -> bool {
        self.endpoints.contains_key(&address)
    }

    /// The ports of this address that Services lead to, behind their translation.
    pub fn served(&self, address: IpAddr) -> impl Iterator<Item = (Protocol, u16)> {
        self.endpoints.get(&address).into_iter().flatten().copied()
    }

    /// Those that could be looked into; what could not is said.
    pub fn inside<'r>(&'r self, cluster: &Cluster, readings: &'r Readings, drift: &mut NodeDrift) -> Vec<Inside<'r>> {
        if let Some(gap) = cluster.pods.gap() {
            drift.gaps.push(gap.clone());
            return Vec::new();
        }
        let all = self.by_node.get(drift.node.as_str()).map_or(0, Vec::len);
        if all > MAX_PODS {
            let why = format!("{MAX_PODS} of {all} pods were looked into");
            drift.gaps.push(gap(&drift.node, "links of pods", why, "look at single pods with netdiag trace"));
        }
        let (mut found, mut unread) = (Vec::new(), None);
        for pod in self.chosen(&drift.node).iter().copied() {
            match readings.get(&need(pod)) {
                Some(Reading::Seen { value: Observation::Network(network), .. }) => found.push(Inside { pod, network }),
                // It has ended meanwhile.
                Some(Reading::Unavailable { gap }) if gap.reason == GapReason::Gone => {}
                Some(Reading::Unavailable { gap }) => unread = unread.or_else(|| Some(gap.clone())),
                _ => unread = unread.or_else(|| Some(node::unasked(&drift.node, "links of pods"))),
            }
        }
        // One reason speaks for all.
        drift.gaps.extend(unread);
        found
    }
}

/// In the pod network, for good.
pub(super) fn has_links(pod: &Pod) -> bool {
    !pod.spec.host_network && pod.status.phase == "Running" && pod.metadata.deleted_at.is_none()
}

fn need(pod: &Pod) -> Need {
    Need::pod(pod.spec.node_name.as_str(), pod.metadata.uid.as_str(), Topic::Network)
}

impl Inside<'_> {
    /// The pod's link with this address, and the node's end of it; none where it is no pair of ends.
    pub fn link<'h>(&self, address: IpAddr, host: &'h Network) -> Option<&'h Link> {
        let own = self.network.addresses.iter().find(|own| own.address == address)?;
        let own = self.network.link(own.link_index)?;
        // Indices are of one namespace each: both ends must name each other.
        host.link(own.peer_index?).filter(|end| end.peer_index == Some(own.index))
    }
}

/// The node's end of the link that has this address in the pod.
pub(super) fn end<'h>(pod: &Pod, address: IpAddr, readings: &Readings, host: &'h Network) -> Option<&'h Link> {
    let Some(Reading::Seen { value: Observation::Network(network), .. }) = readings.get(&need(pod)) else {
        return None;
    };
    Inside { pod, network }.link(address, host)
}

/// `shop/web-1, shop/web-2 and 4 more`
pub(super) fn list(pods: &[&Pod]) -> String {
    named(pods.iter().map(|pod| name(pod)), MAX_NAMED)
}

fn name(pod: &Pod) -> String {
    let meta = pod.meta();
    format!("{}/{}", meta.namespace, meta.name)
}

/// The network of the node itself, when it was read.
pub(super) fn host<'r>(readings: &'r Readings, node: &str) -> Option<&'r Network> {
    match readings.get(&Need { netns: Netns::Host, ..Need::host(node, Topic::Network) }) {
        Some(Reading::Seen { value: Observation::Network(network), .. }) => Some(network),
        _ => None,
    }
}
