//! What a story tells of series of probes: how large packets fare, how large TCP makes them, and which certificates are served.

use netdiag_common::Need;
use netdiag_common::observation::Observation;
use netdiag_common::observation::series::tls::{Certificate, TlsProblem};
use netdiag_common::observation::series::{
    FailureClass, PathMtuReport, Probe, ProbeFailure, ProbeReport, ProbeStage, SeriesAttempt, SeriesRequest,
    SeriesResult, TcpReport, TlsReport,
};

use super::probe::{Results, ToldProbe, origin};

/// What a device's MTU is where a story says nothing.
const DEVICE: u32 = 1500;
/// IPv4 and TCP with timestamps.
const HEADERS: u32 = 52;

/// A search for the path MTU, a connection for its segments, or a TLS handshake; other series are asked for by no condition.
pub(super) fn answer(need: &Need, request: &SeriesRequest, told: &[ToldProbe]) -> Option<Observation> {
    let to = match &request.probe {
        Probe::PathMtu(probe) => probe.to,
        Probe::Tcp(probe) => probe.to,
        Probe::Tls(probe) => probe.to,
        other => panic!("a series of {} probes in a story", other.name()),
    };
    let from_here = |line: &&ToldProbe| line.from == "any" || line.from == origin(need);
    let line = told.iter().filter(from_here).find(|line| line.mtu == Some(to.ip()));
    let (report, failure) = match &request.probe {
        Probe::Tcp(_) => {
            let segment = line.and_then(|line| line.segment).unwrap_or(DEVICE - HEADERS);
            (ProbeReport::Tcp(TcpReport { send_mss: Some(segment), ..TcpReport::default() }), None)
        }
        Probe::Tls(_) => shaken(told.iter().filter(from_here).find(|line| line.tls == Some(to))?),
        _ => search(line)?,
    };
    let failed = u32::from(failure.is_some());
    let attempt = SeriesAttempt {
        number: 0,
        at_us: 0,
        elapsed_us: 1_000,
        source: None,
        to: Some(to),
        endpoint: None,
        failure,
        report,
    };
    Some(Observation::Series(SeriesResult {
        asked: 1,
        made: 1,
        succeeded: 1 - failed,
        failed,
        untried: 0,
        untried_because: None,
        late: 0,
        attempts: vec![attempt],
        not_kept: 0,
        times: Vec::new(),
        entered_us: None,
        unseen: Vec::new(),
    }))
}

/// The certificate that is served, and what the agent's clock makes of it.
fn shaken(line: &ToldProbe) -> (ProbeReport, Option<ProbeFailure>) {
    let failure = |class, why: &str| ProbeFailure {
        stage: ProbeStage::Tls,
        class,
        errno: None,
        said_by: None,
        icmp: None,
        why: why.to_owned(),
    };
    let Some((not_before, not_after)) = line.valid.clone() else {
        return (ProbeReport::Nothing, Some(failure(FailureClass::Protocol, "the port speaks no TLS")));
    };
    let problem = line.problem.as_deref().map(|problem| match problem {
        "expired" => TlsProblem::Expired { not_after: not_after.clone() },
        "not_yet_valid" => TlsProblem::NotYetValid { not_before: not_before.clone() },
        other => panic!("a certificate that is {other} in a story"),
    });
    let certificate = Certificate {
        subject: "CN=web".to_owned(),
        issuer: "CN=shop".to_owned(),
        names: Vec::new(),
        not_before,
        not_after,
        sha256: String::new(),
        serial: String::new(),
    };
    let failure = problem.as_ref().map(|_| failure(FailureClass::Certificate, "the certificate is outdated"));
    let problems = problem.into_iter().collect();
    (ProbeReport::Tls(Box::new(TlsReport { chain: vec![certificate], problems, ..TlsReport::default() })), failure)
}

/// None when no agent answers.
fn search(line: Option<&ToldProbe>) -> Option<(ProbeReport, Option<ProbeFailure>)> {
    let result = match line.map(|line| line.result.as_ref().expect("a search has a result")) {
        None => "fits",
        Some(Results::One(result)) => result.as_str(),
        Some(Results::Each(_)) => panic!("a search has one result"),
    };
    if result == "unseen" {
        return None;
    }
    let bytes = line.and_then(|line| line.bytes).unwrap_or(DEVICE);
    let report = PathMtuReport {
        device_mtu: Some(DEVICE),
        path_mtu: (result != "timeout").then_some(bytes),
        black_hole: result == "hole",
        said_by: (result == "too_big").then(|| "172.30.0.1".parse().expect("an address")),
        ..PathMtuReport::default()
    };
    let failure = |class, why: &str| ProbeFailure {
        stage: ProbeStage::Answer,
        class,
        errno: None,
        said_by: None,
        icmp: None,
        why: why.to_owned(),
    };
    let failure = match result {
        "timeout" => Some(failure(FailureClass::Silence, "no answer to packets of 68 and of 1500 bytes")),
        "hole" => Some(failure(FailureClass::TooBig, "larger packets vanish")),
        _ => None,
    };
    Some((ProbeReport::PathMtu(report), failure))
}
