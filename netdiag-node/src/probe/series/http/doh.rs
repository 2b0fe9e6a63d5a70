//! DNS over HTTPS (RFC 8484): one query by POST.

use std::time::Instant;

use http::{Method, Request, header};
use http_body_util::Full;
use hyper::body::Bytes;
use netdiag_common::observation::series::http::HttpExchange;
use netdiag_common::observation::series::tls::TlsWords;
use netdiag_common::observation::series::{FailureClass, ProbeFailure, ProbeStage};
use tokio::net::TcpStream;

use super::super::context::Context;
use super::super::tls::{Wanted, distrust, handshake};
use super::answer::{self, BodyLimit};
use super::connect::channel;
use super::failure::failed;

const MEDIA: &str = "application/dns-message";
/// The most that a DNS message has.
const MAX_ANSWER_BYTES: u64 = 65_535;

/// What came of a query.
pub(in super::super) struct Posted {
    pub(in super::super) tls_us: Option<u64>,
    /// What is wrong with the server's certificate, beside its answer.
    pub(in super::super) distrust: Option<ProbeFailure>,
    pub(in super::super) body: Result<Vec<u8>, ProbeFailure>,
}

/// `host`: SNI, `Host` and the name that the certificate must have.
pub(in super::super) async fn post_dns(
    context: &Context,
    stream: TcpStream,
    (host, path): (&str, &str),
    query: &[u8],
    until: Instant,
) -> Posted {
    let (mut tls_us, mut wrong) = (None, None);
    let body = post(context, stream, (host, path), query, until, (&mut tls_us, &mut wrong)).await;
    Posted { tls_us, distrust: wrong, body }
}

async fn post(
    context: &Context,
    stream: TcpStream,
    (host, path): (&str, &str),
    query: &[u8],
    until: Instant,
    (tls_us, wrong): (&mut Option<u64>, &mut Option<ProbeFailure>),
) -> Result<Vec<u8>, ProbeFailure> {
    let unusable = |why: String| failed(ProbeStage::Socket, FailureClass::Local, why);
    let name = host.trim_matches(['[', ']']).to_owned();
    let alpn = ["h2", "http/1.1"].map(ToOwned::to_owned).into();
    let words = TlsWords { server_name: Some(name), alpn, authorities: None };
    let wanted = Wanted::new(&words).map_err(unusable)?;
    let shaken = handshake(stream, &wanted, until).await;
    *wrong = distrust(&shaken.report);
    let stream = match (shaken.stream, shaken.failure) {
        (Some(stream), None) => stream,
        (_, Some(failure)) => return Err(failure),
        (None, None) => return Err(failed(ProbeStage::Tls, FailureClass::Protocol, "no handshake".to_owned())),
    };
    *tls_us = Some(shaken.report.handshake_us);
    let is_two = shaken.report.alpn.as_deref() == Some("h2");
    let uri = if is_two { format!("https://{host}{path}") } else { path.to_owned() };
    let mut request = Request::builder()
        .method(Method::POST)
        .uri(uri)
        .header(header::CONTENT_TYPE, MEDIA)
        .header(header::ACCEPT, MEDIA);
    if !is_two {
        request = request.header(header::HOST, host);
    }
    let request = request
        .body(Full::new(Bytes::copy_from_slice(query)))
        .map_err(|error| unusable(format!("https://{host}{path} cannot be asked: {error}")))?;
    let mut channel = channel(Box::new(stream), is_two, MAX_ANSWER_BYTES, until).await?;
    let mut exchange = HttpExchange::default();
    let limit = BodyLimit { read: MAX_ANSWER_BYTES, is_kept: true };
    let answer = answer::ask(context, &mut channel, request, limit, until, &mut exchange).await?;
    if answer.status != 200 {
        return Err(failed(ProbeStage::Answer, FailureClass::Status, format!("status {}", answer.status)));
    }
    Ok(answer.body)
}
