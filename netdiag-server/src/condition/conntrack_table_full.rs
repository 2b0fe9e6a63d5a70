//! A node's connection-tracking table is full: packets of connections that it does not know yet are dropped there.

use jiff::Timestamp;
use netdiag_common::observation::conntrack::Conntrack;
use netdiag_common::observation::flow::FlowSnapshot;
use netdiag_common::observation::{Owner, Protocol};
use netdiag_common::{Gap, GapReason, Netns};

use super::trace::{Met, probe_of};
use super::{Condition, Explains, Read, Relation, Severity, Verdict, Words};
use crate::evidence::{Look, ObjectRef, Seen, View};
use crate::finding::{Fate, Finding, Fix, Impact, Proof};
use crate::path::{FEWEST_FAILURES, Path};

pub const CONDITION: Condition = Condition {
    code: "conntrack_table_full",
    severity: Severity::Critical,
    words: Words {
        means: "a node of the path has no room for one more tracked connection, so it drops packets of new ones at random, \
                while established ones go on",
        how_we_know: "the entries of the node's own table are compared with nf_conntrack_max, and its statistics say that \
                      packets were dropped for want of an entry: `drop` grew by more than `insert_failed`",
        silent_when: "the table is full but early_drop still makes room, another node's table is the full one, or packets were \
                      dropped because two connections wanted one entry, as when ports for masquerading run out",
        what_to_do: "find what fills the table (`netdiag observe conntrack`), and raise net.netfilter.nf_conntrack_max",
        sources: &[
            "https://docs.kernel.org/networking/nf_conntrack-sysctl.html",
            "net/netfilter/nf_conntrack_core.c: __nf_conntrack_alloc, nf_conntrack_in, early_drop",
            "https://github.com/kubernetes/kubernetes/issues/18604",
        ],
    },
    faults: &["ct-table-full"],
    reads: &[Read::Topic("conntrack"), Read::Topic("flows"), Read::Topic("drops"), Read::Topic("probe")],
    lookalikes: &[
        "policy_denies_path",
        "host_firewall_drops_path",
        "pod_network_route_missing",
        "listen_queue_overflows",
    ],
    explains: &[
        Explains { code: "pods_lost_between_nodes", relation: Relation::SameNode },
        Explains { code: "topology_hints_leave_no_working_endpoint", relation: Relation::SamePath },
        Explains { code: "session_affinity_keeps_bad_endpoint", relation: Relation::SamePath },
    ],
    judge,
};

/// Share of the table in use, in percent, that we call full: it is read at one moment, and a burst fills the rest unseen.
const FULL_PERCENT: u64 = 95;
/// Nodes whose tables are read; a larger Service is sampled.
const MAX_NODES: usize = 32;
/// Nodes described one by one when all is well.
const MAX_NAMED: usize = 2;
/// Where netfilter drops a packet that got no entry (Linux 6.18): `nf_conntrack_in` itself only says so.
const PLACE: &str = "nf_hook_slow";

/// One node whose table overflowed.
struct Full {
    node: String,
    entries: u64,
    limit: u64,
    dropped: u64,
    window_s: f64,
    since: Option<Timestamp>,
    proofs: Vec<Proof>,
    /// `200000 of them are tcp SYN_SENT`; empty when nothing stands out.
    mostly: String,
}

enum Node {
    Full(Box<Full>),
    /// `node n1 tracks 812 of 262144 connections`, …
    Fine(String),
    Dark,
}

fn judge(path: &Path, view: &mut View) -> Verdict {
    if path.addresses.is_empty() || (path.service().is_some() && path.ready_backends().next().is_none()) {
        return Verdict::not_applicable("there is nothing that connections could be tracked to");
    }
    let nodes = nodes(path);
    let (mut full, mut fine, mut dark) = (Vec::new(), Vec::new(), false);
    for node in &nodes {
        match on_node(node, view) {
            Node::Full(found) => full.push(*found),
            Node::Fine(because) => fine.push(because),
            Node::Dark => dark = true,
        }
    }
    let Some(first) = full.first() else {
        return if dark { Verdict::unknown(view) } else { Verdict::clear(named(&fine)) };
    };
    let Full { node, entries, limit, dropped, window_s, .. } = first;
    let mut claim = format!(
        "connection tracking on node {node} is full: {entries} of {limit} entries; {dropped} packets got no entry in \
         {window_s:.0} s and were dropped"
    );
    if full.len() > 1 {
        claim.push_str(&format!("; so on {} nodes of the path", full.len()));
    }
    Verdict::found(Finding {
        subjects: full.iter().map(|one| ObjectRef::of_node(&one.node)).collect(),
        since: full.iter().filter_map(|one| one.since).min(),
        impact: if nothing_gets_through(path, view) { Impact::Breaks } else { Impact::Degrades },
        claim,
        proofs: full.iter().flat_map(|one| one.proofs.clone()).collect(),
        predicts: &[Fate::Silence, Fate::NotPermitted],
        fix: fix(path, first),
    })
}

fn named(fine: &[String]) -> String {
    let shown = fine.iter().take(MAX_NAMED).map(String::as_str).collect::<Vec<_>>().join("; ");
    match fine.len().saturating_sub(MAX_NAMED) {
        0 => shown,
        more => format!("{shown}; {more} more nodes have room"),
    }
}

/// Where packets of the path are tracked: the clients' nodes and the endpoints'.
fn nodes(path: &Path) -> Vec<String> {
    let mut nodes: Vec<String> = Vec::new();
    let clients = path.clients.iter().map(|client| &client.node);
    for node in clients.chain(path.ready_backends().map(|backend| &backend.node)) {
        if !node.is_empty() && !nodes.contains(node) && nodes.len() < MAX_NODES {
            nodes.push(node.clone());
        }
    }
    nodes
}

fn on_node(node: &str, view: &mut View) -> Node {
    let table = match view.conntrack(node, &Netns::Host) {
        Look::Seen(table) => table,
        Look::Absent(_) => return Node::Fine(format!("node {node} tracks no connections")),
        Look::Dark => return Node::Dark,
    };
    let Conntrack { entries, limit, window_s, .. } = *table.value;
    let used = format!("node {node} tracks {entries} of {limit} connections");
    let is_full = is_full(entries, limit);
    if table.value.drop <= table.value.insert_failed {
        return Node::Fine(format!("{used} and never dropped a packet for want of an entry"));
    }
    // An agent of an older version does not say how the statistics grew.
    if window_s <= 0.0 {
        view.leave_open(growth_unknown(node));
        return Node::Dark;
    }
    let clashes = grown(table.value, "insert_failed", table.value.insert_failed);
    let dropped = grown(table.value, "drop", table.value.drop).saturating_sub(clashes);
    if dropped == 0 {
        return Node::Fine(format!("{used} and dropped no packet for want of an entry in {window_s:.0} s"));
    }
    if !is_full {
        if dropped >= FEWEST_FAILURES {
            view.leave_open(was_short(node, dropped, table.value, &used));
            return Node::Dark;
        }
        return Node::Fine(used);
    }
    // Counting what is in a full table is a long pass: an answer without it is complete.
    let mostly = view.flows(node, &Netns::Host).seen().map(|flows| mostly(&flows.value.snapshot)).unwrap_or_default();
    let proofs = proofs(node, table, dropped, view);
    let since = table.value.failures.get("drop").and_then(|counter| counter.first_at);
    Node::Full(Box::new(Full { node: node.to_owned(), entries, limit, dropped, window_s, since, proofs, mostly }))
}

fn is_full(entries: u64, limit: u64) -> bool {
    // 0 is no limit (`nf_conntrack_max`).
    limit > 0 && entries.saturating_mul(100) >= limit.saturating_mul(FULL_PERCENT)
}

/// Growth in the window, with what came after the agent's last look at the statistics.
fn grown(table: &Conntrack, name: &str, now: u64) -> u64 {
    let counter = table.failures.get(name).copied().unwrap_or_default();
    let delta = counter.grown();
    delta.max(now.saturating_sub(counter.value.saturating_sub(delta)))
}

fn was_short(node: &str, dropped: u64, table: &Conntrack, used: &str) -> Gap {
    Gap {
        what: format!("why connection tracking of node {node} dropped {dropped} packets in {:.0} s", table.window_s),
        node: Some(node.to_owned()),
        reason: GapReason::Gone,
        why: format!("{used} now; whether the table was full at that time is over"),
        remedy: "ask again while it happens; the node's kernel log has `nf_conntrack: table full` if it was".to_owned(),
    }
}

fn growth_unknown(node: &str) -> Gap {
    Gap {
        what: format!("whether connection tracking of node {node} drops packets now"),
        node: Some(node.to_owned()),
        reason: GapReason::NotRecorded,
        why: "its agent does not say how the statistics grew".to_owned(),
        remedy: "update the agent on that node".to_owned(),
    }
}

fn proofs(node: &str, table: Seen<Conntrack>, dropped: u64, view: &mut View) -> Vec<Proof> {
    let Conntrack { entries, limit, window_s, .. } = *table.value;
    let text = format!("{entries} entries, nf_conntrack_max is {limit}");
    let mut proofs = vec![Proof::programmed("connection tracking", node, table.at, text)];
    let text = format!("`drop` grew by {dropped} more than `insert_failed` in {window_s:.0} s");
    proofs.push(Proof::observed("statistics of connection tracking", node, table.at, text));
    // A rule of iptables' raw table drops at the same place, before anything is tracked: this alone would prove nothing.
    if let Look::Seen(drops) = view.drops(node, &Netns::Host) {
        let untracked = drops
            .value
            .groups
            .iter()
            .filter(|group| group.netns == Owner::Host && group.location == PLACE && group.tracked == Some(false));
        let packets: u64 = untracked.map(|group| group.packets).sum();
        let text = format!("{packets} packets without an entry dropped in {:.0} s at {PLACE}", drops.value.window_s);
        proofs.extend((packets > 0).then(|| Proof::observed("dropped packets", node, drops.at, text)));
    }
    proofs
}

/// What most entries are, when they are of one kind.
fn mostly(snapshot: &FlowSnapshot) -> String {
    let entries = snapshot.entries;
    let Some(first) = snapshot.groups.first().filter(|group| group.flows * 2 > entries) else { return String::new() };
    let protocol = Protocol::from_number(first.protocol_number)
        .map_or_else(|| format!("protocol {}", first.protocol_number), |protocol| protocol.to_string());
    let state = first.state.as_ref().map(|state| format!(" {state}")).unwrap_or_default();
    format!(
        "{} of {entries} entries are {protocol}{state}, {} of them without any answer",
        first.flows, first.unreplied
    )
}

/// Every endpoint that was probed stayed silent.
fn nothing_gets_through(path: &Path, view: &mut View) -> bool {
    let mut met = Vec::new();
    for client in &path.clients {
        for backend in path.ready_backends() {
            met.push(probe_of(path, view, client, backend));
        }
    }
    met.retain(|met| *met != Met::Nothing);
    let is_silent = |met: &Met| matches!(met, Met::Failed(Fate::Silence | Fate::NotPermitted));
    !met.is_empty() && met.iter().all(is_silent)
}

fn fix(path: &Path, full: &Full) -> Fix {
    let Full { node, limit, mostly, .. } = full;
    let look = if mostly.is_empty() { String::new() } else { format!(" ({mostly})") };
    Fix {
        text: format!(
            "raise nf_conntrack_max on node {node} for now, and find what fills the table{look}: \
             `netdiag observe conntrack`; kube-proxy sets the limit anew at its start, from conntrack.maxPerCore and \
             conntrack.min of its configuration"
        ),
        commands: vec![format!("sysctl -w net.netfilter.nf_conntrack_max={}  # on node {node}", limit * 2)],
        verify: path.ask_again(),
    }
}
