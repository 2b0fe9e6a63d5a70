use serde_json::{Value, json};

use super::super::module::Modules;
use super::*;
use crate::answer::probe::ProbeStatus;
use crate::probe::Tally;

fn page(modules: &Modules, module: &str, kind: Kind, failure: &Value, report: &Value) -> String {
    page_of(modules, module, kind, &[("10.0.0.1:443", failure, report)])
}

/// Of several series: to whom, how its attempt failed, and its report.
fn page_of(modules: &Modules, module: &str, kind: Kind, all: &[(&str, &Value, &Value)]) -> String {
    let series = all.iter().map(|(to, failure, report)| {
        let attempt = json!({"number": 0, "at_us": 0, "elapsed_us": 12_500, "source": "", "to": to, "endpoint": "",
            "failure": failure, "report": report});
        let attempt: AttemptEntry = serde_json::from_value(attempt).expect("an attempt");
        let tally = Tally { asked: 1, made: 1, succeeded: 1, attempts: vec![attempt], ..Tally::default() };
        SeriesEntry {
            to: (*to).to_owned(),
            status: ProbeStatus::Well,
            verdict: String::new(),
            endpoints: String::new(),
            tally,
            details: Vec::new(),
            followed: None,
            secret: None,
            mtu: None,
        }
    });
    let answer = ProbeAnswer {
        schema: String::new(),
        cluster: String::new(),
        at: Timestamp::UNIX_EPOCH,
        kind,
        from: String::new(),
        node: String::new(),
        to: String::new(),
        status: ProbeStatus::Well,
        verdict: String::new(),
        series: series.collect(),
        ladders: Vec::new(),
        matrix: None,
        not_seen: Vec::new(),
        truncated: String::new(),
    };
    text(&answer, modules.get(module).expect("a module"))
}

fn has(page: &str, lines: &[&str]) {
    for line in lines {
        assert!(page.lines().any(|found| found == *line), "{line}: {page}");
    }
}

fn failed(class: &str, stage: &str) -> Value {
    json!({"class": class, "stage": stage, "errno": "", "said_by": "", "icmp": "", "why": ""})
}

fn tls() -> Value {
    json!({"handshake_us": 900, "version": "TLSv1.3", "chain": [{"subject": "s", "issuer": "i", "names": [],
        "not_before": "2026-01-01T00:00:00Z", "not_after": "2027-01-01T00:00:00Z", "sha256": "", "serial": ""}],
        "ocsp_stapled": false, "client_certificate_wanted": false, "problems": []})
}

fn tagged(kind: &str, mut report: Value) -> Value {
    report["kind"] = kind.into();
    report
}

#[test]
fn metrics_have_its_names() {
    let modules = Modules::usual();
    let page = page(&modules, "tls_connect", Kind::Tls, &Value::Null, &tagged("tls", tls()));
    has(
        &page,
        &[
            "probe_success 1",
            "probe_duration_seconds 0.0125",
            "probe_ip_protocol 4",
            "probe_ssl_earliest_cert_expiry 1798761600",
            "probe_tls_version_info{version=\"TLS 1.3\"} 1",
        ],
    );
}

#[test]
fn an_answer_by_http_is_told_with_its_lengths() {
    let exchange = json!({"url": "http://a/", "phases": {"connect_us": 500, "first_byte_us": 2_000, "body_us": 10},
        "status": 404, "version": "HTTP/1.1", "headers": [["content-length", "12"]], "body_bytes": 12, "whole": true});
    let report = json!({"kind": "http", "exchanges": [exchange], "tls": tls()});
    let page = page(&Modules::usual(), "http_2xx", Kind::Http, &failed("status", "answer"), &report);
    has(
        &page,
        &[
            "probe_success 0",
            "probe_http_status_code 404",
            "probe_http_version 1.1",
            "probe_http_ssl 1",
            "probe_http_content_length 12",
            "probe_http_uncompressed_body_length 12",
            "probe_failed_due_to_regex 0",
            "probe_http_duration_seconds{phase=\"processing\"} 0.002",
            "probe_tls_version_info{version=\"TLS 1.3\"} 1",
        ],
    );
}

#[test]
fn a_module_says_what_a_success_is() {
    let file = "
modules:
  https: {prober: http, http: {fail_if_not_ssl: true, tls_config: {insecure_skip_verify: true}}}
  plain: {prober: http, http: {fail_if_ssl: true, tls_config: {insecure_skip_verify: true}}}
  gone: {prober: dns, dns: {query_name: a.example, query_type: A, valid_rcodes: [NXDOMAIN]}}
  health: {prober: grpc}
  six: {prober: http, http: {ip_protocol_fallback: false}}
";
    let modules = Modules::of(Some(file)).expect("modules");
    let https = |status: u16| {
        let exchange = json!({"url": "https://a/", "phases": {}, "status": status, "headers": [], "body_bytes": 0,
            "whole": true});
        json!({"kind": "http", "exchanges": [exchange], "tls": tls()})
    };
    let (distrusted, no_name) = (failed("certificate", "tls"), failed("rcode", "answer"));
    let answer = json!({"rcode": "NXDOMAIN", "flags": [], "records": [], "addresses": [], "bytes": 30});
    let query = json!({"server": "10.96.0.10:53", "transport": "udp", "name": "a.example.", "record": "A",
        "elapsed_us": 300, "answer": answer, "ignored": 0});
    let names = json!({"kind": "dns", "queries": [query], "addresses": []});
    let (mut empty, no_address) = (names.clone(), failed("no_data", "lookup"));
    empty["queries"][0]["answer"]["rcode"] = "NOERROR".into();
    let mut serving = https(200);
    serving["grpc_health"] = "SERVING".into();
    serving["grpc_status"] = 0.into();
    for (module, kind, failure, report, success) in [
        ("https", Kind::Http, &distrusted, &https(200), 1),
        ("https", Kind::Http, &distrusted, &https(500), 0),
        ("http_2xx", Kind::Http, &distrusted, &https(200), 0),
        ("plain", Kind::Http, &distrusted, &https(200), 0),
        ("gone", Kind::Dns, &no_name, &names, 1),
        ("dns", Kind::Dns, &no_name, &names, 0),
        ("dns", Kind::Dns, &no_address, &empty, 1),
        ("tcp_connect", Kind::Tcp, &no_address, &empty, 0),
        ("health", Kind::Http, &Value::Null, &serving, 1),
        ("health", Kind::Http, &distrusted, &serving, 0),
        ("six", Kind::Http, &Value::Null, &https(200), 0),
    ] {
        has(&page(&modules, module, kind, failure, report), &[&format!("probe_success {success}")]);
    }
    let page = page(&modules, "health", Kind::Http, &Value::Null, &serving);
    has(&page, &["probe_grpc_healthcheck_response{serving_status=\"SERVING\"} 1", "probe_grpc_status_code 0"]);
}

#[test]
fn one_address_of_an_object_decides_and_none_is_its_lookup() {
    let file = "
modules:
  four: {prober: tcp, tcp: {preferred_ip_protocol: ip4}}
  six: {prober: tcp, tcp: {preferred_ip_protocol: ip6}}
";
    let modules = Modules::of(Some(file)).expect("modules");
    let (well, dead, report) = (Value::Null, failed("silence", "connect"), json!({"kind": "nothing"}));
    let mut no_way = failed("unreachable", "connect");
    no_way["errno"] = "ENETUNREACH".into();
    for (module, four, six, protocol, success) in [
        ("tcp_connect", &well, &dead, 6, 0),
        ("tcp_connect", &dead, &well, 6, 1),
        ("tcp_connect", &well, &no_way, 4, 1),
        ("tcp_connect", &dead, &no_way, 4, 0),
        ("four", &well, &dead, 4, 1),
        ("four", &dead, &well, 4, 0),
        ("six", &well, &no_way, 6, 0),
    ] {
        let all = [("10.96.0.80:80", four, &report), ("[fd00::80]:80", six, &report)];
        let (success, protocol) = (format!("probe_success {success}"), format!("probe_ip_protocol {protocol}"));
        let page = page_of(&modules, module, Kind::Tcp, &all);
        has(&page, &[&success, &protocol, "probe_dns_lookup_time_seconds 0", "probe_duration_seconds 0.0125"]);
    }
    let pods = [("10.244.1.4:80", &dead, &report), ("10.244.2.4:80", &well, &report)];
    has(&page_of(&modules, "tcp_connect", Kind::Tcp, &pods), &["probe_success 0"]);
}

#[test]
fn a_names_lookup_is_told_beside_the_attempt_and_not_judged() {
    let (well, dead, report) = (Value::Null, failed("silence", "connect"), json!({"kind": "nothing"}));
    let (lookup, answer) = ("10.96.0.10:53", json!({"kind": "dns", "queries": [], "addresses": ["10.0.0.1"]}));
    for (failure, success) in [(&well, 1), (&dead, 0)] {
        let all = [(lookup, &well, &answer), ("10.0.0.1:22", failure, &report)];
        let page = page_of(&Modules::usual(), "tcp_connect", Kind::Tcp, &all);
        let success = format!("probe_success {success}");
        has(&page, &[&success, "probe_dns_lookup_time_seconds 0.0125", "probe_duration_seconds 0.025"]);
    }
}

#[test]
fn addresses_are_hashed_as_it_does() {
    // FNV-1a of the bytes 1, 2, 3, 4 and of none, by hand from its definition (draft-eastlake-fnv).
    assert_eq!(hash(IpAddr::from([0, 0, 0, 0])), 0x4b95_f515);
    assert_ne!(hash(IpAddr::from([10, 0, 0, 1])), hash(IpAddr::from([10, 0, 0, 2])));
}
