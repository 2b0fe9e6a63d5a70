//! Asking is a fixpoint: judge all conditions, gather what they need, judge again, until nobody needs anything.
//!
//! This module and the sources behind it are the only places with I/O and `async`.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use netdiag_common::observation::Observation;
use netdiag_common::{Gap, GapReason, Need, Reading, Tier, Topic};

use crate::condition::{self, Because, Verdict};
use crate::correlate::Judged;
use crate::evidence::{Cluster, Evidence, Look, View};
use crate::kube::Kept;
use crate::path::{self, Path, ResolveError};
use crate::question::Question;
use restart::Restarts;

mod any;
pub mod bundle;
pub mod live;
mod observe;
mod restart;
mod scan;
mod settle;
mod status;
pub mod step;

pub use any::AnySource;
pub use bundle::BundleSource;
pub use live::LiveSource;
pub use observe::observe;
pub use scan::{MAX_SCAN_PATHS, Scanned, Scope, scan};
pub use status::status;
pub use step::Step;

/// The one door to the world: a live cluster, a bundle, a fixture.
pub trait Source: Sync {
    /// The intended view now.
    fn cluster(&self) -> impl Future<Output = Result<Arc<Cluster>, SourceError>> + Send;

    /// Answers every need: a need that cannot be answered in time comes back unavailable, with the reason.
    fn gather(
        &self,
        needs: Vec<Need>,
        deadline: Instant,
    ) -> impl Future<Output = Vec<(Need, Reading<Observation>)>> + Send;

    /// The clock of this source: a bundle's is the moment it was recorded.
    fn now(&self) -> Timestamp;

    /// Whether looking again may show something else.
    fn is_live(&self) -> bool;

    /// The certificate of a Secret, read when it is asked for and not kept; none when there is no such Secret.
    fn certificate(&self, namespace: &str, name: &str) -> impl Future<Output = Result<Option<Kept>, Gap>> + Send {
        std::future::ready(Err(secret_not_recorded(namespace, name)))
    }

    /// Which start of a node's agent answered last; none when the source does not know.
    fn instance(&self, _node: &str) -> Option<String> {
        None
    }

    /// How often this source has met a new start of a node's agent after the first one.
    fn restarts(&self, _node: &str) -> u64 {
        0
    }
}

/// A source that several front ends share.
impl<S: Source + Send> Source for Arc<S> {
    fn cluster(&self) -> impl Future<Output = Result<Arc<Cluster>, SourceError>> + Send {
        S::cluster(self)
    }

    fn gather(
        &self,
        needs: Vec<Need>,
        deadline: Instant,
    ) -> impl Future<Output = Vec<(Need, Reading<Observation>)>> + Send {
        S::gather(self, needs, deadline)
    }

    fn now(&self) -> Timestamp {
        S::now(self)
    }

    fn is_live(&self) -> bool {
        S::is_live(self)
    }

    fn certificate(&self, namespace: &str, name: &str) -> impl Future<Output = Result<Option<Kept>, Gap>> + Send {
        S::certificate(self, namespace, name)
    }

    fn instance(&self, node: &str) -> Option<String> {
        S::instance(self, node)
    }

    fn restarts(&self, node: &str) -> u64 {
        S::restarts(self, node)
    }
}

/// The source cannot be used at all. The message names the thing and the way out.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct SourceError {
    pub message: String,
}

/// Why a question has no answer.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    #[error(transparent)]
    Source(#[from] SourceError),
    #[error(transparent)]
    Question(#[from] ResolveError),
}

/// One question taken to its end.
pub struct Inquiry {
    pub judged: Judged,
    pub evidence: Evidence,
    /// Shared by the inquiries of one scan.
    pub steps: Arc<Vec<Step>>,
}

/// More rounds than any chain of needs is long (resolver → network → rules → probe → one for each namespace on a packet's way
/// and back); a guard, not a limit that is met.
const MAX_ROUNDS: usize = 32;

/// Answers one question.
pub async fn ask<S: Source>(source: &S, question: &Question) -> Result<Inquiry, AskError> {
    let mut inquiries = ask_many(source, std::slice::from_ref(question)).await?;
    Ok(inquiries.pop().expect("one question has one inquiry"))
}

/// Answers many questions over one evidence: each need is asked once for all of them. Where a cause rests on what moved
/// meanwhile, the question is asked once more, as long as its time is not over.
pub async fn ask_many<S: Source>(source: &S, questions: &[Question]) -> Result<Vec<Inquiry>, AskError> {
    let started = Instant::now();
    let mut inquiries = ask_once(source, questions).await?;
    let waits: Vec<Option<Duration>> = inquiries.iter().map(settle::wait).collect();
    let is_worth_it = waits.iter().any(Option::is_some) || inquiries.iter().any(has_cause);
    let wait = waits.iter().flatten().max().copied().unwrap_or_default();
    let budget = questions.iter().map(|question| question.budget).max().unwrap_or_default();
    if !source.is_live() || !is_worth_it || started.elapsed() + wait >= budget {
        return Ok(inquiries);
    }
    tokio::time::sleep(wait).await;
    // An answer that cannot be checked again is still an answer.
    let Ok(cluster) = source.cluster().await else { return Ok(inquiries) };
    let is_open = |index: &usize| {
        let inquiry = &inquiries[*index];
        waits[*index].is_some() || (has_cause(inquiry) && settle::endpoints_moved(&inquiry.judged.path, &cluster))
    };
    let again: Vec<usize> = (0..inquiries.len()).filter(is_open).collect();
    let rest = budget.saturating_sub(started.elapsed());
    let asked: Vec<Question> =
        again.iter().map(|index| Question { budget: rest, ..questions[*index].clone() }).collect();
    let fresh = match ask_once(source, &asked).await {
        // What was asked about is gone by now: that ends one question, but not a scan of many.
        Err(AskError::Question(_)) if questions.len() > 1 => return Ok(inquiries),
        fresh => fresh?,
    };
    for (index, inquiry) in again.into_iter().zip(fresh) {
        inquiries[index] = inquiry;
    }
    Ok(inquiries)
}

fn has_cause(inquiry: &Inquiry) -> bool {
    inquiry.judged.verdicts.iter().any(|(_, verdict)| matches!(verdict, Verdict::Found(_)))
}

async fn ask_once<S: Source>(source: &S, questions: &[Question]) -> Result<Vec<Inquiry>, AskError> {
    let Some(budget) = questions.iter().map(|q| q.budget).max() else { return Ok(Vec::new()) };
    let cluster = source.cluster().await?;
    let mut evidence = Evidence::new(source.now(), cluster);
    let mut steps = Vec::new();
    let allowed = questions.iter().map(|q| q.tier).max().unwrap_or(Tier::Passive);
    let deadline = Instant::now() + budget;
    let mut tier = Tier::Passive;
    let mut asked: BTreeSet<Need> = BTreeSet::new();
    let mut excluded: BTreeSet<&'static str> = BTreeSet::new();
    let mut restarts = Restarts::default();
    let mut judged = judge_all(questions, &evidence)?;
    for round in 1..=MAX_ROUNDS {
        let wanted = questions.iter().zip(&judged).flat_map(|(question, (_, wanted))| {
            wanted.iter().filter(|need| need.tier() <= question.tier && !asked.contains(*need))
        });
        let needs: BTreeSet<Need> = wanted.cloned().collect();
        if needs.iter().all(|need| need.tier() > tier) {
            if needs.is_empty() || tier == allowed {
                break;
            }
            tier = allowed;
        }
        let now: Vec<Need> = needs.into_iter().filter(|need| need.tier() <= tier).collect();
        asked.extend(now.iter().cloned());
        let readings = if Instant::now() >= deadline {
            now.into_iter().map(|need| (need.clone(), Reading::Unavailable { gap: out_of_time(&need) })).collect()
        } else {
            source.gather(now, deadline).await
        };
        let readings: Vec<(Need, Reading<Observation>)> =
            readings.into_iter().map(|(need, reading)| named(need, reading, &evidence.cluster)).collect();
        steps.extend(readings.iter().map(|(need, reading)| Step::new(round, need, reading, &evidence)));
        let withdrawn = restarts.withdrawn(source, &readings, &evidence);
        evidence = evidence.with(source.now(), withdrawn).with(source.now(), readings);
        judged = judge_all(questions, &evidence)?;
        if let (Some((first, _)), Some(last)) = (judged.first(), steps.last_mut()) {
            let clear =
                first.verdicts.iter().filter(|(_, verdict)| matches!(verdict, Verdict::Clear(Because::Seen(_))));
            let new: Vec<&'static str> = clear.map(|(c, _)| c.code).filter(|code| excluded.insert(code)).collect();
            last.excluded = new.into_iter().map(str::to_owned).collect();
        }
    }
    let steps = Arc::new(steps);
    let inquiry = |(judged, _)| Inquiry { judged, evidence: evidence.clone(), steps: steps.clone() };
    Ok(judged.into_iter().map(inquiry).collect())
}

fn judge_all(questions: &[Question], evidence: &Evidence) -> Result<Vec<(Judged, Vec<Need>)>, ResolveError> {
    questions.iter().map(|question| judge(question, evidence)).collect()
}

/// All conditions over one path, and what they still need. Pure.
pub fn judge(question: &Question, evidence: &Evidence) -> Result<(Judged, Vec<Need>), ResolveError> {
    let mut needs = Vec::new();
    let mut gaps: Vec<Gap> = evidence.cluster.unread.clone();
    let mut raised: BTreeSet<Need> = BTreeSet::new();
    let path = resolve(question, evidence, &mut needs)?;
    let mut note = |view: &View, needs: &mut Vec<Need>| {
        raised.extend(view.topics_read().iter().cloned());
        needs.extend(view.needs().iter().cloned());
        for gap in view.gaps() {
            if !gaps.contains(gap) {
                gaps.push(gap.clone());
            }
        }
    };
    let mut verdicts = Vec::new();
    for condition in condition::ALL {
        let mut view = View::new(evidence);
        let verdict = (condition.judge)(&path, &mut view);
        note(&view, &mut needs);
        verdicts.push((*condition, verdict));
    }
    let mut view = View::new(evidence);
    let symptom = path::symptom(&path, &mut view);
    note(&view, &mut needs);
    for need in needs.iter().filter(|need| need.tier() > question.tier) {
        let gap = not_allowed(need, &evidence.cluster);
        if !gaps.contains(&gap) {
            gaps.push(gap);
        }
    }
    let answered = raised
        .iter()
        .filter(|need| matches!(evidence.reading(need), Some(Reading::Seen { .. } | Reading::Absent { .. })));
    let needs_answered = answered.count();
    Ok((Judged { path, verdicts, symptom, needs_raised: raised.len(), needs_answered, gaps }, needs))
}

/// Sources know pods by UID: a gap gets the name that its reader knows.
fn named(need: Need, mut reading: Reading<Observation>, cluster: &Cluster) -> (Need, Reading<Observation>) {
    if let Reading::Unavailable { gap } = &mut reading {
        gap.what = step::need_in_words(&need, Some(cluster));
    }
    (need, reading)
}

/// The path, with the search list of the asking pod when a name is asked.
fn resolve(question: &Question, evidence: &Evidence, needs: &mut Vec<Need>) -> Result<Path, ResolveError> {
    let cluster = &evidence.cluster;
    let path = path::resolve(question, cluster, None)?;
    let (Some(_), [client]) = (&path.name, path.clients.as_slice()) else { return Ok(path) };
    let mut view = View::new(evidence);
    let look = view.resolver(&client.node, &client.netns);
    needs.extend(view.needs().iter().cloned());
    match look {
        Look::Seen(seen) => path::resolve(question, cluster, Some((&seen.value.search, seen.value.ndots))),
        Look::Absent(_) | Look::Dark => Ok(path),
    }
}

fn not_allowed(need: &Need, cluster: &Cluster) -> Gap {
    Gap {
        what: step::need_in_words(need, Some(cluster)),
        node: Some(need.node.clone()),
        reason: GapReason::NotAllowed,
        why: "probes were not allowed for this question".to_owned(),
        remedy: "ask again without --no-probe".to_owned(),
    }
}

fn out_of_time(need: &Need) -> Gap {
    Gap {
        what: step::need_in_words(need, None),
        node: Some(need.node.clone()),
        reason: GapReason::NotAllowed,
        why: "the time for this answer was over".to_owned(),
        remedy: "ask again with a longer --timeout".to_owned(),
    }
}

/// Bundles are handed on.
fn secret_not_recorded(namespace: &str, name: &str) -> Gap {
    Gap {
        what: format!("the certificate of Secret {namespace}/{name}"),
        node: None,
        reason: GapReason::NotRecorded,
        why: "Secrets are not recorded".to_owned(),
        remedy: "ask the cluster itself".to_owned(),
    }
}

/// A need that a recorded source does not hold.
pub fn not_recorded(need: &Need) -> Gap {
    let how = match need.topic {
        Topic::Probe(_) | Topic::Series(_) | Topic::Mesh(_) | Topic::Trace(_) | Topic::Tagged(_) | Topic::Tags => {
            "probe while the cluster is there; a bundle cannot send packets"
        }
        _ => "record the bundle again while the agent of that node answers",
    };
    Gap {
        what: step::need_in_words(need, None),
        node: Some(need.node.clone()),
        reason: GapReason::NotRecorded,
        why: "the bundle does not hold it".to_owned(),
        remedy: how.to_owned(),
    }
}
