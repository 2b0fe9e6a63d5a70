//! Routes of Gateway API, and the listeners of Gateways that take them, which lead to a Service.

use super::super::ladder::RungName;
use super::super::secret::SecretName;
use super::matches::Enters;
use super::{Asking, Door, Entrances, Wanted, grant};
use crate::evidence::object::{
    BackendRef, GATEWAY_GROUP, Gateway, Listener, ParentRef, Route, SecretRef, Service, ServicePort,
};
use crate::evidence::{Cluster, Kind};

/// What routes should lead to, and what is wanted of them.
#[derive(Clone, Copy)]
struct Goal<'g> {
    cluster: &'g Cluster,
    service: &'g Service,
    port: &'g ServicePort,
    wanted: Wanted<'g>,
}

pub(super) fn find(
    cluster: &Cluster,
    service: &Service,
    port: &ServicePort,
    wanted: Wanted<'_>,
    found: &mut Entrances,
) {
    let goal = Goal { cluster, service, port, wanted };
    of_kind(&cluster.http_routes, goal, found);
    of_kind(&cluster.grpc_routes, goal, found);
    of_kind(&cluster.tls_routes, goal, found);
}

fn of_kind<R: Enters>(routes: &Kind<Route<R>>, goal: Goal<'_>, found: &mut Entrances) {
    for route in routes.iter() {
        let (own, others): (Vec<&R>, Vec<&R>) = route.spec.rules.iter().partition(|rule| leads(route, *rule, goal));
        for rule in own {
            let asking = rule.asking(&others);
            for parent in route.spec.parent_refs.iter().filter(|parent| is_gateway(parent)) {
                at_parent(route, parent, &asking, goal, found);
            }
        }
    }
}

fn at_parent<R: Enters>(
    route: &Route<R>,
    parent: &ParentRef,
    asking: &Result<Asking, String>,
    goal: Goal<'_>,
    found: &mut Entrances,
) {
    let own = &route.metadata;
    let cluster = goal.cluster;
    let namespace = if parent.namespace.is_empty() { &own.namespace } else { &parent.namespace };
    let gateway_name = format!("Gateway {namespace}/{}", parent.name);
    let route_name = format!("{} {}/{} at {gateway_name}", R::ROUTE, own.namespace, own.name);
    let mut against: Vec<String> = refusal(route, parent).into_iter().collect();
    against.extend(grant::lacking_to_service::<R>(cluster, own, goal.service));
    let object = noted(&route_name, &against);
    let first_host = route.spec.hostnames.first().map_or("", String::as_str);
    let Some(gateway) = cluster.gateways.get(namespace, &parent.name) else {
        // A list that could not be read is a gap of its own.
        if cluster.gateways.gap().is_none() {
            found.not_tried(RungName::Gateway, first_host, format!("{object}: there is no such Gateway"));
        }
        return;
    };
    let addresses: Vec<String> = gateway.status.addresses.iter().map(|address| address.value.clone()).collect();
    let mut is_taken_in = false;
    for listener in gateway.spec.listeners.iter().filter(|listener| takes(gateway, listener, route, parent)) {
        let secrets = secrets(gateway, listener);
        let mut against = against.clone();
        against.extend(grant::lacking_to_secrets(cluster, gateway, &secrets));
        let object = noted(&route_name, &against);
        for host in hosts(route, listener) {
            is_taken_in = true;
            let https = listener.protocol == "HTTPS";
            let (rung, port) = (RungName::Gateway, listener.port);
            let (object, host, secrets) = (&object, &host, &secrets);
            let door = Door { rung, object, host, https, port, secrets, addresses: &addresses };
            found.add(&door, asking.clone(), goal.wanted);
        }
    }
    if !is_taken_in {
        let protocol = R::PROTOCOLS[0];
        let why = format!(
            "{object}: none of its listeners for {protocol} takes the route by name, port, namespace, kind and host"
        );
        found.not_tried(RungName::Gateway, first_host, why);
    }
}

/// Where its certificates come from; nowhere where TLS is the endpoints' own.
fn secrets(gateway: &Gateway, listener: &Listener) -> Vec<SecretName> {
    let listed = listener.tls.iter().filter(|tls| tls.mode != "Passthrough").flat_map(|tls| &tls.certificate_refs);
    let of_core = listed.filter(|one| one.group.is_empty() && ["", "Secret"].contains(&one.kind.as_str()));
    let named = |one: &SecretRef| {
        let namespace = if one.namespace.is_empty() { &gateway.metadata.namespace } else { &one.namespace };
        SecretName { namespace: namespace.clone(), name: one.name.clone() }
    };
    of_core.map(named).collect()
}

/// With what speaks against it.
fn noted(object: &str, against: &[String]) -> String {
    if against.is_empty() { object.to_owned() } else { format!("{object} ({})", against.join("; ")) }
}

/// What the controller says against the route.
fn refusal<R>(route: &Route<R>, parent: &ParentRef) -> Option<String> {
    let of_parent = route.status.parents.iter().filter(|status| {
        status.parent_ref.name == parent.name && status.parent_ref.section_name == parent.section_name
    });
    let refused = of_parent.flat_map(|status| &status.conditions).find(|condition| {
        condition.status == "False" && ["Accepted", "ResolvedRefs"].contains(&condition.kind.as_str())
    });
    refused.map(|condition| format!("not {}: {}", condition.kind, condition.reason))
}

fn is_gateway(parent: &ParentRef) -> bool {
    parent.group.as_deref().is_none_or(|group| group == GATEWAY_GROUP)
        && parent.kind.as_deref().is_none_or(|kind| kind == "Gateway")
}

fn leads<R: Enters>(route: &Route<R>, rule: &R, goal: Goal<'_>) -> bool {
    let is_port = |backend: &BackendRef| backend.port == Some(goal.port.port);
    rule.backend_refs().iter().any(|backend| is_service(route, backend, goal.service) && is_port(backend))
}

fn is_service<R>(route: &Route<R>, backend: &BackendRef, service: &Service) -> bool {
    let namespace = if backend.namespace.is_empty() { &route.metadata.namespace } else { &backend.namespace };
    backend.group.as_deref().is_none_or(str::is_empty)
        && backend.kind.as_deref().is_none_or(|kind| kind == "Service")
        && *namespace == service.metadata.namespace
        && backend.name == service.metadata.name
        && backend.weight != Some(0)
}

/// Whether the route may be attached to this listener. Namespaces that are chosen by labels are taken as chosen.
fn takes<R: Enters>(gateway: &Gateway, listener: &Listener, route: &Route<R>, parent: &ParentRef) -> bool {
    let allowed = listener.allowed_routes.as_ref();
    let from = allowed.and_then(|allowed| allowed.namespaces.as_ref());
    let is_same = from.is_none_or(|namespaces| ["", "Same"].contains(&namespaces.from.as_str()));
    let kinds = allowed.map_or(&[][..], |allowed| allowed.kinds.as_slice());
    R::PROTOCOLS.contains(&listener.protocol.as_str())
        && (kinds.is_empty() || kinds.iter().any(|kind| kind.is_route(R::ROUTE)))
        && (parent.section_name.is_empty() || parent.section_name == listener.name)
        && parent.port.is_none_or(|port| port == listener.port)
        && (!is_same || gateway.metadata.namespace == route.metadata.namespace)
}

/// The hosts that both have.
fn hosts<R>(route: &Route<R>, listener: &Listener) -> Vec<String> {
    let of_listener = listener.hostname.as_str();
    if route.spec.hostnames.is_empty() {
        return vec![of_listener.to_owned()];
    }
    let both = |host: &String| match () {
        () if of_listener.is_empty() || of_listener == host || is_under(host, of_listener) => Some(host.clone()),
        () if is_under(of_listener, host) => Some(of_listener.to_owned()),
        () => None,
    };
    route.spec.hostnames.iter().filter_map(both).collect()
}

/// A wildcard of Gateway API stands for one label or more.
fn is_under(host: &str, wildcard: &str) -> bool {
    wildcard.strip_prefix('*').is_some_and(|end| end.starts_with('.') && host.len() > end.len() && host.ends_with(end))
}
