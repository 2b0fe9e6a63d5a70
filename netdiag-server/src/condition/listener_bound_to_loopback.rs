//! The process has the port, but only at an address that no packet from outside its pod carries.

use netdiag_common::observation::Protocol;
use netdiag_common::observation::listener::Listener;

use super::sockets::{self, Behind, Heard};
use super::{Condition, Explains, Read, Relation, Severity, Verdict, Words};
use crate::evidence::View;
use crate::evidence::object::Object;
use crate::finding::{Fate, Finding, Fix, Impact, Proof};
use crate::path::Path;

pub const CONDITION: Condition = Condition {
    code: "listener_bound_to_loopback",
    severity: Severity::High,
    words: Words {
        means: "a process listens on the right port, but only at loopback or another address that is not the endpoint's",
        how_we_know: "the sockets of the pod's network namespace",
        silent_when: "another socket of the pod takes the endpoint's address and port, for example a sidecar's",
        what_to_do: "make the process listen on 0.0.0.0 or ::",
        sources: &[
            "https://kubernetes.io/docs/tasks/debug/debug-application/debug-service/#are-the-pods-working",
            "ip(7)",
        ],
    },
    faults: &["app-bind-localhost"],
    reads: &[Read::Topic("listeners"), Read::Topic("drops"), Read::Topic("rejects")],
    lookalikes: &["target_port_not_listening", "policy_denies_path"],
    explains: &[
        Explains { code: "topology_hints_leave_no_working_endpoint", relation: Relation::SamePath },
        Explains { code: "session_affinity_keeps_bad_endpoint", relation: Relation::SamePath },
    ],
    judge,
};

/// Pods described one by one; the rest is in the subjects.
const MAX_NAMED: usize = 3;

fn judge(path: &Path, view: &mut View) -> Verdict {
    if let Some(silent) = sockets::nothing_to_look_at(path) {
        return silent;
    }
    let sockets = sockets::behind(path, view);
    let bad = sockets.closed(|heard| matches!(heard, Heard::Elsewhere(_)));
    let Some(first) = bad.first() else {
        return match (sockets.open(), sockets.dark) {
            (_, 1..) => Verdict::unknown(view),
            (0, 0) => Verdict::not_applicable("no endpoint has a listener to look at"),
            (open, 0) => Verdict::clear(format!("{open} endpoints listen at the address they are reached at")),
        };
    };
    let all = sockets.all_closed();
    let share =
        if all { String::new() } else { format!(" ({} of {} endpoints)", bad.len(), path.ready_backends().count()) };
    let endpoint = std::net::SocketAddr::new(first.backend.address, first.backend.port);
    let mut proofs = vec![Proof::intended(
        path.service().map_or_else(|| first.pod.reference(), |service| service.reference()),
        view.now(),
        format!("connections are sent to {endpoint}"),
    )];
    for behind in bad.iter().take(MAX_NAMED) {
        let source = format!("sockets of {}", behind.pod.reference());
        proofs.push(Proof::programmed(source, &behind.backend.node, behind.at, bound(behind, path.protocol)));
        proofs.extend(sockets::refused_packets(behind, path.protocol, view));
    }
    let pods = sockets::pods(&bad);
    let more = if pods.len() > 1 { format!("; the same in {} more pods", pods.len() - 1) } else { String::new() };
    let mut subjects = pods;
    if let Some(service) = path.service() {
        subjects.insert(0, service.reference());
    }
    Verdict::found(Finding {
        claim: format!(
            "in {} {}, so nothing takes connections to {endpoint}{share}{more}",
            first.pod.reference(),
            bound(first, path.protocol)
        ),
        subjects,
        since: None,
        impact: if all { Impact::Breaks } else { Impact::Degrades },
        proofs,
        predicts: &[Fate::Refused],
        fix: Fix {
            text: "make the process listen on all addresses (0.0.0.0 or ::) instead: a flag, variable or file of the application".to_owned(),
            commands: Vec::new(),
            verify: path.ask_again(),
        },
    })
}

/// `web (pid 7) listens on 127.0.0.1:8080/tcp only`.
fn bound(behind: &Behind, protocol: Protocol) -> String {
    let Heard::Elsewhere(listeners) = &behind.heard else { return String::new() };
    let socket = |listener: &Listener| std::net::SocketAddr::new(listener.address, listener.port).to_string();
    let list: Vec<String> = listeners.iter().map(socket).collect();
    let process = listeners.first().map(sockets::process_in_words).unwrap_or_default();
    format!("{process} listens on {} ({protocol}) only", list.join(" and "))
}
