//! What was counted in a stretch of time: totals, and groups of packets with one key.

use netdiag_common::observation::kfree_skb::{DropAccounts, Translation};
use netdiag_common::record::kfree_skb::{Counters, REASONS};

use super::key::GroupKey;
use crate::window::{Count, Fold, Tally, Total};

/// Keys with their tuple in a slot of ten seconds, and keys whose tuple was forgotten: 30 slots stay below 10 MiB.
const MAX_GROUPS: usize = 2048;
const MAX_FOLDED: usize = 512;
/// The same for a slot of the hour, which has twelve of them.
const HOURLY_GROUPS: usize = 1024;
const HOURLY_FOLDED: usize = 512;

/// Packets of one key, and what DNAT made of the newest connection's destination.
#[derive(Debug, Clone, Default)]
pub(super) struct GroupCount {
    pub(super) count: Count,
    pub(super) translation: Option<Box<Translation>>,
}

impl Total for GroupCount {
    fn add(&mut self, other: Self) {
        if other.translation.is_some() && (self.translation.is_none() || other.count.last_ns >= self.count.last_ns) {
            self.translation = other.translation;
        }
        self.count.add(other.count);
    }

    fn weight(&self) -> u64 {
        self.count.packets
    }
}

/// One slot of the history.
#[derive(Debug)]
pub(super) struct Counted {
    pub(super) accounts: DropAccounts,
    pub(super) by_reason: Vec<u64>,
    groups: Tally<GroupKey, GroupCount>,
    /// Groups that lost their tuple.
    folded: Tally<GroupKey, GroupCount>,
}

impl Counted {
    pub(super) fn recent() -> Self {
        Self::new(MAX_GROUPS, MAX_FOLDED)
    }

    fn new(groups: usize, folded: usize) -> Self {
        Self {
            accounts: DropAccounts::default(),
            by_reason: vec![0; REASONS],
            groups: Tally::new(groups),
            folded: Tally::new(folded),
        }
    }

    pub(super) fn add_totals(&mut self, accounts: &DropAccounts, by_reason: &[u64]) {
        sum(&mut self.accounts, accounts);
        self.by_reason.iter_mut().zip(by_reason).for_each(|(sum, packets)| *sum += packets);
    }

    pub(super) fn add(&mut self, key: GroupKey, counted: GroupCount) {
        if !self.groups.add(key, counted.clone()) {
            self.forget_tuple(key, counted);
        }
    }

    pub(super) fn groups(&self) -> impl Iterator<Item = (&GroupKey, &GroupCount)> {
        self.groups.iter().chain(self.folded.iter())
    }

    pub(super) fn forget_tuple(&mut self, key: GroupKey, counted: GroupCount) {
        self.accounts.forgotten += counted.count.packets;
        // Without room here too only the namespace is lost; the packets stay in the accounts.
        let _ = self.folded.add(key.without_tuple(), GroupCount { translation: None, ..counted });
    }
}

impl Fold for Counted {
    fn hourly() -> Self {
        Self::new(HOURLY_GROUPS, HOURLY_FOLDED)
    }

    fn fold(&mut self, later: Self) {
        self.add_totals(&later.accounts, &later.by_reason);
        for (key, counted) in self.groups.absorb(later.groups) {
            self.forget_tuple(key, counted);
        }
        // What finds no room here stays in the accounts.
        let _ = self.folded.absorb(later.folded);
    }
}

/// The terms that the kernel program counts.
pub(super) fn accounts(counters: &Counters) -> DropAccounts {
    DropAccounts {
        total: counters.total,
        attributed: counters.attributed,
        coarse: counters.coarse,
        reason_only: counters.reason_only,
        link: counters.link,
        foreign: counters.foreign,
        unparsed: counters.unparsed,
        unplaced: counters.unplaced,
        exemplars_sent: counters.exemplars_sent,
        exemplars_suppressed: counters.exemplars_suppressed,
        exemplars_lost: counters.exemplars_lost,
        ..DropAccounts::default()
    }
}

pub(super) fn sum(into: &mut DropAccounts, from: &DropAccounts) {
    into.total += from.total;
    into.attributed += from.attributed;
    into.coarse += from.coarse;
    into.foreign_netns += from.foreign_netns;
    into.reason_only += from.reason_only;
    into.link += from.link;
    into.foreign += from.foreign;
    into.unparsed += from.unparsed;
    into.unplaced += from.unplaced;
    into.missed += from.missed;
    into.forgotten += from.forgotten;
    into.exemplars_sent += from.exemplars_sent;
    into.exemplars_suppressed += from.exemplars_suppressed;
    into.exemplars_lost += from.exemplars_lost;
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::kfree_skb::key::tests::key_of_port;

    fn packets(packets: u64) -> GroupCount {
        GroupCount { count: Count { packets, bytes: 0, first_ns: 1, last_ns: 2 }, translation: None }
    }

    #[test]
    fn the_hour_keeps_every_packet_and_forgets_small_tuples() {
        let mut hour = Counted::hourly();
        for slot in 0..30_u16 {
            let mut recent = Counted::recent();
            recent.add(key_of_port(9), packets(1000));
            for port in 0..500 {
                recent.add(key_of_port(1000 + slot * 500 + port), packets(1));
            }
            recent.add_totals(&DropAccounts { total: 1500, ..DropAccounts::default() }, &[]);
            hour.fold(recent);
        }
        let counted: u64 = hour.groups().map(|(_, counted)| counted.count.packets).sum();
        assert_eq!((counted, hour.accounts.total), (30 * 1500, 30 * 1500));
        let loud = hour.groups().find(|(key, _)| **key == key_of_port(9)).map(|(_, counted)| counted.count.packets);
        assert_eq!(loud, Some(30_000));
        assert_eq!(hour.accounts.forgotten, 30 * 500 + 1 - HOURLY_GROUPS as u64);
    }
}
