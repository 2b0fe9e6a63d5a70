//! HTTP/1.1, HTTP/2 and gRPC health, by curl's phases: each request on a connection of its own, from the namespace's sockets.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use http::{HeaderValue, Request, StatusCode, Uri, header};
use http_body_util::Full;
use hyper::body::Bytes;
use netdiag_common::observation::series::http::{HttpExchange, HttpProbe, HttpReport};
use netdiag_common::observation::series::{FailureClass, ProbeFailure, ProbeReport, ProbeStage};
use reqwest::Url;

mod answer;
mod channel;
mod connect;
mod doh;
mod eager;
mod failure;
mod grpc;
mod plan;

pub(super) use doh::post_dns;

use super::context::{Context, Ending};
use super::schedule::micros;
use answer::{Answer, BodyLimit};
use connect::{Seen, Speech};
use failure::failed;
use plan::{Plan, redirected};

const AGENT: HeaderValue = HeaderValue::from_static(concat!("netdiag/", env!("CARGO_PKG_VERSION")));
const ANY: HeaderValue = HeaderValue::from_static("*/*");

/// Whether such a request can be sent; an error says in words why not.
pub(super) fn check(probe: &HttpProbe) -> Result<(), String> {
    Plan::new(probe).map(drop)
}

pub(super) async fn attempt(context: &Context, probe: &HttpProbe, within: Duration) -> Ending {
    let until = Instant::now() + within;
    let plan = match Plan::new(probe) {
        Ok(plan) => plan,
        Err(why) => return Ending::failed(None, probe.to, failed(ProbeStage::Socket, FailureClass::Local, why)),
    };
    let mut report = HttpReport::default();
    let (mut url, mut source, mut distrust) = (plan.url.clone(), None, None);
    let failure = loop {
        let mut exchange = HttpExchange { url: url.to_string(), ..HttpExchange::default() };
        let mut seen = Seen::default();
        let start = Instant::now();
        let met = exchanged(context, &plan, &url, until, &mut exchange, &mut seen, &mut report).await;
        let answered = seen.answered.unwrap_or_else(Instant::now);
        exchange.phases.total_us = Some(micros(answered.saturating_duration_since(start)));
        report.exchanges.push(exchange);
        report.tls = seen.tls;
        source = seen.source.or(source);
        distrust = distrust.or(seen.distrust);
        match met {
            Met::Failed(failure) => break Some(failure),
            Met::Ended => break distrust,
            Met::Redirected(_) if report.exchanges.len() > usize::from(plan.redirects) => {
                let why = format!("more than {} redirects", plan.redirects);
                break Some(failed(ProbeStage::Answer, FailureClass::Limit, why));
            }
            Met::Redirected(next) => url = next,
        }
    };
    let last = report.exchanges.last();
    let to = last.and_then(|exchange| exchange.to);
    let phases = last.map(phases).unwrap_or_default();
    Ending { source, to, failure, report: ProbeReport::Http(Box::new(report)), phases }
}

/// What became of one request.
enum Met {
    Ended,
    Redirected(Url),
    Failed(ProbeFailure),
}

async fn exchanged(
    context: &Context,
    plan: &Plan<'_>,
    url: &Url,
    until: Instant,
    exchange: &mut HttpExchange,
    seen: &mut Seen,
    report: &mut HttpReport,
) -> Met {
    let probe = plan.probe;
    // `to`, the asker's fields and SNI are meant for the place that was asked, not for wherever it sends us.
    let is_asked = url.origin() == plan.url.origin();
    let to: Option<SocketAddr> = probe.to.filter(|_| is_asked);
    let mut words = probe.tls.clone();
    if !is_asked {
        words.server_name = None;
    }
    let is_grpc = probe.grpc_health.is_some();
    let read = if is_grpc { grpc::MAX_ANSWER_BYTES } else { plan.body_bytes };
    let source_port = probe.source_port.filter(|_| report.exchanges.is_empty());
    let speech = Speech { source_port, version: probe.version, is_grpc, words: &words, body_bytes: read };
    let mut way = match connect::open(context, url, to, &speech, until, exchange, seen).await {
        Ok(way) => way,
        Err(failure) => return Met::Failed(failure),
    };
    let distrust = if probe.any_certificate {
        seen.distrust = way.distrust;
        None
    } else {
        way.distrust
    };
    let request = match request(plan, url, way.channel.is_two(), is_asked, distrust.is_some()) {
        Ok(request) => request,
        Err(why) => return Met::Failed(failed(ProbeStage::Send, FailureClass::Local, why)),
    };
    let limit = BodyLimit { read, is_kept: is_grpc };
    let answered = answer::ask(context, &mut way.channel, request, limit, until, exchange).await;
    seen.answered = Some(Instant::now());
    // A certificate that is wrong comes first: a client that checks it sees nothing of the rest.
    let answer = match (answered, distrust) {
        (Err(_), Some(distrust)) => return Met::Failed(distrust),
        (Ok(answer), Some(distrust)) => {
            // Whoever trusts it all the same may ask what it said.
            if is_grpc {
                health(&answer, report);
            }
            return Met::Failed(distrust);
        }
        (Err(failure), None) => return Met::Failed(failure),
        (Ok(answer), None) => answer,
    };
    if is_grpc {
        return health(&answer, report);
    }
    if let Some(location) = followed(plan, &answer) {
        return match redirected(url, location) {
            Ok(next) => Met::Redirected(next),
            Err(why) => Met::Failed(failed(ProbeStage::Answer, FailureClass::Protocol, why)),
        };
    }
    expected(plan, &answer)
}

fn health(answer: &Answer, report: &mut HttpReport) -> Met {
    if answer.status != StatusCode::OK.as_u16() {
        let why = format!("status {}: this is no gRPC", answer.status);
        return Met::Failed(failed(ProbeStage::Answer, FailureClass::Status, why));
    }
    let health = grpc::judge(&answer.headers, answer.trailers.as_ref(), &answer.body);
    (report.grpc_health, report.grpc_status) = (health.state, health.status);
    health.failure.map_or(Met::Ended, Met::Failed)
}

/// Where an answer leads, when it is to be followed.
fn followed<'a>(plan: &Plan<'_>, answer: &'a Answer) -> Option<&'a HeaderValue> {
    let is_redirect = matches!(answer.status, 301 | 302 | 303 | 307 | 308);
    if !is_redirect || plan.redirects == 0 {
        return None;
    }
    answer.headers.get(header::LOCATION)
}

fn expected(plan: &Plan<'_>, answer: &Answer) -> Met {
    let status = answer.status;
    let expect = &plan.probe.expect;
    if expect.contains(&status) || (expect.is_empty() && (200..400).contains(&status)) {
        return Met::Ended;
    }
    let reason =
        StatusCode::from_u16(status).ok().and_then(|status| status.canonical_reason()).unwrap_or("no known status");
    let why = if expect.is_empty() {
        format!("status {status} ({reason})")
    } else {
        let wanted = expect.iter().take(8).map(ToString::to_string).collect::<Vec<_>>().join(", ");
        format!("status {status} ({reason}), expected {wanted}")
    };
    Met::Failed(failed(ProbeStage::Answer, FailureClass::Status, why))
}

/// Without the asker's fields where the place is another one, or not trusted.
fn request(
    plan: &Plan<'_>,
    url: &Url,
    is_two: bool,
    is_asked: bool,
    is_distrusted: bool,
) -> Result<Request<Full<Bytes>>, String> {
    let host = plan.host.as_ref().filter(|_| is_asked);
    let authority = match host {
        Some(host) => host.to_str().map_err(|_| "Host is no text".to_owned())?.to_owned(),
        None => authority(url),
    };
    let path = match (&plan.probe.grpc_health, url.query()) {
        (Some(_), _) => grpc::PATH.to_owned(),
        (None, Some(query)) => format!("{}?{query}", url.path()),
        (None, None) => url.path().to_owned(),
    };
    let uri: Uri = if is_two { format!("{}://{authority}{path}", url.scheme()) } else { path.clone() }
        .parse()
        .map_err(|error| format!("{url} cannot be asked as {authority}{path}: {error}"))?;
    let mut request = Request::builder().method(plan.method.clone()).uri(uri);
    if !is_two {
        request = request.header(header::HOST, authority);
    }
    let mut body = Vec::new();
    if let Some(service) = &plan.probe.grpc_health {
        body = grpc::request(service)?;
        request = request.header(header::CONTENT_TYPE, "application/grpc").header(header::TE, "trailers");
    }
    let mut request = request.body(Full::new(Bytes::from(body))).map_err(|error| error.to_string())?;
    let headers = request.headers_mut();
    headers.insert(header::USER_AGENT, AGENT);
    headers.insert(header::ACCEPT, ANY);
    if is_asked && !is_distrusted {
        for name in plan.headers.keys() {
            headers.remove(name);
        }
        for (name, value) in &plan.headers {
            headers.append(name.clone(), value.clone());
        }
    }
    Ok(request)
}

/// Host, and the port where it is not the scheme's own.
fn authority(url: &Url) -> String {
    let host = url.host_str().unwrap_or_default();
    url.port().map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"))
}

fn phases(exchange: &HttpExchange) -> Vec<(&'static str, u64)> {
    let phases = &exchange.phases;
    let all = [
        ("lookup", phases.lookup_us),
        ("connect", phases.connect_us),
        ("tls", phases.tls_us),
        ("first_byte", phases.first_byte_us),
        ("body", phases.body_us),
    ];
    all.into_iter().filter_map(|(name, us)| Some((name, us?))).collect()
}
