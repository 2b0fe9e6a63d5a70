//! What a story tells of series of probes: how large packets fare, and how large TCP makes them.

use netdiag_common::Need;
use netdiag_common::observation::Observation;
use netdiag_common::observation::series::{
    FailureClass, PathMtuReport, Probe, ProbeFailure, ProbeReport, ProbeStage, SeriesAttempt, SeriesRequest,
    SeriesResult, TcpReport,
};

use super::{Results, ToldProbe, origin};

/// What a device's MTU is where a story says nothing.
const DEVICE: u32 = 1500;
/// IPv4 and TCP with timestamps.
const HEADERS: u32 = 52;

/// A search for the path MTU, or a connection for its segments; other series are asked for by no condition.
pub(super) fn answer(need: &Need, request: &SeriesRequest, told: &[ToldProbe]) -> Option<Observation> {
    let to = match &request.probe {
        Probe::PathMtu(probe) => probe.to,
        Probe::Tcp(probe) => probe.to,
        other => panic!("a series of {} probes in a story", other.name()),
    };
    let from_here = |line: &&ToldProbe| line.from == "any" || line.from == origin(need);
    let line = told.iter().filter(from_here).find(|line| line.mtu == Some(to.ip()));
    let (report, failure) = match &request.probe {
        Probe::Tcp(_) => {
            let segment = line.and_then(|line| line.segment).unwrap_or(DEVICE - HEADERS);
            (ProbeReport::Tcp(TcpReport { send_mss: Some(segment), ..TcpReport::default() }), None)
        }
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
