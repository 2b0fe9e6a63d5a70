//! One handshake, and what came of it: how it was agreed, what was served, and where it ended.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use netdiag_common::observation::series::tls::{TlsProblem, TlsReport, TlsWords};
use netdiag_common::observation::series::{FailureClass, ProbeFailure, ProbeStage};
use rustls::client::Resumption;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{ServerName, UnixTime};
use rustls::{AlertDescription, ClientConfig, Error, PeerIncompatible, SupportedProtocolVersion};
use tokio::net::TcpStream;
use tokio::time::timeout_at;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::super::context::{of_errno, silence};
use super::super::schedule::micros;
use super::alert::alert_words;
use super::authorities::Authorities;
use super::judge::{Standard, judge};
use super::recorder::Recorder;
use super::watched::{FirstBytes, Watched};

/// Most characters of a plain port's first line.
const MAX_SPOKEN: usize = 64;

/// How to shake hands, and against what to hold what is served.
#[derive(Clone)]
pub(in super::super) struct Wanted {
    /// As it was asked; empty: without SNI.
    name: String,
    server: Option<ServerName<'static>>,
    alpn: Vec<String>,
    authorities: Arc<Authorities>,
    versions: &'static [&'static SupportedProtocolVersion],
}

/// What came of it. The report is there also where the handshake failed: as far as it went.
pub(in super::super) struct Shaken {
    pub(in super::super) stream: Option<TlsStream<Watched<TcpStream>>>,
    pub(in super::super) report: TlsReport,
    /// Why there is no stream.
    pub(in super::super) failure: Option<ProbeFailure>,
}

impl Wanted {
    /// An error says in words what cannot be asked for.
    pub(in super::super) fn new(words: &TlsWords) -> Result<Self, String> {
        let server = words.server_name.as_deref().map(|name| {
            ServerName::try_from(name.to_owned())
                .map_err(|_| format!("{name:?} is no name that a certificate can have"))
        });
        if let Some(long) = words.alpn.iter().find(|one| one.is_empty() || one.len() > 255) {
            return Err(format!("an ALPN protocol has 1 to 255 bytes, not {}", long.len()));
        }
        Ok(Self {
            name: words.server_name.clone().unwrap_or_default(),
            server: server.transpose()?,
            alpn: words.alpn.clone(),
            authorities: Authorities::new(words.authorities.as_deref())?,
            versions: rustls::ALL_VERSIONS,
        })
    }

    pub(in super::super) fn with_versions(&self, versions: &'static [&'static SupportedProtocolVersion]) -> Self {
        Self { versions, ..self.clone() }
    }

    pub(in super::super) fn without_sni(&self) -> Self {
        Self { name: String::new(), server: None, ..self.clone() }
    }

    pub(in super::super) fn has_name(&self) -> bool {
        self.server.is_some()
    }
}

/// Shakes hands and judges what was served. `within` is told to people, `until` is when it ends.
pub(in super::super) async fn handshake(stream: TcpStream, wanted: &Wanted, until: Instant) -> Shaken {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let recorder = Arc::new(Recorder::new(provider.signature_verification_algorithms));
    let config = match config(&provider, &recorder, wanted) {
        Ok(config) => config,
        Err(error) => {
            let failure = failure(FailureClass::Local, format!("no handshake can be made: {error}"));
            return Shaken { stream: None, report: TlsReport::default(), failure: Some(failure) };
        }
    };
    // Without a name a placeholder is needed; it is neither sent nor checked.
    let server = wanted.server.clone().unwrap_or_else(|| ServerName::IpAddress(std::net::Ipv4Addr::UNSPECIFIED.into()));
    let stream = Watched::new(stream);
    let first = stream.first();
    let start = Instant::now();
    let shaken = timeout_at(until.into(), TlsConnector::from(Arc::new(config)).connect(server, stream)).await;
    let took = start.elapsed();

    let served = recorder.served();
    let mut report = TlsReport {
        handshake_us: micros(took),
        ocsp_stapled: served.ocsp,
        client_certificate_wanted: served.wants_client,
        ..TlsReport::default()
    };
    if !served.chain.is_empty() {
        let standard = Standard {
            name: wanted.server.as_ref(),
            wanted: &wanted.name,
            authorities: &wanted.authorities,
            algorithms: provider.signature_verification_algorithms,
            now: UnixTime::now(),
        };
        (report.chain, report.problems) = judge(&served.chain, &standard);
    }
    if let Some(why) = served.unsigned {
        let why = format!("the handshake is not signed by the served certificate's key: {why}");
        report.problems.push(TlsProblem::Other { why });
    }
    let (stream, failure) = match shaken {
        Ok(Ok(stream)) => {
            let (_, connection) = stream.get_ref();
            report.version = connection.protocol_version().map(version_words);
            report.cipher = connection.negotiated_cipher_suite().map(|suite| format!("{:?}", suite.suite()));
            report.alpn = connection.alpn_protocol().map(|name| String::from_utf8_lossy(name).into_owned());
            (Some(stream), None)
        }
        Ok(Err(error)) => (None, Some(ended(&error, &first, &mut report))),
        Err(_) => (None, Some(timed_out(took, &first, &mut report))),
    };
    report.problems.sort();
    Shaken { stream, report, failure }
}

fn config(provider: &Arc<CryptoProvider>, recorder: &Arc<Recorder>, wanted: &Wanted) -> Result<ClientConfig, Error> {
    let mut config = ClientConfig::builder_with_provider(Arc::clone(provider))
        .with_protocol_versions(wanted.versions)?
        .dangerous()
        .with_custom_certificate_verifier(Arc::<Recorder>::clone(recorder))
        .with_client_cert_resolver(Arc::<Recorder>::clone(recorder));
    config.enable_sni = wanted.server.is_some();
    config.alpn_protocols = wanted.alpn.iter().map(|name| name.clone().into_bytes()).collect();
    // One connection, one handshake: a ticket would only be kept for nobody.
    config.resumption = Resumption::disabled();
    Ok(config)
}

/// As OpenSSL writes it.
fn version_words(version: rustls::ProtocolVersion) -> String {
    match version {
        rustls::ProtocolVersion::TLSv1_2 => "TLSv1.2".to_owned(),
        rustls::ProtocolVersion::TLSv1_3 => "TLSv1.3".to_owned(),
        other => format!("{other:?}"),
    }
}

/// The failure behind an error of the stream, in a handshake or after it; problems that it shows are added.
fn ended(error: &io::Error, first: &FirstBytes, report: &mut TlsReport) -> ProbeFailure {
    if let Some(failure) = plain_port(first, report) {
        return failure;
    }
    match rustls_error(error) {
        Some(error) => told_by_tls(error, report),
        None if error.kind() == io::ErrorKind::UnexpectedEof => {
            let count = first.kept().count;
            failure(FailureClass::Closed, format!("closed in the handshake after {count} bytes of its answer"))
        }
        None => of_errno(ProbeStage::Tls, error),
    }
}

/// The far side's alert in what a stream says, after a handshake too.
pub(in super::super) fn alert_of(error: &io::Error) -> Option<u8> {
    match rustls_error(error) {
        Some(Error::AlertReceived(alert)) => Some(u8::from(*alert)),
        _ => None,
    }
}

fn rustls_error(error: &io::Error) -> Option<&Error> {
    let inner = error.get_ref()?;
    // Once more inside where a stream wrapped it.
    inner.downcast_ref::<Error>().or_else(|| inner.source().and_then(|source| source.downcast_ref::<Error>()))
}

fn told_by_tls(error: &Error, report: &mut TlsReport) -> ProbeFailure {
    match error {
        Error::AlertReceived(alert) => alerted(*alert, report),
        Error::PeerIncompatible(why) => {
            report.problems.push(TlsProblem::NothingInCommon);
            failure(FailureClass::Protocol, format!("no version or cipher in common: {}", incompatible(why)))
        }
        Error::NoApplicationProtocol => {
            let why = "it chose an ALPN protocol that was not offered".to_owned();
            report.problems.push(TlsProblem::Other { why: why.clone() });
            failure(FailureClass::Protocol, why)
        }
        other => {
            let why = super::certificate::cut(&other.to_string());
            report.problems.push(TlsProblem::Other { why: why.clone() });
            failure(FailureClass::Protocol, format!("the handshake broke: {why}"))
        }
    }
}

fn incompatible(why: &PeerIncompatible) -> String {
    match why {
        PeerIncompatible::ServerDoesNotSupportTls12Or13 => "it speaks neither TLS 1.2 nor 1.3".to_owned(),
        PeerIncompatible::ServerTlsVersionIsDisabledByOurConfig => "it chose a version that was not offered".to_owned(),
        other => format!("{other:?}"),
    }
}

/// Adds the alert to the problems, and what it means beside.
fn alerted(alert: AlertDescription, report: &mut TlsReport) -> ProbeFailure {
    let number = u8::from(alert);
    let words = alert_words(number);
    let is_for_client = matches!(
        alert,
        AlertDescription::CertificateRequired | AlertDescription::NoCertificate | AlertDescription::BadCertificate
    );
    // TLS 1.2 has no alert of its own for a client without certificate (RFC 5246 §7.4.6).
    if is_for_client || (report.client_certificate_wanted && alert == AlertDescription::HandshakeFailure) {
        report.problems.push(TlsProblem::ClientCertificateWanted);
    } else if matches!(
        alert,
        AlertDescription::ProtocolVersion | AlertDescription::InsufficientSecurity | AlertDescription::HandshakeFailure
    ) {
        report.problems.push(TlsProblem::NothingInCommon);
    }
    report.problems.push(TlsProblem::Alert { number, words: words.clone() });
    failure(FailureClass::Alert, format!("alert {number} ({words})"))
}

/// Whether the first byte is no TLS record's: ContentType is 20 to 24 (RFC 8446 §5.1, RFC 6520).
fn plain_port(first: &FirstBytes, report: &mut TlsReport) -> Option<ProbeFailure> {
    let kept = first.kept();
    if matches!(kept.bytes.first()?, 20..=24) {
        return None;
    }
    let line: Vec<u8> = kept.bytes.iter().copied().take_while(|byte| !matches!(byte, b'\r' | b'\n')).collect();
    let is_text = !line.is_empty() && line.iter().all(|byte| (b' '..=b'~').contains(byte));
    let spoke = is_text.then(|| String::from_utf8_lossy(&line).chars().take(MAX_SPOKEN).collect::<String>());
    let why = match &spoke {
        Some(spoke) => format!("the port speaks no TLS: it answered {spoke:?}"),
        None => "the port speaks no TLS: its first bytes are no record".to_owned(),
    };
    report.problems.push(TlsProblem::PlainPort { spoke });
    Some(failure(FailureClass::Protocol, why))
}

fn timed_out(took: Duration, first: &FirstBytes, report: &mut TlsReport) -> ProbeFailure {
    if let Some(failure) = plain_port(first, report) {
        return failure;
    }
    let (count, ms) = (first.kept().count, took.as_millis());
    silence(ProbeStage::Tls, format!("the handshake did not end in {ms} ms: {count} bytes came"))
}

pub(in super::super) fn failure(class: FailureClass, why: String) -> ProbeFailure {
    ProbeFailure { stage: ProbeStage::Tls, class, errno: None, said_by: None, icmp: None, why }
}

/// What is wrong with a certificate as a failure; none where nothing is.
pub(in super::super) fn distrust(report: &TlsReport) -> Option<ProbeFailure> {
    let why = report.problems.iter().map(words).collect::<Vec<_>>().join("; ");
    (!report.problems.is_empty()).then(|| failure(FailureClass::Certificate, why))
}

fn words(problem: &TlsProblem) -> String {
    match problem {
        TlsProblem::PlainPort { .. } => "the port speaks no TLS".to_owned(),
        TlsProblem::Expired { not_after } => format!("expired at {not_after}"),
        TlsProblem::NotYetValid { not_before } => format!("not valid before {not_before}"),
        TlsProblem::WrongName { wanted, names } => {
            format!(
                "not made for {wanted:?} but for {}",
                if names.is_empty() { "nobody".to_owned() } else { names.join(", ") }
            )
        }
        TlsProblem::UnknownAuthority { issuer } => format!("its authority {issuer:?} is not known here"),
        TlsProblem::SelfSigned => "signed by itself".to_owned(),
        TlsProblem::MissingIntermediate { issuer } => format!("the certificate of its issuer {issuer:?} is not served"),
        TlsProblem::ClientCertificateWanted => "a client certificate is wanted".to_owned(),
        TlsProblem::NothingInCommon => "no version or cipher in common".to_owned(),
        TlsProblem::Alert { number, words } => format!("alert {number} ({words})"),
        TlsProblem::Other { why } => why.clone(),
    }
}
