//! Packets for a virtual server of IPVS on a host with the addresses 10.0.0.7 and, as kube-proxy has it, 10.96.0.10. All
//! else is behind interface 3.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use super::conntrack::{Connection, Direction, Entry, TrackingSettings, Tuple, status};
use super::expression::Verdict;
use super::packet::{Protocol, TCP, UDP, tcp, udp};
use super::path::{Decision, End, Reject};
use super::routing::{
    HostSettings, Ipv4Settings, NextHop, RouteTable, RoutedInterface, RoutingRule, RoutingState, TableKey, TableRoute,
};
use super::state::{BaseChain, Chain, ChainKey, ChainKind, Family, Hooks, Interface, InterfaceAddress};
use super::virtual_server::{
    ForwardingMethod, RealServer, VirtualServer, VirtualServerKey, VirtualSettings, VirtualState,
};
use super::*;

const CLIENT: &str = "10.0.0.1";
const HOST: &str = "10.0.0.7";
const VIRTUAL: &str = "10.96.0.10";

fn ip(address: &str) -> IpAddr {
    address.parse().unwrap()
}

fn at(address: &str) -> SocketAddr {
    address.parse().unwrap()
}

fn by_address(protocol: u8, port: u16) -> VirtualServerKey {
    VirtualServerKey::Address { address: ip(VIRTUAL), protocol, port }
}

fn real(address: &str, weight: u32) -> RealServer {
    let address = at(address);
    let method = ForwardingMethod::Masquerading;
    RealServer { address: address.ip(), port: address.port(), weight, method, limited: false }
}

fn served(scheduler: &str, destinations: Vec<RealServer>) -> VirtualServer {
    VirtualServer { scheduler: scheduler.into(), persistent: false, one_packet: false, destinations }
}

/// With one virtual server for DNS.
fn state(server: VirtualServer) -> RuleState {
    let settings = VirtualSettings { conntrack: true, sloppy_tcp: false, snat_reroute: true };
    let mut balancer = VirtualState { settings: Some(settings), ..VirtualState::default() };
    balancer.servers.0.insert(by_address(UDP, 53), Some(server));
    let hooks = Some(Hooks { balanced: true, ..Hooks::default() });
    let mut state = RuleState { hooks, balancer, routing: routing(), ..RuleState::default() };
    let own = InterfaceAddress { address: ip(HOST), prefix: 24, scope: 0, flags: 0x80 };
    state.addresses = Some(vec![(3, own.clone())]);
    for (index, name) in [(1, "lo"), (2, "in"), (3, "out")] {
        let addresses = if index == 3 { vec![own.clone()] } else { Vec::new() };
        let interface = Interface { index, name: Arc::from(name), kind: None, hardware: 1, group: 0, addresses };
        state.interfaces.0.insert(index, Some(interface));
    }
    state.tracking.0.insert(Protocol::Ipv4, true);
    state.tracking_settings = Some(TrackingSettings { tcp_loose: Some(true), tcp_be_liberal: Some(false) });
    state
}

fn routing() -> RoutingState {
    let mut routing = RoutingState { host: Some(HostSettings::default()), ..RoutingState::default() };
    let rule = |priority, table| RoutingRule { priority, table, action: 1, ..RoutingRule::default() };
    routing.rules.0.insert(Protocol::Ipv4, vec![rule(0, 255), rule(32_766, 254), rule(32_767, 253)]);
    let route = |destination: &str, kind, scope, interface| TableRoute {
        destination: destination.parse().unwrap(),
        source: None,
        kind,
        scope,
        service: 0,
        metric: 0,
        protocol: 3,
        preference: 0,
        own: None,
        object: None,
        encapsulation: None,
        mtu: None,
        mtu_locked: false,
        hops: vec![NextHop { interface: Some(interface), gateway: None, weight: 1, dead: false, no_carrier: false }],
    };
    let local = [HOST, VIRTUAL].map(|address| route(&format!("{address}/32"), 2, 254, 1));
    for (table, routes) in [(255, local.into()), (254, vec![route("0.0.0.0/0", 1, 253, 3)]), (253, Vec::new())] {
        routing.tables.0.insert(TableKey { protocol: Protocol::Ipv4, table }, RouteTable::Whole(routes));
    }
    for index in [1, 2, 3] {
        let mut interface = RoutedInterface { up: true, ..RoutedInterface::default() };
        interface.settings.ipv4 = Ipv4Settings { forwarding: true, accept_local: true, ..Ipv4Settings::default() };
        routing.interfaces.0.insert(index, Some(interface));
    }
    routing
}

fn packet(origin: Origin, source: &str) -> Packet {
    Packet::between(origin, ip(source), ip(VIRTUAL), UDP, &udp(4242, 53, b"")).unwrap()
}

fn received() -> Packet {
    packet(Origin::Received { interface: 2 }, CLIENT)
}

fn paths(state: &RuleState, packet: &Packet) -> Vec<Path> {
    match step(state, packet) {
        Step::Done(outcome) => outcome.paths,
        Step::Missing { keys } => panic!("{keys:?} are missing"),
    }
}

/// The real server, and its chance.
type Scheduled = (Option<SocketAddr>, Option<(usize, usize)>);

fn scheduled(path: &Path) -> Vec<Scheduled> {
    let of = |decision: &Decision| match decision {
        Decision::Scheduled { to, of, .. } => Some((*to, *of)),
        _ => None,
    };
    path.decisions.iter().filter_map(of).collect()
}

fn goes_to(path: &Path) -> SocketAddr {
    SocketAddr::new(path.packet.destination(), path.packet.ports().unwrap().1)
}

#[test]
fn connections_go_to_the_real_servers_in_turn() {
    let reals = vec![real("10.244.1.2:53", 1), real("10.244.1.3:5353", 1), real("10.244.1.4:53", 0)];
    let paths = paths(&state(served("rr", reals)), &received());
    assert_eq!(paths.len(), 2, "one without weight takes none: {paths:#?}");
    for (path, to, place) in [(&paths[0], at("10.244.1.2:53"), 1), (&paths[1], at("10.244.1.3:5353"), 2)] {
        assert_eq!(scheduled(path), [(Some(to), Some((place, 2)))]);
        assert_eq!((goes_to(path), path.packet.source(), path.packet.hops_left()), (to, ip(CLIENT), 63));
        assert_eq!(path.end, End::Sent { interface: 3, gateway: None });
        assert!((path.chance().unwrap() - 0.5).abs() < 1e-9 && path.gaps.is_empty(), "{path:#?}");
        let Entry { original, reply, status, .. } = path.connection.as_ref().unwrap();
        assert_eq!((original.destination, original.destination_port), (ip(VIRTUAL), 53));
        assert_eq!((reply.source, reply.source_port, status & status::DESTINATION_NAT), (to.ip(), to.port(), 0));
    }
}

#[test]
fn weights_share_out_connections() {
    let reals = vec![real("10.244.1.2:53", 3), real("10.244.1.3:53", 1)];
    let chances: Vec<_> = paths(&state(served("wrr", reals)), &received()).iter().map(Path::chance).collect();
    assert_eq!(chances, [Some(0.75), Some(0.25)]);
}

#[test]
fn what_a_scheduler_counts_is_not_known() {
    let reals = vec![real("10.244.1.2:53", 1), real("10.244.1.3:53", 1)];
    let paths_of = |server| paths(&state(server), &received());
    let counted = paths_of(served("lc", reals.clone()));
    let to: Vec<_> = counted.iter().map(|path| (goes_to(path).to_string(), path.chance())).collect();
    assert_eq!(to, [("10.244.1.2:53".to_owned(), None), ("10.244.1.3:53".to_owned(), None)]);
    let kept = paths_of(VirtualServer { persistent: true, ..served("rr", reals) });
    assert!(kept.len() == 2 && kept[0].chance().is_none() && kept[0].gaps[0].contains("stay"), "{kept:#?}");
}

#[test]
fn without_a_real_server_the_sender_is_told() {
    let paths = paths(&state(served("rr", vec![real("10.244.1.2:53", 0)])), &received());
    assert_eq!(scheduled(&paths[0]), [(None, None)]);
    let unreachable = Reject::Unreachable { kind: 3, code: 3 };
    assert!(matches!(paths[0].end, End::Rejected { with, .. } if with == unreachable), "{paths:#?}");
}

#[test]
fn direct_routing_is_not_followed() {
    let reals = vec![RealServer { method: ForwardingMethod::DirectRouting, ..real("10.244.1.2:53", 1) }];
    let paths = paths(&state(served("rr", reals)), &received());
    let End::Unknown { because, .. } = &paths[0].end else { panic!("{paths:#?}") };
    assert_eq!(because, "10.244.1.2:53 gets its packets by direct routing, which is not evaluated");
}

/// With a chain at output of each of these priorities.
fn with_output(mut state: RuleState, priorities: [i32; 2]) -> RuleState {
    for priority in priorities {
        let key = ChainKey { family: Family::Ip, table: "t".into(), chain: format!("at {priority}").into() };
        let (kind, hook, policy) = (ChainKind::Filter, Hook::Output, Verdict::Accept);
        let base = BaseChain { key: key.clone(), kind, hook, priority, policy, made: (1, 1) };
        state.hooks.as_mut().unwrap().chains.push(base);
        state.chains.0.insert(key, Some(Chain::default()));
    }
    state
}

fn chains(path: &Path) -> Vec<&str> {
    let policies = path.decisions.iter().filter_map(|decision| match decision {
        Decision::Policy { chain, .. } => Some(&*chain.chain),
        _ => None,
    });
    policies.collect()
}

#[test]
fn what_leaves_for_a_real_server_passes_output_from_its_beginning() {
    let state = with_output(state(served("rr", vec![real("10.244.1.2:53", 1)])), [-150, 0]);
    let of_client = &paths(&state, &received())[0];
    assert_eq!(chains(of_client), ["at -150", "at 0"]);
    // A packet of this host was on its way through that hook when IPVS took it.
    let of_host = &paths(&state, &packet(Origin::Sent, HOST))[0];
    assert_eq!(chains(of_host), ["at -150", "at -150", "at 0"]);
    assert_eq!((goes_to(of_host), &of_host.end), (at("10.244.1.2:53"), &End::Sent { interface: 3, gateway: None }));
}

#[test]
fn a_real_server_on_this_host_gets_its_packets_where_they_are() {
    let state = with_output(state(served("rr", vec![real("10.0.0.7:53", 1)])), [-150, 0]);
    let of_client = &paths(&state, &received())[0];
    assert_eq!((goes_to(of_client), &of_client.end, chains(of_client).len()), (at("10.0.0.7:53"), &End::Delivered, 0));
    let of_host = &paths(&state, &packet(Origin::Sent, HOST))[0];
    assert_eq!((&of_host.end, chains(of_host)), (&End::Delivered, vec!["at -150", "at 0"]));
    assert_eq!(scheduled(of_host).len(), 1, "IPVS takes a packet once");
}

/// The connection of a client with a real server, seen from this side.
fn entry(direction: Direction) -> Entry {
    let original =
        Tuple { source: ip(CLIENT), destination: ip(VIRTUAL), protocol: UDP, source_port: 4242, destination_port: 53 };
    let reply = Tuple { source: ip("10.244.1.3"), source_port: 5353, ..original.inverted() };
    let masqueraded = Fact::Known(None);
    Entry { direction, status: status::CONFIRMED | status::SEEN_REPLY, mark: 0, zone: 0, original, reply, masqueraded }
}

#[test]
fn an_answer_gets_the_address_of_the_virtual_server() {
    let origin = Origin::Received { interface: 3 };
    let transport = udp(5353, 4242, b"");
    let mut packet = Packet::between(origin, ip("10.244.1.3"), ip(CLIENT), UDP, &transport).unwrap();
    packet.connection = Fact::Known(Connection::Existing(entry(Direction::Reply)));
    let state = state(served("rr", Vec::new()));
    let answer = &paths(&state, &packet)[0];
    assert_eq!((answer.packet.source(), answer.packet.ports()), (ip(VIRTUAL), Some((53, 4242))));
    assert_eq!((&answer.end, answer.gaps.len()), (&End::Sent { interface: 3, gateway: None }, 0));
}

#[test]
fn a_connection_stays_with_its_real_server() {
    let mut packet = received();
    packet.connection = Fact::Known(Connection::Existing(entry(Direction::Original)));
    let paths = paths(&state(served("rr", vec![real("10.244.1.2:53", 1)])), &packet);
    assert_eq!(scheduled(&paths[0]), [(Some(at("10.244.1.3:5353")), None)]);
    assert_eq!((paths.len(), goes_to(&paths[0])), (1, at("10.244.1.3:5353")));
}

#[test]
fn where_conntrack_is_not_told_packets_leave_untracked_and_answers_are_not_known() {
    let mut state = state(served("rr", vec![real("10.244.1.2:53", 1)]));
    state.balancer.settings = Some(VirtualSettings { conntrack: false, sloppy_tcp: false, snat_reroute: true });
    let path = &paths(&state, &received())[0];
    assert_eq!((goes_to(path), &path.connection), (at("10.244.1.2:53"), &None));
    let origin = Origin::Received { interface: 3 };
    let answer = Packet::between(origin, ip("10.244.1.2"), ip(CLIENT), UDP, &udp(53, 4242, b"")).unwrap();
    let path = &paths(&state, &answer)[0];
    assert_eq!((path.packet.source(), path.gaps.len()), (ip("10.244.1.2"), 1), "{path:#?}");
}

#[test]
fn a_mark_goes_before_the_address() {
    let mut state = state(served("rr", vec![real("10.244.1.2:53", 1)]));
    let of_mark = VirtualServerKey::Mark { protocol: Protocol::Ipv4, mark: 7 };
    let mut packet = received();
    packet.mark = Fact::Known(7);
    let Step::Missing { keys } = step(&state, &packet) else { panic!("nothing is missing") };
    assert_eq!(keys, [Key::VirtualServer(of_mark)]);
    // It keeps the port that the packet has where its own is 0.
    state.balancer.servers.0.insert(of_mark, Some(served("rr", vec![real("10.244.9.9:0", 1)])));
    assert_eq!(goes_to(&paths(&state, &packet)[0]), at("10.244.9.9:53"));
}

#[test]
fn only_what_begins_a_connection_of_tcp_is_scheduled() {
    let mut state = state(served("rr", Vec::new()));
    let key = by_address(TCP, 80);
    state.balancer.servers.0.insert(key, Some(served("rr", vec![real("10.244.1.2:80", 1)])));
    let with = |flags| {
        let origin = Origin::Received { interface: 2 };
        let transport = tcp(4242, 80, flags);
        let packet = Packet::between(origin, ip(CLIENT), ip(VIRTUAL), TCP, &transport).unwrap();
        paths(&state, &packet).remove(0)
    };
    assert_eq!(goes_to(&with(2)), at("10.244.1.2:80"));
    let middle = with(16);
    assert_eq!((&middle.end, scheduled(&middle).len()), (&End::Delivered, 0));
}

#[test]
fn other_packets_are_left_alone() {
    let mut state = state(served("rr", Vec::new()));
    let origin = Origin::Received { interface: 2 };
    let packet = Packet::between(origin, ip(CLIENT), ip(HOST), TCP, &tcp(4242, 22, 2)).unwrap();
    for port in [22, 0] {
        let key = VirtualServerKey::Address { address: ip(HOST), protocol: TCP, port };
        let Step::Missing { keys } = step(&state, &packet) else { panic!("nothing is missing") };
        assert_eq!(keys, [Key::VirtualServer(key)]);
        state.balancer.servers.0.insert(key, None);
    }
    let path = &paths(&state, &packet)[0];
    assert_eq!((&path.end, &path.packet.bytes, path.gaps.len()), (&End::Delivered, &packet.bytes, 0));
}

#[test]
fn virtual_servers_are_named_by_address_and_protocol() {
    assert_eq!(by_address(UDP, 53).to_string(), "10.96.0.10:53/udp");
    assert_eq!(VirtualServerKey::Mark { protocol: Protocol::Ipv6, mark: 16 }.to_string(), "of mark 0x10");
}
