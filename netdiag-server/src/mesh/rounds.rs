//! Keeps a mesh going: every round new assignments for all agents, and what came of the ones before into the ledger.

use std::hash::{BuildHasher as _, RandomState};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use netdiag_common::observation::Observation;
use netdiag_common::observation::mesh::{Assignment, MeshRequest, RefusedTarget};
use netdiag_common::{Gap, GapReason, Need, Reading, Topic};

use super::ledger::Ledger;
use super::plan::plan;
use super::{INTERVAL_MS, LEASE_MS, ROUND_MS, Settings, Subject, TIMEOUT_MS, judge};
use crate::ask::{Source, SourceError};

/// Agents answer at once; one that does not costs 1.5 s.
const ASK_WITHIN: Duration = Duration::from_secs(10);
/// Attempts at each target when a mesh is looked at once.
const ONE_SHOT_ATTEMPTS: u32 = 5;
/// Between two of them, in milliseconds.
pub const ONE_SHOT_INTERVAL_MS: u32 = 1_000;
/// Looks in a round of a mesh that is kept: what breaks is seen within 5 s of its report.
const LOOKS_PER_ROUND: u32 = 4;
/// In larger clusters agents are asked once in a round, so that the server's work stays bounded.
const SMALL_NODES: usize = 200;
/// Added to the longest attempt before its end is asked for.
const SETTLE: Duration = Duration::from_millis(200);

/// A mesh at work.
pub struct Rounds {
    settings: Settings,
    /// Random: agents carry out assignments of two askers side by side.
    asker: String,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    round: u64,
    looks: u32,
    cluster: String,
    ledger: Ledger,
    gaps: Vec<Gap>,
}

/// What is known at one moment.
pub struct Look {
    pub settings: Settings,
    pub cluster: String,
    pub links: Vec<super::ledger::Link>,
    pub zones: std::collections::BTreeMap<String, String>,
    /// When the oldest round of the links began; none before the first report.
    pub since: Option<jiff::Timestamp>,
    pub gaps: Vec<Gap>,
    /// Rounds assigned so far.
    pub rounds: u64,
}

impl Rounds {
    pub fn new(settings: Settings) -> Self {
        let asker = format!("{:016x}", RandomState::new().hash_one(std::process::id()));
        Self { settings, asker, state: Mutex::default() }
    }

    /// For ever.
    pub async fn keep<S: Source>(&self, source: &S) {
        let mut ticks = Self::ticks();
        loop {
            ticks.tick().await;
            if let Err(error) = self.step(source).await {
                tracing::warn!(%error, "no new round of the mesh");
            }
        }
    }

    /// When to take each [`Self::step`].
    pub fn ticks() -> tokio::time::Interval {
        let mut ticks = tokio::time::interval(Duration::from_millis((ROUND_MS / LOOKS_PER_ROUND).into()));
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        ticks
    }

    /// A new round when it is time for one, else a look at the one at work.
    pub async fn step<S: Source>(&self, source: &S) -> Result<(), SourceError> {
        let (is_new, is_small) = {
            let mut state = self.state();
            state.looks = state.looks.wrapping_add(1);
            (state.looks % LOOKS_PER_ROUND == 1, state.ledger.zones().len() <= SMALL_NODES)
        };
        match (is_new, is_small) {
            (true, _) => self.round(source).await?,
            (false, true) => self.look_again(source).await,
            (false, false) => {}
        }
        Ok(())
    }

    /// Assigns the next round, and takes what the agents tell of those before.
    pub async fn round<S: Source>(&self, source: &S) -> Result<(), SourceError> {
        self.assign(source, INTERVAL_MS, LEASE_MS).await
    }

    /// One short round by itself: some attempts at each target, and what came of them.
    pub async fn once<S: Source>(&self, source: &S) -> Result<(), SourceError> {
        let length_ms = ONE_SHOT_ATTEMPTS * ONE_SHOT_INTERVAL_MS;
        self.assign(source, ONE_SHOT_INTERVAL_MS, length_ms).await?;
        if source.is_live() {
            tokio::time::sleep(self.longest_of_once()).await;
        }
        self.look_again(source).await;
        Ok(())
    }

    /// From the first attempt of a short round until the last one has ended, at whichever target it is.
    fn longest_of_once(&self) -> Duration {
        let timeouts = self.settings.targets.iter().filter_map(|target| target.timeout_ms);
        let longest_ms = timeouts.fold(TIMEOUT_MS, u32::max);
        Duration::from_millis(u64::from(ONE_SHOT_ATTEMPTS * ONE_SHOT_INTERVAL_MS + longest_ms)) + SETTLE
    }

    async fn assign<S: Source>(&self, source: &S, interval_ms: u32, lease_ms: u32) -> Result<(), SourceError> {
        let cluster = source.cluster().await?;
        let round = self.state().round;
        let plan = plan(&cluster, &self.settings, round);
        let assignment = |targets| Assignment {
            asker: self.asker.clone(),
            generation: round,
            interval_ms,
            timeout_ms: TIMEOUT_MS,
            lease_ms,
            targets,
        };
        let need = |(node, targets)| Need::host(node, Topic::Mesh(MeshRequest::Assign(assignment(targets))));
        let needs = plan.targets.into_iter().map(need).collect();
        {
            let mut state = self.state();
            state.ledger.place(&plan.zones);
            state.cluster.clone_from(&cluster.name);
            state.round += 1;
        }
        let readings = source.gather(needs, Instant::now() + ASK_WITHIN).await;
        self.take(source, plan.gaps, readings);
        Ok(())
    }

    async fn look_again<S: Source>(&self, source: &S) {
        let nodes: Vec<String> = self.state().ledger.zones().keys().cloned().collect();
        let look = |node| Need::host(node, Topic::Mesh(MeshRequest::Look { asker: self.asker.clone() }));
        let readings = source.gather(nodes.into_iter().map(look).collect(), Instant::now() + ASK_WITHIN).await;
        // Who refused the assignment has nothing to report, and was named then.
        let readings = readings.into_iter().filter(|(_, reading)| matches!(reading, Reading::Seen { .. })).collect();
        let gaps = std::mem::take(&mut self.state().gaps);
        self.take(source, gaps, readings);
    }

    fn take<S: Source>(&self, source: &S, mut gaps: Vec<Gap>, readings: Vec<(Need, Reading<Observation>)>) {
        let mut state = self.state();
        for (need, reading) in readings {
            match reading {
                Reading::Seen { value: Observation::Mesh(report), .. } => {
                    for refused in &report.refused {
                        let gap = not_allowed(&need.node, refused);
                        // An agent says it again with each report of the round.
                        if !gaps.contains(&gap) {
                            gaps.push(gap);
                        }
                    }
                    if let Err(why) = state.ledger.record(&need.node, &report, source.now()) {
                        gaps.push(malformed(&need.node, why));
                    }
                }
                Reading::Unavailable { mut gap } => {
                    gap.what = format!("the mesh from node {}", need.node);
                    gaps.push(gap);
                }
                // Nothing was assigned to it yet.
                Reading::Absent { .. } | Reading::NotAsked { .. } => {}
                Reading::Seen { .. } => gaps.push(malformed(&need.node, "it answered with another topic".to_owned())),
            }
        }
        state.gaps = gaps;
        state.ledger.forget(source.now());
    }

    pub fn look(&self) -> Look {
        let state = self.state();
        Look {
            settings: self.settings.clone(),
            cluster: state.cluster.clone(),
            links: state.ledger.links(),
            zones: state.ledger.zones().clone(),
            since: state.ledger.since(),
            gaps: state.gaps.clone(),
            rounds: state.round,
        }
    }

    /// As `GET /metrics` shows them.
    pub fn metrics(&self) -> String {
        super::metrics::text(&self.state().ledger, &self.settings.slo)
    }

    /// The same with native histograms.
    pub fn metrics_protobuf(&self) -> Vec<u8> {
        super::metrics::protobuf(&self.state().ledger, &self.settings.slo)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Keeps a mesh going until the task is ended.
pub fn start<S: Source + Send + Sync + 'static>(source: Arc<S>, rounds: Arc<Rounds>) -> tokio::task::JoinHandle<()> {
    tokio::spawn(async move { rounds.keep(&source).await })
}

/// The agent's own list of destinations decides, whatever the server asks.
fn not_allowed(node: &str, refused: &RefusedTarget) -> Gap {
    let subject = refused.name.parse::<Subject>();
    let target = subject.map_or_else(|_| refused.name.clone(), |subject| judge::role_in_words(&subject.role));
    Gap {
        what: format!("continuous probes of {target}"),
        node: Some(node.to_owned()),
        reason: GapReason::NotAllowed,
        why: refused.why.clone(),
        remedy: refused.remedy.clone(),
    }
}

fn malformed(node: &str, why: String) -> Gap {
    Gap {
        what: format!("the mesh from node {node}"),
        node: Some(node.to_owned()),
        reason: GapReason::Malformed,
        why,
        remedy: format!("see the log of the agent on {node}, and report it to the netdiag project if it persists"),
    }
}

#[cfg(test)]
mod tests;
