//! What was counted in one slot of time: sums, and events of one key.

use netdiag_common::record::event::NO_MEASURE;

use super::key::Key;
use super::tables::Sum;
use crate::window::{Count, Fold, Tally};

/// Keys kept of one slot of the last minutes and of the hour, and keys without their ends for what finds no room.
const RECENT_KEYS: usize = 2048;
const HOUR_KEYS: usize = 1024;
const FOLDED_KEYS: usize = 256;

/// What one slot of time counted.
#[derive(Debug)]
pub(super) struct Counted {
    pub(super) sum: Sum,
    pub(super) missed: u64,
    pub(super) forgotten: u64,
    keys: Tally<Key>,
    folded: Tally<Key>,
}

impl Counted {
    pub(super) fn recent() -> Self {
        Self::with_room(RECENT_KEYS)
    }

    fn with_room(keys: usize) -> Self {
        Self { sum: Sum::default(), missed: 0, forgotten: 0, keys: Tally::new(keys), folded: Tally::new(FOLDED_KEYS) }
    }

    pub(super) fn add(&mut self, key: Key, count: Count) {
        if !self.keys.add(key, count) {
            self.forget(key, count);
        }
    }

    /// With their ends, and those that lost them.
    pub(super) fn keys(&self) -> impl Iterator<Item = (&Key, &Count)> {
        self.keys.iter().chain(self.folded.iter())
    }

    fn forget(&mut self, key: Key, count: Count) {
        self.forgotten += count.packets;
        // Without room here too only the namespace is lost; the events stay in the sum.
        let _ = self.folded.add(Key { ends: None, measure: NO_MEASURE, ..key }, count);
    }
}

impl Fold for Counted {
    fn hourly() -> Self {
        Self::with_room(HOUR_KEYS)
    }

    fn fold(&mut self, later: Self) {
        self.sum.add(&later.sum);
        self.missed += later.missed;
        self.forgotten += later.forgotten;
        for (key, count) in self.keys.absorb(later.keys) {
            self.forget(key, count);
        }
        // The smallest of what has no ends any more: its events stay in the sum.
        let _ = self.folded.absorb(later.folded);
    }
}
