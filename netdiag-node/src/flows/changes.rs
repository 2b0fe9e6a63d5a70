//! Flows that came and went, and what failed, over the last hour in bounded memory.
//!
//! Time is nanoseconds since the agent began to watch.

use std::collections::BTreeMap;

use jiff::{SignedDuration, Timestamp};
use netdiag_common::observation::conntrack::ConntrackCpu;
use netdiag_common::observation::counter::Counter;
use netdiag_common::observation::flow::{FlowChanges, FlowRate};

use crate::host::conntrack::is_failure;
use crate::host::conntrack::listen::Announcement;
use crate::window::{Fold, History};

/// A node sees TCP, UDP, ICMP, ICMPv6 and few others.
const MAX_PROTOCOLS: usize = 16;
/// Reserved by IANA: stands for all protocols beyond those.
const OTHERS: u8 = 255;
/// Linux 6.18 has ten failure counters. Those beyond this number are not followed.
const MAX_FAILURES: usize = 32;

/// What was heard in one stretch of time.
#[derive(Debug, Clone, Default)]
pub(super) struct Heard {
    listened_ns: u64,
    protocols: Vec<FlowRate>,
    lost: u64,
    undecoded: u64,
    failures: BTreeMap<String, Growth>,
}

#[derive(Debug, Clone, Copy)]
struct Growth {
    by: u64,
    first_ns: u64,
    last_ns: u64,
}

/// The last hour.
#[derive(Default)]
pub(super) struct Changes {
    history: History<Heard>,
    /// The statistics as they were at the last look, each CPU for itself: the kernel counts in 32 bits.
    latest: BTreeMap<(u16, String), u64>,
    /// Why nothing is heard.
    pub not_listening: Option<String>,
}

impl Heard {
    pub fn add(&mut self, announcement: Announcement) {
        match announcement {
            Announcement::New(entry) => self.of(entry.protocol).new += 1,
            Announcement::Ended(entry) => {
                let rate = self.of(entry.protocol);
                rate.ended += 1;
                rate.ended_unreplied += u64::from(!entry.is_replied());
                rate.ended_assured += u64::from(entry.is_assured());
            }
            Announcement::Undecoded => self.undecoded += 1,
        }
    }

    pub fn lost(&mut self, announcements: u64) {
        self.lost += announcements;
    }

    /// Everything that the kernel announced, also what did not arrive.
    pub fn announced(&self) -> u64 {
        let heard: u64 = self.protocols.iter().map(|rate| rate.new + rate.ended).sum();
        heard + self.lost + self.undecoded
    }

    fn of(&mut self, protocol_number: u8) -> &mut FlowRate {
        let is_known = |rates: &[FlowRate]| rates.iter().position(|rate| rate.protocol_number == protocol_number);
        let at = is_known(&self.protocols).unwrap_or_else(|| {
            let number = if self.protocols.len() < MAX_PROTOCOLS - 1 { protocol_number } else { OTHERS };
            self.protocols.iter().position(|rate| rate.protocol_number == number).unwrap_or_else(|| {
                self.protocols.push(FlowRate { protocol_number: number, ..FlowRate::default() });
                self.protocols.len() - 1
            })
        });
        &mut self.protocols[at]
    }

    fn grew(&mut self, name: &str, by: u64, first_ns: u64, last_ns: u64) {
        if let Some(growth) = self.failures.get_mut(name) {
            growth.by += by;
            growth.last_ns = last_ns;
        } else if self.failures.len() < MAX_FAILURES {
            self.failures.insert(name.to_owned(), Growth { by, first_ns, last_ns });
        }
    }
}

impl Fold for Heard {
    fn hourly() -> Self {
        Self::default()
    }

    fn fold(&mut self, later: Self) {
        self.listened_ns += later.listened_ns;
        self.lost += later.lost;
        self.undecoded += later.undecoded;
        for rate in later.protocols {
            let sum = self.of(rate.protocol_number);
            sum.new += rate.new;
            sum.ended += rate.ended;
            sum.ended_unreplied += rate.ended_unreplied;
            sum.ended_assured += rate.ended_assured;
        }
        for (name, growth) in later.failures {
            self.grew(&name, growth.by, growth.first_ns, growth.last_ns);
        }
    }
}

impl Changes {
    /// What was heard in a stretch of listening.
    pub fn heard(&mut self, start_ns: u64, end_ns: u64, heard: Heard) {
        let listened_ns = end_ns.saturating_sub(start_ns);
        self.history.slot(start_ns, end_ns, Heard::default).fold(Heard { listened_ns, ..heard });
    }

    /// The statistics as they are at `at_ns`.
    pub fn sampled(&mut self, at_ns: u64, cpus: &[ConntrackCpu]) {
        let is_first = self.latest.is_empty();
        let counters = cpus.iter().flat_map(|cpu| cpu.counters.iter().map(|(name, value)| (cpu.cpu, name, *value)));
        for (cpu, name, value) in counters.filter(|(_, name, _)| is_failure(name)) {
            let before = self.latest.insert((cpu, name.clone()), value).unwrap_or(0);
            let by = growth(before, value);
            // The first look only says where the counters stand.
            if by > 0 && !is_first {
                self.history.slot(at_ns, at_ns, Heard::default).grew(name, by, at_ns, at_ns);
            }
        }
        if is_first {
            // A mark, so that a namespace without failures is not looked at for the first time again.
            self.latest.insert((u16::MAX, String::new()), 0);
            self.history.slot(at_ns, at_ns, Heard::default);
        }
    }

    /// The last `span_ns` up to `now_ns`, which is `now`.
    pub fn view(&self, span_ns: u64, now_ns: u64, now: Timestamp) -> FlowChanges {
        let at = |ns: u64| {
            let ago = SignedDuration::from_nanos(now_ns.saturating_sub(ns).cast_signed());
            now.checked_sub(ago).unwrap_or(now)
        };
        let from_ns = now_ns.saturating_sub(span_ns);
        let mut all = Heard::default();
        let mut since_ns = now_ns;
        for slot in self.history.view(span_ns).filter(|slot| slot.end_ns > from_ns) {
            since_ns = since_ns.min(slot.start_ns);
            all.fold(slot.value.clone());
        }
        let mut protocols = all.protocols;
        protocols.sort_by_key(|rate| (std::cmp::Reverse(rate.new + rate.ended), rate.protocol_number));
        FlowChanges {
            since: at(since_ns),
            window_s: seconds(now_ns - since_ns),
            listened_s: seconds(all.listened_ns),
            protocols,
            lost: all.lost,
            undecoded: all.undecoded,
            not_listening: self.not_listening.clone(),
            gaps: Vec::new(),
            failures: self.failures(&all.failures, &at),
        }
    }

    fn failures(&self, grown: &BTreeMap<String, Growth>, at: &dyn Fn(u64) -> Timestamp) -> BTreeMap<String, Counter> {
        let mut found: BTreeMap<String, Counter> = BTreeMap::new();
        for ((_, name), value) in self.latest.iter().filter(|((_, name), _)| !name.is_empty()) {
            found.entry(name.clone()).or_default().value += value;
        }
        for (name, counter) in &mut found {
            let growth = grown.get(name);
            counter.delta = Some(growth.map_or(0, |growth| growth.by));
            counter.first_at = growth.map(|growth| at(growth.first_ns));
            counter.last_at = growth.map(|growth| at(growth.last_ns));
        }
        found
    }
}

/// Of a counter with 32 bits (`struct ip_conntrack_stat`) between two looks.
fn growth(before: u64, after: u64) -> u64 {
    after.checked_sub(before).unwrap_or(after + (1 << 32) - before)
}

#[expect(clippy::cast_precision_loss, reason = "an hour in nanoseconds has 42 bits")]
fn seconds(ns: u64) -> f64 {
    ns as f64 / 1e9
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr};

    use netdiag_common::observation::flow::FlowTuple;

    use super::*;
    use crate::host::conntrack::entry::Entry;

    const SECOND_NS: u64 = 1_000_000_000;

    fn entry(protocol: u8, status: u32) -> Entry {
        let nowhere = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
        let ends = FlowTuple { source: nowhere, destination: nowhere, source_port: 0, destination_port: 0 };
        Entry {
            protocol,
            original: ends,
            reply: ends,
            status,
            state: None,
            unacknowledged: false,
            expires_s: None,
            zone: 0,
            mark: 0,
        }
    }

    fn now() -> Timestamp {
        "2026-11-21T12:00:00Z".parse().unwrap()
    }

    fn cpu(list: &[(&str, u64)]) -> ConntrackCpu {
        ConntrackCpu { cpu: 0, counters: list.iter().map(|(name, value)| ((*name).to_owned(), *value)).collect() }
    }

    #[test]
    fn counts_are_those_of_the_window_and_of_the_time_listened() {
        let mut changes = Changes::default();
        for start_s in [0, 600, 650] {
            let mut heard = Heard::default();
            heard.add(Announcement::New(entry(6, 0)));
            heard.add(Announcement::Ended(entry(6, 0b110)));
            heard.add(Announcement::Ended(entry(17, 0)));
            heard.lost(2);
            assert_eq!(heard.announced(), 5);
            changes.heard(start_s * SECOND_NS, (start_s + 1) * SECOND_NS, heard);
        }
        let found = changes.view(300 * SECOND_NS, 660 * SECOND_NS, now());
        assert_eq!(
            found.protocols[0],
            FlowRate { protocol_number: 6, new: 2, ended: 2, ended_unreplied: 0, ended_assured: 2 }
        );
        assert_eq!(found.protocols[1].ended_unreplied, 2);
        assert_eq!((found.lost, found.listened_s, found.window_s), (4, 2.0, 60.0));
        assert_eq!(changes.view(3600 * SECOND_NS, 660 * SECOND_NS, now()).protocols[0].new, 3);
    }

    #[test]
    fn protocols_beyond_the_room_are_counted_together() {
        let mut heard = Heard::default();
        for protocol in 0..200 {
            heard.add(Announcement::New(entry(protocol, 0)));
        }
        let sum: u64 = heard.protocols.iter().map(|rate| rate.new).sum();
        assert_eq!((heard.protocols.len(), sum), (MAX_PROTOCOLS, 200));
        assert_eq!(heard.protocols.last().unwrap().protocol_number, OTHERS);
    }

    #[test]
    fn failures_grow_from_the_first_look_and_wrap() {
        let mut changes = Changes::default();
        changes.sampled(SECOND_NS, &[cpu(&[("drop", u64::from(u32::MAX)), ("found", 7)])]);
        changes.sampled(6 * SECOND_NS, &[cpu(&[("drop", 4), ("insert_failed", 2), ("found", 9)])]);
        let found = changes.view(60 * SECOND_NS, 10 * SECOND_NS, now()).failures;
        assert_eq!((found["drop"].value, found["drop"].delta), (4, Some(5)));
        assert_eq!(found["insert_failed"].delta, Some(2));
        assert_eq!(found["drop"].first_at.unwrap(), "2026-11-21T11:59:56Z".parse().unwrap());
        assert!(!found.contains_key("found"));
    }

    #[test]
    fn a_failure_on_a_clean_namespace_is_growth() {
        let mut changes = Changes::default();
        changes.sampled(SECOND_NS, &[cpu(&[])]);
        changes.sampled(6 * SECOND_NS, &[cpu(&[("drop", 3)])]);
        assert_eq!(changes.view(60 * SECOND_NS, 7 * SECOND_NS, now()).failures["drop"].delta, Some(3));
    }
}
