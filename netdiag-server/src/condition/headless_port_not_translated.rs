//! A headless Service's port is dialled, and its pods take connections at the targetPort alone.

use netdiag_common::Netns;
use netdiag_common::observation::listener::Listener;

use super::sockets::{self, Behind, Heard};
use super::{Condition, Explains, Read, Relation, Severity, Verdict, Words};
use crate::evidence::object::{Object, Service};
use crate::evidence::{KindName, Look, View};
use crate::finding::{Fate, Finding, Fix, Impact, Proof};
use crate::listing::named;
use crate::path::{self, Backend, Path};

pub const CONDITION: Condition = Condition {
    code: "headless_port_not_translated",
    severity: Severity::High,
    words: Words {
        means: "clients dial the port of a headless Service, which nothing translates: they meet the pods themselves, and \
                those take connections at the targetPort alone",
        how_we_know: "the Service has no address and its port is not the endpoints' port; the pods' sockets have the \
                      endpoints' port and not the dialled one; no rule of the client's node translates it",
        silent_when: "both ports are the same, the pods listen on the dialled port as well, nobody listens on the endpoints' \
                      port either, or the port is asked by its name, which clients look up with its number (SRV)",
        what_to_do: "dial the pods' port, or give the Service a cluster IP",
        sources: &[
            "https://kubernetes.io/docs/concepts/services-networking/service/#headless-services",
            "https://kubernetes.io/docs/concepts/services-networking/dns-pod-service/#srv-records",
            "net/ipv4/tcp_ipv4.c tcp_v4_rcv: SKB_DROP_REASON_NO_SOCKET",
        ],
    },
    faults: &["svc-headless-port-translation"],
    reads: &[
        Read::Kind(KindName::EndpointSlices),
        Read::Topic("listeners"),
        Read::Topic("service_rules"),
        Read::Topic("drops"),
        Read::Topic("rejects"),
    ],
    lookalikes: &["listener_bound_to_loopback", "policy_denies_path"],
    // Nobody listens on the dialled port: that is how this shows.
    explains: &[Explains { code: "target_port_not_listening", relation: Relation::SameService }],
    judge,
};

/// Pods described one by one; the rest is in the subjects.
const MAX_NAMED: usize = 3;

/// A pod that does not have the dialled port, and has the one that the Service means.
struct Missed<'m, 'p> {
    behind: &'m Behind<'p>,
    /// The socket at the endpoints' port.
    open: &'m Listener,
}

fn judge(path: &Path, view: &mut View) -> Verdict {
    let (Some(service), Some(port)) = (path.service(), path.service_port()) else {
        return Verdict::not_applicable("the path does not lead to a Service's port");
    };
    if !service.is_headless() {
        return Verdict::not_applicable("the Service is not headless");
    }
    let Look::Seen(slices) = view.endpoint_slices() else { return Verdict::unknown(view) };
    if let Some(silent) = sockets::nothing_to_look_at(path) {
        return silent;
    }
    let meant = path::backends(view.cluster(), service, port);
    let meant = |backend: &Backend| meant.iter().find(|meant| meant.address == backend.address).map(|meant| meant.port);
    if path.ready_backends().all(|backend| meant(backend).is_none_or(|port| port == backend.port)) {
        return Verdict::clear(format!("the endpoints of {} have the dialled port", service.reference()));
    }
    let sockets = sockets::behind(path, view);
    let closed = sockets.closed(|heard| matches!(heard, Heard::Nobody(_)));
    let missed: Vec<Missed> = closed.into_iter().filter_map(|behind| missed(behind, meant(behind.backend)?)).collect();
    let Some(first) = missed.first() else {
        return match (sockets.behind.len(), sockets.dark) {
            (_, dark) if dark > 0 => Verdict::unknown(view),
            (0, _) => Verdict::not_applicable("no endpoint is a pod of this cluster"),
            (all, _) if sockets.open() == all => Verdict::clear("the pods listen on the dialled port themselves"),
            _ => Verdict::clear("the pods without the dialled port do not listen on their targetPort either"),
        };
    };
    let mut proofs = intended(service, slices.at, first, view);
    match untranslated(path, first.behind.backend, view) {
        Rules::Translate(words) => return Verdict::clear(words),
        Rules::LeaveAlone(proof) => proofs.push(proof),
        Rules::NotSeen => {}
    }
    let (dialled, target) = (first.behind.backend.port, first.open.port);
    for missed in missed.iter().take(MAX_NAMED) {
        let source = format!("sockets of {}", missed.behind.pod.reference());
        let process = sockets::process_in_words(missed.open);
        let text = format!("nothing listens on {dialled}/{}; {process} listens on {}", path.protocol, missed.open.port);
        proofs.push(Proof::programmed(source, &missed.behind.backend.node, missed.behind.at, text));
        proofs.extend(sockets::refused_packets(missed.behind, path.protocol, view));
    }
    let behind: Vec<&Behind> = missed.iter().map(|missed| missed.behind).collect();
    let pods = sockets::pods(&behind);
    let place = named(pods.iter(), MAX_NAMED);
    let all = sockets.all_closed();
    let share =
        if all { String::new() } else { format!(" ({} of {} endpoints)", missed.len(), path.ready_backends().count()) };
    let reference = service.reference();
    let mut subjects = vec![reference.clone()];
    subjects.extend(pods);
    Verdict::found(Finding {
        subjects,
        since: service.metadata.changed_at,
        impact: if all { Impact::Breaks } else { Impact::Degrades },
        claim: format!(
            "{reference} is headless, so nothing translates its port {dialled}; {place}{share} listens on {target} and not \
             on {dialled}"
        ),
        proofs,
        predicts: &[Fate::Refused],
        fix: Fix {
            text: format!(
                "dial port {target}, the pods' own; or make the Service anew without clusterIP: None, if clients shall dial \
                 {dialled}"
            ),
            commands: Vec::new(),
            verify: path.ask_again(),
        },
    })
}

/// The pod takes connections at the port that is meant for it, so it is the number that is wrong and not the process.
fn missed<'m, 'p>(behind: &'m Behind<'p>, meant: u16) -> Option<Missed<'m, 'p>> {
    let Heard::Nobody(others) = &behind.heard else { return None };
    let open = others.iter().find(|other| other.port == meant && meant != behind.backend.port)?;
    Some(Missed { behind, open })
}

fn intended(service: &Service, at: jiff::Timestamp, first: &Missed, view: &View) -> Vec<Proof> {
    let reference = service.reference();
    let (dialled, target) = (first.behind.backend.port, first.open.port);
    vec![
        Proof::intended(
            &reference,
            view.now(),
            format!("spec.clusterIP is None; its ports: {}", service.ports_in_words()),
        ),
        Proof::intended(
            format!("EndpointSlices of {reference}"),
            at,
            format!("the endpoints behind port {dialled} are at port {target}"),
        ),
    ]
}

/// What the client's node was told about the dialled port at a pod's address.
enum Rules {
    /// Somebody translates it all the same.
    Translate(String),
    LeaveAlone(Proof),
    NotSeen,
}

fn untranslated(path: &Path, backend: &Backend, view: &mut View) -> Rules {
    let Some(client) = path.clients.first() else { return Rules::NotSeen };
    let Look::Seen(rules) = view.service_rules(&client.node, &Netns::Host) else { return Rules::NotSeen };
    let socket = std::net::SocketAddr::new(backend.address, backend.port);
    if rules.value.find(backend.address, path.protocol, backend.port).is_some() {
        return Rules::Translate(format!("a rule of node {} is about {socket}", client.node));
    }
    let text = format!("no rule translates {socket} ({})", path.protocol);
    Rules::LeaveAlone(Proof::programmed("kube-proxy's rules", &client.node, rules.at, text))
}
