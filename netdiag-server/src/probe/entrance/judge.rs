//! Whether it is the entrance that fails: an answer or a certificate that the endpoint gives by itself to the same request is the
//! program's, and a certificate of an authority that nobody named may well be known to the clients.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use netdiag_common::observation::series::http::HttpProbe;
use netdiag_common::observation::series::tls::TlsProblem;
use netdiag_common::observation::series::{FailureClass, HttpReport, Probe, TlsProbe, TlsReport};
use serde::de::DeserializeOwned;

use super::super::ladder::Role;
use super::super::plan::{Plan, Schedule, Shot};
use super::super::rights::Rights;
use super::super::run::{Sender, Series, Wish};
use super::super::tally::{AttemptEntry, Tally};
use crate::ask::Source;
use crate::path::Backend;

/// What the failures of one climber at one entrance leave open.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Doubt {
    /// Each of these was said; the endpoint may say so, too.
    Said { all: Vec<Said>, issuer: Option<String> },
    /// The answers are good, only the issuer is not known.
    Issuer(String),
    /// It is the entrance.
    None,
}

/// What can be the endpoint's own.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Said {
    /// HTTP's status.
    Status(u16),
    /// gRPC's status, and the state that the health service told.
    Grpc { code: u16, state: Option<String> },
    /// The SHA-256 of the served certificate, and all that is wrong with the handshake.
    Certificate { sha256: String, problems: Vec<TlsProblem> },
}

/// For each series why its failures are not the entrance's; empty where they are, and where there are none.
pub(in crate::probe) async fn excuses<S: Source, R: Rights>(
    sender: &Sender<'_, S, R>,
    plan: &Plan,
    backend: Option<&Backend>,
    wishes: &[(Role, Wish)],
    series: &[Series],
) -> Vec<String> {
    let names_authorities = plan.request.options.authorities.is_some();
    let doubts = series.iter().zip(wishes);
    let doubts: Vec<Doubt> =
        doubts.map(|(series, (_, wish))| doubt(&wish.shot.probe, &series.tally, names_authorities)).collect();
    let mut own: BTreeMap<Probe, Vec<Said>> = BTreeMap::new();
    let mut asked: Vec<Wish> = Vec::new();
    for (doubt, (_, wish)) in doubts.iter().zip(wishes) {
        if let (Doubt::Said { .. }, Some(backend)) = (doubt, backend)
            && let Some(shot) = of_endpoint(&wish.shot.probe, SocketAddr::new(backend.address, backend.port))
            && !asked.iter().any(|known| known.shot == shot)
        {
            let schedule = Schedule { count: 1, ..wish.schedule };
            asked.push(Wish { client: plan.client.clone(), shot, schedule });
        }
    }
    // What the endpoint cannot be asked stays in doubt, and a doubt is no excuse.
    let (answers, _) = sender.send(plan, &asked).await;
    for (wish, answer) in asked.iter().zip(answers) {
        let probe = &wish.shot.probe;
        let all = answer.tally.attempts.iter().filter_map(|attempt| said(probe, attempt)).collect();
        own.insert(probe.clone(), all);
    }
    let excuse = |(doubt, (_, wish)): (Doubt, &(Role, Wish))| match doubt {
        Doubt::None => String::new(),
        Doubt::Issuer(issuer) => of_issuer(&issuer),
        Doubt::Said { all, issuer } => {
            let Some(backend) = backend else { return String::new() };
            let at = SocketAddr::new(backend.address, backend.port);
            let Some(shot) = of_endpoint(&wish.shot.probe, at) else { return String::new() };
            let says = own.get(&shot.probe).map_or(&[][..], Vec::as_slice);
            let Some(first) = all.first().filter(|_| all.iter().all(|said| says.contains(said))) else {
                return String::new();
            };
            let same = format!("{} {}", backend.words(), first.by_itself());
            issuer.map_or_else(|| same.clone(), |issuer| format!("{same}; {}", of_issuer(&issuer)))
        }
    };
    doubts.into_iter().zip(wishes).map(excuse).collect()
}

fn of_issuer(issuer: &str) -> String {
    format!("whether clients trust {issuer} is not known here: --ca FILE names authorities")
}

fn doubt(probe: &Probe, tally: &Tally, names_authorities: bool) -> Doubt {
    if tally.failed == 0 || tally.not_kept > 0 {
        return Doubt::None;
    }
    let (mut all, mut issuer) = (Vec::new(), None);
    for attempt in &tally.attempts {
        let Some(failure) = &attempt.failure else { continue };
        let Some(said) = said(probe, attempt) else { return Doubt::None };
        let unknown = if names_authorities { None } else { unknown_issuer(probe, attempt) };
        match (failure.class, unknown) {
            (FailureClass::Certificate, Some(unknown)) => {
                issuer = Some(unknown);
                if !said.is_good() {
                    all.push(said);
                }
            }
            (FailureClass::Status, _) => all.push(said),
            // What only passes TLS on shows the endpoint's own.
            (FailureClass::Certificate | FailureClass::Alert, _) if matches!(said, Said::Certificate { .. }) => {
                all.push(said);
            }
            _ => return Doubt::None,
        }
    }
    match (all.is_empty(), issuer) {
        (false, issuer) => Doubt::Said { all, issuer },
        (true, Some(issuer)) => Doubt::Issuer(issuer),
        (true, None) => Doubt::None,
    }
}

/// None where nothing was said that could be compared.
fn said(probe: &Probe, attempt: &AttemptEntry) -> Option<Said> {
    match probe {
        Probe::Tls(_) => {
            let report: TlsReport = report(attempt)?;
            let sha256 = report.chain.first()?.sha256.clone();
            Some(Said::Certificate { sha256, problems: report.problems })
        }
        Probe::Http(probe) => {
            let report: HttpReport = report(attempt)?;
            let status = report.exchanges.last()?.status?;
            match (&probe.grpc_health, report.grpc_status) {
                (Some(_), Some(code)) => Some(Said::Grpc { code, state: report.grpc_health }),
                // No gRPC, or an agent that does not tell its status.
                (Some(_), None) if status == 200 => None,
                _ => Some(Said::Status(status)),
            }
        }
        _ => None,
    }
}

impl Said {
    /// But for the certificate that it came with.
    fn is_good(&self) -> bool {
        match self {
            Self::Status(status) => (200..400).contains(status),
            Self::Grpc { state, .. } => state.as_deref() == Some("SERVING"),
            Self::Certificate { .. } => true,
        }
    }

    /// After the endpoint's name.
    fn by_itself(&self) -> String {
        match self {
            Self::Status(status) => format!("answers status {status} to it, too"),
            Self::Grpc { state: Some(state), .. } => format!("answers {state} to it, too"),
            Self::Grpc { code, state: None } => format!("answers grpc-status {code} to it, too"),
            Self::Certificate { .. } => "serves this certificate itself, with the same fault".to_owned(),
        }
    }
}

fn report<T: DeserializeOwned>(attempt: &AttemptEntry) -> Option<T> {
    serde_json::from_value(attempt.report.clone()).ok()
}

/// Who issued the certificate, where nothing else is wrong with it.
fn unknown_issuer(probe: &Probe, attempt: &AttemptEntry) -> Option<String> {
    let tls = if matches!(probe, Probe::Tls(_)) {
        report::<TlsReport>(attempt)?
    } else {
        report::<HttpReport>(attempt)?.tls?
    };
    let is_about_trust = |problem: &TlsProblem| {
        matches!(
            problem,
            TlsProblem::UnknownAuthority { .. } | TlsProblem::SelfSigned | TlsProblem::MissingIntermediate { .. }
        )
    };
    let leaf = tls.chain.first()?;
    (!tls.problems.is_empty() && tls.problems.iter().all(is_about_trust)).then(|| leaf.issuer.clone())
}

/// The same to an endpoint itself: a request without TLS, as most controllers speak to theirs.
fn of_endpoint(probe: &Probe, to: SocketAddr) -> Option<Shot> {
    match probe {
        Probe::Http(probe) => {
            let (_, rest) = probe.url.split_once("://")?;
            let url = format!("http://{rest}");
            let shot = HttpProbe { url: url.clone(), to: Some(to), ..probe.clone() };
            Some(Shot { to: format!("{url} at {to}"), probe: Probe::Http(shot) })
        }
        Probe::Tls(probe) => {
            Some(Shot { to: format!("TLS at {to}"), probe: Probe::Tls(TlsProbe { to, ..probe.clone() }) })
        }
        _ => None,
    }
}
