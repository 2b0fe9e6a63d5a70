//! Who waited for an answer of a server: our lookups at the cluster's DNS, or the kubelet.
//!
//! Other servers are asked for nothing: what they would answer is not known, and a connect is answered by their kernel.

use std::sync::Arc;

use jiff::Timestamp;
use netdiag_common::observation::Protocol;
use netdiag_common::observation::probe::{Attempt, Outcome};

use super::super::{dns, unready};
use crate::evidence::object::{Event, Object, Pod, Service};
use crate::evidence::{Kind, Look, ObjectRef, View};
use crate::finding::{Fate, Proof};
use crate::path::{self, Backend, MAX_CLIENT_PROBES, Path, ProbeSeen, ProbeTo};

/// From here on an answer is late: the period of CPU limits, unless the kubelet's cpuCFSQuotaPeriod says otherwise. A DNS server has
/// the cluster's names in memory and needs a hundredth of that.
pub(super) const LATE_US: u64 = 100_000;
/// How far back a probe of the kubelet counts: as far as the agent's own counts go.
const WINDOW_S: i64 = 300;

/// Servers that somebody waited for.
pub(super) struct Late {
    pub service: Option<ObjectRef>,
    pub servers: Vec<Server>,
    /// Servers that they are among.
    pub of: usize,
    pub none_is_ready: bool,
    /// The lookup that was late.
    pub lookup: Option<ProbeSeen>,
    /// No lookup was answered at all.
    pub none_is_answered: bool,
    pub predicts: &'static [Fate],
}

pub(super) struct Server {
    pub backend: Backend,
    /// The probe of the kubelet that waited in vain; none for the cluster's DNS, whose address stands for all its servers.
    pub waited: Option<Proof>,
}

pub(super) enum Felt {
    Late(Box<Late>),
    /// As far as anybody asked.
    InTime,
    Dark,
}

pub(super) fn felt(path: &Path, view: &mut View) -> Felt {
    let Some(asked) = queries(path, view) else { return Felt::Dark };
    if let Some(lookup) = asked.iter().find(|probe| probe.result.attempts.iter().any(is_late)) {
        let none_is_answered = asked.iter().all(|probe| probe.result.succeeded() == 0);
        return by_lookups(path, lookup.clone(), none_is_answered, view);
    }
    let none_is_ready = path.ready_backends().next().is_none();
    if path.is_dns() && !asked.is_empty() && !none_is_ready {
        return Felt::InTime;
    }
    by_kubelet(path, none_is_ready, view)
}

/// What the cluster's DNS was asked for that it has in memory; none when it is not known whether it was asked.
fn queries(path: &Path, view: &mut View) -> Option<Vec<ProbeSeen>> {
    if path.is_dns() && path.protocol == Protocol::Udp {
        return Some(own_queries(path, view));
    }
    let Some(name) = &path.name else { return Some(Vec::new()) };
    let Look::Seen(_) = view.services() else { return None };
    let Some(dns) = view.cluster().dns_service() else { return Some(Vec::new()) };
    let is_own = |probe: &ProbeSeen| match probe.to {
        ProbeTo::Lookup { server, candidate } => {
            let asked = name.candidates.get(candidate);
            dns::leads_to(dns, server) && asked.is_some_and(|asked| asked.ends_with(&name.cluster_domain))
        }
        ProbeTo::Address(_) | ProbeTo::Backend(_) => false,
    };
    Some(path::lookups(path, view).into_iter().filter(is_own).collect())
}

/// Of a path to the DNS Service: the probes that show the symptom, so that they are sent once.
fn own_queries(path: &Path, view: &mut View) -> Vec<ProbeSeen> {
    (0..path.clients.len().min(MAX_CLIENT_PROBES)).flat_map(|client| path::address_probes(path, client, view)).collect()
}

fn is_late(attempt: &Attempt) -> bool {
    match attempt.outcome {
        Outcome::TimedOut { .. } => true,
        Outcome::Answered { .. } => attempt.elapsed_us >= LATE_US,
        Outcome::Connected | Outcome::Failed { .. } => false,
    }
}

/// The servers behind the cluster's DNS: its address does not tell which of them was asked.
fn by_lookups(path: &Path, lookup: ProbeSeen, none_is_answered: bool, view: &mut View) -> Felt {
    let Some((dns, ready)) = dns_servers(path, view) else { return Felt::Dark };
    let predicts: &'static [Fate] =
        if lookup.is_lookup() { &[Fate::LateAnswer, Fate::LookupSilence] } else { &[Fate::LateAnswer, Fate::Silence] };
    if ready.is_empty() {
        return Felt::InTime;
    }
    Felt::Late(Box::new(Late {
        service: Some(dns.reference()),
        of: ready.len(),
        servers: ready.into_iter().map(|backend| Server { backend, waited: None }).collect(),
        none_is_ready: false,
        lookup: Some(lookup),
        none_is_answered,
        predicts,
    }))
}

/// The DNS Service with those of its endpoints that get queries; none when they are not seen.
fn dns_servers(path: &Path, view: &mut View) -> Option<(Arc<Service>, Vec<Backend>)> {
    if let Some(service) = path.service().filter(|_| path.is_dns()) {
        return Some((service.clone(), path.ready_backends().cloned().collect()));
    }
    let (Look::Seen(_), Look::Seen(_)) = (view.endpoint_slices(), view.pods()) else { return None };
    let cluster = view.cluster();
    let dns = cluster.dns_service()?;
    let port = dns.spec.ports.iter().find(|port| port.port == 53 && port.protocol.0 == Protocol::Udp);
    let all = port.map(|port| path::backends(cluster, dns, port)).unwrap_or_default();
    Some((dns.clone(), all.into_iter().filter(|backend| backend.ready && !backend.terminating).collect()))
}

/// Endpoints that the kubelet asked in vain: those that get connections, or where there are none those that should.
fn by_kubelet(path: &Path, none_is_ready: bool, view: &mut View) -> Felt {
    let all: Vec<&Backend> =
        path.backends.iter().filter(|backend| !backend.terminating && (none_is_ready || backend.ready)).collect();
    if all.is_empty() {
        return Felt::InTime;
    }
    let Look::Seen(events) = view.events() else { return Felt::Dark };
    let mut servers = Vec::new();
    for backend in &all {
        let waited = backend.pod.as_deref().and_then(|pod| waited(pod, events.value, view.now()));
        servers.extend(waited.map(|waited| Server { backend: (*backend).clone(), waited: Some(waited) }));
    }
    if servers.is_empty() {
        return Felt::InTime;
    }
    Felt::Late(Box::new(Late {
        service: path.service().map(|service| service.reference()),
        servers,
        of: all.len(),
        none_is_ready,
        lookup: None,
        none_is_answered: false,
        predicts: if none_is_ready {
            // As any Service without a ready endpoint.
            &[Fate::LateAnswer, Fate::Refused, Fate::Unreachable, Fate::Silence]
        } else {
            &[Fate::LateAnswer]
        },
    }))
}

/// The last probe of the kubelet that the pod did not answer in time.
fn waited(pod: &Pod, events: &Kind<Event>, now: Timestamp) -> Option<Proof> {
    let meta = &pod.metadata;
    let (at, message) = events
        .in_namespace(&meta.namespace)
        .filter(|event| event.reason == "Unhealthy" && event.is_of(meta) && is_wait(&event.message))
        .filter_map(|event| Some((event.last_at()?, &event.message)))
        .max_by_key(|(at, _)| *at)?;
    let is_recent = now.duration_since(at).as_secs() <= WINDOW_S;
    let source = format!("event of {}", pod.reference());
    is_recent.then(|| Proof::observed(source, &pod.spec.node_name, at, unready::shortened(message)))
}

/// The server was asked by HTTP (Go's net/http) or gRPC (pkg/probe/grpc/grpc.go of Kubernetes), and did not answer. A probe of TCP asks
/// the kernel, one by a command runs that command, and what says `dial` met nobody.
fn is_wait(message: &str) -> bool {
    const HTTP: [&str; 2] = [
        "(Client.Timeout exceeded while awaiting headers)",
        "(Client.Timeout or context cancellation while reading body)",
    ];
    let is_http = HTTP.iter().any(|text| message.contains(text)) && !message.contains("dial ");
    is_http || message.contains("health rpc did not complete within")
}

/// A lookup that was answered late; of one without any answer, correlation has the proof.
pub(super) fn late_answer(path: &Path, lookup: &ProbeSeen) -> Option<Proof> {
    let client = path.clients.get(lookup.client).filter(|_| lookup.result.succeeded() > 0)?;
    Some(Proof::probe(format!("probe from {}", client.reference), &client.node, lookup.at, lookup.words(path)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_server_that_was_reached_lets_the_kubelet_wait() {
        let get = "Readiness probe failed: Get \"http://10.244.1.3:8080/\": ";
        let late = [
            format!("{get}context deadline exceeded (Client.Timeout exceeded while awaiting headers)"),
            "Liveness probe failed: timeout: health rpc did not complete within 1s".to_owned(),
        ];
        let other = [
            format!("{get}dial tcp 10.244.1.3:8080: i/o timeout (Client.Timeout exceeded while awaiting headers)"),
            "Liveness probe failed: dial tcp 10.244.1.3:8080: i/o timeout".to_owned(),
            "Readiness probe failed: HTTP probe failed with statuscode: 503".to_owned(),
        ];
        assert!(late.iter().all(|message| is_wait(message)));
        assert!(!other.iter().any(|message| is_wait(message)));
    }
}
