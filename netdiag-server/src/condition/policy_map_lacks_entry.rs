//! A policy engine's map has no entry for a connection that NetworkPolicies allow: the map is full, or the engine lags.

use std::net::SocketAddr;

use jiff::Timestamp;
use netdiag_common::observation::policy_map::{MapRoom, PolicyEntry, PolicyQuery, PolicyVerdict};

use super::enforced::{Enforced, enforced_on};
use super::trace::{Met, Packets, dropped, probe_of};
use super::{Condition, Read, Severity, Verdict, Words};
use crate::evidence::object::{Object, Pod};
use crate::evidence::{KindName, Look, ObjectRef, View};
use crate::finding::{Fate, Finding, Fix, Impact, Proof};
use crate::path::policy::{Decision, Direction, Enforcer, Flow, decide, isolating};
use crate::path::{Backend, Client, Path};

pub const CONDITION: Condition = Condition {
    code: "policy_map_lacks_entry",
    severity: Severity::High,
    words: Words {
        means: "the policy map that Cilium keeps for a pod has no entry for the connection, which NetworkPolicies allow, so that Cilium's \
                programs drop it: the map is full, or the node's agent has not written what the policies say",
        how_we_know: "a policy isolates the pod and a rule of it allows the connection; the map of the pod, looked up as the programs look \
                      it up, has no entry for it; a probe of that connection fails, and where the entry is missing, the map's entries are \
                      counted against its limit",
        silent_when: "policies deny the connection or none isolates the pod (then only Cilium's own policies can be meant), the map has an \
                      entry that allows, denies or redirects it, Cilium takes the other end for a node (which no ipBlock means unless \
                      policy-cidr-match-mode says so), no probe of the connection fails, or another engine enforces policies",
        what_to_do: "if the map is full, raise its limit or let Cilium make fewer identities; otherwise restart Cilium's agent on the node",
        sources: &[
            "https://docs.cilium.io/en/stable/network/ebpf/maps/",
            "https://docs.cilium.io/en/stable/operations/performance/scalability/identity-relevant-labels/",
            "https://docs.cilium.io/en/stable/network/kubernetes/policy/",
            "https://github.com/cilium/cilium/issues/35010",
            "kernel/bpf/lpm_trie.c: trie_update_elem (ENOSPC)",
        ],
    },
    faults: &["cni-ebpf-map-full", "np-agent-lag"],
    reads: &[
        Read::Kind(KindName::NetworkPolicies),
        Read::Kind(KindName::Pods),
        Read::Kind(KindName::Namespaces),
        Read::Topic("network"),
        Read::Topic("rules"),
        Read::Topic("policy_map"),
        Read::Topic("drops"),
        Read::Topic("probe"),
    ],
    lookalikes: &["policy_denies_path", "host_firewall_drops_path", "pod_network_route_missing"],
    explains: &[],
    judge,
};

/// The engine whose maps the agent looks up.
const ENGINE: &str = "Cilium";
/// Where programs at interfaces drop.
const REASONS: &[&str] = &["TC_INGRESS", "TC_EGRESS"];

/// A connection of the path that a map stops.
struct Stopped {
    pod: ObjectRef,
    node: String,
    claim: String,
    proofs: Vec<Proof>,
    room: Option<MapRoom>,
    since: Option<Timestamp>,
    denies: &'static [Fate],
}

enum Found {
    Stopped(Box<Stopped>),
    Fine(String),
    Dark,
}

fn judge(path: &Path, view: &mut View) -> Verdict {
    let (Look::Seen(_), Look::Seen(_)) = (view.network_policies(), view.pods()) else { return Verdict::unknown(view) };
    let cluster = view.cluster();
    let is_isolated =
        |pod: Option<&Pod>, direction| pod.is_some_and(|pod| !isolating(cluster, pod, direction).is_empty());
    let pairs = path.clients.iter().flat_map(|client| path.ready_backends().map(move |backend| (client, backend)));
    let pairs: Vec<(&Client, &Backend)> = pairs.collect();
    let total = pairs.len();
    let flows =
        pairs.into_iter().filter_map(|(client, backend)| Some((client, backend, Flow::of(path, client, backend)?)));
    let flows: Vec<(&Client, &Backend, Flow)> = flows
        .filter(|(_, _, flow)| {
            is_isolated(flow.from.pod, Direction::Egress) || is_isolated(flow.to.pod, Direction::Ingress)
        })
        .collect();
    if flows.is_empty() {
        return Verdict::not_applicable("no NetworkPolicy isolates either end of the path");
    }
    let Look::Seen(_) = view.namespaces() else { return Verdict::unknown(view) };
    let (mut stopped, mut fine, mut dark): (Vec<Stopped>, Vec<String>, bool) = (Vec::new(), Vec::new(), false);
    let mut stopped_pairs = 0;
    for (client, backend, flow) in flows {
        if !matches!(probe_of(path, view, client, backend), Met::Failed(_)) {
            continue;
        }
        let before = stopped.len();
        for direction in [Direction::Egress, Direction::Ingress] {
            match look(&flow, direction, view) {
                Found::Stopped(found) => stopped.push(*found),
                Found::Fine(because) => fine.push(because),
                Found::Dark => dark = true,
            }
        }
        stopped_pairs += usize::from(stopped.len() > before);
    }
    let Some(first) = stopped.first() else {
        return match fine.last() {
            _ if dark => Verdict::unknown(view),
            Some(because) => Verdict::clear(because.clone()),
            None => Verdict::not_applicable("no probe of the connection fails"),
        };
    };
    let mut subjects: Vec<ObjectRef> = Vec::new();
    for one in &stopped {
        ObjectRef::of_node(&one.node).add_once(&mut subjects);
    }
    for one in &stopped {
        one.pod.clone().add_once(&mut subjects);
    }
    let finding = Finding {
        subjects,
        since: stopped.iter().filter_map(|one| one.since).max(),
        impact: if stopped_pairs == total { Impact::Breaks } else { Impact::Degrades },
        claim: first.claim.clone(),
        proofs: stopped.iter().flat_map(|one| one.proofs.clone()).collect(),
        predicts: first.denies,
        fix: fix(path, first),
    };
    Verdict::found(finding)
}

/// What the engine does with the connection at the end whose policies count in this direction.
fn look(flow: &Flow, direction: Direction, view: &mut View) -> Found {
    let (own, peer) = flow.ends(direction);
    let word = direction.word();
    let cluster = view.cluster();
    let Some(pod) = own.pod else { return Found::Fine(format!("no policy is about the {word} of {}", own.words())) };
    let policies = isolating(cluster, pod, direction);
    if policies.is_empty() {
        return Found::Fine(format!("no NetworkPolicy isolates {} for {word}", pod.reference()));
    }
    let because = match decide(cluster, flow) {
        Decision::Allowed(because) => because,
        Decision::Denied(_) => return Found::Fine("NetworkPolicies deny the connection".to_owned()),
        Decision::Undefined(because) => return Found::Fine(because),
    };
    let (enforcer, enforcing) = match enforced_on(view, own.node) {
        Enforced::By(enforcer, proof) if enforcer.name == ENGINE => (enforcer, proof),
        Enforced::By(enforcer, _) => {
            return Found::Fine(format!("{} enforces policies on node {}", enforcer.name, own.node));
        }
        Enforced::Nobody => return Found::Fine(format!("nobody enforces policies on node {}", own.node)),
        Enforced::Dark => return Found::Dark,
    };
    let ingress = direction == Direction::Ingress;
    let query = PolicyQuery { pod: own.address, peer: peer.address, ingress, protocol: flow.protocol, port: flow.port };
    let words = query.words();
    let (verdict, at) = match view.policy_map(own.node, query) {
        Look::Seen(seen) => (seen.value, seen.at),
        Look::Absent(_) => return Found::Fine(format!("{ENGINE} has no endpoints on node {}", own.node)),
        Look::Dark => return Found::Dark,
    };
    if verdict.entry != PolicyEntry::Missing {
        return Found::Fine(format!("by map {} of {ENGINE}, {words} is {}", verdict.map, verdict.entry.word()));
    }
    let PolicyVerdict { endpoint, identity, map, room, .. } = verdict;
    if is_node(*identity) {
        return Found::Fine(format!("{ENGINE} takes {} for a node, which no ipBlock means by default", peer.address));
    }
    let text = format!(
        "map {map} (endpoint {endpoint}) has no entry for {words} (identity {identity} of the other end){}",
        counted(*room)
    );
    let packets = Packets {
        source: flow.from.address,
        destination: SocketAddr::new(flow.to.address, flow.port),
        protocol: flow.protocol,
    };
    let since = policies.iter().filter_map(|policy| policy.metadata.changed_at).max();
    let mut proofs = vec![
        Proof::programmed(format!("{ENGINE}'s maps"), own.node, at, text),
        Proof::intended("NetworkPolicies", view.now(), because.clone()),
        enforcing,
    ];
    proofs.extend(dropped(view, own.node, &packets, REASONS));
    let claim = claim(pod, own.node, &words, &because, *room);
    let Enforcer { denies, .. } = enforcer;
    let stopped =
        Stopped { pod: pod.reference(), node: own.node.to_owned(), claim, proofs, room: *room, since, denies };
    Found::Stopped(Box::new(stopped))
}

/// `reserved:host`, `reserved:remote-node`, `reserved:kube-apiserver`, and the scope of remote nodes (pkg/identity of Cilium 1.20).
fn is_node(identity: u32) -> bool {
    matches!(identity, 1 | 6 | 7) || identity >> 24 == 2
}

fn claim(pod: &Pod, node: &str, words: &str, because: &str, room: Option<MapRoom>) -> String {
    let (pod, what) = (pod.reference(), format!("has no entry for {words}, although {because}"));
    match room.filter(|room| room.is_full()) {
        Some(room) => format!(
            "{ENGINE}'s policy map of {pod} on node {node} is full ({} of {} entries) and {what}",
            room.entries, room.limit
        ),
        None => format!("{ENGINE}'s policy map of {pod} on node {node} {what}"),
    }
}

fn counted(room: Option<MapRoom>) -> String {
    room.map(|room| format!("; {} of {} entries are used", room.entries, room.limit)).unwrap_or_default()
}

fn fix(path: &Path, first: &Stopped) -> Fix {
    let node = &first.node;
    let text = if first.room.is_some_and(MapRoom::is_full) {
        format!(
            "raise bpf-policy-map-max (bpf.policyMapMax of the Helm chart, 65536 at most) and restart {ENGINE}'s agents, beginning with \
             node {node}; or let policies select fewer identities: take labels that differ from pod to pod out of those that identities \
             are made of, and join blocks of addresses"
        )
    } else {
        format!(
            "see why {ENGINE}'s agent on node {node} has not written the entry (its log; it may not reach the API), and restart it there"
        )
    };
    Fix { text, commands: Vec::new(), verify: path.ask_again() }
}
