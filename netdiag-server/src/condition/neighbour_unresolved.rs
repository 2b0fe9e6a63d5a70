//! A host on the path's link does not answer: the next hop, or the pod itself, whose link-layer address the node asks for in vain.

use std::net::IpAddr;

use jiff::Timestamp;
use netdiag_common::observation::neighbour::{Neighbours, Unresolved};
use netdiag_common::observation::network::Network;
use netdiag_common::{Gap, GapReason, Netns};

use super::hop::{Leg, legs, pairs};
use super::trace::{Met, dropped, probe_of};
use super::{Condition, Explains, Read, Relation, Severity, Verdict, Words};
use crate::evidence::object::{Object, Pod};
use crate::evidence::{KindName, Look, ObjectRef, Seen, View};
use crate::finding::{Fate, Finding, Fix, Impact, Proof};
use crate::path::route::{Way, is_steered, way, words};
use crate::path::{Backend, Client, Path};

pub const CONDITION: Condition = Condition {
    code: "neighbour_unresolved",
    severity: Severity::Critical,
    words: Words {
        means: "a node of the path gets no answer on the link from the next hop or from the pod, so it cannot send there",
        how_we_know: "the route of each node says which neighbour packets of the path go to, the node's neighbour table says \
                      that it failed, and the node dropped packets of the path for it or the probe failed",
        silent_when: "the address belongs to no pod, so nobody should answer, the next hop's Node is not ready, which says more, or \
                      nobody wanted to send there lately",
        what_to_do: "see why the neighbour does not answer: its interface, a filter for ARP or NDP, the link between the nodes",
        sources: &[
            "arp(7), ip-neighbour(8)",
            "net/core/neighbour.c: neigh_timer_handler, neigh_invalidate (SKB_DROP_REASON_NEIGH_FAILED)",
        ],
    },
    faults: &["neigh-failed-router-side"],
    reads: &[
        Read::Kind(KindName::Nodes),
        Read::Topic("network"),
        Read::Topic("neighbours"),
        Read::Topic("drops"),
        Read::Topic("probe"),
    ],
    lookalikes: &["pod_network_route_missing", "host_firewall_drops_path", "policy_denies_path"],
    explains: &[
        Explains { code: "topology_hints_leave_no_working_endpoint", relation: Relation::SamePath },
        Explains { code: "session_affinity_keeps_bad_endpoint", relation: Relation::SamePath },
    ],
    judge,
};

/// `net/core/neighbour.c`: the packets that waited for the address, and those that found the queue for it full.
const REASONS: &[&str] = &["NEIGH_FAILED", "NEIGH_QUEUEFULL"];
/// A neighbour that nobody wanted for longer says nothing about now: entries stay until they are collected.
const WANTED_WITHIN_MS: u64 = 60_000;
/// Three questions, a second apart (`mcast_solicit`, `retrans_time_ms`): an entry younger than this is just being asked.
const ASKED_S: f64 = 4.0;

/// A leg whose next hop does not answer.
struct Cut {
    claim: String,
    subjects: Vec<ObjectRef>,
    proofs: Vec<Proof>,
    since: Option<Timestamp>,
    fix: Fix,
}

enum Found {
    Cut(Box<Cut>),
    Fine,
    /// Something else says more about why.
    Silent(String),
    Dark,
}

fn judge(path: &Path, view: &mut View) -> Verdict {
    let pairs: Vec<(&Client, &Backend, &Pod)> = pairs(path).collect();
    if pairs.is_empty() {
        return Verdict::not_applicable("no endpoint of the path is a pod that a node sends to");
    }
    let Look::Seen(_) = view.nodes() else { return Verdict::unknown(view) };
    let (mut cuts, mut silent): (Vec<Cut>, Option<String>) = (Vec::new(), None);
    let (mut dark, mut broken) = (false, 0);
    for (client, backend, pod) in &pairs {
        let met = probe_of(path, view, client, backend);
        let mut here = false;
        for leg in legs(path, client, backend, pod) {
            match look(path, &leg, met, view) {
                Found::Cut(cut) => {
                    here = true;
                    if !cuts.iter().any(|known| known.subjects == cut.subjects) {
                        cuts.push(*cut);
                    }
                }
                Found::Fine => {}
                Found::Silent(because) => silent = Some(because),
                Found::Dark => dark = true,
            }
        }
        broken += usize::from(here);
    }
    let Some(first) = cuts.first() else {
        return match silent {
            _ if dark => Verdict::unknown(view),
            Some(because) => Verdict::not_applicable(because),
            None => Verdict::clear("every next hop of the path answers on its link"),
        };
    };
    let impact = if broken == pairs.len() { Impact::Breaks } else { Impact::Degrades };
    let mut claim = first.claim.clone();
    if impact == Impact::Degrades {
        claim.push_str(&format!("; {broken} of {} ways of this path are cut", pairs.len()));
    }
    let mut subjects: Vec<ObjectRef> = Vec::new();
    for subject in cuts.iter().flat_map(|cut| &cut.subjects) {
        if !subjects.contains(subject) {
            subjects.push(subject.clone());
        }
    }
    Verdict::found(Finding {
        subjects,
        since: cuts.iter().filter_map(|cut| cut.since).min(),
        impact,
        claim,
        proofs: cuts.iter().flat_map(|cut| cut.proofs.clone()).collect(),
        predicts: &[Fate::Unreachable, Fate::Silence],
        fix: first.fix.clone(),
    })
}

fn look(path: &Path, leg: &Leg, met: Met, view: &mut View) -> Found {
    let Look::Seen(network) = view.network(leg.node, &Netns::Host) else { return Found::Dark };
    let Look::Seen(neighbours) = view.neighbours(leg.node, &Netns::Host) else { return Found::Dark };
    let to = leg.packets.destination.ip();
    // Without a way there is no next hop: that is another condition's.
    let (Way::Known(route) | Way::OnlyDefault(route)) = way(network.value, to) else { return Found::Fine };
    let hop = route.gateway.unwrap_or(to);
    let Some(entry) = unresolved(neighbours, hop, route.link_index, view) else { return Found::Fine };
    if met == Met::GotThrough {
        return Found::Fine;
    }
    let other = view.cluster().node_by_address(hop).cloned();
    let down =
        [other.as_ref(), view.cluster().nodes.get("", leg.to_node)].into_iter().flatten().find(|node| !node.is_ready());
    if let Some(down) = down {
        return Found::Silent(format!(
            "node {} is not ready: that its neighbours miss it says no more",
            down.metadata.name
        ));
    }
    let dropped = dropped(view, leg.node, &leg.packets, REASONS).or_else(|| dropped_to(leg, view));
    let is_steered = is_steered(network.value);
    let failed = matches!(met, Met::Failed(Fate::Unreachable | Fate::Silence)) && !is_steered;
    if dropped.is_none() && !failed {
        view.leave_open(nothing_sent(leg, entry));
        return Found::Dark;
    }
    let who = match (&other, leg.pod) {
        (Some(node), _) => format!("{hop} ({})", node.reference()),
        (None, Some(pod)) if hop == to => format!("{hop} ({})", pod.reference()),
        (None, _) => hop.to_string(),
    };
    let device = device(entry, network.value);
    let mut claim = format!("node {} gets no answer on {device} from {who}", leg.node);
    if hop != to {
        claim.push_str(&format!(", its next hop to {to}"));
    }
    let mut proofs = vec![
        Proof::programmed("neighbours", leg.node, neighbours.at, entry_in_words(entry, &device)),
        Proof::programmed("routes", leg.node, network.at, format!("to {to}: {}", words(&route, network.value))),
    ];
    proofs.extend(dropped);
    let mut subjects = vec![ObjectRef::of_node(leg.node)];
    match (&other, leg.pod) {
        (Some(node), _) => subjects.push(ObjectRef::of_node(&node.metadata.name)),
        (None, Some(pod)) if hop == to => {
            subjects.insert(0, pod.reference());
            let text = format!("it is ready and has the address {to}");
            proofs.push(Proof::intended(pod.reference(), view.now(), text));
            if let Some((why, at)) = inside(pod, leg.node, to, view) {
                claim.push_str(&format!("; {why}"));
                proofs.push(Proof::programmed(format!("links of {}", pod.reference()), leg.node, at, why));
            }
        }
        (None, _) => {}
    }
    let fix = fix(path, leg, hop, &device, other.is_some());
    Found::Cut(Box::new(Cut { claim, subjects, proofs, since: entry.first_at, fix }))
}

/// The entry of this next hop, when it was asked in vain and somebody still wants it.
fn unresolved<'e>(
    neighbours: Seen<'e, Neighbours>,
    hop: IpAddr,
    link_index: Option<u32>,
    view: &View,
) -> Option<&'e Unresolved> {
    let is_it = |entry: &&Unresolved| entry.address == hop && link_index.is_none_or(|index| index == entry.link_index);
    let entry = neighbours.value.unresolved.iter().find(is_it)?;
    let read_at = neighbours.at.min(view.now());
    let asked_s = entry.first_at.map(|at| read_at.duration_since(at).as_secs_f64());
    let in_vain = entry.state == "failed" || asked_s.is_some_and(|asked_s| asked_s >= ASKED_S);
    let wanted = entry.used_ms.is_none_or(|used_ms| used_ms <= WANTED_WITHIN_MS);
    (in_vain && wanted).then_some(entry)
}

/// Packets of others to the same address.
fn dropped_to(leg: &Leg, view: &mut View) -> Option<Proof> {
    let Look::Seen(drops) = view.drops(leg.node, &Netns::Host) else { return None };
    let to = leg.packets.destination.ip();
    let group = drops.value.groups.iter().find(|group| {
        REASONS.contains(&group.reason.as_str()) && group.tuple.as_ref().is_some_and(|tuple| tuple.destination == to)
    })?;
    let text = format!(
        "{} packets to {to} dropped in {:.0} s: {} at {}",
        group.packets, drops.value.window_s, group.reason, group.location
    );
    Some(Proof::observed("dropped packets", leg.node, drops.at, text))
}

fn device(entry: &Unresolved, network: &Network) -> String {
    match network.link(entry.link_index) {
        Some(link) => link.name.clone(),
        None => entry.device.clone(),
    }
}

fn entry_in_words(entry: &Unresolved, device: &str) -> String {
    let mut text = format!("{} dev {device} is {}", entry.address, entry.state);
    if let Some(used_ms) = entry.used_ms {
        text.push_str(&format!(", wanted {} s ago", used_ms / 1_000));
    }
    if let Some(first_at) = entry.first_at {
        text.push_str(&format!(", without an answer since {first_at}"));
    }
    text
}

/// What the pod's own namespace says about its silence, and when it was read.
fn inside(pod: &Pod, node: &str, address: IpAddr, view: &mut View) -> Option<(String, Timestamp)> {
    let Look::Seen(network) = view.network(node, &Netns::Pod(pod.metadata.uid.clone())) else { return None };
    let why = match network.value.addresses.iter().find(|own| own.address == address) {
        None => format!("the pod's namespace has no address {address}"),
        Some(own) => {
            let link = network.value.link(own.link_index).filter(|link| !link.up || !link.carrier)?;
            format!("in the pod {} is down", link.name)
        }
    };
    Some((why, network.at))
}

fn nothing_sent(leg: &Leg, entry: &Unresolved) -> Gap {
    Gap {
        what: format!("whether packets of this path meet the neighbour {} of node {}", entry.address, leg.node),
        node: Some(leg.node.to_owned()),
        reason: GapReason::NotRecorded,
        why: "the neighbour does not answer, but no packet to it was seen to be lost and no probe was sent".to_owned(),
        remedy: "ask again with probes allowed".to_owned(),
    }
}

fn fix(path: &Path, leg: &Leg, hop: IpAddr, device: &str, is_node: bool) -> Fix {
    let text = match leg.pod {
        _ if is_node => format!(
            "look at the link between node {} and {hop}: a filter for ARP or NDP (`nft list ruleset`, ebtables), the interface and \
             its VLAN, the cloud's check of source addresses",
            leg.node
        ),
        Some(pod) if hop == leg.packets.destination.ip() => format!(
            "see in {} whether its interface is up and has its address, and on node {} whether something filters ARP on \
             {device}; deleting the pod makes its interface anew",
            pod.reference(),
            leg.node
        ),
        _ => format!(
            "see why {hop} does not answer on {device} of node {}; no Node has that address, so see also whether the route \
             should lead there",
            leg.node
        ),
    };
    let command = format!("ip neighbour show {hop} dev {device}  # on node {}", leg.node);
    Fix { text, commands: vec![command], verify: path.ask_again() }
}
