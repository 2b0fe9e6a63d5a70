mod bridge;
mod limits;
mod lists;
mod offload;
mod queue;
mod socket;
mod tracking;

use std::sync::Arc;

use super::expression::{Data, Operator, Verdict};
use super::packet::{Protocol, TCP, tcp};
use super::path::End;
use super::routing::{
    HostSettings, Ipv4Settings, NextHop, RouteTable, RoutedInterface, RoutingRule, RoutingState, TableKey, TableRoute,
};
use super::state::{BaseChain, Chain, ChainKey, ChainKind, Family, Hooks, Interface, Route, RouteQuery, Rule};
use super::*;

const MARK: u32 = 3;

fn key(chain: &str) -> ChainKey {
    ChainKey { family: Family::Ip, table: Arc::from("t"), chain: Arc::from(chain) }
}

fn rule(handle: u64, expressions: Vec<Expression>) -> Rule {
    Rule { handle, expressions, comment: None }
}

fn verdict(verdict: Verdict) -> Expression {
    Expression::Immediate { to: 0, data: Data::Verdict(verdict) }
}

fn compare(operator: Operator, value: u32) -> Expression {
    Expression::Compare { from: 1, operator, value: value.to_be_bytes().to_vec() }
}

fn draw(modulus: u32) -> Expression {
    Expression::Numgen { random: true, modulus, offset: 0, to: 1 }
}

/// To the byte order of comparisons.
fn turn() -> Expression {
    Expression::Byteorder { from: 1, to: 1, bytes: 4, size: 4 }
}

fn packet() -> Packet {
    let (source, destination) = ("10.0.0.1".parse().unwrap(), "10.0.0.2".parse().unwrap());
    Packet::between(Origin::Received { interface: 2 }, source, destination, TCP, &tcp(4242, 80, 2)).unwrap()
}

/// One base chain at prerouting with these rules, and others that it may lead to.
fn state(rules: Vec<Rule>, others: Vec<(&str, Vec<Rule>)>) -> RuleState {
    let mut state = RuleState::default();
    let base = BaseChain {
        key: key("base"),
        kind: ChainKind::Filter,
        hook: Hook::Prerouting,
        priority: 0,
        policy: Verdict::Accept,
        made: (1, 1),
    };
    state.hooks = Some(Hooks { chains: vec![base], ..Hooks::default() });
    state.chains.0.insert(key("base"), Some(Chain { rules, ..Chain::default() }));
    for (name, rules) in others {
        state.chains.0.insert(key(name), Some(Chain { rules, ..Chain::default() }));
    }
    for (index, name) in [(2, "in"), (3, "out")] {
        let name = Arc::from(name);
        let interface = Interface { index, name, kind: None, hardware: 1, group: 0, addresses: Vec::new() };
        state.interfaces.0.insert(index, Some(interface));
    }
    state.tracking.0.insert(Protocol::Ipv4, true);
    state.routes.0.insert(route_query(0), Route::Forward { interface: 3, gateway: None, source: None });
    state.routing = routing();
    state
}

/// Everything goes out of interface 3.
fn routing() -> RoutingState {
    let mut routing = RoutingState { live: true, host: Some(HostSettings::default()), ..RoutingState::default() };
    let rule = |priority, table| RoutingRule { priority, table, action: 1, ..RoutingRule::default() };
    routing.rules.0.insert(Protocol::Ipv4, vec![rule(0, 255), rule(32_766, 254), rule(32_767, 253)]);
    let hop = NextHop { interface: Some(3), gateway: None, weight: 1, dead: false, no_carrier: false };
    let route = TableRoute {
        destination: "0.0.0.0/0".parse().unwrap(),
        source: None,
        kind: 1,
        scope: 253,
        service: 0,
        metric: 0,
        protocol: 3,
        preference: 0,
        own: None,
        object: None,
        encapsulation: None,
        mtu: None,
        mtu_locked: false,
        hops: vec![hop],
    };
    for (table, routes) in [(255, Vec::new()), (254, vec![route]), (253, Vec::new())] {
        routing.tables.0.insert(TableKey { protocol: Protocol::Ipv4, table }, RouteTable::Whole(routes));
    }
    for index in [2, 3] {
        let mut interface = RoutedInterface { up: true, ..RoutedInterface::default() };
        interface.settings.ipv4 = Ipv4Settings { forwarding: true, accept_local: true, ..Ipv4Settings::default() };
        routing.interfaces.0.insert(index, Some(interface));
    }
    routing
}

fn route_query(mark: u32) -> RouteQuery {
    RouteQuery {
        destination: "10.0.0.2".parse().unwrap(),
        source: Some("10.0.0.1".parse().unwrap()),
        input: Some(2),
        output: None,
        mark,
        service: 0,
        protocol: TCP,
        ports: Some((4242, 80)),
        uid: None,
    }
}

fn done(state: &RuleState, packet: &Packet) -> Outcome {
    match step(state, packet) {
        Step::Done(outcome) => outcome,
        Step::Missing { keys } => panic!("{keys:?} are missing"),
    }
}

fn missing(state: &RuleState, packet: &Packet) -> Vec<Key> {
    match step(state, packet) {
        Step::Missing { keys } => keys,
        Step::Done(outcome) => panic!("{outcome:?}"),
    }
}

#[test]
fn only_what_is_on_the_way_is_asked_for() {
    let packet = packet();
    assert_eq!(missing(&RuleState::default(), &packet), [Key::Hooks]);
    let jump = rule(1, vec![verdict(Verdict::Jump(Arc::from("next")))]);
    let mut state = state(vec![jump], Vec::new());
    assert_eq!(missing(&state, &packet), [Key::Chain(key("next"))]);
    state.chains.0.insert(key("next"), Some(Chain::default()));
    state.routes.0.clear();
    assert_eq!(missing(&state, &packet), [Key::Route(route_query(0))]);
}

#[test]
fn ways_that_the_kernel_chooses_are_asked_for_together() {
    let goto = |chain: &str| verdict(Verdict::Goto(Arc::from(chain)));
    let rules =
        vec![rule(1, vec![draw(2), turn(), compare(Operator::Equal, 0), goto("first")]), rule(2, vec![goto("second")])];
    assert_eq!(missing(&state(rules, Vec::new()), &packet()), [Key::Chain(key("first")), Key::Chain(key("second"))]);
}

#[test]
fn numbers_that_lead_to_the_same_are_one_path_with_their_chances() {
    let drop = vec![draw(100), turn(), compare(Operator::Less, 30), verdict(Verdict::Drop)];
    let outcome = done(&state(vec![rule(1, drop)], Vec::new()), &packet());
    let chances: Vec<f64> = outcome.paths.iter().map(|path| path.chance().unwrap()).collect();
    assert_eq!(outcome.paths.len(), 2);
    assert!((chances[0] - 0.3).abs() < 1e-9 && (chances[1] - 0.7).abs() < 1e-9, "{chances:?}");
    assert!(matches!(outcome.paths[0].end, End::Dropped { .. }) && !outcome.cut);
}

#[test]
fn too_many_paths_are_cut_and_said_so() {
    let set = vec![draw(500), Expression::CtSet { key: MARK, direction: None, from: 1 }];
    let outcome = done(&state(vec![rule(1, set)], Vec::new()), &packet());
    assert_eq!((outcome.paths.len(), outcome.cut), (MAX_PATHS, true));
}

#[test]
fn the_same_unknown_has_the_same_value_at_each_rule() {
    let marked = |handle, end: Verdict| {
        let mark = vec![
            Expression::Meta { key: MARK, to: 1 },
            Expression::Compare { from: 1, operator: Operator::Equal, value: vec![1, 0, 0, 0] },
            verdict(end),
        ];
        rule(handle, mark)
    };
    let mut state = state(vec![marked(1, Verdict::Continue), marked(2, Verdict::Drop)], Vec::new());
    let mut packet = packet();
    packet.mark = Fact::Unknown("the mark was not recorded".into());
    let ends =
        |state: &RuleState| -> Vec<End> { done(state, &packet).paths.into_iter().map(|path| path.end).collect() };
    let unasked = ends(&state);
    assert!(matches!(unasked[..], [End::Dropped { .. }, End::Sent { .. }]), "{unasked:?}");
    let by_mark = RoutingRule { priority: 5, action: 1, table: 100, mark: 7, mask: 0xff, ..RoutingRule::default() };
    state.routing.rules.0.get_mut(&Protocol::Ipv4).unwrap().insert(1, by_mark);
    // Dropped, sent if the routing rule does not match by the mark, and unknown otherwise.
    let ends = ends(&state);
    assert_eq!(ends.len(), 3, "{ends:?}");
    assert!(matches!(ends[0], End::Dropped { .. }), "{ends:?}");
    assert!(matches!((&ends[1], &ends[2]), (End::Sent { .. }, End::Unknown { .. })), "{ends:?}");
}

#[test]
fn part_of_an_unknown_that_a_mask_removes_is_known() {
    let masked = vec![
        Expression::Meta { key: MARK, to: 1 },
        Expression::Bitwise {
            from: 1,
            to: 1,
            bytes: 4,
            operation: expression::Bitwise::MaskXor { mask: vec![0; 4], xor: vec![5, 0, 0, 0] },
        },
        Expression::MetaSet { key: MARK, from: 1 },
        verdict(Verdict::Drop),
    ];
    let mut packet = packet();
    packet.mark = Fact::Unknown("the mark was not recorded".into());
    let outcome = done(&state(vec![rule(1, masked)], Vec::new()), &packet);
    assert_eq!(outcome.paths[0].packet.mark, Fact::Known(5_u32.to_le()));
}

#[test]
fn chains_that_lead_in_a_circle_end_as_unknown() {
    let to = |chain: &str| vec![rule(1, vec![verdict(Verdict::Goto(Arc::from(chain)))])];
    let state = state(to("a"), vec![("a", to("b")), ("b", to("a"))]);
    assert!(matches!(done(&state, &packet()).paths[0].end, End::Unknown { .. }));
}

#[test]
fn an_unknown_expression_does_not_match_or_leaves_everything_open() {
    let odd = vec![Expression::Unknown { name: "novel".into() }, verdict(Verdict::Drop)];
    let outcome = done(&state(vec![rule(1, odd)], Vec::new()), &packet());
    let ends: Vec<&End> = outcome.paths.iter().map(|path| &path.end).collect();
    assert!(matches!(ends[..], [End::Unknown { .. }, End::Sent { .. }]), "{ends:?}");
}

#[test]
fn a_state_and_its_answer_go_over_the_wire() {
    let state = state(vec![rule(1, vec![draw(3), verdict(Verdict::Accept)])], Vec::new());
    let json = serde_json::to_string(&state).unwrap();
    assert_eq!(serde_json::from_str::<RuleState>(&json).unwrap(), state);
    let step = step(&state, &packet());
    let json = serde_json::to_string(&step).unwrap();
    assert_eq!(serde_json::from_str::<Step>(&json).unwrap(), step);
}

fn without(names: &[&str]) -> Without {
    names.iter().map(|name| name.parse().unwrap()).collect()
}

fn done_without(state: &RuleState, names: &[&str]) -> Outcome {
    match step_without(state, &packet(), &without(names)) {
        Step::Done(outcome) => outcome,
        Step::Missing { keys } => panic!("{keys:?} are missing"),
    }
}

#[test]
fn without_the_rule_that_drops_those_behind_it_and_the_policy_decide() {
    let drop = |handle| rule(handle, vec![verdict(Verdict::Drop)]);
    let mut state = state(vec![drop(4), drop(7)], Vec::new());
    let by = |outcome: &Outcome| match &outcome.paths[0].end {
        End::Dropped { by } => by.handle,
        other => panic!("{other:?}"),
    };
    assert_eq!(by(&done(&state, &packet())), Some(4));
    assert_eq!(by(&done_without(&state, &["ip t base 4"])), Some(7));
    let outcome = done_without(&state, &["ip t base 4", "ip t base 7"]);
    assert!(matches!(outcome.paths[..], [Path { end: End::Sent { .. }, .. }]), "{outcome:?}");
    // Nothing of the state has changed.
    assert_eq!(by(&done(&state, &packet())), Some(4));
    state.hooks.as_mut().unwrap().chains[0].policy = Verdict::Drop;
    assert_eq!(by(&done_without(&state, &["ip t base 4", "ip t base 7"])), None);
}

#[test]
fn a_rule_that_the_packet_meets_may_leave_its_end_as_it_is() {
    let counter = || Expression::Counter { packets: 0, bytes: 0 };
    let accept = || rule(4, vec![verdict(Verdict::Accept)]);
    let drop = |handle| rule(handle, vec![verdict(Verdict::Drop)]);
    let one = Expression::Immediate { to: 1, data: Data::Value(vec![1, 0, 0, 0]) };
    let mark = Expression::CtSet { key: MARK, direction: None, from: 1 };
    let limit = Expression::Limit { words: "limit rate 1/second".into(), negated: false };
    let one_of = |handle, count| {
        let to = Verdict::Goto(Arc::from("end"));
        rule(handle, vec![draw(count), compare(Operator::Equal, 0), verdict(to)])
    };
    for (what, rules, is_same) in [
        ("counts", vec![rule(4, vec![counter()])], true),
        ("logs some", vec![rule(4, vec![limit, Expression::Log])], true),
        ("counts every other one", vec![rule(4, vec![draw(2), compare(Operator::Equal, 0), counter()])], true),
        ("accepts what the policy accepts", vec![accept()], true),
        ("accepts before one that drops", vec![accept(), drop(7)], false),
        ("drops", vec![drop(4)], false),
        ("drops before another one", vec![drop(4), drop(7)], false),
        ("marks the connection", vec![rule(4, vec![one, mark])], false),
        ("leads there oftener", vec![one_of(4, 2), one_of(7, 4)], false),
    ] {
        let state = state(rules, vec![("end", vec![drop(1)])]);
        let (with, without) = (done(&state, &packet()), done_without(&state, &["ip t base 4"]));
        assert_ne!(with, without, "{what}: it is not met");
        assert_eq!((with.ends_as(&without), without.ends_as(&with)), (is_same, is_same), "{what}");
    }
}

#[test]
fn ends_that_were_not_followed_are_not_known_to_be_the_same() {
    let set = vec![draw(500), Expression::CtSet { key: MARK, direction: None, from: 1 }];
    let outcome = done(&state(vec![rule(1, set)], Vec::new()), &packet());
    assert!(outcome.cut && !outcome.ends_as(&outcome));
}

#[test]
fn only_the_named_rule_of_the_named_chain_is_left_out() {
    let jump = rule(4, vec![verdict(Verdict::Jump(Arc::from("next")))]);
    let state = state(vec![jump], vec![("next", vec![rule(4, vec![verdict(Verdict::Drop)])])]);
    for (names, is_dropped) in [
        (&["ip t base 5"][..], true),
        (&["inet t base 4"], true),
        (&["ip u next 4"], true),
        (&["legacy iptables t next 4"], true),
        (&["ip t next 4"], false),
        (&["ip t base 4"], false),
    ] {
        let outcome = done_without(&state, names);
        assert_eq!(matches!(outcome.paths[0].end, End::Dropped { .. }), is_dropped, "{names:?}: {outcome:?}");
    }
    // What only that rule leads to is not asked for.
    let mut unread = state;
    unread.chains.0.remove(&key("next"));
    assert!(matches!(step_without(&unread, &packet(), &without(&["ip t base 4"])), Step::Done(_)));
}

/// A legacy table and a chain of nf_tables, both at prerouting with one priority and these rules.
fn beside(legacy: Vec<Rule>, own: Vec<Rule>) -> RuleState {
    let mut state = state(own, Vec::new());
    let legacy_key = ChainKey { family: Family::LegacyIp, table: Arc::from("mangle"), chain: Arc::from("PREROUTING") };
    let hooks = state.hooks.as_mut().unwrap();
    hooks.chains.push(BaseChain { key: legacy_key.clone(), made: (0, 0), ..hooks.chains[0].clone() });
    state.chains.0.insert(legacy_key, Some(Chain { rules: legacy, ..Chain::default() }));
    state
}

#[test]
fn which_of_a_legacy_table_and_a_chain_runs_first_is_not_known() {
    let drop = || vec![rule(1, vec![verdict(Verdict::Drop)])];
    let paths = done(&beside(drop(), drop()), &packet()).paths;
    let by = |path: &Path| match &path.end {
        End::Dropped { by } => by.chain.as_ref().map(ToString::to_string),
        _ => None,
    };
    let found: Vec<_> = paths.iter().map(by).collect();
    assert_eq!(found, [Some("legacy iptables mangle PREROUTING".into()), Some("ip t base".into())]);
}

#[test]
fn a_legacy_table_without_rules_is_asked_nothing_unless_it_drops() {
    let drop = || vec![rule(1, vec![verdict(Verdict::Drop)])];
    assert_eq!(done(&beside(Vec::new(), drop()), &packet()).paths.len(), 1);
    let mut state = beside(Vec::new(), drop());
    state.hooks.as_mut().unwrap().chains[1].policy = Verdict::Drop;
    assert_eq!(done(&state, &packet()).paths.len(), 2);
}

#[test]
fn a_legacy_table_whose_only_rule_is_left_out_is_asked_nothing() {
    let drop = || vec![rule(1, vec![verdict(Verdict::Drop)])];
    let paths = done_without(&beside(drop(), drop()), &["legacy iptables mangle PREROUTING 1"]).paths;
    let [Path { end: End::Dropped { by }, .. }] = &paths[..] else { panic!("{paths:?}") };
    assert_eq!(by.chain, Some(key("base")));
}
