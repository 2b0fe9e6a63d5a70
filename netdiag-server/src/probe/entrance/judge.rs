//! Whether it is the entrance that fails: an answer that the endpoint gives by itself to the same request is the program's, and a
//! certificate of an authority that nobody named may well be known to the clients.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use netdiag_common::observation::series::http::HttpProbe;
use netdiag_common::observation::series::tls::TlsProblem;
use netdiag_common::observation::series::{FailureClass, HttpReport, Probe};

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
    /// Each of these was answered; the endpoint may answer so, too.
    Answered { statuses: Vec<u16>, issuer: Option<String> },
    /// The answers are good, only the issuer is not known.
    Issuer(String),
    /// It is the entrance.
    None,
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
    let doubts: Vec<Doubt> = series.iter().map(|series| doubt(&series.tally, names_authorities)).collect();
    let mut own: BTreeMap<Probe, Vec<u16>> = BTreeMap::new();
    let mut asked: Vec<Wish> = Vec::new();
    for (doubt, (_, wish)) in doubts.iter().zip(wishes) {
        if let (Doubt::Answered { .. }, Some(backend)) = (doubt, backend)
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
        own.insert(wish.shot.probe.clone(), answer.tally.attempts.iter().filter_map(status).collect());
    }
    let excuse = |(doubt, (_, wish)): (Doubt, &(Role, Wish))| match doubt {
        Doubt::None => String::new(),
        Doubt::Issuer(issuer) => of_issuer(&issuer),
        Doubt::Answered { statuses, issuer } => {
            let Some(backend) = backend else { return String::new() };
            let at = SocketAddr::new(backend.address, backend.port);
            let Some(shot) = of_endpoint(&wish.shot.probe, at) else { return String::new() };
            let says = own.get(&shot.probe).map_or(&[][..], Vec::as_slice);
            if says.is_empty() || !statuses.iter().all(|status| says.contains(status)) {
                return String::new();
            }
            let same = format!("{} answers status {} to it, too", backend.words(), says[0]);
            issuer.map_or_else(|| same.clone(), |issuer| format!("{same}; {}", of_issuer(&issuer)))
        }
    };
    doubts.into_iter().zip(wishes).map(excuse).collect()
}

fn of_issuer(issuer: &str) -> String {
    format!("whether clients trust {issuer} is not known here: --ca FILE names authorities")
}

fn doubt(tally: &Tally, names_authorities: bool) -> Doubt {
    if tally.failed == 0 || tally.not_kept > 0 {
        return Doubt::None;
    }
    let (mut statuses, mut issuer) = (Vec::new(), None);
    for attempt in tally.attempts.iter().filter(|attempt| attempt.failure.is_some()) {
        let class = attempt.failure.as_ref().map(|failure| failure.class);
        let Some(status) = status(attempt) else { return Doubt::None };
        match class {
            Some(FailureClass::Status) => statuses.push(status),
            Some(FailureClass::Certificate) if !names_authorities => {
                let Some(unknown) = unknown_issuer(attempt) else { return Doubt::None };
                issuer = Some(unknown);
                if !(200..400).contains(&status) {
                    statuses.push(status);
                }
            }
            _ => return Doubt::None,
        }
    }
    match (statuses.is_empty(), issuer) {
        (false, issuer) => Doubt::Answered { statuses, issuer },
        (true, Some(issuer)) => Doubt::Issuer(issuer),
        (true, None) => Doubt::None,
    }
}

/// Of the last exchange.
fn status(attempt: &AttemptEntry) -> Option<u16> {
    report(attempt)?.exchanges.last()?.status
}

fn report(attempt: &AttemptEntry) -> Option<HttpReport> {
    serde_json::from_value(attempt.report.clone()).ok()
}

/// Who issued the certificate, where nothing else is wrong with it.
fn unknown_issuer(attempt: &AttemptEntry) -> Option<String> {
    let tls = report(attempt)?.tls?;
    let is_about_trust = |problem: &TlsProblem| {
        matches!(
            problem,
            TlsProblem::UnknownAuthority { .. } | TlsProblem::SelfSigned | TlsProblem::MissingIntermediate { .. }
        )
    };
    let leaf = tls.chain.first()?;
    (!tls.problems.is_empty() && tls.problems.iter().all(is_about_trust)).then(|| leaf.issuer.clone())
}

/// The same request to an endpoint itself: without TLS, as most controllers speak to theirs.
fn of_endpoint(probe: &Probe, to: SocketAddr) -> Option<Shot> {
    let Probe::Http(probe) = probe else { return None };
    let (_, rest) = probe.url.split_once("://")?;
    let url = format!("http://{rest}");
    let shot = HttpProbe { url: url.clone(), to: Some(to), ..probe.clone() };
    Some(Shot { to: format!("{url} at {to}"), probe: Probe::Http(shot) })
}
