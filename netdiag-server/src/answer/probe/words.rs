//! Probes in words: the verdict of a series, and what single reports tell.

use std::net::IpAddr;

use netdiag_common::observation::series::dns::DnsQuery;
use netdiag_common::observation::series::http::HttpExchange;
use netdiag_common::observation::series::path::Hop;
use netdiag_common::observation::series::tls::{Certificate, TlsProblem};
use netdiag_common::observation::series::{
    DnsReport, HttpReport, PathMtuReport, PathReport, ProbeReport, RawReport, TcpReport, ThroughputReport, TlsReport,
    UdpReport,
};

use super::Detail;
use crate::evidence::Cluster;
use crate::probe::Tally;
use crate::probe::matrix::Matrix;
use crate::probe::tally::{AttemptEntry, FailureCount, PhaseEntry};

/// Queries, hops and certificates of one report that are told.
const MAX_LINES: usize = 24;

/// `fails always: refused (ECONNREFUSED) at connect after 0.2 ms, said by 10.244.2.5`.
pub(super) fn verdict(tally: &Tally) -> String {
    if tally.made == 0 {
        return format!("nothing was tried: {}", or(&tally.untried_because, "nobody says why"));
    }
    let untried = match tally.untried {
        0 => String::new(),
        untried => {
            format!("; {untried} of {} were not tried: {}", tally.asked, or(&tally.untried_because, "nobody says why"))
        }
    };
    let Some(failure) = tally.failures.first() else {
        let times = median(tally).map(|(phase, us)| format!(", {phase} {} in the median", ms(us))).unwrap_or_default();
        return format!("{} of {} got through{times}{untried}", tally.succeeded, tally.made);
    };
    let how_often = match (tally.failed == tally.made, tally.made) {
        (true, 1) => "fails".to_owned(),
        (true, made) => format!("fails always, {made} of {made}"),
        (false, made) => format!("fails {} of {made} times", tally.failed),
    };
    let others: u64 = tally.failures[1..].iter().map(|failure| failure.count).sum();
    let others = if others > 0 { format!(", and {others} times otherwise") } else { String::new() };
    format!("{how_often}: {}{others}{untried}", of_failure(failure))
}

/// `refused (ECONNREFUSED) at connect after 0.2 to 0.4 ms, said by 10.244.2.5: no socket listens`.
pub(super) fn of_failure(failure: &FailureCount) -> String {
    let errno = if failure.errno.is_empty() { String::new() } else { format!(" ({})", failure.errno) };
    let after = if failure.min_us / 100 == failure.max_us / 100 {
        ms(failure.min_us)
    } else {
        format!("{} to {}", ms(failure.min_us), ms(failure.max_us))
    };
    let said_by = match (failure.said_by.as_str(), failure.icmp.as_str()) {
        ("", "") => String::new(),
        ("", icmp) => format!(", by ICMP {icmp}"),
        (who, "") => format!(", said by {who}"),
        (who, icmp) => format!(", said by {who} with ICMP {icmp}"),
    };
    format!("{}{errno} at {} after {after}{said_by}: {}", failure.class, failure.stage, failure.why)
}

fn median(tally: &Tally) -> Option<(&str, u64)> {
    telling(tally).map(|times| (times.phase.as_str(), times.p50_us))
}

/// The phase that says most about the network.
pub(super) fn telling(tally: &Tally) -> Option<&PhaseEntry> {
    let order = ["rtt", "connect", "lookup", "total"];
    let of = |phase: &str| tally.times.iter().find(|times| times.phase == phase);
    order.iter().find_map(|phase| of(phase)).or(tally.times.first())
}

/// `0.21 ms`, `1.5 s`.
pub(super) fn ms(us: u64) -> String {
    match us {
        0..=999_999 => format!("{}.{:02} ms", us / 1_000, us % 1_000 / 10),
        _ => format!("{}.{:02} s", us / 1_000_000, us % 1_000_000 / 10_000),
    }
}

fn or<'t>(text: &'t str, otherwise: &'t str) -> &'t str {
    if text.is_empty() { otherwise } else { text }
}

/// `2 of 12 kinds of ways fail: …`.
pub(super) fn of_matrix(matrix: &Matrix) -> String {
    let rows = matrix.rows.iter().filter(|row| row.from == "signature");
    let mut said = Vec::new();
    let mut tried = 0;
    for row in rows {
        for cell in row.cells.iter().filter(|cell| cell.made > 0) {
            tried += 1;
            if cell.failed > 0 {
                said.push(format!("{} {} {}", row.family, cell.column.words(), cell.mark));
            }
        }
    }
    match said.as_slice() {
        [] if tried == 0 => "nothing could be tried".to_owned(),
        [] => format!("all {tried} kinds of ways work"),
        said => format!("{} of {tried} kinds of ways fail: {}", said.len(), said.join(", ")),
    }
}

/// What one attempt learnt: a failed one before a good one, a late one before an early one.
pub(super) fn details(tally: &Tally, cluster: &Cluster) -> Vec<Detail> {
    let telling = |attempt: &&AttemptEntry| report(attempt).is_some_and(|report| !report.is_nothing());
    let chosen =
        tally.attempts.iter().filter(telling).max_by_key(|attempt| (attempt.failure.is_some(), attempt.number));
    let Some(report) = chosen.and_then(report) else { return Vec::new() };
    let lines = match report {
        ProbeReport::Nothing => Vec::new(),
        ProbeReport::Tcp(report) => tcp(&report),
        ProbeReport::Dns(report) => dns(&report),
        ProbeReport::Http(report) => http(&report),
        ProbeReport::Tls(report) => tls(&report),
        ProbeReport::Udp(report) => udp(&report),
        ProbeReport::Icmp(report) => match report.ttl {
            Some(ttl) => vec![("answer", format!("{} bytes, TTL {ttl}", report.bytes))],
            None => vec![("answer", format!("{} bytes", report.bytes))],
        },
        ProbeReport::PathMtu(report) => path_mtu(&report),
        ProbeReport::Path(report) => path(&report, cluster),
        ProbeReport::Throughput(report) => throughput(&report),
        ProbeReport::Raw(report) => raw(&report),
    };
    lines.into_iter().take(MAX_LINES).map(|(label, text)| Detail { label: label.to_owned(), text }).collect()
}

pub(super) fn report(attempt: &AttemptEntry) -> Option<ProbeReport> {
    serde_json::from_value(attempt.report.clone()).ok()
}

type Line = (&'static str, String);

fn joined(parts: impl IntoIterator<Item = Option<String>>) -> String {
    parts.into_iter().flatten().collect::<Vec<_>>().join(", ")
}

fn tcp(report: &TcpReport) -> Vec<Line> {
    let words = joined([
        report.rtt_us.map(|rtt| format!("smoothed RTT {}", ms(rtt.into()))),
        report.send_mss.map(|mss| format!("segments of {mss} bytes")),
        report.syns.map(|syns| format!("{syns} SYNs")),
        report.after_close_bytes.map(|bytes| format!("{bytes} bytes after our FIN")),
        report
            .closed_by_peer
            .map(|closed| if closed { "closed by the far side too" } else { "not closed by the far side" }.to_owned()),
    ]);
    if words.is_empty() { Vec::new() } else { vec![("tcp", words)] }
}

fn dns(report: &DnsReport) -> Vec<Line> {
    let mut lines: Vec<Line> = report.queries.iter().map(|query| ("query", of_query(query))).collect();
    if !report.addresses.is_empty() {
        let addresses: Vec<String> = report.addresses.iter().map(ToString::to_string).collect();
        lines.insert(0, ("addresses", addresses.join(", ")));
    }
    if report.by_hosts {
        lines.insert(0, ("from", "/etc/hosts: no server was asked".to_owned()));
    }
    if let Some(timeouts) = report.timeouts.filter(|timeouts| timeouts.count > 0) {
        lines.insert(0, ("waited", format!("{} resolver timeouts of {} ms each", timeouts.count, timeouts.each_ms)));
    }
    if let Some(word) = &report.getaddrinfo {
        lines.insert(0, ("program", format!("getaddrinfo says {word}")));
    }
    lines
}

fn of_query(query: &DnsQuery) -> String {
    let what = format!("{} {} by {} over {}", query.name, query.record, query.server, query.transport);
    let said = match (&query.answer, &query.failure) {
        (Some(answer), _) => {
            let records =
                if answer.records.is_empty() { String::new() } else { format!(": {}", answer.records.join("; ")) };
            format!("{} [{}] {} bytes{records}", answer.rcode, answer.flags.join(" "), answer.bytes)
        }
        (None, Some(failure)) => failure.clone(),
        (None, None) => "no answer".to_owned(),
    };
    let ignored =
        if query.ignored > 0 { format!(", {} datagrams that were no answer", query.ignored) } else { String::new() };
    format!("{what}, {}: {said}{ignored}", ms(query.elapsed_us))
}

fn http(report: &HttpReport) -> Vec<Line> {
    let mut lines: Vec<Line> = Vec::new();
    for exchange in &report.exchanges {
        lines.push(("http", of_exchange(exchange)));
        let phases = &exchange.phases;
        let named = [
            ("lookup", phases.lookup_us),
            ("connect", phases.connect_us),
            ("TLS", phases.tls_us),
            ("first byte", phases.first_byte_us),
            ("body", phases.body_us),
            ("total", phases.total_us),
        ];
        lines.push(("phases", joined(named.map(|(name, us)| us.map(|us| format!("{name} {}", ms(us)))))));
        let headers: Vec<String> = exchange.headers.iter().map(|(name, value)| format!("{name}: {value}")).collect();
        if !headers.is_empty() {
            lines.push(("headers", headers.join("; ")));
        }
    }
    if let Some(health) = &report.grpc_health {
        lines.push(("health", health.clone()));
    }
    lines.extend(report.tls.iter().flat_map(tls));
    lines
}

fn of_exchange(exchange: &HttpExchange) -> String {
    let status = exchange.status.map_or_else(|| "no status".to_owned(), |status| status.to_string());
    let version = exchange.version.as_ref().map(|version| format!(" by {version}")).unwrap_or_default();
    let to = exchange.to.map(|to| format!(" at {to}")).unwrap_or_default();
    let rest = if exchange.whole { "" } else { ", more was not read" };
    format!("{}{to}: {status}{version}, {} bytes of body{rest}", exchange.url, exchange.body_bytes)
}

fn tls(report: &TlsReport) -> Vec<Line> {
    let mut lines: Vec<Line> = report.problems.iter().map(|problem| ("problem", of_problem(problem))).collect();
    let words = joined([
        report.version.clone(),
        report.cipher.clone(),
        report.alpn.as_ref().map(|alpn| format!("ALPN {alpn}")),
        report.ocsp_stapled.then(|| "OCSP stapled".to_owned()),
        report.client_certificate_wanted.then(|| "wants a client certificate".to_owned()),
    ]);
    if !words.is_empty() {
        lines.push(("tls", words));
    }
    lines.extend(report.chain.iter().map(|certificate| ("certificate", of_certificate(certificate))));
    lines.extend(report.others.iter().map(|other| {
        let why = other.why.as_ref().map(|why| format!(": {why}")).unwrap_or_default();
        ("variant", format!("{} {}{why}", other.variant, if other.works { "works" } else { "fails" }))
    }));
    lines
}

fn of_certificate(certificate: &Certificate) -> String {
    let names =
        if certificate.names.is_empty() { String::new() } else { format!(" for {}", certificate.names.join(", ")) };
    format!("{}{names}, by {}, until {}", certificate.subject, certificate.issuer, certificate.not_after)
}

fn of_problem(problem: &TlsProblem) -> String {
    match problem {
        TlsProblem::PlainPort { spoke: Some(spoke) } => format!("the port speaks no TLS, but {spoke:?}"),
        TlsProblem::PlainPort { spoke: None } => "the port speaks no TLS".to_owned(),
        TlsProblem::Expired { not_after } => format!("expired at {not_after}"),
        TlsProblem::NotYetValid { not_before } => format!("not valid before {not_before}"),
        TlsProblem::WrongName { wanted, names } => format!("is not for {wanted}, but for {}", names.join(", ")),
        TlsProblem::UnknownAuthority { issuer } => format!("nobody we trust is {issuer}"),
        TlsProblem::SelfSigned => "signed by itself".to_owned(),
        TlsProblem::MissingIntermediate { issuer } => format!("the certificate of {issuer} is not served"),
        TlsProblem::ClientCertificateWanted => "a client certificate is wanted".to_owned(),
        TlsProblem::NothingInCommon => "no version or cipher in common".to_owned(),
        TlsProblem::Alert { number, words } => format!("alert {number}: {words}"),
        TlsProblem::Other { why } => why.clone(),
    }
}

fn udp(report: &UdpReport) -> Vec<Line> {
    let words = joined([
        Some(format!("{} of {} datagrams answered", report.answered, report.sent)),
        (report.reordered > 0).then(|| format!("{} out of order", report.reordered)),
        (report.doubled > 0).then(|| format!("{} twice", report.doubled)),
        (report.strange > 0).then(|| format!("{} strange", report.strange)),
        report.jitter_us.map(|jitter| format!("jitter {}", ms(jitter))),
        report.answered_by.map(|who| format!("answered by {who}")),
    ]);
    vec![("udp", words)]
}

fn path_mtu(report: &PathMtuReport) -> Vec<Line> {
    let device = report.device_mtu.map(|mtu| format!(", the device takes {mtu}")).unwrap_or_default();
    let mut lines = vec![match report.path_mtu {
        Some(mtu) => ("path MTU", format!("{mtu} bytes{device}")),
        None => ("path MTU", format!("not even the smallest packet is answered{device}")),
    }];
    if report.black_hole {
        let after = report.last_hop.map(|hop| format!(" behind {hop}")).unwrap_or_default();
        lines.push(("black hole", format!("larger packets vanish{after} and nobody says so")));
    }
    if let Some(said) = &report.said {
        let mtu = said.mtu.map(|mtu| format!(" {mtu}")).unwrap_or_default();
        let who = report.said_by.map_or_else(|| "somebody".to_owned(), |who| who.to_string());
        lines.push(("said", format!("{who} says {}{mtu}", said.words)));
    }
    lines.extend(
        report
            .steps
            .iter()
            .map(|step| ("size", format!("{}: {} of {} {}", step.bytes, step.answered, step.sent, step.words))),
    );
    lines
}

fn path(report: &PathReport, cluster: &Cluster) -> Vec<Line> {
    let mut lines: Vec<Line> = report.hops.iter().map(|hop| ("hop", of_hop(hop, cluster))).collect();
    let there = report.hops.last().filter(|_| report.reached).map(|hop| hop.ttl);
    let way = match (there, report.back_hops) {
        (Some(there), Some(back)) if there == back => {
            format!("the target answers, {there} hops away, and as many back by its answer's TTL")
        }
        (Some(there), Some(back)) => format!(
            "the target answers, {there} hops away, and {back} back by its answer's TTL: the ways differ; a probe of the path \
             from there shows the other one"
        ),
        (Some(there), None) => format!("the target answers, {there} hops away"),
        (None, _) => "the target does not answer".to_owned(),
    };
    lines.insert(0, ("way", way));
    lines
}

/// `172.30.0.12 (node n2)`.
pub(super) fn named(address: IpAddr, cluster: &Cluster) -> String {
    match (cluster.node_by_address(address), cluster.pod_by_address(address)) {
        (Some(node), _) => format!("{address} (node {})", node.metadata.name),
        (None, Some(pod)) => format!("{address} (pod {}/{})", pod.metadata.namespace, pod.metadata.name),
        (None, None) => address.to_string(),
    }
}

fn of_hop(hop: &Hop, cluster: &Cluster) -> String {
    let names: Vec<String> = hop.addresses.iter().map(|address| named(*address, cluster)).collect();
    let who = if names.is_empty() { "nobody".to_owned() } else { names.join(" or ") };
    let rtt = hop.rtt_us.map(|rtt| format!(", {}", ms(rtt))).unwrap_or_default();
    let said = hop.said.as_ref().map(|said| format!(": {said}")).unwrap_or_default();
    format!("{} {who}, {} of {}{rtt}{said}", hop.ttl, hop.answered, hop.sent)
}

fn throughput(report: &ThroughputReport) -> Vec<Line> {
    let bits = report.bytes.saturating_mul(8_000_000) / report.elapsed_us.max(1);
    let words = format!(
        "{} Mbit/s: {} bytes in {}, {} retransmits, RTT {} idle and {} under load",
        bits / 1_000_000,
        report.bytes,
        ms(report.elapsed_us),
        report.retransmits,
        ms(report.idle_rtt_us.into()),
        ms(report.loaded_rtt_us.into())
    );
    vec![("throughput", words)]
}

fn raw(report: &RawReport) -> Vec<Line> {
    let words = joined([
        Some(format!("{} packets sent", report.sent)),
        report.answer.as_ref().map(|answer| {
            let who = report.answered_by.map(|who| format!(" from {who}")).unwrap_or_default();
            format!("{answer}{who}")
        }),
        report.rtt_us.map(ms),
    ]);
    vec![("raw", words)]
}
