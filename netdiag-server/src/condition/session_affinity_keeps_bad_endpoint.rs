//! Session affinity sends a client to the same endpoint again and again, and that one does not answer, while others would.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};

use jiff::Timestamp;
use netdiag_common::Netns;
use netdiag_common::observation::service_rules::{Endpoint, ServiceAction};

use super::proxied::{Clients, Shown, asked_cluster_ips, proxied};
use super::trace::{Met, probe_of};
use super::{Condition, Read, Severity, Verdict, Words};
use crate::evidence::object::{Object, Service, ServicePort};
use crate::evidence::{Look, View};
use crate::finding::{Fate, Finding, Fix, Impact, Proof};
use crate::path::{self, Backend, Client, MAX_CLIENT_PROBES, Path, ProbeSeen, ProbeTo};

pub const CONDITION: Condition = Condition {
    code: "session_affinity_keeps_bad_endpoint",
    severity: Severity::Medium,
    words: Words {
        means: "the Service's session affinity (ClientIP) keeps a client at an endpoint that does not answer, while others \
                of it would",
        how_we_know: "the Service's affinity, rules of the client's node that follow it and have several endpoints, and probes of \
                      the client: none of several gets through the Service's address, one gets to another endpoint directly, and \
                      one fails there as those did",
        silent_when: "a connection to the Service's address gets through, no endpoint fails in the same way, no other answers, the \
                      rules have one endpoint or no affinity, or no probe was sent; which endpoint the node remembers is not read",
        what_to_do: "repair that endpoint, or let its pod become not ready: the node forgets it then; without affinity clients \
                     would get to the others",
        sources: &[
            "https://kubernetes.io/docs/reference/networking/virtual-ips/#session-affinity",
            "https://github.com/kubernetes/kubernetes/issues/55603",
            "kube-proxy pkg/proxy/iptables/proxier.go: writeServiceToEndpointRules (-m recent)",
        ],
    },
    faults: &["svc-session-affinity-skew"],
    reads: &[Read::Topic("service_rules"), Read::Topic("probe")],
    lookalikes: &[
        "kube_proxy_rules_stale",
        "topology_hints_leave_no_working_endpoint",
        "target_port_not_listening",
        "listener_bound_to_loopback",
        "listen_queue_overflows",
        "policy_denies_path",
        "host_firewall_drops_path",
    ],
    explains: &[],
    judge,
};

/// Without affinity a single attempt would say nothing about the next one.
const FEWEST_ATTEMPTS: usize = 2;
/// Endpoints named in a claim; more are counted.
const NAMED: usize = 3;

/// The Service's port that is asked, at one of its addresses.
#[derive(Clone, Copy)]
struct Asked<'p> {
    path: &'p Path,
    port: &'p ServicePort,
    address: IpAddr,
}

/// A client that does not get away from an endpoint.
struct Kept<'p> {
    client: &'p Client,
    address: IpAddr,
    /// Fail as the Service's address does; one of them is the client's.
    bad: Vec<&'p Backend>,
    /// Another endpoint of the same rules, which takes the client's connections.
    working: &'p Backend,
    endpoints: usize,
    fate: Fate,
    rules_at: Timestamp,
}

fn judge(path: &Path, view: &mut View) -> Verdict {
    let (service, port) = match proxied(path) {
        Ok(found) => found,
        Err(because) => return Verdict::not_applicable(because),
    };
    if service.spec.session_affinity != "ClientIP" {
        return Verdict::clear(format!("{} has no session affinity", service.reference()));
    }
    let addresses = asked_cluster_ips(path, service);
    if addresses.is_empty() {
        return Verdict::not_applicable("the asked address is no cluster IP");
    }
    let (mut clients, mut asked) = (Clients::new(), 0);
    for (index, client) in path.clients.iter().enumerate().take(MAX_CLIENT_PROBES) {
        for address in addresses.iter().copied().filter(|address| client.speaks_to(*address)) {
            asked += 1;
            clients.add(of_client(Asked { path, port, address }, index, client, view));
        }
    }
    let kept = &clients.faults;
    let Some(first) = kept.first() else { return clients.without_fault(view) };
    // Clients beyond the probed ones are not spoken for.
    let all = kept.len() == asked && path.clients.len() <= MAX_CLIENT_PROBES;
    let impact = if all { Impact::Breaks } else { Impact::Degrades };
    Verdict::found(finding(path, service, kept, first, impact, view))
}

fn of_client<'p>(asked: Asked<'p>, index: usize, client: &'p Client, view: &mut View) -> Shown<Kept<'p>> {
    let Asked { path, port, address } = asked;
    let rules = match view.service_rules(&client.node, &Netns::Host) {
        Look::Seen(rules) if rules.value.hooked => rules,
        Look::Seen(_) | Look::Absent(_) => {
            return Shown::Silent("the client's node has no rules of kube-proxy that packets reach");
        }
        Look::Dark => return Shown::Dark,
    };
    let Some(rule) = rules.value.find(address, path.protocol, port.port) else {
        return Shown::Silent("the rules of the client's node have no entry for the Service");
    };
    let (ServiceAction::Endpoints(have), Some(terms)) = (&rule.action, &rule.terms) else {
        return Shown::Silent("the rules of the client's node lead to no endpoint, or their affinity was not decoded");
    };
    let have: BTreeSet<Endpoint> = have.iter().cloned().collect();
    if !terms.sticky || have.len() < 2 {
        return Shown::Harmless("the rules of the clients' nodes have no affinity, or no second endpoint to go to");
    }
    let dialled = path::address_probes(path, index, view);
    let Some(dialled) = dialled.into_iter().find(|probe| probe.to == ProbeTo::Address(address)) else {
        return Shown::Silent("no probe says whether the Service's address answers");
    };
    if dialled.result.succeeded() > 0 {
        return Shown::Harmless("connections to the Service's address get through");
    }
    let attempts = dialled.result.attempts.len();
    let Some(fate) = only_fate(&dialled).filter(|_| attempts >= FEWEST_ATTEMPTS) else {
        return Shown::Silent("connections to the Service's address fail in different ways, or were too few");
    };
    let of_rules = |backend: &&Backend| have.contains(&Endpoint { address: backend.address, port: backend.port });
    let met: Vec<(&Backend, Met)> = path
        .ready_backends()
        .filter(of_rules)
        .map(|backend| (backend, probe_of(path, view, client, backend)))
        .collect();
    let with = |wanted: Met| met.iter().filter(move |(_, met)| *met == wanted).map(|(backend, _)| *backend);
    let bad: Vec<&Backend> = with(Met::Failed(fate)).collect();
    match with(Met::GotThrough).next() {
        Some(working) if !bad.is_empty() => {
            Shown::Fault(Kept { client, address, bad, working, endpoints: have.len(), fate, rules_at: rules.at })
        }
        _ if met.iter().any(|(_, met)| *met == Met::Nothing) || met.len() < have.len() => {
            Shown::Silent("no probe says whether each endpoint of the rules answers")
        }
        _ => Shown::Harmless("not some endpoints alone fail as the Service's address does"),
    }
}

/// How all attempts ended, where it was one way.
fn only_fate(probe: &ProbeSeen) -> Option<Fate> {
    let mut fates = probe.result.attempts.iter().map(|attempt| Fate::of(&attempt.outcome));
    let first = fates.next()??;
    fates.all(|fate| fate == Some(first)).then_some(first)
}

fn finding(path: &Path, service: &Service, kept: &[Kept], first: &Kept, impact: Impact, view: &View) -> Finding {
    let reference = service.reference();
    let Kept { client, bad, working, endpoints, fate, .. } = first;
    let words: Vec<String> = bad.iter().take(NAMED).map(|backend| backend.words()).collect();
    let more = match bad.len().saturating_sub(NAMED) {
        0 => String::new(),
        more => format!(" or {more} more"),
    };
    let mut claim = format!(
        "session affinity of {reference} keeps {} at an endpoint that does not answer ({}): {}{more}; {}, of the same {endpoints} \
         endpoints, would",
        client.reference,
        fate.words(),
        words.join(" or "),
        working.words()
    );
    let clients: BTreeSet<&str> = kept.iter().map(|kept| kept.client.node.as_str()).collect();
    if path.clients.len() > 1 {
        claim.push_str(&format!("; so on {} of {} nodes", clients.len(), path.clients.len()));
    }
    let mut subjects = vec![reference];
    for backend in kept.iter().flat_map(|kept| &kept.bad) {
        if let Some(pod) = &backend.pod {
            pod.reference().add_once(&mut subjects);
        }
    }
    Finding {
        subjects,
        since: None,
        impact,
        claim,
        proofs: proofs(path, service, first, view),
        predicts: &[Fate::Refused, Fate::Silence, Fate::Unreachable, Fate::NotPermitted],
        fix: fix(path, service),
    }
}

fn proofs(path: &Path, service: &Service, kept: &Kept, view: &View) -> Vec<Proof> {
    let Kept { client, address, working, endpoints, rules_at, .. } = kept;
    let socket = SocketAddr::new(*address, path.port.unwrap_or_default());
    let source = format!("probe from {}", client.reference);
    let direct = format!("{} took a connection from {}", working.words(), client.reference);
    vec![
        Proof::intended(service.reference(), view.now(), "spec.sessionAffinity is ClientIP"),
        Proof::programmed(
            "kube-proxy's rules",
            &client.node,
            *rules_at,
            format!("{socket}/{} leads to {endpoints} endpoints, and a client stays with its own", path.protocol),
        ),
        Proof::probe(source, &client.node, view.now(), direct),
    ]
}

fn fix(path: &Path, service: &Service) -> Fix {
    let (namespace, name) = (&service.metadata.namespace, &service.metadata.name);
    Fix {
        text: "repair that endpoint, and let its readiness probe notice when it does not answer, so that nobody is kept at it; \
               without need of affinity, take it away"
            .to_owned(),
        commands: vec![format!(
            "kubectl -n {namespace} patch service {name} -p '{{\"spec\":{{\"sessionAffinity\":\"None\"}}}}'"
        )],
        verify: path.ask_again(),
    }
}
