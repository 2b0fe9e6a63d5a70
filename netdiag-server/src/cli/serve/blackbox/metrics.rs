//! What a probe came to under blackbox_exporter's names (prober/*.go, v0.27): those for which there are real values. Of DNS answers only
//! the first section is kept, and of TLS only the chain that was served.

use std::fmt::Write;
use std::net::{IpAddr, SocketAddr};

use jiff::Timestamp;
use netdiag_common::observation::series::http::{HttpPhases, HttpReport};
use netdiag_common::observation::series::{DnsReport, FailureClass, IcmpReport, ProbeReport, TlsReport};

use super::module::{Module, Preferred};
use crate::answer::probe::{ProbeAnswer, SeriesEntry};
use crate::probe::Kind;
use crate::probe::tally::AttemptEntry;

/// The attempts of an answer that a scrape is about.
struct Found<'a> {
    /// The name's own lookup, which comes before what it was looked up for.
    lookup: Option<&'a AttemptEntry>,
    /// The one that is judged and shown.
    attempt: &'a AttemptEntry,
    report: ProbeReport,
}

pub(super) fn text(answer: &ProbeAnswer, module: &Module) -> String {
    let mut page = Page::default();
    let found = found(answer, module);
    let success = found.as_ref().is_some_and(|found| is_success(found, module));
    page.gauge("probe_success", "Displays whether or not the probe was a success", f64::from(u8::from(success)));
    let took = found.as_ref().map_or(0, |found| found.attempt.elapsed_us + elapsed(found.lookup));
    page.gauge("probe_duration_seconds", "Returns how long the probe took to complete in seconds", seconds(took));
    let Some(found) = found else { return page.0 };
    let looked_up = match &found.report {
        ProbeReport::Http(report) => {
            report.exchanges.first().and_then(|exchange| exchange.phases.lookup_us).unwrap_or(0)
        }
        _ => elapsed(found.lookup),
    };
    let help = "Returns the time taken for probe dns lookup in seconds";
    page.gauge("probe_dns_lookup_time_seconds", help, seconds(looked_up));
    let address = address(&found.attempt.to);
    let protocol = address.map_or(0.0, |address| if address.is_ipv4() { 4.0 } else { 6.0 });
    page.gauge("probe_ip_protocol", "Specifies whether probe ip protocol is IP4 or IP6", protocol);
    if let Some(address) = address {
        let help = "Specifies the hash of IP address. It's useful to detect if the IP address changes.";
        page.gauge("probe_ip_addr_hash", help, hash(address).into());
    }
    match &found.report {
        ProbeReport::Http(report) => page.http(report, module),
        ProbeReport::Tls(report) => page.tls(report),
        ProbeReport::Icmp(report) => page.icmp(report, elapsed(found.lookup)),
        ProbeReport::Dns(report) if module.kind == Kind::Dns => page.dns(report),
        _ => {}
    }
    page.0
}

/// None where nothing was sent. blackbox_exporter probes one address (`chooseProtocol` of prober/utils.go): the first of the preferred
/// family, IPv6 unless a module says otherwise, else the first of the other one. Here all were tried; the others are not told.
fn found<'a>(answer: &'a ProbeAnswer, module: &Module) -> Option<Found<'a>> {
    let (lookup, probed) = match answer.series.split_first() {
        Some((first, rest)) if !rest.is_empty() && is_lookup(first, answer.kind) => {
            (first.tally.attempts.first(), rest)
        }
        _ => (None, answer.series.as_slice()),
    };
    let attempts = || probed.iter().flat_map(|series| &series.tally.attempts);
    let chosen = match module.family {
        Some(family) => attempts().find(|attempt| is_of(attempt, family.is_v6)),
        // Without IPv6 it fails wherever there are both families; here the first that has a way is taken, as agents do by HTTP.
        None => {
            let sent = || attempts().filter(|attempt| !is_without_way(attempt));
            sent().find(|attempt| is_of(attempt, true)).or_else(|| sent().next())
        }
    };
    let attempt = chosen.or_else(|| attempts().next())?;
    // What cannot be read is told as nothing.
    let report = serde_json::from_value(attempt.report.clone()).unwrap_or_default();
    Some(Found { lookup, attempt, report })
}

/// A name's own lookup comes before its addresses; those of an object are known without one.
fn is_lookup(series: &SeriesEntry, kind: Kind) -> bool {
    kind != Kind::Dns && matches!(series.tally.report::<ProbeReport>(), Some(ProbeReport::Dns(_)))
}

fn is_of(attempt: &AttemptEntry, is_v6: bool) -> bool {
    address(&attempt.to).is_some_and(|address| address.is_ipv6() == is_v6)
}

/// The node has no route, or no such protocol: nothing was sent.
fn is_without_way(attempt: &AttemptEntry) -> bool {
    let is_local = |errno: &str| matches!(errno, "ENETUNREACH" | "EADDRNOTAVAIL" | "EAFNOSUPPORT");
    attempt.failure.as_ref().is_some_and(|failure| failure.icmp.is_empty() && is_local(&failure.errno))
}

fn is_success(found: &Found<'_>, module: &Module) -> bool {
    // A URL's host is asked for by the node, in its own order.
    let only = module.family.and_then(Preferred::only);
    if only.is_some_and(|only| !address(&found.attempt.to).is_some_and(|address| only.holds(address))) {
        return false;
    }
    let failure = found.attempt.failure.as_ref();
    let is_only_distrust = module.pass.any_certificate && failure.is_some_and(|f| f.class == FailureClass::Certificate);
    match &found.report {
        // Only the target's name was looked up: it has no address that could be probed.
        ProbeReport::Dns(_) if module.kind != Kind::Dns => false,
        ProbeReport::Dns(report) => {
            let rcode = report.queries.iter().rev().find_map(|query| query.answer.as_ref()).map(|answer| &answer.rcode);
            rcode.is_some_and(|rcode| match module.pass.rcodes.as_slice() {
                [] => rcode == "NOERROR",
                rcodes => rcodes.contains(rcode),
            })
        }
        ProbeReport::Http(report) => {
            let status = report.exchanges.last().and_then(|exchange| exchange.status);
            let is_healthy = match &module.options.grpc_health {
                Some(_) => report.grpc_health.as_deref() == Some("SERVING"),
                None => status.is_some_and(|status| module.options.expect.contains(&status)),
            };
            let is_answered = failure.is_none() || (is_only_distrust && is_healthy);
            is_answered && module.pass.tls.is_none_or(|wanted| wanted == report.tls.is_some())
        }
        // A handshake that ended has a version.
        ProbeReport::Tls(report) => failure.is_none() || (is_only_distrust && report.version.is_some()),
        _ => failure.is_none(),
    }
}

fn elapsed(attempt: Option<&AttemptEntry>) -> u64 {
    attempt.map_or(0, |attempt| attempt.elapsed_us)
}

fn seconds(us: u64) -> f64 {
    std::time::Duration::from_micros(us).as_secs_f64()
}

/// With or without a port.
fn address(to: &str) -> Option<IpAddr> {
    to.parse::<SocketAddr>().map(|to| to.ip()).or_else(|_| to.parse()).ok()
}

/// FNV-1a of 32 bits over the address' bytes, as Go's resolver has them for a name (`ipHash` of prober/utils.go).
fn hash(address: IpAddr) -> u32 {
    let bytes = match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    };
    bytes.iter().fold(0x811c_9dc5, |hash, byte| (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193))
}

#[derive(Default)]
struct Page(String);

impl Page {
    fn gauge(&mut self, name: &str, help: &str, value: f64) {
        self.gauges(name, help, &[(String::new(), value)]);
    }

    /// Labels and value of each.
    fn gauges(&mut self, name: &str, help: &str, values: &[(String, f64)]) {
        // Writing to a string does not fail.
        let _ = writeln!(self.0, "# HELP {name} {help}\n# TYPE {name} gauge");
        for (labels, value) in values {
            let labels = if labels.is_empty() { String::new() } else { format!("{{{labels}}}") };
            let _ = writeln!(self.0, "{name}{labels} {value}");
        }
    }

    fn http(&mut self, report: &HttpReport, module: &Module) {
        if module.options.grpc_health.is_some() {
            return self.grpc(report);
        }
        let last = report.exchanges.last();
        let status = last.and_then(|exchange| exchange.status);
        self.gauge("probe_http_status_code", "Response HTTP status code", status.unwrap_or(0).into());
        let version = last.and_then(|exchange| exchange.version.as_deref()?.split('/').nth(1)?.parse().ok());
        self.gauge("probe_http_version", "Returns the version of HTTP of the probe response", version.unwrap_or(0.0));
        let redirects = u32::try_from(report.exchanges.len().saturating_sub(1)).unwrap_or(u32::MAX);
        self.gauge("probe_http_redirects", "The number of redirects", redirects.into());
        let ssl = f64::from(u8::from(report.tls.is_some()));
        self.gauge("probe_http_ssl", "Indicates if SSL was used for the final redirect", ssl);
        if let Some(exchange) = last.filter(|_| status.is_some()) {
            let length = exchange.headers.iter().find(|(name, _)| name.eq_ignore_ascii_case("content-length"));
            // As Go's client has it where the answer does not say.
            let length = length.and_then(|(_, value)| value.parse::<f64>().ok()).unwrap_or(-1.0);
            self.gauge("probe_http_content_length", "Length of http content response", length);
            if exchange.whole {
                #[expect(clippy::cast_precision_loss, reason = "at most a mebibyte is read")]
                let bytes = exchange.body_bytes as f64;
                self.gauge("probe_http_uncompressed_body_length", "Length of uncompressed response body", bytes);
            }
            // No module has any.
            self.gauge("probe_failed_due_to_regex", "Indicates if probe failed due to regex", 0.0);
        }
        let sum = |of: fn(&HttpPhases) -> Option<u64>| {
            seconds(report.exchanges.iter().filter_map(|exchange| of(&exchange.phases)).sum())
        };
        let phases = [
            ("resolve", sum(|phases| phases.lookup_us)),
            ("connect", sum(|phases| phases.connect_us)),
            ("tls", sum(|phases| phases.tls_us)),
            ("processing", sum(|phases| phases.first_byte_us)),
            ("transfer", sum(|phases| phases.body_us)),
        ];
        let phases = phases.map(|(phase, value)| (format!("phase=\"{phase}\""), value));
        let help = "Duration of http request by phase, summed over all redirects";
        self.gauges("probe_http_duration_seconds", help, &phases);
        report.tls.iter().for_each(|tls| self.tls(tls));
    }

    fn grpc(&mut self, report: &HttpReport) {
        if let Some(status) = report.grpc_status {
            self.gauge("probe_grpc_status_code", "Response gRPC status code", status.into());
        }
        let ssl = f64::from(u8::from(report.tls.is_some()));
        self.gauge("probe_grpc_ssl", "Indicates if SSL was used for the connection", ssl);
        let states = ["UNKNOWN", "SERVING", "NOT_SERVING", "SERVICE_UNKNOWN"].map(|state| {
            let is_it = report.grpc_health.as_deref() == Some(state);
            (format!("serving_status=\"{state}\""), f64::from(u8::from(is_it)))
        });
        self.gauges("probe_grpc_healthcheck_response", "Response HealthCheck response", &states);
        report.tls.iter().for_each(|tls| self.tls(tls));
    }

    fn tls(&mut self, report: &TlsReport) {
        let ends = report.chain.iter().filter_map(|certificate| certificate.not_after.parse::<Timestamp>().ok());
        if let Some(first) = ends.min() {
            #[expect(clippy::cast_precision_loss, reason = "seconds of this age are exact")]
            let seconds = first.as_second() as f64;
            self.gauge("probe_ssl_earliest_cert_expiry", "Returns last SSL chain expiry in unixtime", seconds);
        }
        // Go says "TLS 1.3" to what is TLSv1.3 here.
        if let Some(version) = report.version.as_deref().and_then(|version| version.strip_prefix("TLSv")) {
            let labels = format!("version=\"TLS {version}\"");
            let help = "Returns the TLS version used or NaN when unknown";
            self.gauges("probe_tls_version_info", help, &[(labels, 1.0)]);
        }
    }

    fn icmp(&mut self, report: &IcmpReport, lookup_us: u64) {
        let phases = [("resolve", lookup_us), ("rtt", report.rtt_us)];
        let phases = phases.map(|(phase, us)| (format!("phase=\"{phase}\""), seconds(us)));
        self.gauges("probe_icmp_duration_seconds", "Duration of icmp request by phase", &phases);
        if let Some(ttl) = report.ttl {
            self.gauge("probe_icmp_reply_hop_limit", "Replied packet hop limit (TTL for ipv4)", ttl.into());
        }
    }

    fn dns(&mut self, report: &DnsReport) {
        let answers = report.queries.iter().filter_map(|query| query.answer.as_ref());
        let records: usize = answers.map(|answer| answer.records.len()).sum();
        let records = u32::try_from(records).unwrap_or(u32::MAX);
        let help = "Returns number of entries in the answer resource record list";
        self.gauge("probe_dns_answer_rrs", help, records.into());
        let took: u64 = report.queries.iter().map(|query| query.elapsed_us).sum();
        let phases = [("phase=\"request\"".to_owned(), seconds(took))];
        self.gauges("probe_dns_duration_seconds", "Duration of DNS request by phase", &phases);
        let succeeded = f64::from(u8::from(report.queries.iter().any(|query| query.answer.is_some())));
        let help = "Displays whether or not the query was executed successfully";
        self.gauge("probe_dns_query_succeeded", help, succeeded);
    }
}

#[cfg(test)]
mod tests;
