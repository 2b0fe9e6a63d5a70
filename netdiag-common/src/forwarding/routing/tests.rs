use std::sync::Arc;

use super::super::state::{Interface, Table};
use super::table::{action, kind, maker};
use super::*;

fn key(table: u32) -> TableKey {
    TableKey { protocol: Protocol::Ipv4, table }
}

fn rule(priority: u32, table: u32) -> RoutingRule {
    RoutingRule { priority, table, action: action::TO_TABLE, ..RoutingRule::default() }
}

fn route(destination: &str, kind: u8, hops: &[(u32, u32)]) -> TableRoute {
    let hop = |(interface, weight): &(u32, u32)| NextHop {
        interface: Some(*interface),
        gateway: None,
        weight: *weight,
        dead: false,
        no_carrier: false,
    };
    TableRoute {
        destination: destination.parse().unwrap(),
        source: None,
        kind,
        scope: 253,
        service: 0,
        metric: 0,
        protocol: 3,
        preference: 0,
        own: Some("10.0.0.1".parse().unwrap()),
        object: None,
        encapsulation: None,
        mtu: None,
        mtu_locked: false,
        hops: hops.iter().map(hop).collect(),
    }
}

/// Interfaces 2 and 3, and these rules and tables.
fn state(rules: Vec<RoutingRule>, tables: Vec<(u32, Vec<TableRoute>)>) -> RuleState {
    let mut state = RuleState::default();
    state.routing.rules.0.insert(Protocol::Ipv4, rules);
    for (table, routes) in tables {
        state.routing.tables.0.insert(key(table), RouteTable::Whole(routes));
    }
    state.routing.host = Some(HostSettings::default());
    for (index, name) in [(2, "in"), (3, "out")] {
        let own = super::super::state::InterfaceAddress {
            address: format!("10.0.{index}.1").parse().unwrap(),
            prefix: 24,
            scope: 0,
            flags: 0,
        };
        let name = Arc::from(name);
        let interface = Interface { index, name, kind: None, hardware: 1, group: 0, addresses: vec![own] };
        state.interfaces.0.insert(index, Some(interface));
        let mut routed = RoutedInterface { up: true, ..RoutedInterface::default() };
        routed.settings.ipv4.forwarding = true;
        state.routing.interfaces.0.insert(index, Some(routed));
    }
    state
}

fn sent(destination: &str) -> RouteQuery {
    RouteQuery {
        destination: destination.parse().unwrap(),
        source: None,
        input: None,
        output: None,
        mark: 0,
        service: 0,
        protocol: 6,
        ports: Some((1000, 80)),
        uid: Some(0),
    }
}

fn received(source: &str, destination: &str) -> RouteQuery {
    RouteQuery { source: Some(source.parse().unwrap()), input: Some(2), ..sent(destination) }
}

fn interfaces(answers: &[Answer]) -> Vec<Option<u32>> {
    let interface = |answer: &Answer| match answer.route {
        Route::Forward { interface, .. } => Some(interface),
        _ => None,
    };
    answers.iter().map(interface).collect()
}

#[test]
fn only_tables_on_the_way_are_asked_for() {
    let query = sent("10.9.0.1");
    assert_eq!(answers(&RuleState::default(), &query), Err(Key::RouteRules(Protocol::Ipv4)));
    let by_mark = RoutingRule { mark: 1, mask: 1, ..rule(5, 100) };
    let state = state(vec![by_mark, rule(10, 101)], Vec::new());
    assert_eq!(answers(&state, &query), Err(Key::RouteTable(key(101))));
}

#[test]
fn large_tables_are_asked_for_one_address() {
    let mut state = state(vec![rule(10, 100)], Vec::new());
    state.routing.tables.0.insert(key(100), RouteTable::Asked(Table::default()));
    let address = "10.9.0.1".parse().unwrap();
    assert_eq!(answers(&state, &sent("10.9.0.1")), Err(Key::RoutesTo { table: key(100), address }));
}

#[test]
fn the_rule_and_the_route_that_decide_are_named() {
    let tables = vec![
        (100, vec![route("10.9.0.0/16", kind::THROW, &[]), route("10.0.0.0/8", kind::UNICAST, &[(2, 1)])]),
        (101, vec![route("0.0.0.0/0", kind::UNICAST, &[(2, 1)])]),
        (102, vec![route("10.0.0.0/8", kind::UNICAST, &[(3, 1)])]),
    ];
    let not_tcp = RoutingRule { inverted: true, protocol: 6, ..rule(3, 101) };
    let jump = RoutingRule { goto: Some(20), action: action::GOTO, ..rule(6, 0) };
    let no_default = RoutingRule { suppressed_length: Some(0), ..rule(5, 101) };
    let rules = vec![not_tcp, rule(4, 100), no_default, jump, rule(7, 101), rule(20, 102)];
    let answers = answers(&state(rules, tables), &sent("10.9.0.1")).unwrap();
    let why = &answers[0].why;
    let results: Vec<_> = why.rules.iter().map(|rule| (rule.priority, rule.result)).collect();
    assert_eq!(
        results,
        [(4, RuleResult::NoRoute), (5, RuleResult::Suppressed), (6, RuleResult::GoesOn), (20, RuleResult::Decided)]
    );
    assert_eq!((why.passed, why.table), (1, Some(102)));
    assert_eq!(why.rules[1].rule, "from all lookup 101 suppress_prefixlength 0");
    assert_eq!(interfaces(&answers), [Some(3)]);
}

#[test]
fn next_hops_are_as_likely_as_their_weights() {
    let mut routes = vec![route("0.0.0.0/0", kind::UNICAST, &[(2, 3), (3, 1), (4, 4)])];
    routes[0].hops[2].dead = true;
    let answers = answers(&state(vec![rule(1, 100)], vec![(100, routes)]), &sent("10.9.0.1")).unwrap();
    assert_eq!(interfaces(&answers), [Some(2), Some(3)]);
    let chances: Vec<f64> = answers
        .iter()
        .flat_map(|answer| &answer.assumptions)
        .map(|assumed| match assumed {
            Assumed::Chance { chance, .. } => *chance,
            Assumed::Unknown { .. } => panic!("{assumed:?}"),
        })
        .collect();
    assert_eq!(chances, [0.75, 0.25]);
    assert_eq!(answers[0].why.hash_policy, Some(0));
}

#[test]
fn an_unknown_user_is_both_inside_and_outside_of_a_range() {
    let tables = vec![
        (100, vec![route("0.0.0.0/0", kind::UNICAST, &[(2, 1)])]),
        (101, vec![route("0.0.0.0/0", kind::UNICAST, &[(3, 1)])]),
    ];
    let root = RoutingRule { users: Some((0, 0)), ..rule(1, 100) };
    let state = state(vec![root, rule(2, 101)], tables);
    let of = |uid| interfaces(&answers(&state, &RouteQuery { uid, ..sent("10.9.0.1") }).unwrap());
    assert_eq!((of(Some(0)), of(Some(5)), of(None)), (vec![Some(2)], vec![Some(3)], vec![Some(2), Some(3)]));
}

#[test]
fn the_filter_looks_for_the_way_back() {
    let routes = vec![
        route("10.0.2.0/24", kind::UNICAST, &[(2, 1)]),
        route("10.0.3.0/24", kind::UNICAST, &[(3, 1)]),
        route("10.0.2.1/32", kind::LOCAL, &[(2, 1)]),
    ];
    let mut state = state(vec![rule(1, 100)], vec![(100, routes)]);
    let mut filter = |strict: u8, source: &str, destination: &str| {
        state.routing.host.as_mut().unwrap().all.ipv4.rp_filter = strict;
        let answers = answers(&state, &received(source, destination)).unwrap();
        assert_eq!(answers.len(), 1);
        answers[0].discarded.as_ref().map(|discard| discard.reason.clone())
    };
    let stopped = |reason: &str| Some(reason.to_owned());
    assert_eq!(filter(1, "10.0.2.9", "10.0.3.9"), None);
    assert_eq!(filter(1, "10.0.3.9", "10.0.2.1"), stopped("IP_RPFILTER"));
    assert_eq!(filter(2, "10.0.3.9", "10.0.2.1"), None);
    assert_eq!(filter(2, "192.0.2.1", "10.0.2.1"), stopped("IP_RPFILTER"));
    assert_eq!(filter(0, "192.0.2.1", "10.0.2.1"), None);
    assert_eq!(filter(0, "10.0.2.1", "10.0.3.9"), stopped("IP_LOCAL_SOURCE"));
    assert_eq!(filter(0, "127.0.0.1", "10.0.3.9"), stopped("IP_LOCALNET"));
    assert_eq!(filter(0, "10.0.2.9", "0.0.0.1"), stopped("IP_INVALID_DEST"));
}

#[test]
fn what_is_not_forwarded_is_named() {
    let routes = vec![route("0.0.0.0/0", kind::UNICAST, &[(3, 1)])];
    let mut state = state(vec![rule(1, 100)], vec![(100, routes)]);
    if let Some(Some(interface)) = state.routing.interfaces.0.get_mut(&2) {
        interface.settings.ipv4.forwarding = false;
    }
    let answers = answers(&state, &received("10.0.2.9", "10.0.3.9")).unwrap();
    let discard = answers[0].discarded.as_ref().unwrap();
    assert_eq!((discard.reason.as_str(), discard.function.as_str()), ("IP_INADDRERRORS", "ip_error"));
}

#[test]
fn an_interface_of_a_vrf_is_not_evaluated() {
    let mut state = state(vec![rule(1, 100)], Vec::new());
    if let Some(Some(interface)) = state.routing.interfaces.0.get_mut(&2) {
        interface.vrf = Some("blue".into());
    }
    let answers = answers(&state, &received("10.0.2.9", "10.0.3.9")).unwrap();
    assert!(matches!(&answers[0].route, Route::Unfollowed { why } if why.contains("VRF blue")), "{answers:?}");
}

#[test]
fn answers_go_over_the_wire() {
    let routes = vec![route("0.0.0.0/0", kind::UNICAST, &[(2, 1), (3, 1)])];
    let state = state(vec![rule(1, 100)], vec![(100, routes)]);
    let json = serde_json::to_string(&state).unwrap();
    assert_eq!(serde_json::from_str::<RuleState>(&json).unwrap(), state);
    let answers = answers(&state, &sent("10.9.0.1")).unwrap();
    let json = serde_json::to_string(&answers).unwrap();
    assert_eq!(serde_json::from_str::<Vec<Answer>>(&json).unwrap(), answers);
}

#[test]
fn routes_say_who_made_them() {
    let made = [2, 3, 4, 9, 11, 12, 16].map(maker);
    assert_eq!(made, ["kernel", "boot", "static", "ra", "zebra", "bird", "dhcp"]);
    assert_eq!(maker(80), "80");
}
