//! A node sends packets of its pods out of the cluster with the pods' own addresses, which nobody out there can answer.

use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;
use netdiag_common::forwarding::path::{Decision, End};
use netdiag_common::forwarding::state::Hook;
use netdiag_common::observation::Protocol;
use netdiag_common::observation::flow::{Flow, FlowQuery, FoundFlows};
use netdiag_common::observation::kfree_skb::{DropTuple, Drops};
use netdiag_common::observation::network::Network;
use netdiag_common::observation::probe::ProbeRequest;
use netdiag_common::{Gap, GapReason, Netns};

use super::rule::{Rule, rule};
use super::way::{self, Met, Search, search};
use super::{Condition, Read, Severity, Verdict, Words};
use crate::evidence::{Cluster, KindName, Look, ObjectRef, Seen, View};
use crate::finding::{Fate, Finding, Fix, Impact, Proof};
use crate::path::Path;
use crate::path::route::is_steered;
use crate::trace::{Direction, Leg, TUNNELS, Way, WayEnd};

pub const CONDITION: Condition = Condition {
    code: "egress_not_masqueraded",
    severity: Severity::High,
    words: Words {
        means: "a node sends packets of a pod out of the cluster with the pod's own address, and answers to it do not come back, while \
                the node itself is answered",
        how_we_know: "the packet is followed by the node's rules until it leaves with its source unchanged; connection tracking waits for \
                      an answer at the pod's address, and the same connection from the node is made",
        silent_when: "the node translates the source, the node gets no connection either, a rule or the kernel drops the packet before it \
                      leaves, or its answer, it leaves by a tunnel, something else that pods reach behind the same hop answers their own \
                      addresses, pods share the node's network, or their addresses are public ones, as global ones of IPv6",
        what_to_do: "let the network plugin masquerade what pods send to that address, or let the network outside route the pods' addresses",
        sources: &[
            "https://kubernetes.io/docs/tasks/administer-cluster/ip-masq-agent/",
            "https://docs.tigera.io/calico/latest/networking/configuring/workloads-outside-cluster",
            "https://github.com/projectcalico/calico/issues/4604",
            "net/netfilter/nf_nat_masquerade.c",
        ],
    },
    faults: &["cni-missing-masquerade"],
    reads: &[
        Read::Kind(KindName::Pods),
        Read::Kind(KindName::Nodes),
        Read::Topic("fate"),
        Read::Topic("network"),
        Read::Topic("listeners"),
        Read::Topic("find_flows"),
        Read::Topic("drops"),
        Read::Topic("probe"),
    ],
    lookalikes: &["policy_denies_path", "plugin_rule_stops_path", "host_firewall_drops_path"],
    explains: &[],
    judge,
};

/// One SYN and its first retransmission (1 s after the SYN, RFC 6298) with a margin, as the pod's own probes have.
const TIMEOUT_MS: u32 = 1_500;
/// Other pods of the node whose connections are looked at for answers from outside.
const MAX_OTHERS: usize = 4;
/// Rules told one by one.
const MAX_RULES: usize = 4;

/// A pod's packet on its last leg in the cluster.
struct Leaves {
    pod: IpAddr,
    /// `pod shop/client`.
    who: String,
    to: SocketAddr,
    /// Who takes it from the node: the gateway, or the destination itself.
    hop: IpAddr,
    interface: u32,
    device: String,
}

enum Judged {
    Bare(Vec<Proof>),
    Fine(String),
    Dark,
}

fn judge(path: &Path, view: &mut View) -> Verdict {
    if path.protocol != Protocol::Tcp {
        return Verdict::not_applicable("only a TCP connection can be tried from the node, too");
    }
    let cluster = view.cluster();
    let Met { found, impact } = match search(path, view, |way, leg| bare(cluster, way, leg)) {
        Search::Met(met) => met,
        Search::Not(verdict) => return verdict,
    };
    let (Look::Seen(_), Look::Seen(_)) = (view.pods(), view.nodes()) else { return Verdict::unknown(view) };
    let mut subjects: Vec<ObjectRef> = Vec::new();
    let (mut proofs, mut claims, mut fine, mut dark) = (Vec::new(), Vec::new(), Vec::new(), false);
    for met in &found {
        match prove(met, view) {
            Judged::Bare(own) => {
                let Leaves { pod, who, to, .. } = &met.what;
                claims.push(format!(
                    "{} sends packets of {who} to {to} out of the cluster with the pod's own address {pod}, and no answer comes back to \
                     it, while a connection of the node itself to {to} is made",
                    met.leg.place.words(view)
                ));
                proofs.extend(own);
                met.leg.place.subject(view).add_once(&mut subjects);
            }
            Judged::Fine(because) => fine.push(because),
            Judged::Dark => dark = true,
        }
    }
    if claims.is_empty() {
        return if dark { Verdict::unknown(view) } else { Verdict::clear(fine.join("; ")) };
    }
    let impact = if fine.is_empty() { impact } else { Impact::Degrades };
    let fix = Fix {
        text: format!(
            "let the network plugin masquerade what pods send there: ipMasq of flannel and of CNI's own plugins, natOutgoing of \
             Calico's IPPools, nonMasqueradeCIDRs of ip-masq-agent (too wide where only some addresses are silent); if it does, its \
             rules are gone from {}: restart its agent there; where pods' addresses are meant to be known outside, give the network \
             there a route to them",
            subjects.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
        ),
        commands: Vec::new(),
        verify: path.ask_again(),
    };
    let claim = claims.join("; ");
    Verdict::found(Finding { subjects, since: None, impact, claim, proofs, predicts: &[Fate::Silence], fix })
}

/// A pod's packet that leaves the cluster here as the pod has sent it.
fn bare(cluster: &Cluster, way: &Way, leg: &Leg) -> Option<Leaves> {
    let WayEnd::LeftCluster { to: hop } = way.end else { return None };
    let End::Sent { interface, .. } = leg.path().end else { return None };
    let is_last = way.legs.last().is_some_and(|last| std::ptr::eq(last, leg));
    if !is_last || leg.direction == Direction::Reply || leg.place.netns != Netns::Host {
        return None;
    }
    let device = leg.fate.interfaces.iter().find(|device| device.index == interface)?;
    // What is at a tunnel's other end may translate.
    if TUNNELS.contains(&device.kind.as_str()) {
        return None;
    }
    let packet = &leg.path().packet;
    let (_, port) = packet.ports()?;
    let (pod, to) = (packet.source(), SocketAddr::new(packet.destination(), port));
    let sender = &cluster.pod_by_address(pod)?.metadata;
    let who = format!("pod {}/{}", sender.namespace, sender.name);
    let leaves = Leaves { pod, who, to, hop, interface, device: device.name.clone() };
    (is_private(pod) && is_outside(cluster, to.ip())).then_some(leaves)
}

fn prove(met: &way::Found<Leaves>, view: &mut View) -> Judged {
    let (leg, leaves) = (&met.leg, &met.what);
    let Leaves { pod, to, hop, .. } = leaves;
    let node = leg.place.node.as_str();
    if let Some(why) = leg.path().gaps.first() {
        view.leave_open(open(node, leaves, why.clone()));
        return Judged::Dark;
    }
    // Everything is asked for at once; what the kernel dropped may stay unseen.
    let own = view.probe(node, &Netns::Host, from_node(*to)).seen();
    let network = view.network(node, &Netns::Host).seen();
    let drops = view.drops(node, &Netns::Host).seen();
    let query =
        FlowQuery { client: Some(*pod), server: Some(to.ip()), protocol: Some(Protocol::Tcp), port: Some(to.port()) };
    let flows = view.find_flows(node, &Netns::Host, query).seen();
    let neighbours = flows_of_pods(node, leaves, view);
    let (Some(own), Some(network), Some(flows), Some(neighbours)) = (own, network, flows, neighbours) else {
        return Judged::Dark;
    };
    if shares_network(leaves, network.value) {
        return Judged::Fine(format!("{pod} is an address of the network that {} of node {node} is in", leaves.device));
    }
    if own.value.succeeded() == 0 {
        return Judged::Fine(format!("node {node} gets no connection to {to} either"));
    }
    if let Some(lost) = drops.and_then(|drops| dropped(leaves, drops.value)) {
        return Judged::Fine(format!("node {node} drops packets between {pod} and {to}: {lost}"));
    }
    let cluster = view.cluster();
    if let Some(who) = neighbours.iter().find_map(|found| answered(cluster, leaves, network.value, found.value)) {
        return Judged::Fine(format!("{who}, behind the same hop {hop}"));
    }
    let all = flows.value.flows.len();
    let bare: Vec<&Flow> = flows.value.flows.iter().filter(|flow| !flow.is_source_rewritten()).collect();
    if bare.iter().any(|flow| flow.is_replied()) {
        return Judged::Fine(format!("answers of {to} to {pod} come back to node {node}"));
    }
    if bare.is_empty() && all > 0 {
        return Judged::Fine(format!(
            "connection tracking on node {node} gives what {pod} sends to {to} another source"
        ));
    }
    if bare.is_empty() {
        let why = format!("connection tracking on node {node} has no connection from {pod} to {to}");
        view.leave_open(open(node, leaves, why));
        return Judged::Dark;
    }
    let waits = format!(
        "{} of {all} connections from {pod} to {to} wait for an answer at {pod} itself, and node {node} has seen none",
        bare.len()
    );
    let made = format!("{} of {} connects to {to} got through", own.value.succeeded(), own.value.attempts.len());
    Judged::Bare(vec![
        Proof::programmed("packet filter", node, leg.at, programmed(leg, leaves)),
        Proof::observed("connection tracking", node, flows.at, waits),
        Proof::probe(format!("probe from node {node}"), node, own.at, made),
    ])
}

fn from_node(to: SocketAddr) -> ProbeRequest {
    let (address, port) = (to.ip(), to.port());
    ProbeRequest::TcpConnect { address, port, timeout_ms: TIMEOUT_MS, attempts: 1, source_port: None }
}

/// The connections that the pod, and a few others of its node, have opened. None: not all of them are seen.
fn flows_of_pods<'e>(node: &str, leaves: &Leaves, view: &mut View<'e>) -> Option<Vec<Seen<'e, FoundFlows>>> {
    let cluster = view.cluster();
    let here = cluster.pods.iter().filter(|pod| pod.spec.node_name == node);
    let here = here.filter(|pod| !pod.spec.host_network && !pod.is_finished());
    let like = here.filter_map(|pod| pod.addresses().find(|own| own.is_ipv4() == leaves.pod.is_ipv4()));
    let others = like.filter(|own| *own != leaves.pod).take(MAX_OTHERS);
    let mut seen = Vec::new();
    for own in std::iter::once(leaves.pod).chain(others) {
        let query = FlowQuery { client: Some(own), ..FlowQuery::default() };
        seen.push(view.find_flows(node, &Netns::Host, query).seen());
    }
    seen.into_iter().collect()
}

/// As some clouds have it: their network knows the pods because they are in it.
fn shares_network(leaves: &Leaves, network: &Network) -> bool {
    network
        .addresses
        .iter()
        .filter(|own| own.link_index == leaves.interface)
        .any(|own| IpNet::new(own.address, own.prefix_length).is_ok_and(|network| network.contains(&leaves.pod)))
}

/// Packets that the node's kernel dropped, there or back: answers may end before connection tracking sees them.
fn dropped(leaves: &Leaves, drops: &Drops) -> Option<String> {
    let ends = (leaves.pod, leaves.to.ip());
    let is_of_it = |tuple: &DropTuple| {
        let is_between = ends == (tuple.source, tuple.destination) || ends == (tuple.destination, tuple.source);
        is_between && tuple.protocol == Some(Protocol::Tcp)
    };
    let group = drops.groups.iter().find(|group| group.tuple.as_ref().is_some_and(is_of_it))?;
    Some(format!("{} packets, {} at {}", group.packets, group.reason, group.location))
}

/// Somebody outside, behind the hop that takes the packet, has answered a pod's own address: it is known there.
fn answered(cluster: &Cluster, leaves: &Leaves, network: &Network, found: &FoundFlows) -> Option<String> {
    let is_behind = |server: IpAddr| {
        // By which table packets go there, only the rules of policy routing know.
        is_steered(network)
            || network.route_to(server).is_some_and(|route| route.gateway.unwrap_or(server) == leaves.hop)
    };
    let is_bare = |flow: &&Flow| flow.is_replied() && !flow.is_source_rewritten();
    let mut bare = found.flows.iter().filter(is_bare);
    let flow = bare.find(|flow| is_outside(cluster, flow.reply.source) && is_behind(flow.reply.source))?;
    Some(format!("{} has answered {} itself", flow.reply.source, flow.original.source))
}

/// What the rules made of the packet where sources are translated.
fn programmed(leg: &Leg, leaves: &Leaves) -> String {
    let Leaves { pod, to, hop, device, .. } = leaves;
    let decisions = leg.path().decisions.iter();
    let there = decisions.filter(|decision| matches!(decision, Decision::Rule { hook: Hook::Postrouting, .. }));
    let rules = there.filter_map(|decision| rule(&leg.fate, decision)).take(MAX_RULES);
    let words = |rule: Rule| format!("{}: {} (written by {})", rule.place(), rule.text, rule.writer());
    let rules: Vec<String> = rules.map(words).collect();
    let met = if rules.is_empty() { "none".to_owned() } else { rules.join("; ") };
    format!(
        "what {pod} sends to {to} leaves by {device} for {hop} with that source; rules that it meets in postrouting: {met}"
    )
}

/// Nobody but the network that gave them can have a route to them.
fn is_private(address: IpAddr) -> bool {
    match address {
        // Also of RFC 6598, which some clusters give to pods.
        IpAddr::V4(address) => {
            let [first, second, ..] = address.octets();
            address.is_private() || (first == 100 && (64..128).contains(&second))
        }
        IpAddr::V6(address) => address.is_unique_local(),
    }
}

/// Of no pod, node or Service that is known, and of no node's pod range.
fn is_outside(cluster: &Cluster, address: IpAddr) -> bool {
    !cluster.has_address(address)
        && !cluster.nodes.iter().any(|node| node.spec.pod_cidrs.iter().any(|range| range.contains(&address)))
}

fn open(node: &str, leaves: &Leaves, why: String) -> Gap {
    let Leaves { pod, to, .. } = leaves;
    Gap {
        what: format!("whether node {node} translates what {pod} sends to {to}"),
        node: Some(node.to_owned()),
        reason: GapReason::Failed,
        why,
        remedy: format!("look with `conntrack -L -s {pod} -d {}` on the node while the pod connects", to.ip()),
    }
}
