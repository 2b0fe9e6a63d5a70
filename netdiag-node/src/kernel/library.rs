//! Lookups and TLS handshakes that programs ask of their libraries, from the uprobes in `hook/library.rs`.
//!
//! A program is attached once for each file; dropping the links takes it off.

use std::cmp::Reverse;
use std::collections::HashMap;
use std::path::Path;

use aya::maps::{HashMap as KernelHashMap, MapData, RingBuf};
use aya::programs::uprobe::UProbeLink;
use jiff::{SignedDuration, Timestamp};
use netdiag_common::Window;
use netdiag_common::observation::Owner;
use netdiag_common::observation::library::{Libraries, LibraryAccounts, LibraryCall, LibraryGroup};
use netdiag_common::record::library::{Call, Ended, HANDSHAKE, LOOKUP, LOSSES, NAMELESS, NO_ROOM, RING_FULL};

use super::btf::Btf;
use super::event::monotonic_ns;
use super::failure::failed;
use super::object::{Object, Running};
use super::plan::Plan;
use super::table::Table;
use super::{LoadError, Sizes, layout};
use crate::host::library::Library;
use crate::window::{Count, Fold, History, Tally};

/// Groups in one observation: some 50 KiB of JSON.
const ANSWER_GROUPS: usize = 300;
/// Groups kept of one slot of the last minutes, and of the hour.
const RECENT_KEYS: usize = 1024;
const HOUR_KEYS: usize = 512;
/// Calls under way: each of a thread that waits.
const CALLS: u32 = 4096;
/// A record has 160 bytes, and the ring is read every second.
const RING_BYTES: u32 = 256 * 1024;
/// A resolver gives up after half a minute, a handshake with its connection. What takes longer has no end.
const UNFINISHED_NS: u64 = 300 * 1_000_000_000;

/// Which libraries may be probed; none unless somebody asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Uprobes {
    pub getaddrinfo: bool,
    pub tls: bool,
}

/// A program, and the function whose call or return it sees.
type Probe = (&'static str, &'static str);

const LIBC: [Probe; 2] = [("netdiag_lookup", "getaddrinfo"), ("netdiag_looked_up", "getaddrinfo")];
const SSL: [Probe; 4] = [
    ("netdiag_tls_name", "SSL_ctrl"),
    ("netdiag_tls_step", "SSL_do_handshake"),
    ("netdiag_tls_stepped", "SSL_do_handshake"),
    ("netdiag_tls_free", "SSL_free"),
];

/// A [`Call`] as the map's reader wants it.
#[derive(Clone, Copy)]
#[repr(transparent)]
struct Entry(Call);

// SAFETY: integers only.
unsafe impl aya::Pod for Entry {}

/// The programs, which run where a file is probed, and what they told in the last hour.
pub struct KernelLibraries {
    running: Running,
    ring: RingBuf<MapData>,
    lost: Table<u64>,
    lookups: KernelHashMap<MapData, u64, Entry>,
    handshakes: KernelHashMap<MapData, [u64; 2], Entry>,
    history: History<Counted>,
    pending: Counted,
    /// What was lost by the last harvest.
    losses: [u64; LOSSES as usize],
    harvested_ns: u64,
}

/// The programs of one file. They are taken off when this is dropped.
pub struct Probed {
    _links: Vec<UProbeLink>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Key {
    netns: u64,
    kind: u32,
    result: i32,
    name: Box<str>,
}

/// What one slot of time told.
#[derive(Debug)]
struct Counted {
    keys: Tally<Key>,
    total: u64,
    forgotten: u64,
    losses: [u64; LOSSES as usize],
    unfinished: u64,
}

impl KernelLibraries {
    /// The maps' part of the plan, whether or not anything will be probed: the object creates all its maps.
    pub(super) fn plan(btf: &Btf<'_>, wanted: Uprobes, plan: &mut Plan) -> Result<Uprobes, LoadError> {
        plan.set("O_TASK_NSPROXY", layout::offset(btf, "task_struct", "nsproxy", 8)?);
        plan.set("O_NSPROXY_NET", layout::offset(btf, "nsproxy", "net_ns", 8)?);
        layout::netns(btf, plan)?;
        if wanted != Uprobes::default() {
            for map in ["LIBRARY_LOOKUPS", "LIBRARY_HANDSHAKES", "LIBRARY_STEPS"] {
                plan.size(map, CALLS);
            }
            plan.size("LIBRARY_ENDED", RING_BYTES);
        }
        Ok(wanted)
    }

    /// Loads these programs alone. None when nothing is wanted.
    pub fn load(sizes: Sizes) -> Result<Option<Self>, LoadError> {
        super::alone(|btf, plan| Self::plan(btf, sizes.libraries, plan), Self::attach)
    }

    /// None when nothing is wanted.
    pub(super) fn attach(object: &Object, wanted: Uprobes) -> Result<Option<Self>, LoadError> {
        if wanted == Uprobes::default() {
            return Ok(None);
        }
        let running = object.running();
        for (program, _) in LIBC.iter().chain(&SSL) {
            running.load_probe(program).map_err(|error| failed(&format!("load the uprobe {program}"), &error))?;
        }
        let open = |name| object.take(name);
        let unusable = |error: aya::maps::MapError| failed("open the tables of calls under way", &error);
        Ok(Some(Self {
            running,
            ring: object.ring("LIBRARY_ENDED")?,
            lost: object.table("LIBRARY_LOST", LOSSES as usize)?,
            lookups: KernelHashMap::try_from(open("LIBRARY_LOOKUPS")?).map_err(unusable)?,
            handshakes: KernelHashMap::try_from(open("LIBRARY_HANDSHAKES")?).map_err(unusable)?,
            history: History::default(),
            pending: Counted::with_room(RECENT_KEYS),
            losses: [0; LOSSES as usize],
            harvested_ns: monotonic_ns(),
        }))
    }

    /// Probes a file for whoever uses it, until the result is dropped.
    pub fn probe(&self, library: Library, file: &Path) -> Result<Probed, LoadError> {
        let probes: &[Probe] = match library {
            Library::Libc => &LIBC,
            Library::Ssl => &SSL,
        };
        let attach = |(program, function): &Probe| {
            let step = || format!("probe {function} of {}", file.display());
            self.running.probe(program, function, file).map_err(|error| failed(&step(), &error))
        };
        Ok(Probed { _links: probes.iter().map(attach).collect::<Result<_, _>>()? })
    }

    /// To be called every second: reads the ring.
    pub fn tick(&mut self) {
        while let Some(bytes) = self.ring.next() {
            if let Some(ended) = decode(&bytes) {
                self.pending.add(&ended);
            }
        }
    }

    /// Takes what was told since the last harvest into the history.
    pub fn harvest(&mut self) {
        self.tick();
        let now_ns = monotonic_ns();
        let losses: [u64; LOSSES as usize] = std::array::from_fn(|row| self.lost.read(row));
        for (row, lost) in losses.iter().enumerate() {
            self.pending.losses[row] = lost.saturating_sub(self.losses[row]);
        }
        self.losses = losses;
        self.pending.unfinished = sweep(&mut self.lookups, now_ns) + sweep(&mut self.handshakes, now_ns);
        let found = std::mem::replace(&mut self.pending, Counted::with_room(RECENT_KEYS));
        self.history.slot(self.harvested_ns, now_ns, || Counted::with_room(RECENT_KEYS)).fold(found);
        self.harvested_ns = now_ns;
    }

    /// What was harvested in the window, without the files. `resolve` says whose namespace a number is.
    pub fn observe(&self, now: Timestamp, window: Window, resolve: &dyn Fn(u64) -> Owner) -> Libraries {
        let at = |ns: u64| {
            let past = SignedDuration::from_nanos(self.harvested_ns.saturating_sub(ns).cast_signed());
            now.checked_sub(past).unwrap_or(now)
        };
        let mut accounts = LibraryAccounts::default();
        let mut totals: HashMap<&Key, Count> = HashMap::new();
        let mut start_ns = self.harvested_ns;
        for slot in self.history.view(window.seconds() * 1_000_000_000) {
            start_ns = start_ns.min(slot.start_ns);
            let counted = &slot.value;
            accounts.total += counted.total;
            accounts.forgotten += counted.forgotten;
            accounts.no_room += counted.losses[NO_ROOM as usize];
            accounts.ring_full += counted.losses[RING_FULL as usize];
            accounts.nameless += counted.losses[NAMELESS as usize];
            accounts.unfinished += counted.unfinished;
            counted.keys.iter().for_each(|(key, count)| totals.entry(key).or_default().add(*count));
        }
        let mut groups = Vec::new();
        for (key, count) in totals {
            let netns = resolve(key.netns);
            if matches!(netns, Owner::Unknown { .. }) {
                accounts.foreign_netns += count.packets;
                continue;
            }
            accounts.attributed += count.packets;
            groups.push(LibraryGroup {
                netns,
                call: if key.kind == LOOKUP { LibraryCall::Lookup } else { LibraryCall::Handshake },
                name: key.name.to_string(),
                result: key.result,
                times: count.packets,
                total_us: count.bytes,
                first_at: at(count.first_ns),
                last_at: at(count.last_ns),
            });
        }
        groups.sort_by(|a, b| {
            let order = |group: &LibraryGroup| (Reverse(group.times), group.call, group.result);
            (order(a), &a.netns, &a.name).cmp(&(order(b), &b.netns, &b.name))
        });
        let omitted_groups = groups.len().saturating_sub(ANSWER_GROUPS) as u64;
        groups.truncate(ANSWER_GROUPS);
        let since = at(start_ns);
        let window_s = now.duration_since(since).as_secs_f64().max(0.0);
        Libraries { since, window_s, accounts, groups, omitted_groups, files: Vec::new(), omitted_files: 0 }
    }
}

impl Counted {
    fn with_room(keys: usize) -> Self {
        Self { keys: Tally::new(keys), total: 0, forgotten: 0, losses: [0; LOSSES as usize], unfinished: 0 }
    }

    fn add(&mut self, ended: &Ended) {
        if !matches!(ended.kind, LOOKUP | HANDSHAKE) {
            return;
        }
        let name = ended.name.split(|byte| *byte == 0).next().unwrap_or_default();
        let key = Key {
            netns: ended.netns,
            kind: ended.kind,
            result: ended.result,
            name: String::from_utf8_lossy(name).into(),
        };
        let (first_ns, last_ns) = (ended.at_ns, ended.at_ns);
        self.total += 1;
        if !self.keys.add(key, Count { packets: 1, bytes: ended.duration_ns / 1_000, first_ns, last_ns }) {
            self.forgotten += 1;
        }
    }
}

impl Fold for Counted {
    fn hourly() -> Self {
        Self::with_room(HOUR_KEYS)
    }

    fn fold(&mut self, later: Self) {
        self.total += later.total;
        self.unfinished += later.unfinished;
        self.losses.iter_mut().zip(later.losses).for_each(|(sum, lost)| *sum += lost);
        let forgotten: u64 = self.keys.absorb(later.keys).iter().map(|(_, count)| count.packets).sum();
        self.forgotten += later.forgotten + forgotten;
    }
}

/// Removes calls that have no end; how many.
fn sweep<K: aya::Pod>(calls: &mut KernelHashMap<MapData, K, Entry>, now_ns: u64) -> u64 {
    let is_old = |entry: &Entry| now_ns.saturating_sub(entry.0.last_ns) > UNFINISHED_NS;
    let old: Vec<K> = calls.iter().flatten().filter(|(_, entry)| is_old(entry)).map(|(key, _)| key).collect();
    old.iter().filter(|key| calls.remove(key).is_ok()).count() as u64
}

/// None when it is of another size.
fn decode(bytes: &[u8]) -> Option<Ended> {
    if bytes.len() < size_of::<Ended>() {
        return None;
    }
    // SAFETY: long enough, and every bit pattern is an `Ended`, which holds integers only.
    Some(unsafe { bytes.as_ptr().cast::<Ended>().read_unaligned() })
}
