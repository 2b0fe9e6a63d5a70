//! DNS queries and answers: empties the tables of the `dns` programs and says what they counted.
//!
//! Once a second samples are read and queries without an answer are taken out of the table of open ones. A harvest flips the
//! epoch, waits until no program writes the half that was left, sums and clears it: every term of [`DnsAccounts`] comes
//! from that same half, so that the identity holds while packets keep coming.

mod counted;
mod exemplar;
mod export;
mod message;
mod names;
mod report;
mod tables;

use jiff::Timestamp;
use netdiag_common::observation::Owner;
use netdiag_common::observation::dns::{Dns, DnsAccounts};
use netdiag_common::record::dns::{Counters, MESSAGE_BYTES, Open, Sample};

use super::LoadError;
use super::btf::Btf;
use super::object::Object;
use super::plan::Plan;
use super::table::flip;
use crate::clock::{Moment, monotonic_ns};
use crate::window::History;
use counted::{Counted, GroupCount, GroupId};
use exemplar::{Exemplar, Exemplars};
use message::{Question, question};
use names::{NameCount, Searches, has_doubled_suffix};
use tables::{Raw, Tables, WAYS_TO_ATTACH};

pub use tables::DnsSize;

/// The lowest byte of a group's service word.
const EPOCH: u64 = 0xff;

/// The running programs and what they counted in the last hour.
pub struct KernelDns {
    tables: Tables,
    history: History<Counted>,
    exemplars: Exemplars,
    searches: Searches,
    /// What the ticks found since the last harvest.
    pending: Counted,
    /// Queries in the table of open ones, by the counters.
    open: u64,
    /// Monotonic clock of the last harvest, and the wall clock at that moment.
    harvested: (u64, Option<Timestamp>),
}

impl KernelDns {
    /// The programs' part of the plan. Without it they are not attached.
    pub(super) fn plan(btf: &Btf<'_>, size: DnsSize, plan: &mut Plan) -> Result<DnsSize, LoadError> {
        tables::plan(btf, size, plan)?;
        Ok(size)
    }

    pub(super) fn attach(object: &Object, size: DnsSize) -> Result<Self, LoadError> {
        Ok(Self {
            tables: tables::open(object, size, [&WAYS_TO_ATTACH[0], &WAYS_TO_ATTACH[1]])?,
            history: History::default(),
            exemplars: Exemplars::default(),
            searches: Searches::default(),
            pending: Counted::new(0),
            open: 0,
            harvested: (monotonic_ns(), None),
        })
    }

    /// How the programs are attached.
    pub fn tier(&self) -> &'static str {
        self.tables.programs[0].tier
    }

    /// To be called every second. The namespaces whose names were read.
    pub fn tick(&mut self) -> Vec<u64> {
        let mut seen = self.read_samples();
        seen.extend(self.give_up(monotonic_ns()));
        seen.sort_unstable();
        seen.dedup();
        seen
    }

    /// Takes what the kernel counted since the last harvest into the window. Blocks for 10 to 20 ms.
    pub fn harvest(&mut self, now: Timestamp) {
        self.tick();
        let left = flip(&self.tables.states, self.tables.cpus) as usize;
        let now_ns = monotonic_ns();
        let counters = self.take_counters(left);
        let groups = self.take_groups(left as u64);
        // What was sampled in the half that was left.
        self.read_samples();

        let found = std::mem::replace(&mut self.pending, Counted::new(0));
        let open_before = self.open;
        // A query is taken out only after it was put in; if a counter lied, the identity says so.
        self.open = (open_before + counters.opened).saturating_sub(counters.answered + found.accounts.unanswered);
        let accounts = DnsAccounts {
            queries: counters.queries,
            open_before,
            answered: counters.answered,
            unparsed: counters.unparsed,
            shed: counters.shed,
            open: self.open,
            patience_ms: self.tables.size.patience_ms,
            retries: counters.retries,
            unmatched: counters.unmatched,
            tcp_rest: counters.tcp_rest,
            ungrouped: counters.ungrouped,
            served_queries: counters.served_queries,
            served_answers: counters.served_answers,
            names_suppressed: counters.names_suppressed,
            names_lost: counters.names_lost,
            ..found.accounts
        };
        let slot = self.history.slot(self.harvested.0, now_ns, || Counted::new(open_before));
        counted::append(&mut slot.accounts, &accounts);
        for (key, count) in groups {
            slot.count(key, count);
        }
        for (key, count) in found.groups.iter() {
            slot.count(*key, *count);
        }
        slot.names.fold(found.names);
        self.exemplars.forget_before(now_ns.saturating_sub(crate::window::RECENT_NS));
        self.harvested = (now_ns, Some(now));
    }

    /// What was harvested in the last `span_ns`. `resolve` says whose namespace a number is.
    pub fn observe(&self, now: Timestamp, span_ns: u64, resolve: &dyn Fn(u64) -> Owner) -> Dns {
        let clock = Moment { wall: self.harvested.1.unwrap_or(now), monotonic_ns: self.harvested.0 };
        report::report(&self.history, &self.exemplars, clock, span_ns, resolve)
    }

    /// Queries in the kernel's table now, counted by walking it; what the counters say is in [`DnsAccounts::open`].
    pub fn walk_open(&self) -> usize {
        self.tables.open.keys().flatten().count()
    }

    /// Sums and clears the half that was left.
    fn take_counters(&self, left: usize) -> Counters {
        let mut total = Counters::default();
        for cpu in 0..self.tables.cpus {
            let row = left * self.tables.cpus + cpu;
            counted::sum(&mut total, &self.tables.counters.read(row));
            // SAFETY: a row of the half that no program writes; zeroes are valid counters.
            unsafe { self.tables.counters.row(row).write_bytes(0, 1) };
        }
        total
    }

    /// Takes the groups of the epoch that was left out of the kernel's table.
    fn take_groups(&mut self, left: u64) -> Vec<(GroupId, GroupCount)> {
        let of_left = |key: &GroupId| key[3] & EPOCH == left;
        let keys: Vec<GroupId> = self.tables.groups.keys().flatten().filter(of_left).collect();
        let mut groups = Vec::with_capacity(keys.len());
        for mut key in keys {
            let Ok(Raw(group)) = self.tables.groups.get(&key, 0) else { continue };
            let _ = self.tables.groups.remove(&key);
            key[3] &= !EPOCH;
            groups.push((key, GroupCount::from(&group)));
        }
        groups
    }

    /// Reads the names of answered queries.
    fn read_samples(&mut self) -> Vec<u64> {
        let mut seen = Vec::new();
        while let Some(decoded) = self.tables.samples.next().map(|entry| decode(&entry)) {
            let Some(sample) = decoded else { continue };
            let answer = Answer { at_ns: sample.answered_ns, flags: sample.flags };
            seen.push(sample.open.netns);
            self.closed(&sample.open, Some(answer));
        }
        seen
    }

    /// Takes out the queries that waited long enough.
    fn give_up(&mut self, now_ns: u64) -> Vec<u64> {
        let patience_ns = self.tables.size.patience_ms * 1_000_000;
        let keys: Vec<_> = self.tables.open.keys().flatten().collect();
        let mut seen = Vec::new();
        for key in keys {
            let Ok(Raw(open)) = self.tables.open.get(&key, 0) else { continue };
            if now_ns.saturating_sub(open.last_ns) < patience_ns || self.tables.open.remove(&key).is_err() {
                continue;
            }
            self.pending.accounts.unanswered += 1;
            let group = [open.netns, open.server[0], open.server[1], open.service];
            self.pending.count(group, GroupCount::unanswered(&open));
            seen.push(open.netns);
            self.closed(&open, None);
        }
        seen
    }

    /// One query with its name, however it ended.
    fn closed(&mut self, open: &Open, answer: Option<Answer>) {
        self.pending.accounts.names_read += 1;
        let name = question_of(open);
        self.exemplars.add(Exemplar::new(open, answer, name.as_ref()));
        let Some(Question { name, kind }) = name else { return };
        let rcode = answer.map(|answer| answer.flags & 0xf);
        let searched = self.searches.next_after(open.netns, &name, kind, open.first_ns);
        if let Some(Answer { at_ns, flags }) = answer
            && flags & 0xf == NXDOMAIN
        {
            self.searches.not_found(open.netns, &name, kind, at_ns);
        }
        if let Some(together) = self.pending.names.together(open.netns) {
            together.read += 1;
            together.search_tries += u64::from(searched.is_some());
            if has_doubled_suffix(&name) {
                together.doubled_suffix += 1;
                together.example = Some(name.clone());
            } else if searched.is_some() {
                together.example = searched;
            }
        }
        let count = NameCount {
            queries: 1,
            excess: 0,
            nxdomain: u64::from(rcode == Some(NXDOMAIN)),
            failed: u64::from(rcode.is_some_and(|code| code != 0 && code != NXDOMAIN)),
            unanswered: u64::from(rcode.is_none()),
            retries: u64::from(open.tries.saturating_sub(1)),
            longest_us: answer.map_or(0, |answer| answer.at_ns.saturating_sub(open.first_ns) / 1000),
        };
        self.pending.names.add((open.netns, name, kind), count);
    }
}

const NXDOMAIN: u16 = 3;

/// The end of a query that was answered.
#[derive(Debug, Clone, Copy)]
struct Answer {
    at_ns: u64,
    /// Of the header.
    flags: u16,
}

/// The question of a query, as far as it was copied.
fn question_of(open: &Open) -> Option<Question> {
    let mut bytes = [0; MESSAGE_BYTES];
    for (into, word) in bytes.chunks_exact_mut(8).zip(open.message) {
        into.copy_from_slice(&word.to_ne_bytes());
    }
    question(bytes.get(..open.length as usize)?, MESSAGE_BYTES)
}

/// The record in one entry of the ring; none when it is of another size.
fn decode(bytes: &[u8]) -> Option<Sample> {
    if bytes.len() < size_of::<Sample>() {
        return None;
    }
    // SAFETY: long enough, and every bit pattern is a `Sample`, which holds integers only.
    Some(unsafe { bytes.as_ptr().cast::<Sample>().read_unaligned() })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn an_entry_of_another_size_is_no_sample() {
        assert!(decode(&[0; 40]).is_none());
        let wild = decode(&[0xff; size_of::<Sample>()]).unwrap();
        assert_eq!(question_of(&wild.open), None, "a length beyond the copy");
    }

    proptest! {
        #[test]
        fn a_sample_of_any_bytes_is_read_without_panic(bytes in proptest::collection::vec(any::<u8>(), size_of::<Sample>())) {
            let mut sample = decode(&bytes).unwrap();
            let _ = question_of(&sample.open);
            sample.open.length %= 161;
            let _ = Exemplar::new(&sample.open, None, question_of(&sample.open).as_ref());
            let _ = GroupCount::unanswered(&sample.open);
        }
    }
}
