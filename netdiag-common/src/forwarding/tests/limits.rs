//! What is not evaluated, and is named only where the packet depends on it.

use super::*;
use crate::forwarding::expression::{Base, Dynset, NatKind};
use crate::forwarding::packet::{UDP, udp};
use crate::forwarding::set::{Elements, Set};
use crate::forwarding::state::{SetKey, Table};

fn datagram(origin: Origin, length: u32) -> Packet {
    let (source, destination) = ("10.0.0.1".parse().unwrap(), "10.0.0.2".parse().unwrap());
    let mut packet = Packet::between(origin, source, destination, UDP, &udp(4242, 53, b"")).unwrap();
    packet.set_length(length);
    packet
}

fn received(length: u32) -> Packet {
    datagram(Origin::Received { interface: 2 }, length)
}

/// Its largest packet is one of 1500 bytes.
fn measured() -> RuleState {
    let mut state = state(Vec::new(), Vec::new());
    let query = RouteQuery { protocol: UDP, ports: Some((4242, 53)), ..route_query(0) };
    let route = Route::Forward { interface: 3, gateway: None, source: None };
    state.routes.0.insert(query, route.clone());
    // Nobody's ports, of a later fragment.
    state.routes.0.insert(RouteQuery { protocol: UDP, ports: None, ..route_query(0) }, route);
    let Some(Some(output)) = state.routing.interfaces.0.get_mut(&3) else { panic!("no interface 3") };
    output.mtu = 1500;
    state
}

fn only(state: &RuleState, packet: &Packet) -> Path {
    let mut paths = done(state, packet).paths;
    assert_eq!(paths.len(), 1, "{paths:?}");
    paths.remove(0)
}

#[test]
fn a_fragment_waits_for_the_others_where_connections_are_tracked() {
    let fragment = |field: u16| {
        let mut packet = received(1400);
        packet.bytes[6..8].copy_from_slice(&field.to_be_bytes());
        packet
    };
    let mut state = measured();
    let first = only(&state, &fragment(0x2000));
    assert!(matches!(first.end, End::Sent { .. }) && first.gaps[0].contains("is a fragment"), "{first:?}");
    let later = only(&state, &fragment(0x2010));
    let End::Unknown { because, .. } = &later.end else { panic!("{later:?}") };
    assert!(because.contains("a later fragment"), "{because}");
    assert_eq!(only(&state, &fragment(0x4000)).gaps, [""; 0]);
    // Without tracking, each goes on by itself.
    state.tracking.0.insert(Protocol::Ipv4, false);
    for field in [0x2000, 0x2010] {
        let alone = only(&state, &fragment(field));
        assert!(matches!(alone.end, End::Sent { .. }) && alone.gaps.is_empty(), "{alone:?}");
    }
}

#[test]
fn fragments_of_ipv6_are_told_by_their_header() {
    let of = |field: u16| {
        let [high, low] = field.to_be_bytes();
        let header = [UDP, 0, high, low, 0, 0, 0, 1];
        let any = "fd00::1".parse().unwrap();
        Packet::between(Origin::Sent, any, any, 44, &header).unwrap().fragment()
    };
    // An offset of two units, more to come, and one that is whole.
    assert_eq!((of(0x11), of(0x01), of(0)), (Some(2), Some(0), None));
}

#[test]
fn what_leaves_in_pieces_says_what_rules_elsewhere_see_of_it() {
    let mut packet = received(1501);
    packet.allow_fragments();
    let path = only(&measured(), &packet);
    assert!(path.gaps.len() == 1 && path.gaps[0].starts_with("the packet leaves in pieces"), "{path:?}");
    assert_eq!(only(&measured(), &received(1500)).gaps, [""; 0]);
}

#[test]
fn a_learned_path_mtu_is_named_for_a_long_packet_of_this_host() {
    let gaps = |packet: Packet| only(&measured(), &packet).gaps;
    let long = gaps(datagram(Origin::Sent, 553));
    assert!(long.len() == 1 && long[0].starts_with("a path MTU that was learned"), "{long:?}");
    for packet in [datagram(Origin::Sent, 552), received(1500)] {
        assert_eq!(gaps(packet), [""; 0]);
    }
}

/// Translates sources to one of these ports.
fn to_ports(first: u16, last: u16) -> RuleState {
    let port = |to, port: u16| Expression::Immediate { to, data: Data::Value(port.to_be_bytes().to_vec()) };
    let (kind, address, port_registers) = (NatKind::Source, [None, None], [Some(1), Some(2)]);
    let translate = Expression::Nat { kind, family: 2, address, port: port_registers, flags: 0 };
    let mut state = state(vec![rule(1, vec![port(1, first), port(2, last), translate])], Vec::new());
    let base = &mut state.hooks.as_mut().unwrap().chains[0];
    (base.kind, base.hook, base.priority) = (ChainKind::Nat, Hook::Postrouting, 100);
    state
}

#[test]
fn a_range_of_few_ports_may_have_none_left() {
    let of_one = only(&to_ports(5000, 5000), &packet());
    let wanted = "whether other connections leave one of the ports 5000-5000 free is not evaluated";
    assert!(of_one.gaps.len() == 1 && of_one.gaps[0].starts_with(wanted), "{of_one:?}");
    assert_eq!(only(&to_ports(5000, 9000), &packet()).gaps, [""; 0]);
}

/// What is said of a rule that adds to a set of this size, with this many elements.
fn gaps_of_adding(size: Option<u32>, count: Option<u32>) -> Vec<String> {
    let load = Expression::Payload { base: Base::Network, offset: 12, bytes: 4, to: 1 };
    let add = Expression::Dynset {
        set: "seen".into(),
        operation: Dynset::Add,
        key: 1,
        data: None,
        negated: false,
        expressions: Vec::new(),
    };
    let mut state = state(vec![rule(1, vec![load, add])], Vec::new());
    let mut asked = Table::default();
    asked.0.insert(vec![10, 0, 0, 1], None);
    let elements = Elements::Asked(asked);
    let set = Set { flags: 0, key_bytes: 4, data_bytes: 0, object: None, fields: Vec::new(), size, count, elements };
    let key = SetKey { family: Family::Ip, table: "t".into(), set: "seen".into() };
    state.sets.0.insert(key, Some(set));
    only(&state, &packet()).gaps
}

#[test]
fn a_set_that_a_rule_adds_to_may_be_full() {
    for (size, count) in [(100, None), (1024, None), (65_535, Some(65_535)), (65_535, Some(64_511))] {
        let gaps = gaps_of_adding(Some(size), count);
        assert!(gaps.len() == 1 && gaps[0].starts_with("whether set seen has room"), "{size} {count:?}: {gaps:?}");
    }
}

#[test]
fn a_set_with_much_room_takes_one_more() {
    // As of affinity to clients, without a count and with one, and of a set without a limit.
    for (size, count) in [(Some(65_535), None), (Some(65_535), Some(64_510)), (None, None), (None, Some(70_000))] {
        assert_eq!(gaps_of_adding(size, count), [""; 0], "{size:?} {count:?}");
    }
}
