//! One assignment at work: its lease, and what came of it so far.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use jiff::Timestamp;
use netdiag_common::observation::mesh::{Assignment, RefusedTarget, RoundReport, Target, Times, empty};
use tokio_util::sync::CancellationToken;

use super::attempt::{End, Ended};
use super::tally::{self, Tally};
use crate::clock;

/// Attempts of one round that wait for their answers at one time; each costs a descriptor.
const MAX_OPEN: usize = 256;

pub(super) struct Round {
    pub assignment: Assignment,
    started: Timestamp,
    /// Told when another assignment takes its place.
    pub replaced: CancellationToken,
    state: Mutex<State>,
}

struct State {
    until: Instant,
    ended: Option<Instant>,
    delay: Histogram<u32>,
    tallies: Vec<Tally>,
    open: usize,
    /// Targets whose names stand for what the agent may not probe, as it was found last; why, and the remedy.
    refused: BTreeMap<usize, (String, String)>,
}

impl Round {
    pub fn new(assignment: Assignment, until: Instant) -> Self {
        let tallies = assignment.targets.iter().map(|target| Tally::new(target.probe.phase())).collect();
        let state = State { until, ended: None, delay: empty(), tallies, open: 0, refused: BTreeMap::new() };
        Self { assignment, started: clock::now(), replaced: CancellationToken::new(), state: Mutex::new(state) }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether this is the same work, however long it was leased for.
    pub fn is_for(&self, assignment: &Assignment) -> bool {
        let Assignment { asker, generation, interval_ms, timeout_ms, lease_ms: _, targets } = assignment;
        let own = &self.assignment;
        own.generation == *generation
            && own.asker == *asker
            && (own.interval_ms, own.timeout_ms) == (*interval_ms, *timeout_ms)
            && own.targets == *targets
    }

    /// False when it has ended already.
    pub fn renew(&self, until: Instant) -> bool {
        let mut state = self.state();
        if state.ended.is_none() {
            state.until = until;
        }
        state.ended.is_none()
    }

    pub fn until(&self) -> Instant {
        self.state().until
    }

    /// Ends it when its lease has. Decided under one lock with [`Self::renew`]: a lease is renewed or over, never both.
    pub fn end_if_over(&self, now: Instant) -> bool {
        let mut state = self.state();
        if now >= state.until {
            state.ended.get_or_insert(now);
        }
        state.ended.is_some()
    }

    pub fn end(&self) {
        self.state().ended.get_or_insert_with(Instant::now);
        self.replaced.cancel();
    }

    pub fn is_ended(&self) -> bool {
        self.state().ended.is_some()
    }

    /// Whether nothing is open, and the longest attempt that it could have begun last would have ended this long ago.
    pub fn is_over_since(&self, now: Instant, this_long: Duration) -> bool {
        let timeouts = self.assignment.targets.iter().filter_map(|target| target.timeout_ms);
        let longest_ms = timeouts.fold(self.assignment.timeout_ms, u32::max);
        let waits = Duration::from_millis(longest_ms.into()) + this_long;
        let state = self.state();
        state.open == 0 && state.ended.is_some_and(|ended| now.saturating_duration_since(ended) >= waits)
    }

    /// Counts an attempt that is not made.
    pub fn missed(&self, target: usize) {
        self.state().tallies[target].missed();
    }

    /// Counts an attempt that begins; false when there is no room for it, and then as missed.
    pub fn begin(&self, target: usize, behind: Duration) -> bool {
        let mut state = self.state();
        if state.open >= MAX_OPEN {
            state.tallies[target].missed();
            return false;
        }
        state.open += 1;
        tally::record(&mut state.delay, behind);
        state.tallies[target].begun(behind);
        true
    }

    pub fn finish(&self, target: usize, behind: Duration, ended: &Ended) {
        let mut state = self.state();
        state.open = state.open.saturating_sub(1);
        match &ended.end {
            End::Told(end) => {
                state.refused.remove(&target);
                let tally = &mut state.tallies[target];
                for (phase, us) in &ended.parts {
                    tally.part(*phase, *us);
                }
                tally.ended(behind, ended.took, *end);
            }
            End::NotAllowed { why, remedy } => {
                state.tallies[target].unmade();
                state.refused.insert(target, (why.clone(), remedy.clone()));
            }
        }
    }

    /// What the round before found of the same targets holds until an attempt of this one tells: a round begins without attempts,
    /// and its first report would else name nothing.
    pub fn take_over(&self, before: &Self) {
        let found = before.state().refused.clone();
        for (number, words) in found {
            let target = &before.assignment.targets[number];
            let is_same = |own: &Target| own.name == target.name && own.probe == target.probe;
            if let Some(number) = self.assignment.targets.iter().position(is_same) {
                self.state().refused.insert(number, words);
            }
        }
    }

    /// Targets whose names stand for what the agent may not probe.
    pub fn refused(&self) -> Vec<RefusedTarget> {
        let state = self.state();
        let named = state.refused.iter().map(|(target, words)| (&self.assignment.targets[*target].name, words));
        named
            .map(|(name, (why, remedy))| RefusedTarget { name: name.clone(), why: why.clone(), remedy: remedy.clone() })
            .collect()
    }

    pub fn report(&self) -> RoundReport {
        let state = self.state();
        let named = self.assignment.targets.iter().zip(&state.tallies);
        RoundReport {
            generation: self.assignment.generation,
            started: self.started,
            ended: state.ended.is_some(),
            delay: Times::of(&state.delay),
            targets: named.filter_map(|(target, tally)| tally.report(&target.name)).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr};

    use netdiag_common::observation::mesh::TargetProbe;

    use super::*;

    fn round(until: Instant) -> Round {
        let probe = TargetProbe::Icmp { address: IpAddr::V4(Ipv4Addr::LOCALHOST) };
        let targets = vec![Target::new("t".to_owned(), probe)];
        let (interval_ms, timeout_ms, lease_ms) = (1_000, 500, 10_000);
        let asker = "server".to_owned();
        Round::new(Assignment { asker, generation: 1, interval_ms, timeout_ms, lease_ms, targets }, until)
    }

    #[test]
    fn a_lease_is_renewed_before_its_end_and_not_after() {
        let now = Instant::now();
        let round = round(now + Duration::from_secs(1));
        assert!(!round.end_if_over(now));
        assert!(round.renew(now + Duration::from_secs(2)));
        assert!(!round.end_if_over(now + Duration::from_secs(1)));
        assert!(round.end_if_over(now + Duration::from_secs(2)));
        assert!(!round.renew(now + Duration::from_secs(3)), "another round begins instead");
        assert!(round.report().ended);
    }

    #[test]
    fn who_asked_has_time_to_ask_for_the_longest_attempts() {
        let now = Instant::now();
        let usual = round(now);
        let mut assignment = usual.assignment.clone();
        assignment.targets[0].timeout_ms = Some(5_000);
        let slow = Round::new(assignment, now);
        assert!(usual.end_if_over(now) && slow.end_if_over(now));
        let is_over = |round: &Round, after_ms| {
            round.is_over_since(now + Duration::from_millis(after_ms), Duration::from_secs(2))
        };
        assert!(!is_over(&usual, 2_499) && is_over(&usual, 2_500));
        assert!(!is_over(&slow, 6_999) && is_over(&slow, 7_000));
    }

    #[test]
    fn attempts_beyond_the_room_are_counted_as_not_made() {
        let round = round(Instant::now());
        let made = (0..MAX_OPEN + 3).filter(|_| round.begin(0, Duration::ZERO)).count();
        assert_eq!(made, MAX_OPEN);
        let report = round.report();
        assert!(report.targets[0].counts.is_balanced());
        assert_eq!(report.targets[0].counts.untried, 3);
        round.finish(0, Duration::ZERO, &Ended::told(Duration::from_micros(90), Ok(())));
        assert!(round.begin(0, Duration::ZERO));
    }

    #[test]
    fn a_target_that_may_not_be_probed_is_named_until_its_name_stands_for_something_else() {
        let round = round(Instant::now());
        let end = End::NotAllowed { why: "no".to_owned(), remedy: "allow it".to_owned() };
        round.begin(0, Duration::ZERO);
        round.finish(0, Duration::ZERO, &Ended { took: Duration::ZERO, parts: Vec::new(), end });
        let refused = round.refused();
        assert_eq!((refused.len(), refused[0].name.as_str(), refused[0].why.as_str()), (1, "t", "no"));
        let counts = &round.report().targets[0].counts;
        assert!(counts.is_balanced());
        assert_eq!((counts.untried, counts.told()), (1, 0), "it says nothing about the network");
        round.begin(0, Duration::ZERO);
        round.finish(0, Duration::ZERO, &Ended::told(Duration::from_micros(90), Ok(())));
        assert_eq!(round.refused(), []);
    }

    #[test]
    fn what_a_round_found_of_a_target_is_known_to_the_next_one_until_it_finds_out_itself() {
        let before = round(Instant::now());
        let end = End::NotAllowed { why: "no".to_owned(), remedy: "allow it".to_owned() };
        before.begin(0, Duration::ZERO);
        before.finish(0, Duration::ZERO, &Ended { took: Duration::ZERO, parts: Vec::new(), end });
        let after = |targets: Vec<Target>| {
            let round = Round::new(Assignment { generation: 2, targets, ..before.assignment.clone() }, Instant::now());
            round.take_over(&before);
            round
        };
        let same = before.assignment.targets[0].clone();
        let other = Target { name: "other".to_owned(), ..same.clone() };
        let next = after(vec![other.clone(), same.clone()]);
        assert_eq!(next.refused(), before.refused());
        next.begin(1, Duration::ZERO);
        next.finish(1, Duration::ZERO, &Ended::told(Duration::from_micros(90), Ok(())));
        assert_eq!(next.refused(), []);
        assert_eq!(after(vec![other]).refused(), [], "it is not asked for any more");
        let probe = TargetProbe::Icmp { address: IpAddr::from([127, 0, 0, 2]) };
        assert_eq!(after(vec![Target { probe, ..same }]).refused(), [], "its name means another target now");
    }

    #[test]
    fn another_lease_is_the_same_work_and_another_target_is_not() {
        let round = round(Instant::now());
        assert!(round.is_for(&Assignment { lease_ms: 1, ..round.assignment.clone() }));
        assert!(!round.is_for(&Assignment { targets: Vec::new(), ..round.assignment.clone() }));
        assert!(!round.is_for(&Assignment { generation: 2, ..round.assignment.clone() }));
    }
}
