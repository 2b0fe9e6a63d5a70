//! Who listens where load balancers ask for a node's endpoints.

use serde_json::{Value, json};

use super::tests::{drift_in, objects, proxy, readings, rules};
use super::tests_of_node_ports::{LONG_AGO, ROUTES};
use super::tests_of_pods::seen;
use super::*;

/// Behind a load balancer that asks each node for its endpoints.
fn drift_with(listeners: Option<&Value>) -> NodeDrift {
    let mut objects = objects(LONG_AGO);
    objects.push(json!({"kind": "Service", "apiVersion": "v1", "metadata": {"name": "edge", "namespace": "shop"},
                        "spec": {"type": "LoadBalancer", "clusterIP": "10.96.0.11", "externalTrafficPolicy": "Local",
                                 "healthCheckNodePort": 32100, "ports": [{"name": "http", "port": 80}]}}));
    let mut rules = rules();
    let edge = json!({"address": "10.96.0.11", "protocol": "tcp", "port": 80, "service": "shop/edge:http",
                      "action": "reject"});
    rules["entries"].as_array_mut().expect("a list").push(edge);
    let mut readings = readings(&proxy(), &rules, &ROUTES);
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
