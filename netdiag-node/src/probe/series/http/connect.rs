//! The way to a server: its addresses, a connection, and TLS where the URL asks for it.

use std::net::{IpAddr, SocketAddr};
use std::time::Instant;

use netdiag_common::observation::series::http::{HttpExchange, HttpVersion};
use netdiag_common::observation::series::tls::{TlsReport, TlsWords};
use netdiag_common::observation::series::{FailureClass, ProbeFailure, ProbeStage};
use reqwest::Url;
use tokio::net::TcpStream;
use tokio::time::timeout_at;

use super::super::context::{Context, silence};
use super::super::tls::{FirstBytes, Wanted, distrust, handshake};
use super::super::{dns, tcp};
use super::channel::{Channel, Duplex};
use super::eager::Eager;
use super::failure::{self, failed};

/// A way that leads to a server.
pub(super) struct Way {
    pub(super) channel: Channel,
    /// What is wrong with the server's certificate.
    pub(super) distrust: Option<ProbeFailure>,
}

/// What is known of a connection beside its exchange, also where it fails.
#[derive(Default)]
pub(super) struct Seen {
    pub(super) source: Option<SocketAddr>,
    pub(super) tls: Option<TlsReport>,
    /// What is wrong with a certificate that does not end the exchange.
    pub(super) distrust: Option<ProbeFailure>,
    /// When the answer was read, or had failed. What it takes to close the connection is not the answer's.
    pub(super) answered: Option<Instant>,
}

/// How to speak on it, and from where.
pub(super) struct Speech<'a> {
    pub(super) source_port: Option<u16>,
    pub(super) version: HttpVersion,
    /// gRPC has HTTP/2 only.
    pub(super) is_grpc: bool,
    pub(super) words: &'a TlsWords,
    pub(super) body_bytes: u64,
}

/// `to`: instead of the URL's host.
pub(super) async fn open(
    context: &Context,
    url: &Url,
    to: Option<SocketAddr>,
    speech: &Speech<'_>,
    until: Instant,
    exchange: &mut HttpExchange,
    seen: &mut Seen,
) -> Result<Way, ProbeFailure> {
    let left = || until.saturating_duration_since(Instant::now());
    let stream = match to {
        Some(to) => connect_to(context, speech.source_port, to, left(), exchange).await?,
        None => connect_to_host(context, speech.source_port, url, until, exchange).await?,
    };
    seen.source = stream.local_addr().ok();
    if url.scheme() != "https" {
        let is_two = speech.is_grpc || speech.version == HttpVersion::Http2;
        let channel = channel(Box::new(Eager(stream)), is_two, speech.body_bytes, until).await?;
        return Ok(Way { channel, distrust: None });
    }
    let wanted = Wanted::new(&words(url, speech)).map_err(|why| failed(ProbeStage::Tls, FailureClass::Local, why))?;
    let shaken = handshake(stream, &wanted, until).await;
    let distrust = distrust(&shaken.report);
    let alpn = shaken.report.alpn.clone();
    exchange.phases.tls_us = shaken.stream.is_some().then_some(shaken.report.handshake_us);
    seen.tls = Some(shaken.report);
    let stream = match (shaken.stream, shaken.failure) {
        (Some(stream), None) => stream,
        (_, failure) => return Err(failure.unwrap_or_else(|| silence(ProbeStage::Tls, "no handshake".to_owned()))),
    };
    let is_two = alpn.as_deref() == Some("h2");
    if !is_two && (speech.is_grpc || speech.version == HttpVersion::Http2) {
        let why = match alpn {
            Some(alpn) => format!("it chose {alpn:?} by ALPN, not h2"),
            None => "it chose nothing by ALPN, not h2".to_owned(),
        };
        return Err(failed(ProbeStage::Tls, FailureClass::Protocol, why));
    }
    let channel = channel(Box::new(stream), is_two, speech.body_bytes, until).await?;
    Ok(Way { channel, distrust })
}

/// SNI by the URL's host and ALPN by the version, where they are not given.
fn words(url: &Url, speech: &Speech<'_>) -> TlsWords {
    let mut words = speech.words.clone();
    if words.server_name.is_none() {
        words.server_name = url.host_str().map(|host| host.trim_matches(['[', ']']).trim_end_matches('.').to_owned());
    }
    if words.alpn.is_empty() {
        let known: &[&str] = match speech.version {
            _ if speech.is_grpc => &["h2"],
            HttpVersion::Any => &["h2", "http/1.1"],
            HttpVersion::Http1 => &["http/1.1"],
            HttpVersion::Http2 => &["h2"],
        };
        words.alpn = known.iter().map(|one| (*one).to_owned()).collect();
    }
    words
}

/// Speaks HTTP from here on.
pub(super) async fn channel(
    stream: Box<dyn Duplex>,
    is_two: bool,
    body_bytes: u64,
    until: Instant,
) -> Result<Channel, ProbeFailure> {
    match timeout_at(until.into(), Channel::open(stream, is_two, body_bytes)).await {
        Ok(Ok(channel)) => Ok(channel),
        Ok(Err(error)) => Err(failure::of(&error, ProbeStage::Send, &FirstBytes::default())),
        Err(_) => Err(silence(ProbeStage::Send, "the time was over before the request was sent".to_owned())),
    }
}

async fn connect_to(
    context: &Context,
    source_port: Option<u16>,
    to: SocketAddr,
    within: std::time::Duration,
    exchange: &mut HttpExchange,
) -> Result<TcpStream, ProbeFailure> {
    exchange.to = Some(to);
    context.allow(to.ip())?;
    let (stream, connect_us) = tcp::connect(context, source_port, to, within).await?;
    exchange.phases.connect_us = Some(connect_us);
    Ok(stream)
}

/// The first address that this namespace has a way to, IPv6 before IPv4, as getaddrinfo sorts them (RFC 6724, rules 1 and 6).
async fn connect_to_host(
    context: &Context,
    source_port: Option<u16>,
    url: &Url,
    until: Instant,
    exchange: &mut HttpExchange,
) -> Result<TcpStream, ProbeFailure> {
    let port = url.port_or_known_default().unwrap_or(80);
    let mut addresses = match url.host() {
        Some(url_host) => match url_host.to_string().trim_matches(['[', ']']).parse::<IpAddr>() {
            Ok(address) => vec![address],
            Err(_) => {
                let (addresses, lookup_us) = dns::addresses(context, &url_host.to_string(), until).await?;
                exchange.phases.lookup_us = Some(lookup_us);
                addresses
            }
        },
        None => Vec::new(),
    };
    addresses.sort_by_key(IpAddr::is_ipv4);
    let mut last = None;
    for address in addresses {
        let left = until.saturating_duration_since(Instant::now());
        match connect_to(context, source_port, SocketAddr::new(address, port), left, exchange).await {
            Ok(stream) => return Ok(stream),
            Err(failure) if is_without_way(&failure) => last = Some(failure),
            Err(failure) => return Err(failure),
        }
    }
    let why = || failed(ProbeStage::Lookup, FailureClass::NoData, format!("{url} has no address"));
    Err(last.unwrap_or_else(why))
}

/// This kernel has no route, or no such protocol: nothing was sent.
fn is_without_way(failure: &ProbeFailure) -> bool {
    let errno = failure.errno.as_deref().unwrap_or_default();
    failure.icmp.is_none() && matches!(errno, "ENETUNREACH" | "EADDRNOTAVAIL" | "EAFNOSUPPORT")
}
