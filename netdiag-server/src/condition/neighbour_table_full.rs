//! A node's kernel has no room for one more neighbour: what it would have to ask for first is not sent.

use std::net::IpAddr;

use jiff::Timestamp;
use netdiag_common::observation::Owner;
use netdiag_common::observation::neighbour::{Failure, FailureKind, NeighbourTable, Neighbours};
use netdiag_common::observation::network::{Network, Route};
use netdiag_common::{Gap, GapReason, Netns};

use super::hop::{legs, pairs};
use super::trace::{Met, Packets, probe_of};
use super::{Condition, Read, Severity, Verdict, Words};
use crate::evidence::object::Pod;
use crate::evidence::{Look, ObjectRef, Seen, View};
use crate::finding::{Fate, Finding, Fix, Impact, Proof};
use crate::path::route::{Way, way, words};
use crate::path::{Backend, Client, Path};

pub const CONDITION: Condition = Condition {
    code: "neighbour_table_full",
    severity: Severity::High,
    words: Words {
        means: "a node of the path has no room for one more neighbour, so it sends nothing to a next hop that it has no entry for, while \
                whoever has an entry is reached",
        how_we_know: "the entries of the kernel's neighbour table are compared with gc_thresh3, its counter `table_fulls` grew, and an \
                      entry for the path's next hop was refused or packets were dropped for want of it (NEIGH_CREATEFAIL)",
        silent_when: "the node has an entry for its next hop, packets get through, only the other family's table is full, or it \
                      refused nobody lately: there may be more entries than the limit, as permanent ones do not count",
        what_to_do: "raise gc_thresh3 and gc_thresh2 of the family's neighbour table on the node, and see why it has so many neighbours",
        sources: &[
            "https://docs.kernel.org/networking/ip-sysctl.html",
            "arp(7): gc_thresh3",
            "net/core/neighbour.c: neigh_alloc, neigh_forced_gc; net/ipv4/ip_output.c: ip_finish_output2 \
             (SKB_DROP_REASON_NEIGH_CREATEFAIL)",
            "https://github.com/kubernetes/kops/issues/4533",
        ],
    },
    faults: &["host-neigh-overflow"],
    reads: &[Read::Topic("network"), Read::Topic("neighbours"), Read::Topic("drops"), Read::Topic("probe")],
    lookalikes: &[
        "neighbour_unresolved",
        "conntrack_table_full",
        "pod_network_route_missing",
        "host_firewall_drops_path",
        "policy_denies_path",
    ],
    explains: &[],
    judge,
};

/// `ip_finish_output2` and `ip6_finish_output2`, since Linux 5.18.
const REASON: &str = "NEIGH_CREATEFAIL";
const COUNTER: &str = "table_fulls";
/// Nodes described one by one when all is well.
const MAX_NAMED: usize = 2;

/// A namespace that sends packets of the path on.
struct Sender<'p> {
    node: &'p str,
    netns: Netns,
    /// `node n1`, `Pod shop/client`.
    name: String,
    packets: Packets,
}

/// A next hop for which a table had no room.
struct Full {
    node: String,
    table: &'static str,
    hop: IpAddr,
    claim: String,
    proofs: Vec<Proof>,
    since: Option<Timestamp>,
    limit: u32,
}

enum Found {
    Full(Box<Full>),
    Fine(String),
    Dark,
}

fn judge(path: &Path, view: &mut View) -> Verdict {
    let pairs: Vec<(&Client, &Backend, &Pod)> = pairs(path).collect();
    if pairs.is_empty() {
        return Verdict::not_applicable("no endpoint of the path is a pod that a node sends to");
    }
    let (mut full, mut fine): (Vec<Full>, Vec<String>) = (Vec::new(), Vec::new());
    let (mut dark, mut broken) = (false, 0);
    for (client, backend, pod) in &pairs {
        let met = probe_of(path, view, client, backend);
        let mut here = false;
        for sender in senders(path, client, backend, pod) {
            match look(&sender, met, view) {
                Found::Full(found) => {
                    here |= matches!(met, Met::Failed(_));
                    let is_it = |known: &Full| (&known.node, known.hop) == (&found.node, found.hop);
                    if !full.iter().any(is_it) {
                        full.push(*found);
                    }
                }
                Found::Fine(because) if fine.contains(&because) => {}
                Found::Fine(because) => fine.push(because),
                Found::Dark => dark = true,
            }
        }
        broken += usize::from(here);
    }
    let Some(first) = full.first() else {
        fine.truncate(MAX_NAMED);
        return if dark { Verdict::unknown(view) } else { Verdict::clear(fine.join("; ")) };
    };
    let mut subjects: Vec<ObjectRef> = Vec::new();
    for subject in full.iter().map(|one| ObjectRef::of_node(&one.node)) {
        if !subjects.contains(&subject) {
            subjects.push(subject);
        }
    }
    Verdict::found(Finding {
        subjects,
        since: full.iter().filter_map(|one| one.since).min(),
        impact: if broken == pairs.len() { Impact::Breaks } else { Impact::Degrades },
        claim: first.claim.clone(),
        proofs: full.iter().flat_map(|one| one.proofs.clone()).collect(),
        predicts: &[Fate::Silence],
        fix: fix(path, first),
    })
}

/// The nodes, and before them the client's own namespace: the kernel's table is one for all of a node's namespaces.
fn senders<'p>(path: &Path, client: &'p Client, backend: &'p Backend, pod: &'p Pod) -> Vec<Sender<'p>> {
    let legs = legs(path, client, backend, pod);
    let has_own = client.pod.as_ref().is_some_and(|pod| !pod.spec.host_network);
    let own = legs.first().filter(|_| has_own).map(|leg| Sender {
        node: leg.node,
        netns: client.netns.clone(),
        name: client.reference.to_string(),
        packets: leg.packets,
    });
    let nodes = legs.iter().map(|leg| Sender {
        node: leg.node,
        netns: Netns::Host,
        name: format!("node {}", leg.node),
        packets: leg.packets,
    });
    own.into_iter().chain(nodes).collect()
}

fn look(sender: &Sender, met: Met, view: &mut View) -> Found {
    let Sender { node, name, packets, .. } = sender;
    let Look::Seen(host) = view.neighbours(node, &Netns::Host) else { return Found::Dark };
    if host.value.tables.is_empty() {
        view.leave_open(untold(node, "its agent told no neighbour table"));
        return Found::Dark;
    }
    if host.value.tables.iter().all(|table| refused(table) == Some(0)) {
        return Found::Fine(format!("node {node} refused no neighbour: {}", used(host.value)));
    }
    if met == Met::GotThrough {
        return Found::Fine(format!("packets get through by {name}"));
    }
    let Look::Seen(network) = view.network(node, &sender.netns) else { return Found::Dark };
    let to = packets.destination.ip();
    // Without a way there is no next hop: that is another condition's.
    let (Way::Known(route) | Way::OnlyDefault(route)) = way(network.value, to) else {
        return Found::Fine(format!("{name} has no way to {to}, so no next hop either"));
    };
    let hop = route.gateway.unwrap_or(to);
    let (table, family) = if hop.is_ipv4() { ("arp_cache", "ipv4") } else { ("ndisc_cache", "ipv6") };
    let Some(listed) = host.value.tables.iter().find(|listed| listed.name == table) else {
        view.leave_open(untold(node, &format!("its agent did not tell of {table}")));
        return Found::Dark;
    };
    let refused = refused(listed);
    if refused == Some(0) {
        return Found::Fine(format!("{table} of node {node} refused no entry"));
    }
    let Look::Seen(own) = view.neighbours(node, &sender.netns) else { return Found::Dark };
    if has_entry(network.value, own.value, hop, &route) {
        return Found::Fine(format!("{name} has an entry for {hop}"));
    }
    let Some(refused) = refused else {
        view.leave_open(untold(node, &format!("its agent has not yet seen whether {COUNTER} of {table} grows")));
        return Found::Dark;
    };
    let window_s = host.value.window_s;
    let failure = refusal(own.value, hop, &route);
    let dropped = dropped(sender, view);
    if failure.is_none() && dropped.is_none() {
        if matches!(met, Met::Failed(fate) if fate != Fate::Silence) {
            return Found::Fine(format!("packets by {name} fail otherwise than by silence"));
        }
        view.leave_open(not_seen(sender, hop, table));
        return Found::Dark;
    }
    // Without room the kernel throws old entries away until gc_thresh2 are left: such a table is read anywhere in between.
    if listed.entries < listed.gc_thresh2 {
        view.leave_open(was_full(node, listed, refused, window_s));
        return Found::Dark;
    }
    let NeighbourTable { entries, gc_thresh3: limit, .. } = *listed;
    let mut claim = format!(
        "the neighbour table {table} of node {node} has no room: {entries} of {limit} entries, and {refused} new ones were \
         refused in {window_s:.0} s; {name} has none for {hop}"
    );
    if hop != to {
        claim.push_str(&format!(", its next hop to {to}"));
    }
    let mut proofs = table_proofs(node, (family, listed), refused, host);
    let text = format!("to {to}: {}; no entry for {hop}", words(&route, network.value));
    proofs.push(Proof::programmed("routes and neighbours", node, network.at, text));
    proofs.extend(failure.map(|failure| {
        let text = format!("{} times no entry for {hop}, the last at {}", failure.times, failure.last_at);
        Proof::observed(format!("neighbours of {name}"), node, own.at, text)
    }));
    proofs.extend(dropped);
    let since = failure.map(|failure| failure.first_at);
    Found::Full(Box::new(Full { node: (*node).to_owned(), table, hop, claim, proofs, since, limit }))
}

fn table_proofs(
    node: &str,
    (family, table): (&str, &NeighbourTable),
    refused: u64,
    host: Seen<Neighbours>,
) -> Vec<Proof> {
    let NeighbourTable { name, entries, gc_thresh2, gc_thresh3, .. } = table;
    let limits = format!("net.{family}.neigh.default.gc_thresh3 is {gc_thresh3}, gc_thresh2 {gc_thresh2}");
    let text = format!("{entries} entries in {name}; {limits}");
    let grew = format!("`{COUNTER}` of {name} grew by {refused} in {:.0} s", host.value.window_s);
    vec![
        Proof::programmed("neighbour tables", node, host.at, text),
        Proof::observed("statistics of neighbour tables", node, host.at, grew),
    ]
}

/// Entries that it did not take in the window; none where that is not known yet. Kernels before 4.3, which do not count them, are too
/// old for the agent.
fn refused(table: &NeighbourTable) -> Option<u64> {
    let counter = table.statistics.get(COUNTER).copied().unwrap_or_default();
    if counter.value == 0 { Some(0) } else { counter.delta }
}

/// `arp_cache has 12 of 1024 entries, ndisc_cache 4 of 1024`
fn used(neighbours: &Neighbours) -> String {
    let words = neighbours
        .tables
        .iter()
        .map(|table| format!("{} has {} of {} entries", table.name, table.entries, table.gc_thresh3));
    words.collect::<Vec<_>>().join(", ")
}

/// Whatever its state: it has its place.
fn has_entry(network: &Network, own: &Neighbours, hop: IpAddr, route: &Route) -> bool {
    let by = |index: u32| route.link_index.is_none_or(|own| own == index);
    network.neighbours.iter().any(|entry| entry.address == hop && by(entry.link_index))
        || own.unresolved.iter().any(|entry| entry.address == hop && by(entry.link_index))
}

/// The entry that the kernel did not make for this next hop.
fn refusal<'e>(own: &'e Neighbours, hop: IpAddr, route: &Route) -> Option<&'e Failure> {
    own.failures.iter().flat_map(|failures| &failures.groups).find(|failure| {
        failure.kind == FailureKind::Refused
            && failure.address == Some(hop)
            && route.link_index.is_none_or(|index| index == failure.link_index)
    })
}

/// Packets to the same address that the sender dropped for want of an entry.
fn dropped(sender: &Sender, view: &mut View) -> Option<Proof> {
    let Look::Seen(drops) = view.drops(sender.node, &Netns::Host) else { return None };
    let to = sender.packets.destination.ip();
    let is_own = |owner: &Owner| match (owner, &sender.netns) {
        (Owner::Host, Netns::Host) => true,
        (Owner::Pod { uid }, Netns::Pod(own)) => uid == own,
        _ => false,
    };
    let group = drops.value.groups.iter().find(|group| {
        group.reason == REASON
            && is_own(&group.netns)
            && group.tuple.as_ref().is_some_and(|tuple| tuple.destination == to)
    })?;
    let text = format!(
        "{} packets to {to} dropped in {:.0} s: {} at {}",
        group.packets, drops.value.window_s, group.reason, group.location
    );
    Some(Proof::observed("dropped packets", sender.node, drops.at, text))
}

fn untold(node: &str, why: &str) -> Gap {
    Gap {
        what: format!("whether node {node} has room for its neighbours"),
        node: Some(node.to_owned()),
        reason: GapReason::NotRecorded,
        why: why.to_owned(),
        remedy: "ask again in a minute; if it stays so, update the agent on that node".to_owned(),
    }
}

fn not_seen(sender: &Sender, hop: IpAddr, table: &str) -> Gap {
    let Sender { node, name, .. } = sender;
    Gap {
        what: format!("whether packets of this path meet the full neighbour table of node {node}"),
        node: Some((*node).to_owned()),
        reason: GapReason::NotRecorded,
        why: format!(
            "{table} refuses entries and {name} has none for {hop}, but no packet was seen that wanted one and was dropped"
        ),
        remedy: "ask again with probes allowed, twice: the first one's packets are what the second one sees".to_owned(),
    }
}

fn was_full(node: &str, table: &NeighbourTable, refused: u64, window_s: f64) -> Gap {
    let NeighbourTable { name, entries, gc_thresh3, .. } = table;
    Gap {
        what: format!("why {name} of node {node} refused {refused} entries in {window_s:.0} s"),
        node: Some(node.to_owned()),
        reason: GapReason::Gone,
        why: format!("it has {entries} of {gc_thresh3} entries now; what filled it is over"),
        remedy: "ask again while it happens; `netdiag observe neighbours` shows who was refused".to_owned(),
    }
}

fn fix(path: &Path, full: &Full) -> Fix {
    let Full { node, table, hop, limit, .. } = full;
    let prefix = if hop.is_ipv4() { "net.ipv4.neigh.default" } else { "net.ipv6.neigh.default" };
    // The kernel takes no more (`proc_dointvec_minmax`).
    let raised = limit.saturating_mul(2).min(i32::MAX.unsigned_abs());
    Fix {
        text: format!(
            "raise the limit of {table} on node {node} for now, and for good in /etc/sysctl.d there; see why it has so many \
             neighbours (`ip -s neighbour`): in one large layer-2 network every pod is one, behind routes only nodes are"
        ),
        commands: vec![format!("sysctl -w {prefix}.gc_thresh3={raised} {prefix}.gc_thresh2={limit}  # on node {node}")],
        verify: path.ask_again(),
    }
}
