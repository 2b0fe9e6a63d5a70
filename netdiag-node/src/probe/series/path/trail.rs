//! What the hops said, and where the path ends.

use std::net::IpAddr;
use std::time::Duration;

use netdiag_common::observation::series::path::Hop;
use netdiag_common::observation::series::{FailureClass, IcmpError, PathReport, ProbeFailure, ProbeStage};

use super::super::icmp_error::{is_port_unreachable, is_time_exceeded};

/// TTLs that systems begin with: Linux and BSD 64, Windows 128, routers 255.
const FIRST_TTLS: [u8; 3] = [64, 128, 255];

/// The hops so far, by TTL.
pub(super) struct Trail {
    to: IpAddr,
    hops: Vec<Hop>,
    /// The smallest TTL that ended the path, and how.
    end: Option<(u8, Stop)>,
    back_hops: Option<u8>,
}

/// Why no larger TTL is worth sending.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Stop {
    /// The target answered.
    Reached,
    /// Somebody on the way, or the target, said that packets end there.
    Refused(ProbeFailure),
}

/// What came back for one TTL.
pub(super) struct Heard {
    pub(super) from: IpAddr,
    /// TTL that the answer arrived with, where it is known.
    pub(super) ttl: Option<u8>,
    pub(super) after: Duration,
    pub(super) said: Word,
}

pub(super) enum Word {
    /// An answer of the protocol itself: `SYN ACK`, `RST`, `echo reply`, `datagram`.
    Answer(&'static str),
    Error(IcmpError),
}

impl Trail {
    pub(super) fn new(to: IpAddr) -> Self {
        Self { to, hops: Vec::new(), end: None, back_hops: None }
    }

    /// The path is known to end before this TTL.
    pub(super) fn is_beyond(&self, ttl: u8) -> bool {
        self.end.as_ref().is_some_and(|(end, _)| ttl > *end)
    }

    pub(super) fn sent(&mut self, ttl: u8) {
        self.hop(ttl).sent += 1;
    }

    pub(super) fn heard(&mut self, ttl: u8, heard: Heard) {
        let rtt_us = u64::try_from(heard.after.as_micros()).unwrap_or(u64::MAX);
        let stop = self.stop(&heard);
        let hop = self.hop(ttl);
        hop.answered += 1;
        if !hop.addresses.contains(&heard.from) {
            hop.addresses.push(heard.from);
        }
        hop.rtt_us = Some(hop.rtt_us.map_or(rtt_us, |known| known.min(rtt_us)));
        hop.said = Some(match heard.said {
            Word::Answer(words) => words.to_owned(),
            Word::Error(error) => error.words,
        });
        let Some(stop) = stop else { return };
        if stop == Stop::Reached {
            self.back_hops = self.back_hops.or_else(|| heard.ttl.and_then(hops_since_sent));
        }
        if self.end.as_ref().is_none_or(|(end, _)| ttl < *end) {
            self.end = Some((ttl, stop));
        }
    }

    /// An address translation on the way puts the target's address on every router's error (`nf_nat_icmp_reply_translation`),
    /// so an expired TTL is never the target's word.
    fn stop(&self, heard: &Heard) -> Option<Stop> {
        let error = match &heard.said {
            Word::Answer(_) => return Some(Stop::Reached),
            Word::Error(error) => error,
        };
        let is_v6 = heard.from.is_ipv6();
        if is_time_exceeded(is_v6, error.kind, error.code) {
            return None;
        }
        let is_port = is_port_unreachable(is_v6, error.kind, error.code);
        if is_port && heard.from == self.to {
            return Some(Stop::Reached);
        }
        Some(Stop::Refused(ProbeFailure {
            stage: ProbeStage::Answer,
            class: if is_port { FailureClass::Refused } else { FailureClass::Unreachable },
            errno: None,
            said_by: Some(heard.from),
            icmp: Some(error.clone()),
            why: format!("{} says {}", heard.from, error.words),
        }))
    }

    pub(super) fn stopped(&self) -> Option<&Stop> {
        self.end.as_ref().map(|(_, stop)| stop)
    }

    /// The largest TTL that was sent.
    pub(super) fn tried(&self) -> u8 {
        self.hops.last().map_or(0, |hop| hop.ttl)
    }

    /// The farthest that said anything.
    pub(super) fn last_hop(&self) -> Option<(u8, IpAddr)> {
        self.hops.iter().rev().find_map(|hop| Some((hop.ttl, *hop.addresses.first()?)))
    }

    pub(super) fn report(self) -> PathReport {
        let reached = self.stopped() == Some(&Stop::Reached);
        let end = self.end.as_ref().map_or(u8::MAX, |(end, _)| *end);
        // What was on its way already when the end became known.
        let hops = self.hops.into_iter().filter(|hop| hop.ttl <= end).collect();
        PathReport { hops, reached, back_hops: self.back_hops }
    }

    /// TTLs are sent in order, so there are no gaps.
    fn hop(&mut self, ttl: u8) -> &mut Hop {
        let at = usize::from(ttl).saturating_sub(1);
        while self.hops.len() <= at {
            let ttl = u8::try_from(self.hops.len() + 1).unwrap_or(u8::MAX);
            let (addresses, rtt_us, said) = (Vec::new(), None, None);
            self.hops.push(Hop { ttl, addresses, sent: 0, answered: 0, rtt_us, said });
        }
        &mut self.hops[at]
    }
}

/// Counted as TTLs are on the way there: 1 for a neighbour.
fn hops_since_sent(ttl: u8) -> Option<u8> {
    let first = FIRST_TTLS.into_iter().find(|first| *first >= ttl)?;
    (first - ttl).checked_add(1)
}

#[cfg(test)]
mod tests {
    use super::super::super::icmp_error::icmp_error;
    use super::*;

    const TARGET: &str = "10.0.9.9";
    const ROUTER: &str = "10.0.0.1";

    fn heard(from: &str, said: Word) -> Heard {
        Heard { from: from.parse().unwrap(), ttl: Some(62), after: Duration::from_micros(300), said }
    }

    fn error(kind: u8, code: u8) -> Word {
        Word::Error(icmp_error(false, kind, code, 0))
    }

    fn trail() -> Trail {
        Trail::new(TARGET.parse().unwrap())
    }

    #[test]
    fn target_ends_the_path_and_later_packets_do_not_count() {
        let mut trail = trail();
        for ttl in 1..=4 {
            trail.sent(ttl);
        }
        trail.heard(3, heard(TARGET, error(3, 3)));
        trail.heard(2, heard(TARGET, error(3, 3)));
        trail.heard(1, heard(ROUTER, error(11, 0)));
        assert!(trail.is_beyond(3) && !trail.is_beyond(2));
        let report = trail.report();
        assert_eq!((report.reached, report.hops.len(), report.back_hops), (true, 2, Some(3)));
        assert_eq!(report.hops[1].said.as_deref(), Some("port unreachable"));
    }

    #[test]
    fn expired_ttl_is_not_the_targets_word_whoever_it_names() {
        let mut trail = trail();
        trail.sent(1);
        trail.heard(1, heard(TARGET, error(11, 0)));
        assert_eq!(trail.stopped(), None, "an address translation puts that address there");
    }

    #[test]
    fn prohibited_by_a_router_ends_without_the_target() {
        let mut trail = trail();
        trail.sent(1);
        trail.heard(1, heard(ROUTER, error(3, 13)));
        let Some(Stop::Refused(failure)) = trail.stopped() else { panic!() };
        assert_eq!((failure.class, failure.said_by), (FailureClass::Unreachable, Some(ROUTER.parse().unwrap())));
        assert!(!trail.report().reached);
    }

    #[test]
    fn way_back_is_counted_from_the_next_common_start() {
        assert_eq!([64, 63, 128, 255, 250, 60].map(hops_since_sent), [1, 2, 1, 1, 6, 5].map(Some));
    }
}
