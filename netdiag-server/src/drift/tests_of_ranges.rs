//! Ranges of pods, Services and nodes' networks beside each other.

use serde_json::{Value, json};

use super::tests::{drift_in, objects, proxy, readings, rules};
use super::tests_of_node_ports::{LONG_AGO, ROUTES};
use super::*;
use crate::answer::drift::{DriftStatus, build};

fn range(net: &str) -> Value {
    json!({"kind": "ServiceCIDR", "metadata": {"name": "kubernetes"}, "spec": {"cidrs": [net]}})
}

/// What n1 is told with these objects besides, and a network of its own on this kind of device.
fn found(more: Vec<Value>, network: Option<(&str, &str)>) -> Vec<String> {
    found_with(&ROUTES, more, network)
}

fn found_with(routes: &[&str], more: Vec<Value>, network: Option<(&str, &str)>) -> Vec<String> {
    let mut all = objects(LONG_AGO);
    all.extend(more);
    let mut readings = readings(&proxy(), &rules(), routes);
    let of_n1 = readings.get_mut(&Need::host("n1", Topic::Network));
    if let (Some((net, kind)), Some(Reading::Seen { value: Observation::Network(host), .. })) = (network, of_n1) {
        let link = json!({"index": 9, "name": "own0", "kind": kind, "mtu": 1500, "up": true, "carrier": true});
        let route = json!({"destination": net, "kind": "unicast", "link_index": 9, "table": 254, "protocol": "kernel"});
        host.links.push(serde_json::from_value(link).expect("a link"));
        host.routes.push(serde_json::from_value(route).expect("a route"));
    }
    let drift = drift_in(all, &readings);
    assert_eq!(drift.gaps, []);
    assert!(drift.differences.iter().all(|found| found.kind == Kind::Overlap), "{:?}", drift.differences);
    drift.differences.into_iter().map(|found| format!("{} ({})", found.found, found.rule)).collect()
}

#[test]
fn ranges_that_share_no_address_are_no_drift() {
    assert_eq!(found(vec![range("10.96.0.0/16")], Some(("192.168.7.0/24", ""))), Vec::<String>::new());
}

#[test]
fn services_with_addresses_of_pods_or_of_nodes_are_named() {
    assert_eq!(
        found(vec![range("10.244.0.0/16")], None),
        ["the node's pods have 10.244.1.0/24, and Services 10.244.0.0/16 (ServiceCIDR kubernetes)"]
    );
    assert_eq!(
        found(vec![range("172.30.0.8/29")], None),
        ["the node has 172.30.0.11, and Services 172.30.0.8/29 (ServiceCIDR kubernetes)"]
    );
    assert_eq!(
        found(vec![range("10.96.0.0/16")], Some(("10.96.4.0/24", "bridge"))),
        ["the node is in the network 10.96.4.0/24 dev own0, and Services have 10.96.0.0/16 (ServiceCIDR kubernetes)"]
    );
}

#[test]
fn networks_of_a_node_that_take_pods_of_another_are_named() {
    let taken = "the node is in the network 10.244.2.0/25 dev own0, and pods of node n2 have 10.244.2.0/24";
    assert_eq!(found(vec![], Some(("10.244.2.0/25", "veth"))), [format!("{taken} (routing table main)")]);
    // The route to n2's pods is longer, a tunnel may have addresses of them, and a network may be the nodes' and the pods'.
    for (net, kind) in [("10.244.0.0/16", "bridge"), ("10.244.2.0/25", "vxlan")] {
        assert_eq!(found(vec![], Some((net, kind))), Vec::<String>::new(), "{net} {kind}");
    }
    let shared = json!({"kind": "Node", "metadata": {"name": "n3"},
                        "status": {"addresses": [{"type": "InternalIP", "address": "10.244.2.7"}]}});
    assert_eq!(found(vec![shared], Some(("10.244.2.0/25", "veth"))), Vec::<String>::new());
}

#[test]
fn one_network_of_the_pods_of_all_nodes_takes_none_of_them() {
    let network = Some(("10.244.0.0/16", "bridge"));
    assert_eq!(found_with(&[], vec![], network), Vec::<String>::new());
    assert_eq!(
        found_with(&[], vec![range("10.244.128.0/20")], network),
        [
            "the node is in the network 10.244.0.0/16 dev own0, and Services have 10.244.128.0/20 (ServiceCIDR kubernetes)"
        ]
    );
}

#[test]
fn nodes_with_one_range_for_their_pods_are_named() {
    let n3 = json!({"kind": "Node", "metadata": {"name": "n3"}, "spec": {"podCIDRs": ["10.244.1.0/24"]}});
    assert_eq!(
        found(vec![n3], Some(("10.244.1.0/24", "bridge"))),
        ["the node's pods have 10.244.1.0/24, and those of node n3 10.244.1.0/24 (spec.podCIDRs of both Nodes)"]
    );
}

#[test]
fn ranges_of_services_that_the_api_does_not_tell_are_those_of_the_rules_or_a_gap() {
    let drift_with = |rules_of_n1: Option<Value>, more: Vec<Value>| {
        let mut cluster = Cluster::default();
        for object in objects(LONG_AGO).into_iter().chain(more) {
            crate::evidence::parse::add(&mut cluster, object).expect("an object");
        }
        let gap = Cluster::forbidden("servicecidrs.networking.k8s.io", "403".to_owned());
        cluster.service_cidrs.set_gap(Some(gap));
        let mut readings = readings(&proxy(), &rules(), &ROUTES);
        if let Some(rules) = rules_of_n1 {
            let value = serde_json::from_value(json!({"topic": "rules", "value": rules})).expect("an observation");
            let at = "2026-01-01T12:00:00Z".parse().expect("a time");
            readings.insert(Need::host("n1", Topic::Rules), Reading::Seen { value, at });
        }
        let now = "2026-01-01T12:00:01Z".parse().expect("a time");
        compare(Arc::new(cluster), &["n1".to_owned()], &readings, now)
    };
    let drift = |rules_of_n1: Option<Value>| drift_with(rules_of_n1, vec![]).nodes.remove(0);
    let untold = drift_with(None, vec![]);
    let (of_node, of_cluster) = (&untold.nodes[0].gaps, &untold.nodes[0].cluster_gaps);
    assert_eq!((of_node.len(), of_cluster.first().map(|gap| gap.reason)), (0, Some(GapReason::Rights)));
    let answer = build(&untold, "2026-01-01T12:00:01Z".parse().expect("a time"));
    assert_eq!((answer.status, answer.not_seen.len()), (DriftStatus::Same, 1), "the nodes are as they should be");

    // Only a static pod is the API server, and the controller manager has the flag as well.
    let pod = |container: &str, owner: &str| {
        let range = "--service-cluster-ip-range=10.244.0.0/16,fd00:10:96::/112";
        json!({"kind": "Pod", "metadata": {"name": "kube-apiserver-n1", "namespace": "kube-system",
                   "ownerReferences": [{"kind": owner, "name": "n1", "controller": true}]},
               "spec": {"nodeName": "n1", "hostNetwork": true,
                        "containers": [{"name": container, "command": ["kube-apiserver", "--v=2", range]}]}})
    };
    let started_with = drift_with(None, vec![pod("kube-apiserver", "Node")]).nodes.remove(0);
    assert_eq!((started_with.gaps, started_with.cluster_gaps), (vec![], vec![]));
    let place = "--service-cluster-ip-range of Pod kube-system/kube-apiserver-n1";
    assert_eq!(started_with.differences[0].found, "the node's pods have 10.244.1.0/24, and Services 10.244.0.0/16");
    assert_eq!(started_with.differences[0].rule, place);
    for other in [pod("kube-controller-manager", "Node"), pod("kube-apiserver", "ReplicaSet")] {
        assert_eq!(drift_with(None, vec![other]).nodes[0].cluster_gaps.len(), 1);
    }

    let net = json!({"on": "destination", "nets": ["10.244.0.0/16"], "negated": false});
    let dropping = json!({"handle": 2, "matches": [net], "verdict": {"do": "drop"}, "text": "drop"});
    let to_check = json!({"do": "jump", "chain": "cluster-ips-check"});
    let jump = json!({"handle": 1, "matches": [], "verdict": to_check, "text": "jump"});
    let base = json!({"hook": "forward", "priority": -110, "kind": "filter", "policy": {"do": "accept"}});
    let told = drift(Some(json!({"tables": [{"backend": "nftables", "family": "ip", "name": "kube-proxy", "chains": [
        {"name": "filter-forward", "base": base, "rules": [jump]},
        {"name": "cluster-ips-check", "rules": [dropping]},
    ]}]})));
    assert_eq!((told.gaps, told.cluster_gaps), (vec![], vec![]));
    assert_eq!(told.differences[0].found, "the node's pods have 10.244.1.0/24, and Services 10.244.0.0/16");
}
