//! What NetworkPolicies say beside what a node's rules do, on two nodes with routed pods.

use netdiag_common::forwarding::packet::Origin;
use netdiag_common::forwarding::path::{self, End, Place};
use netdiag_common::forwarding::state::{ChainKey, Family, Hook};
use netdiag_common::observation::fate::{Fate, FateRequest, FateRule, FateTransport};
use netdiag_common::observation::{Observation, Protocol};
use serde_json::{Value, json};

use super::tests_of_pods::{READ_AT, seen};
use super::*;
use crate::evidence::parse;
use crate::trace::example;

const HANDLE: u64 = 7;

fn pod(name: &str, node: &str, address: &str) -> Value {
    json!({"kind": "Pod", "apiVersion": "v1",
           "metadata": {"name": name, "namespace": "shop", "uid": name, "labels": {"app": name}},
           "spec": {"nodeName": node, "containers": [{"name": "c", "ports": [{"containerPort": 8080}]}]},
           "status": {"phase": "Running", "podIPs": [{"ip": address}]}})
}

fn node(name: &str, address: &str, net: &str) -> Value {
    json!({"kind": "Node", "apiVersion": "v1", "metadata": {"name": name}, "spec": {"podCIDRs": [net]},
           "status": {"addresses": [{"type": "InternalIP", "address": address}]}})
}

/// `web` on n1 lets `client` of n2 in, and nobody else.
fn cluster() -> Cluster {
    cluster_with(Vec::new())
}

fn cluster_with(others: Vec<Value>) -> Cluster {
    let mut cluster = Cluster::default();
    let objects = [
        node("n1", "172.30.0.11", "10.244.1.0/24"),
        node("n2", "172.30.0.12", "10.244.2.0/24"),
        pod("web", "n1", "10.244.1.2"),
        pod("client", "n2", "10.244.2.2"),
        pod("other", "n2", "10.244.2.3"),
        json!({"kind": "Namespace", "apiVersion": "v1", "metadata": {"name": "shop"}}),
        json!({"kind": "NetworkPolicy", "apiVersion": "networking.k8s.io/v1", "metadata": {"name": "web", "namespace": "shop"},
               "spec": {"podSelector": {"matchLabels": {"app": "web"}}, "policyTypes": ["Ingress"],
                        "ingress": [{"from": [{"podSelector": {"matchLabels": {"app": "client"}}}]}]}}),
    ];
    for object in objects.into_iter().chain(others) {
        parse::add(&mut cluster, object).expect("an object");
    }
    cluster
}

fn readings() -> Readings {
    let host = json!({
        "links": [
            {"index": 2, "name": "eth0", "kind": "", "mtu": 1500, "up": true, "carrier": true},
            {"index": 7, "name": "veth7", "kind": "veth", "mtu": 1500, "up": true, "carrier": true, "peer_index": 3},
        ],
        "addresses": [], "policy_rules": [], "neighbours": [],
        "routes": [
            {"destination": "10.244.2.0/24", "kind": "unicast", "link_index": 2, "table": 254},
            {"destination": "10.244.1.2/32", "kind": "unicast", "link_index": 7, "table": 254},
        ],
    });
    let inside = json!({
        "links": [{"index": 3, "name": "eth0", "kind": "veth", "mtu": 1500, "up": true, "carrier": true, "peer_index": 7}],
        "addresses": [{"link_index": 3, "address": "10.244.1.2", "prefix_length": 24}],
        "routes": [], "policy_rules": [], "neighbours": [],
    });
    let mut readings = Readings::new();
    readings.insert(Need::host("n1", Topic::Network), seen("network", &host));
    readings.insert(Need::pod("n1", "web", Topic::Network), seen("network", &inside));
    readings
}

/// What the rules of n1 do with packets from each address.
fn drift_when(stops: impl Fn(&str) -> Option<End>, gaps: &[&str]) -> NodeDrift {
    let (cluster, mut readings) = (cluster(), readings());
    let asked = policies::needs(&cluster, &Pods::of(&cluster), "n1", &readings);
    let sources: Vec<String> = asked.iter().map(source).collect();
    assert_eq!(sources, ["10.244.2.2", "10.244.2.3"], "one that is allowed, one that is denied");
    for need in asked {
        let Topic::Fate(request) = &need.topic else { panic!("{need:?}") };
        assert!(matches!(request.origin, netdiag_common::observation::fate::FateOrigin::Received(_)));
        let end = stops(&source(&need)).unwrap_or(End::Sent { interface: 7, gateway: None });
        readings.insert(need.clone(), fate(request, end, gaps));
    }
    let mut drift = NodeDrift { node: "n1".to_owned(), ..NodeDrift::default() };
    policies::compare(&cluster, &Pods::of(&cluster), &readings, &mut drift);
    drift
}

fn source(need: &Need) -> String {
    let Topic::Fate(request) = &need.topic else { panic!("{need:?}") };
    request.source.expect("a pod's").to_string()
}

fn rejected() -> End {
    let chain = ChainKey { family: Family::Ip, table: "filter".into(), chain: "KUBE-POD-FW-X".into() };
    let by = Place { hook: Hook::Forward, chain: Some(chain), handle: Some(HANDLE) };
    End::Rejected { by, with: path::Reject::Unreachable { kind: 3, code: 3 } }
}

fn fate(request: &FateRequest, end: End, gaps: &[&str]) -> Reading<Observation> {
    let source = request.source.expect("a pod's");
    let packet = request.packet(Origin::Received { interface: 2 }, source).expect("a packet");
    let decisions = match &end {
        End::Rejected { by: Place { chain: Some(chain), .. }, .. } => vec![path::Decision::Rule {
            hook: Hook::Forward,
            chain: chain.clone(),
            handle: HANDLE,
            verdict: netdiag_common::forwarding::expression::Verdict::Drop,
            elements: Vec::new(),
            comment: None,
            mark: None,
        }],
        _ => Vec::new(),
    };
    let rules = decisions.iter().filter_map(|decision| match decision {
        path::Decision::Rule { chain, handle, .. } => Some(FateRule {
            chain: chain.clone(),
            handle: *handle,
            text: "-j REJECT".to_owned(),
            comment: None,
            counter: None,
        }),
        _ => None,
    });
    let rules = rules.collect();
    let mut fate = Fate { rules, ..example::fate(packet, decisions, end) };
    fate.outcome.paths[0].gaps = gaps.iter().map(|gap| (*gap).to_owned()).collect();
    Reading::Seen { value: Observation::Fate(Arc::new(fate)), at: READ_AT.parse().expect("a time") }
}

#[test]
fn rules_that_do_what_policies_say_are_no_drift() {
    let drift = drift_when(|source| (source == "10.244.2.3").then(rejected), &[]);
    assert_eq!((drift.differences, drift.gaps), (Vec::new(), Vec::new()));
}

#[test]
fn packet_that_is_denied_and_gets_through_is_named() {
    let drift = drift_when(|_| None, &[]);
    let [found] = &drift.differences[..] else { panic!("{drift:?}") };
    assert_eq!((found.kind, found.found.as_str()), (Kind::Policy, "nothing stops it"));
    let expected =
        "Pod shop/other to Pod shop/web, port 8080/tcp is stopped: no ingress rule of NetworkPolicy shop/web allows it";
    assert_eq!(found.expected, expected);
}

#[test]
fn packet_that_is_allowed_and_stopped_is_named_with_the_rule() {
    let drift = drift_when(|_| Some(rejected()), &[]);
    let [found] = &drift.differences[..] else { panic!("{drift:?}") };
    assert_eq!((found.kind, found.found.as_str()), (Kind::Policy, "it is stopped"));
    assert!(
        found.expected.starts_with("Pod shop/client to Pod shop/web, port 8080/tcp gets through: "),
        "{}",
        found.expected
    );
    assert_eq!(found.rule, "table ip filter, chain KUBE-POD-FW-X, handle 7: -j REJECT (written by kube-router)");
}

#[test]
fn what_was_not_evaluated_is_a_gap() {
    let drift = drift_when(|_| None, &["tcx program cil_to_container at veth7 was not evaluated"]);
    assert_eq!(drift.differences, []);
    let [gap] = &drift.gaps[..] else { panic!("{drift:?}") };
    assert!(gap.why.starts_with("of 2 packets that policies decide about: tcx program"), "{}", gap.why);
}

#[test]
fn policies_that_cannot_be_read_are_a_gap() {
    let gap = gap("", "NetworkPolicies", "forbidden".to_owned(), "let the server list them");
    let mut cluster = cluster();
    cluster.network_policies.set_gap(Some(gap));
    let mut drift = NodeDrift { node: "n1".to_owned(), ..NodeDrift::default() };
    policies::compare(&cluster, &Pods::of(&cluster), &readings(), &mut drift);
    assert_eq!(drift.gaps.len(), 1);
    assert!(policies::needs(&cluster, &Pods::of(&cluster), "n1", &readings()).is_empty());
}

#[test]
fn where_cilium_decides_its_maps_are_asked() {
    let (cluster, mut readings) = (cluster(), readings());
    let host = json!({
        "links": [{"index": 4, "name": "cilium_host", "kind": "veth", "mtu": 1500, "up": true, "carrier": true}],
        "addresses": [], "routes": [], "policy_rules": [], "neighbours": [],
    });
    readings.insert(Need::host("n1", Topic::Network), seen("network", &host));
    let asked = policies::needs(&cluster, &Pods::of(&cluster), "n1", &readings);
    for (need, entry) in asked.iter().zip(["missing", "allows"]) {
        let Topic::PolicyMap(query) = &need.topic else { panic!("{need:?}") };
        assert!(query.ingress);
        let verdict = json!({"engine": "Cilium", "endpoint": 287, "identity": 4711, "map": "cilium_policy_v3_00287", "entry": entry});
        readings.insert(need.clone(), seen("policy_map", &verdict));
    }
    let mut drift = NodeDrift { node: "n1".to_owned(), ..NodeDrift::default() };
    policies::compare(&cluster, &Pods::of(&cluster), &readings, &mut drift);
    let found: Vec<&str> = drift.differences.iter().map(|difference| difference.found.as_str()).collect();
    assert_eq!((found, drift.policed), (vec!["it is stopped", "nothing stops it"], 2));
    assert!(drift.differences[0].rule.starts_with("map cilium_policy_v3_00287 of Cilium"), "{:?}", drift.differences);
}

/// Ports of `web` that its node is asked about: of a packet that is allowed, and of one that is denied.
fn asked_ports(others: Vec<Value>) -> Vec<(Protocol, u16)> {
    let (cluster, readings) = (cluster_with(others), readings());
    let asked = policies::needs(&cluster, &Pods::of(&cluster), "n1", &readings);
    let port = |need: &Need| match &need.topic {
        Topic::Fate(FateRequest { transport: FateTransport::Tcp { destination_port, .. }, .. }) => {
            (Protocol::Tcp, destination_port.expect("a port"))
        }
        Topic::Fate(FateRequest { transport: FateTransport::Udp { destination_port, .. }, .. }) => {
            (Protocol::Udp, destination_port.expect("a port"))
        }
        _ => panic!("{need:?}"),
    };
    asked.iter().map(port).collect()
}

/// Of a Service that leads to `web`.
fn slice(ports: &Value) -> Value {
    json!({"kind": "EndpointSlice", "apiVersion": "discovery.k8s.io/v1", "addressType": "IPv4",
           "metadata": {"name": "web-1", "namespace": "shop", "labels": {"kubernetes.io/service-name": "web"}},
           "ports": ports, "endpoints": [{"addresses": ["10.244.1.2"], "nodeName": "n1"}]})
}

#[test]
fn ports_that_services_lead_to_are_asked_about_first() {
    let asked = asked_ports(vec![slice(&json!([{"port": 9090, "protocol": "UDP"}]))]);
    assert_eq!(asked, [(Protocol::Udp, 9090), (Protocol::Udp, 9090)]);
}

#[test]
fn port_that_a_policy_names_has_its_turn_after_many_of_services() {
    let ports: Vec<Value> = (9001..9020).map(|port| json!({"port": port})).collect();
    let policy = json!({"kind": "NetworkPolicy", "apiVersion": "networking.k8s.io/v1",
                        "metadata": {"name": "web", "namespace": "shop"},
                        "spec": {"podSelector": {"matchLabels": {"app": "web"}}, "policyTypes": ["Ingress"],
                                 "ingress": [{"ports": [{"port": 7000}]}]}});
    let asked = asked_ports(vec![slice(&json!(ports)), policy]);
    assert_eq!(asked, [(Protocol::Tcp, 7000), (Protocol::Tcp, 9001)]);
}

#[test]
fn protocol_that_is_not_followed_is_passed_over() {
    let asked = asked_ports(vec![slice(&json!([{"port": 9999, "protocol": "SCTP"}]))]);
    assert_eq!(asked, [(Protocol::Tcp, 8080), (Protocol::Tcp, 8080)], "what the container declares");
}
