//! From verdicts to one answer: causes hide their consequences, probes overrule paper, and confidence is computed.

use std::collections::BTreeSet;

use netdiag_common::Gap;

use crate::condition::{Because, Condition, Relation, Verdict};
use crate::evidence::object::Object;
use crate::finding::{Fate, Finding, Impact, Proof, ViewKind};
use crate::path::{Backend, Lived, Path, ProbeSeen, ProbeTo, Symptom, SymptomState};

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
                    finding.proofs.extend(lived(&finding, judged));
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
    let status = status(&causes, &consequences, judged);
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
/// A claim about the name is compared with lookups, any other with connections.
fn overruled(finding: &Finding, judged: &Judged) -> Option<String> {
    // What only connects says nothing about a process that answers late, or whose certificate is not trusted.
    if finding.predicts.iter().any(|fate| fate.is_after_connect()) {
        return None;
    }
    let symptom = &judged.symptom;
    let about_lookup = finding.predicts.iter().any(|fate| fate.is_lookup());
    let (state, word) =
        if about_lookup { (symptom.lookup_state(), "lookups") } else { (symptom.connect_state(), "probes") };
    if finding.impact == Impact::Breaks && state == SymptomState::Works {
        let count = if about_lookup { symptom.lookups().count() } else { symptom.connects().count() };
        return Some(format!("all {count} {word} of this path got through"));
    }
    if finding.impact == Impact::Degrades && pods_answer(finding, judged) {
        return Some("each of the endpoints it speaks of took a connection".to_owned());
    }
    if finding.impact == Impact::Degrades || finding.predicts.is_empty() || state != SymptomState::Fails {
        return None;
    }
    let stage = |probe: &&ProbeSeen| if about_lookup { probe.is_lookup() } else { probe.is_to_address() };
    let mut failed = symptom.probes.iter().filter(stage).filter(|probe| probe.fate().is_some()).peekable();
    let first = *failed.peek()?;
    failed
        .all(|probe| probe.fate().is_some_and(|fate| !finding.predicts.contains(&fate)))
        .then(|| format!("it would show as {}, but: {}", expected(finding.predicts), first.words(&judged.path)))
}

/// The claim names pods, and the probes of all of them got through.
fn pods_answer(finding: &Finding, judged: &Judged) -> bool {
    let mut named = finding.subjects.iter().filter(|subject| subject.kind == "Pod").peekable();
    named.peek().is_some()
        && named.all(|subject| {
            let is_it = |b: &Backend| b.pod.as_ref().is_some_and(|pod| pod.reference().same_object(subject));
            let own = judged.path.backends.iter().enumerate().filter(|(_, b)| is_it(b));
            let mut probes = own.flat_map(|(index, _)| judged.symptom.to_backend(index)).peekable();
            probes.peek().is_some() && probes.all(|probe| probe.fate().is_none())
        })
}

/// One probe that failed as the claim says; it is our own packet, so it counts as observed. Endpoints' probes speak for
/// claims about exactly those pods.
fn agreeing(finding: &Finding, judged: &Judged) -> Option<Proof> {
    let path = &judged.path;
    let about_lookup = finding.predicts.iter().any(|fate| fate.is_lookup());
    let agrees = |probe: &&ProbeSeen| {
        let of_stage = match probe.to {
            ProbeTo::Lookup { .. } => about_lookup,
            ProbeTo::Address(_) => !about_lookup,
            ProbeTo::Backend(index) => path.backends.get(index).and_then(|b| b.pod.as_ref()).is_some_and(|pod| {
                let pod = pod.reference();
                !about_lookup && finding.subjects.iter().any(|subject| subject.same_object(&pod))
            }),
        };
        of_stage && probe.fate().is_some_and(|fate| finding.predicts.is_empty() || finding.predicts.contains(&fate))
    };
    let probe = judged.symptom.probes.iter().find(agrees)?;
    let client = path.clients.get(probe.client)?;
    Some(Proof::probe(format!("probe from {}", client.reference), &client.node, probe.at, probe.words(path)))
}

/// The path's own traffic failed as the claim says. It speaks for the whole path, so not for a claim about some endpoints.
fn lived(finding: &Finding, judged: &Judged) -> Option<Proof> {
    let path = &judged.path;
    let agrees = |lived: &&Lived| finding.impact == Impact::Breaks && finding.predicts.contains(&lived.fate);
    let lived = judged.symptom.lived.iter().filter(agrees).max_by_key(|lived| lived.failed)?;
    let client = path.clients.get(lived.client)?;
    let source = if lived.fate.is_lookup() { "DNS queries" } else { "TCP connections" };
    Some(Proof::observed(source, &client.node, lived.at, lived.words(path)))
}

fn expected(predicts: &[Fate]) -> String {
    predicts.iter().map(|fate| fate.words()).collect::<Vec<_>>().join(" or ")
}

fn explains(by: &Cause, other: &Cause) -> bool {
    by.condition.explains.iter().filter(|e| e.code == other.condition.code).any(|e| match e.relation {
        Relation::SamePath => true,
        Relation::SameService => share(by, other, "Service"),
        Relation::SameNode => share(by, other, "Node"),
        Relation::SamePolicy => share(by, other, "NetworkPolicy"),
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

fn status(causes: &[Cause], consequences: &[Cause], judged: &Judged) -> Status {
    // Whatever a claim says, a path on which some packets got through is not broken.
    let some_get_through = judged.symptom.state == SymptomState::Partial;
    if causes.iter().any(|cause| cause.finding.impact == Impact::Breaks) && !some_get_through {
        return Status::Broken;
    }
    // One endpoint's fault breaks the path of a client that gets to no other.
    let all_breaks = consequences.iter().any(|consequence| consequence.finding.impact == Impact::Breaks);
    if all_breaks && judged.symptom.state == SymptomState::Fails {
        return Status::Broken;
    }
    if !causes.is_empty() {
        return Status::Degraded;
    }
    let nothing_seen = judged.needs_raised > 0 && judged.needs_answered == 0;
    // Nobody was there to be judged: that nothing is wrong on paper says nothing.
    let nothing_judged = judged.path.ready_backends().next().is_none();
    // Nobody probed, and the path's own traffic fails: that no rule says why is not health.
    let fails_by_itself = judged.symptom.lived.iter().any(Lived::is_telling);
    let undecided = judged.verdicts.iter().any(|(_, verdict)| matches!(verdict, Verdict::Unknown(_)));
    match judged.symptom.state {
        SymptomState::Works => Status::Healthy,
        SymptomState::Fails | SymptomState::Partial => Status::Unknown,
        SymptomState::Unknown if undecided || nothing_seen || nothing_judged || fails_by_itself => Status::Unknown,
        SymptomState::Unknown => Status::Healthy,
    }
}

fn overall(status: Status, causes: &[Cause], judged: &Judged) -> f64 {
    match (status, causes.first()) {
        (_, Some(cause)) => cause.confidence,
        (Status::Healthy, None) if judged.symptom.state == SymptomState::Works && all_clients_probed(judged) => CERTAIN,
        (Status::Healthy, None) => ONE_VIEW,
        _ => 0.0,
    }
}

/// Of a question from every node, some agents may be silent: the others cannot speak for them.
fn all_clients_probed(judged: &Judged) -> bool {
    let probed: BTreeSet<usize> = judged.symptom.connects().map(|probe| probe.client).collect();
    probed.len() == judged.path.clients.len()
}

#[expect(clippy::cast_precision_loss, reason = "needs are counted in hundreds")]
fn completeness(judged: &Judged) -> f64 {
    if judged.needs_raised == 0 { 1.0 } else { judged.needs_answered as f64 / judged.needs_raised as f64 }
}
