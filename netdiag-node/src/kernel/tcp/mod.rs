//! TCP connections, from the hooks `inet_sock_set_state` and `tcp_retransmit_*`.

mod report;

use aya::maps::{HashMap as KernelHashMap, MapData};
use jiff::Timestamp;
use netdiag_common::Window;
use netdiag_common::observation::Owner;
use netdiag_common::observation::preflight::Check;
use netdiag_common::observation::tcp::Tcp;
use netdiag_common::record::event::NO_MEASURE;
use netdiag_common::record::tcp as record;
use netdiag_common::record::tcp::Attempt;

use super::btf::Btf;
use super::event::{EventSize, Events, Hook, Names, Planned, monotonic_ns, names};
use super::failure::failed;
use super::object::{Object, Way};
use super::plan::Plan;
use super::{LoadError, layout};
use crate::metrics::{Export, Families, Times, catalogue};
use report::{Groups, accounts, difference, of_sum};

/// The most attempts that are followed at a time. A node that begins 200 a second towards a black hole, each for 127 s, has
/// 25 000.
const MAX_ATTEMPTS: u32 = 32_768;
/// With the kernel's own part of an entry (`struct htab_elem`, and its share of buckets).
const ATTEMPT_BYTES: usize = size_of::<Attempt>() + 72;
/// Looked at in one harvest or observation: a call to the kernel each.
const MAX_SCANNED: usize = 16_384;
/// Older attempts are no longer followed: their end was missed. The kernel itself gives up after 127 s.
const LOST_AFTER_NS: u64 = 600 * 1_000_000_000;

/// Groups in one observation: some 100 KiB of JSON.
const ANSWER_GROUPS: usize = 300;

pub(super) static NAMES: Names = names!("TCP");

pub(super) static HOOKS: [Hook; 3] = [
    Hook {
        tracepoint: "inet_sock_set_state",
        ways: ways!("inet_sock_set_state", "netdiag_tcp_state", "netdiag_tcp_state_raw"),
        lost: "how attempts to connect end, how long they take, which connections break",
    },
    Hook {
        tracepoint: "tcp_retransmit_skb",
        ways: ways!("tcp_retransmit_skb", "netdiag_tcp_resend", "netdiag_tcp_resend_raw"),
        lost: "SYNs and segments sent again, by service",
    },
    Hook {
        tracepoint: "tcp_retransmit_synack",
        ways: ways!("tcp_retransmit_synack", "netdiag_tcp_synack", "netdiag_tcp_synack_raw"),
        lost: "SYN-ACKs sent again, by listener",
    },
];

/// An [`Attempt`] as a value of the kernel's table.
#[repr(transparent)]
#[derive(Clone, Copy)]
struct Entry(Attempt);

// SAFETY: integers only, padding spelled out.
unsafe impl aya::Pod for Entry {}

/// How much is kept of connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TcpSize {
    pub events: EventSize,
    /// Attempts to connect that are followed at a time.
    pub attempts: u32,
}

pub(super) fn attempts_within(budget_bytes: usize) -> u32 {
    let fit = u32::try_from(budget_bytes / ATTEMPT_BYTES).unwrap_or(u32::MAX);
    fit.clamp(64, MAX_ATTEMPTS)
}

/// The running programs and what they counted.
pub struct KernelTcp {
    events: Events,
    attempts: KernelHashMap<MapData, u64, Entry>,
    /// Attempts under way at the last harvest. Below 0 when an end was harvested before its beginning, which another CPU
    /// counted in the next half.
    open: i64,
    /// When this agent gave up attempts, monotonic, and how many.
    lost: Vec<(Timestamp, u64)>,
    /// The same since the start.
    all_lost: u64,
    /// Of attempts that succeeded, since the start.
    handshakes: Times,
}

impl KernelTcp {
    pub(super) fn plan(btf: &Btf<'_>, size: TcpSize, plan: &mut Plan) -> Result<Planned, LoadError> {
        layout::socket(btf, plan)?;
        let arguments = btf.tracepoint_arguments("tcp_retransmit_skb").unwrap_or_default();
        plan.set("HAS_RETRANSMIT_ERROR", u32::from(arguments.len() > 2));
        plan.size("TCP_ATTEMPTS", size.attempts);
        Ok(Events::plan(btf, &NAMES, &HOOKS, size.events, plan))
    }

    pub(super) fn attach(object: &Object, planned: Planned) -> Result<Self, LoadError> {
        let attempts = object.take("TCP_ATTEMPTS")?;
        let attempts =
            KernelHashMap::try_from(attempts).map_err(|error| failed("open the table of attempts", &error))?;
        let events = Events::attach(object, planned)?;
        Ok(Self { events, attempts, open: 0, lost: Vec::new(), all_lost: 0, handshakes: Times::default() })
    }

    pub fn checks(&self) -> Vec<Check> {
        self.events.checks()
    }

    /// Takes what the kernel counted since the last harvest. Blocks for 10 to 20 ms.
    pub fn harvest(&mut self, now: Timestamp) {
        let handshakes = &mut self.handshakes;
        let sum = self.events.harvest_with(now, |key, count| {
            // What is counted without its time is in the sums alone.
            if key.kind == record::SUCCEEDED && key.measure != NO_MEASURE {
                handshakes.add(key.measure, count.packets, count.bytes);
            }
        });
        self.open += difference(&sum);
        let gave_up = self.give_up_old();
        if gave_up > 0 {
            self.open -= gave_up.cast_signed();
            self.lost.push((now, gave_up));
            self.all_lost += gave_up;
        }
        let hour_ago = now.saturating_sub(jiff::SignedDuration::from_mins(70)).unwrap_or(now);
        self.lost.retain(|(at, _)| *at >= hour_ago);
    }

    /// What was harvested in the window. `resolve` says whose namespace a number is.
    pub fn observe(&self, now: Timestamp, window: Window, resolve: &dyn Fn(u64) -> Owner) -> Tcp {
        let view = self.events.view(now, window, resolve);
        let gave_up = self.lost.iter().filter(|(at, _)| *at > view.since).map(|(_, count)| count).sum();
        let accounts = accounts(&view, self.open, gave_up);
        let mut groups = Groups::new(view.clock);
        for (owner, key, count) in &view.keys {
            groups.add(owner, key, count);
        }
        for attempt in self.under_way() {
            let owner = resolve(attempt.netns);
            if !matches!(owner, Owner::Unknown { .. }) {
                groups.open(owner, &attempt);
            }
        }
        let mut groups = groups.sorted();
        let omitted_groups = groups.len().saturating_sub(ANSWER_GROUPS) as u64;
        groups.truncate(ANSWER_GROUPS);
        Tcp {
            since: view.since,
            window_s: view.window_s,
            accounts,
            groups,
            omitted_groups,
            unseen: self.events.unseen(),
        }
    }

    fn under_way(&self) -> impl Iterator<Item = Attempt> {
        self.attempts.iter().take(MAX_SCANNED).filter_map(Result::ok).map(|(_, entry)| entry.0)
    }

    /// Removes attempts whose end was missed; how many.
    fn give_up_old(&mut self) -> u64 {
        if self.open <= 0 {
            return 0;
        }
        let before = monotonic_ns().saturating_sub(LOST_AFTER_NS);
        let entries = self.attempts.iter().take(MAX_SCANNED).filter_map(Result::ok);
        let old: Vec<u64> = entries.filter(|(_, entry)| entry.0.start_ns < before).map(|(socket, _)| socket).collect();
        // One that ended meanwhile is not ours to remove.
        old.into_iter().filter(|socket| self.attempts.remove(socket).is_ok()).count() as u64
    }
}

impl Export for KernelTcp {
    fn export(&self, into: &mut Families) {
        let all = self.events.since_start();
        let accounts = of_sum(&all.sum, self.open, self.all_lost);
        into.add(&catalogue::TCP_CONNECTS, &[], accounts.connects);
        into.add(&catalogue::TCP_CONNECTS_UNMATCHED, &[], accounts.unmatched);
        into.add(&catalogue::TCP_CONNECTS_OPEN, &[], accounts.open);
        for (result, attempts) in [
            ("established", accounts.established),
            ("refused", accounts.refused),
            ("timed_out", accounts.timed_out),
            ("reset", accounts.reset),
            ("unreachable", accounts.unreachable),
            ("abandoned", accounts.abandoned),
            ("no_port", accounts.no_port),
            ("other", accounts.other),
            ("untracked", accounts.untracked),
            ("lost", accounts.lost),
        ] {
            into.add(&catalogue::TCP_CONNECT_RESULTS, &[result], attempts);
        }
        into.add(&catalogue::TCP_HANDSHAKE, &[], self.handshakes);
        into.add(&catalogue::TCP_ACCEPTED, &[], accounts.accepted);
        into.add(&catalogue::TCP_BROKEN, &[], accounts.broken);
        for (segment, sent_again) in [
            ("syn", accounts.syn_retransmits),
            ("syn_ack", accounts.synack_retransmits),
            ("established", accounts.retransmits),
        ] {
            into.add(&catalogue::TCP_RETRANSMITS, &[segment], sent_again);
        }
        let lost =
            [("program_busy", all.missed), ("group_full", accounts.total_only), ("group_forgotten", all.forgotten)];
        for (cause, events) in lost {
            into.add(&catalogue::LOST_EVENTS, &["tcp", cause], events);
        }
    }
}
