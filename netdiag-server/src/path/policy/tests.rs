use serde_json::{Value, json};

use super::*;
use crate::evidence::parse;

/// Namespaces shop (team=shop) and pay (team=pay); pods shop/client (app=client), pay/client (app=client) and shop/web
/// (app=web, port http = 8080), and the given policies.
fn cluster(policies: &[Value]) -> Cluster {
    let pod = |namespace: &str, name: &str, ip: &str, node: &str| {
        let ports = json!([{"name": "http", "containerPort": 8080}]);
        json!({"kind": "Pod", "metadata": {"name": name, "namespace": namespace, "labels": {"app": name}},
            "spec": {"nodeName": node, "containers": [{"name": "c", "ports": ports}]},
            "status": {"phase": "Running", "podIP": ip}})
    };
    let mut all = vec![
        json!({"kind": "Namespace", "metadata": {"name": "shop", "labels": {"team": "shop"}}}),
        json!({"kind": "Namespace", "metadata": {"name": "pay", "labels": {"team": "pay"}}}),
        pod("shop", "client", "10.244.1.2", "n1"),
        pod("pay", "client", "10.244.1.9", "n1"),
        pod("shop", "web", "10.244.2.3", "n2"),
    ];
    for (number, spec) in policies.iter().enumerate() {
        let name = format!("p{number}");
        all.push(json!({"kind": "NetworkPolicy", "metadata": {"name": name, "namespace": "shop"}, "spec": spec}));
    }
    let mut cluster = Cluster::default();
    for object in all {
        parse::add(&mut cluster, object).expect("an object");
    }
    cluster
}

fn side<'c>(cluster: &'c Cluster, namespace: &str, name: &str) -> Side<'c> {
    let pod = cluster.pods.get(namespace, name).expect("a pod");
    Side { address: pod.addresses().next().expect("an address"), pod: Some(pod), node: &pod.spec.node_name }
}

fn flow<'c>(cluster: &'c Cluster, client: &str) -> Flow<'c> {
    let from = side(cluster, client, "client");
    let to = side(cluster, "shop", "web");
    Flow { from, to, protocol: Protocol::Tcp, port: 8080, service_port: Some(80) }
}

/// Whether shop/web lets the client of this namespace in at 8080/TCP.
fn allowed(spec: Value, client: &str) -> bool {
    let cluster = cluster(&[spec]);
    matches!(decide(&cluster, &flow(&cluster, client)), Decision::Allowed(_))
}

fn lack(spec: Value, client: &str) -> Option<(Lack, String)> {
    let cluster = cluster(&[spec]);
    match decide(&cluster, &flow(&cluster, client)) {
        Decision::Denied(mut denials) => denials.remove(0).near.map(|near| (near.lack, near.text)),
        other => panic!("not denied: {other:?}"),
    }
}

fn ingress(rules: Value) -> Value {
    json!({"podSelector": {"matchLabels": {"app": "web"}}, "policyTypes": ["Ingress"], "ingress": rules})
}

#[test]
fn a_policy_without_rules_denies_and_a_rule_without_words_allows() {
    assert!(!allowed(ingress(json!([])), "shop"));
    assert!(allowed(ingress(json!([{}])), "shop"));
    assert!(allowed(ingress(json!([{"from": [], "ports": []}])), "pay"));
}

#[test]
fn a_policy_of_other_pods_or_of_the_other_direction_isolates_nothing() {
    assert!(allowed(json!({"podSelector": {"matchLabels": {"app": "db"}}, "policyTypes": ["Ingress"]}), "shop"));
    assert!(allowed(json!({"podSelector": {"matchLabels": {"app": "web"}}, "policyTypes": ["Egress"]}), "shop"));
}

#[test]
fn policy_types_default_to_ingress_and_to_egress_only_with_egress_rules() {
    assert!(!allowed(json!({"podSelector": {"matchLabels": {"app": "web"}}}), "shop"));
    assert!(allowed(json!({"podSelector": {"matchLabels": {"app": "client"}}}), "shop"));
    let other_port = json!([{"ports": [{"port": 1}]}]);
    assert!(!allowed(json!({"podSelector": {"matchLabels": {"app": "client"}}, "egress": other_port}), "shop"));
}

#[test]
fn selectors_of_one_peer_are_joined_by_and_those_of_two_by_or() {
    let namespace = json!({"namespaceSelector": {"matchLabels": {"team": "pay"}}});
    let pod = json!({"podSelector": {"matchLabels": {"app": "client"}}});
    let both = json!({"namespaceSelector": namespace["namespaceSelector"], "podSelector": pod["podSelector"]});
    assert!(!allowed(ingress(json!([{"from": [both]}])), "shop"));
    assert!(allowed(ingress(json!([{"from": [both]}])), "pay"));
    assert!(allowed(ingress(json!([{"from": [namespace, pod]}])), "shop"));
    let (lack, text) = lack(ingress(json!([{"from": [both]}])), "shop").expect("a near miss");
    assert_eq!(lack, Lack::BothSelectors { peer: 0 });
    assert!(text.contains("the labels of Pod shop/client fit, the namespace do not"), "{text}");
}

#[test]
fn a_pod_selector_alone_means_the_policys_own_namespace() {
    let rule = json!([{"from": [{"podSelector": {}}]}]);
    assert!(allowed(ingress(rule.clone()), "shop"));
    assert_eq!(lack(ingress(rule), "pay").map(|(lack, _)| lack), Some(Lack::Namespace));
}

#[test]
fn blocks_hold_addresses_except_some() {
    let rule = |except: &[&str]| json!([{"from": [{"ipBlock": {"cidr": "10.244.0.0/16", "except": except}}]}]);
    let cluster = cluster(&[ingress(rule(&[]))]);
    let outside = Flow { from: Side { pod: None, node: "", ..flow(&cluster, "pay").from }, ..flow(&cluster, "pay") };
    assert!(matches!(decide(&cluster, &outside), Decision::Allowed(_)));
    assert_eq!(lack(ingress(rule(&["10.244.1.0/24"])), "pay").map(|(lack, _)| lack), Some(Lack::Except));
}

#[test]
fn a_pod_that_only_a_block_holds_is_undefined() {
    let block = json!({"ipBlock": {"cidr": "10.244.0.0/16"}});
    let only_block = cluster(&[ingress(json!([{"from": [block]}]))]);
    assert!(matches!(decide(&only_block, &flow(&only_block, "pay")), Decision::Undefined(_)));
    assert!(allowed(ingress(json!([{"from": [block, {"namespaceSelector": {}}]}])), "pay"));
    // A denial in the other direction is certain all the same.
    let no_egress = json!({"podSelector": {"matchLabels": {"app": "client"}}, "policyTypes": ["Egress"]});
    let both = cluster(&[ingress(json!([{"from": [block]}])), no_egress]);
    assert!(matches!(decide(&both, &flow(&both, "shop")), Decision::Denied(_)));
}

#[test]
fn ports_are_the_pods_by_number_range_or_name() {
    let rule = |port: Value| ingress(json!([{"ports": [port]}]));
    assert!(allowed(rule(json!({"port": 8080})), "shop"));
    assert!(allowed(rule(json!({"port": 8000, "endPort": 8090})), "shop"));
    assert!(allowed(rule(json!({"port": "http"})), "shop"));
    assert!(allowed(rule(json!({"protocol": "TCP"})), "shop"));
    let (service_port, text) = lack(rule(json!({"port": 80})), "shop").expect("a near miss");
    assert_eq!(service_port, Lack::ServicePort { port: 0 });
    assert_eq!(text, "allows port 80/TCP, which is the Service's; the pods are reached at 8080/TCP");
    assert_eq!(
        lack(rule(json!({"protocol": "UDP", "port": 8080})), "shop").map(|(lack, _)| lack),
        Some(Lack::Protocol { port: 0 })
    );
    assert_eq!(lack(rule(json!({"port": "web"})), "shop").map(|(lack, _)| lack), Some(Lack::PortName));
}

#[test]
fn the_label_with_a_typo_is_the_nearest() {
    let rule = json!([{"from": [{"podSelector": {"matchLabels": {"app": "clinet"}}}]}]);
    let (lack, text) = lack(ingress(rule), "shop").expect("a near miss");
    assert_eq!(lack, Lack::Label);
    assert!(text.ends_with("has app=client instead of app=clinet"), "{text}");
}

#[test]
fn both_directions_must_allow_and_egress_is_met_first() {
    let egress = json!({"podSelector": {"matchLabels": {"app": "client"}}, "policyTypes": ["Egress"]});
    let cluster = cluster(&[egress, ingress(json!([]))]);
    let Decision::Denied(denials) = decide(&cluster, &flow(&cluster, "shop")) else { panic!("not denied") };
    let directions: Vec<Direction> = denials.iter().map(|denial| denial.direction).collect();
    assert_eq!(directions, [Direction::Egress, Direction::Ingress]);
}

#[test]
fn policies_add_up() {
    let cluster = cluster(&[ingress(json!([])), ingress(json!([{"ports": [{"port": 8080}]}]))]);
    assert!(matches!(decide(&cluster, &flow(&cluster, "shop")), Decision::Allowed(_)));
}

#[test]
fn the_host_of_a_pod_reaches_it_and_another_host_is_nobodys_promise() {
    let cluster = cluster(&[ingress(json!([]))]);
    let host = |node| Side { address: "172.30.0.12".parse().expect("an address"), pod: None, node };
    let from = |node| Flow { from: host(node), ..flow(&cluster, "shop") };
    assert!(matches!(decide(&cluster, &from("n2")), Decision::Allowed(_)));
    assert!(matches!(decide(&cluster, &from("n1")), Decision::Undefined(_)));
}
