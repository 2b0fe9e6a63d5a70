//! Keeps the agent within its budget: it measures its own CPU time and memory, and gives up details in steps when it is over.
//!
//! Exemplars go first, then the tuples of groups; totals never. Each step is counted, logged, a failed check of the preflight,
//! and a gap in the observations that it makes poorer. Steps are taken back when the agent has been well below for a while.

use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use netdiag_common::observation::preflight::Check;
use netdiag_common::{Gap, GapReason};

use crate::host::own;
use crate::metrics::{Export, Families, catalogue};
use crate::preflight::resident_bytes;

/// What the agent may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::Args)]
pub struct Budget {
    /// CPU time of the agent that is too much, in percent of one CPU; its kernel programs are not in it
    #[arg(long, env = "NETDIAG_CPU_PERCENT", default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..))]
    pub cpu_percent: u32,
    /// Memory of the agent that is too much, in MiB; the tables of its kernel programs are made to fit
    #[arg(long, env = "NETDIAG_MEMORY_MIB", default_value_t = 100, value_parser = clap::value_parser!(u32).range(16..))]
    pub memory_mib: u32,
}

/// A reduction of work, in the order in which they are taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Step {
    /// Whole packets with their stacks, and names of DNS queries.
    Exemplars,
    /// Addresses and ports of dropped packets: they are counted by namespace, reason and place.
    Tuples,
}

/// One of a row of looks is a burst: answering a scan takes a second or two. Looks come with the harvests, every 10 s.
const OVER_LOOKS: u32 = 3;
/// A minute of calm, so that a load that comes and goes does not switch with it.
const CALM_LOOKS: u32 = 6;
/// Of the budget: what a step saved must not bring it back at once.
const CALM_SHARE: f64 = 0.7;
/// A load measured over less says nothing.
const SHORTEST_LOOK: Duration = Duration::from_millis(500);

/// The steps that are taken now.
pub struct Shedding {
    budget: Budget,
    proc: PathBuf,
    state: Mutex<State>,
    /// How often each step was taken.
    taken: [AtomicU64; Step::ALL.len()],
}

struct State {
    steps: Steps,
    at: Instant,
    cpu: Duration,
    latest: Load,
}

/// Use at the last look.
#[derive(Debug, Clone, Copy, Default)]
struct Load {
    cpu_percent: f64,
    resident_bytes: u64,
}

impl Default for Budget {
    fn default() -> Self {
        Self { cpu_percent: 20, memory_mib: 100 }
    }
}

impl Step {
    pub const ALL: [Self; 2] = [Self::Exemplars, Self::Tuples];

    fn name(self) -> &'static str {
        match self {
            Self::Exemplars => "exemplars",
            Self::Tuples => "tuples",
        }
    }

    fn lost(self) -> &'static str {
        match self {
            Self::Exemplars => "whole packets and stacks of drops, names of DNS queries",
            Self::Tuples => "addresses and ports of dropped packets",
        }
    }
}

impl Shedding {
    pub fn new(budget: Budget, proc: PathBuf) -> Self {
        let state =
            State { steps: Steps::default(), at: Instant::now(), cpu: own::cpu_time(), latest: Load::default() };
        Self { budget, proc, state: Mutex::new(state), taken: Default::default() }
    }

    /// To be called every few seconds: measures, and takes a step or takes one back.
    pub fn look(&self) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let (now, cpu) = (Instant::now(), own::cpu_time());
        let elapsed = now.duration_since(state.at);
        if elapsed < SHORTEST_LOOK {
            return;
        }
        let cpu_percent = cpu.saturating_sub(state.cpu).as_secs_f64() / elapsed.as_secs_f64() * 100.0;
        let load = Load { cpu_percent, resident_bytes: resident_bytes(&self.proc) };
        (state.at, state.cpu, state.latest) = (now, cpu, load);
        match state.steps.look(self.budget.share(load)) {
            Some(Change::Taken(step)) => {
                self.taken[step as usize].fetch_add(1, Ordering::Relaxed);
                tracing::warn!(step = step.name(), lost = step.lost(), load = self.words(load), "over budget");
            }
            Some(Change::TakenBack(step)) => {
                tracing::info!(step = step.name(), load = self.words(load), "within budget again");
            }
            None => {}
        }
    }

    pub fn gives_up(&self, step: Step) -> bool {
        self.steps() > step as usize
    }

    /// What a reader of dropped packets or of DNS queries misses now, when this step is taken.
    pub fn gap(&self, step: Step) -> Option<Gap> {
        let gap = || Gap {
            what: step.lost().to_owned(),
            node: None,
            reason: GapReason::NotAllowed,
            why: format!("the agent is over its budget and gave them up: {}", self.words(self.latest())),
            remedy: REMEDY.to_owned(),
        };
        self.gives_up(step).then(gap)
    }

    /// The preflight's line.
    pub fn check(&self) -> Check {
        let given_up: Vec<&str> = Step::ALL.into_iter().filter(|step| self.gives_up(*step)).map(Step::lost).collect();
        let remedy = if given_up.is_empty() { String::new() } else { REMEDY.to_owned() };
        Check {
            name: "budget".to_owned(),
            ok: given_up.is_empty(),
            detail: self.words(self.latest()),
            lost: given_up.join("; "),
            remedy,
        }
    }

    fn words(&self, load: Load) -> String {
        let Budget { cpu_percent, memory_mib } = self.budget;
        let mib = load.resident_bytes >> 20;
        format!("{:.1} of {cpu_percent} % of a CPU, {mib} of {memory_mib} MiB", load.cpu_percent)
    }

    fn steps(&self) -> usize {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).steps.taken
    }

    fn latest(&self) -> Load {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).latest
    }
}

const REMEDY: &str = "see what keeps the agent busy (netdiag status, /metrics), or raise --cpu-percent or --memory-mib";

impl Export for Shedding {
    fn export(&self, into: &mut Families) {
        into.add(&catalogue::SHED_STEP, &[], self.steps() as u64);
        for step in Step::ALL {
            into.add(&catalogue::SHED_STEPS, &[step.name()], self.taken[step as usize].load(Ordering::Relaxed));
        }
        into.add(&catalogue::CPU_LIMIT, &[], f64::from(self.budget.cpu_percent) / 100.0);
        into.add(&catalogue::MEMORY_LIMIT, &[], self.budget.memory_bytes());
    }
}

impl Budget {
    pub fn memory_bytes(self) -> u64 {
        u64::from(self.memory_mib) << 20
    }

    /// The larger of both uses, as a share of what is allowed.
    fn share(self, load: Load) -> f64 {
        #[expect(clippy::cast_precision_loss, reason = "a share needs no exact bytes")]
        let memory = load.resident_bytes as f64 / self.memory_bytes() as f64;
        (load.cpu_percent / f64::from(self.cpu_percent)).max(memory)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Change {
    Taken(Step),
    TakenBack(Step),
}

/// How many steps are taken, and how long the load has been high or low.
#[derive(Debug, Default)]
struct Steps {
    taken: usize,
    over: u32,
    calm: u32,
}

impl Steps {
    fn look(&mut self, share: f64) -> Option<Change> {
        self.over = if share > 1.0 { self.over + 1 } else { 0 };
        self.calm = if share < CALM_SHARE { self.calm + 1 } else { 0 };
        if self.over >= OVER_LOOKS && self.taken < Step::ALL.len() {
            (self.over, self.taken) = (0, self.taken + 1);
            return Some(Change::Taken(Step::ALL[self.taken - 1]));
        }
        if self.calm >= CALM_LOOKS && self.taken > 0 {
            (self.calm, self.taken) = (0, self.taken - 1);
            return Some(Change::TakenBack(Step::ALL[self.taken]));
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn changes(shares: &[(f64, usize)]) -> Vec<Change> {
        let mut steps = Steps::default();
        let looks = shares.iter().flat_map(|(share, times)| std::iter::repeat_n(*share, *times));
        looks.filter_map(|share| steps.look(share)).collect()
    }

    #[test]
    fn a_burst_takes_no_step() {
        assert_eq!(changes(&[(0.2, 9), (5.0, 2), (0.9, 1), (5.0, 2), (0.2, 9)]), []);
    }

    #[test]
    fn steps_are_taken_one_by_one_and_back_in_reverse() {
        use Change::{Taken, TakenBack};
        let expected =
            [Taken(Step::Exemplars), Taken(Step::Tuples), TakenBack(Step::Tuples), TakenBack(Step::Exemplars)];
        assert_eq!(changes(&[(1.5, 60), (0.1, 60)]), expected);
    }

    #[test]
    fn a_load_just_below_the_limit_keeps_its_step() {
        assert_eq!(changes(&[(1.1, 3), (0.9, 100)]), [Change::Taken(Step::Exemplars)]);
        assert_eq!(changes(&[(1.1, 3), (0.5, 5), (0.9, 1), (0.5, 5)]), [Change::Taken(Step::Exemplars)]);
    }

    #[test]
    fn memory_counts_as_cpu_does() {
        let budget = Budget { cpu_percent: 20, memory_mib: 100 };
        let share = |cpu_percent, mib: u64| budget.share(Load { cpu_percent, resident_bytes: mib << 20 });
        assert!(share(5.0, 30) < CALM_SHARE && share(21.0, 30) > 1.0 && share(0.0, 101) > 1.0);
    }

    #[test]
    fn what_is_given_up_is_said() {
        let shedding = Shedding::new(Budget::default(), PathBuf::from("/proc"));
        assert!(shedding.check().ok && shedding.gap(Step::Exemplars).is_none());
        shedding.state.lock().unwrap().steps.taken = 1;
        let (check, gap) = (shedding.check(), shedding.gap(Step::Exemplars).unwrap());
        assert!(!check.ok && check.lost.contains("DNS") && check.remedy.contains("--cpu-percent"), "{check:?}");
        assert!(gap.why.contains("over its budget"), "{gap:?}");
        assert!(shedding.gap(Step::Tuples).is_none());
    }
}
