//! References between namespaces.

use super::*;
use crate::evidence::object::GATEWAY_GROUP;

/// What the only rung is about: a route of `shop` or `front` by a listener with a certificate of `certs` or of its own.
fn object(of: &str, certificate_of: &str, grants: &[Value]) -> String {
    let mut https = listener("tls", 443, "HTTPS", "", "All");
    https["tls"] = json!({"certificateRefs": [{"namespace": certificate_of, "name": "web-tls"}]});
    let mut route = route(&["shop.example"], "", Value::Null);
    route["metadata"]["namespace"] = json!(of);
    route["spec"]["rules"][0]["backendRefs"][0]["namespace"] = json!("shop");
    let objects: Vec<Value> = [gateway(json!([https])), route].into_iter().chain(grants.iter().cloned()).collect();
    found(&objects, true).hosts[0].ways[0].object.clone()
}

fn grant(namespace: &str, from: Value, to: Value) -> Value {
    json!({"apiVersion": "gateway.networking.k8s.io/v1beta1", "kind": "ReferenceGrant",
        "metadata": {"name": "any", "namespace": namespace}, "spec": {"from": [from], "to": [to]}})
}

fn from(kind: &str, namespace: &str) -> Value {
    json!({"group": GATEWAY_GROUP, "kind": kind, "namespace": namespace})
}

fn to(kind: &str) -> Value {
    json!({"group": "", "kind": kind})
}

const AT: &str = "at Gateway infra/gw";
const NO_ROUTE: &str = "no ReferenceGrant in shop allows HTTPRoute of front to refer to Service web";
const NO_CERTIFICATE: &str = "no ReferenceGrant in certs allows Gateway of infra to refer to Secret web-tls";

#[test]
fn within_a_namespace_no_grant_is_needed() {
    assert_eq!(object("shop", "infra", &[]), format!("HTTPRoute shop/web {AT}"));
}

#[test]
fn a_route_and_a_certificate_of_another_namespace_need_one_each() {
    assert_eq!(object("front", "certs", &[]), format!("HTTPRoute front/web {AT} ({NO_ROUTE}; {NO_CERTIFICATE})"));
    let routes = grant("shop", from("HTTPRoute", "front"), to("Service"));
    assert_eq!(object("front", "certs", &[routes]), format!("HTTPRoute front/web {AT} ({NO_CERTIFICATE})"));
    let named = json!({"group": "", "kind": "Secret", "name": "web-tls"});
    let certificates = grant("certs", from("Gateway", "infra"), named);
    assert_eq!(object("front", "certs", &[certificates]), format!("HTTPRoute front/web {AT} ({NO_ROUTE})"));
}

#[test]
fn a_grant_for_something_else_allows_nothing() {
    let without = format!("HTTPRoute front/web {AT} ({NO_ROUTE})");
    let other_name = json!({"group": "", "kind": "Service", "name": "other"});
    for other in [
        grant("shop", from("HTTPRoute", "back"), to("Service")),
        grant("shop", from("GRPCRoute", "front"), to("Service")),
        grant("shop", from("HTTPRoute", "front"), to("Secret")),
        grant("shop", from("HTTPRoute", "front"), other_name),
        grant("front", from("HTTPRoute", "front"), to("Service")),
    ] {
        assert_eq!(object("front", "infra", std::slice::from_ref(&other)), without, "{other}");
    }
}

#[test]
fn grants_that_could_not_be_listed_are_a_gap_and_no_accusation() {
    let mut route = route(&["shop.example"], "", Value::Null);
    route["metadata"]["namespace"] = json!("front");
    route["spec"]["rules"][0]["backendRefs"][0]["namespace"] = json!("shop");
    let mut cluster = Cluster::default();
    for object in [service(), gateway(json!([listener("plain", 80, "HTTP", "", "All")])), route] {
        parse::add(&mut cluster, object).expect("an object");
    }
    let gap = Cluster::forbidden("referencegrants.gateway.networking.k8s.io", "forbidden".to_owned());
    cluster.reference_grants.set_gap(Some(gap.clone()));
    let found = find_in(&cluster, true);
    assert_eq!(found.hosts[0].ways[0].object, format!("HTTPRoute front/web {AT}"));
    assert_eq!(found.gaps, [gap]);
}
