//! Counting attempts: exactly, whatever is kept of them.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use data_encoding::BASE64;
use hdrhistogram::Histogram;
use hdrhistogram::serialization::{Serializer as _, V2Serializer};
use netdiag_common::observation::series::{MAX_KEPT_ATTEMPTS, PhaseTimes, SeriesAttempt, SeriesResult};

/// Values are told apart to one in a thousand.
const SIGNIFICANT_DIGITS: u8 = 3;
/// No attempt is as long.
const LONGEST_US: u64 = 60_000_000;

/// What one thread of a series has seen.
#[derive(Default)]
pub(super) struct Tally {
    succeeded: u32,
    failed: u32,
    late: u32,
    /// Attempts that had less than their timeout, because the series was over.
    cut: u32,
    good: Vec<SeriesAttempt>,
    bad: Vec<SeriesAttempt>,
    phases: Vec<(&'static str, Histogram<u64>)>,
    entered_us: Option<u64>,
    untried_because: Option<String>,
}

/// How one attempt fitted into the schedule.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Fit {
    pub(super) is_late: bool,
    pub(super) is_cut: bool,
}

impl Tally {
    pub(super) fn add(&mut self, attempt: SeriesAttempt, fit: Fit, phases: &[(&'static str, u64)]) {
        self.late += u32::from(fit.is_late);
        if !attempt.succeeded() {
            self.failed += 1;
            self.cut += u32::from(fit.is_cut);
            self.keep_bad(attempt);
            return;
        }
        self.succeeded += 1;
        for (phase, micros) in phases {
            self.record(phase, *micros);
        }
        self.record("total", attempt.elapsed_us);
        if self.good.len() + self.bad.len() < MAX_KEPT_ATTEMPTS {
            self.good.push(attempt);
        }
    }

    fn keep_bad(&mut self, attempt: SeriesAttempt) {
        if self.bad.len() == MAX_KEPT_ATTEMPTS {
            return;
        }
        if self.good.len() + self.bad.len() == MAX_KEPT_ATTEMPTS {
            self.good.pop();
        }
        self.bad.push(attempt);
    }

    fn record(&mut self, phase: &'static str, micros: u64) {
        let at = self.phases.iter().position(|(known, _)| *known == phase).unwrap_or_else(|| {
            self.phases.push((phase, histogram()));
            self.phases.len() - 1
        });
        self.phases[at].1.saturating_record(micros);
    }

    pub(super) fn entered(&mut self, micros: Option<u64>) {
        self.entered_us = self.entered_us.into_iter().chain(micros).min();
    }

    /// Only the first reason is told.
    pub(super) fn gave_up(&mut self, because: String) {
        self.untried_because.get_or_insert(because);
    }

    pub(super) fn merge(&mut self, other: Self) {
        self.succeeded += other.succeeded;
        self.failed += other.failed;
        self.late += other.late;
        self.cut += other.cut;
        self.entered(other.entered_us);
        if let Some(because) = other.untried_because {
            self.gave_up(because);
        }
        self.bad.extend(other.bad);
        self.good.extend(other.good);
        for (phase, times) in other.phases {
            match self.phases.iter_mut().find(|(known, _)| *known == phase) {
                Some((_, all)) => all.add(&times).expect("both have the same bounds"),
                None => self.phases.push((phase, times)),
            }
        }
    }

    /// `endpoints` by the attempts' numbers.
    pub(super) fn result(mut self, asked: u32, endpoints: &BTreeMap<u32, SocketAddr>) -> SeriesResult {
        let made = self.succeeded + self.failed;
        self.bad.sort_unstable_by_key(|attempt| attempt.number);
        self.bad.truncate(MAX_KEPT_ATTEMPTS);
        self.good.sort_unstable_by_key(|attempt| attempt.number);
        self.good.truncate(MAX_KEPT_ATTEMPTS - self.bad.len());
        let mut attempts = self.bad;
        attempts.append(&mut self.good);
        attempts.sort_unstable_by_key(|attempt| attempt.number);
        for attempt in &mut attempts {
            attempt.endpoint = endpoints.get(&attempt.number).copied();
        }
        let not_kept = made - u32::try_from(attempts.len()).expect("a thousand at most");
        let untried = asked.saturating_sub(made);
        let unseen = (self.cut > 0).then(|| {
            format!(
                "{} attempts had less than their timeout because the series was over: ask with a shorter timeout, or for fewer",
                self.cut
            )
        });
        SeriesResult {
            asked,
            made,
            succeeded: self.succeeded,
            failed: self.failed,
            untried,
            untried_because: self.untried_because.filter(|_| untried > 0),
            late: self.late,
            attempts,
            not_kept,
            times: self.phases.iter().map(|(phase, times)| summary(phase, times)).collect(),
            entered_us: self.entered_us,
            unseen: unseen.into_iter().collect(),
        }
    }
}

fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, LONGEST_US, SIGNIFICANT_DIGITS).expect("the bounds are constants")
}

fn summary(phase: &str, times: &Histogram<u64>) -> PhaseTimes {
    let mut bytes = Vec::new();
    V2Serializer::new().serialize(times, &mut bytes).expect("a vector takes everything");
    PhaseTimes {
        phase: phase.to_owned(),
        count: times.len(),
        min_us: times.min(),
        p50_us: times.value_at_quantile(0.5),
        p90_us: times.value_at_quantile(0.9),
        p99_us: times.value_at_quantile(0.99),
        max_us: times.max(),
        histogram: BASE64.encode(&bytes),
    }
}

#[cfg(test)]
mod tests {
    use hdrhistogram::serialization::Deserializer;
    use netdiag_common::observation::series::{FailureClass, ProbeFailure, ProbeReport, ProbeStage};
    use proptest::prelude::*;

    use super::*;

    fn attempt(number: u32, elapsed_us: u64, is_good: bool) -> SeriesAttempt {
        let failure = ProbeFailure {
            stage: ProbeStage::Connect,
            class: FailureClass::Refused,
            errno: None,
            said_by: None,
            icmp: None,
            why: "refused".to_owned(),
        };
        SeriesAttempt {
            number,
            at_us: 0,
            elapsed_us,
            source: None,
            to: None,
            endpoint: None,
            failure: (!is_good).then_some(failure),
            report: ProbeReport::Nothing,
        }
    }

    proptest! {
        #[test]
        fn identities_hold_whatever_happens(
            made in prop::collection::vec((any::<bool>(), any::<bool>(), 0u64..u64::MAX / 2), 0..3_000),
            untried in 0u32..5,
            threads in 1usize..4,
        ) {
            let mut tallies: Vec<Tally> = (0..threads).map(|_| Tally::default()).collect();
            for (number, (is_good, is_late, elapsed_us)) in made.iter().enumerate() {
                let attempt = attempt(u32::try_from(number).unwrap(), *elapsed_us, *is_good);
                tallies[number % threads].add(attempt, Fit { is_late: *is_late, is_cut: false }, &[("connect", *elapsed_us)]);
            }
            let mut all = Tally::default();
            for tally in tallies {
                all.merge(tally);
            }
            let count = u32::try_from(made.len()).unwrap();
            let result = all.result(count + untried, &BTreeMap::new());
            prop_assert_eq!(result.asked, result.made + result.untried);
            prop_assert_eq!(result.made, result.succeeded + result.failed);
            prop_assert_eq!(result.made as usize, result.attempts.len() + result.not_kept as usize);
            prop_assert_eq!(result.untried, untried);
            let good = made.iter().filter(|(is_good, ..)| *is_good).count();
            prop_assert_eq!(result.succeeded as usize, good);
            let kept_bad = result.attempts.iter().filter(|attempt| !attempt.succeeded()).count();
            prop_assert_eq!(kept_bad, (made.len() - good).min(MAX_KEPT_ATTEMPTS), "failed ones are kept first");
            prop_assert!(result.attempts.windows(2).all(|pair| pair[0].number < pair[1].number));
            prop_assert!(result.times.iter().all(|times| times.count == good as u64));
        }
    }

    #[test]
    fn histogram_is_whole_on_the_wire() {
        let mut tally = Tally::default();
        for number in 0..100 {
            tally.add(attempt(number, u64::from(number) * 10, true), Fit::default(), &[]);
        }
        let result = tally.result(100, &BTreeMap::new());
        let [total] = &result.times[..] else { panic!("{:?}", result.times) };
        let bytes = BASE64.decode(total.histogram.as_bytes()).unwrap();
        let read: Histogram<u64> = Deserializer::new().deserialize(&mut &bytes[..]).unwrap();
        assert_eq!((read.len(), read.value_at_quantile(0.5), read.max()), (100, total.p50_us, total.max_us));
        assert_eq!((total.min_us, total.p50_us, total.max_us), (0, 490, 990));
    }

    #[test]
    fn endpoint_is_told_by_its_number() {
        let mut tally = Tally::default();
        for number in 0..3 {
            tally.add(attempt(number, 1, number != 1), Fit::default(), &[]);
        }
        let endpoint: SocketAddr = "10.244.1.4:8080".parse().unwrap();
        let result = tally.result(3, &BTreeMap::from([(1, endpoint)]));
        assert_eq!(result.attempts[1].endpoint, Some(endpoint));
        assert_eq!(result.attempts[0].endpoint, None);
    }
}
