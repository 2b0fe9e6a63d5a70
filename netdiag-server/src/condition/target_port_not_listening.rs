//! Nobody listens on the port that the endpoints are reached at.

use netdiag_common::observation::Protocol;

use super::sockets::{self, Behind, Heard};
use super::{Condition, Explains, Read, Relation, Severity, Verdict, Words};
use crate::evidence::View;
use crate::evidence::object::Object;
use crate::finding::{Fate, Finding, Fix, Impact, Proof};
use crate::listing::named;
use crate::path::Path;

pub const CONDITION: Condition = Condition {
    code: "target_port_not_listening",
    severity: Severity::High,
    words: Words {
        means: "connections reach a pod in which nobody listens on that port",
        how_we_know: "the sockets of the pod's network namespace, and packets that found no socket there and were refused",
        silent_when: "a socket takes the endpoint's address and port, or the port is listened on at another address only",
        what_to_do: "make targetPort the port the process listens on, or start the process",
        sources: &[
            "https://kubernetes.io/docs/tasks/debug/debug-application/debug-service/#is-the-service-defined-correctly",
            "net/ipv4/tcp_ipv4.c tcp_v4_rcv: SKB_DROP_REASON_NO_SOCKET",
        ],
    },
    faults: &["svc-wrong-targetport", "app-not-running"],
    reads: &[Read::Topic("listeners"), Read::Topic("drops"), Read::Topic("rejects")],
    lookalikes: &["listener_bound_to_loopback", "policy_denies_path"],
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
    let bad = sockets.closed(|heard| matches!(heard, Heard::Nobody(_)));
    let Some(first) = bad.first() else {
        return match (sockets.behind.len(), sockets.dark) {
            (0, 0) => Verdict::not_applicable("no endpoint is a pod of this cluster"),
            (_, 0) => Verdict::clear(format!("all {} endpoints have port {}", sockets.behind.len(), words(path))),
            _ => Verdict::unknown(view),
        };
    };
    let port = format!("{}/{}", first.backend.port, path.protocol);
    let pods = sockets::pods(&bad);
    let place = named(pods.iter(), MAX_NAMED);
    let service = path.service();
    let sent = match (service, path.port) {
        (Some(service), Some(dialled)) => format!(", where {} sends its port {dialled}", service.reference()),
        _ => String::new(),
    };
    let all = sockets.all_closed();
    let share =
        if all { String::new() } else { format!(" ({} of {} endpoints)", bad.len(), path.ready_backends().count()) };
    let mut proofs = Vec::new();
    if let (Some(service), Some(port)) = (service, path.service_port()) {
        let target = port.target_port.as_ref().map_or_else(|| port.port.to_string(), ToString::to_string);
        proofs.push(Proof::intended(
            service.reference(),
            view.now(),
            format!("port {} leads to targetPort {target}; endpoints are reached at {}", port.port, first.backend.port),
        ));
    }
    for behind in bad.iter().take(MAX_NAMED) {
        let source = format!("sockets of {}", behind.pod.reference());
        let text = format!("nothing listens on {port}; {}", instead(behind, path.protocol));
        proofs.push(Proof::programmed(source, &behind.backend.node, behind.at, text));
        proofs.extend(sockets::refused_packets(behind, path.protocol, view));
    }
    let mut subjects = pods;
    if let Some(service) = service {
        subjects.insert(0, service.reference());
    }
    Verdict::found(Finding {
        subjects,
        since: since(path, &bad),
        impact: if all { Impact::Breaks } else { Impact::Degrades },
        claim: format!("nothing listens on {port} in {place}{share}{sent}; {}", instead(first, path.protocol)),
        proofs,
        predicts: &[Fate::Refused],
        fix: fix(path, &bad, all),
    })
}

fn words(path: &Path) -> String {
    let port = path.backends.first().map_or(0, |backend| backend.port);
    format!("{port}/{}", path.protocol)
}

/// What the pod listens on instead.
fn instead(behind: &Behind, protocol: Protocol) -> String {
    let Heard::Nobody(others) = &behind.heard else { return String::new() };
    let pod = behind.pod.reference();
    if others.is_empty() {
        return format!("no process in {pod} has any {protocol} port open at {}", behind.backend.address);
    }
    let list: Vec<String> =
        others.iter().take(5).map(|other| format!("{} ({})", other.port, sockets::process_in_words(other))).collect();
    format!("{pod} listens on {}", list.join(", "))
}

/// The Service's last change, when its pods do listen, on another port; a process that is not there leaves no date.
fn since(path: &Path, bad: &[&Behind]) -> Option<jiff::Timestamp> {
    only_other_port(bad)?;
    path.service()?.metadata.changed_at
}

/// The one port that all these pods listen on.
fn only_other_port(bad: &[&Behind]) -> Option<u16> {
    let mut ports = bad.iter().map(|behind| match &behind.heard {
        Heard::Nobody(others) => match others.as_slice() {
            [only] => Some(only.port),
            _ => None,
        },
        _ => None,
    });
    let first = ports.next()??;
    ports.all(|port| port == Some(first)).then_some(first)
}

fn fix(path: &Path, bad: &[&Behind], all: bool) -> Fix {
    let verify = path.ask_again();
    let logs = bad.first().map(|behind| {
        let meta = &behind.pod.metadata;
        format!("kubectl -n {} logs {} --all-containers --tail=50", meta.namespace, meta.name)
    });
    match (path.service(), only_other_port(bad)) {
        (Some(service), Some(port)) if service.is_headless() => Fix {
            text: format!("dial port {port}: a headless Service translates no ports"),
            commands: Vec::new(),
            verify,
        },
        (Some(service), Some(port)) if all => {
            let index = service.spec.ports.iter().position(|p| Some(p) == path.service_port()).unwrap_or_default();
            let patch = serde_json::json!([
                {"op": "add", "path": format!("/spec/ports/{index}/targetPort"), "value": port}
            ]);
            let meta = &service.metadata;
            let command = format!("kubectl -n {} patch service {} --type=json -p '{patch}'", meta.namespace, meta.name);
            Fix {
                text: "make the Service's targetPort the port the pods listen on".to_owned(),
                commands: vec![command],
                verify,
            }
        }
        _ => Fix {
            text: "start the process that should listen there; the pod's log says why it does not".to_owned(),
            commands: logs.into_iter().collect(),
            verify,
        },
    }
}
