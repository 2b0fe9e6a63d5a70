//! Why a Service has no endpoint that takes connections: shared by the conditions about Services and about DNS.

use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::Timestamp;

use crate::evidence::object::{
    ContainerStatus, EndpointSlice, IntOrString, Object, Pod, Service, ServicePort, Workload,
};
use crate::evidence::{Kind, Look, ObjectRef, View};
use crate::finding::{Fix, Proof};

/// What the EndpointSlices of a Service say.
pub(super) enum Endpoints {
    Ready {
        ready: usize,
        total: usize,
    },
    /// None is ready, but terminating ones that still serve get the connections (KEP-1669).
    Draining(usize),
    /// None, although the Service's pods exist or would be made.
    Lacking(Lack),
    /// None, and the selector matches no pod and no workload's template.
    SelectsNothing,
    Dark,
}

/// Why there is no endpoint, and what to do.
pub(super) struct Lack {
    /// The end of a sentence: `Deployment shop/web is scaled to 0`.
    pub why: String,
    /// Besides the Service.
    pub subjects: Vec<ObjectRef>,
    pub since: Option<Timestamp>,
    pub proofs: Vec<Proof>,
    /// Without the command that verifies.
    pub fix: Fix,
}

/// Pods named one by one; the rest is counted.
const MAX_NAMED: usize = 3;
/// Characters kept of a message that somebody else wrote.
const MAX_MESSAGE: usize = 200;

pub(super) fn endpoints(service: &Service, port: Option<&ServicePort>, view: &mut View) -> Endpoints {
    let (Look::Seen(_), Look::Seen(pods)) = (view.endpoint_slices(), view.pods()) else { return Endpoints::Dark };
    let cluster = view.cluster();
    let (mut total, mut ready, mut draining) = (0, 0, 0);
    for slice in cluster.slices_of(service) {
        let of_port = port.is_none_or(|port| has_port(slice, port));
        for endpoint in &slice.endpoints {
            total += 1;
            let conditions = &endpoint.conditions;
            match (conditions.ready.unwrap_or(true), conditions.terminating.unwrap_or(false)) {
                (true, false) if of_port => ready += 1,
                (_, true) if of_port && conditions.serving == Some(true) => draining += 1,
                _ => {}
            }
        }
    }
    if ready > 0 {
        return Endpoints::Ready { ready, total };
    }
    if draining > 0 {
        return Endpoints::Draining(draining);
    }
    let proofs = vec![Proof::intended(
        format!("EndpointSlices of {}", service.reference()),
        view.now(),
        format!("0 of {total} endpoints are ready"),
    )];
    if service.spec.selector.is_empty() {
        return Endpoints::Lacking(Lack {
            why: "it has no selector, and nobody wrote a ready endpoint for it".to_owned(),
            subjects: Vec::new(),
            since: service.metadata.changed_at,
            proofs,
            fix: Fix {
                text: "write an EndpointSlice for the Service, or give it a selector".to_owned(),
                ..Fix::default()
            },
        });
    }
    let selected: Vec<&Arc<Pod>> = selected(pods.value, service).collect();
    if selected.is_empty() {
        let Look::Seen(workloads) = view.workloads() else { return Endpoints::Dark };
        let mut makers: Vec<&Arc<Workload>> = workloads
            .value
            .in_namespace(&service.metadata.namespace)
            .filter(|workload| !workload.is_revision())
            .filter(|workload| selects(service, &workload.spec.template.metadata.labels))
            .collect();
        // What another object made is not what a person changes.
        makers.sort_by_key(|workload| workload.metadata.controller.is_some());
        return match makers.first() {
            Some(workload) => Endpoints::Lacking(no_pods(workload, proofs, view)),
            None => Endpoints::SelectsNothing,
        };
    }
    let alive: Vec<&Arc<Pod>> =
        selected.iter().copied().filter(|pod| pod.is_ready() && pod.metadata.deleted_at.is_none()).collect();
    Endpoints::Lacking(match (alive.as_slice(), port.and_then(|port| port.target_port.as_ref())) {
        ([], _) => not_ready(&selected, proofs, view),
        (_, Some(IntOrString::Name(name))) if !defines(&alive, name, port) => {
            port_without_meaning(&alive, name, proofs)
        }
        _ => not_written(&alive, proofs),
    })
}

fn has_port(slice: &EndpointSlice, port: &ServicePort) -> bool {
    slice.ports.iter().any(|p| p.name == port.name && p.protocol.0 == port.protocol.0 && p.port.is_some())
}

/// Living pods that the Service's selector means; all of its namespace where that is empty.
pub(super) fn selected<'e>(pods: &'e Kind<Pod>, service: &Service) -> impl Iterator<Item = &'e Arc<Pod>> {
    let in_namespace = pods.in_namespace(&service.metadata.namespace);
    in_namespace.filter(|pod| !pod.is_finished() && selects(service, &pod.metadata.labels))
}

fn selects(service: &Service, labels: &BTreeMap<String, String>) -> bool {
    service.spec.selector.iter().all(|(key, value)| labels.get(key) == Some(value))
}

fn defines(pods: &[&Arc<Pod>], name: &str, port: Option<&ServicePort>) -> bool {
    port.is_some_and(|port| pods.iter().any(|pod| pod.named_port(name, port.protocol.0).is_some()))
}

fn no_pods(workload: &Workload, mut proofs: Vec<Proof>, view: &mut View) -> Lack {
    let reference = workload.reference();
    let wanted = workload.spec.replicas.unwrap_or(workload.status.desired_number_scheduled);
    let why = match (workload.spec.replicas, wanted) {
        (Some(0), _) => format!("{reference} is scaled to 0"),
        (None, 0) => format!("{reference} finds no node to run on"),
        _ => match refusal(workload, view) {
            Some(message) => format!("{reference} wants {wanted} pods and has none: {message}"),
            None => format!("{reference} wants {wanted} pods and has none"),
        },
    };
    proofs.push(Proof::intended(
        &reference,
        view.now(),
        format!("{wanted} pods wanted, {} there", workload.status.replicas),
    ));
    let scale = (workload.spec.replicas == Some(0)).then(|| {
        let kind = workload.kind.to_lowercase();
        format!("kubectl -n {} scale {kind} {} --replicas=1", workload.metadata.namespace, workload.metadata.name)
    });
    let text = if scale.is_some() { "scale the workload up" } else { "let the workload make its pods" };
    Lack {
        why,
        subjects: vec![reference],
        since: workload.metadata.changed_at,
        proofs,
        fix: Fix { text: text.to_owned(), commands: scale.into_iter().collect(), verify: String::new() },
    }
}

/// Why the API refuses to make the workload's pods: quota, admission, a missing service account.
fn refusal(workload: &Workload, view: &mut View) -> Option<String> {
    let failure = workload.status.conditions.iter().find(|c| c.kind == "ReplicaFailure" && c.status == "True");
    if let Some(failure) = failure {
        return Some(shortened(&failure.message));
    }
    let events = view.events().seen()?;
    let name = &workload.metadata.name;
    let of_it =
        |involved: &str| involved == name || involved.strip_prefix(name).is_some_and(|rest| rest.starts_with('-'));
    let failed = events.value.in_namespace(&workload.metadata.namespace).filter(|event| {
        event.reason == "FailedCreate" && event.involved_object.kind != "Pod" && of_it(&event.involved_object.name)
    });
    failed.max_by_key(|event| event.last_at()).map(|event| shortened(&event.message))
}

fn not_ready(pods: &[&Arc<Pod>], mut proofs: Vec<Proof>, view: &mut View) -> Lack {
    let mut reasons = Vec::new();
    for pod in pods.iter().take(MAX_NAMED) {
        let why = why_not_ready(pod, view);
        proofs.push(Proof::intended(pod.reference(), view.now(), why.clone()));
        reasons.push(format!("{} {why}", pod.reference()));
    }
    if pods.len() > MAX_NAMED {
        reasons.push(format!("{} more pods are not ready", pods.len() - MAX_NAMED));
    }
    let since = |pod: &&Arc<Pod>| pod.condition("Ready").and_then(|c| c.last_transition_time);
    let first = &pods[0].metadata;
    Lack {
        why: reasons.join("; "),
        subjects: pods.iter().map(|pod| pod.reference()).collect(),
        since: pods.iter().filter_map(since).max(),
        proofs,
        fix: Fix {
            text: "make the pods ready".to_owned(),
            commands: vec![
                format!("kubectl -n {} describe pod {}", first.namespace, first.name),
                format!("kubectl -n {} logs {} --all-containers --tail=50", first.namespace, first.name),
            ],
            verify: String::new(),
        },
    }
}

/// The target port is a name that no container gives to a port: the controller leaves that port out of the slices.
fn port_without_meaning(pods: &[&Arc<Pod>], name: &str, mut proofs: Vec<Proof>) -> Lack {
    let mut names: Vec<&str> =
        pods.iter().flat_map(|pod| &pod.spec.containers).flat_map(|c| &c.ports).map(|p| p.name.as_str()).collect();
    names.retain(|name| !name.is_empty());
    names.sort_unstable();
    names.dedup();
    let there =
        if names.is_empty() { "they name no ports".to_owned() } else { format!("they name {}", names.join(", ")) };
    proofs.push(Proof {
        text: format!("target port {name:?} is not among the ports of {} ready pods: {there}", pods.len()),
        ..proofs[0].clone()
    });
    Lack {
        why: format!(
            "its target port {name:?} is a name that none of its {} ready pods gives to a port; {there}",
            pods.len()
        ),
        subjects: pods.iter().map(|pod| pod.reference()).collect(),
        since: None,
        proofs,
        fix: Fix { text: "use a port name of the pods, or the number, as targetPort".to_owned(), ..Fix::default() },
    }
}

fn not_written(pods: &[&Arc<Pod>], proofs: Vec<Proof>) -> Lack {
    Lack {
        why: format!("{} of its pods are ready, but the EndpointSlices do not say so", pods.len()),
        subjects: pods.iter().map(|pod| pod.reference()).collect(),
        since: pods.iter().filter_map(|pod| pod.condition("Ready")?.last_transition_time).max(),
        proofs,
        fix: Fix {
            text: "look at kube-controller-manager: its endpointslice controller lags".to_owned(),
            ..Fix::default()
        },
    }
}

/// The rest of a sentence about a pod: `waits with container web: CrashLoopBackOff, 7 restarts, last exit code 1 (Error)`.
fn why_not_ready(pod: &Pod, view: &mut View) -> String {
    if pod.metadata.deleted_at.is_some() {
        return "is being deleted".to_owned();
    }
    if pod.spec.node_name.is_empty() {
        return match pod.condition("PodScheduled").map(|c| c.message.as_str()) {
            None | Some("") => "is not scheduled to a node".to_owned(),
            Some(message) => format!("is not scheduled to a node: {}", shortened(message)),
        };
    }
    if let Look::Seen(nodes) = view.nodes()
        && nodes.value.get("", &pod.spec.node_name).is_some_and(|node| !node.is_ready())
    {
        return format!("is on Node {}, which is not ready", pod.spec.node_name);
    }
    let stopped = pod.status.container_statuses.iter().filter(|status| !status.ready).find_map(stopped);
    if let Some(stopped) = stopped {
        return stopped;
    }
    if let Some(unhealthy) = readiness_event(pod, view) {
        return format!("runs, but is not ready: {unhealthy}");
    }
    match pod.condition("Ready").map(|c| c.message.as_str()) {
        None | Some("") => "is not ready".to_owned(),
        Some(message) => format!("is not ready: {}", shortened(message)),
    }
}

pub(super) fn stopped(status: &ContainerStatus) -> Option<String> {
    let now = match (&status.state.waiting, &status.state.terminated) {
        (Some(waiting), _) => format!("has container {} waiting: {}", status.name, waiting.reason),
        (None, Some(ended)) => {
            format!("has container {} ended with exit code {} ({})", status.name, ended.exit_code, ended.reason)
        }
        (None, None) => return None,
    };
    let restarts =
        if status.restart_count > 0 { format!(", {} restarts", status.restart_count) } else { String::new() };
    let last = match &status.last_state.terminated {
        Some(ended) => format!(", last exit code {} ({})", ended.exit_code, ended.reason),
        None => status
            .state
            .waiting
            .as_ref()
            .map(|w| &w.message)
            .filter(|m| !m.is_empty())
            .map_or_else(String::new, |m| format!(", {}", shortened(m))),
    };
    Some(format!("{now}{restarts}{last}"))
}

fn readiness_event(pod: &Pod, view: &mut View) -> Option<String> {
    let events = view.events().seen()?;
    let meta = &pod.metadata;
    events
        .value
        .in_namespace(&meta.namespace)
        .filter(|event| event.reason == "Unhealthy" && event.message.starts_with("Readiness probe"))
        .filter(|event| event.is_of(meta))
        .max_by_key(|event| event.last_at())
        .map(|event| shortened(&event.message))
}

/// The first line of somebody else's message, without its full stop.
pub(super) fn shortened(message: &str) -> String {
    let line = message.lines().next().unwrap_or_default().trim().trim_end_matches('.');
    match line.char_indices().nth(MAX_MESSAGE) {
        Some((end, _)) => format!("{}…", &line[..end]),
        None => line.to_owned(),
    }
}
