//! What the programs look for and what they tell: keys out of requests, observations out of records.

use std::collections::BTreeMap;
use std::net::IpAddr;

use jiff::Timestamp;
use netdiag_common::forwarding::conntrack::Direction;
use netdiag_common::observation::tag::{MAX_TAG_EVENTS, TagAccounts, TagEvent, TagPoint, TagRequest, TagTuple, Tagged};
use netdiag_common::observation::{Owner, Protocol};
use netdiag_common::record::tag::{CONNECTED, DELIVERED, DROPPED, Event, RECEIVED, STACK_DEPTH, TupleKey};
use netdiag_common::{Gap, GapReason};

use super::{Caught, KernelTags};
use crate::host;
use crate::kernel::kfree_skb::hook::of_stack;
use crate::kernel::kfree_skb::key::address;
use crate::kernel::symbols::{Symbols, hex};

/// A [`TupleKey`] as the map's reader wants it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(transparent)]
pub(super) struct Key(TupleKey);

// SAFETY: integers only, padding spelled out.
unsafe impl aya::Pod for Key {}

impl Key {
    /// The port by which the programs find that a packet may be of interest: the one that fewest others have.
    pub(super) fn port(&self) -> u16 {
        if self.0.source_port == 0 { self.0.destination_port } else { self.0.source_port }
    }

    fn order(&self) -> ([u64; 2], [u64; 2], u16, u16, u8, u8) {
        let TupleKey { source, destination, source_port, destination_port, protocol, version, .. } = self.0;
        (source, destination, source_port, destination_port, protocol, version)
    }
}

impl PartialOrd for Key {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Key {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.order().cmp(&other.order())
    }
}

/// The keys of a request, each with whether it is that of answers, and the tuple that it was made of.
pub(super) fn keys(request: &TagRequest) -> BTreeMap<Key, (bool, TagTuple)> {
    let mut keys = BTreeMap::new();
    for tuple in request.tuples() {
        let (is_v4, to) = (tuple.destination.is_ipv4(), words(tuple.destination));
        let from = tuple.source.map_or([0, 0], words);
        let (source_port, destination_port) = (tuple.source_port.unwrap_or(0), tuple.destination_port.unwrap_or(0));
        let (protocol, version) = (tuple.protocol.number(), if is_v4 { 4 } else { 6 });
        let key = |source, destination, source_port, destination_port| {
            Key(TupleKey { source, destination, source_port, destination_port, protocol, version, pad: 0 })
        };
        keys.entry(key(from, to, source_port, destination_port)).or_insert((false, *tuple));
        if tuple.source.is_none() {
            continue;
        }
        // An echo and its answer have the same identifier.
        let answer = match tuple.protocol {
            Protocol::Icmp | Protocol::Icmpv6 => key(to, from, source_port, 0),
            Protocol::Tcp | Protocol::Udp | Protocol::Sctp | Protocol::Ipip => {
                key(to, from, destination_port, source_port)
            }
        };
        keys.entry(answer).or_insert((true, *tuple));
    }
    keys
}

/// An address's bytes as they lie in memory, IPv4 in the low half of the first word.
fn words(address: IpAddr) -> [u64; 2] {
    let mut bytes = [0; 16];
    match address {
        IpAddr::V4(address) => bytes[..4].copy_from_slice(&address.octets()),
        IpAddr::V6(address) => bytes = address.octets(),
    }
    let (low, high) = bytes.split_at(8);
    [low, high].map(|half| u64::from_ne_bytes(half.try_into().expect("half of sixteen bytes")))
}

fn from_words(version: u8, words: [u64; 2]) -> IpAddr {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&words[0].to_ne_bytes());
    bytes[8..].copy_from_slice(&words[1].to_ne_bytes());
    address(version, bytes)
}

/// The record in one entry of the ring; none when it is of another size.
pub(super) fn decode(bytes: &[u8]) -> Option<Event> {
    if bytes.len() < size_of::<Event>() {
        return None;
    }
    // SAFETY: long enough, and every bit pattern is an `Event`, which holds integers only.
    Some(unsafe { bytes.as_ptr().cast::<Event>().read_unaligned() })
}

/// The return addresses from the one that freed the packet on, as those of an exemplar.
fn frames(event: &Event) -> &[u64] {
    let count = usize::try_from(event.frames).unwrap_or(0).min(STACK_DEPTH);
    let stack = &event.stack[..count];
    let first = stack.iter().position(|address| *address == event.location).unwrap_or(0);
    &stack[first..]
}

impl KernelTags {
    /// What was caught, named. `resolve` says whose namespace a number is: what happened in others' becomes one number. Reads
    /// the kernel's symbols, 0.1 s, when there was a drop.
    pub fn tell(
        &self,
        caught: Caught,
        (armed, disarmed): (Timestamp, Timestamp),
        resolve: &dyn Fn(u64) -> Owner,
    ) -> Tagged {
        let Caught { mut events, counts, missed } = caught;
        events.sort_by_key(|event| event.at_ns);
        let mut accounts = TagAccounts {
            seen: counts.seen,
            beyond_limit: counts.beyond_limit,
            ring_full: counts.ring_full,
            missed,
            ..TagAccounts::default()
        };
        let dropped = events.iter().any(|event| event.point == DROPPED);
        let symbols =
            if dropped { host::kernel::symbols().map(Symbols::parse).unwrap_or_default() } else { Symbols::default() };
        let mut told = Vec::new();
        for event in &events {
            // Without any namespace nobody can say whose it is: it is kept and named as such.
            let owner = if event.netns == 0 { Owner::Unknown { id: 0 } } else { resolve(event.netns) };
            if event.netns != 0 && matches!(owner, Owner::Unknown { .. }) {
                accounts.foreign_netns += 1;
            } else if told.len() == MAX_TAG_EVENTS {
                accounts.beyond_limit += 1;
            } else {
                told.push(self.event(event, owner, &symbols));
            }
        }
        accounts.kept = told.len() as u64;
        let unseen = self.unseen(dropped && symbols.is_empty(), dropped);
        Tagged { armed, disarmed, events: told, accounts, unseen }
    }

    fn event(&self, event: &Event, netns: Owner, symbols: &Symbols) -> TagEvent {
        let point = match event.point {
            RECEIVED => TagPoint::Received,
            DROPPED => TagPoint::Dropped {
                reason: self.reasons.name(event.reason),
                function: symbols.name(event.location).map_or_else(|| hex(event.location), str::to_owned),
                hook: of_stack(frames(event).iter().filter_map(|address| symbols.name(*address))),
            },
            DELIVERED => TagPoint::Delivered,
            CONNECTED => TagPoint::Connected,
            _ => TagPoint::Sent,
        };
        TagEvent {
            at_ns: event.at_ns,
            netns,
            ifindex: event.ifindex,
            interface: None,
            point,
            direction: if event.is_answer == 0 { Direction::Original } else { Direction::Reply },
            source: from_words(event.version, event.source),
            destination: from_words(event.version, event.destination),
            source_port: event.source_port,
            destination_port: event.destination_port,
            protocol_number: event.protocol,
            ttl: event.ttl,
            tcp_flags: event.tcp_flags,
            length: event.length,
            sequence: event.sequence,
        }
    }

    fn unseen(&self, without_names: bool, dropped: bool) -> Vec<Gap> {
        let gap = |what: &str, reason, why: &str, remedy: &str| Gap {
            what: what.to_owned(),
            node: None,
            reason,
            why: why.to_owned(),
            remedy: remedy.to_owned(),
        };
        let mut unseen = Vec::new();
        if dropped && !self.reasons.are_reported() {
            unseen.push(gap(
                "why packets were dropped",
                GapReason::Kernel,
                "tracepoint kfree_skb passes no reason",
                "use Linux 5.17 or newer; until then the function tells most",
            ));
        }
        if without_names {
            unseen.push(gap(
                "names of the functions that dropped packets, and their netfilter hooks",
                GapReason::Rights,
                "/proc/kallsyms hides addresses",
                "add SYSLOG to securityContext.capabilities.add of the agent",
            ));
        }
        if !self.has_conntrack {
            unseen.push(gap(
                "packets of the tag that were translated to an address which nobody expected",
                GapReason::Kernel,
                "neither the kernel's BTF nor module nf_conntrack's described struct nf_conn when the programs were loaded",
                "start the agent again when connection tracking is loaded",
            ));
        }
        unseen
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tuple(protocol: Protocol, source_port: Option<u16>) -> TagTuple {
        TagTuple {
            protocol,
            source: source_port.map(|_| "10.0.0.1".parse().unwrap()),
            source_port,
            destination: "10.0.0.2".parse().unwrap(),
            destination_port: (protocol != Protocol::Icmp).then_some(80),
        }
    }

    fn request(tuple: TagTuple, alternatives: Vec<TagTuple>) -> TagRequest {
        TagRequest { tuple, alternatives, seconds: 1, asked_by: None }
    }

    #[test]
    fn a_tuple_is_followed_there_and_back() {
        let keys = keys(&request(tuple(Protocol::Tcp, Some(40_000)), Vec::new()));
        let ends = |key: &Key| (from_words(4, key.0.source).to_string(), key.0.source_port, key.0.destination_port);
        let found: Vec<_> = keys.iter().map(|(key, (is_answer, _))| (ends(key), *is_answer, key.port())).collect();
        assert_eq!(found.len(), 2);
        assert!(found.contains(&(("10.0.0.1".to_owned(), 40_000, 80), false, 40_000)));
        assert!(found.contains(&(("10.0.0.2".to_owned(), 80, 40_000), true, 80)));
    }

    #[test]
    fn who_comes_from_anywhere_is_found_by_where_he_goes() {
        let keys = keys(&request(tuple(Protocol::Tcp, None), Vec::new()));
        let key = keys.keys().next().unwrap();
        assert_eq!((keys.len(), key.port(), key.0.source), (1, 80, [0, 0]));
    }

    #[test]
    fn an_echo_has_one_identifier_both_ways() {
        let keys = keys(&request(tuple(Protocol::Icmp, Some(7)), Vec::new()));
        assert!(keys.keys().all(|key| (key.port(), key.0.destination_port) == (7, 0)) && keys.len() == 2);
    }

    #[test]
    fn addresses_survive_the_kernels_words() {
        for text in ["10.1.2.3", "fd00::1:2"] {
            let address: IpAddr = text.parse().unwrap();
            assert_eq!(from_words(if address.is_ipv4() { 4 } else { 6 }, words(address)), address);
        }
    }

    #[test]
    fn an_entry_of_another_size_is_no_record() {
        assert!(decode(&[0; 40]).is_none());
        let mut wild = decode(&[0xff; size_of::<Event>()]).unwrap();
        assert!(frames(&wild).is_empty(), "a negative count is an error code");
        (wild.frames, wild.location) = (4, 0x30);
        wild.stack[..4].copy_from_slice(&[0x10, 0x20, 0x30, 0x40]);
        assert_eq!(frames(&wild), [0x30, 0x40]);
    }
}
