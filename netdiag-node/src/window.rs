//! What happened in the last minutes, in bounded memory: slots of time, each with a bounded number of counted keys.
//!
//! Time is the monotonic clock in nanoseconds, the clock of the kernel's records: wall time may jump.

use std::collections::{HashMap, VecDeque};
use std::hash::Hash;

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

/// Counts by key, at most `limit` keys.
#[derive(Debug, Clone)]
pub struct Tally<K> {
    limit: usize,
    counts: HashMap<K, Count>,
}

impl<K: Eq + Hash> Tally<K> {
    pub fn new(limit: usize) -> Self {
        Self { limit, counts: HashMap::new() }
    }

    /// Adds to the key's count. False when the key is new and there is no room; then nothing was counted.
    #[must_use]
    pub fn add(&mut self, key: K, count: Count) -> bool {
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

    pub fn iter(&self) -> impl Iterator<Item = (&K, &Count)> {
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
        while self.slots.front().is_some_and(|slot| slot.end_ns.saturating_add(self.span_ns) < end_ns) {
            self.slots.pop_front();
        }
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
    fn a_long_silence_empties_the_window() {
        let mut window = Window::new(300, 10);
        *window.slot(0, 1, || 0_u64) += 1;
        *window.slot(1, 5000, || 0_u64) += 1;
        assert_eq!(window.slots().count(), 1);
    }
}
