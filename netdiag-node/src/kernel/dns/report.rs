//! The observation made of what was counted.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use netdiag_common::observation::dns::{Dns, DnsAccounts, DnsClient, DnsExemplar, DnsName, DnsNames, DnsServer};
use netdiag_common::observation::histogram::Histogram;
use netdiag_common::observation::{Owner, Protocol};
use netdiag_common::record::dns::{RCODE_OTHER, SIDE_SERVER, TYPES, split_service};
use netdiag_common::{Gap, GapReason};

use super::counted::{Counted, GroupCount, GroupId, append};
use super::exemplar::{Exemplar, Exemplars};
use super::message::type_name;
use super::names::Names;
use crate::clock::Moment;
use crate::rcode::rcode_name;
use crate::window::{History, Total as _};

/// In one observation: a few hundred KiB of JSON at most.
const ANSWER_GROUPS: usize = 500;
const ANSWER_NAMES: usize = 300;
const ANSWER_EXEMPLARS: usize = 64;

const TC: u16 = 0x0200;

pub(super) fn report(
    history: &History<Counted>,
    exemplars: &Exemplars,
    clock: Moment,
    span_ns: u64,
    resolve: &dyn Fn(u64) -> Owner,
) -> Dns {
    let mut owners = Owners { resolve, known: HashMap::new() };
    let mut accounts = DnsAccounts::default();
    let mut groups: HashMap<GroupId, GroupCount> = HashMap::new();
    let mut names = Names::new();
    let mut start_ns = None;
    for slot in history.view(span_ns) {
        start_ns.get_or_insert(slot.start_ns);
        append(&mut accounts, &slot.value.accounts);
        for (key, count) in slot.value.groups.iter() {
            groups.entry(*key).or_default().add(*count);
        }
        names.fold(slot.value.names.clone());
    }
    groups.retain(|key, count| {
        let ours = owners.ours(key[0]);
        if !ours && !is_server(key) {
            accounts.foreign_netns += count.events();
        }
        ours
    });
    let start_ns = start_ns.unwrap_or(clock.monotonic_ns);
    let served: HashSet<SocketAddr> = groups
        .keys()
        .filter(|key| is_server(key) && owners.of(key[0]) == Owner::Host)
        .map(|key| address(&[key[1], key[2]], key[3]))
        .collect();
    let mut sorted: Vec<(GroupId, GroupCount)> = groups.into_iter().collect();
    sorted.sort_by_key(|(key, count)| (std::cmp::Reverse(count.events()), *key));
    let omitted_groups = sorted.len().saturating_sub(ANSWER_GROUPS) as u64;
    let (mut clients, mut servers) = (Vec::new(), Vec::new());
    for (key, count) in sorted.iter().take(ANSWER_GROUPS) {
        if is_server(key) {
            servers.push(server(key, count, clock, &mut owners));
        } else {
            clients.push(client(key, count, clock, &mut owners, &served));
        }
    }
    let (names, reading) = names_of(&names, &mut owners);
    Dns {
        since: clock.at(start_ns),
        #[expect(clippy::cast_precision_loss, reason = "a span of seconds")]
        window_s: clock.monotonic_ns.saturating_sub(start_ns) as f64 / 1e9,
        unseen: unseen(&accounts),
        accounts,
        clients,
        servers,
        omitted_groups,
        names,
        reading,
        exemplars: exemplars_of(exemplars, start_ns, clock, &mut owners),
    }
}

fn is_server(key: &GroupId) -> bool {
    split_service(key[3]).3 == SIDE_SERVER
}

fn client(
    key: &GroupId,
    count: &GroupCount,
    clock: Moment,
    owners: &mut Owners<'_>,
    served: &HashSet<SocketAddr>,
) -> DnsClient {
    let server = address(&[key[1], key[2]], key[3]);
    let mut latency = Histogram::default();
    for (row, times) in count.times.iter().enumerate().filter(|(_, times)| **times > 0) {
        latency.add(1 << row, u64::from(*times), 0);
    }
    latency.sum_us = count.time_us;
    let type_of = |row: usize| TYPES.get(row).map_or_else(|| "OTHER".to_owned(), |kind| type_name(*kind));
    DnsClient {
        netns: owners.of(key[0]),
        server,
        protocol: protocol(key[3]),
        node_local: is_link_local(server.ip()) || served.contains(&server),
        answered: count.answers.into(),
        unanswered: count.unanswered.into(),
        shed: count.shed.into(),
        retries: count.retries.into(),
        retries_after_5s: count.retries_after_5s.into(),
        truncated: count.truncated.into(),
        empty: count.empty.into(),
        rcodes: rcodes(count),
        types: by_name(&count.types, type_of),
        latency,
        first_at: clock.at(count.first_ns),
        last_at: clock.at(count.last_ns),
    }
}

fn server(key: &GroupId, count: &GroupCount, clock: Moment, owners: &mut Owners<'_>) -> DnsServer {
    DnsServer {
        netns: owners.of(key[0]),
        address: address(&[key[1], key[2]], key[3]),
        protocol: protocol(key[3]),
        queries: count.queries.into(),
        answers: count.answers.into(),
        truncated: count.truncated.into(),
        rcodes: rcodes(count),
        first_at: clock.at(count.first_ns),
        last_at: clock.at(count.last_ns),
    }
}

fn names_of(names: &Names, owners: &mut Owners<'_>) -> (Vec<DnsName>, Vec<DnsNames>) {
    let mut listed: Vec<_> = names.counts().filter(|((netns, ..), _)| owners.ours(*netns)).collect();
    listed.sort_by_key(|(key, count)| (std::cmp::Reverse(count.queries), *key));
    listed.truncate(ANSWER_NAMES);
    let mut of_listed: HashMap<u64, u64> = HashMap::new();
    for ((netns, ..), count) in &listed {
        *of_listed.entry(*netns).or_default() += count.queries - count.excess.min(count.queries);
    }
    let mut reading = Vec::new();
    for (netns, together) in names.namespaces() {
        if owners.ours(netns) {
            reading.push(DnsNames {
                netns: owners.of(netns),
                read: together.read,
                rest: together.read.saturating_sub(of_listed.get(&netns).copied().unwrap_or(0)),
                search_tries: together.search_tries,
                doubled_suffix: together.doubled_suffix,
                search_example: together.example.clone(),
            });
        }
    }
    reading.sort_by(|a, b| b.read.cmp(&a.read).then_with(|| a.netns.cmp(&b.netns)));
    reading.truncate(ANSWER_GROUPS);
    let named = listed.into_iter().map(|((netns, name, kind), count)| DnsName {
        netns: owners.of(*netns),
        name: name.clone(),
        record: record(*kind),
        queries: count.queries,
        excess: count.excess,
        nxdomain: count.nxdomain,
        failed: count.failed,
        unanswered: count.unanswered,
        retries: count.retries,
        longest_us: count.longest_us,
    });
    (named.collect(), reading)
}

/// The newest first.
fn exemplars_of(exemplars: &Exemplars, since_ns: u64, clock: Moment, owners: &mut Owners<'_>) -> Vec<DnsExemplar> {
    let mut found: Vec<&Exemplar> = exemplars.since(since_ns).filter(|found| owners.ours(found.netns)).collect();
    found.sort_by_key(|found| std::cmp::Reverse(found.first_ns));
    found.truncate(ANSWER_EXEMPLARS);
    let told = found.into_iter().map(|found| DnsExemplar {
        at: clock.at(found.first_ns),
        netns: owners.of(found.netns),
        server: address(&found.server, found.service),
        protocol: protocol(found.service),
        name: found.name.clone(),
        record: record(found.kind),
        rcode: found.answer.map(|(flags, _)| rcode_name(flags & 0xf)),
        truncated: found.answer.is_some_and(|(flags, _)| flags & TC != 0),
        tries: found.tries,
        latency_us: found.answer.map(|(_, waited_ns)| waited_ns / 1000),
    });
    told.collect()
}

/// What was shed, as somebody who reads the counts must know it.
fn unseen(accounts: &DnsAccounts) -> Vec<Gap> {
    let gap = |what: String, why: &str, remedy: &str| Gap {
        what,
        node: None,
        reason: GapReason::NotAllowed,
        why: why.to_owned(),
        remedy: remedy.to_owned(),
    };
    let mut gaps = Vec::new();
    let nameless = accounts.names_suppressed + accounts.names_lost;
    if nameless > 0 {
        gaps.push(gap(
            format!("names of {nameless} answered queries"),
            "there were more in a second than the agent reads; all other counts are exact",
            "ask over a quieter window",
        ));
    }
    if accounts.shed > 0 {
        gaps.push(gap(
            format!("answers to {} queries", accounts.shed),
            "too many queries waited for their answers at one time, so these were counted but not followed",
            "find the server that does not answer: the clients with unanswered queries name it",
        ));
    }
    if accounts.ungrouped + accounts.forgotten > 0 {
        gaps.push(gap(
            format!("clients and servers of {} messages", accounts.ungrouped + accounts.forgotten),
            "more pairs of namespace and server were active than the agent keeps; the accounts have them",
            "ask over a shorter window",
        ));
    }
    gaps
}

/// Empty for a question that is broken.
fn record(kind: u16) -> String {
    if kind == 0 { String::new() } else { type_name(kind) }
}

fn rcodes(count: &GroupCount) -> BTreeMap<String, u64> {
    by_name(&count.rcodes, |row| match u16::try_from(row) {
        Ok(code) if row < RCODE_OTHER => rcode_name(code),
        _ => "OTHER".to_owned(),
    })
}

fn by_name(counts: &[u32], name: impl Fn(usize) -> String) -> BTreeMap<String, u64> {
    let some = counts.iter().enumerate().filter(|(_, count)| **count > 0);
    some.map(|(row, count)| (name(row), u64::from(*count))).collect()
}

fn protocol(service: u64) -> Protocol {
    Protocol::from_number(split_service(service).1).unwrap_or(Protocol::Udp)
}

fn address(words: &[u64; 2], service: u64) -> SocketAddr {
    let (port, _, version, _) = split_service(service);
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&words[0].to_ne_bytes());
    bytes[8..].copy_from_slice(&words[1].to_ne_bytes());
    let ip: IpAddr = match version {
        4 => Ipv4Addr::new(bytes[0], bytes[1], bytes[2], bytes[3]).into(),
        _ => Ipv6Addr::from(bytes).into(),
    };
    SocketAddr::new(ip, port)
}

fn is_link_local(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => address.is_link_local(),
        IpAddr::V6(address) => address.is_unicast_link_local(),
    }
}

/// Answers of `resolve`, each asked once.
struct Owners<'a> {
    resolve: &'a dyn Fn(u64) -> Owner,
    known: HashMap<u64, Owner>,
}

impl Owners<'_> {
    fn of(&mut self, netns: u64) -> Owner {
        let resolve = self.resolve;
        self.known.entry(netns).or_insert_with(|| resolve(netns)).clone()
    }

    fn ours(&mut self, netns: u64) -> bool {
        netns == 0 || !matches!(self.of(netns), Owner::Unknown { .. })
    }
}

#[cfg(test)]
mod tests {
    use netdiag_common::record::dns::service_word;

    use super::*;

    #[test]
    fn addresses_are_as_in_the_packet() {
        let v4 = u64::from(u32::from_ne_bytes([10, 96, 0, 10]));
        assert_eq!(address(&[v4, 0], service_word(53, 17, 4, 0)).to_string(), "10.96.0.10:53");
        let bytes = "fd00::a".parse::<Ipv6Addr>().unwrap().octets();
        let (high, low) = bytes.split_at(8);
        let words = [high, low].map(|half| u64::from_ne_bytes(half.try_into().unwrap()));
        assert_eq!(address(&words, service_word(5353, 6, 6, 0)).to_string(), "[fd00::a]:5353");
        assert!(is_link_local("169.254.20.10".parse().unwrap()) && !is_link_local("10.96.0.10".parse().unwrap()));
    }

    #[test]
    fn rows_have_their_names() {
        let count = GroupCount { rcodes: [5, 0, 0, 3, 0, 0, 0, 1], ..GroupCount::default() };
        let named = rcodes(&count);
        assert_eq!(
            named.iter().map(|(name, n)| format!("{name} {n}")).collect::<Vec<_>>(),
            ["NOERROR 5", "NXDOMAIN 3", "OTHER 1"]
        );
    }
}
