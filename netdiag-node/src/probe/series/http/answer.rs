//! One request and its answer on a channel: head, then as much of the body as is wanted.

use std::time::Instant;

use http::{HeaderMap, Request, Response, Version};
use http_body_util::{BodyExt as _, Full};
use hyper::body::{Bytes, Incoming};
use netdiag_common::observation::series::http::HttpExchange;
use netdiag_common::observation::series::{ProbeFailure, ProbeStage};
use tokio::time::timeout_at;

use super::super::context::{Context, silence};
use super::super::schedule::micros;
use super::channel::Channel;
use super::failure;

/// Fields of the answer that are told, and bytes of each value.
const MAX_TOLD: usize = 32;
const MAX_VALUE: usize = 256;
/// Who answered, what proxies say of it (RFC 9209), and what comes next.
const TOLD: [&str; 7] = ["server", "via", "proxy-status", "location", "retry-after", "content-type", "content-length"];
const TOLD_PREFIXES: [&str; 2] = ["x-envoy-", "grpc-"];

/// A head and what was read of its body.
#[derive(Default)]
pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) headers: HeaderMap,
    pub(super) trailers: Option<HeaderMap>,
    /// The body, where it is kept. A last part may reach beyond what is read.
    pub(super) body: Vec<u8>,
}

/// How much of a body is read, and whether that is kept.
#[derive(Debug, Clone, Copy)]
pub(super) struct BodyLimit {
    pub(super) read: u64,
    pub(super) is_kept: bool,
}

/// Sends a request and reads its answer; what was learnt stands in `exchange` also where it fails.
pub(super) async fn ask(
    context: &Context,
    channel: &mut Channel,
    request: Request<Full<Bytes>>,
    limit: BodyLimit,
    until: Instant,
    exchange: &mut HttpExchange,
) -> Result<Answer, ProbeFailure> {
    context.spend(1, request.uri().path().len() as u64).await;
    let start = Instant::now();
    let response = match timeout_at(until.into(), channel.send(request)).await {
        Ok(Ok(response)) => response,
        Ok(Err(error)) => return Err(failure::of_head(&error, &channel.first, channel.is_two())),
        Err(_) => {
            let (count, ms) = (channel.first.kept().count, start.elapsed().as_millis());
            let why = match count {
                0 => format!("no byte of an answer in {ms} ms"),
                count => format!("the head did not end in {ms} ms: {count} bytes came"),
            };
            return Err(silence(ProbeStage::Answer, why));
        }
    };
    // On HTTP/2 the connection's own frames go and come between the request's and the answer's: its head counts.
    let kept = channel.first.kept();
    let (sent, first_byte) = if channel.is_two() { (None, None) } else { (kept.sent, kept.at) };
    let first_byte = first_byte.unwrap_or_else(Instant::now);
    exchange.phases.first_byte_us = Some(micros(first_byte.saturating_duration_since(sent.unwrap_or(start))));
    exchange.status = Some(response.status().as_u16());
    exchange.version = Some(version(response.version()).to_owned());
    exchange.headers = told(response.headers());
    read(context, channel, response, limit, until, exchange, first_byte).await
}

async fn read(
    context: &Context,
    channel: &mut Channel,
    response: Response<Incoming>,
    limit: BodyLimit,
    until: Instant,
    exchange: &mut HttpExchange,
    since: Instant,
) -> Result<Answer, ProbeFailure> {
    let (head, mut body) = response.into_parts();
    let mut answer = Answer { status: head.status.as_u16(), headers: head.headers, ..Answer::default() };
    while exchange.body_bytes < limit.read {
        let frame = match timeout_at(until.into(), channel.beside(body.frame())).await {
            Ok(None) => {
                exchange.whole = true;
                break;
            }
            Ok(Some(Ok(frame))) => frame,
            Ok(Some(Err(error))) => return Err(failure::of(&error, ProbeStage::Body, &channel.first)),
            Err(_) => {
                let (count, ms) = (exchange.body_bytes, since.elapsed().as_millis());
                return Err(silence(ProbeStage::Body, format!("the body did not end in {ms} ms: {count} bytes came")));
            }
        };
        match frame.into_data() {
            Ok(bytes) => {
                // What is read counts as what is sent does: by bytes.
                context.spend(0, bytes.len() as u64).await;
                if limit.is_kept {
                    answer.body.extend_from_slice(&bytes);
                }
                exchange.body_bytes += bytes.len() as u64;
            }
            Err(frame) => answer.trailers = frame.into_trailers().ok().or(answer.trailers),
        }
    }
    // A body that ends exactly where reading does, and one that has nothing.
    exchange.whole |= hyper::body::Body::is_end_stream(&body);
    exchange.body_bytes = exchange.body_bytes.min(limit.read);
    exchange.phases.body_us = Some(micros(since.elapsed()));
    Ok(answer)
}

fn version(version: Version) -> &'static str {
    match version {
        Version::HTTP_09 => "HTTP/0.9",
        Version::HTTP_10 => "HTTP/1.0",
        Version::HTTP_11 => "HTTP/1.1",
        Version::HTTP_2 => "HTTP/2",
        _ => "HTTP/3",
    }
}

fn told(headers: &HeaderMap) -> Vec<(String, String)> {
    let is_told = |name: &str| TOLD.contains(&name) || TOLD_PREFIXES.iter().any(|prefix| name.starts_with(prefix));
    let named = headers.iter().filter(|(name, _)| is_told(name.as_str())).take(MAX_TOLD);
    named
        .map(|(name, value)| {
            let bytes = &value.as_bytes()[..value.len().min(MAX_VALUE)];
            let text =
                String::from_utf8_lossy(bytes).chars().map(|one| if one.is_control() { '?' } else { one }).collect();
            (name.as_str().to_owned(), text)
        })
        .collect()
}
