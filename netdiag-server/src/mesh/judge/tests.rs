//! Which cause a pattern of bad links is taken for.

use netdiag_common::observation::mesh::{Counts, FailureClass, empty};

use super::*;
use crate::mesh::Subject;
use crate::mesh::ledger::Spell;
use crate::mesh::recorded::Recorded;

const NODES: [(&str, &str); 6] = [("a1", "a"), ("a2", "a"), ("a3", "a"), ("b1", "b"), ("b2", "b"), ("b3", "b")];

fn zones() -> BTreeMap<String, String> {
    NODES.iter().map(|(node, zone)| ((*node).to_owned(), (*zone).to_owned())).collect()
}

fn link(from: &str, role: Role, lost: u64, time_us: u64) -> Link {
    let kind = if matches!(role, Role::Dns(_)) { Kind::Dns } else { Kind::Tcp };
    let mut times = empty::<u64>();
    times.record_n(time_us, 20 - lost).unwrap();
    let times = Recorded::of(&times);
    let failed = BTreeMap::from([(FailureClass::NoAnswer, lost)]);
    let counts = Counts { scheduled: 20, answered: 20 - lost, failed, ..Counts::default() };
    let spell = Spell { failures: lost, told: if lost > 0 { 20 } else { 0 }, answered_since: 0 };
    let (subject, parts) = (Subject::new(role, kind), BTreeMap::new());
    Link { from: from.to_owned(), subject, lately: counts.clone(), counts, spell, times, parts }
}

/// Every node to every other; `bad` says how many are lost and how long the others take.
fn mesh(bad: impl Fn(&str, &str) -> (u64, u64)) -> Vec<Link> {
    let pairs = NODES.iter().flat_map(|(from, _)| NODES.iter().map(move |(to, _)| (*from, *to)));
    let pairs = pairs.filter(|(from, to)| from != to);
    pairs
        .map(|(from, to)| {
            let (lost, time_us) = bad(from, to);
            link(from, Role::Peer(to.to_owned()), lost, time_us)
        })
        .collect()
}

fn claims(links: &[Link]) -> Vec<String> {
    judge(links, &zones(), &Slo::default())
        .0
        .into_iter()
        .map(|finding| format!("{}: {}", finding.code, finding.claim))
        .collect()
}

fn between(from: &str, to: &str, one: &str, other: &str) -> bool {
    (from, to) == (one, other) || (to, from) == (one, other)
}

#[test]
fn a_healthy_mesh_has_no_findings() {
    assert_eq!(claims(&mesh(|_, _| (0, 200))), Vec::<String>::new());
    assert_eq!(claims(&mesh(|_, _| (1, 200))), Vec::<String>::new(), "one of twenty may be chance");
}

#[test]
fn one_broken_link_is_that_link() {
    let links = mesh(|from, to| if between(from, to, "a1", "b2") { (20, 0) } else { (0, 200) });
    assert_eq!(claims(&links), ["mesh_link_loses: the link between nodes a1 and b2 loses probes"]);
    let (findings, _) = judge(&links, &zones(), &Slo::default());
    assert_eq!(findings[0].about, ["a1", "b2"]);
    assert_eq!(findings[0].proof[0], "a1 to b2 by tcp: 20 of 20 failed (no_answer 20); the target allows 0.1 %");
    assert!(findings[0].next.contains("netdiag trace --from node/a1 --to node/b2:9443"));
    assert!((findings[0].burn - 1_000.0).abs() < 1e-6, "{}", findings[0].burn);
}

#[test]
fn one_direction_is_enough() {
    let links = mesh(|from, to| if (from, to) == ("b3", "a2") { (5, 200) } else { (0, 200) });
    assert_eq!(claims(&links), ["mesh_link_loses: the link between nodes a2 and b3 loses probes"]);
}

#[test]
fn a_broken_node_is_said_once() {
    let links = mesh(|from, to| if from == "a3" || to == "a3" { (10, 200) } else { (0, 200) });
    assert_eq!(claims(&links), ["mesh_node_loses: node a3 loses probes: 5 of 5 of its links"]);
}

#[test]
fn a_broken_way_between_zones_is_said_once() {
    let links = mesh(|from, to| if from[..1] == to[..1] { (0, 200) } else { (20, 0) });
    assert_eq!(claims(&links), ["mesh_zones_lose: zones a and b lose probes: 9 of 9 links between them"]);
}

#[test]
fn slow_answers_break_their_own_target() {
    let links = mesh(|from, to| if between(from, to, "a1", "a2") { (0, 250_000) } else { (0, 200) });
    assert_eq!(claims(&links), ["mesh_link_slow: the link between nodes a1 and a2 answers slowly"]);
    let (findings, _) = judge(&links, &zones(), &Slo::default());
    assert_eq!(findings[0].proof[0], "a1 to a2 by tcp: p99 250 ms, 20 of 20 answers above the target of 100 ms");
}

#[test]
fn targets_are_judged_by_who_asks_them() {
    let replica = Role::Dns("10.244.0.3:53".parse().unwrap());
    let mut links = mesh(|_, _| (0, 200));
    links.extend(NODES.iter().map(|(node, _)| link(node, replica.clone(), 20, 0)));
    links.push(link("a1", Role::User("registry".to_owned()), 3, 200));
    links.push(link("a2", Role::User("registry".to_owned()), 0, 200));
    let said = claims(&links);
    assert_eq!(
        said,
        [
            "mesh_target_loses: DNS replica 10.244.0.3:53 fails for 6 of 6 nodes",
            "mesh_target_loses: target registry fails for 1 of 2 nodes"
        ]
    );
}

/// Of 300 attempts in ten minutes.
fn after(lost: u64, spell: Spell, lately: (u64, u64)) -> State {
    let counts = |lost: u64, told: u64| {
        let failed = BTreeMap::from([(FailureClass::NoAnswer, lost)]);
        Counts { scheduled: told, answered: told - lost, failed, ..Counts::default() }
    };
    let mut link = link("a1", Role::Api, 0, 200);
    (link.counts, link.spell, link.lately) = (counts(lost, 300), spell, counts(lately.0, lately.1));
    state(&link, &Slo::default())
}

#[test]
fn a_break_is_seen_at_once_and_is_over_soon_after_it_healed() {
    let spell = |failures, told, answered_since| Spell { failures, told, answered_since };
    assert_eq!(after(2, spell(2, 10, 0), (2, 20)), State::Loses, "two of the last, though few of all");
    assert_eq!(after(35, spell(35, 40, 2), (8, 12)), State::Loses);
    assert_eq!(after(35, spell(35, 40, 20), (0, 20)), State::Good, "it healed");
    assert_eq!(after(6, spell(6, 290, 20), (0, 20)), State::Loses, "one in fifty goes on, though not lately");
}

#[test]
fn nothing_is_said_of_what_was_not_tried() {
    let mut untried = link("a1", Role::Api, 0, 200);
    untried.counts = Counts { scheduled: 20, untried: 20, ..Counts::default() };
    untried.lately = untried.counts.clone();
    untried.times = Recorded::default();
    assert_eq!(state(&untried, &Slo::default()), State::Unknown);
    assert_eq!(claims(&[untried]), Vec::<String>::new());
}

#[test]
fn times_have_three_digits() {
    let said = [7, 214, 12_345, 1_500_000].map(milliseconds);
    assert_eq!(said, ["0.007 ms", "0.214 ms", "12.3 ms", "1500 ms"]);
    assert_eq!([0.001, 0.01, 0.0].map(percent), ["0.1 %", "1 %", "0 %"]);
}
