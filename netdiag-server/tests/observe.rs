//! `netdiag observe` as people and programs run it: names joined, filters kept, losses and dark nodes said, one schema.

mod lab;

use lab::{Bundle, code, json, netdiag, not_seen, stderr};
use serde_json::{Value, json};

const NOW: &str = "2026-01-01T12:00:00Z";

fn reading(netns: Value, topic: &str, value: Value) -> Value {
    json!({"need": {"node": "n1", "netns": netns, "topic": topic},
           "reading": {"state": "seen", "at": NOW, "value": {"topic": topic, "value": value}}})
}

fn pod(uid: &str) -> Value {
    json!({"pod": {"uid": uid}})
}

fn times() -> Value {
    json!({"first_at": "2026-01-01T11:56:00Z", "last_at": "2026-01-01T11:59:58Z"})
}

/// What one node saw: the client's packets to Service shop/web are rejected, its DNS server is silent, and more.
fn report() -> Value {
    let with = |mut group: Value| {
        group.as_object_mut().expect("an object").extend(times().as_object().expect("an object").clone());
        group
    };
    let to_web = json!({"source": "10.244.1.2", "destination": "10.244.2.3", "protocol": "tcp", "protocol_number": 6,
                        "service_port": 8080, "port_is_destination": true});
    let counted = |groups: Vec<Value>, accounts: Value, key: &str| json!({"since": "2026-01-01T11:55:00Z", "window_s": 300.0, "accounts": accounts, key: groups, "exemplars": []});
    let histogram = json!({"count": 3, "sum_us": 2_400, "buckets": [{"below_us": 1_024, "count": 3}]});
    let drops = counted(
        vec![
            with(json!({"netns": "host", "reason": "NETFILTER_DROP", "location": "nft_do_chain", "ifindex": 7,
                "direction": "forwarded", "hook": "forward", "tuple": to_web, "packets": 211, "bytes": 12_660,
                "translation": {"before": "10.96.0.7:80", "after": "10.244.2.3:8080"}})),
            with(json!({"netns": pod("uid-web-1"), "reason": "NO_SOCKET", "location": "tcp_v4_rcv", "ifindex": 2,
                "tuple": null, "packets": 4, "bytes": 240})),
        ],
        json!({"total": 220, "attributed": 211, "coarse": 4, "foreign_netns": 0, "reason_only": 5, "foreign": 0,
               "unparsed": 0, "missed": 0, "forgotten": 0, "exemplars_sent": 1, "exemplars_suppressed": 0,
               "exemplars_lost": 0}),
        "groups",
    );
    let accounts_of_rejects = json!({"total": 9, "icmp_sent": 9, "resets_sent": 0, "resets_received": 0, "errors": 0,
        "attributed": 9, "coarse": 0, "foreign_netns": 0, "total_only": 0, "unparsed": 0, "missed": 0, "forgotten": 0});
    let reject = json!({"netns": "host", "kind": {"what": "icmp_sent", "icmp_type": 3, "code": 13}, "tuple": to_web,
        "packets": 9});
    let tcp_accounts: serde_json::Map<String, Value> = [
        "open_before",
        "connects",
        "established",
        "refused",
        "timed_out",
        "reset",
        "unreachable",
        "abandoned",
        "no_port",
        "other",
        "untracked",
        "lost",
        "open",
        "unmatched",
        "accepted",
        "broken",
        "syn_retransmits",
        "synack_retransmits",
        "retransmits",
        "attributed",
        "coarse",
        "foreign_netns",
        "total_only",
        "missed",
        "forgotten",
    ]
    .into_iter()
    .map(|name| (name.to_owned(), json!(0)))
    .collect();
    let tcp = [
        with(json!({"netns": pod("uid-client"), "service": "10.96.0.7:80", "side": "client", "connects": 5, "open": 1,
            "results": [{"outcome": "timed_out", "errno": 110, "time": histogram},
                        {"outcome": "established", "errno": 0, "time": histogram}], "syn_retransmits": 6})),
        with(json!({"netns": pod("uid-client"), "service": "10.96.0.10:53", "side": "client", "connects": 3,
            "results": [{"outcome": "established", "errno": 0, "time": histogram}]})),
    ];
    let dns_accounts: serde_json::Map<String, Value> = [
        "queries",
        "answered",
        "unanswered",
        "unparsed",
        "shed",
        "open",
        "patience_ms",
        "retries",
        "unmatched",
        "tcp_rest",
        "ungrouped",
        "foreign_netns",
        "served_queries",
        "served_answers",
        "names_read",
        "names_suppressed",
        "names_lost",
        "forgotten",
    ]
    .into_iter()
    .map(|name| (name.to_owned(), json!(0)))
    .collect();
    let client = with(json!({"netns": pod("uid-client"), "server": "10.96.0.10:53", "protocol": "udp", "answered": 40,
        "unanswered": 2, "shed": 0, "retries": 2, "retries_after_5s": 2, "truncated": 0, "empty": 0,
        "rcodes": {"NOERROR": 10, "NXDOMAIN": 30}, "types": {"A": 42}, "latency": histogram}));
    let name = json!({"netns": pod("uid-client"), "name": "web.shop.svc.cluster.local", "record": "A", "queries": 12,
        "nxdomain": 0, "failed": 0, "unanswered": 2, "retries": 2, "longest_us": 5_001_000});
    let mut dns = counted(vec![client], Value::Object(dns_accounts), "clients");
    dns["names"] = json!([name]);
    let counter = |value: u64, delta: u64| json!({"value": value, "delta": delta});
    let sockets = json!({"states": [], "memory": {"page_bytes": 4096, "tcp_pages": 1, "udp_pages": 1, "orphans": 0,
        "time_wait": 0}, "listeners": [{"address": "[::]:8080", "queue": 129, "limit": 128, "drops": 77,
        "process": {"pid": 101, "name": "web", "container_id": "web-1"}}]});
    let counters = json!({"since": "2026-01-01T11:55:00Z", "window_s": 300.0, "counters": {
        "TcpExt.ListenOverflows": counter(77, 60), "Tcp.InSegs": counter(100_000, 3_000)}});
    let udp_group = with(json!({"netns": pod("uid-client"), "port": 9000, "errno": 12, "packets": 3}));
    let udp_accounts = json!({"total": 3, "attributed": 3, "coarse": 0, "foreign_netns": 0, "total_only": 0, "missed": 0,
        "forgotten": 0});
    json!({"wire": 1, "agent": "0.1.0", "node": "n1", "boot_id": "b", "at": NOW, "boottime_ns": 1, "sequence": 1,
    "readings": [
        reading(json!("host"), "drops", drops),
        reading(json!("host"), "rejects", counted(vec![with(reject)], accounts_of_rejects, "groups")),
        reading(json!("host"), "tcp", counted(tcp.to_vec(), Value::Object(tcp_accounts), "groups")),
        reading(json!("host"), "udp", counted(vec![udp_group], udp_accounts, "groups")),
        reading(json!("host"), "dns", dns),
        reading(json!({"pod": "uid-web-1"}), "sockets", sockets),
        reading(json!({"pod": "uid-web-1"}), "counters", counters),
    ]})
}

fn bundle() -> Bundle {
    let bundle = Bundle::new();
    bundle.write("nodes/n1.json", &report().to_string());
    bundle
}

fn observe(bundle: &Bundle, arguments: &[&str]) -> std::process::Output {
    let path = bundle.path();
    netdiag(&[&["observe", "--bundle", path.to_str().expect("UTF-8")], arguments].concat())
}

fn text(output: &std::process::Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
fn the_overview_names_pods_and_services_and_says_who_is_dark() {
    let output = observe(&bundle(), &["--node", "n1"]);
    assert_eq!(code(&output), 0, "{output:?}");
    insta::assert_snapshot!("overview", text(&output).split_once('\n').expect("a heading").1);
    let output = observe(&bundle(), &["drops"]);
    assert_eq!(code(&output), 3, "n2 was not recorded: {output:?}");
    assert!(text(&output).contains("(by 1 of 2 nodes)"), "{}", text(&output));
}

#[test]
fn every_subject_holds_to_the_schema() {
    let schemas = netdiag_server::answer::schema::all();
    let (_, schema) = schemas.iter().find(|(name, _)| *name == "observe.v1.json").expect("a schema");
    let schema = jsonschema::validator_for(schema).expect("a schema");
    let bundle = bundle();
    for subject in ["drops", "rejects", "tcp", "udp", "dns", "flows", "devices", "neighbours", "sockets", "counters"] {
        let look = json(&observe(&bundle, &[subject, "-o", "json"]));
        let wrong: Vec<String> = schema.iter_errors(&look).map(|error| error.to_string()).collect();
        assert!(wrong.is_empty(), "{subject}: {wrong:?}");
        assert!(look[subject].is_object(), "{subject}: {look}");
    }
    let look = json(&observe(&bundle, &["-o", "json"]));
    assert!(schema.is_valid(&look), "{look}");
    assert_eq!(look["tcp"]["rows"].as_array().map(Vec::len), Some(1), "only what fails is in the overview: {look}");
    let losses: Vec<&str> =
        look["losses"].as_array().expect("a list").iter().filter_map(|l| l["what"].as_str()).collect();
    assert_eq!(losses.len(), 2, "{losses:?}");
}

#[test]
fn filters_select_rows() {
    let bundle = bundle();
    let rows = |arguments: &[&str], subject: &str| -> Vec<Value> {
        let look = json(&observe(&bundle, &[arguments, &["-o", "json"]].concat()));
        look[subject]["rows"].as_array().expect("rows").clone()
    };
    let by_service = rows(&["drops", "--service", "shop/web"], "drops");
    assert_eq!(by_service.len(), 2, "{by_service:?}");
    assert_eq!(by_service[0]["asked"]["name"], "service shop/web");
    assert_eq!(by_service[0]["to"]["name"], "pod shop/web-2");
    assert_eq!(rows(&["drops", "--pod", "shop/client"], "drops").len(), 1);
    assert_eq!(rows(&["drops", "--reason", "no_sock"], "drops").len(), 1);
    assert_eq!(rows(&["tcp", "--service", "kube-system/kube-dns"], "tcp").len(), 1);
    assert_eq!(rows(&["tcp", "--reason", "timed"], "tcp").len(), 1);
    assert_eq!(rows(&["dns", "--namespace", "shop"], "dns_names").len(), 1);
    assert_eq!(rows(&["sockets", "--pod", "shop/web-1"], "sockets")[0]["process"], "web (pid 101)");
    assert_eq!(rows(&["counters", "--pod", "shop/web-1"], "counters")[0]["counter"], "TcpExt.ListenOverflows");
}

#[test]
fn what_is_not_there_or_not_recorded_is_said() {
    let bundle = bundle();
    for (arguments, says) in [
        (["--pod", "shop/webb-1"], "there is no Pod shop/webb-1; there is"),
        (["--pod", "web-1"], "use NAMESPACE/NAME"),
        (["--service", "shop/webb"], "there is no Service shop/webb; there is shop/web"),
        (["--window", "2m"], "use one of 10s, 1m, 5m, 1h"),
    ] {
        let output = observe(&bundle, &arguments);
        assert_eq!(code(&output), 2, "{arguments:?}: {output:?}");
        assert!(stderr(&output).contains(says), "{arguments:?}: {}", stderr(&output));
    }
    let output = observe(&bundle, &["drops", "--window", "10s", "--node", "n1", "-o", "json"]);
    assert_eq!(code(&output), 3, "{output:?}");
    assert!(not_seen(&json(&output)).iter().any(|gap| gap.contains("dropped packets on node n1")), "{output:?}");
}

#[test]
fn a_scan_names_what_fails_by_itself_and_asks_why() {
    let bundle = Bundle::new();
    let mut report = report();
    let readings = report["readings"].as_array_mut().expect("a list");
    readings.retain(|reading| reading["need"]["topic"] == "tcp");
    readings[0]["need"]["window"] = json!("1m");
    let groups = readings[0]["reading"]["value"]["value"]["groups"].as_array_mut().expect("a list");
    // Nothing in the cluster is there, so nothing in the cluster explains it.
    groups[0]["service"] = json!("203.0.113.9:443");
    groups[0]["results"][0]["time"]["count"] = json!(30);
    bundle.write("nodes/n1.json", &report.to_string());
    let path = bundle.path();
    let output = netdiag(&["scan", "--bundle", path.to_str().expect("UTF-8"), "-o", "json"]);
    let scan = json(&output);
    assert_eq!(scan["unexplained"].as_array().map(Vec::len), Some(1), "{scan}");
    let one = &scan["unexplained"][0];
    assert_eq!(one["what"], "30 of 33 connects failed: 30 timed out");
    assert_eq!(one["ask"], "netdiag diagnose --from pod/shop/client --to ip/203.0.113.9:443");
    assert_eq!(code(&output), 3, "a symptom without a cause");
}
