//! The accept queue behind the path is full: the process does not take connections as fast as they come.

use std::net::SocketAddr;

use jiff::Timestamp;
use netdiag_common::observation::Protocol;
use netdiag_common::observation::counter::{Counter, Counters};
use netdiag_common::observation::kfree_skb::DropTuple;
use netdiag_common::observation::socket::{ListenQueue, Sockets};
use netdiag_common::{Gap, GapReason, Netns};

use super::trace::{Met, probe_of};
use super::{Condition, Explains, Read, Relation, Severity, Verdict, Words};
use crate::evidence::object::Object;
use crate::evidence::{Look, ObjectRef, Seen, View};
use crate::finding::{Fate, Finding, Fix, Impact, Proof};
use crate::path::{Backend, Path};

pub const CONDITION: Condition = Condition {
    code: "listen_queue_overflows",
    severity: Severity::High,
    words: Words {
        means: "connections reach a pod whose accept queue is full, so its kernel drops them without a word",
        how_we_know: "the listener of that port holds more connections than its limit, or it alone has dropped some while \
                      the pod's counter TcpExt.ListenOverflows grew; the counter is of the whole pod, so the listener decides",
        silent_when: "the queue has room and no listener overflowed, however slow the process answers, or another listener of the \
                      pod is the full one, or SYNs were dropped or answered with cookies for other reasons",
        what_to_do: "find out why the process does not accept, add pods, or enlarge its backlog and net.core.somaxconn",
        sources: &[
            "listen(2)",
            "include/net/sock.h: sk_acceptq_is_full",
            "net/ipv4/tcp_input.c: tcp_conn_request, net/ipv4/tcp_ipv4.c: tcp_v4_syn_recv_sock",
        ],
    },
    faults: &["host-listen-overflow"],
    reads: &[Read::Topic("counters"), Read::Topic("sockets"), Read::Topic("drops"), Read::Topic("probe")],
    lookalikes: &[
        "policy_denies_path",
        "host_firewall_drops_path",
        "pod_network_route_missing",
        "conntrack_table_full",
        "target_port_not_listening",
    ],
    explains: &[
        Explains { code: "topology_hints_leave_no_working_endpoint", relation: Relation::SamePath },
        Explains { code: "session_affinity_keeps_bad_endpoint", relation: Relation::SamePath },
    ],
    judge,
};

/// Endpoints that are looked into; a larger Service is sampled.
const MAX_ENDPOINTS: usize = 16;
/// Pods described one by one; the rest is in the subjects.
const MAX_NAMED: usize = 3;
const OVERFLOWS: &str = "TcpExt.ListenOverflows";
/// What Linux 6.18 calls the few packets that it does not simply consume.
const REASON: &str = "TCP_LISTEN_OVERFLOW";

/// One endpoint whose queue overflowed.
struct Full<'p> {
    backend: &'p Backend,
    pod: ObjectRef,
    /// Above its limit at the moment it was read.
    now: bool,
    /// `holds 6 connections, limit 5`, with the overflows of the window where there were any.
    what: String,
    since: Option<Timestamp>,
    limit: u32,
    proofs: Vec<Proof>,
    /// Why the process may not accept.
    because: Option<String>,
}

enum Found<'p> {
    Full(Box<Full<'p>>),
    Fine,
    Dark,
    NoPod,
}

fn judge(path: &Path, view: &mut View) -> Verdict {
    if path.protocol != Protocol::Tcp {
        return Verdict::not_applicable("only TCP has accept queues");
    }
    let (mut full, mut fine, mut dark) = (Vec::new(), 0, false);
    for backend in path.ready_backends().take(MAX_ENDPOINTS) {
        match behind(path, backend, view) {
            Found::Full(one) => full.push(*one),
            Found::Fine => fine += 1,
            Found::Dark => dark = true,
            Found::NoPod => {}
        }
    }
    let Some(first) = full.first() else {
        return match (fine, dark) {
            (_, true) => Verdict::unknown(view),
            (0, false) => Verdict::not_applicable("no endpoint is a pod of this cluster"),
            (fine, false) => Verdict::clear(format!("no accept queue of {fine} endpoints overflowed")),
        };
    };
    let endpoints = path.ready_backends().count();
    let all = full.len() == endpoints && full.iter().all(|one| one.now);
    let mut claim = format!(
        "{} accepts connections to port {} too slowly: its accept queue {}",
        first.pod, first.backend.port, first.what
    );
    if let Some(because) = &first.because {
        claim.push_str(&format!("; {because}"));
    }
    if full.len() < endpoints {
        claim.push_str(&format!(" ({} of {endpoints} endpoints)", full.len()));
    }
    let mut subjects: Vec<ObjectRef> = Vec::new();
    for pod in full.iter().map(|one| &one.pod) {
        // A pod of two address families has two endpoints.
        if !subjects.contains(pod) {
            subjects.push(pod.clone());
        }
    }
    if let Some(service) = path.service() {
        subjects.insert(0, service.reference());
    }
    Verdict::found(Finding {
        subjects,
        since: full.iter().filter_map(|one| one.since).min(),
        impact: if all { Impact::Breaks } else { Impact::Degrades },
        claim,
        proofs: full.iter().take(MAX_NAMED).flat_map(|one| one.proofs.clone()).collect(),
        predicts: &[Fate::Silence],
        fix: fix(path, first),
    })
}

/// The sockets are read only where there is a reason to: that costs the node a pass over all of the pod's.
fn behind<'p>(path: &Path, backend: &'p Backend, view: &mut View) -> Found<'p> {
    let (Some(pod), Some(netns)) = (&backend.pod, backend.netns()) else { return Found::NoPod };
    let counters = match view.counters(&backend.node, &netns) {
        Look::Seen(counters) => counters,
        Look::Absent(_) => return Found::Fine,
        Look::Dark => return Found::Dark,
    };
    let overflows = counters.value.get(OVERFLOWS).unwrap_or_default();
    let is_first_look = overflows.value > 0 && overflows.delta.is_none();
    let is_silent =
        path.clients.iter().any(|client| probe_of(path, view, client, backend) == Met::Failed(Fate::Silence));
    if !overflows.grew() && !is_first_look && !is_silent {
        return Found::Fine;
    }
    let sockets = match view.sockets(&backend.node, &netns) {
        Look::Seen(sockets) => sockets,
        Look::Absent(_) => return Found::Fine,
        Look::Dark => return Found::Dark,
    };
    let Some(queue) = own_queue(backend, sockets.value) else { return Found::Fine };
    let now = is_full(queue);
    if !now && is_first_look {
        view.leave_open(first_look(backend, pod.reference()));
        return Found::Dark;
    }
    let was = overflows.grew() && is_only_suspect(queue, sockets.value);
    if !now && !was {
        return Found::Fine;
    }
    let pod = pod.reference();
    let what = what(queue, now, overflows, counters.value);
    let proofs = proofs(backend, &pod, queue, overflows, (counters, sockets), view);
    let because = because(queue, sockets.value);
    let since = overflows.first_at;
    Found::Full(Box::new(Full { backend, pod, now, what, since, limit: queue.limit, proofs, because }))
}

/// The listener that the endpoint's connections come to; of several with the same port the fullest.
fn own_queue<'s>(backend: &Backend, sockets: &'s Sockets) -> Option<&'s ListenQueue> {
    let takes = |queue: &&ListenQueue| {
        let address = queue.address.ip();
        let is_wildcard = address.is_unspecified() && (address.is_ipv6() || backend.address.is_ipv4());
        queue.address.port() == backend.port && (is_wildcard || address == backend.address)
    };
    sockets.listeners.iter().filter(takes).max_by_key(|queue| (is_full(queue), queue.drops))
}

/// `sk_acceptq_is_full`: the kernel takes one more than the limit.
fn is_full(queue: &ListenQueue) -> bool {
    queue.queue > queue.limit
}

/// Each overflow counts as a drop of its listener (`tcp_listendrop`). The counter is of the whole namespace: it speaks of this
/// listener when no other one ever dropped anything.
fn is_only_suspect(queue: &ListenQueue, sockets: &Sockets) -> bool {
    let others = sockets.listeners.iter().filter(|other| other.address.port() != queue.address.port());
    queue.drops > 0 && sockets.left_out.is_empty() && others.clone().all(|other| other.drops == 0 && !is_full(other))
}

fn what(queue: &ListenQueue, now: bool, overflows: Counter, counters: &Counters) -> String {
    let held = format!("holds {} connections, limit {}", queue.queue, queue.limit);
    let grown = overflows.delta.filter(|delta| *delta > 0);
    let overflowed = grown.map(|grown| format!("overflowed {grown} times in {:.0} s", counters.window_s));
    match (now, overflowed) {
        (true, None) => held,
        (true, Some(overflowed)) => format!("{held}, and {overflowed}"),
        (false, overflowed) => format!("of {} {}", queue.limit, overflowed.unwrap_or_default()),
    }
}

fn proofs(
    backend: &Backend,
    pod: &ObjectRef,
    queue: &ListenQueue,
    overflows: Counter,
    (counters, sockets): (Seen<Counters>, Seen<Sockets>),
    view: &mut View,
) -> Vec<Proof> {
    let node = &backend.node;
    let ListenQueue { address, queue: waiting, limit, drops, .. } = queue;
    let text =
        format!("listener {address}: {waiting} connections wait, limit {limit}, {drops} dropped since it listens");
    let mut proofs = vec![Proof::programmed(format!("sockets of {pod}"), node, sockets.at, text)];
    if let Some(grown) = overflows.delta.filter(|delta| *delta > 0) {
        let text = format!("{OVERFLOWS} grew by {grown} in {:.0} s", counters.value.window_s);
        proofs.push(Proof::observed(format!("counters of {pod}"), node, counters.at, text));
    }
    let is_to_it = |tuple: &DropTuple| {
        tuple.destination == backend.address && tuple.port_is_destination && tuple.service_port == backend.port
    };
    if let Look::Seen(drops) = view.drops(node, &Netns::Host) {
        let groups = drops.value.groups.iter();
        let groups = groups.filter(|group| group.reason == REASON && group.tuple.as_ref().is_some_and(is_to_it));
        let packets: u64 = groups.map(|group| group.packets).sum();
        let socket = SocketAddr::new(backend.address, backend.port);
        let text = format!("{packets} packets to {socket} dropped in {:.0} s: {REASON}", drops.value.window_s);
        proofs.extend((packets > 0).then(|| Proof::observed("dropped packets", node, drops.at, text)));
    }
    proofs
}

/// A process without a free descriptor, or without CPU time, cannot accept.
fn because(queue: &ListenQueue, sockets: &Sockets) -> Option<String> {
    let pid = queue.process.as_ref().map(|process| process.pid);
    let used_up = sockets
        .descriptors
        .iter()
        .find(|used| Some(used.process.pid) == pid && used.limit.is_some_and(|limit| used.open >= limit));
    if let Some(used) = used_up {
        let limit = used.limit.unwrap_or_default();
        return Some(format!("process {} has {} of {limit} file descriptors open", used.process.name, used.open));
    }
    let mut limited = sockets.groups.iter().filter_map(|group| group.cpu.as_ref());
    let throttled = limited.find(|cpu| cpu.throttled_periods.grown() * 2 > cpu.periods.grown())?;
    Some(format!(
        "its CPU quota was used up in {} of {} periods",
        throttled.throttled_periods.grown(),
        throttled.periods.grown()
    ))
}

fn first_look(backend: &Backend, pod: ObjectRef) -> Gap {
    Gap {
        what: format!("whether accept queues of {pod} overflow now"),
        node: Some(backend.node.clone()),
        reason: GapReason::NotRecorded,
        why: format!("the agent looks at {OVERFLOWS} of this pod for the first time, so its growth is not known"),
        remedy: "ask again in a minute".to_owned(),
    }
}

fn fix(path: &Path, full: &Full) -> Fix {
    let Full { backend, pod, limit, .. } = full;
    let log = format!("kubectl -n {} logs {} --all-containers --tail=50", pod.namespace, pod.name);
    let port = backend.port;
    Fix {
        text: format!(
            "find out why the process behind port {port} does not accept (its log, CPU limit and file descriptors), or add pods; \
             for bursts alone, give listen() a larger backlog and raise net.core.somaxconn in the pod: the lower one is the \
             limit, {limit} now"
        ),
        commands: vec![log],
        verify: path.ask_again(),
    }
}
