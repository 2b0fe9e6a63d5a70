//! Who listens where load balancers ask for a node's endpoints.

use serde_json::{Value, json};

use super::tests::{drift_in, objects, proxy, readings, rules};
use super::tests_of_node_ports::{LONG_AGO, ROUTES};
use super::tests_of_pods::seen;
use super::*;

fn drift_with(listeners: Option<&Value>) -> NodeDrift {
    drift_beside("nftables", &proxy(), listeners)
}

/// Behind a load balancer that asks each node for its endpoints.
fn drift_beside(proxier: &str, proxy: &Value, listeners: Option<&Value>) -> NodeDrift {
    let mut objects = objects(LONG_AGO);
    objects.push(json!({"kind": "Service", "apiVersion": "v1", "metadata": {"name": "edge", "namespace": "shop"},
                        "spec": {"type": "LoadBalancer", "clusterIP": "10.96.0.11", "externalTrafficPolicy": "Local",
                                 "healthCheckNodePort": 32100, "ports": [{"name": "http", "port": 80}]}}));
    let mut rules = rules();
    rules["proxier"] = json!(proxier);
    let edge = json!({"address": "10.96.0.11", "protocol": "tcp", "port": 80, "service": "shop/edge:http",
                      "action": "reject"});
    rules["entries"].as_array_mut().expect("a list").push(edge);
    let mut readings = readings(proxy, &rules, &ROUTES);
    if let Some(listeners) = listeners {
        readings.insert(Need::host("n1", Topic::Listeners), seen("listeners", listeners));
    }
    drift_in(objects, &readings)
}

fn listener(protocol: &str, port: u16, pid: u32, name: &str) -> Value {
    json!({"protocol": protocol, "address": "::", "port": port, "process": {"pid": pid, "name": name}})
}

#[test]
fn kube_proxy_listens_where_load_balancers_ask() {
    let healthy = listener("tcp", 10_256, 7, "kube-proxy");
    // A part of another process, as in k3s.
    let part = json!([listener("tcp", 10_256, 7, "k3s-server"), listener("tcp", 32_100, 7, "k3s-server")]);
    for listeners in [json!([healthy, listener("tcp", 32_100, 7, "kube-proxy")]), part] {
        let drift = drift_with(Some(&listeners));
        assert_eq!((drift.differences, drift.gaps), (Vec::new(), Vec::new()));
    }
    for (other, words) in [
        (listener("udp", 32_100, 7, "kube-proxy"), "nobody listens there"),
        (listener("tcp", 32_100, 9, "nginx"), "nginx (pid 9) listens there"),
    ] {
        let drift = drift_with(Some(&json!([healthy, other])));
        let found: Vec<_> = drift.differences.iter().map(|found| (found.kind, found.found.as_str())).collect();
        assert_eq!((found, drift.gaps), (vec![(Kind::HealthPort, words)], Vec::new()));
        assert_eq!(drift.differences[0].service, "shop/edge");
        assert!(drift.differences[0].expected.contains("32100/tcp"));
    }
}

#[test]
fn who_listens_on_a_health_check_port_may_not_be_known() {
    let mut unknown = listener("tcp", 32_100, 7, "kube-proxy");
    unknown["process"] = Value::Null;
    // Nothing shows which process kube-proxy is.
    let alone = listener("tcp", 32_100, 9, "proxy");
    for listeners in [Some(json!([unknown])), Some(json!([alone])), None] {
        let drift = drift_with(listeners.as_ref());
        assert_eq!(drift.differences, []);
        assert_eq!(drift.gaps.len(), 1, "{:?}", drift.gaps);
        assert_eq!(drift.gaps[0].what, "health check ports of Services");
    }
}

#[test]
fn kube_proxy_listens_nowhere_where_it_is_told_no_address_of_the_node() {
    let others = json!([listener("tcp", 10_256, 7, "kube-proxy")]);
    let said = |proxier: &str, settings: &Value| {
        let proxy = json!({"running": true, "settings": settings});
        let drift = drift_beside(proxier, &proxy, Some(&others));
        let is_said = drift.differences.iter().any(|found| found.kind == Kind::HealthPort);
        let gap = drift.gaps.into_iter().find(|gap| gap.what == "health check ports of Services");
        (is_said, gap.map(|gap| gap.why).unwrap_or_default())
    };
    for proxier in ["nftables", "iptables_nft", "ipvs"] {
        let elsewhere = json!({"node_port_addresses": ["203.0.113.0/24"]});
        assert_eq!(said(proxier, &elsewhere), (false, String::new()), "{proxier}");
        // Networks of IPv6 alone leave all addresses to IPv4.
        for addresses in [json!([]), json!(["172.30.0.0/16", "203.0.113.0/24"]), json!(["fd00::/8"])] {
            let settings = json!({"node_port_addresses": addresses});
            assert_eq!(said(proxier, &settings), (true, String::new()), "{proxier} {addresses}");
        }
        let (is_said, why) = said(proxier, &Value::Null);
        assert!(!is_said && why.contains("kube-proxy does not tell its settings"), "{proxier} {why}");
        // The primary address, which nftables mode takes by itself, is on no device.
        let bound = json!({"bind_address": "203.0.113.7"});
        assert_eq!(said(proxier, &bound), (proxier != "nftables", String::new()), "{proxier}");
    }
}
