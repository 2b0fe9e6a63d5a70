//! The network between two nodes loses packets of their pods, and carries those of the nodes themselves.

use std::net::IpAddr;

use jiff::{SignedDuration, Timestamp};
use netdiag_common::observation::Protocol;
use netdiag_common::observation::flow::{Flow, FlowQuery, FlowTuple, FoundFlows};
use netdiag_common::observation::kfree_skb::Drops;
use netdiag_common::observation::probe::{Attempt, Outcome, ProbeRequest};
use netdiag_common::{Gap, GapReason, Netns};

use super::between::{crosses, pairs};
use super::overlay::{Crossing, Tunnelled, crossings};
use super::overlay_ends_differ::differs;
use super::overlay_port_blocked::blocked;
use super::passes::{self, Programmed};
use super::trace::Met;
use super::{Condition, Explains, Read, Relation, Severity, Verdict, Words};
use crate::evidence::{KindName, Look, ObjectRef, Seen, View};
use crate::finding::{Fate, Finding, Fix, Impact, Proof};
use crate::path::{Backend, Client, Path};
use crate::question::Purpose;

pub const CONDITION: Condition = Condition {
    code: "pods_lost_between_nodes",
    severity: Severity::Critical,
    words: Words {
        means: "the network between two nodes loses what carries their pods' packets: a cloud's source and destination check does so to \
                addresses that are no node's, a security group to a tunnel's UDP port or to IP protocol 4 (IPIP)",
        how_we_know: "the probe gets no answer; connection tracking on the sending node has sent the packets and waits, and on the \
                      other node has never met them; a connection from node to node is answered; the rules and routes of both nodes \
                      let the packets pass",
        silent_when: "the packets come to the other node (of a tunnel the answers' own are not looked for), a rule or a route of a \
                      node stops them, a kernel has dropped some of them, the two ends of the tunnel differ, or the nodes do not \
                      reach each other either; nobody can tell where a node does not track them (notrack, Cilium's own connection \
                      tracking), or where a program says with each packet where its tunnel sends it",
        what_to_do: "let the network between the nodes carry pods' addresses, or the tunnel's packets",
        sources: &[
            "https://docs.aws.amazon.com/vpc/latest/userguide/work-with-nat-instances.html#EIP_Disable_SrcDestCheck",
            "https://docs.tigera.io/calico/latest/reference/public-cloud/aws",
            "https://docs.tigera.io/calico/latest/getting-started/kubernetes/requirements#network-requirements",
            "net/netfilter/nf_conntrack_core.c: nf_conntrack_confirm",
        ],
    },
    faults: &["cni-src-dst-check", "cni-ipip-blocked", "cni-vxlan-blocked"],
    reads: &[
        Read::Kind(KindName::Nodes),
        Read::Topic("network"),
        Read::Topic("rules"),
        Read::Topic("fate"),
        Read::Topic("listeners"),
        Read::Topic("find_flows"),
        Read::Topic("drops"),
        Read::Topic("probe"),
    ],
    lookalikes: &[
        "overlay_port_blocked",
        "overlay_ends_differ",
        "host_firewall_drops_path",
        "plugin_rule_stops_path",
        "policy_denies_path",
        "pod_network_route_missing",
        "reverse_path_filter_drops",
        "neighbour_unresolved",
        "checksums_arrive_wrong",
        "conntrack_table_full",
    ],
    explains: &[
        Explains { code: "topology_hints_leave_no_working_endpoint", relation: Relation::SamePath },
        Explains { code: "session_affinity_keeps_bad_endpoint", relation: Relation::SamePath },
    ],
    judge,
};

/// One SYN and its first retransmission (1 s after the SYN, RFC 6298) with a margin, as the pods' own probes have.
const TIMEOUT_MS: u32 = 1_500;
/// The kubelet's port: somebody or nobody listens there, and either is an answer.
const KUBELET_PORT: u16 = 10_250;
/// An entry whose latest packet is not older is of packets that are sent now. Less than an entry without an answer lives: 30 s of UDP,
/// 60 s and more of TCP (`udp_timeouts`, `tcp_timeouts` in net/netfilter, Linux 6.18).
const RECENT_S: u32 = 15;

/// Packets of pods from one node to another, and what they travel in.
struct Carried<'p> {
    from: &'p str,
    to: &'p str,
    /// How the sending node's connection tracking is asked for them, and how the other node's.
    sent_by: FlowQuery,
    met_by: Vec<FlowQuery>,
    /// One entry has the packets of both directions: they have no ports.
    is_shared: bool,
    /// An address of the other node itself, of the same family.
    node: IpAddr,
    /// `flannel.1 (UDP port 8472)`; none for packets as pods send them.
    tunnel: Option<String>,
}

struct Lost {
    from: String,
    to: String,
    /// As of [`Carried`].
    tunnel: Option<String>,
    proofs: Vec<Proof>,
}

enum Found {
    Lost(Box<Lost>),
    Fine(String),
    Dark,
}

fn judge(path: &Path, view: &mut View) -> Verdict {
    let all = pairs(path);
    let crossings = crossings(path, view);
    if crossings.is_empty() {
        return Verdict::not_applicable("no endpoint of the path is a pod of another node");
    }
    if path.question.purpose == Purpose::Scan {
        return Verdict::not_applicable("a scan follows no packets");
    }
    if !matches!(path.protocol, Protocol::Tcp | Protocol::Udp) {
        return Verdict::not_applicable("only packets of TCP and UDP are looked for on both nodes");
    }
    let crossing = all.iter().copied().filter(|pair| crosses(*pair)).zip(&crossings);
    let silent = crossing.filter(|(_, crossing)| crossing.met == Met::Failed(Fate::Silence));
    let silent: Vec<((&Client, &Backend), &Crossing)> = silent.collect();
    if silent.is_empty() {
        return Verdict::not_applicable("no probe to a pod of another node goes unanswered");
    }
    let Look::Seen(_) = view.nodes() else { return Verdict::unknown(view) };
    let (mut found, mut fine, mut dark, mut broken): (Vec<Lost>, Vec<String>, bool, usize) =
        (Vec::new(), Vec::new(), false, 0);
    for ((client, backend), crossing) in silent {
        match look(path, client, backend, crossing, view) {
            Found::Lost(lost) => {
                broken += 1;
                if !found.iter().any(|known| (&known.from, &known.to) == (&lost.from, &lost.to)) {
                    found.push(*lost);
                }
            }
            Found::Fine(because) => fine.push(because),
            Found::Dark => dark = true,
        }
    }
    let Some(first) = found.first() else {
        fine.sort_unstable();
        fine.dedup();
        return if dark { Verdict::unknown(view) } else { Verdict::clear(fine.join("; ")) };
    };
    let impact = if broken == all.len() { Impact::Breaks } else { Impact::Degrades };
    let mut claim = found.iter().map(Lost::claim).collect::<Vec<_>>().join("; ");
    if impact == Impact::Degrades {
        claim.push_str(&format!("; {broken} of {} ways of this path are cut", all.len()));
    }
    let fix = Fix { text: first.fix(), commands: Vec::new(), verify: path.ask_again() };
    let (mut subjects, mut proofs): (Vec<ObjectRef>, Vec<Proof>) = (Vec::new(), Vec::new());
    for lost in found {
        for node in [&lost.from, &lost.to] {
            ObjectRef::of_node(node).add_once(&mut subjects);
        }
        proofs.extend(lost.proofs);
    }
    Verdict::found(Finding { subjects, since: None, impact, claim, proofs, predicts: &[Fate::Silence], fix })
}

fn look(path: &Path, client: &Client, backend: &Backend, crossing: &Crossing, view: &mut View) -> Found {
    let Some(directions) = crossing.tunnelled(view) else { return Found::Dark };
    for direction in &directions {
        let Tunnelled { from, to, entrance, .. } = direction;
        let device = &entrance.link.name;
        if differs(direction).is_some() {
            return Found::Fine(format!("the ends of {device} on nodes {from} and {to} differ"));
        }
        if !blocked(direction, crossing.met, view).0.is_empty() {
            return Found::Fine(format!("a rule stops the packets of {device} from node {from} to node {to}"));
        }
    }
    if let Some(direction) = directions.iter().find(|direction| direction.from == client.node) {
        return in_tunnel(direction, view);
    }
    let to = backend.node.as_str();
    let node = view.cluster().nodes.get("", to);
    let Some(node) = node.and_then(|node| node.internal_ips().find(|own| own.is_ipv4() == backend.address.is_ipv4()))
    else {
        let why = "it has no address of its own of that family, with which pods' could be compared";
        return open(&client.node, to, to, why, view);
    };
    let own = client.addresses.iter().copied().find(|own| own.is_ipv4() == backend.address.is_ipv4());
    // The client's node may give what it sends another source.
    let query = |client| FlowQuery {
        client,
        server: Some(backend.address),
        protocol: Some(path.protocol),
        port: Some(backend.port),
    };
    let carried = Carried {
        from: &client.node,
        to,
        sent_by: query(own),
        met_by: vec![query(None)],
        is_shared: false,
        node,
        tunnel: None,
    };
    let programmed = passes::there_and_back(path, client, backend, view);
    carried.look(programmed, view)
}

fn in_tunnel(direction: &Tunnelled, view: &mut View) -> Found {
    let Tunnelled { from, entrance, .. } = direction;
    let outer = direction.outer.and_then(|outer| Some((outer, outer.to()?)));
    let (Some((outer, (protocol, there))), Some(source)) = (outer, direction.source()) else {
        let why = format!("nothing that is written down says what packets {} sends", entrance.link.name);
        return open(from, direction.to, from, &why, view);
    };
    let query = |client, server| FlowQuery {
        client: Some(client),
        server: Some(server),
        protocol: Some(protocol),
        port: outer.port,
    };
    let is_shared = outer.port.is_none();
    let mut met_by = vec![query(source, there.ip())];
    if is_shared {
        met_by.push(query(there.ip(), source));
    }
    let carried = Carried {
        from: direction.from,
        to: direction.to,
        sent_by: query(source, there.ip()),
        met_by,
        is_shared,
        node: there.ip(),
        tunnel: Some(format!("{} ({})", entrance.link.name, outer.words())),
    };
    let programmed = passes::outer(direction, view);
    carried.look(programmed, view)
}

impl Carried<'_> {
    /// Everything is asked for at once: what the probes have sent is not remembered for long.
    fn look(self, programmed: Programmed, view: &mut View) -> Found {
        let Self { from, to, node, .. } = self;
        let near = view.find_flows(from, &Netns::Host, self.sent_by.clone()).seen();
        let met = self.met_by.iter().map(|query| view.find_flows(to, &Netns::Host, query.clone()).seen());
        let met: Vec<Option<Seen<FoundFlows>>> = met.collect();
        let met: Option<Vec<Seen<FoundFlows>>> = met.into_iter().collect();
        let reached = view.probe(from, &Netns::Host, from_node(node)).seen();
        let drops = [from, to].map(|node| view.drops(node, &Netns::Host).seen());
        let at = match programmed {
            Programmed::Passes { at } => at,
            Programmed::Otherwise(because) => {
                return Found::Fine(format!("between nodes {from} and {to}, {because}"));
            }
            Programmed::Dark => return Found::Dark,
        };
        let (Some(near), Some(met), Some(reached)) = (near, met, reached) else { return Found::Dark };
        let Some(answer) = reached.value.attempts.iter().find(|attempt| is_answered(attempt)) else {
            return Found::Fine(format!("node {from} gets no answer from node {to} itself at {node}"));
        };
        let sent: Vec<&Flow> = near.value.flows.iter().filter(|flow| self.waits(flow)).collect();
        let Some(first) = sent.first() else {
            let why = "connection tracking there has no such packets that wait for an answer";
            return open(from, to, from, why, view);
        };
        let wire = first.sent();
        let come: Vec<Option<&Flow>> = sent
            .iter()
            .map(|sent| met.iter().flat_map(|met| &met.value.flows).find(|flow| self.is_of(flow, &sent.sent())))
            .collect();
        let is_cut = met.iter().any(|met| met.value.omitted > 0 || !met.value.limits.is_empty());
        let (met_at, near_at) = (met.iter().map(|met| met.at).min().unwrap_or(near.at), near.at);
        let all_answered = come.iter().copied().all(|come| come.is_some_and(Flow::is_replied));
        let (sender, taker) = match come.iter().flatten().next() {
            None if is_cut => return open(from, to, to, "not all of its connections were told", view),
            None => (from, to),
            // What the endpoint answers has left its node, and has not come back to the client's.
            Some(_) if self.tunnel.is_none() && all_answered => (to, from),
            Some(_) => return Found::Fine(format!("what node {from} sends comes to node {to}")),
        };
        // What comes is sent once more without its answer, and the listener's kernel throws away what it has already: no cause.
        let (there, back) = ((wire.source, wire.destination), (wire.destination, wire.source));
        let ends = if sender == from { vec![there, back] } else { vec![back] };
        for (node, drops) in [from, to].into_iter().zip(drops) {
            let Some(drops) = drops else { return Found::Dark };
            if let Some(lost) = dropped(&wire, &ends, first.protocol_number, drops) {
                return Found::Fine(format!("the kernel of node {node} drops such packets: {lost}"));
            }
        }
        let protocol = first.protocol().map(|protocol| format!("{protocol} ")).unwrap_or_default();
        let packets = format!("{protocol}packets {}", wire.words());
        let (left, missed) = if sender == from {
            (
                format!("{packets} have been sent to node {to} and wait for an answer"),
                format!("no entry: {packets} have not come here"),
            )
        } else {
            (
                format!("{packets} have come here and are answered"),
                format!("{packets} wait for an answer: none has come here"),
            )
        };
        let (left_at, missed_at) = if sender == from { (near_at, met_at) } else { (met_at, near_at) };
        let reached_words = format!("{node}, port {KUBELET_PORT}, of node {to}: {}", answer.outcome.words());
        let passes = format!("by the rules and routes of nodes {from} and {to}, such packets and answers pass");
        let proofs = vec![
            Proof::observed("connection tracking", sender, left_at, left),
            Proof::observed("connection tracking", taker, missed_at, missed),
            Proof::probe(format!("probe from node {from}"), from, reached.at, reached_words),
            Proof::programmed("rules and routes", to, at, passes),
        ];
        Found::Lost(Box::new(Lost { from: sender.to_owned(), to: taker.to_owned(), tunnel: self.tunnel, proofs }))
    }

    /// An entry of packets that were sent a moment ago, and that nobody has answered.
    fn waits(&self, flow: &Flow) -> bool {
        // What is shared has been answered once, and stays so.
        let is_unanswered = !flow.is_replied() || self.is_shared;
        is_unanswered && flow.latest_packet_s.is_some_and(|seconds| seconds <= RECENT_S)
    }

    /// The other node's entry of the same packets.
    fn is_of(&self, flow: &Flow, wire: &FlowTuple) -> bool {
        let is_same = flow.original == *wire || (flow.sent() == wire.inverse() && flow.is_replied());
        let is_now = !self.is_shared || flow.latest_packet_s.is_none_or(|seconds| seconds <= RECENT_S);
        is_same && is_now
    }
}

impl Lost {
    fn claim(&self) -> String {
        let Self { from, to, tunnel, .. } = self;
        let what = tunnel.as_ref().map_or_else(
            || "packets with pods' addresses".to_owned(),
            |tunnel| format!("packets of the tunnel {tunnel}"),
        );
        format!(
            "{what} from node {from} to node {to} are lost on the network between them: node {to} does not get them, while the \
             nodes' own packets get there and back"
        )
    }

    fn fix(&self) -> String {
        let Self { from, to, tunnel, .. } = self;
        match tunnel {
            Some(tunnel) => format!(
                "let what stands between nodes {from} and {to} (the cloud's security groups, a firewall, the hypervisor) pass the packets \
                 of {tunnel} from node to node, or set the network plugin to a tunnel that it lets pass"
            ),
            None => format!(
                "let the network between nodes {from} and {to} carry pods' addresses: on AWS turn the source/destination check of both \
                 instances off, on Azure turn IP forwarding of their network interfaces on, on Google Cloud their canIpForward, on \
                 OpenStack allow the pods' range as address pairs of their ports; a router between them needs routes to the pods of \
                 each; or set the network plugin to a tunnel"
            ),
        }
    }
}

/// `node` is the one that would have to be looked at.
fn open(from: &str, to: &str, node: &str, why: &str, view: &mut View) -> Found {
    view.leave_open(Gap {
        what: format!("whether packets of pods get from node {from} to node {to}"),
        node: Some(node.to_owned()),
        reason: GapReason::Failed,
        why: why.to_owned(),
        remedy: "look with `tcpdump` at both nodes whether what one sends comes to the other".to_owned(),
    });
    Found::Dark
}

fn from_node(address: IpAddr) -> ProbeRequest {
    ProbeRequest::TcpConnect { address, port: KUBELET_PORT, timeout_ms: TIMEOUT_MS, attempts: 1, source_port: None }
}

fn is_answered(attempt: &Attempt) -> bool {
    attempt.outcome == Outcome::Connected || attempt.outcome.is_refused()
}

/// Such packets that a kernel drops: of late, since what has been repaired is no reason.
fn dropped(wire: &FlowTuple, ends: &[(IpAddr, IpAddr)], protocol_number: u8, drops: Seen<Drops>) -> Option<String> {
    let since: Timestamp = drops.at - SignedDuration::from_secs(i64::from(RECENT_S));
    let group = drops.value.groups.iter().find(|group| {
        let tuple = group.tuple.as_ref().filter(|tuple| tuple.protocol_number == protocol_number);
        let is_such = tuple.is_some_and(|tuple| {
            ends.contains(&(tuple.source, tuple.destination))
                && [wire.source_port, wire.destination_port].contains(&tuple.service_port)
        });
        is_such && group.last_at >= since
    })?;
    Some(format!("{} packets, {} at {}", group.packets, group.reason, group.location))
}
