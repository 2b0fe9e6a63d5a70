//! When each signal was seen for the first time since the agent started, so that an answer can say since when.
//!
//! Counts are forgotten after an hour, the first sight is not: it is a key's hash and two times. Memory is bounded, and what
//! had to be forgotten is counted.

use std::collections::HashMap;
use std::hash::{BuildHasher as _, Hash, RandomState};

/// Signals remembered: 8192 of them are less than half a MiB.
const MAX_SIGNALS: usize = 8_192;
/// When there is no room, this share of them goes at once, so that a flood of new keys does not sort them each time.
const FORGET_SHARE: usize = 8;

#[derive(Debug, Clone, Copy)]
struct Sight {
    first_ns: u64,
    last_ns: u64,
}

/// First sights by the hash of a key. Two keys of one hash are as likely as a broken memory cell.
#[derive(Debug, Default)]
pub struct FirstSeen {
    hasher: RandomState,
    sights: HashMap<u64, Sight>,
    forgotten: u64,
}

impl FirstSeen {
    /// Notes that the signal was there between two moments of the monotonic clock, and says when it was there first.
    pub fn note<K: Hash>(&mut self, key: &K, first_ns: u64, last_ns: u64) -> u64 {
        let key = self.hasher.hash_one(key);
        if self.sights.len() >= MAX_SIGNALS && !self.sights.contains_key(&key) {
            self.forget_the_longest_silent();
        }
        let sight = self.sights.entry(key).or_insert(Sight { first_ns, last_ns });
        sight.first_ns = sight.first_ns.min(first_ns);
        sight.last_ns = sight.last_ns.max(last_ns);
        sight.first_ns
    }

    /// None when it was never noted, or was forgotten.
    pub fn first_ns<K: Hash>(&self, key: &K) -> Option<u64> {
        self.sights.get(&self.hasher.hash_one(key)).map(|sight| sight.first_ns)
    }

    /// Signals that were forgotten for lack of room: seen again, they look new.
    pub fn forgotten(&self) -> u64 {
        self.forgotten
    }

    fn forget_the_longest_silent(&mut self) {
        let mut last: Vec<u64> = self.sights.values().map(|sight| sight.last_ns).collect();
        last.sort_unstable();
        let newest_to_go = last[last.len() / FORGET_SHARE];
        let before = self.sights.len();
        self.sights.retain(|_, sight| sight.last_ns > newest_to_go);
        self.forgotten += (before - self.sights.len()) as u64;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_sight_outlives_silence() {
        let mut seen = FirstSeen::default();
        assert_eq!(seen.note(&("pod", 7), 100, 200), 100);
        assert_eq!(seen.note(&("pod", 7), 9_000_000, 9_000_001), 100);
        assert_eq!(seen.first_ns(&("pod", 7)), Some(100));
        assert_eq!(seen.first_ns(&("pod", 8)), None);
    }

    #[test]
    fn memory_is_bounded_and_the_forgotten_are_counted() {
        let mut seen = FirstSeen::default();
        let flood = 10 * MAX_SIGNALS as u64;
        for key in 0..flood {
            seen.note(&key, key, key);
            seen.note(&"steady", key, key);
        }
        assert!(seen.sights.len() <= MAX_SIGNALS);
        assert_eq!(seen.forgotten() + seen.sights.len() as u64, flood + 1);
        assert_eq!(seen.first_ns(&"steady"), Some(0), "what still happens is not forgotten");
        assert!(seen.first_ns(&(flood - 1)).is_some());
    }

    #[test]
    fn signals_of_one_moment_may_all_go_but_not_the_new_one() {
        let mut seen = FirstSeen::default();
        for key in 0..=MAX_SIGNALS {
            seen.note(&key, 5, 5);
        }
        assert_eq!(seen.first_ns(&MAX_SIGNALS), Some(5));
        assert!(seen.sights.len() <= MAX_SIGNALS);
    }
}
