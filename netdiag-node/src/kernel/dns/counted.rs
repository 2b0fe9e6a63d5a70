//! What one slot of the window counted of DNS.

use netdiag_common::observation::dns::DnsAccounts;
use netdiag_common::record::dns::{
    Counters, Group, Open, RCODES, SIDE_SERVER, TIMES, TYPE_OTHER, TYPE_ROWS, TYPES, split_service,
};

use super::names::Names;
use crate::window::{Fold, Tally, Total};

/// Pairs of namespace and server in a slot of the last minutes, and of the hour: 300 bytes each.
const MAX_GROUPS: usize = 1024;
const MAX_HOURLY: usize = 256;

/// Namespace, server's address and service word without epoch.
pub(super) type GroupId = [u64; 4];

/// A [`Group`] in less room: ten seconds or five minutes fit into 32 bits.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct GroupCount {
    pub(super) first_ns: u64,
    pub(super) last_ns: u64,
    pub(super) time_us: u64,
    pub(super) queries: u32,
    pub(super) answers: u32,
    pub(super) unanswered: u32,
    pub(super) shed: u32,
    pub(super) retries: u32,
    pub(super) retries_after_5s: u32,
    pub(super) truncated: u32,
    pub(super) empty: u32,
    pub(super) rcodes: [u32; RCODES],
    pub(super) types: [u32; TYPE_ROWS],
    pub(super) times: [u32; TIMES],
}

impl GroupCount {
    /// A query that nobody answered.
    pub(super) fn unanswered(open: &Open) -> Self {
        let mut count = Self { first_ns: open.first_ns, last_ns: open.last_ns, unanswered: 1, ..Self::default() };
        let kind = super::question_of(open).map_or(0, |question| question.kind);
        count.types[TYPES.iter().position(|known| *known == kind).unwrap_or(TYPE_OTHER)] = 1;
        count
    }

    /// Closed queries of a client, or all messages of a server.
    pub(super) fn events(&self) -> u64 {
        [self.queries, self.answers, self.unanswered, self.shed].map(u64::from).iter().sum()
    }
}

impl From<&Group> for GroupCount {
    fn from(group: &Group) -> Self {
        let small = |number: u64| u32::try_from(number).unwrap_or(u32::MAX);
        Self {
            first_ns: group.first_ns,
            last_ns: group.last_ns.max(group.first_ns),
            time_us: group.time_us,
            queries: small(group.queries),
            answers: small(group.answers),
            unanswered: 0,
            shed: small(group.shed),
            retries: small(group.retries),
            retries_after_5s: small(group.retries_after_5s),
            truncated: small(group.truncated),
            empty: small(group.empty),
            rcodes: group.rcodes.map(small),
            types: group.types.map(small),
            times: group.times.map(small),
        }
    }
}

impl Total for GroupCount {
    fn add(&mut self, other: Self) {
        self.first_ns = if self.events() == 0 { other.first_ns } else { self.first_ns.min(other.first_ns) };
        self.last_ns = self.last_ns.max(other.last_ns);
        self.time_us += other.time_us;
        let sum = |into: &mut u32, from: u32| *into = into.saturating_add(from);
        sum(&mut self.queries, other.queries);
        sum(&mut self.answers, other.answers);
        sum(&mut self.unanswered, other.unanswered);
        sum(&mut self.shed, other.shed);
        sum(&mut self.retries, other.retries);
        sum(&mut self.retries_after_5s, other.retries_after_5s);
        sum(&mut self.truncated, other.truncated);
        sum(&mut self.empty, other.empty);
        self.rcodes.iter_mut().zip(other.rcodes).for_each(|(into, from)| sum(into, from));
        self.types.iter_mut().zip(other.types).for_each(|(into, from)| sum(into, from));
        self.times.iter_mut().zip(other.times).for_each(|(into, from)| sum(into, from));
    }

    fn weight(&self) -> u64 {
        self.events()
    }
}

/// What one slot of the window counted.
#[derive(Debug)]
pub(super) struct Counted {
    /// `open` is what was open at the slot's end, `open_before` at its start.
    pub(super) accounts: DnsAccounts,
    /// Answers to this kernel's clients, whether or not their group found room.
    pub(super) rcodes: [u64; RCODES],
    pub(super) groups: Tally<GroupId, GroupCount>,
    pub(super) names: Names,
}

impl Counted {
    pub(super) fn new(open_before: u64) -> Self {
        Self {
            accounts: DnsAccounts { open_before, open: open_before, ..DnsAccounts::default() },
            rcodes: [0; RCODES],
            groups: Tally::new(MAX_GROUPS),
            names: Names::new(),
        }
    }

    pub(super) fn count(&mut self, key: GroupId, count: GroupCount) {
        if split_service(key[3]).3 != SIDE_SERVER {
            self.rcodes.iter_mut().zip(count.rcodes).for_each(|(sum, answers)| *sum += u64::from(answers));
        }
        if !self.groups.add(key, count) {
            self.accounts.forgotten += count.events();
        }
    }
}

impl Fold for Counted {
    fn hourly() -> Self {
        // The first slot that is folded in says what was open at the start.
        Self {
            accounts: DnsAccounts::default(),
            rcodes: [0; RCODES],
            groups: Tally::new(MAX_HOURLY),
            names: Names::hourly(),
        }
    }

    fn fold(&mut self, later: Self) {
        append(&mut self.accounts, &later.accounts);
        self.rcodes.iter_mut().zip(later.rcodes).for_each(|(sum, answers)| *sum += answers);
        for (_, count) in self.groups.absorb(later.groups) {
            self.accounts.forgotten += count.events();
        }
        self.names.fold(later.names);
    }
}

/// Adds the accounts of the stretch that follows.
pub(super) fn append(into: &mut DnsAccounts, later: &DnsAccounts) {
    if *into == DnsAccounts::default() {
        into.open_before = later.open_before;
    }
    into.open = later.open;
    into.patience_ms = later.patience_ms;
    into.queries += later.queries;
    into.answered += later.answered;
    into.unanswered += later.unanswered;
    into.unparsed += later.unparsed;
    into.shed += later.shed;
    into.retries += later.retries;
    into.unmatched += later.unmatched;
    into.tcp_rest += later.tcp_rest;
    into.ungrouped += later.ungrouped;
    into.foreign_netns += later.foreign_netns;
    into.served_queries += later.served_queries;
    into.served_answers += later.served_answers;
    into.names_read += later.names_read;
    into.names_suppressed += later.names_suppressed;
    into.names_lost += later.names_lost;
    into.forgotten += later.forgotten;
}

/// Sums what the CPUs counted in one epoch.
pub(super) fn sum(into: &mut Counters, from: &Counters) {
    into.queries += from.queries;
    into.opened += from.opened;
    into.answered += from.answered;
    into.unparsed += from.unparsed;
    into.shed += from.shed;
    into.retries += from.retries;
    into.unmatched += from.unmatched;
    into.tcp_rest += from.tcp_rest;
    into.ungrouped += from.ungrouped;
    into.served_queries += from.served_queries;
    into.served_answers += from.served_answers;
    into.names_sent += from.names_sent;
    into.names_suppressed += from.names_suppressed;
    into.names_lost += from.names_lost;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_open_is_carried_from_stretch_to_stretch() {
        let first = DnsAccounts { queries: 10, answered: 7, open: 3, ..DnsAccounts::default() };
        let second = DnsAccounts { queries: 5, answered: 6, unanswered: 1, open_before: 3, open: 1, ..first };
        assert_eq!((first.unaccounted(), second.unaccounted()), (0, 0));
        let mut both = DnsAccounts::default();
        append(&mut both, &first);
        append(&mut both, &second);
        assert_eq!((both.open_before, both.queries, both.open, both.unaccounted()), (0, 15, 1, 0));
        let mut later = DnsAccounts::default();
        append(&mut later, &second);
        assert_eq!((later.open_before, later.unaccounted()), (3, 0));
    }
}
