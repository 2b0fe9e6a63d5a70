//! Connections that a flowtable takes, and packets that it forwards.

use super::*;
use crate::forwarding::conntrack::{Connection, Direction, Entry, Tuple, status};
use crate::forwarding::flowtable::{FlowDevice, Flowtable};
use crate::forwarding::packet::{UDP, udp};
use crate::forwarding::path::{Decision, FlowStep};

/// A rule that hands everything to a flowtable, and a rule behind it.
fn offloading(device: Option<&str>) -> RuleState {
    let rules = vec![rule(1, vec![Expression::FlowOffload { table: "f".into() }]), rule(2, Vec::new())];
    let mut state = state(rules, Vec::new());
    let query = RouteQuery { protocol: UDP, ports: Some((4242, 53)), ..route_query(0) };
    state.routes.0.insert(query, Route::Forward { interface: 3, gateway: None, source: None });
    state.flowtables = device.map(|device| {
        let devices = vec![FlowDevice { name: device.into(), is_prefix: false }];
        vec![Flowtable { family: Family::Ip, table: "t".into(), name: "f".into(), priority: 0, devices }]
    });
    state
}

/// A datagram of a connection with this status; of none, the first of a new one.
fn datagram(bits: Option<u32>) -> Packet {
    let (source, destination) = ("10.0.0.1".parse().unwrap(), "10.0.0.2".parse().unwrap());
    let origin = Origin::Received { interface: 2 };
    let mut packet = Packet::between(origin, source, destination, UDP, &udp(4242, 53, b"question")).unwrap();
    if let Some(bits) = bits {
        let original = Tuple::of(&packet).unwrap();
        let (reply, masqueraded) = (original.inverted(), Fact::Known(None));
        let direction = Direction::Original;
        let entry = Entry { direction, status: bits, mark: 0, zone: 0, original, reply, masqueraded };
        packet.connection = Fact::Known(Connection::Existing(entry));
    }
    packet
}

fn only(state: &RuleState, packet: &Packet) -> Path {
    let mut paths = done(state, packet).paths;
    assert_eq!(paths.len(), 1, "{paths:?}");
    paths.remove(0)
}

fn flow_steps(path: &Path) -> Vec<FlowStep> {
    let step = |decision: &Decision| match decision {
        Decision::Flowtable { step, .. } => Some(*step),
        _ => None,
    };
    path.decisions.iter().filter_map(step).collect()
}

/// Handles of the rules that matched.
fn matched(path: &Path) -> Vec<u64> {
    let handle = |decision: &Decision| match decision {
        Decision::Rule { handle, .. } => Some(*handle),
        _ => None,
    };
    path.decisions.iter().filter_map(handle).collect()
}

const CONFIRMED: u32 = status::CONFIRMED | status::SEEN_REPLY;

#[test]
fn a_flowtable_takes_a_connection_that_the_table_of_connections_has() {
    assert_eq!(matched(&only(&offloading(None), &datagram(None))), [2]);
    assert_eq!(missing(&offloading(None), &datagram(Some(CONFIRMED))), [Key::Flowtables]);
    let path = only(&offloading(Some("in")), &datagram(Some(CONFIRMED)));
    assert_eq!((matched(&path), flow_steps(&path)), (vec![1, 2], vec![FlowStep::Added]));
    assert_eq!(path.connection.map(|entry| entry.status), Some(CONFIRMED | status::OFFLOADED));
    let helped = only(&offloading(Some("in")), &datagram(Some(CONFIRMED | status::HELPER)));
    assert_eq!((matched(&helped), flow_steps(&helped)), (vec![2], Vec::new()));
}

#[test]
fn what_a_flowtable_forwards_passes_no_rules() {
    let packet = datagram(Some(CONFIRMED | status::OFFLOADED));
    let path = only(&offloading(Some("in")), &packet);
    assert_eq!((matched(&path), flow_steps(&path)), (Vec::new(), vec![FlowStep::Forwarded]));
    assert_eq!((path.end, path.packet.hops_left()), (End::Sent { interface: 3, gateway: None }, 63));
    assert_eq!(path.gaps.len(), 1, "{:?}", path.gaps);
}

#[test]
fn rules_see_what_comes_in_elsewhere_or_has_no_hops_left() {
    let mut packet = datagram(Some(CONFIRMED | status::OFFLOADED));
    assert_eq!(matched(&only(&offloading(Some("out")), &packet)), [2]);
    packet.bytes[8] = 1;
    let path = only(&offloading(Some("in")), &packet);
    assert_eq!((matched(&path), path.end), (vec![2], End::HopsExhausted));
}

/// A segment of a connection with this status.
fn segment(bits: u32, flags: u8) -> Packet {
    let mut packet = packet();
    let original = Tuple::of(&packet).unwrap();
    let (reply, masqueraded) = (original.inverted(), Fact::Known(None));
    let entry = Entry { direction: Direction::Original, status: bits, mark: 0, zone: 0, original, reply, masqueraded };
    packet.connection = Fact::Known(Connection::Existing(entry));
    let at = packet.transport().unwrap().offset + 13;
    packet.bytes[at] = flags;
    packet
}

#[test]
fn the_end_of_a_tcp_connection_may_go_back_to_the_rules() {
    let state = offloading(Some("in"));
    let of = |flags| -> Vec<Vec<FlowStep>> {
        done(&state, &segment(CONFIRMED | status::OFFLOADED, flags)).paths.iter().map(flow_steps).collect()
    };
    assert_eq!(of(0x10), [vec![FlowStep::Forwarded]]);
    assert_eq!(of(0x11), [vec![FlowStep::Forwarded], Vec::new()]);
}

#[test]
fn whether_a_tcp_connection_is_established_is_not_known_from_its_entry() {
    let state = offloading(Some("in"));
    // The answer to its first segment, which Linux 5.10 takes, and one of what follows.
    for flags in [0x12, 0x10] {
        let ways: Vec<Vec<u64>> = done(&state, &segment(CONFIRMED, flags)).paths.iter().map(matched).collect();
        assert_eq!(ways, [vec![1, 2], vec![2]]);
    }
    assert_eq!(matched(&only(&state, &segment(CONFIRMED, 0x11))), [2]);
}
