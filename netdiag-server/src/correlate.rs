//! From verdicts to one answer: causes hide their consequences, probes overrule paper, and confidence is computed.

use std::collections::BTreeSet;

use netdiag_common::Gap;

use crate::condition::{Because, Condition, Relation, Verdict};
use crate::finding::{Fate, Finding, Impact, Proof, ViewKind};
use crate::path::{Path, ProbeSeen, Symptom, SymptomState};

/// What all conditions said about one path.
pub struct Judged {
    pub path: Path,
    pub verdicts: Vec<(&'static Condition, Verdict)>,
    pub symptom: Symptom,
    /// Needs raised for this path, and how many of them were answered Seen or Absent.
    pub needs_raised: usize,
    pub needs_answered: usize,
    /// Everything that could not be seen for this path.
    pub gaps: Vec<Gap>,
}

/// The verdict about one path.
pub struct Correlated {
    pub status: Status,
    /// 0–1.
    pub confidence: f64,
    /// Needs answered ÷ needs raised, 0–1.
    pub completeness: f64,
    /// The first one is the answer; more only for independent faults.
    pub causes: Vec<Cause>,
    /// Found as well, but explained by a cause.
    pub consequences: Vec<Cause>,
    /// Codes that it is not, and the clause that says why.
    pub excluded: Vec<(&'static str, String)>,
}

pub struct Cause {
    pub condition: &'static Condition,
    pub finding: Finding,
    pub confidence: f64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    Broken,
    Degraded,
    Healthy,
    Unknown,
}

/// Two independent views and every look-alike excluded.
const CERTAIN: f64 = 0.97;
/// Two independent views, but some look-alike could not be judged.
const LOOKALIKE_OPEN: f64 = 0.85;
/// Several sources of one view.
const ONE_VIEW: f64 = 0.8;
/// A single source.
const ONE_SOURCE: f64 = 0.6;

pub fn correlate(judged: &Judged) -> Correlated {
    let mut excluded = Vec::new();
    let mut found = Vec::new();
    for (condition, verdict) in &judged.verdicts {
        match verdict {
            Verdict::Found(finding) => match overruled(finding, judged) {
                Some(because) => excluded.push((condition.code, because)),
                None => {
                    let mut finding = (**finding).clone();
                    finding.proofs.extend(agreeing(&finding, judged));
                    let confidence = confidence(condition, &finding, &judged.verdicts);
                    found.push(Cause { condition, finding, confidence });
                }
            },
            Verdict::Clear(Because::Seen(because)) => excluded.push((condition.code, because.clone())),
            Verdict::Clear(Because::NotApplicable(_)) | Verdict::Unknown(_) => {}
        }
    }
    let (consequences, mut causes): (Vec<Cause>, Vec<Cause>) = {
        let explained: BTreeSet<usize> = (0..found.len())
            .filter(|&index| found.iter().enumerate().any(|(other, by)| other != index && explains(by, &found[index])))
            .collect();
        let (mut left, mut right) = (Vec::new(), Vec::new());
        for (index, cause) in found.into_iter().enumerate() {
            if explained.contains(&index) { left.push(cause) } else { right.push(cause) }
        }
        (left, right)
    };
    causes.sort_by(|a, b| b.confidence.total_cmp(&a.confidence));
    let status = status(&causes, judged);
    Correlated {
        confidence: overall(status, &causes, judged),
        completeness: completeness(judged),
        status,
        causes,
        consequences,
        excluded,
    }
}

/// Packets overrule paper: all got through although none can, or they failed in a way the claim does not explain.
fn overruled(finding: &Finding, judged: &Judged) -> Option<String> {
    let symptom = &judged.symptom;
    if finding.impact == Impact::Breaks && symptom.state == SymptomState::Works {
        return Some(format!("all {} probes of this path got through", symptom.probes.len()));
    }
    if finding.impact == Impact::Degrades || finding.predicts.is_empty() || symptom.state != SymptomState::Fails {
        return None;
    }
    let mut failed = symptom.to_address().filter(|probe| fate(probe).is_some()).peekable();
    let first = *failed.peek()?;
    failed
        .all(|probe| fate(probe).is_some_and(|fate| !finding.predicts.contains(&fate)))
        .then(|| format!("it would show as {}, but: {}", expected(finding.predicts), first.words(&judged.path)))
}

/// One probe of what the client dials that failed as the claim says; it is our own packet, so it counts as observed.
fn agreeing(finding: &Finding, judged: &Judged) -> Option<Proof> {
    let agrees = |probe: &&ProbeSeen| {
        fate(probe).is_some_and(|fate| finding.predicts.is_empty() || finding.predicts.contains(&fate))
    };
    let probe = judged.symptom.to_address().find(agrees)?;
    let client = judged.path.clients.get(probe.client)?;
    Some(Proof::probe(format!("probe from {}", client.reference), &client.node, probe.at, probe.words(&judged.path)))
}

/// How the first failed attempt of a probe ended.
fn fate(probe: &ProbeSeen) -> Option<Fate> {
    probe.result.attempts.iter().find_map(|attempt| Fate::of(&attempt.outcome))
}

fn expected(predicts: &[Fate]) -> String {
    let words = predicts.iter().map(|fate| match fate {
        Fate::Refused => "refused",
        Fate::Silence => "no answer",
        Fate::Unreachable => "unreachable",
        Fate::NotPermitted => "not permitted",
    });
    words.collect::<Vec<_>>().join(" or ")
}

fn explains(by: &Cause, other: &Cause) -> bool {
    by.condition.explains.iter().filter(|e| e.code == other.condition.code).any(|e| match e.relation {
        Relation::SamePath => true,
        Relation::SameService => share(by, other, "Service"),
        Relation::SameNode => share(by, other, "Node"),
    })
}

fn share(a: &Cause, b: &Cause, kind: &str) -> bool {
    let of_kind = |cause: &Cause| cause.finding.subjects.iter().filter(|s| s.kind == kind).cloned().collect::<Vec<_>>();
    of_kind(a).iter().any(|subject| of_kind(b).iter().any(|other| subject.same_object(other)))
}

fn confidence(condition: &Condition, finding: &Finding, verdicts: &[(&'static Condition, Verdict)]) -> f64 {
    // A probe is our own packet and an observation: both show the observed view.
    let view = |kind: ViewKind| if kind == ViewKind::Probe { ViewKind::Observed } else { kind };
    let views: BTreeSet<ViewKind> = finding.proofs.iter().map(|proof| view(proof.view)).collect();
    let open = verdicts
        .iter()
        .filter(|(other, _)| condition.lookalikes.contains(&other.code))
        .any(|(_, verdict)| matches!(verdict, Verdict::Unknown(_)));
    match (views.len(), finding.proofs.len(), open) {
        (2.., _, false) => CERTAIN,
        (2.., _, true) => LOOKALIKE_OPEN,
        (_, 2.., _) => ONE_VIEW,
        _ => ONE_SOURCE,
    }
}

fn status(causes: &[Cause], judged: &Judged) -> Status {
    if causes.iter().any(|cause| cause.finding.impact == Impact::Breaks) {
        return Status::Broken;
    }
    if !causes.is_empty() {
        return Status::Degraded;
    }
    let undecided = judged.verdicts.iter().any(|(_, verdict)| matches!(verdict, Verdict::Unknown(_)));
    match judged.symptom.state {
        SymptomState::Works => Status::Healthy,
        SymptomState::Fails | SymptomState::Partial => Status::Unknown,
        SymptomState::Unknown if undecided => Status::Unknown,
        SymptomState::Unknown => Status::Healthy,
    }
}

fn overall(status: Status, causes: &[Cause], judged: &Judged) -> f64 {
    match (status, causes.first()) {
        (_, Some(cause)) => cause.confidence,
        (Status::Healthy, None) if judged.symptom.state == SymptomState::Works => CERTAIN,
        (Status::Healthy, None) => ONE_VIEW,
        _ => 0.0,
    }
}

#[expect(clippy::cast_precision_loss, reason = "needs are counted in hundreds")]
fn completeness(judged: &Judged) -> f64 {
    if judged.needs_raised == 0 { 1.0 } else { judged.needs_answered as f64 / judged.needs_raised as f64 }
}
