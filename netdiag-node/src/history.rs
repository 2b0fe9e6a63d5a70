//! How counters grew: looks at them over the last hour, in bounded memory.
//!
//! Between two looks only growth is kept, of the counters that grew. The older a look, the wider its distance to the next
//! one may be: neighbours are merged, which adds their growth and loses nothing but the moment.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use netdiag_common::observation::counter::Counter;

/// The longest window that anybody asks for.
const KEEP: Duration = Duration::from_hours(1);
/// Looks this young, and how far apart they are kept; beyond the last one, [`COARSEST`]. Chosen for windows of 10 s, 1 min,
/// 5 min and 1 h: each is known to about a fifth of its length or better, as far as somebody looked that often.
const DISTANCES: [(Duration, Duration); 2] =
    [(Duration::from_mins(2), Duration::from_secs(10)), (Duration::from_mins(12), Duration::from_mins(1))];
const COARSEST: Duration = Duration::from_mins(5);
/// Different names in all namespaces together. A kernel has some 400 and a large NIC a few thousand.
const MAX_NAMES: usize = 16_384;
/// Counters of one series that are followed; others are told without growth.
const MAX_COUNTERS: usize = 16_384;

/// Numbers for names, so that a name is kept once and not once per namespace and look.
#[derive(Debug, Default)]
pub struct Names {
    numbers: HashMap<Box<str>, u16>,
}

impl Names {
    /// None when the table is full.
    fn number(&mut self, name: &str) -> Option<u16> {
        if let Some(number) = self.numbers.get(name) {
            return Some(*number);
        }
        if self.numbers.len() >= MAX_NAMES {
            return None;
        }
        let number = u16::try_from(self.numbers.len()).expect("MAX_NAMES is below 65 536");
        self.numbers.insert(name.into(), number);
        Some(number)
    }
}

/// One counter: of a thing (device, CPU, group; its reader chooses the number), by name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Key {
    object: u64,
    name: u16,
}

/// Where the growth in an answer is measured from.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Baseline {
    pub since: Timestamp,
    pub window_s: f64,
}

/// Now, on the clock that never jumps and on the one that people read.
#[derive(Debug, Clone, Copy)]
pub struct Moment {
    /// `CLOCK_BOOTTIME`.
    pub boot_ns: u64,
    pub wall: Timestamp,
}

impl Moment {
    /// Wall time of an earlier moment, by its age: so a step of the wall clock between the two does no harm. In whole
    /// milliseconds: the two clocks are not read at one instant.
    pub fn wall_of(self, boot_ns: u64) -> Timestamp {
        let age = SignedDuration::from_nanos(self.boot_ns.saturating_sub(boot_ns).cast_signed());
        let exact = self.wall.checked_sub(age).unwrap_or(self.wall);
        Timestamp::from_millisecond(exact.as_millisecond()).unwrap_or(exact)
    }
}

/// The looks at one set of counters.
#[derive(Debug, Default)]
pub struct Series {
    /// Values of the newest look that are not 0, by key.
    latest: Vec<(Key, u64)>,
    /// Things that the newest look found, ascending: of a known thing, a counter that is not in `latest` was 0.
    objects: Vec<u64>,
    looks: VecDeque<Look>,
}

/// What grew since the look before.
#[derive(Debug, Default)]
struct Look {
    at_ns: u64,
    /// By key, ascending.
    grown: Vec<(Key, u64)>,
    /// Keys of counters that were set back.
    reset: Vec<Key>,
}

/// One counter on its way from a reader into an answer.
pub struct Seen<'a> {
    pub object: u64,
    pub name: &'a str,
    pub counter: &'a mut Counter,
}

/// A number for a thing, from what tells it apart: FNV-1a. Two things that share one would only mix their growth.
pub fn object(kind: &str, identity: &[u8]) -> u64 {
    const OFFSET: u64 = 0xcbf2_9ce4_8422_2325;
    const PRIME: u64 = 0x0100_0000_01b3;
    let bytes = kind.as_bytes().iter().chain(&[0]).chain(identity);
    bytes.fold(OFFSET, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(PRIME))
}

impl Series {
    /// Takes a look whose values stand in `seen`, and writes into each how it grew within the window. None on the first look.
    pub fn look(&mut self, names: &mut Names, seen: Vec<Seen<'_>>, now: Moment, window: Duration) -> Option<Baseline> {
        let mut counters: Vec<(Key, Option<u64>, &mut Counter)> = Vec::with_capacity(seen.len());
        for Seen { object, name, counter } in seen.into_iter().take(MAX_COUNTERS) {
            let Some(name) = names.number(name) else { continue };
            let key = Key { object, name };
            let before = self.before(key);
            counters.push((key, before, counter));
        }
        counters.sort_unstable_by_key(|(key, ..)| *key);
        self.push(&counters, now.boot_ns);
        let baseline = self.baseline(now.boot_ns, window)?;
        let growth = self.growth(baseline);
        let since_ns = self.looks[baseline].at_ns;
        for (key, before, counter) in counters {
            match growth.get(&key) {
                Some(growth) => {
                    counter.delta = Some(growth.delta);
                    counter.first_at = growth.first_ns.map(|at_ns| now.wall_of(at_ns));
                    counter.last_at = growth.last_ns.map(|at_ns| now.wall_of(at_ns));
                    counter.was_reset = growth.was_reset;
                }
                None if before.is_some() => counter.delta = Some(0),
                None => {}
            }
        }
        Some(Baseline {
            since: now.wall_of(since_ns),
            window_s: Duration::from_nanos(now.boot_ns.saturating_sub(since_ns)).as_secs_f64(),
        })
    }

    /// None when the thing was not there at the newest look.
    fn before(&self, key: Key) -> Option<u64> {
        self.objects.binary_search(&key.object).ok()?;
        let found = self.latest.binary_search_by_key(&key, |(key, _)| *key);
        Some(found.map_or(0, |at| self.latest[at].1))
    }

    fn push(&mut self, counters: &[(Key, Option<u64>, &mut Counter)], at_ns: u64) {
        let mut look = Look { at_ns, ..Look::default() };
        for (key, before, counter) in counters {
            let Some(before) = *before else { continue };
            let growth = if counter.value >= before {
                counter.value - before
            } else if is_wrapped(before, counter.value) {
                (1 << 32) - before + counter.value
            } else {
                look.reset.push(*key);
                counter.value
            };
            if growth > 0 {
                look.grown.push((*key, growth));
            }
        }
        look.grown.shrink_to_fit();
        self.looks.push_back(look);
        self.latest =
            counters.iter().filter(|(.., counter)| counter.value > 0).map(|(key, _, c)| (*key, c.value)).collect();
        self.objects = counters.iter().map(|(key, ..)| key.object).collect();
        self.objects.dedup();
        self.thin(at_ns);
    }

    /// Forgets what is older than anybody asks for, and merges looks that are closer together than their age deserves.
    fn thin(&mut self, now_ns: u64) {
        let age = |at_ns: u64| Duration::from_nanos(now_ns.saturating_sub(at_ns));
        // The newest look that is old enough for the longest window stays: it is that window's start.
        while self.looks.get(1).is_some_and(|look| age(look.at_ns) >= KEEP) {
            self.looks.pop_front();
        }
        let mut at = 1;
        while at + 1 < self.looks.len() {
            let gap = Duration::from_nanos(self.looks[at + 1].at_ns.saturating_sub(self.looks[at - 1].at_ns));
            if gap <= distance(age(self.looks[at].at_ns)) {
                let older = self.looks.remove(at).expect("at is below the length");
                self.looks[at].absorb(older);
            } else {
                at += 1;
            }
        }
    }

    /// Index of the look that a window is measured from: the newest one that is old enough, else the oldest there is.
    fn baseline(&self, now_ns: u64, window: Duration) -> Option<usize> {
        // The newest look is the one just taken.
        let earlier = self.looks.len().checked_sub(2)?;
        let old_enough = |at: &usize| Duration::from_nanos(now_ns.saturating_sub(self.looks[*at].at_ns)) >= window;
        Some((0..=earlier).rev().find(old_enough).unwrap_or(0))
    }

    fn growth(&self, baseline: usize) -> BTreeMap<Key, Growth> {
        let mut sums: BTreeMap<Key, Growth> = BTreeMap::new();
        for look in self.looks.iter().skip(baseline + 1) {
            for (key, delta) in &look.grown {
                let sum = sums.entry(*key).or_default();
                sum.delta = sum.delta.saturating_add(*delta);
                sum.first_ns = sum.first_ns.or(Some(look.at_ns));
                sum.last_ns = Some(look.at_ns);
            }
            for key in &look.reset {
                sums.entry(*key).or_default().was_reset = true;
            }
        }
        sums
    }
}

#[derive(Default)]
struct Growth {
    delta: u64,
    first_ns: Option<u64>,
    last_ns: Option<u64>,
    was_reset: bool,
}

impl Look {
    /// Becomes the look at both: it keeps its own, later time.
    fn absorb(&mut self, older: Self) {
        let mut both: BTreeMap<Key, u64> = self.grown.iter().copied().collect();
        for (key, delta) in older.grown {
            let sum = both.entry(key).or_default();
            *sum = sum.saturating_add(delta);
        }
        self.grown = both.into_iter().collect();
        self.reset.extend(older.reset);
        self.reset.sort_unstable();
        self.reset.dedup();
    }
}

fn distance(age: Duration) -> Duration {
    DISTANCES.iter().find(|(younger_than, _)| age <= *younger_than).map_or(COARSEST, |(_, distance)| *distance)
}

/// Whether a 32-bit counter went once around rather than being set back: softnet, queues and some drivers count in 32 bits,
/// and between two looks none grows by half of that.
fn is_wrapped(before: u64, value: u64) -> bool {
    const QUARTER: u64 = 1 << 30;
    (3 * QUARTER..4 * QUARTER).contains(&before) && value < QUARTER
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: Duration = Duration::from_mins(1);

    struct Lab {
        names: Names,
        series: Series,
    }

    impl Lab {
        fn new() -> Self {
            Self { names: Names::default(), series: Series::default() }
        }

        /// One look at the counter `x` of thing 1, at this second.
        fn look(&mut self, at_s: u64, value: u64, window: Duration) -> (Option<Baseline>, Counter) {
            let mut counter = Counter { value, ..Counter::default() };
            let now =
                Moment { boot_ns: at_s * 1_000_000_000, wall: Timestamp::from_second(at_s.cast_signed()).unwrap() };
            let seen = vec![Seen { object: 1, name: "x", counter: &mut counter }];
            let baseline = self.series.look(&mut self.names, seen, now, window);
            (baseline, counter)
        }
    }

    #[test]
    fn first_look_knows_no_growth() {
        let (baseline, counter) = Lab::new().look(100, 5, MINUTE);
        assert_eq!((baseline, counter.delta), (None, None));
    }

    #[test]
    fn growth_is_measured_from_the_windows_start_and_says_when() {
        let mut lab = Lab::new();
        for (second, value) in [(0, 10), (10, 10), (20, 13), (30, 13), (40, 20), (50, 20), (60, 20)] {
            lab.look(second, value, MINUTE);
        }
        let (baseline, counter) = lab.look(70, 20, MINUTE);
        let baseline = baseline.unwrap();
        assert_eq!((baseline.since.as_second(), baseline.window_s), (10, 60.0));
        assert_eq!(counter.delta, Some(10));
        assert_eq!(counter.first_at.map(Timestamp::as_second), Some(20));
        assert_eq!(counter.last_at.map(Timestamp::as_second), Some(40));
        let (baseline, counter) = lab.look(80, 20, Duration::from_secs(10));
        assert_eq!((baseline.unwrap().since.as_second(), counter.delta, counter.first_at), (70, Some(0), None));
    }

    #[test]
    fn counter_that_was_zero_grows_by_all_of_it_and_a_new_thing_by_nothing_known() {
        let mut lab = Lab::new();
        lab.look(0, 0, MINUTE);
        assert_eq!(lab.look(10, 4, MINUTE).1.delta, Some(4));
        let mut counter = Counter { value: 9, ..Counter::default() };
        let now = Moment { boot_ns: 20_000_000_000, wall: Timestamp::from_second(20).unwrap() };
        let seen = vec![Seen { object: 2, name: "x", counter: &mut counter }];
        lab.series.look(&mut lab.names, seen, now, MINUTE);
        assert_eq!(counter.delta, None);
    }

    #[test]
    fn small_counter_wraps_and_a_large_step_back_is_a_reset() {
        let mut lab = Lab::new();
        lab.look(0, u64::from(u32::MAX) - 5, MINUTE);
        let (_, counter) = lab.look(10, 4, MINUTE);
        assert_eq!((counter.delta, counter.was_reset), (Some(10), false));
        lab.look(20, 1_000, MINUTE);
        let (_, counter) = lab.look(30, 3, Duration::from_secs(10));
        assert_eq!((counter.delta, counter.was_reset), (Some(3), true));
    }

    #[test]
    fn a_day_of_looks_stays_small_and_adds_up() {
        let mut lab = Lab::new();
        let mut most = 0;
        for step in 0..8_640 {
            lab.look(step * 10, step, MINUTE);
            most = most.max(lab.series.looks.len());
        }
        // 12 of 10 s, 10 of 1 min, 10 of 5 min; up to twice as many while they are merged pairwise.
        assert!(most <= 64, "{most} looks");
        let (baseline, counter) = lab.look(86_400, 8_640, KEEP);
        let window_s = baseline.unwrap().window_s;
        assert!((3_600.0..=3_900.0).contains(&window_s), "{window_s}");
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a small whole number")]
        let expected = window_s as u64 / 10;
        assert_eq!(counter.delta, Some(expected));
    }

    #[test]
    fn looks_every_second_are_merged() {
        let mut lab = Lab::new();
        for second in 0..600 {
            lab.look(second, second, MINUTE);
        }
        assert!(lab.series.looks.len() <= 48, "{} looks", lab.series.looks.len());
        let (baseline, counter) = lab.look(600, 600, MINUTE);
        let window_s = baseline.unwrap().window_s;
        assert!((60.0..=71.0).contains(&window_s), "{window_s}");
        assert!(counter.delta.is_some_and(|delta| (60..=71).contains(&delta)), "{counter:?}");
    }

    proptest::proptest! {
        #[test]
        fn any_values_in_any_order_of_time_are_followed(
            looks in proptest::collection::vec((proptest::num::u64::ANY, proptest::num::u64::ANY), 0..40),
        ) {
            let mut lab = Lab::new();
            for (boot_ns, value) in looks {
                let mut counter = Counter { value, ..Counter::default() };
                let now = Moment { boot_ns, wall: Timestamp::UNIX_EPOCH };
                let seen = vec![Seen { object: 1, name: "x", counter: &mut counter }];
                lab.series.look(&mut lab.names, seen, now, MINUTE);
            }
        }
    }
}
