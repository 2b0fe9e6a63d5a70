//! What the nodes saw of one packet, in the order of its way. Pure.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::SocketAddr;

use netdiag_common::forwarding::conntrack::Direction;
use netdiag_common::observation::tag::{TagEvent, TagPoint, TagTuple, Tagged};
use netdiag_common::observation::{Owner, Protocol};
use netdiag_common::{Gap, GapReason, Netns};

use super::{Dropped, End, Ends, Followed, Pick, Step, What};
use crate::trace::Place;

/// Flags of TCP: RFC 9293, 3.1.
const SYN: u8 = 0x02;
const RST: u8 = 0x04;
const ACK: u8 = 0x10;
/// What kind of packet it is. ECN's flags differ between a SYN and its second try (RFC 3168, 6.1.1.1).
const KIND: u8 = 0x01 | SYN | RST | ACK;
/// Routers on the way, at most. A search of the path MTU sends a size once more with TTLs below that, to find the last hop.
const MOST_HOPS: u8 = 24;

/// An event, and whose.
#[derive(Clone, Copy)]
struct Seen<'a> {
    node: &'a str,
    event: &'a TagEvent,
}

/// Which packet it is: what no translation changes.
#[derive(Clone, Copy)]
struct Identity {
    protocol: Protocol,
    /// Of TCP and DNS; 0 when nothing but the addresses tells the packet.
    sequence: u32,
    /// Of TCP, those that tell a packet of the handshake from others with the same sequence number.
    flags: u8,
    source: Option<SocketAddr>,
    /// Of datagrams and echoes that differ in their size from others of the same tuple, bytes.
    length: Option<u32>,
    /// Less than that have others of the same size.
    least_ttl: u8,
}

/// The way of one packet that `client` sent with this tuple.
pub fn join(client: &Place, tuple: &TagTuple, pick: Pick, readings: &BTreeMap<String, Tagged>) -> Followed {
    let mut gaps: Vec<Gap> = readings.iter().flat_map(|(node, tagged)| gaps_of(node, tagged)).collect();
    let Some(identity) = identity(client, tuple, pick, readings) else {
        return Followed { steps: Vec::new(), end: End::NotSeen, gaps };
    };
    let there = in_order(client, readings, |event| identity.is_of(event));
    let answers = in_order(client, readings, |event| identity.is_answered_by(event));
    let mut steps = steps(tuple, &there);
    let lost_answer = answers.iter().rev().find(|seen| is_drop(seen.event) && !is_at(client, seen));
    let end = end(client, pick, (there.as_slice(), answers.as_slice()), lost_answer.is_some(), readings);
    if matches!(end, End::Answered | End::Delivered | End::AnswerDropped) {
        // A packet that was sent again is dropped where the first one has arrived already.
        steps.retain(|step| !matches!(step.what, What::Dropped(_)));
    }
    if let (End::AnswerDropped, Some(seen)) = (end, lost_answer) {
        steps.push(step(*seen));
    }
    let may_be_his = |event: &TagEvent| identity.may_be(event);
    let is_untold = identity.sequence == 0 && readings.values().any(|tagged| tagged.events.iter().any(may_be_his));
    if end == End::Lost && is_untold {
        gaps.push(untold(tuple));
    }
    Followed { steps, end, gaps }
}

fn identity(client: &Place, tuple: &TagTuple, pick: Pick, readings: &BTreeMap<String, Tagged>) -> Option<Identity> {
    let is_begin = |event: &&TagEvent| {
        event.direction == Direction::Original
            && event.netns == owner(client)
            && event.protocol_number == tuple.protocol.number()
            && event.point != TagPoint::Connected
            // The address may be translated before the packet leaves its own namespace; the port then mostly stays.
            && tuple.source_port.is_none_or(|port| port == event.source_port)
    };
    let mut begins = readings.get(&client.node)?.events.iter().filter(is_begin);
    // Of equal ones the first.
    let first = match pick {
        Pick::First => begins.next()?,
        Pick::Farthest => begins.rev().max_by_key(|event| event.ttl)?,
        Pick::Above { bytes } => {
            let above = begins.clone().filter(|event| event.length > bytes).min_by_key(|event| event.length);
            above.or_else(|| begins.rev().max_by_key(|event| event.length))?
        }
    };
    let source = tuple.source.map(|source| SocketAddr::new(source, tuple.source_port.unwrap_or(0)));
    // Each SYN has its own sequence number.
    let is_one_of_several = pick != Pick::First && tuple.protocol != Protocol::Tcp;
    Some(Identity {
        protocol: tuple.protocol,
        sequence: first.sequence,
        flags: first.tcp_flags & KIND,
        source,
        length: is_one_of_several.then_some(first.length),
        least_ttl: if matches!(pick, Pick::Above { .. }) { first.ttl.saturating_sub(MOST_HOPS) } else { 0 },
    })
}

impl Identity {
    fn is_of(&self, event: &TagEvent) -> bool {
        if event.direction != Direction::Original || event.protocol_number != self.protocol.number() {
            return false;
        }
        if !self.has_length(event) || event.ttl < self.least_ttl {
            return false;
        }
        match (&event.point, self.protocol) {
            (TagPoint::Connected, _) => false,
            (TagPoint::Delivered, _) => event.sequence == self.sequence,
            (_, Protocol::Tcp) => event.tcp_flags & KIND == self.flags && event.sequence == self.sequence,
            _ if self.sequence != 0 => event.sequence == self.sequence,
            _ => Some(ends(event).source) == self.source,
        }
    }

    /// An echo is as long as what it answers.
    fn is_answered_by(&self, event: &TagEvent) -> bool {
        is_answer(event) && !is_reset(event) && self.has_length(event)
    }

    fn has_length(&self, event: &TagEvent) -> bool {
        self.length.is_none_or(|length| length == event.length)
    }

    /// Goes where the packet goes, from somebody who may be the client behind another address.
    fn may_be(&self, event: &TagEvent) -> bool {
        event.direction == Direction::Original
            && event.protocol_number == self.protocol.number()
            && Some(ends(event).source) != self.source
    }
}

/// Each place once: what is sent again passes the same ones. Of several nodes the one comes first where the packet has lived
/// shorter; the node where it was last goes on as long as that is not decided.
fn in_order<'a>(
    client: &Place,
    readings: &'a BTreeMap<String, Tagged>,
    wanted: impl Fn(&TagEvent) -> bool,
) -> Vec<Seen<'a>> {
    let mut queues: BTreeMap<&str, VecDeque<(u8, Seen<'a>)>> = BTreeMap::new();
    for (node, tagged) in readings {
        let mut passed = BTreeSet::new();
        let mut ttl = u8::MAX;
        for event in tagged.events.iter().filter(|event| wanted(event)) {
            if !passed.insert((whose(&event.netns), event.ifindex, kind(&event.point))) {
                continue;
            }
            // A socket's event has no packet: it comes behind what the socket was given.
            ttl = if event.ttl == 0 { ttl } else { event.ttl };
            queues.entry(node).or_default().push_back((ttl, Seen { node, event }));
        }
    }
    let mut ordered = Vec::new();
    let mut at = client.node.as_str();
    loop {
        let heads = queues.iter().filter_map(|(node, queue)| Some((queue.front()?.0, *node == at, *node)));
        let Some((_, _, next)) = heads.max() else { return ordered };
        at = next;
        if let Some((_, seen)) = queues.get_mut(next).and_then(VecDeque::pop_front) {
            ordered.push(seen);
        }
    }
}

fn steps(tuple: &TagTuple, way: &[Seen<'_>]) -> Vec<Step> {
    let mut steps = Vec::new();
    let destination = SocketAddr::new(tuple.destination, tuple.destination_port.unwrap_or(0));
    let mut before =
        tuple.source.map(|source| Ends { source: (source, tuple.source_port.unwrap_or(0)).into(), destination });
    for seen in way {
        let ends = ends(seen.event);
        if let Some(from) = before.filter(|from| *from != ends) {
            steps.push(Step { what: What::Translated { from }, interface: None, ..step(*seen) });
        }
        before = Some(ends);
        steps.push(step(*seen));
    }
    steps
}

fn step(Seen { node, event }: Seen<'_>) -> Step {
    let what = match &event.point {
        TagPoint::Received => What::Received,
        TagPoint::Sent => What::Sent,
        TagPoint::Dropped { reason, function, hook } => {
            What::Dropped(Dropped { reason: reason.clone(), function: function.clone(), hook: *hook, by: None })
        }
        TagPoint::Delivered | TagPoint::Connected => What::Delivered,
    };
    let device = || event.interface.clone().unwrap_or_else(|| format!("interface {}", event.ifindex));
    let interface = (event.ifindex != 0).then(device);
    Step { node: node.to_owned(), netns: event.netns.clone(), interface, what, ends: ends(event) }
}

fn end(
    client: &Place,
    pick: Pick,
    (there, answers): (&[Seen<'_>], &[Seen<'_>]),
    is_answer_lost: bool,
    readings: &BTreeMap<String, Tagged>,
) -> End {
    let came_back = answers.iter().any(|seen| is_at(client, seen) && seen.event.point == TagPoint::Received);
    let all = || readings.values().flat_map(|tagged| &tagged.events);
    let is_connected = all().any(|event| event.point == TagPoint::Connected);
    let is_delivered = there.iter().any(|seen| seen.event.point == TagPoint::Delivered);
    if came_back || is_connected {
        return End::Answered;
    }
    if is_answer_lost {
        return End::AnswerDropped;
    }
    if is_delivered || !answers.is_empty() {
        return End::Delivered;
    }
    if there.last().is_some_and(|seen| is_drop(seen.event)) {
        return End::Dropped;
    }
    // Which of several packets an ICMP error is about is not known.
    let is_refusal = |event: &TagEvent| is_reset(event) || pick == Pick::First && is_error(event);
    let refuses = |event: &TagEvent| event.direction == Direction::Reply && is_refusal(event);
    if all().any(refuses) { End::Refused } else { End::Lost }
}

/// What the agent itself says is missing.
fn gaps_of<'a>(node: &'a str, tagged: &'a Tagged) -> impl Iterator<Item = Gap> + use<'a> {
    let lost = tagged.accounts.lost();
    let missing = (lost > 0).then(|| Gap {
        what: format!("{lost} events of the probe's packets"),
        node: Some(node.to_owned()),
        reason: GapReason::Failed,
        why: format!("there were {} of them, an agent tells {}", tagged.accounts.seen, tagged.accounts.kept),
        remedy: "probe again when fewer others connect to the same endpoints".to_owned(),
    });
    tagged.unseen.iter().map(move |gap| Gap { node: Some(node.to_owned()), ..gap.clone() }).chain(missing)
}

fn untold(tuple: &TagTuple) -> Gap {
    Gap {
        what: "the way of the packet behind a translation of its source".to_owned(),
        node: None,
        reason: GapReason::Failed,
        why: format!("{tuple}: neither a sequence number nor a DNS identifier tells it from others' packets there"),
        remedy: "probe with TCP or DNS".to_owned(),
    }
}

fn is_answer(event: &TagEvent) -> bool {
    event.direction == Direction::Reply && !is_error(event)
}

/// A RST is freed as a drop where it ends a connection attempt.
fn is_reset(event: &TagEvent) -> bool {
    event.protocol_number == Protocol::Tcp.number() && event.tcp_flags & RST != 0
}

/// ICMP about a packet of the connection. Of an echo it is the answer, which the tag itself has.
fn is_error(event: &TagEvent) -> bool {
    let is_icmp = [Protocol::Icmp, Protocol::Icmpv6].iter().any(|icmp| icmp.number() == event.protocol_number);
    is_icmp && event.source_port == 0
}

fn is_drop(event: &TagEvent) -> bool {
    matches!(event.point, TagPoint::Dropped { .. })
}

fn is_at(client: &Place, seen: &Seen<'_>) -> bool {
    seen.node == client.node && seen.event.netns == owner(client)
}

fn owner(place: &Place) -> Owner {
    match &place.netns {
        Netns::Host => Owner::Host,
        Netns::Pod(uid) => Owner::Pod { uid: uid.clone() },
    }
}

fn whose(owner: &Owner) -> (u64, &str) {
    match owner {
        Owner::Host => (0, ""),
        Owner::Pod { uid } => (0, uid),
        Owner::Unknown { id } => (1 + id, ""),
    }
}

fn kind(point: &TagPoint) -> u8 {
    match point {
        TagPoint::Received => 0,
        TagPoint::Sent => 1,
        TagPoint::Dropped { .. } => 2,
        TagPoint::Delivered => 3,
        TagPoint::Connected => 4,
    }
}

fn ends(event: &TagEvent) -> Ends {
    Ends {
        source: SocketAddr::new(event.source, event.source_port),
        destination: SocketAddr::new(event.destination, event.destination_port),
    }
}
