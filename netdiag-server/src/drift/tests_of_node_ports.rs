//! On which addresses node ports are, beside what kube-proxy is told.

use netdiag_common::observation::Protocol;
use serde_json::{Value, json};

use super::tests::{drift_in, objects, proxy, readings, rules, to};
use super::*;

pub(super) const LONG_AGO: &str = "2026-01-01T10:00:00Z";
pub(super) const ROUTES: [&str; 1] = ["10.244.2.0/24"];

/// n1 has 172.30.0.11, 10.244.1.1 and 127.0.0.1; its node ports are on these addresses.
fn drift_of(proxier: &str, settings: &Value, on: &Value) -> NodeDrift {
    let mut rules = rules();
    rules["proxier"] = json!(proxier);
    rules["node_port_addresses"][0]["on"] = on.clone();
    let proxy = json!({"running": true, "settings": settings});
    drift_in(objects(LONG_AGO), &readings(&proxy, &rules, &ROUTES))
}

fn listed(addresses: &[&str]) -> Value {
    json!({"node_port_addresses": addresses})
}

fn only(addresses: &[&str]) -> Value {
    json!({"only": addresses})
}

fn none(proxier: &str, settings: &Value, on: &Value) {
    let drift = drift_of(proxier, settings, on);
    assert_eq!((drift.differences, drift.gaps), (Vec::new(), Vec::new()), "{proxier} {settings} {on}");
}

fn one(proxier: &str, settings: &Value, on: &Value) -> Difference {
    let drift = drift_of(proxier, settings, on);
    assert_eq!((drift.differences.len(), &drift.gaps), (1, &Vec::new()), "{:?}", drift.differences);
    assert_eq!(drift.differences[0].kind, Kind::NodePortAddresses);
    drift.differences[0].clone()
}

#[test]
fn nftables_takes_the_primary_address_by_itself() {
    let primary = only(&["172.30.0.11"]);
    let both = listed(&["172.30.0.0/16", "fd00::/8"]);
    for settings in [json!({}), listed(&["primary"]), listed(&["172.30.0.11/32"]), both] {
        none("nftables", &settings, &primary);
        let found = one("nftables", &settings, &json!("all"));
        assert_eq!(found.expected, "IPv4 node ports on 172.30.0.11");
        assert_eq!(found.found, "30080/tcp, 30081/tcp on all addresses of the node");
        assert_eq!(found.rule, "set nodeport-ips of table ip kube-proxy");
    }
    let bound = json!({"bind_address": "10.244.1.1"});
    none("nftables", &bound, &only(&["10.244.1.1"]));
    none("nftables", &json!({"bind_address": "0.0.0.0"}), &primary);
}

#[test]
fn iptables_takes_all_addresses_by_itself() {
    none("iptables_nft", &json!({}), &json!("all"));
    let found = one("iptables_nft", &json!({}), &only(&["172.30.0.11"]));
    assert_eq!(found.expected, "IPv4 node ports on all addresses of the node");
    assert_eq!(found.rule, "end of chain KUBE-SERVICES of table ip nat");
    none("iptables_legacy", &listed(&["primary"]), &only(&["172.30.0.11"]));
    assert_eq!(one("iptables_nft", &json!({}), &only(&[])).found, "30080/tcp, 30081/tcp on no address of the node");
}

#[test]
fn networks_are_of_one_family_each() {
    none("nftables", &listed(&["10.0.0.0/8"]), &only(&["10.244.1.1"]));
    let found = one("nftables", &listed(&["10.0.0.0/8"]), &only(&["172.30.0.11"]));
    assert_eq!(found.expected, "IPv4 node ports on 10.244.1.1");
    for all in [&["0.0.0.0/0", "10.0.0.0/8"][..], &["fd00::/8"]] {
        none("nftables", &listed(all), &json!("all"));
        one("nftables", &listed(all), &only(&["172.30.0.11"]));
    }
    none("nftables", &listed(&["203.0.113.0/24"]), &only(&[]));
}

#[test]
fn addresses_may_be_newer_than_the_last_full_sync_of_nftables() {
    let both = listed(&["10.0.0.0/8", "172.30.0.0/16"]);
    let drift = drift_of("nftables", &both, &only(&["172.30.0.11"]));
    assert_eq!((drift.differences, drift.gaps.len()), (Vec::new(), 1));
    assert!(drift.gaps[0].why.starts_with("IPv4 node ports are not on 10.244.1.1: added after"), "{:?}", drift.gaps);
    // The others look at each sync.
    one("iptables_nft", &both, &only(&["172.30.0.11"]));
    // The API has 172.30.0.11 for n1, and nobody is told of 203.0.113.5.
    for on in [&["10.244.1.1"][..], &[], &["172.30.0.11", "203.0.113.5"]] {
        one("nftables", &both, &only(on));
    }
}

#[test]
fn node_ports_on_loopback_are_another_setting() {
    let with = listed(&["127.0.0.0/8", "172.30.0.0/16"]);
    none("iptables_nft", &with, &only(&["127.0.0.1", "172.30.0.11"]));
    none("iptables_nft", &with, &only(&["172.30.0.11"]));
}

/// Of IPVS mode, but for the virtual server of 30081/tcp on 10.244.1.1.
fn virtual_servers() -> Value {
    let mut rules = rules();
    rules["proxier"] = json!("ipvs");
    rules["node_ports"][1]["action"] = to(&["10.244.2.3"]);
    add_server(&mut rules, "10.244.1.1", 30080, true);
    add_server(&mut rules, "172.30.0.11", 30081, true);
    rules
}

fn add_server(rules: &mut Value, address: &str, port: u16, node_port: bool) {
    let server = json!({"address": address, "protocol": "tcp", "port": port, "action": "reject",
                        "node_port": node_port});
    rules["entries"].as_array_mut().expect("a list").push(server);
}

#[test]
fn each_virtual_server_of_ipvs_has_an_address() {
    let mut rules = virtual_servers();
    let found = drift_in(objects(LONG_AGO), &readings(&proxy(), &rules, &ROUTES)).differences;
    assert_eq!(found.len(), 1, "{found:?}");
    assert_eq!(found[0].expected, "IPv4 node ports on 10.244.1.1, 172.30.0.11");
    assert_eq!(found[0].found, "30081/tcp on 172.30.0.11");
    add_server(&mut rules, "10.244.1.1", 30081, true);
    let whole = drift_in(objects(LONG_AGO), &readings(&proxy(), &rules, &ROUTES));
    assert_eq!(whole.differences, []);
}

#[test]
fn node_ports_on_addresses_of_services_are_not_left_over() {
    let mut rules = virtual_servers();
    add_server(&mut rules, "10.244.1.1", 30081, true);
    // A load balancer's address, and a cluster IP.
    for address in ["192.0.2.10", "10.96.0.7"] {
        add_server(&mut rules, address, 30080, false);
    }
    let kinds = |rules: &Value| -> Vec<(Kind, Option<Entrance>)> {
        let found = drift_in(objects(LONG_AGO), &readings(&proxy(), rules, &ROUTES)).differences;
        found.into_iter().map(|found| (found.kind, found.entrance)).collect()
    };
    assert_eq!(kinds(&rules), []);
    let old = Entrance::Address("10.96.0.7".parse().expect("an address"), Protocol::Tcp, 30099);
    add_server(&mut rules, "10.96.0.7", 30099, false);
    assert_eq!(kinds(&rules), [(Kind::Leftover, Some(old))]);
    // Rules of the other modes name no address for a node port.
    rules["proxier"] = json!("iptables_nft");
    assert_eq!(kinds(&rules).iter().filter(|(kind, _)| *kind == Kind::Leftover).count(), 3);
}

#[test]
fn no_virtual_server_is_missing_where_the_node_has_no_address_for_node_ports() {
    let mut rules = virtual_servers();
    rules["node_ports"] = json!([]);
    rules["entries"].as_array_mut().expect("a list").retain(|entry| entry["node_port"] != json!(true));
    let of = |settings: &Value| {
        let proxy = json!({"running": true, "settings": settings});
        let drift = drift_in(objects(LONG_AGO), &readings(&proxy, &rules, &ROUTES));
        let kinds: Vec<Kind> = drift.differences.iter().map(|found| found.kind).collect();
        (kinds, drift.gaps.into_iter().any(|gap| gap.why.starts_with("2 have no virtual server")))
    };
    assert_eq!(of(&listed(&["203.0.113.0/24"])), (vec![], false));
    assert_eq!(of(&json!({})), (vec![Kind::Missing; 2], false));
    assert_eq!(of(&listed(&["172.30.0.0/16"])), (vec![Kind::Missing; 2], false));
    assert_eq!(of(&Value::Null), (vec![], true));
}

#[test]
fn what_is_not_told_is_not_compared() {
    let why = |rules: &Value, proxy: &Value| {
        let drift = drift_in(objects(LONG_AGO), &readings(proxy, rules, &ROUTES));
        assert_eq!(drift.differences, []);
        let of_ports = drift.gaps.into_iter().find(|gap| gap.what == "addresses of node ports");
        of_ports.map(|gap| gap.why).unwrap_or_default()
    };
    assert!(why(&rules(), &json!({"running": true})).contains("does not tell its settings"));
    let mut old = rules();
    old["node_port_addresses"] = Value::Null;
    assert_eq!(why(&old, &proxy()), "the agent does not say");
    let mut cut = rules();
    cut["node_port_addresses"] = json!([]);
    cut["undecoded"] = json!(["set nodeport-ips was not read to its end"]);
    assert!(why(&cut, &proxy()).contains("not read to their end"));
}

#[test]
fn node_ports_on_all_addresses_lack_none_in_iptables_mode_whatever_kube_proxy_is_told() {
    let why = |proxier: &str, on: &Value| {
        let drift = drift_of(proxier, &Value::Null, on);
        assert_eq!(drift.differences, []);
        drift.gaps.into_iter().map(|gap| gap.why).collect::<Vec<_>>()
    };
    for proxier in ["iptables_nft", "iptables_legacy"] {
        assert_eq!(why(proxier, &json!("all")), Vec::<String>::new());
    }
    let untold = "kube-proxy does not tell its settings there (nodePortAddresses)";
    let all = format!("IPv4 node ports are on all addresses of the node; {untold}");
    assert_eq!(why("nftables", &json!("all")), [all]);
    let some = format!("IPv4 node ports are on 172.30.0.11; {untold}");
    assert_eq!(why("iptables_nft", &only(&["172.30.0.11"])), [some]);
}
