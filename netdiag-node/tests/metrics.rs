//! Metrics as Prometheus and a collector get them: on their own port, with the documented names, counting what happens.

#![expect(clippy::unwrap_used, reason = "the helpers of these tests too")]

mod lab;

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::Duration;

use lab::Agent;
use netdiag_node::metrics::{ALL, Metric};
use opentelemetry_proto::tonic::collector::metrics::v1::ExportMetricsServiceRequest;
use opentelemetry_proto::tonic::metrics::v1::metric::Data;
use prost::Message as _;

fn free_address() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

fn get(address: SocketAddr, path: &str) -> (String, String) {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nHost: metrics\r\nConnection: close\r\n\r\n").unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    let (head, body) = text.split_once("\r\n\r\n").unwrap();
    (head.to_owned(), body.to_owned())
}

/// Values by name and labels.
fn values(body: &str) -> BTreeMap<String, f64> {
    let lines = body.lines().filter(|line| !line.starts_with('#'));
    lines
        .map(|line| line.rsplit_once(' ').unwrap())
        .map(|(name, value)| (name.to_owned(), value.parse().unwrap()))
        .collect()
}

#[test]
fn prometheus_gets_documented_names_and_counters_that_grow() {
    let address = free_address();
    let agent = Agent::start(&["--metrics-listen", &address.to_string()]);
    let (head, body) = get(address, "/metrics");
    assert!(head.starts_with("HTTP/1.1 200") && head.contains("application/openmetrics-text"), "{head}");
    assert!(body.ends_with("# EOF\n"));
    let before = values(&body);
    let name = |series: &str| series.split('{').next().unwrap().to_owned();
    for series in before.keys() {
        // A histogram is written as several series.
        let base =
            ["_bucket", "_sum", "_count"].iter().find_map(|suffix| series.split('{').next()?.strip_suffix(suffix));
        let documented = |metric: &&&Metric| metric.name == name(series) || Some(metric.name) == base;
        assert!(ALL.iter().find(documented).is_some(), "{series} is not documented");
    }
    let instance = agent.report(Vec::new()).instance;
    assert!(before.keys().any(|series| series.starts_with("netdiag_agent_info") && series.contains(&instance)));
    assert!(before["process_resident_memory_bytes"] > 1e6 && before["process_cpu_seconds_total"] > 0.0);

    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    for _ in 0..10 {
        socket.send_to(b"dropped", "127.0.0.1:9").unwrap();
    }
    // Longer than a look is reused.
    std::thread::sleep(Duration::from_millis(1_200));
    let after = values(&get(address, "/metrics").1);
    for (series, value) in before.iter().filter(|(series, _)| name(series).ends_with("_total")) {
        assert!(after[series] >= *value, "{series} went from {value} to {}", after[series]);
    }
    let drops = |of: &BTreeMap<String, f64>, metric: &str| -> f64 {
        of.iter().filter(|(series, _)| name(series) == metric).map(|(_, value)| value).sum()
    };
    if before.contains_key("netdiag_drops_accounted_total{level=\"attributed\"}") {
        assert!(drops(&after, "netdiag_drops_total") >= drops(&before, "netdiag_drops_total") + 10.0);
        let unaccounted = drops(&after, "netdiag_drops_total") - drops(&after, "netdiag_drops_accounted_total");
        assert!(unaccounted.abs() < 0.5, "{unaccounted} packets have no level");
    } else {
        lab::skip("dropped packets are not counted here");
    }
    assert!(get(address, "/v1/status").0.starts_with("HTTP/1.1 404"), "only metrics are served without a certificate");
    assert_eq!(agent.request("GET /metrics", "").unwrap().0, 404, "metrics have a port of their own");
}

#[test]
fn connects_refusals_and_full_sockets_are_exported_and_their_terms_add_up() {
    const TEST: &str = "connects_refusals_and_full_sockets_are_exported_and_their_terms_add_up";
    let address = free_address();
    let _agent = Agent::start(&["--metrics-listen", &address.to_string()]);
    let before = values(&get(address, "/metrics").1);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let closed = free_address();
    for _ in 0..10 {
        let near = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (far, _) = listener.accept().unwrap();
        drop((near, far));
        assert!(TcpStream::connect(closed).is_err());
    }
    // Nobody reads: the buffer of 208 KiB holds some hundred of them.
    let (unread, sender) = (UdpSocket::bind("127.0.0.1:0").unwrap(), UdpSocket::bind("127.0.0.1:0").unwrap());
    for _ in 0..1_000 {
        sender.send_to(&[0; 1_000], unread.local_addr().unwrap()).unwrap();
    }
    // Longer than a look is reused.
    std::thread::sleep(Duration::from_millis(1_200));
    let after = values(&get(address, "/metrics").1);
    let sum = |of: &BTreeMap<String, f64>, start: &str| -> f64 {
        of.iter().filter(|(series, _)| series.starts_with(start)).map(|(_, value)| value).sum()
    };
    let grown = |start: &str| sum(&after, start) - sum(&before, start);
    let is_there = |start: &str| before.keys().any(|series| series.starts_with(start));

    if is_there("netdiag_tcp_connects_total") {
        assert!(grown("netdiag_tcp_connects_total") >= 20.0);
        assert!(grown("netdiag_tcp_connect_results_total{result=\"established\"") >= 10.0);
        assert!(grown("netdiag_tcp_connect_results_total{result=\"refused\"") >= 10.0);
        assert!(grown("netdiag_tcp_accepted_total") >= 10.0);
        let timed = grown("netdiag_tcp_handshake_seconds_count");
        assert!(timed >= 10.0 && timed <= grown("netdiag_tcp_connect_results_total{result=\"established\""), "{timed}");
        assert!(grown("netdiag_tcp_handshake_seconds_sum") < timed, "a handshake on loopback takes microseconds");
        let begun = sum(&after, "netdiag_tcp_connects_total") + sum(&after, "netdiag_tcp_connects_unmatched_total");
        let ended = sum(&after, "netdiag_tcp_connect_results_total") + sum(&after, "netdiag_tcp_connects_open");
        assert!((begun - ended).abs() < 0.5, "{begun} attempts begun, {ended} ended or open");
    } else {
        println!("netdiag-skip: {TEST}: connections are not counted here");
    }
    if is_there("netdiag_rejects_total") {
        assert!(grown("netdiag_rejects_total{kind=\"reset_received\"") >= 10.0);
        let (kinds, levels) = (sum(&after, "netdiag_rejects_total"), sum(&after, "netdiag_rejects_accounted_total"));
        assert!((kinds - levels).abs() < 0.5, "{kinds} refusals, {levels} of them have a level");
    } else {
        println!("netdiag-skip: {TEST}: refusals are not counted here");
    }
    if is_there("netdiag_udp_full_total") {
        assert!(grown("netdiag_udp_full_total") >= 100.0, "{}", grown("netdiag_udp_full_total"));
        let (all, levels) = (sum(&after, "netdiag_udp_full_total"), sum(&after, "netdiag_udp_full_accounted_total"));
        assert!((all - levels).abs() < 0.5, "{all} datagrams, {levels} of them have a level");
    } else {
        println!("netdiag-skip: {TEST}: full UDP sockets are not counted here");
    }
}

#[test]
fn a_collector_gets_the_same_by_otlp() {
    let collector = TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = format!("http://{}", collector.local_addr().unwrap());
    let _agent = Agent::start(&[
        "--otlp-endpoint",
        &endpoint,
        "--otlp-interval-ms",
        "1000",
        "--otlp-headers",
        "x-scope-orgid=seven",
    ]);
    let (stream, _) = collector.accept().unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    let mut reader = BufReader::new(stream);
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        assert_ne!(reader.read_line(&mut head).unwrap(), 0, "{head}");
    }
    assert!(head.starts_with("POST /v1/metrics HTTP/1.1\r\n"), "{head}");
    assert!(head.contains("x-scope-orgid: seven") && head.contains("application/x-protobuf"), "{head}");
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")).unwrap().parse().unwrap();
    let mut body = vec![0; length];
    reader.read_exact(&mut body).unwrap();
    reader.get_mut().write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").unwrap();

    let request = ExportMetricsServiceRequest::decode(body.as_slice()).unwrap();
    let resource = &request.resource_metrics[0];
    let keys: Vec<&str> = resource.resource.as_ref().unwrap().attributes.iter().map(|pair| pair.key.as_str()).collect();
    assert!(keys.contains(&"service.instance.id") && keys.contains(&"k8s.node.name"), "{keys:?}");
    let metrics = &resource.scope_metrics[0].metrics;
    assert!(metrics.iter().all(|metric| ALL.iter().any(|known| known.name == metric.name)));
    let cpu = metrics.iter().find(|metric| metric.name == "process_cpu_seconds_total").unwrap();
    assert!(matches!(&cpu.data, Some(Data::Sum(sum)) if sum.is_monotonic), "{cpu:?}");
}
