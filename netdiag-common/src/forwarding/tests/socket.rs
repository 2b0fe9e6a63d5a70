//! Rules that look for a socket of this host, or give the packet to one.

use std::net::IpAddr;

use super::*;
use crate::forwarding::conntrack::{Connection, Direction, Entry, Tuple, status};
use crate::forwarding::path::Decision;
use crate::forwarding::socket::{FoundSocket, SocketQuery, SocketState};

fn query(destination: &str) -> SocketQuery {
    let (source, destination) = ("10.0.0.1:4242".parse().unwrap(), destination.parse().unwrap());
    SocketQuery { protocol: TCP, source, destination, interface: 2 }
}

fn socket(address: &str, transparent: Fact<bool>) -> FoundSocket {
    let address = address.parse().unwrap();
    FoundSocket { address, remote: None, state: SocketState::Whole, transparent, mark: Fact::Known(0x200) }
}

/// What the lookups for the packet's own ends and for the proxy's port find.
fn with(expressions: Vec<Expression>, own: &[FoundSocket], proxy: &[FoundSocket]) -> RuleState {
    let mut state = state(vec![rule(1, expressions)], Vec::new());
    for mark in [7, 0x200] {
        state.routes.0.insert(route_query(mark), Route::Forward { interface: 3, gateway: None, source: None });
    }
    state.sockets.0.insert(query("10.0.0.2:80"), Fact::Known(own.to_vec()));
    state.sockets.0.insert(query("10.0.0.9:9000"), Fact::Known(proxy.to_vec()));
    state
}

fn ends(state: &RuleState) -> Vec<End> {
    done(state, &packet()).paths.into_iter().map(|path| path.end).collect()
}

fn socket_match(flags: u8) -> Vec<Expression> {
    let socket = Expression::XtMatch { name: Arc::from("socket"), revision: 3, info: vec![flags] };
    vec![socket, verdict(Verdict::Drop)]
}

/// `tproxy ip to 10.0.0.9:9000`, and what follows.
fn tproxy(then: Verdict) -> Vec<Expression> {
    let load = |to, value: &[u8]| Expression::Immediate { to, data: Data::Value(value.to_vec()) };
    vec![
        load(1, &[10, 0, 0, 9]),
        load(2, &9000_u16.to_be_bytes()),
        Expression::Tproxy { family: 2, address: Some(1), port: Some(2) },
        verdict(then),
    ]
}

#[test]
fn a_socket_is_looked_up_when_a_rule_asks_for_it() {
    let state = state(vec![rule(1, socket_match(0))], Vec::new());
    assert_eq!(missing(&state, &packet()), [Key::Sockets(query("10.0.0.2:80"))]);
}

#[test]
fn who_listens_everywhere_is_no_socket_of_the_packet_unless_a_rule_says_so() {
    let any = [socket("0.0.0.0:80", Fact::Known(false))];
    let bound = [socket("10.0.0.2:80", Fact::Known(false))];
    let is_matched = |flags, own: &[FoundSocket]| {
        let ends = ends(&with(socket_match(flags), own, &[]));
        matches!(ends[..], [End::Dropped { .. }])
    };
    assert!(is_matched(2, &any) && is_matched(0, &bound));
    assert!(!is_matched(0, &any) && !is_matched(1, &bound) && !is_matched(0, &[]));
}

#[test]
fn whether_a_socket_is_transparent_is_asked_for_where_it_is_not_shown() {
    let hidden = [socket("10.0.0.2:80", Fact::Unknown("the kernel does not show it".into()))];
    let ends = ends(&with(socket_match(1), &hidden, &[]));
    assert!(matches!(ends[..], [End::Dropped { .. }, End::Sent { .. }]), "{ends:?}");
}

#[test]
fn the_mark_of_a_socket_is_given_to_its_packet() {
    let mut expressions = socket_match(1 | 2 | 4);
    expressions.pop();
    expressions.push(verdict(Verdict::Accept));
    let own = [socket("0.0.0.0:80", Fact::Known(true))];
    let path = done(&with(expressions, &own, &[]), &packet()).paths.remove(0);
    assert_eq!(path.packet.mark, Fact::Known(0x200));
}

#[test]
fn nft_reads_what_is_known_of_a_socket() {
    let own = [socket("0.0.0.0:80", Fact::Known(true))];
    for (key, value) in [(0, vec![1]), (1, 0x200_u32.to_ne_bytes().to_vec()), (2, vec![1])] {
        let expressions = vec![
            Expression::Socket { key, level: 0, to: 1 },
            Expression::Compare { from: 1, operator: Operator::Equal, value },
            verdict(Verdict::Drop),
        ];
        let ends = ends(&with(expressions.clone(), &own, &[]));
        assert!(matches!(ends[..], [End::Dropped { .. }]), "key {key}: {ends:?}");
        let ends = self::ends(&with(expressions, &[], &[]));
        assert!(matches!(ends[..], [End::Sent { .. }]), "key {key}: {ends:?}");
    }
}

#[test]
fn a_rule_of_nft_without_a_proxy_does_not_match_and_with_one_goes_on() {
    let ends = ends(&with(tproxy(Verdict::Drop), &[], &[]));
    assert!(matches!(ends[..], [End::Sent { .. }]), "{ends:?}");
    let opaque = [socket("0.0.0.0:9000", Fact::Known(false))];
    let ends = self::ends(&with(tproxy(Verdict::Drop), &[], &opaque));
    assert!(matches!(ends[..], [End::Sent { .. }]), "{ends:?}");
    let proxy = [socket("0.0.0.0:9000", Fact::Known(true))];
    let ends = self::ends(&with(tproxy(Verdict::Drop), &[], &proxy));
    assert!(matches!(ends[..], [End::Dropped { .. }]), "{ends:?}");
}

#[test]
fn what_a_proxy_has_is_not_forwarded() {
    let proxy = [socket("0.0.0.0:9000", Fact::Known(true))];
    let path = done(&with(tproxy(Verdict::Accept), &[], &proxy), &packet()).paths.remove(0);
    let End::Discarded(discard) = &path.end else { panic!("{:?}", path.end) };
    assert_eq!(discard.function, "ip_forward");
    let to = "10.0.0.9:9000".parse().unwrap();
    let is_proxied = |decision: &Decision| *decision == Decision::Proxied { hook: Hook::Prerouting, to };
    assert!(path.decisions.iter().any(is_proxied), "{:?}", path.decisions);
}

#[test]
fn what_goes_to_a_proxy_that_is_not_known_is_not_delivered_to_its_own_address() {
    let mut state = with(tproxy(Verdict::Accept), &[], &[]);
    state.sockets.0.insert(query("10.0.0.2:80"), Fact::Unknown("sockets could not be read".into()));
    state.routes.0.insert(route_query(0), Route::Local { interface: 1 });
    let ends = ends(&state);
    let [End::Unknown { because, .. }, End::Delivered] = &ends[..] else { panic!("{ends:?}") };
    assert!(because.contains("sockets could not be read"), "{because}");
}

#[test]
fn a_connection_of_the_proxy_keeps_its_packets() {
    let connected =
        FoundSocket { remote: Some("10.0.0.1:4242".parse().unwrap()), ..socket("10.0.0.2:80", Fact::Known(true)) };
    // Who listens is not asked for.
    let mut state = with(tproxy(Verdict::Drop), &[connected], &[]);
    state.sockets.0.remove(&query("10.0.0.9:9000"));
    let ends = ends(&state);
    assert!(matches!(ends[..], [End::Dropped { .. }]), "{ends:?}");
}

#[test]
fn the_target_of_iptables_drops_what_no_proxy_takes() {
    let mut info = vec![0; 28];
    info[..4].copy_from_slice(&u32::MAX.to_ne_bytes());
    info[4..8].copy_from_slice(&7_u32.to_ne_bytes());
    info[8..12].copy_from_slice(&[10, 0, 0, 9]);
    info[24..26].copy_from_slice(&9000_u16.to_be_bytes());
    let target = vec![Expression::XtTarget { name: Arc::from("TPROXY"), revision: 1, info }];
    let dropped = ends(&with(target.clone(), &[], &[]));
    assert!(matches!(dropped[..], [End::Dropped { .. }]), "{dropped:?}");
    let proxy = [socket("0.0.0.0:9000", Fact::Known(true))];
    let path = done(&with(target, &[], &proxy), &packet()).paths.remove(0);
    assert_eq!(path.packet.mark, Fact::Known(7));
}

#[test]
fn sockets_that_cannot_be_read_leave_both_ways_with_the_reason() {
    let mut state = with(tproxy(Verdict::Drop), &[], &[]);
    state.sockets.0.insert(query("10.0.0.2:80"), Fact::Unknown("sockets could not be read".into()));
    let paths = done(&state, &packet()).paths;
    assert!(matches!((&paths[0].end, &paths[1].end), (End::Dropped { .. }, End::Sent { .. })), "{paths:?}");
    let Assumption::Unknown { what, .. } = &paths[0].assumptions[0] else { panic!("{paths:?}") };
    assert!(what.contains("sockets could not be read"), "{what}");
}

/// The server's answer as it comes to an address of this host, in a connection that a client began.
fn answer(server: &str, comes_to: &str, client: &str) -> Packet {
    let [server, comes_to, client] = [server, comes_to, client].map(|text| text.parse::<IpAddr>().unwrap());
    let segment = tcp(80, 4242, 16);
    let mut packet = Packet::between(Origin::Received { interface: 2 }, server, comes_to, TCP, &segment).unwrap();
    let reply = Tuple::of(&packet).unwrap();
    let original = Tuple { source: client, ..reply.inverted() };
    let bits = status::CONFIRMED | status::SEEN_REPLY | status::SOURCE_NAT_DONE;
    let (direction, masqueraded) = (Direction::Reply, Fact::Known(None));
    let entry = Entry { direction, status: bits, mark: 0, zone: 0, original, reply, masqueraded };
    packet.connection = Fact::Known(Connection::Existing(entry));
    packet
}

/// Packets with a socket are dropped by rule 1, and all others by rule 2.
fn dropping(family: Family) -> RuleState {
    let mut state = state(vec![rule(1, socket_match(2)), rule(2, vec![verdict(Verdict::Drop)])], Vec::new());
    let chain = state.chains.0.remove(&key("base")).unwrap();
    let own = ChainKey { family, ..key("base") };
    state.hooks.as_mut().unwrap().chains[0].key = own.clone();
    state.chains.0.insert(own, chain);
    state.tracking.0.insert(Protocol::Ipv6, true);
    state
}

fn asked_for(source: &str, destination: &str) -> [Key; 1] {
    let (source, destination) = (source.parse().unwrap(), destination.parse().unwrap());
    [Key::Sockets(SocketQuery { protocol: TCP, source, destination, interface: 2 })]
}

#[test]
fn the_socket_of_an_answer_to_a_translated_source_is_that_of_the_original_one() {
    let asked = missing(&dropping(Family::Ip), &answer("10.0.0.2", "10.0.0.9", "10.0.0.1"));
    assert_eq!(asked, asked_for("10.0.0.2:80", "10.0.0.1:4242"));
}

#[test]
fn whose_socket_an_answer_over_ipv6_has_depends_on_the_kernel_where_its_source_was_translated() {
    let state = dropping(Family::Ip6);
    let paths = done(&state, &answer("fd02::2", "fd01::9", "fd01::1")).paths;
    let rules = paths.iter().map(|path| match &path.end {
        End::Dropped { by } => by.handle,
        other => panic!("{other:?}"),
    });
    assert_eq!(rules.collect::<Vec<_>>(), [Some(1), Some(2), Some(2)]);
    let Assumption::Unknown { what, .. } = &paths[0].assumptions[0] else { panic!("{paths:?}") };
    assert!(what.contains("before Linux 6.15"), "{what}");
    // Nothing was translated.
    let asked = missing(&state, &answer("fd02::2", "fd01::1", "fd01::1"));
    assert_eq!(asked, asked_for("[fd02::2]:80", "[fd01::1]:4242"));
}

#[test]
fn the_socket_of_a_packet_whose_connection_is_not_known_is_not_looked_up() {
    let mut packet = answer("fd02::2", "fd01::1", "fd01::1");
    packet.connection = Fact::Unknown("conntrack could not be read".into());
    let paths = done(&dropping(Family::Ip6), &packet).paths;
    let Assumption::Unknown { what, .. } = &paths[0].assumptions[0] else { panic!("{paths:?}") };
    assert!(what.contains("conntrack could not be read"), "{what}");
}
