//! Which endpoints topology hints leave for a node, beside its rules.

use serde_json::{Value, json};

use super::tests::{drift_in, to};
use super::tests_of_pods::seen;
use super::*;

/// One on this node, meant for these zones and nodes.
fn endpoint(address: &str, node: &str, zones: &[&str], nodes: &[&str]) -> Value {
    let list = |names: &[&str]| names.iter().map(|name| json!({"name": name})).collect::<Vec<_>>();
    json!({"addresses": [address], "nodeName": node, "conditions": {"ready": true},
           "hints": {"forZones": list(zones), "forNodes": list(nodes)}})
}

/// Node n1 of a zone, and a Service.
struct World {
    /// Empty for none.
    zone: &'static str,
    policy: &'static str,
    endpoints: Vec<Value>,
}

impl World {
    fn of(zone: &'static str, endpoints: Vec<Value>) -> Self {
        Self { zone, policy: "Cluster", endpoints }
    }

    /// The rules of n1 lead there.
    fn drift(&self, have: &[&str]) -> NodeDrift {
        let labels = if self.zone.is_empty() { json!({}) } else { json!({"topology.kubernetes.io/zone": self.zone}) };
        let objects = vec![
            json!({"kind": "Node", "apiVersion": "v1", "metadata": {"name": "n1", "labels": labels}}),
            json!({"kind": "Service", "apiVersion": "v1", "metadata": {"name": "web", "namespace": "shop"},
                   "spec": {"clusterIP": "10.96.0.7", "internalTrafficPolicy": self.policy,
                            "ports": [{"name": "http", "port": 80}]}}),
            json!({"kind": "EndpointSlice", "apiVersion": "discovery.k8s.io/v1", "addressType": "IPv4",
                   "metadata": {"name": "web-1", "namespace": "shop", "creationTimestamp": "2026-01-01T10:00:00Z",
                                "labels": {"kubernetes.io/service-name": "web"}},
                   "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}], "endpoints": self.endpoints}),
        ];
        let rules = json!({
            "proxier": "nftables", "hooked": true, "others": [], "masquerades": true, "node_ports": [],
            "entries": [{"address": "10.96.0.7", "protocol": "tcp", "port": 80, "service": "shop/web:http",
                         "action": to(have), "terms": {"sticky": false}}],
        });
        let readings = Readings::from([(Need::host("n1", Topic::ServiceRules), seen("service_rules", &rules))]);
        drift_in(objects, &readings)
    }

    fn leads_right(&self, have: &[&str]) {
        let drift = self.drift(have);
        assert_eq!((drift.differences, drift.compared), (Vec::new(), 1), "{have:?}");
        assert!(!drift.gaps.iter().any(|gap| gap.what == "rules of single Services"), "{have:?}: {:?}", drift.gaps);
    }

    fn leads_elsewhere(&self, have: &[&str], expected: &str) {
        let drift = self.drift(have);
        let found: Vec<_> = drift.differences.iter().map(|found| (found.kind, found.expected.as_str())).collect();
        assert_eq!(found, [(Kind::Endpoints, expected)], "{have:?}");
    }
}

const OWN: &str = "10.244.1.2";
const NEAR: &str = "10.244.2.2";
const FAR: &str = "10.244.3.2";

#[test]
fn rules_lead_to_the_endpoints_for_the_nodes_zone() {
    let endpoints = || vec![endpoint(OWN, "n1", &["a"], &[]), endpoint(FAR, "n3", &["b"], &[])];
    let zone_a = World::of("a", endpoints());
    zone_a.leads_right(&[OWN]);
    zone_a.leads_elsewhere(&[OWN, FAR], "10.244.1.2:8080");
    zone_a.leads_elsewhere(&[FAR], "10.244.1.2:8080");
    let zone_b = World::of("b", endpoints());
    zone_b.leads_right(&[FAR]);
    zone_b.leads_elsewhere(&[OWN], "10.244.3.2:8080");
}

#[test]
fn hints_are_not_heeded_where_none_is_for_the_node_or_one_endpoint_has_none() {
    let mut endpoints = vec![endpoint(OWN, "n1", &["a"], &[]), endpoint(FAR, "n3", &["b"], &[])];
    for zone in ["", "c"] {
        let world = World::of(zone, endpoints.clone());
        world.leads_right(&[OWN, FAR]);
        world.leads_elsewhere(&[OWN], "10.244.1.2:8080, 10.244.3.2:8080");
    }
    endpoints[1]["hints"] = Value::Null;
    World::of("a", endpoints.clone()).leads_right(&[OWN, FAR]);
    // One that is not ready needs none.
    endpoints[1]["conditions"] = json!({"ready": false});
    World::of("a", endpoints).leads_right(&[OWN]);
}

#[test]
fn hints_for_the_node_come_before_those_for_its_zone() {
    let endpoints = vec![
        endpoint(OWN, "n1", &["a"], &["n1"]),
        endpoint(NEAR, "n2", &["a"], &["n2"]),
        endpoint(FAR, "n3", &["b"], &["n3"]),
    ];
    let world = World::of("a", endpoints);
    world.leads_right(&[OWN]);
    world.leads_elsewhere(&[OWN, NEAR, FAR], "10.244.1.2:8080");
    let older = world.drift(&[OWN, NEAR]);
    assert_eq!(older.differences, []);
    assert!(older.gaps.iter().any(|gap| gap.why.contains("they ignore the endpoints' hints")), "{:?}", older.gaps);
}

#[test]
fn zones_count_where_no_endpoint_is_meant_for_the_node() {
    let endpoints = vec![endpoint(NEAR, "n2", &["a"], &["n2"]), endpoint(FAR, "n3", &["b"], &["n3"])];
    let world = World::of("a", endpoints);
    world.leads_right(&[NEAR]);
    world.leads_elsewhere(&[NEAR, FAR], "10.244.2.2:8080");
}

#[test]
fn a_local_policy_heeds_no_hints() {
    let endpoints = vec![endpoint(OWN, "n1", &["b"], &[]), endpoint(NEAR, "n2", &["a"], &[])];
    let local = World { policy: "Local", ..World::of("a", endpoints.clone()) };
    local.leads_right(&[OWN]);
    local.leads_elsewhere(&[NEAR], "10.244.1.2:8080");
    World::of("a", endpoints).leads_right(&[NEAR]);
}

#[test]
fn endpoints_that_still_serve_while_they_end_count_whatever_their_hints() {
    let mut endpoints = vec![endpoint(OWN, "n1", &["a"], &[]), endpoint(FAR, "n3", &["b"], &[])];
    for endpoint in &mut endpoints {
        endpoint["conditions"] = json!({"ready": false, "serving": true, "terminating": true});
    }
    let world = World::of("a", endpoints);
    world.leads_right(&[OWN, FAR]);
    world.leads_elsewhere(&[OWN], "10.244.1.2:8080, 10.244.3.2:8080");
}
