//! `GET /probe?target=…&module=…`: what scrape configurations of blackbox_exporter ask for, with its modules and its metrics' names.
//! `from` says who sends; without it a node does.

use axum::Extension;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use http::{HeaderMap, StatusCode, Uri, header};

use super::api::{Api, Refused};
use crate::ask::Source;
use crate::cli::Failure;
use crate::evidence::Cluster;
use crate::mcp::Caller;
use crate::probe::{Kind, ProbeRequest};

mod metrics;
mod module;

use module::Module;
pub(super) use module::Modules;

/// Its default `timeout_offset`: what is left for the answer to reach Prometheus, milliseconds.
const OFFSET_MS: u64 = 500;
const USUAL_TIMEOUT_MS: u64 = 5_000;
const LONGEST_MS: u64 = 20_000;
/// Text format 0.0.4.
const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";
const USUAL_MODULE: &str = "http_2xx";
/// What every cluster's DNS knows; `query_name` names another one.
const QUERY_NAME: &str = "kubernetes.default.svc.cluster.local";

pub(super) async fn probe(
    State(api): State<Api>,
    caller: Option<Extension<Caller>>,
    headers: HeaderMap,
    uri: Uri,
) -> Result<Response, Refused> {
    let words = words(uri.query().unwrap_or_default());
    let bad = |why| Refused(StatusCode::BAD_REQUEST, why);
    let module = api.modules.get(word(&words, "module").unwrap_or(USUAL_MODULE)).map_err(bad)?;
    let cluster = api.source.cluster().await.map_err(Failure::from)?;
    let request = request(&words, module, timeout_ms(&headers), &cluster).map_err(bad)?;
    let answer = api.probe(caller, &request).await?;
    Ok(([(header::CONTENT_TYPE, CONTENT_TYPE)], metrics::text(&answer, module)).into_response())
}

/// `application/x-www-form-urlencoded`, as far as a query has it.
fn words(query: &str) -> Vec<(String, String)> {
    let pairs = query.split('&').filter_map(|pair| pair.split_once('='));
    pairs.map(|(name, value)| (decoded(name), decoded(value))).collect()
}

fn decoded(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut index = 0;
    while index < bytes.len() {
        let escaped = bytes.get(index + 1..index + 3).and_then(|two| std::str::from_utf8(two).ok());
        match (bytes[index], escaped.and_then(|two| u8::from_str_radix(two, 16).ok())) {
            (b'%', Some(byte)) => {
                out.push(byte);
                index += 3;
                continue;
            }
            (b'+', _) => out.push(b' '),
            (byte, _) => out.push(byte),
        }
        index += 1;
    }
    String::from_utf8_lossy(&out).into_owned()
}

/// As blackbox_exporter takes it from Prometheus.
fn timeout_ms(headers: &HeaderMap) -> u64 {
    let given = headers.get("X-Prometheus-Scrape-Timeout-Seconds").and_then(|value| value.to_str().ok());
    let seconds = given.and_then(|text| text.parse::<f64>().ok()).filter(|seconds| (0.0..=3_600.0).contains(seconds));
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "between 0 and 3 600 000")]
    let milliseconds =
        seconds.map_or(USUAL_TIMEOUT_MS, |seconds| ((seconds * 1_000.0) as u64).saturating_sub(OFFSET_MS));
    milliseconds.clamp(1, LONGEST_MS)
}

fn word<'w>(words: &'w [(String, String)], name: &str) -> Option<&'w str> {
    words.iter().find(|(given, _)| given == name).map(|(_, value)| value.as_str())
}

fn request(
    words: &[(String, String)],
    module: &Module,
    timeout_ms: u64,
    cluster: &Cluster,
) -> Result<ProbeRequest, String> {
    let word = |name: &str| word(words, name);
    let target = word("target").filter(|target| !target.is_empty()).ok_or("target is missing: add ?target=…")?;
    let from = match word("from") {
        Some(from) => from.to_owned(),
        None => {
            let ready = cluster.nodes.iter().find(|node| node.is_ready()).or_else(|| cluster.nodes.iter().next());
            format!("node/{}", ready.ok_or("no node is known to probe from: add &from=node/NAME")?.metadata.name)
        }
    };
    let to = match module.kind {
        Kind::Http if target.contains("://") => target.to_owned(),
        Kind::Http => format!("{}://{target}", if module.options.https { "https" } else { "http" }),
        Kind::Dns => module.query_name.as_deref().or_else(|| word("query_name")).unwrap_or(QUERY_NAME).to_owned(),
        _ => target.to_owned(),
    };
    let mut request = ProbeRequest::new(module.kind, &from, &to);
    request.options = module.options.clone();
    if module.kind == Kind::Dns {
        // An address, which has its family by itself.
        request.options.server = Some(target.to_owned());
    } else if let Some(family) = module.family.and_then(module::Preferred::only) {
        request.family = family;
    }
    request.count = Some(1);
    let timeout_ms = module.timeout_ms.map_or(timeout_ms, |own| own.min(timeout_ms));
    request.timeout_ms = u32::try_from(timeout_ms).ok();
    Ok(request)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::evidence::parse;

    fn asked(query: &str) -> Result<ProbeRequest, String> {
        let mut cluster = Cluster::default();
        parse::add(&mut cluster, json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n1"}}))
            .expect("a node");
        let (words, modules) = (words(query), Modules::usual());
        request(&words, modules.get(word(&words, "module").unwrap_or(USUAL_MODULE))?, 4_500, &cluster)
    }

    #[test]
    fn its_modules_become_our_kinds() {
        let http = asked("target=shop.example%3A8080%2Fa%20b&module=http_2xx").expect("a request");
        assert_eq!(
            (http.kind, http.to.as_str(), http.from.as_str()),
            (Kind::Http, "http://shop.example:8080/a b", "node/n1")
        );
        assert_eq!((http.options.expect.len(), http.timeout_ms, http.count), (100, Some(4_500), Some(1)));
        let tcp = asked("module=tcp_connect&target=10.0.0.1:22&from=pod%2Fshop%2Fclient").expect("a request");
        assert_eq!((tcp.kind, tcp.to.as_str(), tcp.from.as_str()), (Kind::Tcp, "10.0.0.1:22", "pod/shop/client"));
        let dns = asked("module=dns&target=10.96.0.10").expect("a request");
        assert_eq!(
            (dns.kind, dns.to.as_str(), dns.options.server.as_deref()),
            (Kind::Dns, QUERY_NAME, Some("10.96.0.10"))
        );
        assert!(asked("module=icmp").expect_err("no target").contains("target"));
        assert!(asked("module=smtp&target=a").expect_err("no module").contains("http_2xx"));
    }

    #[test]
    fn a_module_of_a_file_decides_what_is_sent() {
        let mut cluster = Cluster::default();
        parse::add(&mut cluster, json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n1"}}))
            .expect("a node");
        let file = "
modules:
  health: {prober: grpc, timeout: 1s, grpc: {tls: true, service: shop}}
  names: {prober: dns, dns: {query_name: shop.example, query_type: AAAA}}
  six: {prober: icmp, icmp: {ip_protocol_fallback: false}}
";
        let modules = Modules::of(Some(file)).expect("modules");
        let asked = |query: &str, name: &str| {
            request(&words(query), modules.get(name).expect("a module"), 4_500, &cluster).expect("a request")
        };
        let health = asked("target=shop.example:8443", "health");
        assert_eq!((health.kind, health.to.as_str()), (Kind::Http, "https://shop.example:8443"));
        assert_eq!((health.options.grpc_health.as_deref(), health.timeout_ms), (Some("shop"), Some(1_000)));
        let names = asked("target=10.96.0.10&query_name=other.example", "names");
        assert_eq!((names.to.as_str(), names.options.server.as_deref()), ("shop.example", Some("10.96.0.10")));
        assert_eq!(asked("target=shop.example", "six").family, crate::probe::Family::Ipv6);
    }

    #[test]
    fn a_timeout_leaves_time_for_the_answer() {
        let of = |text: &'static str| {
            timeout_ms(
                &[("X-Prometheus-Scrape-Timeout-Seconds".parse().expect("a name"), text.parse().expect("a value"))]
                    .into_iter()
                    .collect(),
            )
        };
        assert_eq!((of("10"), of("0.2"), of("nonsense"), of("600")), (9_500, 1, 5_000, LONGEST_MS));
    }
}
