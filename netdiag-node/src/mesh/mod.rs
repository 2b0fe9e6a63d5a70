//! The continuous mesh: probes that go on in the background for as long as the server renews their assignment.
//!
//! Each round has a thread of its own in the node's network namespace, which makes and drives its sockets there and ends with
//! it: without an assignment nothing runs. Attempts follow an absolute schedule and do not wait for those before them.

use std::collections::{BTreeMap, VecDeque};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use netdiag_common::observation::mesh::{Assignment, KEPT_ROUNDS, MAX_ASKERS, MeshReport, MeshRequest, RefusedTarget};

use crate::host::{Host, ReadError};
use crate::netns::NetnsHandle;
use crate::probe::series::{AllowList, Shares};
use limits::Refused;
use round::Round;

mod attempt;
mod icmp;
mod limits;
mod means;
mod round;
mod run;
mod schedule;
mod tally;

/// Rounds of an asker that has ended give their place to another asker so long after their longest attempts may have ended: by
/// then what was still open was told, or nobody asks any more. Who looks again and again from a command line is another asker each
/// time.
const PLACE_KEPT_FOR: Duration = Duration::from_secs(2);

/// Why a request has no answer.
#[derive(Debug, thiserror::Error)]
pub enum MeshError {
    #[error(transparent)]
    Refused(#[from] Refused),
    #[error(transparent)]
    Start(#[from] ReadError),
}

/// Every asker's rounds.
pub struct Mesh {
    netns: NetnsHandle,
    /// A proc filesystem that shows the node's processes.
    proc: PathBuf,
    allowed: AllowList,
    shares: Shares,
    askers: Mutex<BTreeMap<String, VecDeque<Arc<Round>>>>,
}

impl Mesh {
    /// Starts nothing yet.
    pub(crate) fn new(host: &Host, allowed: AllowList, shares: Shares) -> Self {
        let (netns, proc) = (host.netns.clone(), host.proc.clone());
        Self { netns, proc, allowed, shares, askers: Mutex::default() }
    }

    /// Does what is asked, and reports. None when nothing was assigned by this asker. Starts threads, so it may take a
    /// millisecond.
    pub fn ask(&self, request: &MeshRequest) -> Result<Option<MeshReport>, MeshError> {
        let mut askers = self.askers.lock().unwrap_or_else(PoisonError::into_inner);
        let mut refused = Vec::new();
        if let MeshRequest::Assign(assignment) = request {
            limits::check(assignment)?;
            let allowed;
            (allowed, refused) = self.allowed(assignment);
            self.assign(&mut askers, &allowed)?;
        }
        let Some(rounds) = askers.get(request.asker()) else { return Ok(None) };
        refused.extend(rounds.back().map(|round| round.refused()).unwrap_or_default());
        let rounds = rounds.iter().map(|round| round.report()).filter(|report| !report.targets.is_empty()).collect();
        Ok(Some(MeshReport { rounds, refused }))
    }

    /// What is left of an assignment by the agent's list of destinations, and what is not.
    fn allowed(&self, assignment: &Assignment) -> (Assignment, Vec<RefusedTarget>) {
        let (mut allowed, mut refused) = (assignment.clone(), Vec::new());
        allowed.targets.retain(|target| {
            // What the name of a URL stands for is known later, and held against the list then.
            let refusal = target.probe.destination().and_then(|to| self.allowed.refusal(to.ip()));
            let Some((why, remedy)) = refusal else { return true };
            refused.push(RefusedTarget { name: target.name.clone(), why, remedy });
            false
        });
        (allowed, refused)
    }

    fn assign(
        &self,
        askers: &mut BTreeMap<String, VecDeque<Arc<Round>>>,
        assignment: &Assignment,
    ) -> Result<(), MeshError> {
        let now = Instant::now();
        let lease = Duration::from_millis(assignment.lease_ms.into());
        let newest = askers.get(&assignment.asker).and_then(VecDeque::back);
        if let Some(round) = newest
            && round.is_for(assignment)
            && round.renew(now + lease)
        {
            return Ok(());
        }
        askers.retain(|asker, rounds| {
            *asker == assignment.asker || rounds.iter().any(|round| !round.is_over_since(now, PLACE_KEPT_FOR))
        });
        if !askers.contains_key(&assignment.asker) && askers.len() >= MAX_ASKERS {
            return Err(Refused::Askers.into());
        }
        let others = askers.iter().filter(|(asker, _)| **asker != assignment.asker);
        let at_work = others.filter_map(|(_, rounds)| rounds.back()).filter(|round| !round.is_ended());
        limits::check_rate(assignment, at_work.map(|round| round.assignment.attempts_per_1000s()).sum())?;
        let round = Arc::new(Round::new(assignment.clone(), now + lease));
        if let Some(before) = askers.get(&assignment.asker).and_then(VecDeque::back) {
            round.take_over(before);
        }
        run::start(&self.netns, &round, (self.shares.clone(), self.proc.clone()))?;
        if !askers.contains_key(&assignment.asker) {
            let targets = assignment.targets.len();
            tracing::info!(asker = %assignment.asker, targets, "a mesh is probed until its lease ends");
        }
        let rounds = askers.entry(assignment.asker.clone()).or_default();
        if let Some(before) = rounds.back() {
            before.end();
        }
        rounds.push_back(round);
        while rounds.len() > KEPT_ROUNDS {
            rounds.pop_front();
        }
        Ok(())
    }
}
