//! TCP connections, from the hooks `inet_sock_set_state` and `tcp_retransmit_*`.

use std::collections::HashMap;
use std::net::SocketAddr;

use aya::maps::{HashMap as KernelHashMap, MapData};
use jiff::Timestamp;
use netdiag_common::Window;
use netdiag_common::observation::Owner;
use netdiag_common::observation::histogram::Histogram;
use netdiag_common::observation::preflight::Check;
use netdiag_common::observation::tcp::{Broken, ConnectResult, Outcome, Side, Tcp, TcpAccounts, TcpGroup};
use netdiag_common::record::event::NO_MEASURE;
use netdiag_common::record::tcp as record;
use netdiag_common::record::tcp::Attempt;

use super::btf::Btf;
use super::event::{Clock, EventSize, Events, Hook, Key, Names, Planned, Sum, View, address, monotonic_ns, names};
use super::failure::failed;
use super::object::{Object, Way};
use super::plan::Plan;
use super::{LoadError, layout};
use crate::metrics::{Export, Families, Times, catalogue};
use crate::window::Count;

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
        let mut groups = Groups { clock: view.clock, by_service: HashMap::new() };
        for (owner, key, count) in &view.keys {
            groups.add(owner, key, count);
        }
        for attempt in self.under_way() {
            let owner = resolve(attempt.netns);
            if !matches!(owner, Owner::Unknown { .. }) {
                groups.open(owner, &attempt);
            }
        }
        let mut groups = groups.by_service.into_values().collect::<Vec<TcpGroup>>();
        groups.sort_by(|a, b| {
            let weight = |group: &TcpGroup| (group.failed() + group.open, group.connects + group.accepted);
            weight(b).cmp(&weight(a)).then_with(|| (&a.netns, a.service, a.side).cmp(&(&b.netns, b.service, b.side)))
        });
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

/// How much the number of attempts under way changed.
fn difference(sum: &Sum) -> i64 {
    sum.of(record::TRACKED).cast_signed() - sum.of(record::RELEASED).cast_signed()
}

fn accounts(view: &View, open: i64, gave_up: u64) -> TcpAccounts {
    let open_before = open - difference(&view.sum) + gave_up.cast_signed();
    TcpAccounts {
        open_before: u64::try_from(open_before).unwrap_or(0),
        foreign_netns: view.foreign,
        missed: view.missed,
        forgotten: view.forgotten,
        ..of_sum(&view.sum, open, gave_up)
    }
}

/// The terms that the sums say.
fn of_sum(sum: &Sum, open: i64, gave_up: u64) -> TcpAccounts {
    let mut accounts = TcpAccounts {
        connects: sum.of(record::BEGUN),
        unmatched: sum.of(record::UNMATCHED),
        established: sum.of(record::SUCCEEDED),
        untracked: sum.of(record::UNTRACKED),
        lost: sum.of(record::REPLACED) + gave_up,
        open: u64::try_from(open).unwrap_or(0),
        accepted: sum.of(record::ACCEPTED),
        broken: sum.of(record::BROKEN),
        syn_retransmits: sum.of(record::SYN_RETRANSMIT),
        synack_retransmits: sum.of(record::SYNACK_RETRANSMIT),
        retransmits: sum.of(record::RETRANSMIT),
        attributed: sum.attributed,
        coarse: sum.coarse,
        total_only: sum.total_only,
        ..TcpAccounts::default()
    };
    for (errno, count) in &sum.by_errno {
        let term = match failure(*errno) {
            Outcome::Refused => &mut accounts.refused,
            Outcome::TimedOut => &mut accounts.timed_out,
            Outcome::Reset => &mut accounts.reset,
            Outcome::Unreachable => &mut accounts.unreachable,
            Outcome::Abandoned => &mut accounts.abandoned,
            Outcome::NoPort => &mut accounts.no_port,
            Outcome::Established | Outcome::Other => &mut accounts.other,
        };
        *term += count;
    }
    accounts
}

/// What an error number says about a connection that is no more.
fn failure(errno: u32) -> Outcome {
    let errno = errno.cast_signed();
    match errno {
        0 => Outcome::Abandoned,
        libc::ECONNREFUSED => Outcome::Refused,
        libc::ETIMEDOUT => Outcome::TimedOut,
        libc::ECONNRESET | libc::EPIPE => Outcome::Reset,
        // What `icmp_err_convert` and `icmpv6_err_convert()` make of ICMP errors, and a link that is down.
        libc::EHOSTUNREACH
        | libc::ENETUNREACH
        | libc::EHOSTDOWN
        | libc::ENETDOWN
        | libc::ENONET
        | libc::ENOPROTOOPT
        | libc::EACCES => Outcome::Unreachable,
        libc::EADDRNOTAVAIL => Outcome::NoPort,
        _ => Outcome::Other,
    }
}

/// Groups while they are put together.
struct Groups {
    clock: Clock,
    by_service: HashMap<(Owner, Option<SocketAddr>, Side), TcpGroup>,
}

impl Groups {
    fn add(&mut self, owner: &Owner, key: &Key, count: &Count) {
        let (first_at, last_at) = (self.clock.at(count.first_ns), self.clock.at(count.last_ns));
        let service = key.ends.map(|ends| SocketAddr::new(ends.destination, ends.port));
        let side = if key.flags & record::FLAG_CLIENT == 0 { Side::Server } else { Side::Client };
        let group = self.group(owner.clone(), service, side, first_at, last_at);
        let (events, us) = (count.packets, count.bytes);
        match key.kind {
            record::BEGUN => group.connects += events,
            record::SUCCEEDED => result(group, Outcome::Established, 0, key.measure, events, us),
            record::FAILED => {
                result(group, failure(key.detail), key.detail.cast_signed(), key.measure, events, us);
            }
            record::ACCEPTED => group.accepted += events,
            record::BROKEN => {
                let errno = key.detail.cast_signed();
                match group.broken.iter_mut().find(|broken| broken.errno == errno) {
                    Some(broken) => broken.count += events,
                    None => group.broken.push(Broken { outcome: failure(key.detail), errno, count: events }),
                }
            }
            record::SYN_RETRANSMIT => group.syn_retransmits += events,
            record::SYNACK_RETRANSMIT => group.synack_retransmits += events,
            record::RETRANSMIT => group.retransmits += events,
            record::ROUND_TRIP => group.round_trip.add(below_us(key.measure), events, us),
            // A kind of a newer program: its events are in the sums.
            _ => {}
        }
    }

    /// Adds an attempt that is under way.
    fn open(&mut self, owner: Owner, attempt: &Attempt) {
        let at = self.clock.at(attempt.start_ns);
        let service = SocketAddr::new(address(attempt.address, attempt.version), attempt.port);
        let group = self.group(owner, Some(service), Side::Client, at, at);
        group.open += 1;
        group.oldest_open_at = Some(group.oldest_open_at.map_or(at, |oldest| oldest.min(at)));
    }

    fn group(
        &mut self,
        netns: Owner,
        service: Option<SocketAddr>,
        side: Side,
        first_at: Timestamp,
        last_at: Timestamp,
    ) -> &mut TcpGroup {
        let group = self.by_service.entry((netns.clone(), service, side)).or_insert_with(|| TcpGroup {
            netns,
            service,
            side,
            connects: 0,
            open: 0,
            oldest_open_at: None,
            results: Vec::new(),
            accepted: 0,
            syn_retransmits: 0,
            synack_retransmits: 0,
            retransmits: 0,
            broken: Vec::new(),
            round_trip: Histogram::default(),
            first_at,
            last_at,
        });
        group.first_at = group.first_at.min(first_at);
        group.last_at = group.last_at.max(last_at);
        group
    }
}

fn result(group: &mut TcpGroup, outcome: Outcome, errno: i32, measure: u8, events: u64, us: u64) {
    let same = |result: &&mut ConnectResult| result.outcome == outcome && result.errno == errno;
    let at = match group.results.iter_mut().find(same) {
        Some(result) => result,
        None => {
            group.results.push(ConnectResult { outcome, errno, time: Histogram::default() });
            group.results.last_mut().expect("just pushed")
        }
    };
    at.time.add(below_us(measure), events, us);
}

/// End of the bucket of a measure; what was not measured is in one without end.
fn below_us(measure: u8) -> u64 {
    match measure {
        NO_MEASURE => u64::MAX,
        bits => 1_u64.checked_shl(u32::from(bits)).unwrap_or(u64::MAX),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_mean_what_the_kernel_means() {
        for (errno, outcome) in [
            (0, Outcome::Abandoned),
            (111, Outcome::Refused),
            (110, Outcome::TimedOut),
            (113, Outcome::Unreachable),
            (101, Outcome::Unreachable),
            (104, Outcome::Reset),
            (99, Outcome::NoPort),
            (12, Outcome::Other),
        ] {
            assert_eq!(failure(errno), outcome, "errno {errno}");
        }
    }

    #[test]
    fn buckets_end_behind_what_they_hold() {
        assert_eq!((below_us(0), below_us(1), below_us(10)), (1, 2, 1024));
        assert_eq!((below_us(64), below_us(NO_MEASURE)), (u64::MAX, u64::MAX));
    }
}
