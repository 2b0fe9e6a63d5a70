//! The table counted while it is read: a fixed amount of memory, whatever its size.
//!
//! The kernel walks its table in the order of hash values, which is as good as random: a mapping with many flows comes among
//! the first, so that what finds no room any more is what is rare.

use std::collections::HashMap;
use std::hash::Hash;

use netdiag_common::observation::Protocol;
use netdiag_common::observation::flow::{Flow, FlowGroup, FlowMapping, FlowSnapshot, FlowTuple, RulesToday, ZoneUse};
use netdiag_common::observation::service_rules::Endpoint;

use super::rules::{Index, Mapping};
use crate::host::conntrack::entry::{Entry, state_name};
use crate::host::conntrack::table::Count;
use crate::host::conntrack::timeout::Timeouts;

/// Protocols times states: TCP has ten states, a few other protocols have one.
const MAX_GROUPS: usize = 64;
/// Zones are few: one per network that shares addresses with another.
const MAX_ZONES: usize = 64;
/// Mappings kept while reading, about 1 MiB.
const MAX_MAPPINGS: usize = 4096;
/// Mappings that today's rules would not make are rare and what a reader looks for: they have room of their own.
const MAX_OUTDATED_MAPPINGS: usize = 1024;
/// Mappings in an answer, about 64 KiB.
const LISTED_MAPPINGS: usize = 256;
/// Single entries in an answer.
const LISTED_OUTDATED: usize = 64;

/// Counts entries.
pub(super) struct Counting<'a> {
    timeouts: &'a Timeouts,
    rules: Option<&'a Index>,
    counts: Counts,
}

#[derive(Default)]
struct Counts {
    entries: u64,
    undecoded: u64,
    groups: HashMap<(u8, Option<u8>), GroupCount>,
    groups_cut: u64,
    zones: HashMap<u16, u64>,
    zones_cut: u64,
    mappings: HashMap<Mapping, MappingCount>,
    outdated_mappings: usize,
    mappings_cut: u64,
    outdated: Vec<Flow>,
}

#[derive(Default)]
struct GroupCount {
    flows: u64,
    unreplied: u64,
    assured: u64,
}

struct MappingCount {
    group: GroupCount,
    latest_packet_s: Option<u32>,
    today: RulesToday,
}

impl<'a> Counting<'a> {
    /// Without rules, no mapping is known to be outdated.
    pub fn new(timeouts: &'a Timeouts, rules: Option<&'a Index>) -> Self {
        Self { timeouts, rules, counts: Counts::default() }
    }

    /// `check` are the rules as they are after the pass. An entry may be newer than the rules that were read before it: it is
    /// outdated only by both.
    pub fn finish(mut self, check: Option<&Index>) -> FlowSnapshot {
        let counts = &mut self.counts;
        for (mapping, count) in &mut counts.mappings {
            if count.today.is_outdated() {
                count.today = check.map_or(RulesToday::NotKnown, |rules| rules.today(mapping));
            }
        }
        let mappings = &counts.mappings;
        let is_outdated = |mapping: &Mapping| mappings.get(mapping).is_some_and(|count| count.today.is_outdated());
        counts.outdated.retain(|flow| {
            Protocol::from_number(flow.protocol_number)
                .is_some_and(|protocol| is_outdated(&mapping(protocol, &flow.original, &flow.reply)))
        });
        counts.outdated.sort_by_key(|flow| flow.latest_packet_s.unwrap_or(u32::MAX));
        let rules = check.or(self.rules);
        self.counts.list(rules)
    }

    /// Whether the pass found what the rules before it would not make.
    pub fn has_outdated(&self) -> bool {
        self.counts.outdated_mappings > 0
    }
}

impl Count for Counting<'_> {
    fn restart(&mut self) {
        self.counts = Counts::default();
    }

    fn entry(&mut self, entry: &Entry) {
        let counts = &mut self.counts;
        counts.entries += 1;
        match room(&mut counts.groups, (entry.protocol, entry.state), MAX_GROUPS) {
            Some(group) => group.add(entry),
            None => counts.groups_cut += 1,
        }
        match room(&mut counts.zones, entry.zone, MAX_ZONES) {
            Some(flows) => *flows += 1,
            None => counts.zones_cut += 1,
        }
        if entry.is_destination_rewritten()
            && let Some(protocol) = Protocol::from_number(entry.protocol)
        {
            let latest_packet_s = self.timeouts.latest_packet_s(entry);
            counts.mapped(mapping(protocol, &entry.original, &entry.reply), entry, latest_packet_s, self.rules);
        }
    }

    fn undecoded(&mut self) {
        self.counts.undecoded += 1;
    }
}

impl Counts {
    fn mapped(&mut self, mapping: Mapping, entry: &Entry, latest_packet_s: Option<u32>, rules: Option<&Index>) {
        let today = match self.mappings.get_mut(&mapping) {
            Some(known) => {
                known.add(entry, latest_packet_s);
                known.today
            }
            None => {
                let today = rules.map_or(RulesToday::NotKnown, |rules| rules.today(&mapping));
                let outdated = self.outdated_mappings;
                let (kept, most) = if today.is_outdated() {
                    (outdated, MAX_OUTDATED_MAPPINGS)
                } else {
                    (self.mappings.len() - outdated, MAX_MAPPINGS)
                };
                if kept >= most {
                    self.mappings_cut += 1;
                    return;
                }
                self.outdated_mappings += usize::from(today.is_outdated());
                let mut count = MappingCount { group: GroupCount::default(), latest_packet_s: None, today };
                count.add(entry, latest_packet_s);
                self.mappings.insert(mapping, count);
                today
            }
        };
        if today.is_outdated() {
            self.exemplar(entry, latest_packet_s);
        }
    }

    /// Keeps the entries with the latest packets: those are in use.
    fn exemplar(&mut self, entry: &Entry, latest_packet_s: Option<u32>) {
        let age = |latest: Option<u32>| latest.unwrap_or(u32::MAX);
        if self.outdated.len() < LISTED_OUTDATED {
            self.outdated.push(entry.to_flow(latest_packet_s));
            return;
        }
        let oldest = self.outdated.iter_mut().max_by_key(|flow| age(flow.latest_packet_s));
        if let Some(oldest) = oldest.filter(|flow| age(flow.latest_packet_s) > age(latest_packet_s)) {
            *oldest = entry.to_flow(latest_packet_s);
        }
    }

    fn list(self, rules: Option<&Index>) -> FlowSnapshot {
        let cut = [
            (self.undecoded, "entries could not be decoded"),
            (self.groups_cut, "entries are in no group: there are more than are kept"),
            (self.zones_cut, "entries are in zones that are not listed"),
        ];
        let limits = cut.iter().filter(|(count, _)| *count > 0).map(|(count, words)| format!("{count} {words}"));
        let limits = limits.collect();

        let mut groups: Vec<FlowGroup> = self.groups.into_iter().map(|(key, count)| count.group(key)).collect();
        groups.sort_by_key(|group| (std::cmp::Reverse(group.flows), group.protocol_number, group.state.clone()));
        let mut zones: Vec<ZoneUse> = self.zones.into_iter().map(|(zone, flows)| ZoneUse { zone, flows }).collect();
        zones.sort_by_key(|zone| (std::cmp::Reverse(zone.flows), zone.zone));

        let outdated_flows =
            self.mappings.values().filter(|count| count.today.is_outdated()).map(|count| count.group.flows).sum();
        let mut mappings: Vec<(Mapping, MappingCount)> = self.mappings.into_iter().collect();
        mappings.sort_by(|(a, a_count), (b, b_count)| {
            let rank = |count: &MappingCount| (!count.today.is_outdated(), std::cmp::Reverse(count.group.flows));
            rank(a_count).cmp(&rank(b_count)).then_with(|| a.cmp(b))
        });
        let unlisted = mappings.iter().skip(LISTED_MAPPINGS).map(|(_, count)| count.group.flows).sum::<u64>();
        mappings.truncate(LISTED_MAPPINGS);
        FlowSnapshot {
            entries: self.entries,
            limits,
            groups,
            zones,
            omitted_mapping_flows: unlisted + self.mappings_cut,
            mappings: mappings.into_iter().map(|(mapping, count)| count.listed(mapping, rules)).collect(),
            outdated: self.outdated,
            outdated_flows,
            ..FlowSnapshot::default()
        }
    }
}

fn mapping(protocol: Protocol, original: &FlowTuple, reply: &FlowTuple) -> Mapping {
    Mapping {
        address: original.destination,
        protocol,
        port: original.destination_port,
        endpoint: Endpoint { address: reply.source, port: reply.source_port },
    }
}

/// The value for a key, made when there is room for one more.
fn room<K: Eq + Hash, V: Default>(map: &mut HashMap<K, V>, key: K, most: usize) -> Option<&mut V> {
    if map.len() >= most && !map.contains_key(&key) {
        return None;
    }
    Some(map.entry(key).or_default())
}

impl GroupCount {
    fn add(&mut self, entry: &Entry) {
        self.flows += 1;
        self.unreplied += u64::from(!entry.is_replied());
        self.assured += u64::from(entry.is_assured());
    }

    fn group(self, (protocol_number, state): (u8, Option<u8>)) -> FlowGroup {
        FlowGroup {
            protocol_number,
            state: state.map(|state| state_name(protocol_number, state).into_owned()),
            flows: self.flows,
            unreplied: self.unreplied,
            assured: self.assured,
        }
    }
}

impl MappingCount {
    fn add(&mut self, entry: &Entry, latest_packet_s: Option<u32>) {
        self.group.add(entry);
        self.latest_packet_s = [self.latest_packet_s, latest_packet_s].into_iter().flatten().min();
    }

    fn listed(self, mapping: Mapping, rules: Option<&Index>) -> FlowMapping {
        FlowMapping {
            service: rules.and_then(|rules| rules.service(&mapping)).cloned(),
            address: mapping.address,
            protocol: mapping.protocol,
            port: mapping.port,
            endpoint: mapping.endpoint,
            flows: self.group.flows,
            unreplied: self.group.unreplied,
            assured: self.group.assured,
            latest_packet_s: self.latest_packet_s,
            rules: self.today,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr};

    use super::super::rules::tests::{rule, rules};
    use super::*;

    const SEEN_REPLY: u32 = 1 << 1;
    const DESTINATION_REWRITTEN: u32 = 1 << 5;

    fn timeouts() -> Timeouts {
        let settings = [("nf_conntrack_udp_timeout".to_owned(), "30".to_owned())];
        Timeouts::new(&settings.into())
    }

    /// A flow to 10.96.0.10:53 that went to 10.244.0.`endpoint`:53.
    fn entry(client_port: u16, endpoint: u8, status: u32, expires_s: u32) -> Entry {
        let client = IpAddr::V4(Ipv4Addr::new(10, 244, 1, 1));
        let tuple = |source, source_port, destination, destination_port| FlowTuple {
            source,
            destination,
            source_port,
            destination_port,
        };
        Entry {
            protocol: 17,
            original: tuple(client, client_port, Ipv4Addr::new(10, 96, 0, 10).into(), 53),
            reply: tuple(Ipv4Addr::new(10, 244, 0, endpoint).into(), 53, client, client_port),
            status: status | DESTINATION_REWRITTEN,
            state: None,
            unacknowledged: false,
            expires_s: Some(expires_s),
            zone: 0,
            mark: 0,
        }
    }

    fn index(endpoints: &[&str]) -> Index {
        Index::new(rules(vec![rule("10.96.0.10", 53, "kube-system/kube-dns:dns", endpoints)])).unwrap()
    }

    #[test]
    fn flows_to_an_endpoint_that_left_are_outdated() {
        let (timeouts, index) = (timeouts(), index(&["10.244.0.2:53"]));
        let mut counting = Counting::new(&timeouts, Some(&index));
        counting.entry(&entry(1000, 2, SEEN_REPLY, 20));
        counting.entry(&entry(1001, 9, 0, 10));
        counting.entry(&entry(1002, 9, 0, 28));
        assert!(counting.has_outdated());
        let found = counting.finish(Some(&index));
        assert_eq!((found.entries, found.outdated_flows, found.mappings.len()), (3, 2, 2));
        let gone = &found.mappings[0];
        assert_eq!((gone.rules, gone.flows, gone.unreplied), (RulesToday::LeadElsewhere, 2, 2));
        assert_eq!(gone.latest_packet_s, Some(2));
        assert_eq!(gone.service.as_deref(), Some("kube-system/kube-dns:dns"));
        assert_eq!(found.outdated[0].original.source_port, 1002, "the entry in use comes first");
        assert_eq!(found.mappings[1].rules, RulesToday::LeadThere);
    }

    #[test]
    fn an_entry_newer_than_the_rules_is_not_outdated() {
        let (timeouts, before) = (timeouts(), index(&["10.244.0.2:53"]));
        let mut counting = Counting::new(&timeouts, Some(&before));
        counting.entry(&entry(1001, 9, 0, 29));
        let found = counting.finish(Some(&index(&["10.244.0.2:53", "10.244.0.9:53"])));
        assert_eq!((found.outdated_flows, found.outdated.len()), (0, 0));
        assert_eq!(found.mappings[0].rules, RulesToday::LeadThere);
    }

    #[test]
    fn a_million_mappings_are_counted_in_bounded_memory() {
        let (timeouts, index) = (timeouts(), index(&["10.244.0.2:53"]));
        let mut counting = Counting::new(&timeouts, Some(&index));
        for n in 0..1_000_000u32 {
            let mut entry = entry(1000, 9, 0, 10);
            entry.original.destination = Ipv4Addr::from(n + 1_000_000).into();
            entry.zone = u16::try_from(n % 100).unwrap();
            entry.protocol = if n % 2 == 0 { 6 } else { 17 };
            entry.state = u8::try_from(n % 200).ok();
            counting.entry(&entry);
        }
        assert_eq!(counting.counts.mappings.len(), MAX_MAPPINGS);
        let found = counting.finish(Some(&index));
        assert_eq!(found.entries, 1_000_000);
        assert_eq!((found.mappings.len(), found.zones.len()), (LISTED_MAPPINGS, MAX_ZONES));
        let listed: u64 = found.mappings.iter().map(|mapping| mapping.flows).sum();
        assert_eq!(listed + found.omitted_mapping_flows, 1_000_000, "no flow is lost from the sums");
        assert_eq!(found.limits.len(), 2, "{:?}", found.limits);
    }

    #[test]
    fn a_pass_that_starts_again_forgets_the_first() {
        let timeouts = timeouts();
        let mut counting = Counting::new(&timeouts, None);
        counting.entry(&entry(1000, 2, 0, 20));
        counting.restart();
        counting.entry(&entry(1000, 2, 0, 20));
        let found = counting.finish(None);
        assert_eq!((found.entries, found.mappings[0].rules), (1, RulesToday::NotKnown));
    }
}
