//! HTTPRoutes and the listeners of Gateways (gateway.networking.k8s.io/v1) that lead to a Service.

use super::super::ladder::RungName;
use super::super::secret::SecretName;
use super::{Asking, Door, Entrances, Wanted, below};
use crate::evidence::Cluster;
use crate::evidence::object::{
    BackendRef, GATEWAY_GROUP, Gateway, HttpRoute, Listener, ParentRef, RouteMatch, RouteRule, SecretRef, Service,
    ServicePort, ValueMatch,
};

pub(super) fn find(
    cluster: &Cluster,
    service: &Service,
    port: &ServicePort,
    wanted: Wanted<'_>,
    found: &mut Entrances,
) {
    for route in cluster.http_routes.iter() {
        for rule in &route.spec.rules {
            if !leads(route, rule, service, port) {
                continue;
            }
            let asking = asking(rule, |text| is_taken(route, text, service, port));
            for parent in route.spec.parent_refs.iter().filter(|parent| is_gateway(parent)) {
                at_parent(cluster, route, parent, &asking, wanted, found);
            }
        }
    }
}

fn at_parent(
    cluster: &Cluster,
    route: &HttpRoute,
    parent: &ParentRef,
    asking: &Result<Asking, String>,
    wanted: Wanted<'_>,
    found: &mut Entrances,
) {
    let own = &route.metadata;
    let namespace = if parent.namespace.is_empty() { &own.namespace } else { &parent.namespace };
    let gateway_name = format!("Gateway {namespace}/{}", parent.name);
    let object = format!("HTTPRoute {}/{} at {gateway_name}{}", own.namespace, own.name, refusals(route, parent));
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
        for host in hosts(route, listener) {
            is_taken_in = true;
            let https = listener.protocol == "HTTPS";
            let (rung, port, secrets) = (RungName::Gateway, listener.port, secrets(gateway, listener));
            let (object, host, secrets) = (&object, &host, &secrets);
            let door = Door { rung, object, host, https, port, secrets, addresses: &addresses };
            found.add(&door, asking.clone(), wanted);
        }
    }
    if !is_taken_in {
        let why = format!("{object}: none of its listeners for HTTP takes the route by name, port, namespace and host");
        found.not_tried(RungName::Gateway, first_host, why);
    }
}

fn secrets(gateway: &Gateway, listener: &Listener) -> Vec<SecretName> {
    let listed = listener.tls.iter().flat_map(|tls| &tls.certificate_refs);
    let of_core = listed.filter(|one| one.group.is_empty() && ["", "Secret"].contains(&one.kind.as_str()));
    let named = |one: &SecretRef| {
        let namespace = if one.namespace.is_empty() { &gateway.metadata.namespace } else { &one.namespace };
        SecretName { namespace: namespace.clone(), name: one.name.clone() }
    };
    of_core.map(named).collect()
}

/// What the controller says against the route.
fn refusals(route: &HttpRoute, parent: &ParentRef) -> String {
    let of_parent = route.status.parents.iter().filter(|status| {
        status.parent_ref.name == parent.name && status.parent_ref.section_name == parent.section_name
    });
    let refused = of_parent.flat_map(|status| &status.conditions).find(|condition| {
        condition.status == "False" && ["Accepted", "ResolvedRefs"].contains(&condition.kind.as_str())
    });
    refused.map(|condition| format!(" (not {}: {})", condition.kind, condition.reason)).unwrap_or_default()
}

fn is_gateway(parent: &ParentRef) -> bool {
    parent.group.as_deref().is_none_or(|group| group == GATEWAY_GROUP)
        && parent.kind.as_deref().is_none_or(|kind| kind == "Gateway")
}

fn leads(route: &HttpRoute, rule: &RouteRule, service: &Service, port: &ServicePort) -> bool {
    rule.backend_refs.iter().any(|backend| is_service(route, backend, service) && backend.port == Some(port.port))
}

fn is_service(route: &HttpRoute, backend: &BackendRef, service: &Service) -> bool {
    let namespace = if backend.namespace.is_empty() { &route.metadata.namespace } else { &backend.namespace };
    backend.group.as_deref().is_none_or(str::is_empty)
        && backend.kind.as_deref().is_none_or(|kind| kind == "Service")
        && *namespace == service.metadata.namespace
        && backend.name == service.metadata.name
        && backend.weight != Some(0)
}

/// Whether the route may be attached to this listener. Namespaces that are chosen by labels are taken as chosen.
fn takes(gateway: &Gateway, listener: &Listener, route: &HttpRoute, parent: &ParentRef) -> bool {
    let from = listener.allowed_routes.as_ref().and_then(|allowed| allowed.namespaces.as_ref());
    let is_same = from.is_none_or(|namespaces| ["", "Same"].contains(&namespaces.from.as_str()));
    ["HTTP", "HTTPS"].contains(&listener.protocol.as_str())
        && (parent.section_name.is_empty() || parent.section_name == listener.name)
        && parent.port.is_none_or(|port| port == listener.port)
        && (!is_same || gateway.metadata.namespace == route.metadata.namespace)
}

/// The hosts that both have.
fn hosts(route: &HttpRoute, listener: &Listener) -> Vec<String> {
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

/// Whether an exact path of the same route leads elsewhere.
fn is_taken(route: &HttpRoute, text: &str, service: &Service, port: &ServicePort) -> bool {
    let elsewhere = route.spec.rules.iter().filter(|rule| !leads(route, rule, service, port));
    let mut paths = elsewhere.flat_map(|rule| &rule.matches).filter_map(|one| one.path.as_ref());
    paths.any(|path| path.kind == "Exact" && path.value == text)
}

/// The first match that a probe can satisfy; else why the first one cannot be.
fn asking(rule: &RouteRule, taken: impl Fn(&str) -> bool) -> Result<Asking, String> {
    if rule.matches.is_empty() {
        return Ok(Asking { path: below("/", taken), ..Asking::default() });
    }
    let mut why_not = None;
    for one in &rule.matches {
        match satisfied(one, &taken) {
            Ok(asking) => return Ok(asking),
            Err(why) => why_not = why_not.or(Some(why)),
        }
    }
    Err(why_not.unwrap_or_default())
}

fn satisfied(one: &RouteMatch, taken: impl Fn(&str) -> bool) -> Result<Asking, String> {
    let method = one.method.clone().filter(|method| method != "GET");
    if let Some(other) = method.as_ref().filter(|method| !["HEAD", "OPTIONS"].contains(&method.as_str())) {
        return Err(format!("it wants the method {other}, and a probe changes nothing"));
    }
    let mut path = match one.path.as_ref().map(|path| (path.kind.as_str(), path.value.as_str())) {
        None => below("/", taken),
        Some(("Exact", value)) => value.to_owned(),
        Some(("" | "PathPrefix", value)) => below(value, taken),
        Some((kind, value)) => return Err(cannot_be(kind, "path", value)),
    };
    for (index, parameter) in exact(&one.query_params, "query parameter")?.into_iter().enumerate() {
        let between = if index == 0 { '?' } else { '&' };
        path.push_str(&format!("{between}{}={}", escaped(&parameter.0), escaped(&parameter.1)));
    }
    Ok(Asking { path, headers: exact(&one.headers, "header field")?, method })
}

/// Names with the values that they must have.
fn exact(wanted: &[ValueMatch], what: &str) -> Result<Vec<(String, String)>, String> {
    let pair = |one: &ValueMatch| match one.kind.as_str() {
        "" | "Exact" => Ok((one.name.clone(), one.value.clone())),
        kind => Err(cannot_be(kind, &format!("{what} {}", one.name), &one.value)),
    };
    wanted.iter().map(pair).collect()
}

fn cannot_be(kind: &str, what: &str, value: &str) -> String {
    format!("no request is made to fit the {kind} {value:?} of its {what}: try one that fits with --url")
}

/// For a query (RFC 3986, 3.4): what has a meaning there stands as its number.
fn escaped(text: &str) -> String {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte);
    text.bytes()
        .map(|byte| if is_plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") })
        .collect()
}
