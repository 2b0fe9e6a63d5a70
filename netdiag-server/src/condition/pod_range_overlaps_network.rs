//! A network on a node covers addresses of another node's pods: packets for them go there instead.

use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;
use netdiag_common::Netns;
use netdiag_common::observation::network::{Network, Route, RouteKind};

use super::between::{Leg, crosses, legs, pairs};
use super::trace::{Met, Packets, dropped, probe_of};
use super::{Condition, Explains, Read, Relation, Severity, Verdict, Words};
use crate::evidence::object::{Node, Object};
use crate::evidence::{KindName, Look, ObjectRef, View};
use crate::finding::{Fate, Finding, Fix, Impact, Proof};
use crate::path::route::{Way, is_steered, way, words};
use crate::path::{Backend, Client, Path};

pub const CONDITION: Condition = Condition {
    code: "pod_range_overlaps_network",
    severity: Severity::High,
    words: Words {
        means: "a network on a node of the path covers addresses of another node's pods, so packets for those pods go there instead",
        how_we_know: "the best route to the pod is not the one that the rest of its node's pod range has, or it is the network of an \
                      interface that does not lead to that node; no node of the cluster is its gateway",
        silent_when: "the route is the whole pod range's own, to whichever gateway, or that of a single address; the more specific \
                      route leads by a node of the cluster or by the device that the whole pod range has (blocks, as some plugins \
                      announce them); pods and nodes share one network; policy routing decides; or the probe gets through",
        what_to_do: "renumber the network that is not the cluster's, or take its route away; pod ranges cannot be changed afterwards",
        sources: &[
            "https://kubernetes.io/docs/concepts/cluster-administration/networking/#kubernetes-ip-address-ranges",
            "ip-route(8), net/ipv4/fib_trie.c: fib_table_lookup (the longest prefix wins)",
        ],
    },
    faults: &["svc-cidr-overlap"],
    reads: &[Read::Kind(KindName::Nodes), Read::Topic("network"), Read::Topic("drops"), Read::Topic("probe")],
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
const TUNNELS: &[&str] = &["vxlan", "geneve", "ipip", "ip6tnl", "sit", "gre", "wireguard"];

/// A leg that leads into another network.
struct Clash<'p> {
    leg: Leg<'p>,
    claim: String,
    proofs: Vec<Proof>,
    command: Option<String>,
}

enum Found<'p> {
    Clash(Box<Clash<'p>>),
    Fine(String),
    Dark,
}

fn judge(path: &Path, view: &mut View) -> Verdict {
    let pairs = pairs(path);
    if !pairs.iter().any(|pair| crosses(*pair)) {
        return Verdict::not_applicable("no endpoint of the path is a pod of another node");
    }
    let Look::Seen(_) = view.nodes() else { return Verdict::unknown(view) };
    let (mut clashes, mut fine): (Vec<Clash>, Option<String>) = (Vec::new(), None);
    let (mut dark, mut broken) = (false, 0);
    for (client, backend) in pairs.iter().filter(|pair| crosses(**pair)) {
        let met = probe_of(path, view, client, backend);
        let mut here = false;
        for leg in legs(client, backend) {
            match look(leg, met, view) {
                Found::Clash(clash) => {
                    here = true;
                    if !clashes.iter().any(|c| c.leg.node == clash.leg.node && c.leg.to_node == clash.leg.to_node) {
                        clashes.push(*clash);
                    }
                }
                Found::Fine(because) => fine = Some(because),
                Found::Dark => dark = true,
            }
        }
        broken += usize::from(here);
    }
    let Some(first) = clashes.first() else {
        return match fine {
            Some(because) if !dark => Verdict::clear(because),
            _ => Verdict::unknown(view),
        };
    };
    let impact = if broken == pairs.len() { Impact::Breaks } else { Impact::Degrades };
    let mut claim = first.claim.clone();
    if impact == Impact::Degrades {
        claim.push_str(&format!("; {broken} of {} ways of this path lead there", pairs.len()));
    }
    let mut subjects: Vec<ObjectRef> = Vec::new();
    for name in clashes.iter().flat_map(|clash| [clash.leg.node, clash.leg.to_node]) {
        if let Some(node) = view.cluster().nodes.get("", name) {
            node.reference().on_node(name).add_once(&mut subjects);
        }
    }
    let mut proofs: Vec<Proof> = clashes.iter().flat_map(|clash| clash.proofs.clone()).collect();
    proofs.extend(
        pairs.iter().filter(|pair| crosses(**pair)).find_map(|(client, backend)| lost(path, view, client, backend)),
    );
    let fix = Fix {
        text: format!(
            "if the network on node {} is not meant for pods, take its route away or renumber it; its owner is whoever configured \
             that device",
            first.leg.node
        ),
        commands: clashes.iter().filter_map(|clash| clash.command.clone()).collect(),
        verify: path.ask_again(),
    };
    let predicts = &[Fate::Silence, Fate::Unreachable, Fate::Refused];
    Verdict::found(Finding { subjects, since: None, impact, claim, proofs, predicts, fix })
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
    Found::Clash(Box::new(Clash { leg, claim, proofs, command }))
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

fn lost(path: &Path, view: &mut View, client: &Client, backend: &Backend) -> Option<Proof> {
    let source = client.addresses.iter().copied().find(|own| own.is_ipv4() == backend.address.is_ipv4())?;
    let destination = SocketAddr::new(backend.address, backend.port);
    dropped(view, &client.node, &Packets { source, destination, protocol: path.protocol }, REASONS)
}
