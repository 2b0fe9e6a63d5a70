//! systemd-networkd was started anew on a node, and has removed the network plugin's routes or rules there.

use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use netdiag_common::Netns;
use netdiag_common::observation::kubelet::Setting;
use netdiag_common::observation::network::{Link, Network};

use super::between::{self, Astray, Found, Leg, Routing};
use super::cni_agent_not_ready::is_agent;
use super::trace::Met;
use super::{Condition, Explains, Read, Relation, Severity, Verdict, Words};
use super::{pod_network_route_missing, routing_rule_missing};
use crate::evidence::object::{ContainerStatus, Object, Pod};
use crate::evidence::{Cluster, KindName, Look, View};
use crate::finding::Proof;
use crate::path::Path;
use crate::path::route::{Way, inside, is_steered, way, words};

pub const CONDITION: Condition = Condition {
    code: "networkd_removed_routes",
    severity: Severity::Critical,
    words: Words {
        means: "systemd-networkd was started anew on a node of the path and removes what it did not write, and the network plugin's \
                routes to other nodes' pods, or the rules that lead to them, are gone there",
        how_we_know: "the node lacks its route or rule for the other node's pods; systemd-networkd runs there for less than a day and \
                      for less long than a pod of that node, its settings let it remove the routes or rules of others, it manages the \
                      device that leads to the other node, and nothing of that kind is left there",
        silent_when: "systemd-networkd leaves the routes of others alone or does not manage that device, it was started before any pod of \
                      the node as at boot, the network plugin's agent was started after it and has written its routes since, or another \
                      such route or rule is still there",
        what_to_do: "set ManageForeignRoutes=no and ManageForeignRoutingPolicyRules=no for systemd-networkd on every node, then restart \
                     the network plugin's agent",
        sources: &[
            "networkd.conf(5): ManageForeignRoutes=, ManageForeignRoutingPolicyRules=",
            "https://github.com/systemd/systemd/pull/19287",
            "https://www.datadoghq.com/blog/engineering/2023-03-08-deep-dive-into-platform-level-impact/",
        ],
    },
    faults: &["cni-networkd-flush"],
    reads: &[
        Read::Kind(KindName::Nodes),
        Read::Kind(KindName::Pods),
        Read::Topic("network"),
        Read::Topic("networkd"),
        Read::Topic("drops"),
        Read::Topic("probe"),
    ],
    lookalikes: &["policy_denies_path", "host_firewall_drops_path", "kube_proxy_rules_stale"],
    explains: &[
        Explains { code: "pod_network_route_missing", relation: Relation::SamePath },
        Explains { code: "routing_rule_missing", relation: Relation::SamePath },
    ],
    judge,
};

/// That a node's pods are cut off is noticed within a day: what is missing after a longer time was taken away by something else.
const RECENT: SignedDuration = SignedDuration::from_hours(24);
/// `rtm_protocol` of routes that it leaves alone: the kernel's, and what it may keep of DHCP and of router advertisements.
const KEPT: &[&str] = &["kernel", "dhcp", "ra", "redirect"];

const ROUTING: Routing = Routing {
    look,
    verb: "are cut",
    reasons: between::NO_ROUTE,
    fix: |node| {
        format!(
            "let systemd-networkd leave the network plugin's routes alone: a file in /etc/systemd/networkd.conf.d on every node with \
             ManageForeignRoutes=no and ManageForeignRoutingPolicyRules=no below [Network]; then restart the network plugin's agent on \
             node {node}, which writes its routes and rules again"
        )
    },
};

fn judge(path: &Path, view: &mut View) -> Verdict {
    between::judge(path, view, &ROUTING)
}

/// What is gone.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Lost {
    Route,
    Rule,
}

fn look<'p>(leg: Leg<'p>, met: Met, view: &mut View) -> Found<'p> {
    let route = pod_network_route_missing::look(leg, met, view);
    let (astray, lost) = match (route, routing_rule_missing::look(leg, met, view)) {
        // By the main table alone the route would be missing, too.
        (_, Found::Astray(astray)) => (astray, Lost::Rule),
        (Found::Astray(astray), _) => (astray, Lost::Route),
        (Found::Dark, _) | (_, Found::Dark) => return Found::Dark,
        (Found::Fine(because), Found::Fine(_)) => return Found::Fine(because),
    };
    let node = leg.node;
    let (networkd, at) = match view.networkd(node, &Netns::Host) {
        Look::Seen(seen) => (seen.value, seen.at),
        Look::Absent(_) => return Found::Fine(format!("systemd-networkd does not run on node {node}")),
        Look::Dark => return Found::Dark,
    };
    let (setting, name) = match lost {
        Lost::Route => (&networkd.removes_routes, "ManageForeignRoutes"),
        Lost::Rule => (&networkd.removes_rules, "ManageForeignRoutingPolicyRules"),
    };
    if !setting.value {
        return Found::Fine(format!("{name} of systemd-networkd on node {node} is no {}", setting.from));
    }
    // Both times are of the node's clock.
    if at.duration_since(networkd.started) > RECENT {
        return Found::Fine(format!("systemd-networkd runs on node {node} since {}", networkd.started));
    }
    let (Look::Seen(_), Look::Seen(network)) = (view.pods(), view.network(node, &Netns::Host)) else {
        return Found::Dark;
    };
    let earlier = match earlier(node, networkd.started, view.cluster()) {
        Ok(earlier) => earlier,
        Err(because) => return Found::Fine(because),
    };
    let what = match lost {
        Lost::Rule if networkd.links.is_empty() => {
            return Found::Fine(format!("systemd-networkd manages no device of node {node}"));
        }
        Lost::Rule if is_steered(network.value) => {
            return Found::Fine(format!("node {node} has other routing rules, which would have been removed as well"));
        }
        Lost::Rule => "routing rules".to_owned(),
        Lost::Route => {
            let Some(device) = device(&leg, network.value, view) else { return Found::Dark };
            if !networkd.links.contains(&device.index) {
                return Found::Fine(format!("systemd-networkd does not manage {} of node {node}", device.name));
            }
            if let Some(left) = left(network.value, device, view.cluster()) {
                return Found::Fine(format!("the route {left} of node {node} would have been removed as well"));
            }
            format!("routes of {}", device.name)
        }
    };
    let Astray { leg, claim, mut proofs, predicts, .. } = *astray;
    let (started, pod) = (networkd.started, earlier.pod.reference());
    proofs.push(Proof::programmed("systemd-networkd", node, at, told(name, setting)));
    let since = earlier.since;
    let runs = format!("systemd-networkd was started at {started}, and {pod} runs since {since}");
    proofs.push(Proof::observed("processes", node, at, runs));
    let claim = format!(
        "{claim}; systemd-networkd was started anew there at {started}, and removes {what} that it did not write itself"
    );
    // A route that is written by hand would be removed at its next start.
    Found::Astray(Box::new(Astray { leg, claim, proofs, predicts, command: None }))
}

fn told(name: &str, setting: &Setting<bool>) -> String {
    format!("{name} is yes {}", setting.from)
}

/// A pod whose container ran before, when the routes were there.
struct Earlier<'e> {
    pod: &'e Pod,
    since: Timestamp,
}

/// The node's oldest container; why it tells nothing, otherwise.
fn earlier<'e>(node: &str, started: Timestamp, cluster: &'e Cluster) -> Result<Earlier<'e>, String> {
    let here = cluster.pods.iter().map(Arc::as_ref).filter(|pod: &&Pod| pod.spec.node_name == node);
    let mut oldest: Option<Earlier> = None;
    for pod in here.filter(|pod| !pod.is_finished()) {
        for since in pod.status.container_statuses.iter().filter_map(ContainerStatus::started_at) {
            if since > started && is_agent(pod) {
                return Err(format!("{} was started after systemd-networkd on node {node}", pod.reference()));
            }
            if oldest.as_ref().is_none_or(|oldest| since < oldest.since) {
                oldest = Some(Earlier { pod, since });
            }
        }
    }
    let before = oldest.filter(|oldest| oldest.since < started);
    before.ok_or_else(|| format!("no pod of node {node} is known to have run before systemd-networkd was started"))
}

/// The device that the route was of: the one of the same name by which the other node sends back, or the one that leads to the
/// other node.
fn device<'n>(leg: &Leg, network: &'n Network, view: &mut View) -> Option<&'n Link> {
    let nets = &view.cluster().nodes.get("", leg.node)?.spec.pod_cidrs;
    let back = nets.iter().find(|net| net.addr().is_ipv4() == leg.to.is_ipv4()).map(inside);
    if let (Some(back), Look::Seen(other)) = (back, view.network(leg.to_node, &Netns::Host))
        && let Way::Known(route) = way(other.value, back)
        && let Some(link) = route.link_index.and_then(|index| other.value.link(index))
    {
        return network.links.iter().find(|own| own.name == link.name);
    }
    let other = view.cluster().nodes.get("", leg.to_node)?;
    let address = other.internal_ips().find(|address| address.is_ipv4() == leg.to.is_ipv4())?;
    network.link(network.route_to(address)?.link_index?)
}

/// A route to some node's pods by the same device, which it would not have left.
fn left(network: &Network, device: &Link, cluster: &Cluster) -> Option<String> {
    let nets = cluster.nodes.iter().flat_map(|node| &node.spec.pod_cidrs);
    nets.filter_map(|net| match way(network, inside(net)) {
        Way::Known(route) => Some(route),
        _ => None,
    })
    .find(|route| route.link_index == Some(device.index) && !KEPT.contains(&route.protocol.as_str()))
    .map(|route| words(&route, network))
}
