//! One target's counts and times.
//!
//! Times are corrected for coordinated omission by construction: attempts do not wait for each other, and one that the agent
//! itself made late counts from when it was due. Being behind by less than [`SLACK`] is the timer's and not counted: it would
//! add a millisecond to every round trip.

use std::collections::BTreeMap;
use std::time::Duration;

use hdrhistogram::Histogram;
use netdiag_common::observation::mesh::{Counts, FailureClass, LONGEST_US, Phase, TargetReport, Times, empty};

use super::schedule::SLACK;

/// Counters of 32 bits last for a year at the highest rate; a histogram of a target that answers within 2 ms has 8 KiB, one
/// of the longest timeout 57 KiB.
#[derive(Debug, Clone)]
pub(super) struct Tally {
    /// Of the whole attempt.
    phase: Phase,
    counts: Counts,
    times: Histogram<u32>,
    /// Each from its own start: being late is none of theirs.
    parts: BTreeMap<Phase, Histogram<u32>>,
}

impl Tally {
    pub fn new(phase: Phase) -> Self {
        Self { phase, counts: Counts::default(), times: empty(), parts: BTreeMap::new() }
    }

    pub fn missed(&mut self) {
        self.counts.scheduled += 1;
        self.counts.untried += 1;
    }

    pub fn begun(&mut self, behind: Duration) {
        self.counts.scheduled += 1;
        self.counts.open += 1;
        self.counts.late += u64::from(behind > SLACK);
    }

    /// Ends an attempt that was begun.
    pub fn ended(&mut self, behind: Duration, took: Duration, end: Result<(), FailureClass>) {
        self.counts.open = self.counts.open.saturating_sub(1);
        match end {
            Ok(()) => {
                self.counts.answered += 1;
                let whole = if behind > SLACK { behind + took } else { took };
                record(&mut self.times, whole);
            }
            Err(class) => *self.counts.failed.entry(class).or_default() += 1,
        }
    }

    /// Takes an attempt back that was begun and not made.
    pub fn unmade(&mut self) {
        self.counts.open = self.counts.open.saturating_sub(1);
        self.counts.untried += 1;
    }

    /// A part of an attempt that was got through, however the attempt ended.
    pub fn part(&mut self, phase: Phase, took_us: u64) {
        record(self.parts.entry(phase).or_insert_with(empty), Duration::from_micros(took_us));
    }

    /// None before its first attempt.
    pub fn report(&self, name: &str) -> Option<TargetReport> {
        if self.counts.scheduled == 0 {
            return None;
        }
        let parts = self.parts.iter().map(|(phase, times)| (*phase, Times::of(times)));
        let phases = parts.chain([(self.phase, Times::of(&self.times))]).collect();
        Some(TargetReport { name: name.to_owned(), counts: self.counts.clone(), phases })
    }
}

pub(super) fn record(times: &mut Histogram<u32>, took: Duration) {
    let took_us = u64::try_from(took.as_micros()).unwrap_or(LONGEST_US).min(LONGEST_US);
    // It grows up to LONGEST_US, and counters stop at their highest value.
    let _ = times.record(took_us);
}

#[cfg(test)]
mod tests {
    use super::*;

    const NO_TIME: Duration = Duration::ZERO;

    #[test]
    fn every_attempt_has_one_place() {
        let mut tally = Tally::new(Phase::Echo);
        assert_eq!(tally.report("t"), None);
        for _ in 0..5 {
            tally.begun(NO_TIME);
        }
        tally.missed();
        tally.ended(NO_TIME, Duration::from_micros(120), Ok(()));
        tally.ended(NO_TIME, Duration::from_secs(1), Err(FailureClass::NoAnswer));
        tally.ended(NO_TIME, Duration::from_secs(1), Err(FailureClass::NoAnswer));
        let report = tally.report("t").unwrap();
        assert!(report.counts.is_balanced(), "{report:?}");
        let Counts { scheduled, answered, failed, untried, open, late } = report.counts;
        assert_eq!((scheduled, answered, untried, open, late), (6, 1, 1, 2, 0));
        assert_eq!(failed, BTreeMap::from([(FailureClass::NoAnswer, 2)]));
        assert_eq!(report.phases[&Phase::Echo].read().unwrap().max(), 120);
    }

    #[test]
    fn a_late_attempt_counts_from_when_it_was_due() {
        let mut tally = Tally::new(Phase::Connect);
        let (behind, took) = (Duration::from_millis(700), Duration::from_micros(200));
        tally.begun(behind);
        tally.ended(behind, took, Ok(()));
        let report = tally.report("t").unwrap();
        assert_eq!(report.counts.late, 1);
        let times = report.phases[&Phase::Connect].read().unwrap();
        assert!(times.equivalent(times.max(), 700_200), "{}", times.max());
        // The timer's own slack is not the network's.
        let mut tally = Tally::new(Phase::Connect);
        tally.begun(Duration::from_millis(1));
        tally.ended(Duration::from_millis(1), took, Ok(()));
        assert_eq!(tally.report("t").unwrap().phases[&Phase::Connect].read().unwrap().max(), 200);
    }

    #[test]
    fn parts_are_told_beside_the_whole_and_whatever_came_after_them() {
        let mut tally = Tally::new(Phase::Total);
        let (behind, took) = (Duration::from_millis(50), Duration::from_millis(3));
        tally.begun(behind);
        tally.part(Phase::Connect, 900);
        tally.ended(behind, took, Err(FailureClass::BadAnswer));
        let report = tally.report("t").unwrap();
        let times = |phase| report.phases[&phase].read().unwrap();
        assert_eq!((times(Phase::Connect).len(), times(Phase::Connect).max()), (1, 900), "without the agent's delay");
        assert_eq!((report.whole().unwrap().0, times(Phase::Total).len()), (Phase::Total, 0));
        tally.begun(NO_TIME);
        tally.unmade();
        let counts = tally.report("t").unwrap().counts;
        assert!(counts.is_balanced());
        assert_eq!((counts.untried, counts.open), (1, 0));
    }

    #[test]
    fn the_longest_time_stays_within_what_the_wire_takes() {
        let mut times = empty();
        record(&mut times, Duration::from_mins(10));
        let read = Times::of(&times).read().unwrap();
        assert!(read.equivalent(read.max(), LONGEST_US));
    }
}
