//! Packets the kernel dropped: harvests the tables of the `kfree_skb` program and says what they counted.
//!
//! A harvest flips the epoch, waits until no program writes the half that was left, sums and clears it. What it takes is
//! exact while packets keep coming, and every term of [`DropAccounts`] comes from that same half.

mod tables;

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use jiff::{SignedDuration, Timestamp};
use netdiag_common::observation::kfree_skb::{DropAccounts, DropExemplar, DropGroup, DropTuple, Drops, ReasonTotal};
use netdiag_common::observation::{Owner, Protocol};
use netdiag_common::record::kfree_skb::{Exemplar, REASONS, SlotV4, SlotV6, row_reason};

use super::LoadError;
use super::btf::Btf;
use super::exemplar::{self, Exemplars};
use super::key::{GroupKey, coarse_key, count_of, ipv4_key, ipv6_key, take};
use super::layout::Reasons;
use super::object::Object;
use super::plan::Plan;
use super::symbols::{Symbols, hex};
use super::table::flip;
use crate::host;
use crate::window::{Count, Tally, Window};
pub use tables::TableSize;
use tables::Tables;

/// What the agent answers for: long enough to see a retry loop, short enough to be about now.
const WINDOW_NS: u64 = 300 * SECOND_NS;
/// Resolution at which old counts are forgotten.
const SLOT_NS: u64 = 10 * SECOND_NS;
const SECOND_NS: u64 = 1_000_000_000;

/// Keys with their tuple per slot, and keys whose tuple was forgotten: 30 slots stay below 10 MiB.
const MAX_GROUPS: usize = 2048;
const MAX_FOLDED: usize = 512;

/// Groups and exemplars in one observation: a few hundred KiB of JSON at most.
const ANSWER_GROUPS: usize = 500;
const ANSWER_EXEMPLARS: usize = 64;

/// Reading /proc/kallsyms takes 0.1 s; a module that was just loaded can wait this long for its names.
const SYMBOLS_AGE_NS: u64 = 60 * SECOND_NS;

/// The running program and what it counted in the last minutes.
pub struct KernelDrops {
    loaded: Tables,
    reasons: Reasons,
    symbols: Symbols,
    symbols_read_ns: u64,
    /// High half of kernel addresses, from the last exemplar: completes a location that has no name.
    high_half: u32,
    /// Names of the low halves seen, so that an observation does not search again.
    locations: HashMap<u32, String>,
    window: Window<Counted>,
    exemplars: Exemplars,
    /// Monotonic clock of the last harvest, and the wall clock at that moment.
    harvested: (u64, Option<Timestamp>),
    /// Runs the kernel had skipped by then.
    missed: u64,
}

/// What the plan said, until the program is attached.
pub(super) struct Planned {
    size: TableSize,
    reasons: Reasons,
}

/// What one slot of the window counted.
#[derive(Debug)]
struct Counted {
    accounts: DropAccounts,
    by_reason: Vec<u64>,
    groups: Tally<GroupKey>,
    folded: Tally<GroupKey>,
}

impl Counted {
    fn new() -> Self {
        Self {
            accounts: DropAccounts::default(),
            by_reason: vec![0; REASONS],
            groups: Tally::new(MAX_GROUPS),
            folded: Tally::new(MAX_FOLDED),
        }
    }
}

impl KernelDrops {
    /// The program's part of the plan.
    pub(super) fn plan(btf: &Btf<'_>, size: TableSize, plan: &mut Plan) -> Result<Planned, LoadError> {
        tables::plan(btf, size, plan)?;
        Ok(Planned { size, reasons: Reasons::of(btf, plan.has("HAS_REASON", 1_u32)) })
    }

    pub(super) fn attach(object: &Object, planned: Planned) -> Result<Self, LoadError> {
        Ok(Self {
            loaded: tables::open(object, planned.size, &tables::WAYS_TO_ATTACH)?,
            reasons: planned.reasons,
            symbols: read_symbols(),
            symbols_read_ns: monotonic_ns(),
            high_half: u32::MAX,
            locations: HashMap::new(),
            window: Window::new(WINDOW_NS, SLOT_NS),
            exemplars: Exemplars::default(),
            harvested: (monotonic_ns(), None),
            missed: 0,
        })
    }

    /// How the program is attached: `tp_btf` or `raw_tracepoint`.
    pub fn tier(&self) -> &'static str {
        self.loaded.program.tier
    }

    /// Whether locations get names; false without the right to read kernel symbols.
    pub fn has_symbols(&self) -> bool {
        !self.symbols.is_empty()
    }

    /// Takes what the kernel counted since the last harvest into the window. Blocks for 10 to 20 ms.
    pub fn harvest(&mut self, now: Timestamp) {
        let left = flip(&self.loaded.states, self.loaded.cpus) as usize;
        let now_ns = monotonic_ns();
        let (mut accounts, by_reason) = self.take_counters(left);
        let missed = self.missed();
        accounts.missed = missed.saturating_sub(self.missed);
        self.missed = missed;

        let mut groups = self.take_groups(left);
        self.name_locations(groups.iter().map(|(key, _)| key.location), now_ns);
        // Largest first: when the slot is full, the smallest lose their tuples.
        groups.sort_by_key(|(_, count)| std::cmp::Reverse(count.packets));
        let slot = self.window.slot(self.harvested.0, now_ns, Counted::new);
        for (key, count) in groups {
            if slot.groups.add(key, count) {
                continue;
            }
            accounts.forgotten += count.packets;
            // Without room here too only the namespace is lost; the packets stay in the accounts.
            let _ = slot.folded.add(GroupKey { tuple: None, ..key }, count);
        }
        sum(&mut slot.accounts, &accounts);
        slot.by_reason.iter_mut().zip(by_reason).for_each(|(sum, packets)| *sum += packets);

        while let Some(entry) = self.loaded.exemplars.next() {
            if let Some(exemplar) = exemplar::decode(&entry) {
                self.high_half = (exemplar.location >> 32) as u32;
                self.exemplars.add(exemplar);
            }
        }
        #[cfg(feature = "debug")]
        self.loaded.running.print_log();
        self.exemplars.forget_before(now_ns.saturating_sub(WINDOW_NS));
        self.harvested = (now_ns, Some(now));
    }

    /// What was harvested in the window. `resolve` says whose namespace a cookie (an inode before Linux 5.12) is: on a
    /// kernel shared by several nodes the others' are unknown, and their packets become one number.
    pub fn observe(&self, now: Timestamp, resolve: &dyn Fn(u64) -> Owner) -> Drops {
        let clock = Clock { wall: self.harvested.1.unwrap_or(now), monotonic_ns: self.harvested.0 };
        let mut owners = Owners { resolve, known: HashMap::new() };
        let mut accounts = DropAccounts::default();
        let mut by_reason = vec![0; REASONS];
        let mut totals: HashMap<GroupKey, Count> = HashMap::new();
        for slot in self.window.slots() {
            sum(&mut accounts, &slot.value.accounts);
            by_reason.iter_mut().zip(&slot.value.by_reason).for_each(|(sum, packets)| *sum += packets);
            for (key, count) in slot.value.groups.iter().chain(slot.value.folded.iter()) {
                totals.entry(*key).or_default().add(*count);
            }
        }
        totals.retain(|key, count| {
            let ours = owners.ours(key.netns);
            if !ours {
                accounts.foreign_netns += count.packets;
                let counted_as = if key.coarse { &mut accounts.coarse } else { &mut accounts.attributed };
                // If a counter lied, the identity says so; nothing here may panic over it.
                *counted_as = counted_as.saturating_sub(count.packets);
            }
            ours
        });
        let mut groups: Vec<(GroupKey, Count)> = totals.into_iter().collect();
        groups.sort_by_key(|(key, count)| (std::cmp::Reverse(count.packets), key.netns, key.reason, key.location));
        let omitted_groups = groups.len().saturating_sub(ANSWER_GROUPS) as u64;
        groups.truncate(ANSWER_GROUPS);
        for netns in self.exemplars.namespaces() {
            owners.of(netns);
        }
        let since = clock.at(self.window.start_ns().unwrap_or(self.harvested.0));
        let exemplars = self.exemplars.pick(ANSWER_EXEMPLARS, |exemplar| owners.is_known_ours(exemplar.netns));
        Drops {
            since,
            window_s: now.duration_since(since).as_secs_f64().max(0.0),
            accounts,
            reasons: self.reason_totals(&by_reason),
            groups: groups.iter().map(|(key, count)| self.group(key, count, clock, &mut owners)).collect(),
            omitted_groups,
            exemplars: exemplars.into_iter().map(|exemplar| self.exemplar(exemplar, clock, &owners)).collect(),
            unseen: Vec::new(),
            forgotten_sights: 0,
        }
    }

    /// Sums and clears the counters of the half that was left.
    fn take_counters(&self, left: usize) -> (DropAccounts, Vec<u64>) {
        let mut accounts = DropAccounts::default();
        let mut by_reason = vec![0; REASONS];
        for cpu in 0..self.loaded.cpus {
            let row = left * self.loaded.cpus + cpu;
            let counters = self.loaded.counters.read(row);
            accounts.total += counters.total;
            accounts.attributed += counters.attributed;
            accounts.coarse += counters.coarse;
            accounts.reason_only += counters.reason_only;
            accounts.foreign += counters.foreign;
            accounts.unparsed += counters.unparsed;
            accounts.exemplars_sent += counters.exemplars_sent;
            accounts.exemplars_suppressed += counters.exemplars_suppressed;
            accounts.exemplars_lost += counters.exemplars_lost;
            by_reason.iter_mut().zip(counters.by_reason).for_each(|(sum, packets)| *sum += packets);
            // SAFETY: a row of the mapping that no program writes; zeroes are valid counters.
            unsafe { self.loaded.counters.row(row).write_bytes(0, 1) };
        }
        (accounts, by_reason)
    }

    /// Decodes and clears the keys of the half that was left. A key that several CPUs counted comes once.
    fn take_groups(&self, left: usize) -> Vec<(GroupKey, Count)> {
        let (cpus, size) = (self.loaded.cpus, self.loaded.size);
        let mut groups: HashMap<GroupKey, Count> = HashMap::new();
        let mut add = |key: GroupKey, count: Count| groups.entry(key).or_default().add(count);
        take(&self.loaded.ipv4, left, cpus, size.ipv4, |slot: &SlotV4| add(ipv4_key(&slot.key), count_of(slot)));
        take(&self.loaded.ipv6, left, cpus, size.ipv6, |slot: &SlotV6| add(ipv6_key(&slot.key), count_of(slot)));
        take(&self.loaded.coarse, left, cpus, size.coarse, |slot: &SlotV4| add(coarse_key(&slot.key), count_of(slot)));
        groups.into_iter().collect()
    }

    /// Events that found the program running: counted by the kernel, and before Linux 6.1 by the program itself.
    fn missed(&self) -> u64 {
        let nested: u64 = (0..self.loaded.cpus).map(|cpu| self.loaded.states.read(cpu).nested).sum();
        nested + self.loaded.program.recursion_misses()
    }

    /// Looks up the names of locations not seen before, in fresh symbols when one is missing.
    fn name_locations(&mut self, locations: impl Iterator<Item = u32>, now_ns: u64) {
        /// A kernel has a few hundred places that drop packets.
        const MAX_LOCATIONS: usize = 4096;
        let mut unknown: Vec<u32> = locations.filter(|low| !self.locations.contains_key(low)).collect();
        unknown.sort_unstable();
        unknown.dedup();
        let missing = unknown.iter().any(|low| self.symbols.name_by_low_half(*low).is_none());
        if missing && now_ns.saturating_sub(self.symbols_read_ns) > SYMBOLS_AGE_NS {
            self.symbols = read_symbols();
            self.symbols_read_ns = now_ns;
        }
        for low in unknown {
            if self.locations.len() < MAX_LOCATIONS
                && let Some(name) = self.symbols.name_by_low_half(low)
            {
                self.locations.insert(low, name.to_owned());
            }
        }
    }

    fn location(&self, low: u32) -> String {
        match self.locations.get(&low) {
            Some(name) => name.clone(),
            None => hex((u64::from(self.high_half) << 32) | u64::from(low)),
        }
    }

    fn function(&self, address: u64) -> String {
        self.symbols.name(address).map_or_else(|| hex(address), str::to_owned)
    }

    fn reason_totals(&self, by_reason: &[u64]) -> Vec<ReasonTotal> {
        let mut totals: Vec<ReasonTotal> = by_reason
            .iter()
            .enumerate()
            .filter(|(_, packets)| **packets > 0)
            .map(|(row, packets)| ReasonTotal {
                reason: row_reason(row).map_or_else(|| "OTHER".to_owned(), |reason| self.reasons.name(reason)),
                packets: *packets,
            })
            .collect();
        totals.sort_by(|a, b| b.packets.cmp(&a.packets).then_with(|| a.reason.cmp(&b.reason)));
        totals
    }

    fn group(&self, key: &GroupKey, count: &Count, clock: Clock, owners: &mut Owners<'_>) -> DropGroup {
        DropGroup {
            netns: owners.of(key.netns).clone(),
            reason: self.reasons.name(key.reason),
            location: self.location(key.location),
            ifindex: key.ifindex,
            tuple: key.tuple.map(|tuple| DropTuple {
                source: tuple.source,
                destination: tuple.destination,
                protocol: Protocol::from_number(tuple.protocol),
                protocol_number: tuple.protocol,
                service_port: tuple.service_port,
                port_is_destination: tuple.port_is_destination,
            }),
            direction: None,
            hook: None,
            tracked: None,
            translation: None,
            since: None,
            packets: count.packets,
            bytes: count.bytes,
            first_at: clock.at(count.first_ns),
            last_at: clock.at(count.last_ns),
        }
    }

    fn exemplar(&self, exemplar: &Exemplar, clock: Clock, owners: &Owners<'_>) -> DropExemplar {
        DropExemplar {
            at: clock.at(exemplar.at_ns),
            netns: owners.known.get(&exemplar.netns).cloned().unwrap_or(Owner::Unknown { id: exemplar.netns }),
            reason: self.reasons.name(exemplar.reason),
            location: self.function(exemplar.location),
            ifindex: exemplar.ifindex,
            source: address(exemplar.version, exemplar.source),
            destination: address(exemplar.version, exemplar.destination),
            protocol_number: exemplar.protocol,
            source_port: exemplar.source_port,
            destination_port: exemplar.destination_port,
            tcp_flags: exemplar.tcp_flags,
            length: exemplar.length,
            direction: None,
            hook: None,
            tracked: None,
            translation: None,
            stack: exemplar::frames(exemplar).iter().map(|address| self.function(*address)).collect(),
        }
    }
}

/// Answers of `resolve`, each asked once.
struct Owners<'a> {
    resolve: &'a dyn Fn(u64) -> Owner,
    known: HashMap<u64, Owner>,
}

impl Owners<'_> {
    fn of(&mut self, netns: u64) -> &Owner {
        let resolve = self.resolve;
        self.known.entry(netns).or_insert_with(|| match netns {
            // No namespace at all: nobody can say whose it is, so it is kept and named as such.
            0 => Owner::Unknown { id: 0 },
            _ => resolve(netns),
        })
    }

    fn ours(&mut self, netns: u64) -> bool {
        netns == 0 || !matches!(self.of(netns), Owner::Unknown { .. })
    }

    fn is_known_ours(&self, netns: u64) -> bool {
        netns == 0 || self.known.get(&netns).is_some_and(|owner| !matches!(owner, Owner::Unknown { .. }))
    }
}

/// One moment on both clocks.
#[derive(Clone, Copy)]
struct Clock {
    wall: Timestamp,
    monotonic_ns: u64,
}

impl Clock {
    fn at(self, ns: u64) -> Timestamp {
        let past = self.monotonic_ns.cast_signed().saturating_sub(ns.cast_signed());
        self.wall.checked_sub(SignedDuration::from_nanos(past)).unwrap_or(self.wall)
    }
}

fn address(version: u8, bytes: [u8; 16]) -> IpAddr {
    match version {
        4 => Ipv4Addr::new(bytes[0], bytes[1], bytes[2], bytes[3]).into(),
        _ => Ipv6Addr::from(bytes).into(),
    }
}

fn sum(into: &mut DropAccounts, from: &DropAccounts) {
    into.total += from.total;
    into.attributed += from.attributed;
    into.coarse += from.coarse;
    into.foreign_netns += from.foreign_netns;
    into.reason_only += from.reason_only;
    into.foreign += from.foreign;
    into.unparsed += from.unparsed;
    into.missed += from.missed;
    into.forgotten += from.forgotten;
    into.exemplars_sent += from.exemplars_sent;
    into.exemplars_suppressed += from.exemplars_suppressed;
    into.exemplars_lost += from.exemplars_lost;
}

/// Names are a help, not a need: without them locations stay numbers.
fn read_symbols() -> Symbols {
    host::kernel::symbols().map(Symbols::parse).unwrap_or_default()
}

/// The clock of the kernel's records (`bpf_ktime_get_ns`).
fn monotonic_ns() -> u64 {
    let now = nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC).expect("Linux has a monotonic clock");
    now.tv_sec().cast_unsigned() * SECOND_NS + now.tv_nsec().cast_unsigned()
}
