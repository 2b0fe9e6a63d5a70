//! The hops of a path with the state of each: what a cause names is broken, what a probe passed is fine, the rest is unknown.

use super::{Hop, HopState};
use crate::correlate::{Cause, Correlated, Judged};
use crate::evidence::ObjectRef;
use crate::finding::Impact;
use crate::path::{Backend, Client, Path, ProbeSeen, ProbeTo, SymptomState, TargetObject};

/// Parallel hops shown of one kind; the rest is one hop that counts them.
const MAX_PARALLEL: usize = 16;

/// A hop before it is cut to what is shown, with the object it stands for.
struct Place {
    kind: &'static str,
    object: Option<ObjectRef>,
    label: String,
    node: String,
    state: HopState,
}

/// Client → name → Service → nodes → policies → endpoints. Neighbours of one kind are parallel.
pub fn hops(judged: &Judged, correlated: &Correlated, cluster: &str) -> Vec<Hop> {
    let mut places = clients(judged);
    places.extend(name(judged));
    places.extend(target(&judged.path, &judged.symptom.probes));
    places.extend(nodes(judged));
    places.extend(endpoints(judged));
    for cause in &correlated.causes {
        blame(&mut places, cause, judged);
    }
    doubt_what_comes_after(&mut places, correlated);
    cut(places).into_iter().map(|place| hop(place, cluster)).collect()
}

fn hop(place: Place, cluster: &str) -> Hop {
    let Place { kind, label, node, state, .. } = place;
    Hop { cluster: cluster.to_owned(), kind: kind.to_owned(), label, node, state }
}

fn clients(judged: &Judged) -> Vec<Place> {
    let place = |(index, client): (usize, &Client)| {
        // A probe that left proves the namespace and its process; whether it arrived is the matter of the hops behind.
        let probed = judged.symptom.probes.iter().any(|probe| probe.client == index);
        Place {
            kind: "client",
            object: Some(client.reference.clone()),
            label: client.reference.to_string(),
            node: client.node.clone(),
            state: if probed { HopState::Ok } else { HopState::Unknown },
        }
    };
    judged.path.clients.iter().enumerate().map(place).collect()
}

fn name(judged: &Judged) -> Option<Place> {
    let name = judged.path.name.as_ref()?;
    let resolves = !matches!(judged.path.target, TargetObject::UnknownName);
    let state = if resolves && judged.symptom.state == SymptomState::Works { HopState::Ok } else { HopState::Unknown };
    Some(Place { kind: "name", object: None, label: name.asked.clone(), node: String::new(), state })
}

/// The Service; other targets are their own endpoint.
fn target(path: &Path, probes: &[ProbeSeen]) -> Option<Place> {
    let service = path.service()?;
    let passed = probes.iter().any(|p| matches!(p.to, ProbeTo::Address(_)) && p.result.succeeded() > 0);
    let intended = path.service_port().is_some() && path.ready_backends().next().is_some();
    let port = path.port.map(|port| format!(":{port}")).unwrap_or_default();
    Some(Place {
        kind: "service",
        object: Some(service_ref(path)?),
        label: format!("Service {}/{}{port}", service.metadata.namespace, service.metadata.name),
        node: String::new(),
        state: if passed || intended { HopState::Ok } else { HopState::Unknown },
    })
}

fn service_ref(path: &Path) -> Option<ObjectRef> {
    use crate::evidence::object::Object;
    path.service().map(|service| service.reference())
}

/// The nodes where pods' packets are translated; a client that is a node already stands for itself.
fn nodes(judged: &Judged) -> Vec<Place> {
    let mut places: Vec<Place> = Vec::new();
    for (index, client) in judged.path.clients.iter().enumerate() {
        if client.pod.is_none() || places.iter().any(|place| place.node == client.node) {
            continue;
        }
        let passed = judged.symptom.to_address().any(|p| p.client == index && p.result.failed() == 0);
        places.push(node(&client.node, if passed { HopState::Ok } else { HopState::Unknown }));
    }
    places
}

fn node(name: &str, state: HopState) -> Place {
    let object = ObjectRef { kind: "Node".to_owned(), name: name.to_owned(), ..ObjectRef::default() };
    Place { kind: "node", label: object.to_string(), object: Some(object), node: name.to_owned(), state }
}

fn endpoints(judged: &Judged) -> Vec<Place> {
    use crate::evidence::object::Object;
    let path = &judged.path;
    if path.backends.is_empty() {
        let object = match &path.target {
            TargetObject::Service { .. } | TargetObject::UnknownName => return Vec::new(),
            TargetObject::Pod(pod) => Some(pod.reference()),
            TargetObject::Node(node) => Some(node.clone()),
            TargetObject::Address => None,
        };
        let state = probed(judged.symptom.to_address());
        let node = object.as_ref().map(|o| if o.kind == "Node" { o.name.clone() } else { o.node.clone() });
        let label = path.target_words();
        return vec![Place { kind: "endpoint", object, label, node: node.unwrap_or_default(), state }];
    }
    let place = |(index, backend): (usize, &Backend)| {
        let state = match path.service() {
            Some(_) => probed(judged.symptom.to_backend(index)),
            None => probed(judged.symptom.to_address().filter(|p| p.to == ProbeTo::Address(backend.address))),
        };
        let readiness = match (backend.ready, backend.terminating) {
            (_, true) => ", terminating",
            (false, false) => ", not ready",
            (true, false) => "",
        };
        Place {
            kind: "endpoint",
            object: backend.pod.as_ref().map(|pod| pod.reference()),
            label: format!("{}{readiness}", backend.words()),
            node: backend.node.clone(),
            state,
        }
    };
    path.backends.iter().enumerate().map(place).collect()
}

fn probed<'p>(probes: impl Iterator<Item = &'p ProbeSeen>) -> HopState {
    match probes.fold((0, 0), |(good, bad), p| (good + p.result.succeeded(), bad + p.result.failed())) {
        (0, 0) => HopState::Unknown,
        (_, 0) => HopState::Ok,
        (0, _) => HopState::Broken,
        _ => HopState::Degraded,
    }
}

/// Marks the hops that a cause names. Its first subject is what has to change; subjects of the same kind share the blame.
fn blame(places: &mut Vec<Place>, cause: &Cause, judged: &Judged) {
    let state = match cause.finding.impact {
        Impact::Breaks => HopState::Broken,
        Impact::Degrades => HopState::Degraded,
    };
    let subjects = &cause.finding.subjects;
    let stands_for =
        |place: &Place, subject: &ObjectRef| place.object.as_ref().is_some_and(|object| object.same_object(subject));
    // A name that leads nowhere is the hop at fault, whichever objects the cause names.
    let nowhere = matches!(judged.path.target, TargetObject::UnknownName);
    let first = subjects.iter().find(|subject| {
        matches!(subject.kind.as_str(), "NetworkPolicy" | "Node")
            || !nowhere && places.iter().any(|place| stands_for(place, subject))
    });
    let Some(first) = first else {
        // Nothing of the path itself: the name's own machinery when a name was asked, else what the path leads to.
        let of_kind = |kind: &str| places.iter().position(|place| place.kind == kind);
        let fallback = of_kind("name").or(of_kind("service")).or(places.len().checked_sub(1));
        if let Some(index) = fallback {
            places[index].state = state;
        }
        return;
    };
    for subject in subjects.iter().filter(|subject| subject.kind == first.kind) {
        let mut known = false;
        for place in places.iter_mut().filter(|place| stands_for(place, subject)) {
            place.state = state;
            known = true;
        }
        if known {
            continue;
        }
        let added = match subject.kind.as_str() {
            "Node" => node(&subject.name, state),
            "NetworkPolicy" => Place {
                kind: "policy",
                object: Some(subject.clone()),
                label: subject.to_string(),
                node: String::new(),
                state,
            },
            _ => continue,
        };
        let before = places.iter().position(|place| stage(place.kind) > stage(added.kind)).unwrap_or(places.len());
        places.insert(before, added);
    }
}

fn stage(kind: &str) -> usize {
    ["client", "name", "service", "node", "policy", "endpoint"].iter().position(|k| *k == kind).unwrap_or(usize::MAX)
}

/// A probe that fails behind a hop that is known to be broken says nothing about the hops behind it.
fn doubt_what_comes_after(places: &mut [Place], correlated: &Correlated) {
    let blamed = |place: &Place| {
        let subjects = correlated.causes.iter().flat_map(|cause| &cause.finding.subjects);
        place.object.as_ref().is_some_and(|object| subjects.into_iter().any(|s| s.same_object(object)))
    };
    let Some(broken) = places.iter().position(|p| p.kind != "endpoint" && p.state == HopState::Broken) else { return };
    for place in &mut places[broken + 1..] {
        let failed = matches!(place.state, HopState::Broken | HopState::Degraded);
        if failed && place.kind == "endpoint" && !blamed(place) {
            place.state = HopState::Unknown;
        }
    }
}

/// At most [`MAX_PARALLEL`] of a kind: what is not fine first, then in their order; the rest as one hop.
fn cut(places: Vec<Place>) -> Vec<Place> {
    let mut shown: Vec<Place> = Vec::new();
    let mut rest = places.into_iter().peekable();
    while let Some(kind) = rest.peek().map(|place| place.kind) {
        let mut parallel = Vec::new();
        while let Some(place) = rest.next_if(|place| place.kind == kind) {
            parallel.push(place);
        }
        let more = parallel.len().saturating_sub(MAX_PARALLEL);
        if more > 0 {
            parallel.sort_by_key(|place| match place.state {
                HopState::Broken => 0,
                HopState::Degraded => 1,
                HopState::Unknown | HopState::Ok => 2,
            });
            parallel.truncate(MAX_PARALLEL);
        }
        shown.extend(parallel);
        if more > 0 {
            let label = format!("{more} more");
            shown.push(Place { kind, object: None, label, node: String::new(), state: HopState::Unknown });
        }
    }
    shown
}
