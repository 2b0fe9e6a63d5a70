//! TLS: what a server serves, judged apart from the handshake, so that all that is wrong is told at once.

use std::time::{Duration, Instant};

use netdiag_common::observation::series::tls::{TlsProbe, TlsProblem, TlsReport, TlsVariant};
use netdiag_common::observation::series::{FailureClass, ProbeFailure, ProbeReport, ProbeStage};
use rustls::SupportedProtocolVersion;
use rustls::version::{TLS12, TLS13};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout_at;
use tokio_rustls::client::TlsStream;

mod alert;
mod authorities;
mod certificate;
mod handshake;
mod judge;
mod recorder;
mod watched;

pub(super) use alert::alert_words;
pub(super) use handshake::{Wanted, alert_of, distrust, handshake};
pub(super) use watched::{FirstBytes, Watched};

use super::context::{Context, Ending};

/// How long a server that wants a client certificate may take to say that it does without: in TLS 1.3 its alert comes after
/// the handshake (RFC 8446 §4.4.2.4).
const ALERT_WITHIN: Duration = Duration::from_millis(300);
/// For our close_notify, which a full send buffer would hold up.
const FAREWELL_WITHIN: Duration = Duration::from_millis(100);

const ONLY_12: &[&SupportedProtocolVersion] = &[&TLS12];
const ONLY_13: &[&SupportedProtocolVersion] = &[&TLS13];

pub(super) async fn attempt(context: &Context, probe: &TlsProbe, within: Duration) -> Ending {
    let until = Instant::now() + within;
    let wanted = match Wanted::new(&probe.words) {
        Ok(wanted) => wanted,
        Err(why) => return Ending::failed(None, Some(probe.to), unusable(why)),
    };
    let (stream, connect_us) = match super::tcp::connect(context, probe.source_port, probe.to, within).await {
        Ok(connected) => connected,
        Err(failure) => return Ending::failed(None, Some(probe.to), failure),
    };
    let source = stream.local_addr().ok();
    let mut shaken = handshake(stream, &wanted, until).await;
    if let Some(stream) = shaken.stream.take() {
        shaken.failure = part(stream, &mut shaken.report, until).await;
    }
    let mut phases = vec![("connect", connect_us)];
    if shaken.report.version.is_some() {
        phases.push(("tls", shaken.report.handshake_us));
    }
    if probe.each_version {
        shaken.report.others = others(context, probe, &wanted, until).await;
    }
    let failure = shaken.failure.or_else(|| distrust(&shaken.report));
    Ending { source, to: Some(probe.to), failure, report: ProbeReport::Tls(Box::new(shaken.report)), phases }
}

/// Awaits the alert of a server that wanted a client certificate, and closes.
async fn part(
    mut stream: TlsStream<Watched<TcpStream>>,
    report: &mut TlsReport,
    until: Instant,
) -> Option<ProbeFailure> {
    let mut failure = None;
    let soon = |wait: Duration| until.min(Instant::now() + wait).into();
    if report.client_certificate_wanted
        && let Ok(Err(error)) = timeout_at(soon(ALERT_WITHIN), stream.read_u8()).await
        && let Some(number) = alert_of(&error)
    {
        let words = alert_words(number);
        report.problems.push(TlsProblem::ClientCertificateWanted);
        report.problems.push(TlsProblem::Alert { number, words: words.clone() });
        report.problems.sort();
        let why = format!("alert {number} ({words}) to a client without certificate");
        failure = Some(handshake::failure(FailureClass::Alert, why));
    }
    // Best effort: the far side may be gone.
    let _ = timeout_at(soon(FAREWELL_WITHIN), stream.shutdown()).await;
    failure
}

/// The same server in other ways, one connection each. What the time does not suffice for is said to be so.
async fn others(context: &Context, probe: &TlsProbe, wanted: &Wanted, until: Instant) -> Vec<TlsVariant> {
    let mut variants = vec![("TLSv1.2", wanted.with_versions(ONLY_12)), ("TLSv1.3", wanted.with_versions(ONLY_13))];
    if wanted.has_name() {
        variants.push(("without SNI", wanted.without_sni()));
    }
    let mut told = Vec::new();
    for (name, wanted) in variants {
        let left = until.saturating_duration_since(Instant::now());
        let variant = name.to_owned();
        if left.is_zero() {
            let why = Some("not tried: the time was over".to_owned());
            told.push(TlsVariant { variant, works: false, sha256: None, why });
            continue;
        }
        told.push(match super::tcp::connect(context, None, probe.to, left).await {
            Err(failure) => TlsVariant { variant, works: false, sha256: None, why: Some(failure.why) },
            Ok((stream, _)) => {
                let mut shaken = handshake(stream, &wanted, until).await;
                if let Some(stream) = shaken.stream.take() {
                    shaken.failure = part(stream, &mut shaken.report, until).await;
                }
                let sha256 = shaken.report.chain.first().map(|one| one.sha256.clone());
                let why = shaken.failure.map(|failure| failure.why);
                TlsVariant { variant, works: why.is_none(), sha256, why }
            }
        });
    }
    told
}

/// A request that cannot be sent as it is.
fn unusable(why: String) -> ProbeFailure {
    let class = FailureClass::Local;
    ProbeFailure { stage: ProbeStage::Socket, class, errno: None, said_by: None, icmp: None, why }
}
