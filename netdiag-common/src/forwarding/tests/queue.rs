//! Packets that rules give to programs.

use super::*;
use crate::forwarding::expression::Queues;
use crate::forwarding::path::Decision;

/// A rule that gives everything to a queue, and those that programs listen to.
fn queueing(queues: Queues, bypass: bool, listened: Option<Vec<u16>>) -> RuleState {
    let mut state = state(vec![rule(1, vec![Expression::Queue { queues, bypass }])], Vec::new());
    state.queues = listened;
    state
}

fn range(first: u16, total: u16) -> Queues {
    Queues::Range { first, total, by_processor: false }
}

fn ends(state: &RuleState) -> Vec<End> {
    done(state, &packet()).paths.into_iter().map(|path| path.end).collect()
}

#[test]
fn who_listens_is_asked_when_a_rule_gives_the_packet_away() {
    assert_eq!(missing(&queueing(range(7, 1), false, None), &packet()), [Key::Queues]);
}

#[test]
fn what_nobody_listens_for_is_dropped_or_goes_on() {
    let heard = ends(&queueing(range(7, 1), true, Some(vec![7])));
    assert!(matches!(heard[..], [End::Queued { number: 7, among: None, .. }]), "{heard:?}");
    let dropped = done(&queueing(range(7, 1), false, Some(vec![8])), &packet()).paths.remove(0);
    assert!(matches!(dropped.end, End::Dropped { .. }), "{dropped:?}");
    assert!(
        matches!(dropped.decisions.last(), Some(Decision::Unheard { queue: 7, bypass: false, .. })),
        "{:?}",
        dropped.decisions
    );
    let passed = ends(&queueing(range(7, 1), true, Some(Vec::new())));
    assert!(matches!(passed[..], [End::Sent { .. }]), "{passed:?}");
}

#[test]
fn each_of_a_few_queues_is_a_way_and_of_many_the_first_stands_for_all() {
    let few = ends(&queueing(range(7, 2), false, Some(vec![8])));
    assert!(matches!(few[..], [End::Dropped { .. }, End::Queued { number: 8, among: Some((7, 8)), .. }]), "{few:?}");
    let many = ends(&queueing(range(0, 40), false, Some((0..40).collect())));
    assert!(matches!(many[..], [End::Queued { among: Some((0, 39)), .. }]), "{many:?}");
    // One of them is not listened to.
    let most = ends(&queueing(range(0, 40), false, Some((0..39).collect())));
    assert!(matches!(most[..], [End::Queued { .. }, End::Dropped { .. }]), "{most:?}");
}

#[test]
fn a_register_has_the_number_in_its_lower_half() {
    let number = Expression::Immediate { to: 1, data: Data::Value(0x0005_0009_u32.to_ne_bytes().to_vec()) };
    let mut state = queueing(Queues::Register(1), false, Some(vec![9]));
    let Some(Some(chain)) = state.chains.0.get_mut(&key("base")) else { panic!("no base chain") };
    chain.rules[0].expressions.insert(0, number);
    let given = ends(&state);
    assert!(matches!(given[..], [End::Queued { number: 9, among: None, .. }]), "{given:?}");
}
