//! Packets that come in by interface 2, which is a port of bridge 4. Its others are 5 and 6.

use super::*;
use crate::forwarding::bridge::{Bridge, Port};
use crate::forwarding::expression::NatKind;
use crate::forwarding::path::{Assumption, Decision};

const OWN: [u8; 6] = [2, 0, 0, 0, 0, 4];
const OTHER: [u8; 6] = [2, 0, 0, 0, 0, 9];

const BRIDGE: u32 = 4;
const TO_BRIDGE: Route = Route::Forward { interface: BRIDGE, gateway: None, source: None };

/// Everything else is behind this interface. Bridged packets pass the hooks of IP or not.
fn bridged(rules: Vec<Rule>, behind: u32, calls: bool) -> RuleState {
    let mut state = state(rules, Vec::new());
    let (name, kind) = (Arc::from("br0"), Some("bridge".into()));
    let interface = Interface { index: BRIDGE, name, kind, hardware: 1, group: 0, addresses: Vec::new() };
    state.interfaces.0.insert(BRIDGE, Some(interface));
    let routed = state.routing.interfaces.0[&3].clone();
    state.routing.interfaces.0.insert(BRIDGE, routed.clone());
    state.routing.interfaces.0.insert(2, routed.map(|routed| RoutedInterface { bridge: Some(BRIDGE), ..routed }));
    let main = TableKey { protocol: Protocol::Ipv4, table: 254 };
    let Some(RouteTable::Whole(routes)) = state.routing.tables.0.get_mut(&main) else { panic!("no main table") };
    routes[0].hops[0].interface = Some(behind);
    let route = Route::Forward { interface: behind, gateway: None, source: None };
    state.routes.0.insert(RouteQuery { input: Some(BRIDGE), ..route_query(0) }, route);
    let ports = [(2, "in"), (5, "veth5"), (6, "veth6")];
    let bridge = Bridge {
        index: BRIDGE,
        name: "br0".into(),
        ports: ports.map(|(index, name)| Port { index, name: name.into() }).into(),
        own: vec![OWN],
        calls_iptables: calls,
        calls_ip6tables: false,
    };
    state.bridges.0.insert(BRIDGE, Some(bridge));
    state
}

/// In a frame to this Ethernet address.
fn framed(to: [u8; 6]) -> Packet {
    let mut packet = packet();
    packet.link = [&to[..], &[2, 0, 0, 0, 0, 8], &[8, 0]].concat();
    packet
}

fn drop_all() -> Vec<Rule> {
    vec![rule(1, vec![verdict(Verdict::Drop)])]
}

fn ends(state: &RuleState, packet: &Packet) -> Vec<End> {
    done(state, packet).paths.into_iter().map(|path| path.end).collect()
}

fn to(interface: u32) -> End {
    End::Sent { interface, gateway: None }
}

fn policies(path: &Path) -> usize {
    path.decisions.iter().filter(|decision| matches!(decision, Decision::Policy { .. })).count()
}

#[test]
fn the_bridge_of_a_port_is_asked_for() {
    let mut state = bridged(Vec::new(), 3, true);
    state.bridges.0.clear();
    assert_eq!(missing(&state, &packet()), [Key::Bridge { index: BRIDGE }]);
}

#[test]
fn what_a_bridge_switches_passes_rules_only_with_br_netfilter() {
    let past = done(&bridged(drop_all(), 3, false), &framed(OTHER)).paths.remove(0);
    let switched = Decision::Switched { hook: Hook::Forward, bridge: BRIDGE, port: 2, filtered: false };
    assert_eq!((past.end, past.decisions), (to(BRIDGE), vec![switched]));
    assert_eq!(past.packet, framed(OTHER));
    let dropped = ends(&bridged(drop_all(), 3, true), &framed(OTHER));
    assert!(matches!(dropped[..], [End::Dropped { .. }]), "{dropped:?}");
    let through = done(&bridged(Vec::new(), 3, true), &framed(OTHER)).paths.remove(0);
    assert!(matches!(through.decisions.last(), Some(Decision::Switched { filtered: true, .. })), "{through:?}");
    // It is not routed, and spends no hop.
    assert_eq!((&through.end, through.packet.hops_left()), (&to(BRIDGE), 64));
}

#[test]
fn what_is_for_this_host_is_routed_and_passes_prerouting_once() {
    for calls in [false, true] {
        let path = done(&bridged(Vec::new(), 3, calls), &framed(OWN)).paths.remove(0);
        assert_eq!((&path.end, policies(&path), path.packet.hops_left()), (&to(3), 1, 63));
        let dropped = ends(&bridged(drop_all(), 3, calls), &framed(OWN));
        assert!(matches!(dropped[..], [End::Dropped { .. }]), "{dropped:?}");
    }
}

#[test]
fn rules_see_the_bridge_and_not_its_port() {
    let named = |name: &str| {
        let mut value = name.as_bytes().to_vec();
        value.resize(16, 0);
        // The name of the input interface.
        let load = Expression::Meta { key: 6, to: 1 };
        let compare = Expression::Compare { from: 1, operator: Operator::Equal, value };
        vec![rule(1, vec![load, compare, verdict(Verdict::Drop)])]
    };
    for to in [OWN, OTHER] {
        assert!(matches!(ends(&bridged(named("br0"), 3, true), &framed(to))[..], [End::Dropped { .. }]));
        assert!(matches!(ends(&bridged(named("in"), 3, true), &framed(to))[..], [End::Sent { .. }]));
    }
}

#[test]
fn only_its_sender_knows_to_whom_a_packet_went_that_may_be_switched_or_routed() {
    let mut state = bridged(Vec::new(), BRIDGE, false);
    let outcome = done(&state, &packet());
    let [switched, routed] = &outcome.paths[..] else { panic!("{outcome:?}") };
    assert_eq!((&switched.end, switched.packet.hops_left()), (&to(BRIDGE), 64));
    assert_eq!((&routed.end, routed.packet.hops_left()), (&to(BRIDGE), 63));
    let [Assumption::Unknown { what, holds: true, .. }] = &switched.assumptions[..] else { panic!("{switched:?}") };
    assert_eq!(what, "its sender gave the packet to another host at bridge br0, and not to this one");
    // Whom it reaches through this host only, it gave it to this host.
    state = bridged(Vec::new(), 3, false);
    assert_eq!(ends(&state, &packet()), [to(3)]);
}

/// 10.0.0.254 is an address of this host, which pods have as their router.
fn with_own_address(mut state: RuleState) -> RuleState {
    let own = TableKey { protocol: Protocol::Ipv4, table: 255 };
    let main = TableKey { protocol: Protocol::Ipv4, table: 254 };
    let Some(RouteTable::Whole(routes)) = state.routing.tables.0.get(&main) else { panic!("no main table") };
    let local = TableRoute { destination: "10.0.0.254/32".parse().unwrap(), kind: 2, ..routes[0].clone() };
    state.routing.tables.0.insert(own, RouteTable::Whole(vec![local]));
    state
}

/// Of a packet whose sender gave it to this host or another one: 64 where it is switched, 63 where it is routed.
fn hops_left(state: &RuleState, next_hop: &str) -> Vec<u8> {
    let mut packet = packet();
    packet.next_hop = Some(next_hop.parse().unwrap());
    done(state, &packet).paths.iter().map(|path| path.packet.hops_left()).collect()
}

#[test]
fn whom_its_sender_gave_a_packet_to_decides_where_its_frame_is_not_known() {
    let state = with_own_address(bridged(Vec::new(), BRIDGE, false));
    assert_eq!(hops_left(&state, "10.0.0.2"), [64]);
    assert_eq!(hops_left(&state, "10.0.0.254"), [63]);
}

#[test]
fn a_router_that_this_host_reaches_elsewhere_may_be_behind_the_bridge_too() {
    let mut state = with_own_address(bridged(Vec::new(), 3, false));
    assert_eq!(hops_left(&state, "10.0.0.2"), [64, 63]);
    assert_eq!(hops_left(&state, "10.0.0.254"), [63]);
    // No route leads there.
    let main = TableKey { protocol: Protocol::Ipv4, table: 254 };
    let Some(RouteTable::Whole(routes)) = state.routing.tables.0.get_mut(&main) else { panic!("no main table") };
    routes[0].destination = "10.0.0.0/30".parse().unwrap();
    assert_eq!(hops_left(&state, "192.0.2.1"), [64, 63]);
}

#[test]
fn a_frame_to_a_group_goes_to_other_ports_too() {
    let path = done(&bridged(Vec::new(), 3, false), &framed([0xff; 6])).paths.remove(0);
    assert_eq!(path.end, to(3));
    assert_eq!(path.gaps, ["bridge br0 hands a packet to a group to other ports, too, which is not evaluated"]);
}

#[test]
fn a_service_address_leads_back_into_the_bridge() {
    let address = Expression::Immediate { to: 1, data: Data::Value(vec![10, 0, 0, 9]) };
    let translate = Expression::Nat {
        kind: NatKind::Destination,
        family: 2,
        address: [Some(1), Some(1)],
        port: [None, None],
        flags: 0,
    };
    let mut state = bridged(vec![rule(1, vec![address, translate])], BRIDGE, true);
    let base = &mut state.hooks.as_mut().unwrap().chains[0];
    (base.kind, base.priority) = (ChainKind::Nat, -100);
    let query = RouteQuery { destination: "10.0.0.9".parse().unwrap(), input: Some(BRIDGE), ..route_query(0) };
    state.routes.0.insert(query, TO_BRIDGE);
    let path = done(&state, &framed(OWN)).paths.remove(0);
    let is_switched = |decision: &Decision| matches!(decision, Decision::Switched { filtered: true, .. });
    assert!(path.decisions.iter().any(is_switched), "{path:?}");
    assert_eq!((&path.end, path.packet.hops_left()), (&to(BRIDGE), 64));
    assert_eq!(path.packet.destination().to_string(), "10.0.0.9");
}

const IN: u8 = 1;
const OUT: u8 = 2;
const BRIDGED: u8 = 4;

/// `-m physdev` with these flags, of which some are inverted.
fn physdev(flags: u8, inverted: u8, input: &str, output: &str) -> Vec<Rule> {
    let mut info = vec![0; 66];
    for (at, name) in [(0, input), (32, output)] {
        // `+` at the end lets all names pass that begin so.
        let (letters, counted) = match name.strip_suffix('+') {
            Some(beginning) => (beginning, beginning.len()),
            None => (name, name.len() + 1),
        };
        info[at..at + letters.len()].copy_from_slice(letters.as_bytes());
        info[at + 16..at + 16 + counted].fill(0xff);
    }
    (info[64], info[65]) = (inverted, flags);
    let part = Expression::XtMatch { name: "physdev".into(), revision: 0, info };
    vec![rule(1, vec![part, verdict(Verdict::Drop)])]
}

/// How often the rule matches at this hook.
fn matches(hook: Hook, to: [u8; 6], rules: Vec<Rule>) -> Vec<bool> {
    let mut state = bridged(rules, 3, true);
    state.hooks.as_mut().unwrap().chains[0].hook = hook;
    ends(&state, &framed(to)).iter().map(|end| matches!(end, End::Dropped { .. })).collect()
}

#[test]
fn physdev_knows_the_port_that_a_packet_came_in_by_wherever_it_goes() {
    let by = |name: &str| physdev(IN, 0, name, "");
    for (hook, to, name, holds) in [
        (Hook::Prerouting, OWN, "in", true),
        (Hook::Prerouting, OTHER, "i+", true),
        (Hook::Prerouting, OTHER, "veth5", false),
        (Hook::Forward, OTHER, "in", true),
        (Hook::Forward, OWN, "in", true),
        (Hook::Forward, OWN, "veth5", false),
        (Hook::Postrouting, OTHER, "in", true),
        (Hook::Postrouting, OWN, "in", true),
    ] {
        assert_eq!(matches(hook, to, by(name)), [holds], "{hook} {name}");
    }
}

#[test]
fn physdev_tells_what_is_switched_from_what_is_routed() {
    for (hook, to, is_bridged) in [
        (Hook::Prerouting, OTHER, false),
        (Hook::Forward, OTHER, true),
        (Hook::Forward, OWN, false),
        (Hook::Postrouting, OTHER, true),
    ] {
        assert_eq!(matches(hook, to, physdev(BRIDGED, 0, "", "")), [is_bridged], "{hook}");
        assert_eq!(matches(hook, to, physdev(BRIDGED, BRIDGED, "", "")), [!is_bridged], "{hook}");
    }
}

#[test]
fn which_port_a_bridge_hands_a_packet_to_is_followed_in_both_ways_where_a_rule_asks() {
    let of = |name: &str, inverted| matches(Hook::Forward, OTHER, physdev(OUT, inverted, "", name));
    assert_eq!(of("veth5", 0), [true, false]);
    assert_eq!(of("veth5", OUT), [false, true]);
    assert_eq!((of("veth+", 0), of("eth0", 0)), (vec![true], vec![false]));
    // Back by the port that it came in by, it does not go.
    assert_eq!(of("in", 0), [false]);
}

#[test]
fn chains_of_bridges_are_named_where_one_is_on_the_way() {
    let with_chain = |mut state: RuleState| {
        let chain = ChainKey { family: Family::Bridge, table: "guard".into(), chain: "pass".into() };
        let hooks = state.hooks.as_mut().unwrap();
        hooks.chains.push(BaseChain { key: chain, hook: Hook::Forward, ..hooks.chains[0].clone() });
        state
    };
    let gaps = |state: RuleState, packet: &Packet| done(&with_chain(state), packet).paths.remove(0).gaps;
    let named = ["chain bridge guard pass at forward is not evaluated"];
    for to in [OWN, OTHER] {
        assert_eq!(gaps(bridged(Vec::new(), 3, false), &framed(to)), named);
        assert_eq!(gaps(bridged(Vec::new(), 3, true), &framed(to)), named);
    }
    assert_eq!(gaps(state(Vec::new(), Vec::new()), &packet()), [""; 0]);
}
