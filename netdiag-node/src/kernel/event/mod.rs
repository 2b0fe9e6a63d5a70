//! One subject's events over time: attaches its hooks, harvests its tables, and answers for a stretch of time.
//!
//! A harvest flips the epoch, waits until no program writes the half that was left, sums and clears it. What it takes is
//! exact while events keep coming.

mod counted;
mod key;
mod tables;

use std::collections::HashMap;

use jiff::{SignedDuration, Timestamp};
use netdiag_common::observation::Owner;
use netdiag_common::observation::preflight::Check;
use netdiag_common::{Gap, Window};

use super::LoadError;
use super::btf::Btf;
use super::object::{Attached, Object, Running, Way};
use super::plan::Plan;
use crate::window::{Count, History};
use counted::Counted;
pub(super) use key::{Key, address};
pub use tables::EventSize;
use tables::Tables;
pub(super) use tables::{Names, Sum, names};

const SECOND_NS: u64 = 1_000_000_000;

/// A hook: how to attach it, and what cannot be seen without it.
pub(super) struct Hook {
    pub(super) tracepoint: &'static str,
    pub(super) ways: [Way; 2],
    pub(super) lost: &'static str,
}

/// The running programs of one subject and what they counted in the last hour.
pub(super) struct Events {
    tables: Tables,
    hooks: Vec<(&'static Hook, Result<Attached, LoadError>)>,
    history: History<Counted>,
    /// Monotonic clock of the last harvest's end.
    harvested_ns: u64,
    /// The moment when it began.
    clock: Option<Clock>,
    /// Events that the kernel had skipped by then.
    missed: u64,
    #[cfg_attr(not(feature = "debug"), expect(dead_code, reason = "what it is for is to be kept"))]
    running: Running,
}

/// What the plan said, until the hooks are attached.
pub(super) struct Planned {
    names: &'static Names,
    size: EventSize,
    hooks: Vec<(&'static Hook, Result<(), LoadError>)>,
}

/// What was counted in a stretch of time.
pub(super) struct View {
    pub(super) since: Timestamp,
    pub(super) window_s: f64,
    pub(super) sum: Sum,
    pub(super) missed: u64,
    pub(super) forgotten: u64,
    /// Events in namespaces that are not this node's, taken out of `keys` and of the sum's `attributed` and `coarse`.
    pub(super) foreign: u64,
    pub(super) keys: Vec<(Owner, Key, Count)>,
    pub(super) clock: Clock,
}

/// What was counted since the agent's start.
pub(super) struct SinceStart {
    pub(super) sum: Sum,
    pub(super) missed: u64,
    pub(super) forgotten: u64,
}

/// One moment on both clocks.
#[derive(Debug, Clone, Copy)]
pub(super) struct Clock {
    wall: Timestamp,
    monotonic_ns: u64,
}

impl Clock {
    pub(super) fn at(self, ns: u64) -> Timestamp {
        let past = self.monotonic_ns.cast_signed().saturating_sub(ns.cast_signed());
        self.wall.checked_sub(SignedDuration::from_nanos(past)).unwrap_or(self.wall)
    }
}

impl Events {
    /// The subject's part of the plan. A hook whose tracepoint this kernel lacks does not keep the others from running.
    pub(super) fn plan(
        btf: &Btf<'_>,
        names: &'static Names,
        hooks: &'static [Hook],
        size: EventSize,
        plan: &mut Plan,
    ) -> Planned {
        tables::plan(names, size, plan);
        let present = |hook: &'static Hook| match btf.tracepoint_arguments(hook.tracepoint) {
            Some(_) => Ok(()),
            None => Err(LoadError::NoTracepoint { tracepoint: hook.tracepoint }),
        };
        Planned { names, size, hooks: hooks.iter().map(|hook| (hook, present(hook))).collect() }
    }

    /// Attaches what can be attached; an error when that is nothing.
    pub(super) fn attach(object: &Object, planned: Planned) -> Result<Self, LoadError> {
        let tables = Tables::open(object, planned.names, planned.size)?;
        let attach = |hook: &Hook| object.attach(&format!("tracepoint {}", hook.tracepoint), &hook.ways);
        let hooks: Vec<_> =
            planned.hooks.into_iter().map(|(hook, present)| (hook, present.and_then(|()| attach(hook)))).collect();
        if let Some((_, Err(error))) = hooks.first()
            && hooks.iter().all(|(_, attached)| attached.is_err())
        {
            return Err(error.clone());
        }
        Ok(Self {
            tables,
            hooks,
            history: History::default(),
            harvested_ns: monotonic_ns(),
            clock: None,
            missed: 0,
            running: object.running(),
        })
    }

    /// The preflight's lines about the hooks.
    pub(super) fn checks(&self) -> Vec<Check> {
        let line = |(hook, attached): &(&Hook, Result<Attached, LoadError>)| {
            super::check(hook.tracepoint, hook.lost, attached.as_ref().map(|attached| attached.tier))
        };
        self.hooks.iter().map(line).collect()
    }

    /// What the hooks that do not run would have shown.
    pub(super) fn unseen(&self) -> Vec<Gap> {
        let gap = |(hook, attached): &(&Hook, Result<Attached, LoadError>)| {
            let error = attached.as_ref().err()?;
            Some(Gap {
                what: hook.lost.to_owned(),
                node: None,
                reason: error.gap_reason(),
                why: error.to_string(),
                remedy: error.remedy().to_owned(),
            })
        };
        self.hooks.iter().filter_map(gap).collect()
    }

    /// Takes what was counted since the last harvest into the history; what it took. Blocks for 10 to 20 ms.
    pub(super) fn harvest(&mut self, now: Timestamp) -> Sum {
        self.harvest_with(now, |_, _| {})
    }

    /// The same; shows what it took by key, before keys that find no room are forgotten.
    pub(super) fn harvest_with(&mut self, now: Timestamp, mut look: impl FnMut(&Key, &Count)) -> Sum {
        self.clock = Some(Clock { wall: now, monotonic_ns: monotonic_ns() });
        let (sum, mut keys) = self.tables.take();
        let now_ns = monotonic_ns();
        let missed = self.tables.nested() + self.hooks.iter().map(|(_, attached)| misses(attached)).sum::<u64>();
        let slot = self.history.slot(self.harvested_ns, now_ns, Counted::recent);
        slot.missed += missed.saturating_sub(self.missed);
        slot.sum.add(&sum);
        // Largest first: when the slot is full, the smallest lose their ends.
        keys.sort_by_key(|(_, count)| std::cmp::Reverse(count.packets));
        for (key, count) in keys {
            look(&key, &count);
            slot.add(key, count);
        }
        self.missed = missed;
        self.harvested_ns = now_ns;
        #[cfg(feature = "debug")]
        self.running.print_log();
        sum
    }

    /// Notes events that the last harvest should have had.
    pub(super) fn miss(&mut self, events: u64) {
        let at_ns = self.harvested_ns;
        self.history.slot(at_ns, at_ns, Counted::recent).missed += events;
    }

    /// All events since the start, those missed, and those whose key was forgotten.
    pub(super) fn since_start(&self) -> SinceStart {
        let mut all = SinceStart { sum: Sum::default(), missed: 0, forgotten: 0 };
        for counted in self.history.since_start() {
            all.sum.add(&counted.sum);
            all.missed += counted.missed;
            all.forgotten += counted.forgotten;
        }
        all
    }

    /// What was harvested in the window. `resolve` says whose namespace a number is: on a kernel shared by several nodes the
    /// others' are unknown, and their events become one number.
    pub(super) fn view(&self, now: Timestamp, window: Window, resolve: &dyn Fn(u64) -> Owner) -> View {
        let clock = self.clock.unwrap_or(Clock { wall: now, monotonic_ns: self.harvested_ns });
        let mut view = View {
            since: clock.wall,
            window_s: 0.0,
            sum: Sum::default(),
            missed: 0,
            forgotten: 0,
            foreign: 0,
            keys: Vec::new(),
            clock,
        };
        let mut totals: HashMap<Key, Count> = HashMap::new();
        let mut start_ns = None;
        for slot in self.history.view(window.seconds() * SECOND_NS) {
            start_ns = start_ns.or(Some(slot.start_ns));
            view.sum.add(&slot.value.sum);
            view.missed += slot.value.missed;
            view.forgotten += slot.value.forgotten;
            for (key, count) in slot.value.keys() {
                totals.entry(*key).or_default().add(*count);
            }
        }
        view.since = clock.at(start_ns.unwrap_or(self.harvested_ns));
        view.window_s = now.duration_since(view.since).as_secs_f64().max(0.0);
        let mut owners: HashMap<u64, Owner> = HashMap::new();
        for (key, count) in totals {
            let owner = owners.entry(key.netns).or_insert_with(|| match key.netns {
                // No namespace at all: nobody can say whose it is, so it is kept and named as such.
                0 => Owner::Unknown { id: 0 },
                number => resolve(number),
            });
            if key.netns != 0 && matches!(owner, Owner::Unknown { .. }) {
                view.foreign += count.packets;
                let counted_as = if key.coarse { &mut view.sum.coarse } else { &mut view.sum.attributed };
                // If a counter lied, the identity says so; nothing here may panic over it.
                *counted_as = counted_as.saturating_sub(count.packets);
            } else {
                view.keys.push((owner.clone(), key, count));
            }
        }
        view
    }
}

fn misses(attached: &Result<Attached, LoadError>) -> u64 {
    attached.as_ref().map_or(0, Attached::recursion_misses)
}

/// The clock of the kernel's records (`bpf_ktime_get_ns`).
pub(super) fn monotonic_ns() -> u64 {
    let now = nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC).expect("Linux has a monotonic clock");
    now.tv_sec().cast_unsigned() * SECOND_NS + now.tv_nsec().cast_unsigned()
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};
    use std::os::fd::{FromRawFd as _, OwnedFd};

    use super::*;
    use crate::kernel::{
        KernelNeighbours, KernelRejects, KernelTcp, KernelUdp, TcpSize, btf, neighbour, reject, tcp, udp,
    };
    use netdiag_common::record;

    const SIZE: EventSize = EventSize { ipv4: 64, ipv6: 16 };

    /// What this kernel has: all subjects' tables, hooks whose tracepoint exists, and whether `tcp_send_reset` sees answers to
    /// packets without a socket (Linux 6.10).
    struct Loaded {
        object: Object,
        hooks: Vec<&'static Hook>,
        sees_answers: bool,
    }

    /// None, said loudly, where nothing can be loaded.
    fn loaded(test: &str) -> Option<Loaded> {
        let bytes = crate::host::kernel::btf().map_err(|error| eprintln!("netdiag-skip: {test}: {error}")).ok()?;
        let btf = btf::parse(&bytes).unwrap();
        let mut plan = Plan::for_this_machine();
        KernelTcp::plan(&btf, TcpSize { events: SIZE, attempts: 64 }, &mut plan).unwrap();
        KernelRejects::plan(&btf, SIZE, &mut plan).unwrap();
        KernelUdp::plan(&btf, SIZE, &mut plan).unwrap();
        KernelNeighbours::plan(&btf, SIZE, &mut plan).unwrap();
        match Object::create(&plan) {
            Ok(object) => {
                let all = tcp::HOOKS.iter().chain(&reject::HOOKS).chain(&udp::HOOKS).chain(&neighbour::HOOKS);
                let hooks = all.filter(|hook| btf.tracepoint_arguments(hook.tracepoint).is_some()).collect();
                let arguments = btf.tracepoint_arguments("tcp_send_reset").unwrap_or_default();
                Some(Loaded { object, hooks, sees_answers: arguments.len() > 2 })
            }
            Err(error @ (LoadError::NotBuilt | LoadError::NotPermitted { .. })) => {
                eprintln!("netdiag-skip: {test}: {error}");
                None
            }
            Err(error) => panic!("{error}"),
        }
    }

    #[test]
    fn raw_tracepoints_count_as_well() {
        let Some(Loaded { object, hooks, sees_answers }) = loaded("raw_tracepoints_count_as_well") else { return };
        let attached: Vec<Attached> =
            hooks.iter().map(|hook| object.attach(hook.tracepoint, &hook.ways[1..]).unwrap()).collect();
        assert!(attached.iter().all(|attached| attached.tier == "raw_tracepoint"));
        let mut of_tcp = Tables::open(&object, &tcp::NAMES, SIZE).unwrap();
        let mut of_rejects = Tables::open(&object, &reject::NAMES, SIZE).unwrap();
        let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        for _ in 0..10 {
            assert!(TcpStream::connect(closed).is_err());
        }
        let (sum, keys) = of_tcp.take();
        assert!(sum.of(record::tcp::BEGUN) >= 10 && sum.of(record::tcp::FAILED) >= 10, "{sum:?}");
        let refused = |(key, _): &&(Key, Count)| {
            (key.kind, key.detail) == (record::tcp::FAILED, 111)
                && key.ends.is_some_and(|ends| (ends.destination, ends.port) == (closed.ip(), closed.port()))
        };
        assert_eq!(keys.iter().filter(refused).map(|(_, count)| count.packets).sum::<u64>(), 10);
        let (sum, _) = of_rejects.take();
        assert!(sum.of(record::reject::RESET_RECEIVED) >= 10, "{sum:?}");
        assert!(!sees_answers || sum.of(record::reject::RESET_SENT) >= 10, "{sum:?}");
    }

    /// Prints what each hook costs a connection; the kernel's own accounting is part of each number (some 50 ns).
    #[test]
    fn hooks_cost_a_connection_little() {
        const CONNECTIONS: u64 = 2000;
        let Some(Loaded { object, hooks, .. }) = loaded("hooks_cost_a_connection_little") else { return };
        let attached: Vec<(&str, Attached)> =
            hooks.iter().map(|hook| (hook.tracepoint, object.attach(hook.tracepoint, &hook.ways).unwrap())).collect();
        let Some(counted) = run_statistics() else {
            return eprintln!("netdiag-skip: hooks_cost_a_connection_little: BPF_ENABLE_STATS is refused");
        };
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        for _ in 0..CONNECTIONS {
            let near = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            let (far, _) = listener.accept().unwrap();
            drop((near, far));
        }
        let mut total_ns = 0;
        for (tracepoint, attached) in &attached {
            let info = attached.info().unwrap();
            total_ns += info.run_time_ns;
            if let Some(each_ns) = info.run_time_ns.checked_div(info.runs) {
                eprintln!("{tracepoint}: {each_ns} ns each, {} runs", info.runs);
            }
        }
        let each_ns = total_ns / CONNECTIONS;
        eprintln!("{each_ns} ns for a connection, both ends");
        // An emulated kernel takes a hundred times as long, a busy machine interrupts: this only finds what is absurd.
        assert!(each_ns < 1_000_000, "{each_ns} ns");
        drop(counted);
    }

    /// The kernel measures all programs while this is open. `BPF_ENABLE_STATS`, Linux 5.8.
    fn run_statistics() -> Option<OwnedFd> {
        const BPF_ENABLE_STATS: libc::c_int = 32;
        let run_time: u32 = 0;
        // SAFETY: the kernel reads the four bytes of the request.
        let fd = unsafe { libc::syscall(libc::SYS_bpf, BPF_ENABLE_STATS, &raw const run_time, size_of_val(&run_time)) };
        let fd = i32::try_from(fd).ok().filter(|fd| *fd >= 0)?;
        // SAFETY: a descriptor that the kernel just made for us.
        Some(unsafe { OwnedFd::from_raw_fd(fd) })
    }
}
