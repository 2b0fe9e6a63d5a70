use super::*;

const FILE: &str = "
modules:
  http_2xx:
    prober: http
    timeout: 3s
    http:
      valid_status_codes: [200, 204]
      method: head
      no_follow_redirects: true
      fail_if_not_ssl: true
      headers: {Host: shop.example}
      preferred_ip_protocol: ip4
      ip_protocol_fallback: false
      tls_config: {insecure_skip_verify: true}
  tcp_tls: {prober: tcp, tcp: {tls: true, tls_config: {server_name: db.example}}}
  ping: {prober: icmp, icmp: {dont_fragment: true, payload_size: 1400}}
  names: {prober: dns, dns: {query_name: shop.example, query_type: MX, valid_rcodes: [NOERROR, NXDOMAIN]}}
  health: {prober: grpc, grpc: {service: shop, tls: true}}
";

#[test]
fn its_own_format_is_read() {
    let modules = Modules::of(Some(FILE)).unwrap();
    let http = modules.get("http_2xx").unwrap();
    assert_eq!((http.kind, http.timeout_ms), (Kind::Http, Some(3_000)));
    assert_eq!(http.options.expect, [200, 204]);
    assert_eq!((http.options.method.as_deref(), http.options.redirects), (Some("HEAD"), Some(0)));
    assert_eq!(http.options.headers, ["Host: shop.example"]);
    assert_eq!(http.family.and_then(Preferred::only), Some(Family::Ipv4));
    assert_eq!(http.pass, Pass { tls: Some(true), any_certificate: true, rcodes: Vec::new() });
    assert!(http.options.any_certificate, "the agent goes on, too");
    let tls = modules.get("tcp_tls").unwrap();
    assert_eq!((tls.kind, tls.options.server_name.as_deref()), (Kind::Tls, Some("db.example")));
    assert_eq!(modules.get("ping").unwrap().options.bytes, Some(1_400));
    let names = modules.get("names").unwrap();
    assert_eq!((&*names.options.records, names.query_name.as_deref()), (&[DnsType::Mx][..], Some("shop.example")));
    assert_eq!(names.pass.rcodes, ["NOERROR", "NXDOMAIN"]);
    let health = modules.get("health").unwrap();
    assert_eq!((health.options.grpc_health.as_deref(), health.options.https), (Some("shop"), true));
    assert!(modules.get("tcp_connect").is_ok(), "ours stay");
    assert!(modules.get("smtp").unwrap_err().contains("http_2xx"));
}

#[test]
fn what_is_not_known_is_told_with_its_module() {
    for (module, says) in [
        ("{prober: http, http: {fail_if_body_matches_regexp: [x]}}", "unknown field `fail_if_body_matches_regexp`"),
        ("{prober: http, http: {method: POST}}", "a probe changes nothing"),
        ("{prober: http, http: {fail_if_ssl: true, fail_if_not_ssl: true}}", "cannot both be kept"),
        ("{prober: http, http: {tls_config: {ca_file: /x}}}", "unknown field `ca_file`"),
        ("{prober: http, http: {preferred_ip_protocol: ipv4}}", "use ip4 or ip6"),
        ("{prober: tcp, tcp: {query_response: []}}", "unknown field `query_response`"),
        ("{prober: tcp, tcp: {tls_config: {insecure_skip_verify: true}}}", "without tcp.tls: true"),
        ("{prober: dns}", "needs dns.query_name"),
        ("{prober: dns, dns: {query_name: a.example}}", "dns.query_type \"ANY\": use A, AAAA"),
        ("{prober: unix}", "use http, tcp, icmp, dns or grpc"),
        ("{prober: icmp, timeout: 5}", "invalid type"),
        ("{prober: icmp, timeout: 5h}", "use a time such as"),
        ("{prober: icmp, retries: 3}", "unknown field `retries`"),
    ] {
        let modules = Modules::of(Some(&format!("modules: {{odd: {module}}}"))).unwrap();
        let said = modules.get("odd").unwrap_err();
        assert!(said.starts_with("module \"odd\": ") && said.contains(says), "{module}: {said}");
        assert_eq!(modules.refused().collect::<Vec<_>>(), [said.as_str()]);
    }
}

#[test]
fn what_is_no_list_of_modules_is_an_error() {
    for file in ["module: {}", "modules: [http_2xx]", "modules: {a: {prober: icmp}", "{modules: {}, more: {}}"] {
        let said = Modules::of(Some(file)).unwrap_err();
        assert!(said.contains("no list of modules"), "{file}: {said}");
    }
}

/// Of its blackbox.yml, what is there as an example of each kind.
const STOCK: &str = r#"
modules:
  http_2xx:
    prober: http
    http:
      preferred_ip_protocol: "ip4"
  http_post_2xx:
    prober: http
    http:
      method: POST
  grpc_plain:
    prober: grpc
    grpc:
      tls: false
      service: "service1"
  ssh_banner:
    prober: tcp
    tcp:
      query_response:
      - expect: "^SSH-2.0-"
      - send: "SSH-2.0-blackbox-ssh-check"
  icmp_ttl5:
    prober: icmp
    timeout: 5s
    icmp:
      ttl: 5
"#;

#[test]
fn a_module_that_is_not_known_refuses_itself_alone() {
    let modules = Modules::of(Some(STOCK)).unwrap();
    for known in ["http_2xx", "grpc_plain", "icmp_ttl5", "dns"] {
        assert!(modules.get(known).is_ok(), "{known}");
    }
    assert!(modules.get("http_post_2xx").unwrap_err().contains("a probe changes nothing"));
    assert!(modules.get("ssh_banner").unwrap_err().contains("unknown field `query_response`"));
    assert_eq!(modules.refused().count(), 2);
    let unknown = modules.get("smtp").unwrap_err();
    assert!(unknown.contains("icmp_ttl5") && !unknown.contains("ssh_banner"), "{unknown}");
}

#[test]
fn one_of_ours_that_a_file_has_otherwise_is_not_ours_any_more() {
    let modules = Modules::of(Some("modules: {http_2xx: {prober: http, http: {body: x}}}")).unwrap();
    assert!(modules.get("http_2xx").unwrap_err().contains("unknown field `body`"));
}
