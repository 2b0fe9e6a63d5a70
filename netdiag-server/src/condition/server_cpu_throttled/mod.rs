//! A server uses up its CPU limit: its kernel takes connections at once, and its process answers late.

use netdiag_common::observation::probe::{Outcome, ProbeRequest};
use netdiag_common::{Gap, GapReason, Netns};

use self::felt::{Felt, LATE_US, Late, felt, late_answer};
use self::group::{Shortage, shortage, unread};
use super::{Condition, Explains, Read, Relation, Severity, Verdict, Words};
use crate::evidence::object::{Object, Pod};
use crate::evidence::{KindName, Look, ObjectRef, View};
use crate::finding::{Finding, Fix, Impact, Proof};
use crate::path::{Backend, MAX_CLIENT_PROBES, Path};

mod felt;
mod group;

pub const CONDITION: Condition = Condition {
    code: "server_cpu_throttled",
    severity: Severity::Medium,
    words: Words {
        means: "a container behind the path uses up its CPU limit, so that its answers come late while connections to it open at once",
        how_we_know: "its control group was throttled in most periods of the window, and still is; lookups at the cluster's DNS were \
                      answered late or not at all, or probes of the kubelet waited for an answer in vain; and a handshake, which the \
                      pod's kernel makes without the process, is quick",
        silent_when: "the process answers in time however much it is throttled, nobody asked it for anything (a connect asks for \
                      nothing), handshakes are slow too, another container of the pod is the throttled one, or the process is \
                      stopped; pods on their node's network are not looked at",
        what_to_do: "raise or remove the container's CPU limit, or give it less to do",
        sources: &[
            "https://docs.kernel.org/scheduler/sched-bwc.html",
            "https://docs.kernel.org/admin-guide/cgroup-v2.html#cpu-interface-files",
            "https://github.com/kubernetes/kubernetes/issues/67577",
        ],
    },
    faults: &["host-cpu-throttling"],
    reads: &[
        Read::Kind(KindName::Services),
        Read::Kind(KindName::EndpointSlices),
        Read::Kind(KindName::Pods),
        Read::Kind(KindName::Events),
        Read::Topic("resolver"),
        Read::Topic("sockets"),
        Read::Topic("probe"),
    ],
    lookalikes: &["listen_queue_overflows", "path_mtu_black_hole"],
    explains: &[
        Explains { code: "service_has_no_ready_endpoints", relation: Relation::SameService },
        Explains { code: "cluster_dns_has_no_endpoints", relation: Relation::SameService },
        Explains { code: "listen_queue_overflows", relation: Relation::SamePath },
    ],
    judge,
};

/// Servers that are looked into; a larger Service is sampled.
const MAX_SERVERS: usize = 16;
/// Servers described one by one; the rest is in the subjects.
const MAX_NAMED: usize = 3;
/// As often as what a client dials is probed, so that a loss is not taken for quickness.
const HANDSHAKES: u8 = 3;
const HANDSHAKE_TIMEOUT_MS: u32 = 1_500;

/// One server without CPU time.
struct Throttled {
    pod: ObjectRef,
    shortage: Shortage,
    proofs: Vec<Proof>,
}

enum Found {
    Throttled(Box<Throttled>),
    Fine(String),
    Dark,
}

fn judge(path: &Path, view: &mut View) -> Verdict {
    let late = match felt(path, view) {
        Felt::Late(late) => late,
        Felt::InTime => return Verdict::not_applicable("nobody is known to have waited for a server of the path"),
        Felt::Dark => return Verdict::unknown(view),
    };
    let (mut found, mut fine, mut dark): (Vec<Throttled>, Vec<String>, bool) = (Vec::new(), Vec::new(), false);
    for server in late.servers.iter().take(MAX_SERVERS) {
        match look(path, &late, &server.backend, server.waited.as_ref(), view) {
            Found::Throttled(one) => found.push(*one),
            Found::Fine(because) => fine.push(because),
            Found::Dark => dark = true,
        }
    }
    // Where no endpoint is ready, what keeps some of them from it is not the reason for all.
    if late.none_is_ready && found.len() < late.of && !found.is_empty() {
        fine.push(format!("{} of {} endpoints that are not ready use up a CPU limit", found.len(), late.of));
        found.clear();
    }
    let Some(first) = found.first() else {
        fine.truncate(MAX_NAMED);
        return if dark { Verdict::unknown(view) } else { Verdict::clear(fine.join("; ")) };
    };
    let Shortage { group, limit, what, .. } = &first.shortage;
    let mut claim = format!("{} answers late: {group} uses up its CPU limit of {limit} and was {what}", first.pod);
    if found.len() < late.of {
        claim.push_str(&format!(" ({} of {} endpoints)", found.len(), late.of));
    }
    let mut subjects: Vec<ObjectRef> = late.service.iter().cloned().collect();
    for one in &found {
        one.pod.clone().add_once(&mut subjects);
    }
    let mut proofs: Vec<Proof> = found.iter().take(MAX_NAMED).flat_map(|one| one.proofs.clone()).collect();
    proofs.extend(late.lookup.as_ref().and_then(|lookup| late_answer(path, lookup)));
    let breaks = (late.none_is_ready || late.none_is_answered) && found.len() == late.of;
    Verdict::found(Finding {
        subjects,
        since: None,
        impact: if breaks { Impact::Breaks } else { Impact::Degrades },
        claim,
        proofs,
        predicts: late.predicts,
        fix: fix(path, first),
    })
}

fn look(path: &Path, late: &Late, backend: &Backend, waited: Option<&Proof>, view: &mut View) -> Found {
    let (Some(pod), Some(netns @ Netns::Pod(_))) = (backend.pod.as_deref(), backend.netns()) else {
        return Found::Fine(format!("{} has no control groups that are read", backend.words()));
    };
    let sockets = match view.sockets(&backend.node, &netns) {
        Look::Seen(sockets) => sockets,
        Look::Absent(_) => return Found::Fine(format!("{} has no sockets", pod.reference())),
        Look::Dark => return Found::Dark,
    };
    if let Some(gap) = unread(pod, backend, sockets.value) {
        view.leave_open(gap);
        return Found::Dark;
    }
    let Some(shortage) = shortage(pod, backend, sockets) else {
        return Found::Fine(format!("no container behind {} uses up a CPU limit", backend.words()));
    };
    let mut proofs = shortage.proofs(pod, backend, sockets.at);
    proofs.extend(waited.cloned());
    match handshake(path, late, backend, view) {
        Handshake::Quick(proof) => proofs.push(proof),
        Handshake::Slow(words) => return Found::Fine(words),
        // What the kubelet met on the pod's own node does not depend on the way of the client.
        Handshake::Unseen if waited.is_some() => {}
        Handshake::Unseen => return Found::Dark,
        Handshake::Failed(words) if waited.is_some() => return Found::Fine(words),
        Handshake::Failed(words) => {
            view.leave_open(undecided(pod, backend, &words));
            return Found::Dark;
        }
    }
    Found::Throttled(Box::new(Throttled { pod: pod.reference(), shortage, proofs }))
}

/// What the pod's kernel answers by itself: it tells a late process from a slow network.
enum Handshake {
    Quick(Proof),
    Slow(String),
    Failed(String),
    Unseen,
}

fn handshake(path: &Path, late: &Late, backend: &Backend, view: &mut View) -> Handshake {
    let mut clients = path.clients.iter().take(MAX_CLIENT_PROBES);
    let Some(client) = clients.find(|client| client.speaks_to(backend.address)) else { return Handshake::Unseen };
    let request = match (&late.lookup, path.service()) {
        // DNS servers take TCP at the port of UDP (RFC 7766).
        (Some(_), _) => Some(ProbeRequest::TcpConnect {
            address: backend.address,
            port: backend.port,
            timeout_ms: HANDSHAKE_TIMEOUT_MS,
            attempts: HANDSHAKES,
            source_port: None,
        }),
        // The same that show the symptom, so that they are sent once.
        (None, Some(_)) => path.backend_probe(backend),
        (None, None) => path.address_probe(backend.address),
    };
    let Some(request) = request.filter(|request| matches!(request, ProbeRequest::TcpConnect { .. })) else {
        return Handshake::Unseen;
    };
    let Look::Seen(seen) = view.probe(&client.node, &client.netns, request) else { return Handshake::Unseen };
    let attempts = &seen.value.attempts;
    if let Some(failed) = attempts.iter().find(|attempt| attempt.outcome != Outcome::Connected) {
        return Handshake::Failed(format!("a TCP connect to {} meets: {}", backend.words(), failed.outcome.words()));
    }
    let Some(slowest_us) = attempts.iter().map(|attempt| attempt.elapsed_us).max() else { return Handshake::Unseen };
    let milliseconds = f64::from(u32::try_from(slowest_us).unwrap_or(u32::MAX)) / 1000.0;
    let words = format!("{} connected within {milliseconds:.1} ms", backend.words());
    if slowest_us >= LATE_US {
        return Handshake::Slow(format!("the network is slow too: {words}"));
    }
    Handshake::Quick(Proof::probe(format!("probe from {}", client.reference), &client.node, seen.at, words))
}

fn undecided(pod: &Pod, backend: &Backend, words: &str) -> Gap {
    Gap {
        what: format!("whether the network or {} is late", pod.reference()),
        node: Some(backend.node.clone()),
        reason: GapReason::Failed,
        why: format!("it uses up its CPU limit, but {words}"),
        remedy: format!("ask for the path to {} by TCP first", backend.words()),
    }
}

fn fix(path: &Path, throttled: &Throttled) -> Fix {
    let Shortage { group, limit, .. } = &throttled.shortage;
    Fix {
        text: format!(
            "raise or remove the CPU limit of {group} ({limit} now) in what makes {}, or give it less to do; a longer timeoutSeconds \
             of its probes only hides that it is late",
            throttled.pod
        ),
        commands: Vec::new(),
        verify: path.ask_again(),
    }
}
