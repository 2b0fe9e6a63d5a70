//! When each attempt is due: an absolute schedule, so that a slow answer or a busy machine moves none of the later ones.

use std::time::{Duration, Instant};

/// What the reactor's timer may be late without anything being wrong: it wakes at the next whole millisecond, and a thread that
/// was woken waits for a CPU.
pub(super) const SLACK: Duration = Duration::from_millis(10);

/// The attempts of a round, numbered through all targets: number `n` is for target `n % targets`.
#[derive(Debug, Clone, Copy)]
pub(super) struct Schedule {
    start: Instant,
    interval: Duration,
    targets: u64,
}

/// What becomes of an attempt when its turn has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Turn {
    OnTime,
    /// Made, and its time counts from when it was due.
    Late,
    /// The next attempt at the same target is due already: this one would only hide how long nothing was sent.
    Missed,
}

impl Schedule {
    /// `targets` is not 0.
    pub fn new(start: Instant, interval: Duration, targets: usize) -> Self {
        Self { start, interval, targets: (targets as u64).max(1) }
    }

    pub fn target(&self, number: u64) -> usize {
        usize::try_from(number % self.targets).expect("it was a usize")
    }

    /// Whether a target that is probed once in `every` intervals is probed by the attempt with this number.
    pub fn is_turn(&self, number: u64, every: u32) -> bool {
        (number / self.targets).is_multiple_of(u64::from(every.max(1)))
    }

    pub fn due(&self, number: u64) -> Instant {
        let nanos = self.interval.as_nanos() * u128::from(number) / u128::from(self.targets);
        self.start + Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX >> 1))
    }

    pub fn turn(&self, due: Instant, now: Instant) -> Turn {
        match now.saturating_duration_since(due) {
            behind if behind >= self.interval => Turn::Missed,
            behind if behind > SLACK => Turn::Late,
            _ => Turn::OnTime,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const INTERVAL: Duration = Duration::from_secs(2);

    #[test]
    fn attempts_are_spread_evenly_and_each_target_has_its_interval() {
        let start = Instant::now();
        let schedule = Schedule::new(start, INTERVAL, 4);
        let due = |number| schedule.due(number) - start;
        assert_eq!([0, 1, 3].map(due), [0, 500, 1_500].map(Duration::from_millis));
        for number in 0..1_000 {
            assert_eq!(schedule.due(number + 4) - schedule.due(number), INTERVAL, "after any time");
            assert_eq!(schedule.target(number), schedule.target(number + 4));
        }
    }

    #[test]
    fn a_target_that_is_probed_less_often_begins_with_the_others() {
        let schedule = Schedule::new(Instant::now(), INTERVAL, 2);
        let turns: Vec<u64> = (0..14).filter(|number| schedule.is_turn(*number, 3)).collect();
        assert_eq!(turns, [0, 1, 6, 7, 12, 13], "each target's own interval, and three of them between");
        assert!((0..14).all(|number| schedule.is_turn(number, 1)));
    }

    #[test]
    fn what_is_behind_by_an_interval_is_not_made_any_more() {
        let due = Instant::now();
        let schedule = Schedule::new(due, INTERVAL, 1);
        for (behind_ms, turn) in
            [(0, Turn::OnTime), (10, Turn::OnTime), (11, Turn::Late), (1_999, Turn::Late), (2_000, Turn::Missed)]
        {
            assert_eq!(schedule.turn(due, due + Duration::from_millis(behind_ms)), turn, "{behind_ms}");
        }
        assert_eq!(schedule.turn(due + INTERVAL, due), Turn::OnTime, "a clock that is early");
    }
}
