//! What happened in the last minutes and the last hour, in bounded memory: slots of time, each with a bounded number of
//! counted keys.
//!
//! Time is the monotonic clock in nanoseconds, the clock of the kernel's records: wall time may jump.

use std::collections::{HashMap, VecDeque};
use std::hash::Hash;

/// Length of a slot of the last minutes: the shortest window that can be asked for.
pub const SLOT_NS: u64 = 10 * SECOND_NS;
/// How long slots of that length are kept, before several become one of the hour's.
pub const RECENT_NS: u64 = 300 * SECOND_NS;
/// Length of the hour's slots: twelve of them.
const HOUR_SLOT_NS: u64 = 300 * SECOND_NS;
const HOUR_NS: u64 = 3600 * SECOND_NS;
const SECOND_NS: u64 = 1_000_000_000;

/// One key's share of a slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Count {
    pub packets: u64,
    pub bytes: u64,
    pub first_ns: u64,
    pub last_ns: u64,
}

impl Count {
    /// Both together, from the earlier first to the later last.
    pub fn add(&mut self, other: Self) {
        self.first_ns = if self.packets == 0 { other.first_ns } else { self.first_ns.min(other.first_ns) };
        self.packets += other.packets;
        self.bytes += other.bytes;
        self.last_ns = self.last_ns.max(other.last_ns);
    }
}

/// What is counted for one key.
pub trait Total {
    fn add(&mut self, other: Self);
    /// Decides which keys stay when there are too many: usually the number of events.
    fn weight(&self) -> u64;
}

impl Total for Count {
    fn add(&mut self, other: Self) {
        Self::add(self, other);
    }

    fn weight(&self) -> u64 {
        self.packets
    }
}

/// Counts by key, at most `limit` keys.
#[derive(Debug, Clone)]
pub struct Tally<K, V = Count> {
    limit: usize,
    counts: HashMap<K, V>,
}

impl<K: Eq + Hash, V: Total> Tally<K, V> {
    pub fn new(limit: usize) -> Self {
        Self { limit, counts: HashMap::new() }
    }

    /// Adds to the key's count. False when the key is new and there is no room; then nothing was counted.
    #[must_use]
    pub fn add(&mut self, key: K, count: V) -> bool {
        if let Some(known) = self.counts.get_mut(&key) {
            known.add(count);
            return true;
        }
        if self.counts.len() >= self.limit {
            return false;
        }
        self.counts.insert(key, count);
        true
    }

    /// Adds all of `other`, then takes the smallest out until the limit holds: the caller counts those under a coarser key.
    #[must_use]
    pub fn absorb(&mut self, other: Self) -> Vec<(K, V)> {
        for (key, count) in other.counts {
            match self.counts.get_mut(&key) {
                Some(known) => known.add(count),
                None => {
                    self.counts.insert(key, count);
                }
            }
        }
        if self.counts.len() <= self.limit {
            return Vec::new();
        }
        let mut all: Vec<(K, V)> = self.counts.drain().collect();
        all.sort_unstable_by_key(|(_, count)| std::cmp::Reverse(count.weight()));
        let smallest = all.split_off(self.limit);
        self.counts = all.into_iter().collect();
        smallest
    }

    pub fn iter(&self) -> impl Iterator<Item = (&K, &V)> {
        self.counts.iter()
    }
}

/// A stretch of time and what was counted in it.
#[derive(Debug, Clone)]
pub struct Slot<T> {
    pub start_ns: u64,
    pub end_ns: u64,
    pub value: T,
}

/// The last slots, oldest first. Whatever is older than the span is forgotten.
#[derive(Debug, Clone)]
pub struct Window<T> {
    slot_ns: u64,
    span_ns: u64,
    slots: VecDeque<Slot<T>>,
}

impl<T> Window<T> {
    pub fn new(span_ns: u64, slot_ns: u64) -> Self {
        Self { slot_ns, span_ns, slots: VecDeque::new() }
    }

    /// The slot for what was counted between `start_ns` and `end_ns`: the newest one while it is shorter than a slot's
    /// length, else a new one from `fresh`. Forgets slots that ended before the span.
    pub fn slot(&mut self, start_ns: u64, end_ns: u64, fresh: impl FnOnce() -> T) -> &mut T {
        while self.take_old(end_ns).is_some() {}
        let room = self.slots.back().is_some_and(|slot| end_ns.saturating_sub(slot.start_ns) <= self.slot_ns);
        if !room {
            self.slots.push_back(Slot { start_ns, end_ns, value: fresh() });
        }
        let last = self.slots.back_mut().expect("a slot was pushed when there was none");
        last.end_ns = last.end_ns.max(end_ns);
        &mut last.value
    }

    pub fn slots(&self) -> impl Iterator<Item = &Slot<T>> {
        self.slots.iter()
    }

    /// Start of what the window knows.
    pub fn start_ns(&self) -> Option<u64> {
        self.slots.front().map(|slot| slot.start_ns)
    }

    /// End of what the window knows.
    fn end_ns(&self) -> Option<u64> {
        self.slots.back().map(|slot| slot.end_ns)
    }

    /// The oldest slot, when it ended before the span that ends at `now_ns`.
    fn take_old(&mut self, now_ns: u64) -> Option<Slot<T>> {
        let oldest = self.slots.front()?;
        if oldest.end_ns.saturating_add(self.span_ns) >= now_ns {
            return None;
        }
        self.slots.pop_front()
    }
}

/// A slot's value that several can be put together to one of the hour's slots.
pub trait Fold {
    /// An empty value for a slot of the hour. It keeps fewer keys than one of the last minutes.
    fn hourly() -> Self;
    /// Takes in a later slot. What there is no room for is counted under a coarser key, and that it was is counted too.
    fn fold(&mut self, later: Self);
}

/// The last hour: slots of [`SLOT_NS`] for the last [`RECENT_NS`], coarser ones before; and one sum of all that is older, so
/// that totals since the start can be told.
#[derive(Debug, Clone)]
pub struct History<T> {
    recent: Window<T>,
    older: Window<T>,
    oldest: Option<T>,
}

impl<T: Fold> Default for History<T> {
    fn default() -> Self {
        Self { recent: Window::new(RECENT_NS, SLOT_NS), older: Window::new(HOUR_NS, HOUR_SLOT_NS), oldest: None }
    }
}

impl<T: Fold> History<T> {
    /// As [`Window::slot`]; slots that are no longer recent are folded into the hour's.
    pub fn slot(&mut self, start_ns: u64, end_ns: u64, fresh: impl FnOnce() -> T) -> &mut T {
        while let Some(old) = self.recent.take_old(end_ns) {
            self.take_older(old.end_ns);
            self.older.slot(old.start_ns, old.end_ns, T::hourly).fold(old.value);
        }
        self.take_older(end_ns);
        self.recent.slot(start_ns, end_ns, fresh)
    }

    /// The slots of the last `span_ns`, oldest first. They are whole: the first one may have begun before the span, and its
    /// `start_ns` says since when the counts are.
    pub fn view(&self, span_ns: u64) -> impl Iterator<Item = &Slot<T>> {
        let from_ns = self.recent.end_ns().unwrap_or(0).saturating_sub(span_ns);
        self.older.slots().chain(self.recent.slots()).filter(move |slot| slot.end_ns > from_ns)
    }

    /// Everything since the first slot, in pieces. Sums of counts only grow; single keys may move to a coarser one.
    pub fn since_start(&self) -> impl Iterator<Item = &T> {
        self.oldest.iter().chain(self.older.slots().chain(self.recent.slots()).map(|slot| &slot.value))
    }

    fn take_older(&mut self, now_ns: u64) {
        while let Some(old) = self.older.take_old(now_ns) {
            self.oldest.get_or_insert_with(T::hourly).fold(old.value);
        }
    }

    /// Start of the hour that is known.
    pub fn start_ns(&self) -> Option<u64> {
        self.older.start_ns().or_else(|| self.recent.start_ns())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn count(packets: u64, first_ns: u64, last_ns: u64) -> Count {
        Count { packets, bytes: packets * 100, first_ns, last_ns }
    }

    #[test]
    fn a_full_tally_still_counts_the_keys_it_knows() {
        let mut tally = Tally::new(2);
        assert!(tally.add("a", count(1, 5, 5)));
        assert!(tally.add("b", count(1, 6, 6)));
        assert!(!tally.add("c", count(1, 7, 7)), "no room for a third key");
        assert!(tally.add("a", count(2, 3, 9)));
        let a = tally.iter().find(|(key, _)| **key == "a").map(|(_, count)| *count);
        assert_eq!(a, Some(Count { packets: 3, bytes: 300, first_ns: 3, last_ns: 9 }));
    }

    #[test]
    fn readings_close_together_share_a_slot_and_old_slots_go() {
        let mut window = Window::new(300, 10);
        for end in 1..=1000 {
            *window.slot(end - 1, end, || 0_u64) += 1;
        }
        let kept: u64 = window.slots().map(|slot| slot.value).sum();
        assert!((300..=310).contains(&kept), "{kept} readings of the last 300 are kept");
        assert!(window.slots().count() <= 31);
        assert_eq!(window.start_ns(), Some(1000 - kept));
    }

    #[test]
    fn a_tally_that_takes_in_another_keeps_the_largest() {
        let mut tally = Tally::new(2);
        assert!(tally.add("small", count(1, 5, 5)) && tally.add("both", count(3, 5, 5)));
        let mut other = Tally::new(9);
        assert!(other.add("large", count(7, 6, 6)) && other.add("both", count(1, 6, 6)));
        assert_eq!(tally.absorb(other), [("small", count(1, 5, 5))]);
        let mut kept: Vec<(&str, u64)> = tally.iter().map(|(key, count)| (*key, count.packets)).collect();
        kept.sort_unstable();
        assert_eq!(kept, [("both", 4), ("large", 7)]);
    }

    impl Fold for u64 {
        fn hourly() -> Self {
            0
        }

        fn fold(&mut self, later: Self) {
            *self += later;
        }
    }

    #[test]
    fn an_hour_is_kept_in_few_slots_and_nothing_is_counted_twice() {
        let mut history = History::default();
        for second in 1..=10_000 {
            *history.slot((second - 1) * SECOND_NS, second * SECOND_NS, || 0_u64) += 1;
        }
        let seconds = |span_s: u64| history.view(span_s * SECOND_NS).map(|slot| slot.value).sum::<u64>();
        for (span_s, coarsest_s) in [(10, 10), (60, 10), (300, 10), (3600, 300)] {
            let counted = seconds(span_s);
            assert!((span_s..=span_s + coarsest_s).contains(&counted), "{counted} s counted of the last {span_s}");
            let since = history.view(span_s * SECOND_NS).next().unwrap().start_ns;
            assert_eq!(10_000 - since / SECOND_NS, counted, "the view says since when it counts");
        }
        assert!(history.view(u64::MAX).count() <= 31 + 13);
        assert_eq!(history.start_ns(), history.view(u64::MAX).next().map(|slot| slot.start_ns));
        assert_eq!(history.since_start().sum::<u64>(), 10_000);
        let all: Vec<_> = history.view(u64::MAX).collect();
        assert!(all.windows(2).all(|pair| pair[0].end_ns == pair[1].start_ns), "no gap between slots");
    }

    #[test]
    fn a_silence_longer_than_the_hour_empties_the_history() {
        let mut history = History::default();
        *history.slot(0, SECOND_NS, || 0_u64) += 1;
        *history.slot(5000 * SECOND_NS, 5001 * SECOND_NS, || 0_u64) += 1;
        assert_eq!(history.view(u64::MAX).count(), 1);
        assert_eq!(history.since_start().sum::<u64>(), 2);
    }

    #[test]
    fn a_long_silence_empties_the_window() {
        let mut window = Window::new(300, 10);
        *window.slot(0, 1, || 0_u64) += 1;
        *window.slot(1, 5000, || 0_u64) += 1;
        assert_eq!(window.slots().count(), 1);
    }
}
