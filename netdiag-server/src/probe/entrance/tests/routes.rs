//! GRPCRoutes and TLSRoutes.

use super::*;

fn of_kind(kind: &str, hosts: &[&str], rules: Value) -> Value {
    json!({"apiVersion": "gateway.networking.k8s.io/v1", "kind": kind, "metadata": {"name": "web", "namespace": "shop"},
        "spec": {"hostnames": hosts, "parentRefs": [{"namespace": "infra", "name": "gw"}], "rules": rules}})
}

fn to(name: &str) -> Value {
    json!([{"name": name, "port": 80}])
}

fn by_grpc(matches: Value) -> Entrances {
    let listeners = json!([listener("plain", 80, "HTTP", "", "All")]);
    let rules = json!([{"matches": matches, "backendRefs": to("web")}]);
    found(&[gateway(listeners), of_kind("GRPCRoute", &["shop.example"], rules)], true)
}

const CHECKED: &str = "shop.example: http://shop.example/grpc.health.v1.Health/Check at 203.0.113.7:80";

#[test]
fn a_grpc_server_is_asked_how_it_is_and_nothing_else() {
    for matches in [
        Value::Null,
        json!([{"method": {"service": "grpc.health.v1.Health"}}]),
        json!([{"method": {"type": "Exact", "method": "Check"}}]),
        json!([{"method": {"service": "shop.Cart"}}, {"method": {"service": "grpc.health.v1.Health", "method": "Check"}}]),
    ] {
        let found = by_grpc(matches.clone());
        assert_eq!(told(&found), [CHECKED], "{matches}");
        let Probe::Http(probe) = &found.hosts[0].ways[0].shot.probe else { panic!("no HTTP: {found:?}") };
        assert_eq!(probe.grpc_health.as_deref(), Some(""));
    }
    let found = by_grpc(json!([{"headers": [{"name": "X-Group", "value": "b"}]}]));
    assert_eq!(sent(&found).0, [("X-Group".to_owned(), "b".to_owned())]);
    let lines = told(&by_grpc(json!([{"method": {"service": "shop.Cart"}}])));
    assert!(
        lines[0].ends_with(
            "it wants shop.Cart/*, and a probe calls grpc.health.v1.Health/Check alone, which changes nothing"
        )
    );
    let lines = told(&by_grpc(json!([{"method": {"type": "RegularExpression", "service": "shop.*"}}])));
    assert!(
        lines[0].contains("no request is made to fit the RegularExpression \"shop.*/*\" of its method"),
        "{lines:?}"
    );
}

#[test]
fn a_health_service_that_the_route_leads_elsewhere_says_nothing_of_this_one() {
    let listeners = json!([listener("plain", 80, "HTTP", "", "All")]);
    let of = |other: Value| {
        let rules = json!([{"matches": [other], "backendRefs": to("health")}, {"backendRefs": to("web")}]);
        told(&found(&[gateway(listeners.clone()), of_kind("GRPCRoute", &["shop.example"], rules)], true))
    };
    let lines = of(json!({"method": {"service": "grpc.health.v1.Health"}}));
    assert!(lines[0].ends_with("and the route leads that elsewhere"), "{lines:?}");
    assert_eq!(of(json!({"method": {"service": "shop.Cart"}})), [CHECKED]);
    let with_metadata =
        json!({"method": {"service": "grpc.health.v1.Health"}, "headers": [{"name": "a", "value": "b"}]});
    assert_eq!(of(with_metadata), [CHECKED], "what is not sent is not met");
}

fn by_tls(listener: Value, hosts: &[&str]) -> Entrances {
    let route = of_kind("TLSRoute", hosts, json!([{"backendRefs": to("web")}]));
    found(&[gateway(json!([listener])), route], true)
}

#[test]
fn a_tls_route_is_a_handshake_by_its_name_with_the_endpoints_own_certificate() {
    let mut passed_on = listener("tls", 8443, "TLS", "", "All");
    passed_on["tls"] = json!({"mode": "Passthrough", "certificateRefs": [{"name": "gw-tls"}]});
    let found = by_tls(passed_on, &["*.shop.example"]);
    assert_eq!(told(&found), ["*.shop.example: TLS for netdiag.shop.example at 203.0.113.7:8443"]);
    let way = &found.hosts[0].ways[0];
    let Probe::Tls(probe) = &way.shot.probe else { panic!("no TLS: {way:?}") };
    assert_eq!(probe.words.server_name.as_deref(), Some("netdiag.shop.example"));
    assert!(way.secrets.is_empty(), "{way:?}");
    assert_eq!(way.object, "TLSRoute shop/web at Gateway infra/gw");
    let mut ended = listener("tls", 443, "TLS", "db.example", "All");
    ended["tls"] = json!({"certificateRefs": [{"name": "gw-tls"}]});
    let found = by_tls(ended, &["db.example"]);
    let secret = SecretName { namespace: "infra".to_owned(), name: "gw-tls".to_owned() };
    assert_eq!(found.hosts[0].ways[0].secrets, [secret], "a listener that ends TLS has a certificate of its own");
    let lines = told(&by_tls(listener("https", 443, "HTTPS", "", "All"), &["db.example"]));
    assert!(lines[0].contains("none of its listeners for TLS takes the route"), "{lines:?}");
}

#[test]
fn a_handshake_at_a_name_is_told_as_the_command_that_tries_it() {
    let mut gateway = gateway(json!([listener("tls", 443, "TLS", "", "All")]));
    gateway["status"] = json!({"addresses": [{"type": "Hostname", "value": "lb.cloud.example"}]});
    let route = of_kind("TLSRoute", &["db.example"], json!([{"backendRefs": to("web")}]));
    let lines = told(&found(&[gateway, route], true));
    assert!(
        lines[0].ends_with("try `netdiag probe tls --to lb.cloud.example:443 --server-name db.example`"),
        "{lines:?}"
    );
}

#[test]
fn a_listener_takes_the_kinds_that_it_names() {
    let of = |kinds: Value| {
        let mut only = listener("plain", 80, "HTTP", "", "All");
        only["allowedRoutes"]["kinds"] = kinds;
        let route = of_kind("GRPCRoute", &["shop.example"], json!([{"backendRefs": to("web")}]));
        told(&found(&[gateway(json!([only])), route], true))
    };
    assert_eq!(
        of(json!([{"kind": "HTTPRoute"}, {"group": "gateway.networking.k8s.io", "kind": "GRPCRoute"}])),
        [CHECKED]
    );
    let lines = of(json!([{"kind": "HTTPRoute"}]));
    assert!(lines[0].contains("takes the route by name, port, namespace, kind and host"), "{lines:?}");
}
