//! Links of pods, bridges, flows and masquerading, on two nodes with a bridge each.

use netdiag_common::forwarding::packet::Origin;
use netdiag_common::forwarding::path::End;
use netdiag_common::observation::Observation;
use netdiag_common::observation::fate::FateRequest;
use serde_json::{Value, json};

use super::*;
use crate::evidence::parse;
use crate::trace::example;

pub(super) const READ_AT: &str = "2026-01-01T12:00:00Z";

pub(super) fn seen(topic: &str, value: &Value) -> Reading<Observation> {
    let value = serde_json::from_value(json!({"topic": topic, "value": value})).expect("an observation");
    Reading::Seen { value, at: READ_AT.parse().expect("a time") }
}

/// What one story changes.
struct World {
    pod_mtu: u32,
    hairpin: bool,
    sysctls: Value,
    outdated: Value,
    /// Of the way to the other node.
    route_mtu: Option<u32>,
}

impl Default for World {
    fn default() -> Self {
        let sysctls = json!({"net.bridge.bridge-nf-call-iptables": "1"});
        Self { pod_mtu: 1450, hairpin: true, sysctls, outdated: json!([]), route_mtu: Some(1450) }
    }
}

impl World {
    fn cluster() -> Cluster {
        let mut cluster = Cluster::default();
        let node = |name: &str, address: &str, net: &str| {
            json!({"kind": "Node", "apiVersion": "v1", "metadata": {"name": name}, "spec": {"podCIDRs": [net]},
                   "status": {"addresses": [{"type": "InternalIP", "address": address}]}})
        };
        let pod = |name: &str, node: &str, address: &str| {
            json!({"kind": "Pod", "apiVersion": "v1", "metadata": {"name": name, "namespace": "shop", "uid": name},
                   "spec": {"nodeName": node}, "status": {"phase": "Running", "podIPs": [{"ip": address}]}})
        };
        for object in [
            node("n1", "172.30.0.11", "10.244.1.0/24"),
            node("n2", "172.30.0.12", "10.244.2.0/24"),
            pod("web-1", "n1", "10.244.1.2"),
            pod("web-2", "n2", "10.244.2.2"),
            json!({"kind": "EndpointSlice", "apiVersion": "discovery.k8s.io/v1", "addressType": "IPv4",
                   "metadata": {"name": "web-1", "namespace": "shop", "labels": {"kubernetes.io/service-name": "web"}},
                   "ports": [{"port": 8080}], "endpoints": [{"addresses": ["10.244.1.2"], "nodeName": "n1"}]}),
        ] {
            parse::add(&mut cluster, object).expect("an object");
        }
        cluster
    }

    fn host(&self, other: &str) -> Value {
        json!({
            "links": [
                {"index": 2, "name": "eth0", "kind": "", "mtu": 1500, "up": true, "carrier": true},
                {"index": 4, "name": "cni0", "kind": "bridge", "mtu": 1500, "up": true, "carrier": true,
                 "bridge": {"nf_call_iptables": false}},
                {"index": 7, "name": "veth7", "kind": "veth", "mtu": 1500, "up": true, "carrier": true, "peer_index": 3,
                 "master_index": 4, "bridge_port": {"hairpin": self.hairpin}},
            ],
            "addresses": [], "policy_rules": [], "neighbours": [],
            "routes": [{"destination": other, "kind": "unicast", "link_index": 2, "table": 254, "mtu": self.route_mtu}],
        })
    }

    fn pod(&self, address: &str) -> Value {
        json!({
            "links": [{"index": 3, "name": "eth0", "kind": "veth", "mtu": self.pod_mtu, "up": true, "carrier": true,
                       "peer_index": 7}],
            "addresses": [{"link_index": 3, "address": address, "prefix_length": 24}],
            "routes": [{"destination": "0.0.0.0/0", "kind": "unicast", "link_index": 3, "table": 254}],
            "policy_rules": [], "neighbours": [],
        })
    }

    fn readings(&self) -> Readings {
        let flows = json!({
            "tables": [], "snapshot": {
                "at": READ_AT, "took_ms": 1, "entries": 1, "groups": [],
                "mappings": [{"address": "10.96.0.10", "protocol": "udp", "port": 53, "service": "kube-system/dns:dns",
                              "endpoint": {"address": "10.244.2.9", "port": 53}, "flows": 1, "unreplied": 1, "assured": 0,
                              "latest_packet_s": 3, "rules": "lead_elsewhere"}],
                "outdated": self.outdated,
                "outdated_flows": self.outdated.as_array().map_or(0, Vec::len),
            },
        });
        let rules = json!({"proxier": "nftables", "hooked": true, "others": [], "masquerades": true, "entries": [], "node_ports": []});
        let mut readings = Readings::new();
        for (node, other, pod, address) in
            [("n1", "10.244.2.0/24", "web-1", "10.244.1.2"), ("n2", "10.244.1.0/24", "web-2", "10.244.2.2")]
        {
            readings.insert(Need::host(node, Topic::ServiceRules), seen("service_rules", &rules));
            readings.insert(Need::host(node, Topic::Network), seen("network", &self.host(other)));
            readings.insert(Need::host(node, Topic::Sysctls), seen("sysctls", &json!({"values": self.sysctls})));
            readings.insert(Need::host(node, Topic::Flows), seen("flows", &flows));
            readings.insert(Need::host(node, Topic::Rules), seen("rules", &json!({"tables": []})));
            readings.insert(Need::pod(node, pod, Topic::Network), seen("network", &self.pod(address)));
        }
        readings
    }

    /// The one difference of n1.
    fn one(&self) -> Difference {
        let drift = drift_of(&self.readings());
        assert_eq!((drift.differences.len(), &drift.gaps), (1, &Vec::new()), "{:?}", drift.differences);
        drift.differences[0].clone()
    }

    fn none(&self) {
        let drift = drift_of(&self.readings());
        assert_eq!((drift.differences, drift.gaps), (Vec::new(), Vec::new()));
    }
}

fn drift_of(readings: &Readings) -> NodeDrift {
    let now = "2026-01-01T12:00:01Z".parse().expect("a time");
    compare(Arc::new(World::cluster()), &["n1".to_owned()], readings, now).nodes.remove(0)
}

#[test]
fn links_as_they_should_be_are_no_drift() {
    World::default().none();
}

#[test]
fn pods_that_may_send_more_than_the_way_carries_are_named() {
    let found = World { pod_mtu: 1500, ..World::default() }.one();
    assert_eq!((found.kind, found.found.as_str()), (Kind::Mtu, "1500 bytes in 1 pods: shop/web-1"));
    assert!(found.expected.contains("at most 1450 bytes") && found.expected.contains("node n2"), "{}", found.expected);
    World { pod_mtu: 1500, route_mtu: None, ..World::default() }.none();
}

#[test]
fn port_without_hairpin_is_named_where_a_service_leads_to_its_pod() {
    let world = World { hairpin: false, ..World::default() };
    let found = world.one();
    assert_eq!((found.kind, found.found.as_str()), (Kind::Hairpin, "off at veth7, of 1 pods: shop/web-1"));
    let now = "2026-01-01T12:00:01Z".parse().expect("a time");
    let other = compare(Arc::new(World::cluster()), &["n2".to_owned()], &world.readings(), now);
    assert_eq!(other.nodes[0].differences, [], "no Service leads to the pod of n2");
}

#[test]
fn bridge_that_bypasses_the_filter_is_named() {
    for (sysctls, words) in [
        (json!({"net.bridge.bridge-nf-call-iptables": "0"}), "net.bridge.bridge-nf-call-iptables is 0"),
        (json!({}), "br_netfilter is not loaded"),
    ] {
        let found = World { sysctls, hairpin: false, ..World::default() }.one();
        assert_eq!(found.kind, Kind::BridgeHooks);
        assert!(found.found.contains(words), "{}", found.found);
    }
}

#[test]
fn flow_in_use_that_no_rule_would_make_is_named() {
    let flow = |protocol: u8, latest: Option<u32>| {
        json!({"protocol_number": protocol, "status": 8, "latest_packet_s": latest, "zone": 0, "mark": 0,
               "original": {"source": "10.244.1.2", "source_port": 40000, "destination": "10.96.0.10", "destination_port": 53},
               "reply": {"source": "10.244.2.9", "source_port": 53, "destination": "10.244.1.2", "destination_port": 40000}})
    };
    let found = World { outdated: json!([flow(17, Some(3))]), ..World::default() }.one();
    assert_eq!((found.kind, found.service.as_str()), (Kind::Flow, "kube-system/dns:dns"));
    assert_eq!(found.found, "1 go to 10.244.2.9:53, the latest packet 3 s ago");
    assert_eq!(found.entrance.expect("an address").to_string(), "10.96.0.10:53/udp");
    World { outdated: json!([flow(17, Some(60)), flow(6, Some(3))]), ..World::default() }.none();
    let drift = drift_of(&World { outdated: json!([flow(17, None), flow(17, None)]), ..World::default() }.readings());
    assert_eq!((drift.differences, drift.gaps.len()), (vec![], 1));
    assert!(drift.gaps[0].why.starts_with("2 UDP flows go where the node's rules do not lead"), "{:?}", drift.gaps);
}

#[test]
fn connection_to_a_pod_that_is_gone_is_named() {
    let flow = |protocol: u8, endpoint: &str, state: &str, latest: Option<u32>| {
        json!({"protocol_number": protocol, "status": 14, "state": state, "latest_packet_s": latest, "zone": 0, "mark": 0,
               "original": {"source": "10.244.1.2", "source_port": 40000, "destination": "10.96.0.10", "destination_port": 53},
               "reply": {"source": endpoint, "source_port": 53, "destination": "10.244.1.2", "destination_port": 40000}})
    };
    let world = |flow: Value| World { outdated: json!([flow]), ..World::default() };
    let mut unacknowledged = flow(6, "10.244.2.9", "ESTABLISHED", Some(100));
    world(unacknowledged.clone()).none();
    unacknowledged["unacknowledged"] = true.into();
    let found = world(unacknowledged).one();
    let words = "1 established ones go to 10.244.2.9:53, an address that no pod has, the latest packet 100 s ago";
    assert_eq!((found.kind, found.found.as_str()), (Kind::Flow, words));
    assert_eq!(found.entrance.expect("an address").to_string(), "10.96.0.10:53/tcp");
    assert_eq!(found.service, "", "the mapping with a name is of UDP");
    assert_eq!(world(flow(132, "10.244.2.9", "ESTABLISHED", Some(4))).one().kind, Kind::Flow);
    for old in [flow(6, "10.244.2.9", "ESTABLISHED", Some(300)), flow(132, "10.244.2.9", "ESTABLISHED", Some(60))] {
        world(old).none();
    }
    for latest in [Some(3), None] {
        world(flow(6, "10.244.2.9", "FIN_WAIT", latest)).none();
        // The pod lives, and only its Service has lost it; or a slice has the address; or it is none of the pod network.
        for other in ["10.244.2.2", "10.244.1.2", "192.0.2.9"] {
            world(flow(6, other, "ESTABLISHED", latest)).none();
        }
    }
    // An idle one, too, has no age in its last minutes.
    for protocol in [6, 132] {
        let drift = drift_of(&world(flow(protocol, "10.244.2.9", "ESTABLISHED", None)).readings());
        assert_eq!((drift.differences, drift.gaps.len()), (vec![], 1), "protocol {protocol}");
        assert!(drift.gaps[0].why.starts_with("1 established connections go to addresses"), "{:?}", drift.gaps);
    }
}

#[test]
fn rule_of_an_administrator_that_stops_what_a_service_leads_to_is_named() {
    let port = json!({"on": "destination_port", "ranges": [{"first": 8080, "last": 8080}], "negated": false});
    let with = |table: &str, matches: Value| {
        let rule = json!({"handle": 4, "matches": matches, "verdict": {"do": "drop"}, "text": "drop"});
        let base = json!({"hook": "forward", "priority": 0, "kind": "filter", "policy": {"do": "accept"}});
        let rules = json!({"tables": [{"backend": "nftables", "family": "inet", "name": table,
                                       "chains": [{"name": "fw", "base": base, "rules": [rule]}]}]});
        let mut readings = World::default().readings();
        readings.insert(Need::host("n1", Topic::Rules), seen("rules", &rules));
        drift_of(&readings).differences
    };
    let found = with("site", json!([port]));
    assert_eq!(found.len(), 1, "{found:?}");
    assert_eq!((found[0].kind, found[0].rule.as_str()), (Kind::ForeignDrop, "table inet site, chain fw, handle 4"));
    assert_eq!(found[0].expected, "a packet from 10.244.2.2 to 10.244.1.2:8080/tcp passes the node's rules");
    assert_eq!(found[0].found, "1 of 1 ways to Services are stopped: drop (written by an administrator)");
    // Another device, a match that is not known, and a program of the cluster.
    assert_eq!(with("site", json!([{"on": "input_interface", "names": ["vpn0"], "negated": false}])), []);
    assert_eq!(with("site", json!([port, {"on": "other", "text": "meta mark 0x1"}])), []);
    assert_eq!(with("kindnet-network-policies", json!([port])), []);
}

#[test]
fn chains_of_services_that_were_not_read_are_a_gap_only_before_a_rule_that_may_stop() {
    let jump = json!({"handle": 3, "matches": [], "verdict": {"do": "jump", "chain": "KUBE-SERVICES"}, "text": "jump"});
    let dropping = json!({"handle": 4, "matches": [], "verdict": {"do": "drop"}, "text": "drop"});
    let drift = |rules: Value, left_out: &str| {
        let base = json!({"hook": "forward", "priority": 0, "kind": "filter", "policy": {"do": "accept"}});
        let rules = json!({"left_out": [left_out],
                           "tables": [{"backend": "iptables_nft", "family": "ip", "name": "filter",
                                       "chains": [{"name": "FORWARD", "base": base, "rules": rules}]}]});
        let mut readings = World::default().readings();
        readings.insert(Need::host("n1", Topic::Rules), seen("rules", &rules));
        drift_of(&readings)
    };
    let of_services = "rules in chains of Services after the first 2000, with the chains they are in";
    let known = drift(json!([jump]), of_services);
    assert_eq!((known.differences, known.gaps), (vec![], vec![]));
    assert_eq!(drift(json!([dropping]), of_services).differences.len(), 1, "nothing is before it");
    let doubtful = drift(json!([jump, dropping]), of_services);
    assert_eq!((doubtful.differences, doubtful.gaps.len()), (vec![], 1));
    assert!(doubtful.gaps[0].why.contains("FORWARD"), "{:?}", doubtful.gaps);
    assert_eq!(drift(json!([jump]), "rules after the first 8000, with the chains they are in").gaps.len(), 1);
}

#[test]
fn rule_that_programs_of_a_plugin_may_pass_by_is_a_gap() {
    let base = json!({"hook": "forward", "priority": 0, "kind": "filter", "policy": {"do": "drop"}});
    let rules = json!({"tables": [{"backend": "nftables", "family": "inet", "name": "site",
                                   "chains": [{"name": "fw", "base": base, "rules": []}]}]});
    let mut readings = World::default().readings();
    readings.insert(Need::host("n1", Topic::Rules), seen("rules", &rules));
    assert_eq!(drift_of(&readings).differences.len(), 1);
    if let Some(Reading::Seen { value: Observation::Network(host), .. }) =
        readings.get_mut(&Need::host("n1", Topic::Network))
    {
        let link = json!({"index": 9, "name": "cilium_host", "kind": "veth", "mtu": 1500, "up": true, "carrier": true});
        host.links.push(serde_json::from_value(link).expect("a link"));
    }
    let drift = drift_of(&readings);
    assert!(drift.differences.iter().all(|found| found.kind == Kind::PluginLeft), "{:?}", drift.differences);
    assert!(drift.gaps.iter().any(|gap| gap.why.contains("programs of link cilium_host")), "{:?}", drift.gaps);
}

#[test]
fn packets_that_ipvs_takes_are_not_forwarded_from_the_client() {
    let service = json!({"kind": "Service", "apiVersion": "v1", "metadata": {"name": "web", "namespace": "shop"},
                         "spec": {"clusterIP": "10.96.0.7", "clusterIPs": ["10.96.0.7"], "ports": [{"port": 80, "targetPort": 8080}]}});
    let mut cluster = World::cluster();
    parse::add(&mut cluster, service).expect("an object");
    let cluster = Arc::new(cluster);
    let stopped = |proxier: &str, hook: &str, net: &str| {
        let to = json!({"on": "destination", "nets": [net], "negated": false});
        let from = json!({"on": "source", "nets": ["10.244.1.2/32"], "negated": false});
        let rule = json!({"handle": 4, "matches": [from, to], "verdict": {"do": "drop"}, "text": "drop"});
        let base = json!({"hook": hook, "priority": 0, "kind": "filter", "policy": {"do": "accept"}});
        let tables = json!({"tables": [{"backend": "nftables", "family": "inet", "name": "site",
                                        "chains": [{"name": "fw", "base": base, "rules": [rule]}]}]});
        let rules = json!({"proxier": proxier, "hooked": true, "others": [], "masquerades": true, "entries": [], "node_ports": []});
        let mut readings = World::default().readings();
        readings.insert(Need::host("n1", Topic::Rules), seen("rules", &tables));
        readings.insert(Need::host("n1", Topic::ServiceRules), seen("service_rules", &rules));
        let now = "2026-01-01T12:00:01Z".parse().expect("a time");
        let drift = compare(Arc::clone(&cluster), &["n1".to_owned()], &readings, now).nodes.remove(0);
        drift.differences.iter().any(|found| found.kind == Kind::ForeignDrop)
    };
    let (service, endpoint) = ("10.96.0.7/32", "10.244.1.2/32");
    for (proxier, hook, net, is_stopped) in [
        ("nftables", "forward", endpoint, true),
        ("nftables", "input", service, false),
        ("ipvs", "forward", endpoint, false),
        ("ipvs", "input", service, true),
        ("ipvs", "input", endpoint, false),
        ("ipvs", "output", endpoint, true),
        // What serves Services there is not known.
        ("none", "forward", endpoint, false),
    ] {
        assert_eq!(stopped(proxier, hook, net), is_stopped, "{proxier} {hook} {net}");
    }
}

#[test]
fn chains_of_a_plugin_are_left_where_no_pod_and_no_configuration_is_of_it() {
    let rules = json!({"tables": [{"backend": "iptables_nft", "family": "ip", "name": "filter",
                                   "chains": [{"name": "cali-FORWARD", "rules": []}, {"name": "cali-INPUT", "rules": []}]}]});
    let with = |kind: Option<&str>, pod: &str| {
        let mut cluster = World::cluster();
        let agent = json!({"kind": "Pod", "metadata": {"name": pod, "namespace": "kube-system"}, "spec": {"hostNetwork": true}});
        parse::add(&mut cluster, agent).expect("an object");
        let network = kind.map(|kind| json!({"network": {"name": "pods", "plugins": [{"kind": kind}]}}));
        let content = network.unwrap_or_else(|| json!({"unusable": {"why": "no JSON"}}));
        let cni = json!({"folder": "/etc/cni/net.d", "files": [{"name": "10-pods.conflist", "content": content}]});
        let mut readings = World::default().readings();
        readings.insert(Need::host("n1", Topic::Rules), seen("rules", &rules));
        readings.insert(Need::host("n1", Topic::Cni), seen("cni", &cni));
        let now = "2026-01-01T12:00:01Z".parse().expect("a time");
        let drift = compare(Arc::new(cluster), &["n1".to_owned()], &readings, now).nodes.remove(0);
        (drift.differences, drift.gaps.len())
    };
    let (found, gaps) = with(Some("ptp"), "etcd");
    assert_eq!((found.len(), gaps), (1, 0), "{found:?}");
    assert_eq!((found[0].kind, found[0].found.as_str()), (Kind::PluginLeft, "2 chains: cali-FORWARD, cali-INPUT"));
    assert_eq!(with(Some("calico"), "etcd"), (vec![], 0), "it connects the node's pods");
    assert_eq!(with(Some("ptp"), "calico-node-x2f4"), (vec![], 0), "its policies alone are used");
    assert_eq!(with(None, "etcd"), (vec![], 1), "the configuration may name it");
}

#[test]
fn a_node_that_lets_pods_addresses_out_differs_from_one_that_does_not() {
    let world = World::default();
    let nodes = ["n1".to_owned(), "n2".to_owned()];
    let cluster = World::cluster();
    let mut readings = world.readings();
    let asked = masquerade::needs(&Pods::of(&cluster), &nodes, &readings);
    assert_eq!(asked.len(), 2);
    for need in asked {
        let Topic::Fate(request) = &need.topic else { panic!("{need:?}") };
        let own = request.source.expect("the pod's").to_string();
        let leaves = if need.node == "n1" { own.clone() } else { "172.30.0.12".to_owned() };
        let reading = fate(request, &leaves);
        readings.insert(need.clone(), reading);
    }
    let found = drift_of(&readings).differences;
    assert_eq!(found.len(), 1, "{found:?}");
    assert_eq!((found[0].kind, found[0].rule.as_str()), (Kind::Masquerade, "hook postrouting"));
    assert!(found[0].expected.ends_with("as on node n2") && found[0].found.ends_with("leaves with 10.244.1.2"));
}

/// The packet leaves, with this source.
fn fate(request: &FateRequest, source: &str) -> Reading<Observation> {
    let source = source.parse().expect("an address");
    let changed = FateRequest { source: Some(source), ..request.clone() };
    let packet = changed.packet(Origin::Received { interface: 4 }, source).expect("a packet");
    let fate = example::fate(packet, Vec::new(), End::Sent { interface: 2, gateway: None });
    Reading::Seen { value: Observation::Fate(Arc::new(fate)), at: READ_AT.parse().expect("a time") }
}
