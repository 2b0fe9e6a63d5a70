use netdiag_common::observation::Observation;
use serde_json::{Value, json};

use super::*;
use crate::evidence::parse;

/// When rules are read.
const READ_AT: &str = "2026-01-01T12:00:00Z";

fn slice(name: &str, of: &str, endpoints: &Value, changed: &str) -> Value {
    json!({"kind": "EndpointSlice", "apiVersion": "discovery.k8s.io/v1", "addressType": "IPv4",
           "metadata": {"name": name, "namespace": "shop", "creationTimestamp": changed,
                        "labels": {"kubernetes.io/service-name": of}},
           "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}], "endpoints": endpoints})
}

/// A Service with everything that has entrances, one with local endpoints on the other node only, and one that rolls.
pub(super) fn objects(changed: &str) -> Vec<Value> {
    let node = |name: &str, address: &str, net: &str| {
        json!({"kind": "Node", "apiVersion": "v1", "metadata": {"name": name}, "spec": {"podCIDRs": [net]},
               "status": {"addresses": [{"type": "InternalIP", "address": address}]}})
    };
    let ready =
        |address: &str, node: &str| json!({"addresses": [address], "nodeName": node, "conditions": {"ready": true}});
    let leaving = |address: &str, serving: bool| {
        json!({"addresses": [address], "nodeName": "n1",
               "conditions": {"ready": false, "serving": serving, "terminating": true}})
    };
    vec![
        node("n1", "172.30.0.11", "10.244.1.0/24"),
        node("n2", "172.30.0.12", "10.244.2.0/24"),
        json!({"kind": "Service", "apiVersion": "v1", "metadata": {"name": "web", "namespace": "shop"},
               "spec": {"type": "LoadBalancer", "clusterIP": "10.96.0.7", "clusterIPs": ["10.96.0.7"],
                        "externalIPs": ["203.0.113.9"], "sessionAffinity": "ClientIP",
                        "loadBalancerSourceRanges": ["198.51.100.0/24", "2001:db8::/32"],
                        "ports": [{"name": "http", "port": 80, "nodePort": 30080}]},
               "status": {"loadBalancer": {"ingress": [{"ip": "192.0.2.10"}, {"ip": "192.0.2.99", "ipMode": "Proxy"}]}}}),
        slice("web-1", "web", &json!([ready("10.244.1.2", "n1"), ready("10.244.2.2", "n2")]), changed),
        json!({"kind": "Service", "apiVersion": "v1", "metadata": {"name": "local", "namespace": "shop"},
               "spec": {"type": "NodePort", "clusterIP": "10.96.0.8", "externalTrafficPolicy": "Local",
                        "ports": [{"name": "http", "port": 80, "nodePort": 30081}]}}),
        slice("local-1", "local", &json!([ready("10.244.2.3", "n2")]), "2026-01-01T10:00:00Z"),
        json!({"kind": "Service", "apiVersion": "v1", "metadata": {"name": "rolling", "namespace": "shop"},
               "spec": {"clusterIP": "10.96.0.9", "ports": [{"name": "http", "port": 80}]}}),
        slice(
            "rolling-1",
            "rolling",
            &json!([leaving("10.244.1.4", true), leaving("10.244.1.5", false)]),
            "2026-01-01T10:00:00Z",
        ),
        json!({"kind": "Service", "apiVersion": "v1", "metadata": {"name": "empty", "namespace": "shop"},
               "spec": {"clusterIP": "10.96.0.10", "ports": [{"name": "http", "port": 80}]}}),
    ]
}

pub(super) fn to(endpoints: &[&str]) -> Value {
    let list: Vec<Value> = endpoints.iter().map(|address| json!({"address": address, "port": 8080})).collect();
    json!({"endpoints": list})
}

/// What kube-proxy on n1 writes for these objects.
pub(super) fn rules() -> Value {
    let both = to(&["10.244.1.2", "10.244.2.2"]);
    let entry = |address: &str, service: &str, action: &Value, terms: Value| json!({"address": address, "protocol": "tcp", "port": 80, "service": service, "action": action, "terms": terms});
    json!({
        "proxier": "nftables", "hooked": true, "others": [], "masquerades": true,
        "entries": [
            entry("10.96.0.7", "shop/web:http", &both, json!({"sticky": true})),
            entry("203.0.113.9", "shop/web:http", &both, json!({"sticky": true})),
            entry("192.0.2.10", "shop/web:http", &both, json!({"sticky": true, "sources": ["198.51.100.0/24"]})),
            entry("10.96.0.8", "shop/local:http", &to(&["10.244.2.3"]), json!({"sticky": false})),
            entry("10.96.0.9", "shop/rolling:http", &to(&["10.244.1.4"]), json!({"sticky": false})),
            entry("10.96.0.10", "shop/empty:http", &json!("reject"), Value::Null),
            {"address": "172.30.0.11", "protocol": "tcp", "port": 30080, "action": both, "node_port": true},
        ],
        "node_ports": [
            {"ipv6": false, "protocol": "tcp", "port": 30080, "service": "shop/web:http", "action": both,
             "terms": {"sticky": true}},
            {"ipv6": false, "protocol": "tcp", "port": 30081, "service": "shop/local:http", "action": "drop"},
        ],
        "node_port_addresses": [{"ipv6": false, "on": {"only": ["172.30.0.11"]}}],
    })
}

fn network(destinations: &[&str]) -> Value {
    let route = |net: &&str| json!({"destination": net, "kind": "unicast", "gateway": "172.30.0.12", "table": 254});
    let own = |index: u32, address: &str| json!({"link_index": index, "address": address, "prefix_length": 24});
    json!({"links": [], "addresses": [own(1, "127.0.0.1"), own(2, "172.30.0.11"), own(3, "10.244.1.1")],
           "routes": destinations.iter().map(route).collect::<Vec<_>>(),
           "policy_rules": [], "neighbours": []})
}

/// What kube-proxy tells of itself where nobody has set anything.
pub(super) fn proxy() -> Value {
    json!({"running": true, "settings": {}})
}

fn seen(topic: &str, value: &Value) -> Reading<Observation> {
    let value = serde_json::from_value(json!({"topic": topic, "value": value})).expect("an observation");
    Reading::Seen { value, at: READ_AT.parse().expect("a time") }
}

/// Drift of n1.
fn drift_since(rules: &Value, routes: &[&str], changed: &str) -> NodeDrift {
    drift_beside(&proxy(), rules, routes, changed)
}

fn drift_beside(proxy: &Value, rules: &Value, routes: &[&str], changed: &str) -> NodeDrift {
    drift_in(objects(changed), &readings(proxy, rules, routes))
}

pub(super) fn readings(proxy: &Value, rules: &Value, routes: &[&str]) -> Readings {
    Readings::from([
        (Need::host("n1", Topic::ServiceRules), seen("service_rules", rules)),
        (Need::host("n1", Topic::Network), seen("network", &network(routes))),
        (Need::host("n2", Topic::Network), seen("network", &network(&["10.244.1.0/24"]))),
        (Need::host("n1", Topic::KubeProxy), seen("kube_proxy", proxy)),
        (Need::host("n1", Topic::Flows), Reading::Absent { at: READ_AT.parse().expect("a time") }),
        (Need::host("n1", Topic::Rules), Reading::Absent { at: READ_AT.parse().expect("a time") }),
    ])
}

pub(super) fn drift_in(objects: Vec<Value>, readings: &Readings) -> NodeDrift {
    let mut cluster = Cluster::default();
    for object in objects {
        parse::add(&mut cluster, object).expect("an object");
    }
    let now = "2026-01-01T12:00:01Z".parse().expect("a time");
    compare(Arc::new(cluster), &["n1".to_owned()], readings, now).nodes.remove(0)
}

fn drift_of(rules: &Value) -> NodeDrift {
    drift_since(rules, &["10.244.2.0/24"], "2026-01-01T10:00:00Z")
}

/// Kind, Service and entrance of each difference.
fn differences(drift: &NodeDrift) -> Vec<(Kind, String)> {
    assert_eq!(drift.gaps, []);
    let entrance =
        |difference: &Difference| difference.entrance.map(|entrance| entrance.to_string()).unwrap_or_default();
    let words = |difference: &Difference| format!("{} {}", difference.service, entrance(difference)).trim().to_owned();
    drift.differences.iter().map(|difference| (difference.kind, words(difference))).collect()
}

/// The rules with one change at a JSON pointer.
fn changed(at: &str, to: Value) -> NodeDrift {
    let mut rules = rules();
    *rules.pointer_mut(at).expect("a place") = to;
    drift_of(&rules)
}

fn one(kind: Kind, words: &str) -> Vec<(Kind, String)> {
    vec![(kind, words.to_owned())]
}

#[test]
fn rules_as_they_should_be_are_no_drift() {
    let drift = drift_of(&rules());
    assert_eq!(differences(&drift), []);
    assert_eq!((drift.compared, drift.settling), (8, 0));
}

#[test]
fn an_entry_that_is_gone_is_named() {
    let mut rules = rules();
    rules["entries"].as_array_mut().expect("a list").remove(0);
    assert_eq!(differences(&drift_of(&rules)), one(Kind::Missing, "shop/web:http 10.96.0.7:80/tcp"));
    rules["node_ports"].as_array_mut().expect("a list").remove(0);
    rules["entries"].as_array_mut().expect("a list").pop();
    let drift = drift_of(&rules);
    assert_eq!(differences(&drift)[1].1, "shop/web:http node port 30080/tcp (IPv4)");
    assert_eq!(drift.differences[1].rule, "map service-nodeports of table ip kube-proxy");
}

#[test]
fn other_endpoints_are_drift_in_both_directions() {
    let web = one(Kind::Endpoints, "shop/web:http 10.96.0.7:80/tcp");
    for endpoints in [&["10.244.1.2"][..], &["10.244.1.2", "10.244.2.2", "10.244.2.9"], &["10.244.1.2", "10.244.2.9"]] {
        assert_eq!(differences(&changed("/entries/0/action", to(endpoints))), web);
    }
    assert_eq!(differences(&changed("/entries/0/action", json!("reject"))), web);
}

#[test]
fn a_local_policy_without_an_endpoint_here_drops_and_does_not_refuse() {
    let local = one(Kind::Endpoints, "shop/local:http node port 30081/tcp (IPv4)");
    assert_eq!(differences(&changed("/node_ports/1/action", json!("reject"))), local);
    assert_eq!(differences(&changed("/node_ports/1/action", to(&["10.244.2.3"]))), local);
    let empty = one(Kind::Endpoints, "shop/empty:http 10.96.0.10:80/tcp");
    assert_eq!(differences(&changed("/entries/5/action", json!("drop"))), empty);
}

#[test]
fn affinity_and_source_ranges_are_compared() {
    let affinity = one(Kind::Affinity, "shop/rolling:http 10.96.0.9:80/tcp");
    assert_eq!(differences(&changed("/entries/4/terms/sticky", json!(true))), affinity);
    let sources = one(Kind::Sources, "shop/web:http 192.0.2.10:80/tcp");
    assert_eq!(differences(&changed("/entries/2/terms/sources", Value::Null)), sources);
    assert_eq!(differences(&changed("/entries/2/terms/sources", json!(["0.0.0.0/0"]))), sources);
    // The balancer's own address is let in where nodes may use it.
    let own = json!(["198.51.100.0/24", "192.0.2.10/32"]);
    assert_eq!(differences(&changed("/entries/2/terms/sources", own)), []);
}

#[test]
fn what_no_service_has_is_a_leftover() {
    let mut rules = rules();
    let old =
        json!({"address": "10.96.0.66", "protocol": "tcp", "port": 80, "service": "shop/old:http", "action": "reject"});
    rules["entries"].as_array_mut().expect("a list").push(old);
    assert_eq!(differences(&drift_of(&rules)), one(Kind::Leftover, "shop/old:http 10.96.0.66:80/tcp"));
}

#[test]
fn a_change_of_a_moment_ago_is_no_drift_yet() {
    let mut rules = rules();
    rules["entries"][0]["action"] = to(&["10.244.1.2"]);
    let drift = drift_since(&rules, &["10.244.2.0/24"], "2026-01-01T11:59:55Z");
    assert_eq!(differences(&drift), []);
    assert_eq!(drift.settling, 4);
}

#[test]
fn two_modes_and_unhooked_chains_are_about_the_whole_node() {
    assert_eq!(differences(&changed("/others", json!(["iptables_legacy"]))), one(Kind::TwoProxiers, ""));
    assert_eq!(differences(&changed("/hooked", json!(false))), one(Kind::NotHooked, ""));
    assert_eq!(
        differences(&drift_of(&json!({"proxier": "none", "hooked": false, "entries": []}))),
        one(Kind::NoRules, "")
    );
}

#[test]
fn virtual_servers_of_ipvs_lead_to_other_nodes_where_rules_drop() {
    let mut rules = rules();
    rules["proxier"] = json!("ipvs");
    rules["node_ports"][1]["action"] = to(&["10.244.2.3"]);
    rules["node_ports"][1]["terms"] = json!({"sticky": false});
    rules["entries"][2]["terms"] = json!({"sticky": true});
    let entries = rules["entries"].as_array_mut().expect("a list");
    for address in ["172.30.0.11", "10.244.1.1"] {
        for port in [30080, 30081] {
            entries.push(json!({"address": address, "protocol": "tcp", "port": port, "action": "reject",
                                "node_port": true}));
        }
    }
    for entry in entries {
        entry["service"] = Value::Null;
    }
    let drift = drift_of(&rules);
    assert_eq!(drift.differences, []);
    let why = &drift.gaps[0].why;
    assert!(why.contains("ipsets KUBE-LOAD-BALANCER-FW") && why.ends_with("the agent did not read"), "{why}");
    let sources = |rules: &Value| {
        let drift = drift_of(rules);
        let is_gap = drift.gaps.iter().any(|gap| gap.why.contains("ipsets"));
        (drift.differences.into_iter().map(|found| (found.kind, found.found)).collect::<Vec<_>>(), is_gap)
    };
    rules["knows_source_sets"] = json!(true);
    assert_eq!(sources(&rules), (vec![(Kind::Sources, "open to everybody".to_owned())], false));
    rules["entries"][2]["terms"]["sources"] = json!(["198.51.100.0/24"]);
    assert_eq!(sources(&rules), (vec![], false));
    rules["entries"][2]["terms"]["sources"] = json!(["192.0.2.0/24"]);
    assert_eq!(sources(&rules), (vec![(Kind::Sources, "only from 192.0.2.0/24".to_owned())], false));
    rules["entries"][2]["terms"]["sources"] = json!(["198.51.100.0/24"]);
    rules["node_ports"][1]["action"] = json!("reject");
    assert_eq!(drift_of(&rules).differences[0].kind, Kind::Endpoints);
    rules["node_ports"][1]["action"] = to(&["10.244.2.3"]);
    rules["entries"][0]["action"] = to(&["10.244.1.2"]);
    let differences = drift_of(&rules).differences;
    assert_eq!((differences.len(), differences[0].rule.as_str()), (1, "virtual servers of IPVS"));
}

#[test]
fn a_missing_route_is_drift_where_pods_are_reached_by_routes() {
    let drift = drift_since(&rules(), &[], "2026-01-01T10:00:00Z");
    assert_eq!(differences(&drift), one(Kind::Route, ""));
    assert_eq!(drift.differences[0].expected, "a route to 10.244.2.0/24, the pods of node n2");
}

#[test]
fn marked_packets_that_nothing_masquerades_are_about_the_whole_node() {
    assert_eq!(differences(&changed("/masquerades", json!(false))), one(Kind::Masquerade, ""));
    let old = changed("/masquerades", Value::Null);
    assert!(old.gaps.iter().any(|gap| gap.what.contains("masquerading")), "{:?}", old.gaps);
}

#[test]
fn what_is_not_known_is_not_the_same() {
    let mut rules = rules();
    rules["entries"].as_array_mut().expect("a list").remove(0);
    rules["undecoded"] = json!(["there is no chain service-X"]);
    let drift = drift_of(&rules);
    assert_eq!(drift.differences, []);
    assert!(drift.gaps.iter().any(|gap| gap.why.contains("no entry that could be decoded")), "{:?}", drift.gaps);
    let old = changed("/node_ports", Value::Null);
    assert!(old.gaps.iter().any(|gap| gap.why.contains("does not list node ports")), "{:?}", old.gaps);
    let unread = changed("/entries/0/terms", Value::Null);
    assert!(unread.gaps.iter().any(|gap| gap.why.contains("could not be decoded")), "{:?}", unread.gaps);
}

#[test]
fn only_what_two_looks_show_is_said() {
    let with = |drift: NodeDrift| Drift { cluster: Arc::new(Cluster::default()), nodes: vec![drift] };
    let mut rules = rules();
    rules["entries"][0]["action"] = to(&["10.244.1.2"]);
    let (broken, right) = (drift_of(&rules), drift_of(&self::rules()));
    let twice = with(broken.clone()).confirmed_by(with(broken.clone()));
    assert_eq!(twice.nodes[0].differences.len(), 1);
    assert_eq!(with(right.clone()).confirmed_by(with(broken.clone())).nodes[0].differences, []);
    assert_eq!(with(broken).confirmed_by(with(right)).nodes[0].differences, []);
}
