//! Which datagrams were answered, when, and in which order.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use netdiag_common::observation::series::UdpReport;

use crate::probe::series::schedule::micros;

/// The datagrams of one attempt.
pub(super) struct Count {
    sent_at: Vec<Instant>,
    trips: Vec<Option<Duration>>,
    answered: u32,
    /// One past the newest datagram that was answered.
    newest: usize,
    reordered: u32,
    doubled: u32,
    strange: u32,
    answered_by: Option<SocketAddr>,
    last_trip: Option<Duration>,
    last_answer: Option<Instant>,
    /// Nanoseconds times 16, as RFC 3550 A.8 keeps it.
    jitter_16ns: u128,
}

impl Count {
    pub(super) fn new(datagrams: usize) -> Self {
        Self {
            sent_at: Vec::with_capacity(datagrams),
            trips: vec![None; datagrams],
            answered: 0,
            newest: 0,
            reordered: 0,
            doubled: 0,
            strange: 0,
            answered_by: None,
            last_trip: None,
            last_answer: None,
            jitter_16ns: 0,
        }
    }

    pub(super) fn sent(&self) -> u32 {
        u32::try_from(self.sent_at.len()).expect("a thousand at most")
    }

    pub(super) fn answered(&self) -> u32 {
        self.answered
    }

    pub(super) fn last_answer(&self) -> Option<Instant> {
        self.last_answer
    }

    pub(super) fn slowest(&self) -> Option<Duration> {
        self.trips.iter().flatten().max().copied()
    }

    /// The first datagram without an answer; one that was answered where there is none, so that it counts as a double.
    pub(super) fn oldest_open(&self) -> u32 {
        let sent = &self.trips[..self.sent_at.len()];
        let oldest = sent.iter().position(Option::is_none).unwrap_or(0);
        u32::try_from(oldest).expect("a thousand at most")
    }

    pub(super) fn sent_one(&mut self, at: Instant) {
        self.sent_at.push(at);
    }

    /// `number` counts from 0.
    pub(super) fn answered_one(&mut self, number: u32, at: Instant) {
        let place = number as usize;
        let (Some(sent_at), Some(trip)) = (self.sent_at.get(place), self.trips.get_mut(place)) else {
            self.strange += 1;
            return;
        };
        self.last_answer = Some(at);
        if trip.is_some() {
            self.doubled += 1;
            return;
        }
        let took = at.saturating_duration_since(*sent_at);
        *trip = Some(took);
        self.answered += 1;
        if place + 1 < self.newest {
            self.reordered += 1;
        }
        self.newest = self.newest.max(place + 1);
        if let Some(before) = self.last_trip.replace(took) {
            // RFC 3550 6.4.1: J += (|D| - J) / 16, where the difference of transit times is that of the round trips.
            let decay = (self.jitter_16ns + 8) / 16;
            self.jitter_16ns += took.abs_diff(before).as_nanos();
            self.jitter_16ns -= decay;
        }
    }

    /// Not ours, or broken; `by` when it came from elsewhere.
    pub(super) fn strange_one(&mut self, by: Option<SocketAddr>) {
        self.strange += 1;
        self.answered_by = self.answered_by.or(by);
    }

    /// Round trips in the order of the datagrams, microseconds.
    pub(super) fn trips_us(&self) -> impl Iterator<Item = u64> {
        self.trips.iter().flatten().map(|trip| micros(*trip))
    }

    pub(super) fn report(&self) -> UdpReport {
        UdpReport {
            sent: self.sent(),
            answered: self.answered,
            lost: self.sent() - self.answered,
            reordered: self.reordered,
            doubled: self.doubled,
            strange: self.strange,
            min_us: self.trips_us().min(),
            max_us: self.trips_us().max(),
            jitter_us: (self.answered > 1).then(|| u64::try_from(self.jitter_16ns / 16_000).unwrap_or(u64::MAX)),
            answered_by: self.answered_by,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn millis(count: u64) -> Duration {
        Duration::from_millis(count)
    }

    /// Four datagrams, 10 ms apart; each answer after so many milliseconds from the start.
    fn counted(answers: &[(u32, u64)]) -> UdpReport {
        let start = Instant::now();
        let mut count = Count::new(4);
        for number in 0..4 {
            count.sent_one(start + millis(10 * number));
        }
        for (number, at) in answers {
            count.answered_one(*number, start + millis(*at));
        }
        count.report()
    }

    #[test]
    fn loss_order_and_doubles_are_told_apart() {
        let report = counted(&[(0, 5), (2, 25), (1, 26), (2, 27), (9, 28)]);
        assert_eq!((report.sent, report.answered, report.lost), (4, 3, 1));
        assert_eq!((report.reordered, report.doubled, report.strange), (1, 1, 1));
        assert_eq!((report.min_us, report.max_us), (Some(5_000), Some(16_000)));
    }

    #[test]
    fn even_trips_have_no_jitter() {
        assert_eq!(counted(&[(0, 5), (1, 15), (2, 25), (3, 35)]).jitter_us, Some(0));
        // 6 ms three times: 6/16, then 15/16 of that and 6/16 more, and again: 1.0562 ms.
        assert_eq!(counted(&[(0, 5), (1, 21), (2, 25), (3, 41)]).jitter_us, Some(1_056));
        assert_eq!(counted(&[(0, 5)]).jitter_us, None, "one answer has none");
    }
}
