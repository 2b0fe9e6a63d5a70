//! `GET /probe?target=…&module=…`: what scrape configurations of blackbox_exporter ask for, with its metrics' names (its
//! CONFIGURATION.md and prober/*.go, v0.27). `from` says who sends; without it a node does.

use std::fmt::Write;

use axum::Extension;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use http::{HeaderMap, StatusCode, Uri, header};
use jiff::Timestamp;
use netdiag_common::observation::series::{ProbeReport, TlsReport};

use super::api::{Api, Refused};
use crate::answer::probe::{ProbeAnswer, ProbeStatus};
use crate::ask::Source;
use crate::cli::Failure;
use crate::evidence::Cluster;
use crate::mcp::Caller;
use crate::probe::tally::AttemptEntry;
use crate::probe::{Kind, ProbeRequest};

/// Its default `timeout_offset`: what is left for the answer to reach Prometheus, milliseconds.
const OFFSET_MS: u64 = 500;
const USUAL_TIMEOUT_MS: u64 = 5_000;
const LONGEST_MS: u64 = 20_000;
/// Text format 0.0.4.
const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";
/// What every cluster's DNS knows; `query_name` names another one.
const QUERY_NAME: &str = "kubernetes.default.svc.cluster.local";

pub(super) async fn probe(
    State(api): State<Api>,
    caller: Option<Extension<Caller>>,
    headers: HeaderMap,
    uri: Uri,
) -> Result<Response, Refused> {
    let words = words(uri.query().unwrap_or_default());
    let cluster = api.source.cluster().await.map_err(Failure::from)?;
    let request =
        request(&words, timeout_ms(&headers), &cluster).map_err(|why| Refused(StatusCode::BAD_REQUEST, why))?;
    let answer = api.probe(caller, &request).await?;
    Ok(([(header::CONTENT_TYPE, CONTENT_TYPE)], metrics(&answer)).into_response())
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

fn request(words: &[(String, String)], timeout_ms: u64, cluster: &Cluster) -> Result<ProbeRequest, String> {
    let word = |name: &str| words.iter().find(|(given, _)| given == name).map(|(_, value)| value.as_str());
    let target = word("target").filter(|target| !target.is_empty()).ok_or("target is missing: add ?target=…")?;
    let from = match word("from") {
        Some(from) => from.to_owned(),
        None => {
            let ready = cluster.nodes.iter().find(|node| node.is_ready()).or_else(|| cluster.nodes.iter().next());
            format!("node/{}", ready.ok_or("no node is known to probe from: add &from=node/NAME")?.metadata.name)
        }
    };
    let of = |kind, to: &str| ProbeRequest::new(kind, &from, to);
    let mut request = match word("module").unwrap_or("http_2xx") {
        "http_2xx" => {
            let url = if target.contains("://") { target.to_owned() } else { format!("http://{target}") };
            let mut request = of(Kind::Http, &url);
            request.options.expect = (200..300).collect();
            // Its default is to follow; Go's client stops after ten.
            request.options.redirects = Some(10);
            request
        }
        "tcp_connect" => of(Kind::Tcp, target),
        "tls_connect" => of(Kind::Tls, target),
        "icmp" => of(Kind::Icmp, target),
        "dns" => {
            let mut request = of(Kind::Dns, word("query_name").unwrap_or(QUERY_NAME));
            request.options.server = Some(target.to_owned());
            request.options.records = vec![netdiag_common::observation::series::dns::DnsType::A];
            request
        }
        other => {
            return Err(format!(
                "there is no module {other:?}; there is http_2xx, tcp_connect, tls_connect, icmp, dns"
            ));
        }
    };
    request.count = Some(1);
    request.timeout_ms = u32::try_from(timeout_ms).ok();
    Ok(request)
}

/// What one attempt came to, in blackbox_exporter's words.
fn metrics(answer: &ProbeAnswer) -> String {
    let mut page = String::new();
    // A name's own lookup comes before what it was looked up for.
    let is_lookup = |index: usize| answer.kind != Kind::Dns && answer.series.len() > 1 && index == 0;
    let attempts = || {
        answer.series.iter().enumerate().filter(|(index, _)| !is_lookup(*index)).flat_map(|(_, s)| &s.tally.attempts)
    };
    let lookup = answer.series.first().filter(|_| is_lookup(0)).and_then(|series| series.tally.attempts.first());
    // Its default takes one address.
    let attempt = attempts().find(|attempt| attempt.failure.is_none()).or_else(|| attempts().next());
    let seconds = |us: u64| std::time::Duration::from_micros(us).as_secs_f64();
    let success = answer.status == ProbeStatus::Well
        || (answer.kind != Kind::Dns && attempt.is_some_and(|a| a.failure.is_none()));
    gauge(
        &mut page,
        "probe_success",
        "Displays whether or not the probe was a success",
        &[("", f64::from(u8::from(success)))],
    );
    let took = attempt.map_or(0, |attempt| attempt.elapsed_us) + lookup.map_or(0, |lookup| lookup.elapsed_us);
    gauge(
        &mut page,
        "probe_duration_seconds",
        "Returns how long the probe took to complete in seconds",
        &[("", seconds(took))],
    );
    let Some(attempt) = attempt else { return page };
    let report = report_of(attempt);
    let looked_up = match &report {
        ProbeReport::Http(report) => report.exchanges.first().and_then(|exchange| exchange.phases.lookup_us),
        _ => lookup.map(|lookup| lookup.elapsed_us),
    };
    let name = "probe_dns_lookup_time_seconds";
    gauge(
        &mut page,
        name,
        "Returns the time taken for probe dns lookup in seconds",
        &[("", seconds(looked_up.unwrap_or(0)))],
    );
    let protocol = match () {
        () if attempt.to.is_empty() => 0.0,
        () if attempt.to.matches(':').count() > 1 => 6.0,
        () => 4.0,
    };
    gauge(&mut page, "probe_ip_protocol", "Specifies whether probe ip protocol is IP4 or IP6", &[("", protocol)]);
    match &report {
        ProbeReport::Http(report) => {
            let last = report.exchanges.last();
            let status = last.and_then(|exchange| exchange.status).unwrap_or(0);
            gauge(&mut page, "probe_http_status_code", "Response HTTP status code", &[("", status.into())]);
            let version =
                last.and_then(|exchange| exchange.version.as_deref()).and_then(|version| version.split('/').nth(1));
            let version = version.and_then(|version| version.parse().ok()).unwrap_or(0.0);
            gauge(
                &mut page,
                "probe_http_version",
                "Returns the version of HTTP of the probe response",
                &[("", version)],
            );
            let redirects = u32::try_from(report.exchanges.len().saturating_sub(1)).unwrap_or(u32::MAX);
            gauge(&mut page, "probe_http_redirects", "The number of redirects", &[("", redirects.into())]);
            gauge(
                &mut page,
                "probe_http_ssl",
                "Indicates if SSL was used for the final redirect",
                &[("", f64::from(u8::from(report.tls.is_some())))],
            );
            let sum = |of: fn(&netdiag_common::observation::series::http::HttpPhases) -> Option<u64>| {
                seconds(report.exchanges.iter().filter_map(|exchange| of(&exchange.phases)).sum())
            };
            let phases = [
                ("phase=\"resolve\"", sum(|phases| phases.lookup_us)),
                ("phase=\"connect\"", sum(|phases| phases.connect_us)),
                ("phase=\"tls\"", sum(|phases| phases.tls_us)),
                ("phase=\"processing\"", sum(|phases| phases.first_byte_us)),
                ("phase=\"transfer\"", sum(|phases| phases.body_us)),
            ];
            gauge(
                &mut page,
                "probe_http_duration_seconds",
                "Duration of http request by phase, summed over all redirects",
                &phases,
            );
            report.tls.iter().for_each(|tls| expiry(&mut page, tls));
        }
        ProbeReport::Tls(report) => expiry(&mut page, report),
        ProbeReport::Icmp(report) => {
            let phases = [("phase=\"rtt\"", seconds(report.rtt_us))];
            gauge(&mut page, "probe_icmp_duration_seconds", "Duration of icmp request by phase", &phases);
            if let Some(ttl) = report.ttl {
                gauge(
                    &mut page,
                    "probe_icmp_reply_hop_limit",
                    "Replied packet hop limit (TTL for ipv4)",
                    &[("", ttl.into())],
                );
            }
        }
        ProbeReport::Dns(report) => {
            let answers: u32 = report
                .queries
                .iter()
                .filter_map(|query| query.answer.as_ref())
                .map(|answer| u32::try_from(answer.records.len()).unwrap_or(u32::MAX))
                .sum();
            gauge(
                &mut page,
                "probe_dns_answer_rrs",
                "Returns number of entries in the answer resource record list",
                &[("", answers.into())],
            );
            let took: u64 = report.queries.iter().map(|query| query.elapsed_us).sum();
            gauge(
                &mut page,
                "probe_dns_duration_seconds",
                "Duration of DNS request by phase",
                &[("phase=\"request\"", seconds(took))],
            );
            let succeeded = report.queries.iter().any(|query| query.answer.is_some());
            gauge(
                &mut page,
                "probe_dns_query_succeeded",
                "Displays whether or not the query was executed successfully",
                &[("", f64::from(u8::from(succeeded)))],
            );
        }
        _ => {}
    }
    page
}

fn report_of(attempt: &AttemptEntry) -> ProbeReport {
    serde_json::from_value(attempt.report.clone()).unwrap_or_default()
}

fn expiry(page: &mut String, report: &TlsReport) {
    let ends = report.chain.iter().filter_map(|certificate| certificate.not_after.parse::<Timestamp>().ok());
    if let Some(first) = ends.min() {
        #[expect(clippy::cast_precision_loss, reason = "seconds of this age are exact")]
        let seconds = first.as_second() as f64;
        gauge(page, "probe_ssl_earliest_cert_expiry", "Returns last SSL chain expiry in unixtime", &[("", seconds)]);
    }
}

fn gauge(page: &mut String, name: &str, help: &str, values: &[(&str, f64)]) {
    // Writing to a string does not fail.
    let _ = writeln!(page, "# HELP {name} {help}\n# TYPE {name} gauge");
    for (labels, value) in values {
        let labels = if labels.is_empty() { String::new() } else { format!("{{{labels}}}") };
        let _ = writeln!(page, "{name}{labels} {value}");
    }
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
        request(&words(query), 4_500, &cluster)
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

    #[test]
    fn metrics_have_its_names() {
        let attempt = json!({"number": 0, "at_us": 0, "elapsed_us": 12_500, "source": "", "to": "10.0.0.1:443", "endpoint": "",
            "failure": null, "report": {"kind": "tls", "handshake_us": 900, "chain": [{"subject": "s", "issuer": "i", "names": [],
                "not_before": "2026-01-01T00:00:00Z", "not_after": "2027-01-01T00:00:00Z", "sha256": "", "serial": ""}],
                "ocsp_stapled": false, "client_certificate_wanted": false, "problems": []}});
        let attempt: AttemptEntry = serde_json::from_value(attempt).expect("an attempt");
        let tally = crate::probe::Tally {
            asked: 1,
            made: 1,
            succeeded: 1,
            attempts: vec![attempt],
            ..crate::probe::Tally::default()
        };
        let series = crate::answer::probe::SeriesEntry {
            to: "10.0.0.1:443".to_owned(),
            status: ProbeStatus::Well,
            verdict: String::new(),
            endpoints: String::new(),
            tally,
            details: Vec::new(),
            followed: None,
            secret: None,
            mtu: None,
        };
        let page = metrics(&ProbeAnswer {
            schema: String::new(),
            cluster: String::new(),
            at: Timestamp::UNIX_EPOCH,
            kind: Kind::Tls,
            from: String::new(),
            node: String::new(),
            to: String::new(),
            status: ProbeStatus::Well,
            verdict: String::new(),
            series: vec![series],
            ladders: Vec::new(),
            matrix: None,
            not_seen: Vec::new(),
            truncated: String::new(),
        });
        for line in [
            "probe_success 1",
            "probe_duration_seconds 0.0125",
            "probe_ip_protocol 4",
            "probe_ssl_earliest_cert_expiry 1798761600",
        ] {
            assert!(page.lines().any(|found| found == line), "{line}: {page}");
        }
    }
}
