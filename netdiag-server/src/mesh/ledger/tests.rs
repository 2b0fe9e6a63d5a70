//! Reports that grow, repeat, lie and age.

use netdiag_common::observation::mesh::{FailureClass, Phase, Times};

use super::*;

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(1_800_000_000 + second).unwrap()
}

fn times(values: &[u64]) -> Times {
    let mut histogram = empty::<u32>();
    for value in values {
        histogram.record(*value).unwrap();
    }
    Times::of(&histogram)
}

fn target(name: &str, values: &[u64], lost: u64, open: u64) -> TargetReport {
    let answered = values.len() as u64;
    let failed = BTreeMap::from([(FailureClass::NoAnswer, lost)]);
    let counts = Counts { scheduled: answered + lost + open, answered, failed, open, ..Counts::default() };
    TargetReport { name: name.to_owned(), counts, phases: BTreeMap::from([(Phase::Connect, times(values))]) }
}

fn report(started: i64, targets: Vec<TargetReport>) -> MeshReport {
    let round = RoundReport { generation: 1, started: at(started), ended: false, delay: Times::default(), targets };
    MeshReport { rounds: vec![round], refused: Vec::new() }
}

/// Heard of when it began.
fn record(ledger: &mut Ledger, node: &str, report: &MeshReport) -> Result<(), String> {
    ledger.record(node, report, report.rounds[0].started)
}

fn only_link(ledger: &Ledger) -> Link {
    let mut links = ledger.links();
    assert_eq!(links.len(), 1);
    links.remove(0)
}

#[test]
fn a_round_that_is_reported_twice_counts_once() {
    let mut ledger = Ledger::default();
    for (values, lost, open) in
        [(&[90, 95][..], 0, 1), (&[90, 95], 1, 0), (&[90, 95, 400], 1, 0), (&[90, 95, 400], 1, 0)]
    {
        record(&mut ledger, "n1", &report(0, vec![target("peer/n2/tcp", values, lost, open)])).unwrap();
    }
    let link = only_link(&ledger);
    assert_eq!((link.counts.scheduled, link.counts.answered, link.counts.failures()), (4, 3, 1));
    let total = ledger.results().values().next().unwrap();
    assert_eq!((total.answered, total.failures()), (3, 1));
    assert_eq!(ledger.times().values().next().unwrap().len(), 3);
}

#[test]
fn parts_of_attempts_are_added_up_beside_the_whole() {
    let mut ledger = Ledger::default();
    let page = |connects: &[u64], totals: &[u64], lost: u64| {
        let phases = BTreeMap::from([(Phase::Connect, times(connects)), (Phase::Total, times(totals))]);
        TargetReport { phases, ..target("user/page/http", totals, lost, 0) }
    };
    // The second attempt connected, and its answer never came.
    for (connects, totals, lost) in [(&[200][..], &[900][..], 0), (&[200, 300], &[900], 1)] {
        record(&mut ledger, "n1", &report(0, vec![page(connects, totals, lost)])).unwrap();
    }
    record(&mut ledger, "n1", &report(20, vec![page(&[250], &[800], 0)])).unwrap();
    let link = only_link(&ledger);
    assert_eq!((link.times.len(), link.counts.answered, link.counts.failures()), (2, 2, 1));
    assert_eq!((link.parts[&Phase::Connect].len(), link.parts[&Phase::Connect].max_us()), (3, Some(300)));
    assert_eq!(link.parts.len(), 1, "the whole is no part");
    let ((way, phase), total) = ledger.parts().iter().next().unwrap();
    assert_eq!((way.target.as_str(), *phase, total.len()), ("page", Phase::Connect, 3));
    let fewer = report(20, vec![page(&[], &[800], 0)]);
    assert!(record(&mut ledger, "n1", &fewer).unwrap_err().contains("fell"), "of parts too");
    // Nothing was answered yet, and something was got through.
    record(&mut ledger, "n2", &report(0, vec![page(&[200], &[], 1)])).unwrap();
}

#[test]
fn a_spell_lasts_from_the_first_round_with_a_failure_to_the_last() {
    let mut ledger = Ledger::default();
    let mut round = |number: i64, answered: usize, lost| {
        let target = target("peer/n2/tcp", &vec![90; answered], lost, 0);
        record(&mut ledger, "n1", &report(number * 20, vec![target])).unwrap();
        let link = only_link(&ledger);
        (link.lately.told(), (link.spell.failures, link.spell.told, link.spell.answered_since))
    };
    assert_eq!(round(0, 10, 0), (10, (0, 0, 0)));
    assert_eq!(round(1, 6, 4), (20, (4, 10, 0)));
    assert_eq!(round(2, 9, 0), (19, (4, 10, 9)), "it may be over");
    assert_eq!(round(3, 0, 8), (17, (12, 27, 0)), "it was not: the good round lay within");
    assert_eq!(round(4, 7, 0), (15, (12, 27, 7)));
    let mut both = Spell { failures: 3, told: 5, answered_since: 2 };
    both.join(&Spell { failures: 12, told: 27, answered_since: 7 });
    both.join(&Spell::default());
    assert_eq!(both, Spell { failures: 15, told: 32, answered_since: 2 });
}

#[test]
fn merging_is_exact() {
    let mut ledger = Ledger::default();
    let mut all = empty::<u64>();
    // Times over four magnitudes, in rounds and from nodes.
    for round in 0..5_i64 {
        for node in ["n1", "n3"] {
            let values: Vec<u64> = (1..=40).map(|n| n * n * (round.unsigned_abs() + 1) * 13 + 50).collect();
            for value in &values {
                all.record(*value).unwrap();
            }
            record(&mut ledger, node, &report(round * 20, vec![target("peer/n2/tcp", &values, 0, 0)])).unwrap();
        }
    }
    let mut merged = Recorded::default();
    ledger.links().iter().for_each(|link| merged.add(&link.times));
    assert_eq!(merged, Recorded::of(&all));
    assert_eq!(Times::of(ledger.times().values().next().unwrap()), Times::of(&all), "and in the totals");
}

#[test]
fn totals_stay_when_rounds_are_forgotten_and_are_not_counted_again() {
    let mut ledger = Ledger::default();
    let old = report(0, vec![target("api/kubernetes/tcp", &[70], 0, 0)]);
    record(&mut ledger, "n1", &old).unwrap();
    ledger.forget(at(601));
    assert!(ledger.links().is_empty());
    record(&mut ledger, "n1", &old).unwrap();
    assert!(ledger.links().is_empty(), "it was forgotten");
    assert_eq!(ledger.results().values().next().unwrap().answered, 1);
    record(&mut ledger, "n1", &report(590, vec![target("api/kubernetes/tcp", &[70], 0, 0)])).unwrap();
    ledger.forget(at(1_000));
    assert_eq!(only_link(&ledger).counts.answered, 1);
    assert_eq!(ledger.since(), Some(at(590)));
}

#[test]
fn an_agent_whose_clock_is_wrong_is_heard_and_forgotten_as_others_are() {
    for wrong in [-7_200, 7_200] {
        let mut ledger = Ledger::default();
        let report = report(wrong, vec![target("api/kubernetes/tcp", &[70], 0, 0)]);
        ledger.record("n1", &report, at(0)).unwrap();
        ledger.record("n1", &report, at(5)).unwrap();
        ledger.forget(at(10));
        assert_eq!((only_link(&ledger).counts.answered, ledger.since()), (1, Some(at(0))));
        ledger.forget(at(601));
        ledger.record("n1", &report, at(602)).unwrap();
        assert!(ledger.links().is_empty(), "{wrong} s");
    }
}

#[test]
fn reports_that_cannot_be_true_change_nothing() {
    let mut ledger = Ledger::default();
    let good = |values: &[u64]| target("peer/n2/tcp", values, 0, 0);
    record(&mut ledger, "n1", &report(0, vec![good(&[90, 95])])).unwrap();
    let mut unbalanced = good(&[90, 95, 99]);
    unbalanced.counts.untried = 7;
    let mut untimed = good(&[90, 95, 99]);
    untimed.phases.clear();
    for (targets, says) in [
        (vec![good(&[90])], "fell"),
        (vec![good(&[90, 400])], "fell"),
        (vec![unbalanced], "do not add up"),
        (vec![untimed], "3 answers and 0 times"),
        (vec![good(&[90, 95]), target("who/x/tcp", &[], 1, 0)], "names no target"),
        (Vec::new(), "not in this one"),
        (vec![good(&[90, 95]), good(&[90, 95])], "twice"),
        ((0..97).map(|n| target(&format!("peer/m{n}/tcp"), &[], 1, 0)).collect(), "97 targets"),
    ] {
        let said = record(&mut ledger, "n1", &report(0, targets)).unwrap_err();
        assert!(said.contains(says), "{said}");
        assert_eq!(only_link(&ledger).counts.answered, 2);
    }
    let flood =
        MeshReport { rounds: vec![report(0, Vec::new()).rounds.remove(0); KEPT_ROUNDS + 1], refused: Vec::new() };
    assert!(record(&mut ledger, "n1", &flood).unwrap_err().contains("4 rounds"));
}

#[test]
fn a_node_that_is_gone_is_no_broken_link() {
    let mut ledger = Ledger::default();
    let nodes = |names: &[&str]| names.iter().map(|node| ((*node).to_owned(), String::new())).collect();
    ledger.place(&nodes(&["n1", "n2", "n3"]));
    for (node, peer) in [("n1", "n2"), ("n1", "n3"), ("n3", "n1")] {
        let targets = vec![target(&format!("peer/{peer}/tcp"), &[], 10, 0)];
        record(&mut ledger, node, &report(if peer == "n3" { 20 } else { 0 }, targets)).unwrap();
    }
    assert_eq!(ledger.links().len(), 3);
    ledger.place(&nodes(&["n1", "n2"]));
    let link = only_link(&ledger);
    assert_eq!((link.from.as_str(), link.subject.to_string().as_str()), ("n1", "peer/n2/tcp"));
    assert!(ledger.results().keys().all(|series| series.node == "n1"));
}

#[test]
fn zones_and_sorts_name_the_totals() {
    let mut ledger = Ledger::default();
    let zones = [("n1", "a"), ("n2", "b")].map(|(node, zone)| (node.to_owned(), zone.to_owned()));
    ledger.place(&BTreeMap::from(zones));
    let targets = ["peer/n2/icmp", "dns/10.244.0.3:53/dns", "user/registry/tcp"];
    record(&mut ledger, "n1", &report(0, targets.map(|name| target(name, &[80], 0, 0)).to_vec())).unwrap();
    let ways: Vec<(&str, &str, &str)> =
        ledger.times().keys().map(|way| (way.target.as_str(), way.from_zone.as_str(), way.to_zone.as_str())).collect();
    assert_eq!(ways, [("dns", "a", ""), ("peer", "a", "b"), ("registry", "a", "")]);
}
