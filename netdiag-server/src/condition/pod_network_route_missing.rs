//! A node does not know the way to another node's pods.

use std::net::IpAddr;

use ipnet::IpNet;
use jiff::Timestamp;
use netdiag_common::Netns;
use netdiag_common::observation::network::Network;

use super::between::{self, Astray, Found, Leg, Routing};
use super::trace::Met;
use super::{Condition, Read, Severity, Verdict, Words};
use crate::evidence::object::Node;
use crate::evidence::{KindName, Look, View};
use crate::finding::{Fate, Proof};
use crate::path::Path;
use crate::path::route::{Way, aside, inside, is_steered, leads_to, way, words};

pub const CONDITION: Condition = Condition {
    code: "pod_network_route_missing",
    severity: Severity::Critical,
    words: Words {
        means: "a node of the path has no route to the pod network of the other node, so packets or their answers get lost",
        how_we_know: "the routing tables of the client's and the endpoints' nodes are searched for each other's pods, and \
                      the routes to other nodes' pods show that this network works by such routes",
        silent_when: "the default gateway is what routes pods (as in some clouds: no node has such routes, or the probe \
                      gets through), or policy routing decides",
        what_to_do: "restart the network plugin's agent on the node, or restore the route in the cloud or by hand",
        sources: &[
            "https://kubernetes.io/docs/concepts/cluster-administration/networking/",
            "ip-route(8), net/ipv4/route.c: ip_route_input_slow",
            "networkd.conf(5): ManageForeignRoutes=",
        ],
    },
    faults: &["cni-podcidr-route-missing", "cni-blackhole-route"],
    reads: &[Read::Kind(KindName::Nodes), Read::Topic("network"), Read::Topic("drops"), Read::Topic("probe")],
    lookalikes: &["policy_denies_path", "host_firewall_drops_path", "kube_proxy_rules_stale"],
    explains: &[],
    judge,
};

const ROUTING: Routing = Routing {
    look,
    verb: "are cut",
    reasons: between::NO_ROUTE,
    fix: |node| {
        format!(
            "restore the route on node {node}: restart the network plugin's agent there, or check the cloud's route table where \
             it makes these routes; if it was systemd-networkd that took the route away when it was started anew, as it does with \
             routes that it did not write, set ManageForeignRoutes=no in /etc/systemd/networkd.conf on every node"
        )
    },
};

fn judge(path: &Path, view: &mut View) -> Verdict {
    between::judge(path, view, &ROUTING)
}

/// One direction, by the routes of the node that sends.
pub(super) fn look<'p>(leg: Leg<'p>, met: Met, view: &mut View) -> Found<'p> {
    let Look::Seen(network) = view.network(leg.node, &Netns::Host) else { return Found::Dark };
    let (network, at) = (network.value, network.at);
    let way = way(network, leg.to);
    if let Way::Known(route) = &way {
        return Found::Fine(format!("node {} reaches {} by {}", leg.node, leg.to, words(route, network)));
    }
    if met == Met::GotThrough {
        return Found::Fine(format!("the probe from node {} got through without a route of its own", leg.node));
    }
    if !network.left_out.is_empty() {
        return Found::Dark;
    }
    let lost_as_told = matches!(met, Met::Failed(Fate::Unreachable | Fate::Silence));
    let is_elsewhere = aside(network, leg.to).any(|route| leads_to(network, route.table, leg.to));
    if is_elsewhere || (is_steered(network) && !lost_as_told) {
        return Found::Dark;
    }
    let instead = match &way {
        Way::OnlyDefault(route) => format!("only {} fits", words(route, network)),
        Way::Refused(route) if route.protocol.is_empty() => format!("the table has {}", words(route, network)),
        Way::Refused(route) => format!("the table has {}, of protocol {}", words(route, network), route.protocol),
        Way::Nothing | Way::Known(_) => "nothing in its table fits".to_owned(),
    };
    let explicit = explicit_routes(&leg, view);
    // Without such routes anywhere, the default gateway may be the one that routes pods. An ICMP error does not tell whether
    // it came from a router that knows no way or from a firewall (`icmp-admin-prohibited`).
    if matches!(way, Way::OnlyDefault(_)) && explicit.is_none() {
        if met == Met::Failed(Fate::Unreachable) {
            return Found::Dark;
        }
        return Found::Fine(format!(
            "node {} has no route of its own to {}, and no node shows that pods are routed so",
            leg.node, leg.to
        ));
    }
    let net = pod_network(view, leg.to_node, leg.to);
    let target = net.map_or_else(|| leg.to.to_string(), |net| net.to_string());
    let claim = format!("node {} has no route to {target}, the pods of node {} ({instead})", leg.node, leg.to_node);
    let mut proofs = vec![Proof::programmed("routes", leg.node, at, format!("to {}: {instead}", leg.to))];
    if let Some(net) = net {
        let node = format!("Node {}", leg.to_node);
        proofs.push(Proof::intended(node, view.now(), format!("its pods have addresses of {net}")));
    }
    let by_gateway = explicit.as_ref().is_some_and(|explicit| explicit.by_node_address);
    proofs.extend(explicit.map(|explicit| explicit.proof));
    let gateway = view.cluster().nodes.get("", leg.to_node).and_then(|node| address_like(node, leg.to));
    let command = match (by_gateway, net, gateway) {
        (true, Some(net), Some(gateway)) => {
            Some(format!("ip route replace {net} via {gateway}  # on node {}", leg.node))
        }
        _ => None,
    };
    let predicts: &[Fate] = match way {
        // What the default gateway does with them is anybody's guess.
        Way::OnlyDefault(_) => &[],
        _ => &[Fate::Silence, Fate::Unreachable, Fate::NotPermitted],
    };
    Found::Astray(Box::new(Astray { leg, claim, proofs, predicts, command }))
}

/// A route to some node's pods, which shows how this pod network is made.
struct Explicit {
    proof: Proof,
    /// It leads by the other node's own address, so that a person can write it again.
    by_node_address: bool,
}

/// On the node that lacks the way: routes to the pods of others. On the other node: the way back.
fn explicit_routes(leg: &Leg, view: &mut View) -> Option<Explicit> {
    let nodes: Vec<_> = view.cluster().nodes.iter().cloned().collect();
    for (asked, about) in nodes.iter().flat_map(|node| [(leg.node, node), (leg.to_node, node)]) {
        let name = about.metadata.name.as_str();
        let back = asked == leg.to_node && name == leg.node;
        let aside = asked == leg.node && name != leg.node && name != leg.to_node;
        if !back && !aside {
            continue;
        }
        let Look::Seen(network) = view.network(asked, &Netns::Host) else { continue };
        let nets = about.spec.pod_cidrs.iter().filter(|net| net.addr().is_ipv4() == leg.to.is_ipv4());
        for net in nets {
            if let Some(explicit) = explicit(asked, about, net, network.value, network.at) {
                return Some(explicit);
            }
        }
    }
    None
}

fn explicit(asked: &str, about: &Node, net: &IpNet, network: &Network, at: Timestamp) -> Option<Explicit> {
    let Way::Known(route) = way(network, inside(net)) else { return None };
    let text = format!("the pods of node {} are reached by {}", about.metadata.name, words(&route, network));
    let by_node_address = route.gateway.is_some_and(|gateway| about.internal_ips().any(|own| own == gateway));
    Some(Explicit { proof: Proof::programmed("routes", asked, at, text), by_node_address })
}

fn pod_network(view: &View, node: &str, address: IpAddr) -> Option<IpNet> {
    let node = view.cluster().nodes.get("", node)?;
    node.spec.pod_cidrs.iter().find(|net| net.contains(&address)).copied()
}

fn address_like(node: &Node, like: IpAddr) -> Option<IpAddr> {
    node.internal_ips().find(|own| own.is_ipv4() == like.is_ipv4())
}
