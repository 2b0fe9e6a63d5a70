//! The observation made of what was counted: the terms that add up, and connections by service.

use std::collections::HashMap;
use std::net::SocketAddr;

use jiff::Timestamp;
use netdiag_common::observation::Owner;
use netdiag_common::observation::histogram::Histogram;
use netdiag_common::observation::tcp::{Broken, ConnectResult, Outcome, Side, TcpAccounts, TcpGroup};
use netdiag_common::record::event::NO_MEASURE;
use netdiag_common::record::tcp as record;
use netdiag_common::record::tcp::Attempt;

use crate::kernel::event::{Clock, Key, Sum, View, address};
use crate::window::Count;

/// How much the number of attempts under way changed.
pub(super) fn difference(sum: &Sum) -> i64 {
    sum.of(record::TRACKED).cast_signed() - sum.of(record::RELEASED).cast_signed()
}

pub(super) fn accounts(view: &View, open: i64, gave_up: u64) -> TcpAccounts {
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
pub(super) fn of_sum(sum: &Sum, open: i64, gave_up: u64) -> TcpAccounts {
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
pub(super) struct Groups {
    clock: Clock,
    by_service: HashMap<(Owner, Option<SocketAddr>, Side), TcpGroup>,
}

impl Groups {
    pub(super) fn new(clock: Clock) -> Self {
        Self { clock, by_service: HashMap::new() }
    }

    pub(super) fn add(&mut self, owner: &Owner, key: &Key, count: &Count) {
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
    pub(super) fn open(&mut self, owner: Owner, attempt: &Attempt) {
        let at = self.clock.at(attempt.start_ns);
        let service = SocketAddr::new(address(attempt.address, attempt.version), attempt.port);
        let group = self.group(owner, Some(service), Side::Client, at, at);
        group.open += 1;
        group.oldest_open_at = Some(group.oldest_open_at.map_or(at, |oldest| oldest.min(at)));
    }

    /// Those first in which most failed or waits.
    pub(super) fn sorted(self) -> Vec<TcpGroup> {
        let mut groups = self.by_service.into_values().collect::<Vec<TcpGroup>>();
        groups.sort_by(|a, b| {
            let weight = |group: &TcpGroup| (group.failed() + group.open, group.connects + group.accepted);
            weight(b).cmp(&weight(a)).then_with(|| (&a.netns, a.service, a.side).cmp(&(&b.netns, b.service, b.side)))
        });
        groups
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
