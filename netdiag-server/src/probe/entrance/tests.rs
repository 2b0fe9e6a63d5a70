use netdiag_common::observation::series::Probe;
use netdiag_common::{Gap, GapReason};
use serde_json::{Value, json};

use super::*;
use crate::evidence::parse;

mod grants;
mod routes;

fn service() -> Value {
    json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "web", "namespace": "shop"},
        "spec": {"clusterIP": "10.96.0.80", "ports": [{"name": "http", "port": 80, "protocol": "TCP"}]}})
}

fn found(objects: &[Value], is_v4: bool) -> Entrances {
    let mut cluster = Cluster::default();
    for object in std::iter::once(&service()).chain(objects) {
        parse::add(&mut cluster, object.clone()).expect("an object");
    }
    find_in(&cluster, is_v4)
}

fn find_in(cluster: &Cluster, is_v4: bool) -> Entrances {
    let service = cluster.services.get("shop", "web").expect("the Service").clone();
    let request = ProbeRequest::new(Kind::Ladder, "pod/shop/client", "service/shop/web:80");
    let wanted = Wanted { request: &request, is_v4, names_too: is_v4 };
    find(cluster, &service, &service.spec.ports[0], wanted)
}

/// `HOST: TARGET`, and `HOST: not tried: WHY`.
fn told(found: &Entrances) -> Vec<String> {
    let mut lines = Vec::new();
    for host in &found.hosts {
        lines.extend(host.ways.iter().map(|way| format!("{}: {}", host.name, way.shot.to)));
        lines.extend(host.untried.iter().map(|why| format!("{}: not tried: {why}", host.name)));
    }
    lines
}

/// Header fields, method and SNI of the only way.
fn sent(found: &Entrances) -> (Vec<(String, String)>, String, Option<String>) {
    let ways: Vec<&Way> = found.hosts.iter().flat_map(|host| &host.ways).collect();
    let [way] = ways.as_slice() else { panic!("not one way: {ways:?}") };
    let Probe::Http(probe) = &way.shot.probe else { panic!("no HTTP: {way:?}") };
    (probe.headers.clone(), probe.method.clone(), probe.tls.server_name.clone())
}

fn to_web(path: &str, kind: &str) -> Value {
    json!({"path": path, "pathType": kind, "backend": {"service": {"name": "web", "port": {"number": 80}}}})
}

fn ingress(rules: Value, tls: Value, addresses: Value) -> Value {
    json!({"apiVersion": "networking.k8s.io/v1", "kind": "Ingress", "metadata": {"name": "web", "namespace": "shop"},
        "spec": {"rules": rules, "tls": tls}, "status": {"loadBalancer": {"ingress": addresses}}})
}

fn rule(host: &str, paths: &[Value]) -> Value {
    json!({"host": host, "http": {"paths": paths}})
}

fn of_rule(host: &str, paths: &[Value]) -> Vec<String> {
    told(&found(&[ingress(json!([rule(host, paths)]), Value::Null, json!([{"ip": "203.0.113.5"}]))], true))
}

#[test]
fn each_type_of_path_is_asked_by_a_path_that_it_takes() {
    assert_eq!(
        of_rule("shop.example", &[to_web("/a/b", "Exact")]),
        ["shop.example: http://shop.example/a/b at 203.0.113.5:80"]
    );
    assert_eq!(
        of_rule("shop.example", &[to_web("/a", "Prefix")]),
        ["shop.example: http://shop.example/a at 203.0.113.5:80"]
    );
    assert_eq!(
        of_rule("shop.example", &[to_web("/*", "ImplementationSpecific")]),
        ["shop.example: http://shop.example/ at 203.0.113.5:80"]
    );
    let regular = of_rule("shop.example", &[to_web("/a(/|$)(.*)", "ImplementationSpecific")]);
    assert!(regular[0].starts_with("shop.example: not tried: Ingress shop/web: what its path"), "{regular:?}");
}

#[test]
fn an_exact_path_that_leads_elsewhere_is_not_asked_for() {
    let mut other = to_web("/", "Exact");
    other["backend"]["service"]["name"] = json!("front");
    assert_eq!(
        of_rule("shop.example", &[other, to_web("/", "Prefix")]),
        ["shop.example: http://shop.example/netdiag at 203.0.113.5:80"]
    );
}

#[test]
fn what_leads_to_another_port_or_service_is_none_of_ours() {
    let mut port = to_web("/", "Prefix");
    port["backend"]["service"]["port"] = json!({"number": 81});
    let mut name = to_web("/", "Prefix");
    name["backend"]["service"]["port"] = json!({"name": "http"});
    assert_eq!(of_rule("shop.example", &[port]), Vec::<String>::new());
    assert_eq!(of_rule("shop.example", &[name]).len(), 1, "a port's name is as good as its number");
}

#[test]
fn a_host_with_a_certificate_is_asked_by_tls_and_a_wildcard_by_some_host() {
    let rules = json!([rule("*.shop.example", &[to_web("/", "Prefix")])]);
    let tls = json!([{"hosts": ["*.shop.example"], "secretName": "web-tls"}]);
    let found = found(&[ingress(rules, tls, json!([{"ip": "203.0.113.5"}, {"ip": "2001:db8::5"}]))], true);
    assert_eq!(told(&found), ["*.shop.example: https://netdiag.shop.example/ at 203.0.113.5:443"]);
    assert_eq!(sent(&found).2.as_deref(), Some("netdiag.shop.example"));
    let secret = SecretName { namespace: "shop".to_owned(), name: "web-tls".to_owned() };
    assert_eq!(found.hosts[0].ways[0].secrets, [secret]);
}

#[test]
fn a_balancer_that_is_a_name_is_asked_under_the_hosts_name() {
    let rules = json!([rule("shop.example", &[to_web("/", "Prefix")])]);
    let object = ingress(rules, json!([{"secretName": "web-tls"}]), json!([{"hostname": "lb.cloud.example"}]));
    let by_name = found(std::slice::from_ref(&object), true);
    assert_eq!(told(&by_name), ["shop.example: https://shop.example/ at lb.cloud.example"]);
    let host = ("Host".to_owned(), "shop.example".to_owned());
    assert_eq!(sent(&by_name), (vec![host], "GET".to_owned(), Some("shop.example".to_owned())));
    let other = told(&found(&[object], false));
    assert!(other[0].ends_with("its status has no IPv6 address"), "{other:?}");
}

#[test]
fn an_ingress_without_an_address_and_a_kind_that_is_dark_are_told() {
    let rules = json!([rule("shop.example", &[to_web("/", "Prefix")])]);
    let lines = told(&found(&[ingress(rules, Value::Null, Value::Null)], true));
    assert!(lines[0].contains("its status has no address"), "{lines:?}");
    let mut cluster = Cluster::default();
    parse::add(&mut cluster, service()).expect("the Service");
    assert!(find_in(&cluster, true).gaps.is_empty(), "a cluster without the Gateway API lacks nothing");
    let gap = Gap {
        what: "ingresses.networking.k8s.io of the cluster".to_owned(),
        node: None,
        reason: GapReason::Rights,
        why: "forbidden".to_owned(),
        remedy: "allow it".to_owned(),
    };
    cluster.ingresses.set_gap(Some(gap.clone()));
    assert_eq!(find_in(&cluster, true).gaps, [gap]);
}

#[test]
fn no_more_hosts_and_ways_than_are_worth_a_climb() {
    let rules: Vec<Value> = (0..9).map(|n| rule(&format!("h{n}.example"), &[to_web("/", "Prefix")])).collect();
    let many = found(&[ingress(json!(rules), Value::Null, json!([{"ip": "203.0.113.5"}]))], true);
    assert_eq!(many.hosts.iter().filter(|host| !host.ways.is_empty()).count(), MAX_HOSTS);
    assert_eq!(told(&many).last().map(String::as_str), Some("h6.example and 2 more: not tried: 6 hosts are tried"));
    let paths: Vec<Value> = (0..6).map(|n| to_web(&format!("/{n}"), "Exact")).collect();
    let lines = of_rule("shop.example", &paths);
    assert_eq!((lines.len(), lines[4].as_str()), (5, "shop.example: not tried: 2 more ways: 4 to one host are tried"));
}

fn gateway(listeners: Value) -> Value {
    json!({"apiVersion": "gateway.networking.k8s.io/v1", "kind": "Gateway", "metadata": {"name": "gw", "namespace": "infra"},
        "spec": {"gatewayClassName": "any", "listeners": listeners},
        "status": {"addresses": [{"type": "IPAddress", "value": "203.0.113.7"}]}})
}

fn listener(name: &str, port: u16, protocol: &str, host: &str, from: &str) -> Value {
    let mut listener =
        json!({"name": name, "port": port, "protocol": protocol, "allowedRoutes": {"namespaces": {"from": from}}});
    if !host.is_empty() {
        listener["hostname"] = json!(host);
    }
    listener
}

fn route(hosts: &[&str], section: &str, matches: Value) -> Value {
    json!({"apiVersion": "gateway.networking.k8s.io/v1", "kind": "HTTPRoute", "metadata": {"name": "web", "namespace": "shop"},
        "spec": {"hostnames": hosts, "parentRefs": [{"namespace": "infra", "name": "gw", "sectionName": section}],
            "rules": [{"matches": matches, "backendRefs": [{"name": "web", "port": 80}]}]}})
}

#[test]
fn a_route_is_asked_at_the_listeners_that_take_it() {
    let listeners = json!([
        listener("plain", 8080, "HTTP", "", "All"),
        listener("tls", 443, "HTTPS", "*.example", "All"),
        listener("own", 80, "HTTP", "", "Same"),
        listener("raw", 9000, "TCP", "", "All"),
    ]);
    let lines = told(&found(&[gateway(listeners.clone()), route(&["shop.example"], "", Value::Null)], true));
    assert_eq!(
        lines,
        [
            "shop.example: http://shop.example:8080/ at 203.0.113.7:8080",
            "shop.example: https://shop.example/ at 203.0.113.7:443"
        ]
    );
    let lines = told(&found(&[gateway(listeners.clone()), route(&["shop.other"], "tls", Value::Null)], true));
    assert!(lines[0].contains("none of its listeners for HTTP takes the route"), "{lines:?}");
    let lines = told(&found(&[gateway(listeners), route(&[], "tls", Value::Null)], true));
    assert_eq!(lines, ["*.example: https://netdiag.example/ at 203.0.113.7:443"]);
}

#[test]
fn what_a_match_wants_is_sent_and_what_nothing_can_fit_is_told() {
    let listeners = json!([listener("plain", 80, "HTTP", "", "All")]);
    let of = |matches: Value| found(&[gateway(listeners.clone()), route(&["shop.example"], "", matches)], true);
    let all = of(json!([{"path": {"type": "PathPrefix", "value": "/a"}, "method": "HEAD",
        "headers": [{"type": "Exact", "name": "X-Group", "value": "b"}], "queryParams": [{"name": "q", "value": "a&b"}]}]));
    assert_eq!(told(&all), ["shop.example: http://shop.example/a?q=a%26b at 203.0.113.7:80"]);
    assert_eq!(sent(&all).0, [("X-Group".to_owned(), "b".to_owned())]);
    assert_eq!(sent(&all).1, "HEAD");
    let regular = json!({"path": {"type": "RegularExpression", "value": "/a+"}});
    let second = of(json!([regular, {"path": {"type": "Exact", "value": "/b"}}]));
    assert_eq!(told(&second), ["shop.example: http://shop.example/b at 203.0.113.7:80"], "any of them will do");
    let lines = told(&of(json!([regular])));
    assert!(lines[0].contains("no request is made to fit the RegularExpression \"/a+\" of its path"), "{lines:?}");
    let lines = told(&of(json!([{"method": "POST"}])));
    assert!(lines[0].contains("a probe changes nothing"), "{lines:?}");
}

#[test]
fn what_the_controller_says_against_a_route_stands_beside_it() {
    let mut refused = route(&["shop.example"], "", Value::Null);
    refused["status"] = json!({"parents": [{"parentRef": {"name": "gw"},
        "conditions": [{"type": "Accepted", "status": "False", "reason": "NotAllowedByListeners"}]}]});
    let beside = found(&[gateway(json!([listener("plain", 80, "HTTP", "", "All")])), refused.clone()], true);
    assert_eq!(
        beside.hosts[0].ways[0].object,
        "HTTPRoute shop/web at Gateway infra/gw (not Accepted: NotAllowedByListeners)"
    );
    let lines = told(&found(&[refused], true));
    assert!(lines[0].ends_with("there is no such Gateway"), "{lines:?}");
}
