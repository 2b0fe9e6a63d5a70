//! The newest few of each kind, in bounded memory: a kind that comes often must not push out one that is rare.

use std::collections::{HashMap, VecDeque};
use std::hash::Hash;

/// Kinds kept.
pub(super) const KINDS: usize = 128;

#[derive(Debug)]
pub(super) struct Newest<K, T> {
    per_kind: usize,
    at_ns: fn(&T) -> u64,
    /// Oldest first.
    kinds: HashMap<K, VecDeque<T>>,
}

impl<K: Copy + Eq + Hash, T> Newest<K, T> {
    /// `at_ns` is the moment of one, by the clock that [`Newest::forget_before`] goes by.
    pub(super) fn new(per_kind: usize, at_ns: fn(&T) -> u64) -> Self {
        Self { per_kind, at_ns, kinds: HashMap::new() }
    }

    /// Keeps it in place of its kind's oldest. A new kind takes the place of the one that was silent longest.
    pub(super) fn add(&mut self, kind: K, value: T) {
        if !self.kinds.contains_key(&kind) && self.kinds.len() >= KINDS {
            let newest_ns = |of: &VecDeque<T>| of.back().map_or(0, self.at_ns);
            if let Some(stalest) = self.kinds.iter().min_by_key(|(_, of)| newest_ns(of)).map(|(kind, _)| *kind) {
                self.kinds.remove(&stalest);
            }
        }
        let of = self.kinds.entry(kind).or_default();
        if of.len() == self.per_kind {
            of.pop_front();
        }
        of.push_back(value);
    }

    pub(super) fn forget_before(&mut self, ns: u64) {
        for of in self.kinds.values_mut() {
            of.retain(|value| (self.at_ns)(value) >= ns);
        }
        self.kinds.retain(|_, of| !of.is_empty());
    }

    /// Each kind with what is kept of it, oldest first.
    pub(super) fn kinds(&self) -> impl Iterator<Item = (&K, &VecDeque<T>)> {
        self.kinds.iter()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn newest() -> Newest<u64, u64> {
        Newest::new(3, |at_ns| *at_ns)
    }

    fn kept(of: &Newest<u64, u64>, kind: u64) -> Vec<u64> {
        of.kinds().filter(|(found, _)| **found == kind).flat_map(|(_, of)| of).copied().collect()
    }

    #[test]
    fn a_loud_kind_does_not_push_out_a_quiet_one() {
        let mut newest = newest();
        newest.add(7, 1);
        (2..1000).for_each(|at_ns| newest.add(8, at_ns));
        assert_eq!((kept(&newest, 7), kept(&newest, 8)), (vec![1], vec![997, 998, 999]));
    }

    #[test]
    fn kinds_are_bounded_and_the_stalest_goes() {
        let mut newest = newest();
        (0..1000).for_each(|n| newest.add(n, n));
        assert_eq!(newest.kinds().count(), KINDS);
        assert!(newest.kinds().all(|(kind, _)| *kind >= 1000 - KINDS as u64));
        newest.add(1000 - KINDS as u64, 5000);
        newest.add(1, 5001);
        assert_eq!(kept(&newest, 1000 - KINDS as u64), [1000 - KINDS as u64, 5000], "it was heard again");
        assert!(kept(&newest, 1001 - KINDS as u64).is_empty());
    }

    #[test]
    fn a_kind_of_which_nothing_is_left_is_gone() {
        let mut newest = newest();
        for (kind, at_ns) in [(7, 1), (7, 2), (8, 1), (9, 2)] {
            newest.add(kind, at_ns);
        }
        newest.forget_before(2);
        assert_eq!((kept(&newest, 7), kept(&newest, 9), newest.kinds().count()), (vec![2], vec![2], 2));
    }
}
