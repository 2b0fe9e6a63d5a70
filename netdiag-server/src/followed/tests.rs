//! Ways put together from what nodes tell, whose clocks have nothing to do with each other.

use std::net::SocketAddr;

use jiff::Timestamp;
use netdiag_common::Netns;
use netdiag_common::forwarding::conntrack::Direction;
use netdiag_common::observation::rules::Hook;
use netdiag_common::observation::tag::{TagAccounts, TagEvent, TagPoint, TagTuple, Tagged};
use netdiag_common::observation::{Owner, Protocol};

use super::{End, Followed, Pick, Step, What, join};
use crate::trace::Place;

/// Flags of TCP.
const SYN: u8 = 0x02;
const RST: u8 = 0x04;
const ACK: u8 = 0x10;

const CLIENT: &str = "10.244.1.5:40000";
const SERVICE: &str = "10.96.0.20:80";
const ENDPOINT: &str = "10.244.2.9:8080";
const BEHIND_NAT: &str = "10.0.0.11:40000";
const SEQUENCE: u32 = 0x1234_5678;

/// One event of a SYN. `at` is the node's own clock.
fn syn(netns: &str, device: u32, point: TagPoint, (from, to): (&str, &str), ttl: u8) -> TagEvent {
    let (from, to): (SocketAddr, SocketAddr) = (from.parse().unwrap(), to.parse().unwrap());
    TagEvent {
        at_ns: 0,
        netns: if netns.is_empty() { Owner::Host } else { Owner::Pod { uid: netns.to_owned() } },
        ifindex: device,
        interface: (device == 2).then(|| "eth0".to_owned()),
        point,
        direction: Direction::Original,
        source: from.ip(),
        destination: to.ip(),
        source_port: from.port(),
        destination_port: to.port(),
        protocol_number: 6,
        ttl,
        tcp_flags: SYN,
        length: 60,
        sequence: SEQUENCE,
    }
}

fn dropped(reason: &str, function: &str, hook: Option<Hook>) -> TagPoint {
    TagPoint::Dropped { reason: reason.to_owned(), function: function.to_owned(), hook }
}

fn answer(event: TagEvent, flags: u8) -> TagEvent {
    TagEvent { direction: Direction::Reply, tcp_flags: flags, sequence: 7, ..event }
}

/// A node's reading, whose clock starts anywhere.
fn told(start_ns: u64, events: Vec<TagEvent>) -> Tagged {
    let kept = events.len() as u64;
    let events = events.into_iter().zip(start_ns..).map(|(event, at_ns)| TagEvent { at_ns, ..event }).collect();
    let at = Timestamp::UNIX_EPOCH;
    let accounts = TagAccounts { seen: kept, kept, ..TagAccounts::default() };
    Tagged { armed: at, disarmed: at, events, accounts, unseen: Vec::new() }
}

fn joined(nodes: Vec<(&str, Tagged)>) -> Followed {
    joined_of(Protocol::Tcp, Pick::First, nodes)
}

fn joined_of(protocol: Protocol, pick: Pick, nodes: Vec<(&str, Tagged)>) -> Followed {
    let client = Place { node: "n1".to_owned(), netns: Netns::Pod("client".to_owned()) };
    let tuple = TagTuple {
        protocol,
        source: Some("10.244.1.5".parse().unwrap()),
        source_port: Some(40_000),
        destination: "10.96.0.20".parse().unwrap(),
        destination_port: Some(80),
    };
    join(&client, &tuple, pick, &nodes.into_iter().map(|(node, tagged)| (node.to_owned(), tagged)).collect())
}

/// The client's node, as far as the packet gets out of it.
fn leaves(as_what: (&str, &str)) -> Vec<TagEvent> {
    vec![
        syn("client", 2, TagPoint::Sent, (CLIENT, SERVICE), 64),
        syn("", 7, TagPoint::Received, (CLIENT, SERVICE), 64),
        syn("", 3, TagPoint::Sent, as_what, 63),
    ]
}

fn words(followed: &Followed) -> Vec<String> {
    let what = |step: &Step| match &step.what {
        What::Sent => "sent",
        What::Received => "received",
        What::Translated { .. } => "translated",
        What::Dropped(_) => "dropped",
        What::Delivered => "delivered",
    };
    followed.steps.iter().map(|step| format!("{} {}", step.node, what(step))).collect()
}

pub(crate) fn dropped_on_the_second_node() -> Followed {
    let here = (CLIENT, ENDPOINT);
    let stop = dropped("NETFILTER_DROP", "nft_do_chain", Some(Hook::Forward));
    // Its clock is far behind.
    let second = vec![syn("", 3, TagPoint::Received, here, 63), syn("", 3, stop, here, 63)];
    joined(vec![("n1", told(1_000_000, leaves(here))), ("n2", told(5, second))])
}

/// A stranger's SYN to the same endpoint is seen too.
pub(crate) fn masqueraded() -> Followed {
    let here = (BEHIND_NAT, ENDPOINT);
    let stranger = TagEvent { sequence: 99, ..syn("", 3, TagPoint::Received, ("10.9.9.9:1", ENDPOINT), 62) };
    let second = vec![
        stranger,
        syn("", 3, TagPoint::Received, here, 63),
        syn("", 9, TagPoint::Sent, here, 62),
        syn("web", 2, TagPoint::Received, here, 62),
        TagEvent { ttl: 0, ifindex: 0, ..syn("web", 0, TagPoint::Delivered, here, 0) },
    ];
    let mut first = leaves(here);
    first.push(answer(syn("client", 2, TagPoint::Received, (SERVICE, CLIENT), 62), SYN | ACK));
    joined(vec![("n1", told(1_000_000, first)), ("n2", told(5, second))])
}

#[test]
fn the_packet_orders_the_nodes_and_not_their_clocks() {
    let followed = dropped_on_the_second_node();
    let wanted = ["n1 sent", "n1 received", "n1 translated", "n1 sent", "n2 received", "n2 dropped"];
    assert_eq!((words(&followed), followed.end), (wanted.map(str::to_owned).to_vec(), End::Dropped));
}

#[test]
fn behind_a_masquerade_the_sequence_number_tells_whose_it_is() {
    let followed = masqueraded();
    assert_eq!(words(&followed).last().unwrap(), "n2 delivered");
    assert!(followed.steps.iter().all(|step| step.ends.source.port() == 40_000), "no stranger's");
    assert_eq!((followed.end, followed.gaps.len()), (End::Answered, 0));
}

#[test]
fn a_way_back_over_the_first_node_goes_by_time_to_live() {
    let mut first = leaves((CLIENT, ENDPOINT));
    first.push(syn("", 3, TagPoint::Received, (CLIENT, ENDPOINT), 62));
    first.push(syn("", 3, dropped("IP_RPFILTER", "ip_rcv_finish_core", None), (CLIENT, ENDPOINT), 62));
    let second = vec![
        syn("", 3, TagPoint::Received, (CLIENT, ENDPOINT), 63),
        syn("", 3, TagPoint::Sent, (CLIENT, ENDPOINT), 62),
    ];
    let followed = joined(vec![("n1", told(100, first)), ("n2", told(1, second))]);
    let tail: Vec<String> = words(&followed).split_off(4);
    assert_eq!(tail, ["n2 received", "n2 sent", "n1 received", "n1 dropped"]);
}

#[test]
fn a_reset_that_ends_the_attempt_is_no_drop_of_an_answer() {
    let here = (CLIENT, ENDPOINT);
    let second = vec![
        syn("web", 2, TagPoint::Received, here, 62),
        syn("web", 2, dropped("NO_SOCKET", "tcp_v4_rcv", None), here, 62),
        answer(syn("web", 2, TagPoint::Sent, (ENDPOINT, CLIENT), 64), RST | ACK),
    ];
    let mut first = leaves(here);
    first.push(answer(syn("client", 2, TagPoint::Received, (SERVICE, CLIENT), 62), RST | ACK));
    first.push(answer(syn("client", 2, dropped("TCP_RESET", "tcp_v4_rcv", None), (SERVICE, CLIENT), 62), RST | ACK));
    let followed = joined(vec![("n1", told(1, first)), ("n2", told(1, second))]);
    assert_eq!((words(&followed).last().unwrap().as_str(), followed.end), ("n2 dropped", End::Dropped));
}

#[test]
fn an_answer_that_is_dropped_ends_the_way() {
    let here = (CLIENT, ENDPOINT);
    let second = vec![
        syn("web", 2, TagPoint::Received, here, 62),
        answer(syn("web", 2, TagPoint::Sent, (ENDPOINT, CLIENT), 64), SYN | ACK),
    ];
    let stop = dropped("NETFILTER_DROP", "nft_do_chain", Some(Hook::Prerouting));
    let mut first = leaves(here);
    first.push(answer(syn("", 3, stop, (ENDPOINT, CLIENT), 63), SYN | ACK));
    let followed = joined(vec![("n1", told(1, first)), ("n2", told(1, second))]);
    assert_eq!((words(&followed).last().unwrap().as_str(), followed.end), ("n1 dropped", End::AnswerDropped));
}

#[test]
fn what_nobody_sees_again_is_lost_behind_the_last_step() {
    let followed = joined(vec![("n1", told(1, leaves((CLIENT, ENDPOINT)))), ("n2", told(1, Vec::new()))]);
    assert_eq!((words(&followed).last().unwrap().as_str(), followed.end), ("n1 sent", End::Lost));
    let nothing = joined(vec![("n1", told(1, Vec::new()))]);
    assert_eq!((nothing.steps.len(), nothing.end), (0, End::NotSeen));
}

#[test]
fn a_packet_that_is_sent_again_passes_each_place_once() {
    let mut first = leaves((CLIENT, ENDPOINT));
    first.extend(leaves((CLIENT, ENDPOINT)));
    let followed = joined(vec![("n1", told(1, first))]);
    assert_eq!(followed.steps.len(), 4);
}

#[test]
fn a_copy_of_what_has_arrived_is_no_drop() {
    let here = (CLIENT, ENDPOINT);
    let second = vec![
        syn("web", 2, TagPoint::Received, here, 62),
        syn("web", 2, dropped("NOT_SPECIFIED", "tcp_v4_rcv", None), here, 62),
        TagEvent { ttl: 0, ifindex: 0, ..syn("web", 0, TagPoint::Delivered, here, 0) },
    ];
    let followed = joined(vec![("n1", told(1, leaves(here))), ("n2", told(1, second))]);
    assert_eq!((words(&followed).last().unwrap().as_str(), followed.end), ("n2 delivered", End::Delivered));
    assert!(!words(&followed).contains(&"n2 dropped".to_owned()));
}

#[test]
fn events_that_are_missing_are_a_gap() {
    let mut tagged = told(1, leaves((CLIENT, ENDPOINT)));
    tagged.accounts = TagAccounts { seen: 300, beyond_limit: 297, ..tagged.accounts };
    let followed = joined(vec![("n1", tagged)]);
    assert_eq!(followed.gaps[0].what, "297 events of the probe's packets");
}

/// A datagram to the endpoint, as [`leaves`] has it.
fn datagram(length: u32, ttl: u8) -> Vec<TagEvent> {
    let of = |event: TagEvent| TagEvent { protocol_number: 17, tcp_flags: 0, sequence: 0, length, ..event };
    let here = (CLIENT, ENDPOINT);
    let sent = syn("client", 2, TagPoint::Sent, here, ttl);
    vec![of(sent), of(syn("", 7, TagPoint::Received, here, ttl))]
}

fn at_the_router(what: TagPoint, length: u32, ttl: u8) -> TagEvent {
    let event = syn("", 7, what, (CLIENT, ENDPOINT), ttl);
    TagEvent { protocol_number: 17, tcp_flags: 0, sequence: 0, length, ..event }
}

#[test]
fn of_a_path_the_packet_counts_that_got_farthest() {
    let expired = || dropped("IP_INHDR", "ip_forward", None);
    let mut first = datagram(61, 1);
    first.push(at_the_router(expired(), 61, 1));
    first.extend(datagram(62, 2));
    first.push(TagEvent { ifindex: 3, ..at_the_router(TagPoint::Sent, 62, 1) });
    first.extend(datagram(63, 3));
    first.push(TagEvent { ifindex: 3, ..at_the_router(TagPoint::Sent, 63, 2) });
    let stop = dropped("NETFILTER_DROP", "nft_do_chain", Some(Hook::Forward));
    let arrives = |length, ttl| TagEvent { ifindex: 3, ..at_the_router(TagPoint::Received, length, ttl) };
    let second = vec![
        arrives(62, 1),
        TagEvent { ifindex: 3, ..at_the_router(expired(), 62, 1) },
        arrives(63, 2),
        TagEvent { ifindex: 3, ..at_the_router(stop, 63, 1) },
    ];
    let nodes = vec![("n1", told(100, first)), ("n2", told(1, second))];
    let followed = joined_of(Protocol::Udp, Pick::Farthest, nodes);
    assert_eq!(words(&followed), ["n1 translated", "n1 sent", "n1 received", "n1 sent", "n2 received", "n2 dropped"]);
    let What::Dropped(drop) = &followed.steps[5].what else { panic!("a drop") };
    assert_eq!((followed.end, drop.reason.as_str()), (End::Dropped, "NETFILTER_DROP"));
}

#[test]
fn of_a_search_the_smallest_size_counts_that_does_not_get_through() {
    let stop = || dropped("PKT_TOO_BIG", "ip_forward", None);
    let mut first = datagram(1_500, 64);
    first.push(at_the_router(stop(), 1_500, 64));
    first.extend(datagram(1_000, 64));
    first.push(TagEvent { ifindex: 3, ..at_the_router(TagPoint::Sent, 1_000, 63) });
    first.extend(datagram(1_001, 64));
    first.push(at_the_router(stop(), 1_001, 64));
    // The same size once more, with a TTL: to find the last hop.
    first.extend(datagram(1_001, 1));
    let expired = dropped("IP_INHDR", "ip_forward", None);
    first.push(TagEvent { ifindex: 9, ..at_the_router(expired, 1_001, 1) });
    let back = answer(syn("client", 2, TagPoint::Received, (ENDPOINT, CLIENT), 62), 0);
    first.push(TagEvent { protocol_number: 17, length: 1_000, ..back });
    let of = |bytes| {
        let nodes = vec![("n1", told(1, first.clone()))];
        joined_of(Protocol::Udp, Pick::Above { bytes }, nodes)
    };
    let too_big = of(1_000);
    assert_eq!(words(&too_big), ["n1 translated", "n1 sent", "n1 received", "n1 dropped"]);
    assert_eq!(too_big.end, End::Dropped);
    let all_fit = of(1_500);
    assert_eq!((words(&all_fit).last().unwrap().as_str(), all_fit.end), ("n1 dropped", End::Dropped), "the largest");
}
