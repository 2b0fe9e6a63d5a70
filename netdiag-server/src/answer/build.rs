//! From an inquiry to its answer: nothing is judged here, only ordered, counted and named.

use netdiag_common::Reading;
use netdiag_common::observation::Observation;

use super::{
    ANSWER_SCHEMA, Answer, Asked, CauseEntry, Excluded, StatusName, SymptomEntry, SymptomName, hops, not_seen,
};
use crate::ask::Inquiry;
use crate::condition::Verdict;
use crate::correlate::{Cause, Correlated, Judged, Status, correlate};
use crate::evidence::Evidence;
use crate::path::SymptomState;
use crate::question::{PortName, Target};

/// Sentences about probes in one answer; the rest is counted. A Service of 16 endpoints asked from one pod fits.
const MAX_PROBE_SENTENCES: usize = 20;

/// Sentences about the path's own traffic in one answer, the most failures first.
const MAX_TRAFFIC_SENTENCES: usize = 5;

/// The answer to one question.
pub fn build(inquiry: &Inquiry) -> Answer {
    let Inquiry { judged, evidence, steps } = inquiry;
    let correlated = correlate(judged);
    let cluster = evidence.cluster.name.as_str();
    Answer {
        schema: ANSWER_SCHEMA.to_owned(),
        asked: asked(judged),
        cluster: cluster.to_owned(),
        at: evidence.now,
        window_s: window_s(evidence),
        status: status(correlated.status),
        confidence: two_digits(correlated.confidence),
        completeness: two_digits(correlated.completeness),
        symptom: symptom(judged),
        path: hops::hops(judged, &correlated, cluster),
        excluded: excluded(&correlated),
        undecided: undecided(judged),
        causes: correlated.causes.iter().map(|cause| entry(cause, cluster)).collect(),
        consequences: correlated.consequences.iter().map(|cause| entry(cause, cluster)).collect(),
        not_seen: not_seen::not_seen(judged, evidence),
        steps: steps.to_vec(),
        handle: String::new(),
        truncated: String::new(),
    }
}

/// `kube_proxy_rules_stale` → `kube-proxy rules stale`.
pub(super) fn title(code: &str) -> String {
    code.replace('_', " ").replace("kube proxy", "kube-proxy").replace("dns", "DNS")
}

/// Rounded to 2 digits: more would claim a precision that counting needs does not have.
pub(super) fn two_digits(share: f64) -> f64 {
    (share * 100.0).round() / 100.0
}

pub(super) fn asked(judged: &Judged) -> Asked {
    let question = &judged.path.question;
    let said = match &question.to {
        Target::Service { port: Some(PortName::Name(name)), .. } => Some(name.clone()),
        _ => None,
    };
    Asked {
        from: question.from.to_string(),
        to: question.to.to_string(),
        port: said.or(judged.path.port.map(|port| port.to_string())).unwrap_or_default(),
        protocol: judged.path.protocol.to_string(),
        name: judged.path.name.as_ref().map(|name| name.asked.clone()).unwrap_or_default(),
    }
}

pub(super) fn status(status: Status) -> StatusName {
    match status {
        Status::Broken => StatusName::Broken,
        Status::Degraded => StatusName::Degraded,
        Status::Healthy => StatusName::Healthy,
        Status::Unknown => StatusName::Unknown,
    }
}

fn symptom(judged: &Judged) -> SymptomEntry {
    let state = match judged.symptom.state {
        SymptomState::Works => SymptomName::Works,
        SymptomState::Partial => SymptomName::Partial,
        SymptomState::Fails => SymptomName::Fails,
        SymptomState::Unknown => SymptomName::Unknown,
    };
    let mut seen: Vec<_> = judged.symptom.probes.iter().collect();
    seen.sort_by_key(|probe| probe.result.failed() == 0);
    let mut probes: Vec<String> =
        seen.iter().take(MAX_PROBE_SENTENCES).map(|probe| probe.words(&judged.path)).collect();
    if seen.len() > MAX_PROBE_SENTENCES {
        probes.push(format!("and {} more probes", seen.len() - MAX_PROBE_SENTENCES));
    }
    let mut lived: Vec<_> = judged.symptom.lived.iter().collect();
    lived.sort_by_key(|lived| std::cmp::Reverse(lived.failed));
    let traffic = lived.iter().take(MAX_TRAFFIC_SENTENCES).map(|lived| lived.words(&judged.path)).collect();
    SymptomEntry { state, probes, traffic }
}

/// Look-alikes of the cause first, in the order its condition names them; then along the path.
fn excluded(correlated: &Correlated) -> Vec<Excluded> {
    let lookalikes = correlated.causes.first().map_or(&[][..], |cause| cause.condition.lookalikes);
    let mut excluded = correlated.excluded.clone();
    excluded.sort_by_key(|(code, _)| lookalikes.iter().position(|other| other == code).unwrap_or(usize::MAX));
    excluded.into_iter().map(|(code, because)| Excluded { code: code.to_owned(), because }).collect()
}

fn undecided(judged: &Judged) -> Vec<String> {
    let unknown = judged.verdicts.iter().filter(|(_, verdict)| matches!(verdict, Verdict::Unknown(_)));
    unknown.map(|(condition, _)| condition.code.to_owned()).collect()
}

pub(super) fn entry(cause: &Cause, cluster: &str) -> CauseEntry {
    let Cause { condition, finding, confidence } = cause;
    let mut subjects = finding.subjects.clone();
    for subject in &mut subjects {
        cluster.clone_into(&mut subject.cluster);
    }
    let mut proof = finding.proofs.clone();
    // Intended, programmed, observed, probe: what should be, what was told, what happened.
    proof.sort_by(|a, b| (a.view, &a.node).cmp(&(b.view, &b.node)));
    CauseEntry {
        code: condition.code.to_owned(),
        title: title(condition.code),
        severity: condition.severity.name().to_owned(),
        confidence: two_digits(*confidence),
        subjects,
        since: finding.since.map(|since| since.to_string()).unwrap_or_default(),
        claim: finding.claim.clone(),
        proof,
        fix: finding.fix.clone(),
    }
}

/// The longest window of the drop readings that the answer rests on; 0 when it rests on states alone.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a float cast saturates; windows are minutes"
)]
pub(super) fn window_s(evidence: &Evidence) -> u64 {
    let windows = evidence.readings().filter_map(|(_, reading)| match reading {
        Reading::Seen { value: Observation::Drops(drops), .. } => Some(drops.window_s.max(0.0).round() as u64),
        _ => None,
    });
    windows.max().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use netdiag_common::observation::probe::Outcome;

    use super::super::sample::{Shop, refused};
    use super::super::{HopState, StatusName, SymptomName};

    #[test]
    fn a_cause_is_complete_and_every_subject_names_its_cluster() {
        let answer = Shop::new("web-typo").probes_end(refused()).ask("pod/shop/client", "service/shop/web:80");
        assert_eq!(answer.status, StatusName::Broken);
        let cause = &answer.causes[0];
        assert_eq!(cause.code, "service_selects_no_pods");
        assert_eq!(cause.title, "service selects no pods");
        assert_eq!(cause.since, "2026-11-21T11:50:12Z");
        assert!(cause.subjects.iter().all(|subject| subject.cluster == "lab"), "{:?}", cause.subjects);
        assert!(!cause.fix.verify.is_empty() && !cause.proof.is_empty());
        let service = answer.path.iter().find(|hop| hop.kind == "service").expect("a service hop");
        assert_eq!(service.state, HopState::Broken);
    }

    #[test]
    fn a_healthy_path_says_what_got_through() {
        let answer = Shop::new("web").probes_end(Outcome::Connected).ask("pod/shop/client", "service/shop/web:80");
        assert_eq!((answer.status, answer.symptom.state), (StatusName::Healthy, SymptomName::Works));
        assert!(answer.path.iter().all(|hop| hop.state == HopState::Ok), "{:?}", answer.path);
        assert!(answer.excluded.iter().any(|e| e.code == "service_selects_no_pods"), "{:?}", answer.excluded);
    }

    #[test]
    fn what_one_node_cannot_show_for_one_reason_is_one_entry() {
        let answer = Shop::new("web").ask("", "service/shop/web:80");
        assert!(answer.symptom.probes.is_empty());
        let of_n1 = answer.not_seen.iter().filter(|entry| entry.node == "n1").count();
        assert_eq!(of_n1, 1, "{:?}", answer.not_seen);
    }

    #[test]
    fn probes_beyond_the_limit_are_counted() {
        let mut shop = Shop::new("web").probes_end(Outcome::Connected);
        for number in 0..40 {
            let node = serde_json::json!({"kind": "Node", "metadata": {"name": format!("m{number:02}")},
                "status": {"addresses": [{"type": "InternalIP", "address": format!("172.30.1.{number}")}]}});
            crate::evidence::parse::add(&mut shop.cluster, node).expect("a node");
        }
        let answer = shop.ask("", "service/shop/web:80");
        assert_eq!(answer.symptom.probes.last().map(String::as_str), Some("and 12 more probes"));
        assert!(
            answer.not_seen.iter().any(|entry| entry.what == "probes from 26 of 42 nodes"),
            "{:?}",
            answer.not_seen
        );
        let clients: Vec<_> = answer.path.iter().filter(|hop| hop.kind == "client").collect();
        assert_eq!((clients.len(), clients[16].label.as_str()), (17, "26 more"));
    }
}
