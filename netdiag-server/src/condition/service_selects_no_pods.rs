//! The Service's selector matches no pod, so it has no endpoints at all.

use std::collections::BTreeMap;

use super::{Condition, Read, Severity, Verdict, Words, proof};
use crate::evidence::object::{Object, Pod, Service};
use crate::evidence::{KindName, Look, View};
use crate::finding::{Fate, Finding, Fix, Impact, Proof};
use crate::path::Path;

pub const CONDITION: Condition = Condition {
    code: "service_selects_no_pods",
    severity: Severity::High,
    words: Words {
        means: "the Service's selector matches no pod of its namespace, so nothing can answer for it",
        how_we_know: "no pod of the namespace carries the selector's labels, and the Service's EndpointSlices are empty",
        silent_when: "the Service has no selector (its endpoints are written by hand), pods match but are not ready, or \
                      the workload that should make the pods has none to show because it is scaled to zero",
        what_to_do: "make the selector equal to labels that the pods carry, or label the pods",
        sources: &["https://kubernetes.io/docs/concepts/services-networking/service/#defining-a-service"],
    },
    faults: &["svc-selector-mismatch"],
    reads: &[
        Read::Kind(KindName::Pods),
        Read::Kind(KindName::EndpointSlices),
        Read::Kind(KindName::Workloads),
        Read::Topic("service_rules"),
    ],
    lookalikes: &["service_has_no_ready_endpoints", "service_port_not_defined"],
    explains: &[],
    judge,
};

fn judge(path: &Path, view: &mut View) -> Verdict {
    let Some(service) = path.service() else {
        return Verdict::not_applicable("the path does not lead to a Service");
    };
    if service.spec.selector.is_empty() {
        return Verdict::not_applicable("the Service has no selector");
    }
    let (Look::Seen(pods), Look::Seen(slices)) = (view.pods(), view.endpoint_slices()) else {
        return Verdict::unknown(view);
    };
    let namespace = &service.metadata.namespace;
    let selects =
        |labels: &BTreeMap<String, String>| service.spec.selector.iter().all(|(k, v)| labels.get(k) == Some(v));
    let living: Vec<&Pod> =
        pods.value.in_namespace(namespace).map(AsRef::as_ref).filter(|pod| !pod.is_finished()).collect();
    let selected = living.iter().filter(|pod| selects(&pod.metadata.labels)).count();
    if selected > 0 {
        return Verdict::clear(format!("the selector of {} matches {selected} pods", service.reference()));
    }
    let Look::Seen(workloads) = view.workloads() else { return Verdict::unknown(view) };
    let mut makers = workloads.value.in_namespace(namespace).filter(|workload| !workload.is_revision());
    let template = makers.find(|workload| selects(&workload.spec.template.metadata.labels));
    if let Some(workload) = template {
        return Verdict::clear(format!(
            "the selector matches the pods that {} makes, which has none now",
            workload.reference()
        ));
    }
    let mut subjects = vec![service.reference()];
    let near = nearest(service, &living);
    let claim = match &near {
        Some(near) => {
            subjects.push(near.pod.reference());
            format!(
                "{} selects {}, which no pod of namespace {namespace} carries; nearest is {} with {}",
                service.reference(),
                words(&service.spec.selector),
                near.pod.reference(),
                near.differences
            )
        }
        None => format!(
            "{} selects {}, which none of the {} pods of namespace {namespace} carries",
            service.reference(),
            words(&service.spec.selector),
            living.len()
        ),
    };
    let endpoints: usize = view.cluster().slices_of(service).map(|slice| slice.endpoints.len()).sum();
    let mut proofs = vec![
        Proof::intended(
            service.reference(),
            view.now(),
            format!("selector {}; 0 of {} pods match", words(&service.spec.selector), living.len()),
        ),
        Proof::intended(
            format!("EndpointSlices of {}", service.reference()),
            slices.at,
            format!("{endpoints} endpoints"),
        ),
    ];
    proofs.extend(proof::nothing_to_forward_to(path, view));
    Verdict::found(Finding {
        subjects,
        since: service.metadata.changed_at,
        impact: Impact::Breaks,
        claim,
        proofs,
        // Most proxies refuse; some drop what has nowhere to go.
        predicts: &[Fate::Refused, Fate::Unreachable, Fate::Silence],
        fix: fix(path, service, near.as_ref()),
    })
}

/// The pod whose labels come closest to the selector, and what differs.
struct Near<'p> {
    pod: &'p Pod,
    /// `app=web-frontend instead of app=web`.
    differences: String,
    /// The selector with the pod's values where it has the key.
    repaired: BTreeMap<String, String>,
}

fn nearest<'p>(service: &Service, pods: &[&'p Pod]) -> Option<Near<'p>> {
    let selector = &service.spec.selector;
    let score = |pod: &Pod| {
        let equal = selector.iter().filter(|(key, value)| pod.metadata.labels.get(*key) == Some(*value)).count();
        let same_key = selector.keys().filter(|key| pod.metadata.labels.contains_key(*key)).count();
        let values: usize = selector
            .iter()
            .filter_map(|(key, value)| Some(crate::path::edit_distance(pod.metadata.labels.get(key)?, value)))
            .sum();
        (equal, same_key, std::cmp::Reverse(values))
    };
    // The last of equals would win with max_by_key; the first by name reads more naturally.
    let pod = *pods.iter().rev().max_by_key(|pod| score(pod))?;
    if score(pod).1 == 0 {
        return None;
    }
    let mut repaired = BTreeMap::new();
    let mut differences = Vec::new();
    for (key, value) in selector {
        match pod.metadata.labels.get(key) {
            Some(own) if own == value => {}
            Some(own) => differences.push(format!("{key}={own} instead of {key}={value}")),
            None => differences.push(format!("no label {key} (selector wants {key}={value})")),
        }
        if let Some(own) = pod.metadata.labels.get(key) {
            repaired.insert(key.clone(), own.clone());
        }
    }
    Some(Near { pod, differences: differences.join(" and "), repaired })
}

fn fix(path: &Path, service: &Service, near: Option<&Near>) -> Fix {
    let meta = &service.metadata;
    let commands = near.map(|near| {
        let patch = serde_json::json!([{"op": "replace", "path": "/spec/selector", "value": near.repaired}]);
        format!("kubectl -n {} patch service {} --type=json -p '{patch}'", meta.namespace, meta.name)
    });
    Fix {
        text: "make the Service's selector equal to labels that the intended pods carry".to_owned(),
        commands: commands.into_iter().collect(),
        verify: path.ask_again(),
    }
}

fn words(labels: &BTreeMap<String, String>) -> String {
    labels.iter().map(|(key, value)| format!("{key}={value}")).collect::<Vec<_>>().join(",")
}
