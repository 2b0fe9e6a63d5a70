//! Heat maps of small and large clusters, with what breaks in them.

use netdiag_common::observation::mesh::empty;
use netdiag_common::{Gap, GapReason};

use super::*;
use crate::answer::Paint;
use crate::mesh::Settings;
use crate::mesh::ledger::Spell;

fn at() -> Timestamp {
    "2026-11-22T12:00:00Z".parse().unwrap()
}

fn peer(from: &str, to: &str, kind: Kind, lost: u64, time_us: u64) -> Link {
    of(from, Subject::new(Role::Peer(to.to_owned()), kind), lost, time_us)
}

fn of(from: &str, subject: Subject, lost: u64, time_us: u64) -> Link {
    let mut times = empty::<u64>();
    times.record_n(time_us, 20 - lost).unwrap();
    let times = Recorded::of(&times);
    let failed = BTreeMap::from([(FailureClass::NoAnswer, lost)]);
    let counts = Counts { scheduled: 21, answered: 20 - lost, failed, untried: 1, ..Counts::default() };
    let spell = Spell { failures: lost, told: if lost > 0 { 20 } else { 0 }, answered_since: 0 };
    Link { from: from.to_owned(), subject, lately: counts.clone(), counts, spell, times, parts: BTreeMap::new() }
}

/// Everybody to everybody; `bad` says how many of 20 are lost, and what the others take.
fn look(nodes: &[(String, &str)], bad: impl Fn(usize, usize) -> (u64, u64)) -> Look {
    let mut links = Vec::new();
    for (one, (from, _)) in nodes.iter().enumerate() {
        for (other, (to, _)) in nodes.iter().enumerate().filter(|(other, _)| *other != one) {
            let (lost, time_us) = bad(one, other);
            links.push(peer(from, to, Kind::Tcp, lost, time_us));
            links.push(peer(from, to, Kind::Icmp, 0, 150));
        }
    }
    Look {
        settings: Settings { targets: Vec::new(), agent_port: 9443, slo: Slo::default() },
        cluster: "prod".to_owned(),
        links,
        zones: nodes.iter().map(|(node, zone)| (node.clone(), (*zone).to_owned())).collect(),
        since: Some("2026-11-22T11:58:00Z".parse().unwrap()),
        gaps: Vec::new(),
        rounds: 6,
    }
}

fn four() -> Vec<(String, &'static str)> {
    [("n1", "a"), ("n2", "a"), ("n3", "b"), ("a-node-with-quite-a-long-name-7", "b")]
        .map(|(node, zone)| (node.to_owned(), zone))
        .to_vec()
}

/// One link is broken, one loses some, one is slow; a target fails, and a node could not be asked.
fn troubled() -> Look {
    let mut look = look(&four(), |one, other| match (one.min(other), one.max(other)) {
        (0, 2) => (20, 0),
        (1, 2) => (if one < other { 3 } else { 0 }, 900),
        (0, 1) => (0, 1_250_000),
        _ => (0, 214),
    });
    look.links.push(of("n1", Subject::new(Role::Dns("10.244.0.3:53".parse().unwrap()), Kind::Dns), 20, 0));
    look.links.push(of("n2", Subject::new(Role::Api, Kind::Tcp), 0, 430));
    look.gaps.push(Gap {
        what: "the mesh from node n4".to_owned(),
        node: Some("n4".to_owned()),
        reason: GapReason::NoAgent,
        why: "nothing listens at 10.0.0.4:9443".to_owned(),
        remedy: "check the agent's pod".to_owned(),
    });
    look
}

#[test]
fn text_of_a_troubled_mesh() {
    insta::assert_snapshot!("troubled", build(&troubled(), at()).text(Paint::Plain, Kind::Tcp));
}

#[test]
fn colour_is_only_for_terminals_and_never_alone() {
    let answer = build(&troubled(), at());
    let (plain, painted) = (answer.text(Paint::Plain, Kind::Tcp), answer.text(Paint::Ansi, Kind::Tcp));
    assert!(!plain.contains('\u{1b}'));
    let mut bare = String::new();
    let mut rest = painted.as_str();
    while let Some((before, after)) = rest.split_once('\u{1b}') {
        bare.push_str(before);
        rest = after.split_once('m').unwrap().1;
    }
    bare.push_str(rest);
    let tidy = |text: &str| text.lines().map(str::trim_end).collect::<Vec<_>>().join("\n");
    assert_eq!(tidy(&bare), tidy(&plain));
}

#[test]
fn svg_of_a_troubled_mesh() {
    insta::assert_snapshot!("troubled_svg", build(&troubled(), at()).svg(Kind::Tcp));
}

#[test]
fn a_large_cluster_is_shown_by_zones_in_text_and_by_nodes_in_svg() {
    let zones = ["a", "b", "c"];
    let nodes: Vec<(String, &str)> = (0..45).map(|n| (format!("n{n:02}"), zones[n % 3])).collect();
    let answer = build(&look(&nodes, |one, other| if one % 3 + other % 3 == 1 { (20, 0) } else { (0, 300) }), at());
    insta::assert_snapshot!("zones", answer.text(Paint::Plain, Kind::Tcp));
    let svg = answer.svg(Kind::Tcp);
    assert_eq!(svg.matches("<rect x=").count(), 45 * 45);
    assert_eq!(answer.zones.len(), 9 * 2);
    assert_eq!(answer.status, MeshStatus::Breaks);
}

#[test]
fn hostile_names_stay_text() {
    let nodes = [("<script>alert(1)</script>\u{1b}[31m&\"'".to_owned(), "a"), ("n2".to_owned(), "]]><b>")];
    let answer = build(&look(&nodes, |_, _| (20, 0)), at());
    let svg = answer.svg(Kind::Tcp);
    assert!(
        svg.contains("&lt;script&gt;") && !svg.contains("<script") && !svg.contains('\u{1b}') && !svg.contains("]]>")
    );
    assert!(!answer.text(Paint::Plain, Kind::Tcp).contains('\u{1b}'));
}

#[test]
fn the_worse_of_two_families_is_in_the_heat_map() {
    for kind in [Kind::Icmp6, Kind::Icmp4] {
        let mut look = look(&four(), |_, _| (0, 200));
        assert!(!build(&look, at()).text(Paint::Plain, Kind::Icmp).contains("X100%"));
        look.links.push(peer("n1", "n2", kind, 20, 0));
        look.links.push(peer("n1", "n3", kind, 0, 200));
        let answer = build(&look, at());
        assert_eq!(answer.text(Paint::Plain, Kind::Icmp).matches("X100%").count(), 1, "{kind:?}");
        assert!(answer.links.iter().any(|link| link.kind == kind), "the answer tells them apart");
    }
}

#[test]
fn parts_of_attempts_are_in_the_answer() {
    let mut look = look(&four(), |_, _| (0, 200));
    let mut page = of("n1", Subject::new(Role::User("page".to_owned()), Kind::Http), 0, 900);
    let mut connects = empty::<u64>();
    connects.record_n(250, 20).unwrap();
    page.parts.insert(Phase::Connect, Recorded::of(&connects));
    page.parts.insert(Phase::Tls, Recorded::default());
    look.links.push(page);
    let answer = serde_json::to_value(build(&look, at())).unwrap();
    let links = answer["links"].as_array().unwrap();
    let page = links.iter().find(|link| link["to"] == "page").unwrap();
    let connect = serde_json::json!({"phase": "connect", "count": 20, "p50_us": 250, "p99_us": 250, "max_us": 250});
    assert_eq!(page["phases"], serde_json::json!([connect]), "and none that nothing got through");
    assert!(links.iter().filter(|link| link["to"] != "page").all(|link| link.get("phases").is_none()));
}

#[test]
fn nothing_probed_is_not_healthy() {
    let nothing = Look { links: Vec::new(), since: None, ..look(&four(), |_, _| (0, 0)) };
    let answer = build(&nothing, at());
    assert_eq!((answer.status, answer.window_s), (MeshStatus::Unknown, 0));
    assert!(answer.text(Paint::Plain, Kind::Tcp).starts_with("mesh        nothing was probed"));
    let healthy = build(&look(&four(), |_, _| (0, 200)), at());
    assert_eq!(healthy.status, MeshStatus::Good);
}

#[test]
fn counts_of_links_and_zones_add_up() {
    let answer = build(&troubled(), at());
    for link in answer.links.iter().chain(&answer.zones) {
        let terms = link.answered + link.failed.values().sum::<u64>() + link.untried + link.open;
        assert_eq!(terms, link.scheduled, "{link:?}");
    }
    let of = |links: &[MeshLink]| -> u64 {
        links.iter().filter(|link| link.target == TargetName::Peer).map(|link| link.scheduled).sum()
    };
    assert_eq!(of(&answer.links), of(&answer.zones));
}
