//! A network on a node covers addresses of another node's pods, or a range of Services covers pods: packets for them go there instead.

use std::net::IpAddr;

use ipnet::IpNet;
use netdiag_common::Netns;
use netdiag_common::observation::network::{Network, Route, RouteKind};

use super::between::{self, Astray, Found, Leg, Routing};
use super::service_range::{self, Taken};
use super::trace::Met;
use super::{Condition, Explains, Read, Relation, Severity, Verdict, Words};
use crate::evidence::object::{Node, Object};
use crate::evidence::{KindName, Look, View};
use crate::finding::{Fate, Proof};
use crate::path::Path;
use crate::path::route::{Way, is_steered, way, words};

pub const CONDITION: Condition = Condition {
    code: "pod_range_overlaps_network",
    severity: Severity::High,
    words: Words {
        means: "a network on a node of the path, or a range of Services, covers addresses of pods, so packets for those pods go \
                there instead, or are dropped",
        how_we_know: "the best route to the pod is not the one that the rest of its node's pod range has, or it is the network of an \
                      interface that does not lead to that node; no node of the cluster is its gateway; or kube-proxy's rules of the \
                      client's node drop what goes to a range of Services that holds the pod, or translate or refuse the pod's own address",
        silent_when: "the route is the whole pod range's own, to whichever gateway, or that of a single address; the more specific \
                      route leads by a node of the cluster or by the device that the whole pod range has (blocks, as some plugins \
                      announce them); pods and nodes share one network; policy routing decides; the ranges overlap where the path has no \
                      address; or the probe gets through",
        what_to_do: "renumber the network that is not the cluster's, or take its route away; pod ranges cannot be changed afterwards",
        sources: &[
            "https://kubernetes.io/docs/concepts/cluster-administration/networking/#kubernetes-ip-address-ranges",
            "ip-route(8), net/ipv4/fib_trie.c: fib_table_lookup (the longest prefix wins)",
            "https://kubernetes.io/docs/concepts/services-networking/cluster-ip-allocation/",
        ],
    },
    faults: &["svc-cidr-overlap"],
    reads: &[
        Read::Kind(KindName::Nodes),
        Read::Kind(KindName::Services),
        Read::Kind(KindName::ServiceCidrs),
        Read::Topic("network"),
        Read::Topic("rules"),
        Read::Topic("service_rules"),
        Read::Topic("drops"),
        Read::Topic("probe"),
    ],
    lookalikes: &["pod_network_route_missing", "host_firewall_drops_path", "policy_denies_path"],
    explains: &[
        Explains { code: "neighbour_unresolved", relation: Relation::SamePath },
        Explains { code: "reverse_path_filter_drops", relation: Relation::SamePath },
    ],
    judge,
};

/// Packets that a link took and nobody answered for (`net/core/neighbour.c`).
const REASONS: &[&str] = &["NEIGH_FAILED", "NEIGH_QUEUEFULL"];
/// Kinds of devices that carry packets to other nodes, or whose far end no route shows.
pub(crate) const TUNNELS: &[&str] = &["vxlan", "geneve", "ipip", "ip6tnl", "sit", "gre", "wireguard"];

const ROUTING: Routing = Routing {
    look,
    verb: "lead there",
    reasons: REASONS,
    fix: |node| {
        format!(
            "if the network on node {node} is not meant for pods, take its route away or renumber it; its owner is whoever \
             configured that device"
        )
    },
};

fn judge(path: &Path, view: &mut View) -> Verdict {
    let by_routes = between::judge(path, view, &ROUTING);
    if matches!(by_routes, Verdict::Found(_)) {
        return by_routes;
    }
    match service_range::judge(path, view) {
        Taken::Found(finding) => Verdict::Found(finding),
        Taken::Dark => Verdict::unknown(view),
        Taken::No => by_routes,
    }
}

fn look<'p>(leg: Leg<'p>, met: Met, view: &mut View) -> Found<'p> {
    let Look::Seen(network) = view.network(leg.node, &Netns::Host) else { return Found::Dark };
    let (network, at) = (network.value, network.at);
    let owner = view.cluster().nodes.get("", leg.to_node);
    let range = owner.and_then(|node| node.spec.pod_cidrs.iter().find(|net| net.contains(&leg.to))).map(IpNet::trunc);
    let (Some(owner), Some(range)) = (owner, range) else {
        return Found::Fine(format!("{} is in no pod range that node {} was given", leg.to, leg.to_node));
    };
    let Way::Known(route) = way(network, leg.to) else {
        return Found::Fine(format!("node {} has no route of its own to {}", leg.node, leg.to));
    };
    let own = words(&route, network);
    let Some(usual) = overlap(&route, &range, owner, network, view) else {
        return Found::Fine(format!("node {} reaches {} by {own}", leg.node, leg.to));
    };
    if met == Met::GotThrough {
        return Found::Fine(format!("the probe from node {} got through by {own}", leg.node));
    }
    // By which table the packets go, only the rules of policy routing know.
    if is_steered(network) {
        return Found::Dark;
    }
    let claim = format!(
        "on node {} the network {} overlaps {range}, the pods of node {}: packets to {} go by {own}, not by {usual}",
        leg.node, route.destination, leg.to_node, leg.to
    );
    let proofs = vec![
        Proof::programmed("routes", leg.node, at, format!("to {}: {own}; to the rest of {range}: {usual}", leg.to)),
        Proof::intended(owner.reference(), view.now(), format!("its pods have addresses of {range}")),
    ];
    // A connected network comes back with its address: that is for its owner to take away.
    let command = (route.protocol != "kernel").then(|| format!("ip route del {own}  # on node {}", leg.node));
    let predicts = &[Fate::Silence, Fate::Unreachable, Fate::Refused];
    Found::Astray(Box::new(Astray { leg, claim, proofs, predicts, command }))
}

/// The way that the pods of this range have otherwise, when `route` is not of the pod network's making.
fn overlap(route: &Route, range: &IpNet, owner: &Node, network: &Network, view: &View) -> Option<String> {
    let is_node = |gateway: IpAddr| view.cluster().node_by_address(gateway).is_some();
    if route.kind != RouteKind::Unicast || route.gateway.is_some_and(is_node) {
        return None;
    }
    let kind = route.link_index.and_then(|index| network.link(index)).map_or("", |link| link.kind.as_str());
    // The pod network's own route to this range, however wrong its gateway is; into a tunnel it needs none. And a route to one host
    // is no network.
    let is_own = route.destination == *range && (route.gateway.is_some() || TUNNELS.contains(&kind));
    if is_own || route.destination.prefix_len() == route.destination.max_prefix_len() {
        return None;
    }
    if range.contains(&route.destination) {
        let covers = |other: &&Route| {
            other.table == 254
                && *other != route
                && other.destination.contains(range)
                && other.kind == RouteKind::Unicast
        };
        let usual = network
            .routes
            .iter()
            .filter(covers)
            .max_by_key(|other| (other.destination.prefix_len(), std::cmp::Reverse(other.metric)))?;
        let same = (usual.link_index, usual.gateway) == (route.link_index, route.gateway);
        // An overlay's blocks have one device, and a gateway each.
        let same_tunnel = TUNNELS.contains(&kind) && usual.link_index == route.link_index;
        return (!same && !same_tunnel).then(|| words(usual, network));
    }
    // A network of the node's own that holds the whole range: its interface is asked for the pod.
    let is_connected = route.gateway.is_none() && route.protocol == "kernel" && !TUNNELS.contains(&kind);
    let to_owner = owner.internal_ips().find_map(|address| network.route_to(address))?;
    (is_connected && to_owner.link_index != route.link_index).then(|| words(to_owner, network))
}
