//! Packets the kernel dropped: harvests the tables of the `kfree_skb` program and says what they counted.
//!
//! A harvest flips the epoch, waits until no program writes the half that was left, sums and clears it. What it takes is
//! exact while packets keep coming, and every term of [`DropAccounts`] comes from that same half.

mod answer;
mod counted;
mod exemplar;
mod export;
pub(super) mod hook;
pub(super) mod key;
mod names;
mod tables;

use std::collections::HashMap;

use jiff::Timestamp;
use netdiag_common::observation::kfree_skb::{DropAccounts, Translation};
use netdiag_common::record::kfree_skb::{REASONS, Slot, WAYS, reason_row};

use super::LoadError;
use super::btf::Btf;
use super::layout::Reasons;
use super::object::Object;
use super::plan::Plan;
use super::table::flip;
use crate::first_seen::FirstSeen;
use crate::window::{History, RECENT_NS, Total as _};
use counted::{Counted, GroupCount};
use exemplar::Exemplars;
use hook::Hooks;
use key::{GroupKey, coarse_key, count_of, ipv4_key, ipv6_key, take, translation4, translation6};
use names::Names;
pub use tables::TableSize;
use tables::Tables;

/// The running program and what it counted in the last hour.
pub struct KernelDrops {
    loaded: Tables,
    reasons: Reasons,
    names: Names,
    history: History<Counted>,
    first_seen: FirstSeen,
    exemplars: Exemplars,
    hooks: Hooks,
    /// Monotonic clock of the last harvest, and the wall clock at that moment.
    harvested: (u64, Option<Timestamp>),
    /// Runs the kernel had skipped by then.
    missed: u64,
    detail: Detail,
}

/// What a harvest keeps besides totals. What it does not keep stays counted: as lost exemplars, as forgotten tuples.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Detail {
    /// Whole packets. The ring is not read without them, and the program finds it full.
    pub exemplars: bool,
    /// Addresses and ports.
    pub tuples: bool,
}

/// What the plan said, until the program is attached.
pub(super) struct Planned {
    size: TableSize,
    reasons: Reasons,
    has_conntrack: bool,
    /// Whether the classic tracepoint's event has the reason.
    event_has_reason: bool,
}

impl KernelDrops {
    /// The program's part of the plan.
    pub(super) fn plan(btf: &Btf<'_>, size: TableSize, plan: &mut Plan) -> Result<Planned, LoadError> {
        tables::plan(btf, size, plan)?;
        let reasons = Reasons::of(btf, plan.has("HAS_REASON", 1_u32));
        let (has_conntrack, event_has_reason) = (plan.has("HAS_CONNTRACK", 1_u32), plan.has("HAS_EVENT_REASON", 1_u32));
        Ok(Planned { size, reasons, has_conntrack, event_has_reason })
    }

    pub(super) fn attach(object: &Object, planned: Planned) -> Result<Self, LoadError> {
        let loaded = tables::open(object, &planned, &tables::WAYS_TO_ATTACH)?;
        let unreported = loaded.program.tier == "tracepoint" && !planned.event_has_reason;
        Ok(Self {
            loaded,
            reasons: if unreported { planned.reasons.unreported() } else { planned.reasons },
            names: Names::read(monotonic_ns()),
            history: History::default(),
            first_seen: FirstSeen::default(),
            exemplars: Exemplars::default(),
            hooks: Hooks::default(),
            harvested: (monotonic_ns(), None),
            missed: 0,
            detail: Detail { exemplars: true, tuples: true },
        })
    }

    /// How the program is attached: `tp_btf`, `raw_tracepoint` or `tracepoint`.
    pub fn tier(&self) -> &'static str {
        self.loaded.program.tier
    }

    /// Whether locations get names; false without the right to read kernel symbols.
    pub fn has_symbols(&self) -> bool {
        self.names.are_known()
    }

    /// From the next harvest on.
    pub fn keep(&mut self, detail: Detail) {
        self.detail = detail;
    }

    /// Takes what the kernel counted since the last harvest into the history. Blocks for 10 to 20 ms.
    pub fn harvest(&mut self, now: Timestamp) {
        let left = flip(&self.loaded.states, self.loaded.cpus) as usize;
        let now_ns = monotonic_ns();
        let (mut accounts, mut by_reason) = self.take_counters(left);
        let missed = self.missed();
        accounts.missed = missed.saturating_sub(self.missed);
        self.missed = missed;

        let mut groups = self.take_groups(left);
        self.names.learn(groups.iter().map(|(key, _)| key.location), now_ns);
        // Largest first: when the slot is full, the smallest lose their tuples.
        groups.sort_by_key(|(_, counted)| std::cmp::Reverse(counted.weight()));
        let slot = self.history.slot(self.harvested.0, now_ns, Counted::recent);
        for (key, counted) in &groups {
            by_reason[reason_row(key.reason)] += counted.count.packets;
        }
        slot.add_totals(&accounts, &by_reason);
        for (key, counted) in groups {
            self.first_seen.note(&key, counted.count.first_ns, counted.count.last_ns);
            if self.detail.tuples { slot.add(key, counted) } else { slot.forget_tuple(key, counted) }
        }

        while self.detail.exemplars
            && let Some(entry) = self.loaded.exemplars.next()
        {
            if let Some(exemplar) = exemplar::decode(&entry) {
                self.names.complete(exemplar.location);
                self.hooks.learn(&exemplar, &self.names);
                self.exemplars.add(exemplar);
            }
        }
        #[cfg(feature = "debug")]
        self.loaded.running.print_log();
        let forgotten_ns = now_ns.saturating_sub(RECENT_NS);
        self.exemplars.forget_before(forgotten_ns);
        self.hooks.forget_before(forgotten_ns);
        self.harvested = (now_ns, Some(now));
    }

    /// Sums and clears the counters of the half that was left. By reason only what no slot holds.
    fn take_counters(&self, left: usize) -> (DropAccounts, Vec<u64>) {
        let mut accounts = DropAccounts::default();
        let mut by_reason = vec![0; REASONS];
        for cpu in 0..self.loaded.cpus {
            let row = left * self.loaded.cpus + cpu;
            let counters = self.loaded.counters.read(row);
            counted::sum(&mut accounts, &counted::accounts(&counters));
            by_reason.iter_mut().zip(counters.by_reason).for_each(|(sum, packets)| *sum += packets);
            // SAFETY: a row of the mapping that no program writes; zeroes are valid counters.
            unsafe { self.loaded.counters.row(row).write_bytes(0, 1) };
        }
        (accounts, by_reason)
    }

    /// Decodes and clears the keys of the half that was left. A key that several CPUs counted comes once.
    fn take_groups(&self, left: usize) -> Vec<(GroupKey, GroupCount)> {
        let Tables { cpus, size, ipv4, ipv6, coarse, frames, dnat4, dnat6, .. } = &self.loaded;
        let mut groups: HashMap<GroupKey, GroupCount> = HashMap::new();
        take(ipv4, left, *cpus, size.ipv4, |row, slot| {
            let key = ipv4_key(&slot.key);
            let translation = key.is_translated().then(|| translation4(&dnat4.read(row / WAYS)[row % WAYS]));
            add(&mut groups, key, slot, translation);
        });
        take(ipv6, left, *cpus, size.ipv6, |row, slot| {
            let key = ipv6_key(&slot.key);
            let translation = key.is_translated().then(|| translation6(&dnat6.read(row / WAYS)[row % WAYS]));
            add(&mut groups, key, slot, translation);
        });
        for table in [coarse, frames] {
            take(table, left, *cpus, size.coarse, |_, slot| add(&mut groups, coarse_key(&slot.key), slot, None));
        }
        groups.into_iter().collect()
    }

    /// Events that found the program running: counted by the kernel, and before Linux 6.1 by the program itself.
    fn missed(&self) -> u64 {
        let nested: u64 = (0..self.loaded.cpus).map(|cpu| self.loaded.states.read(cpu).nested).sum();
        nested + self.loaded.program.recursion_misses()
    }
}

fn add<const WORDS: usize>(
    groups: &mut HashMap<GroupKey, GroupCount>,
    key: GroupKey,
    slot: &Slot<WORDS>,
    translation: Option<Translation>,
) {
    groups.entry(key).or_default().add(GroupCount { count: count_of(slot), translation: translation.map(Box::new) });
}

/// The clock of the kernel's records (`bpf_ktime_get_ns`).
fn monotonic_ns() -> u64 {
    const SECOND_NS: u64 = 1_000_000_000;
    let now = nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC).expect("Linux has a monotonic clock");
    now.tv_sec().cast_unsigned() * SECOND_NS + now.tv_nsec().cast_unsigned()
}
