use netdiag_common::observation::rules::{Backend, BaseChain};

use super::*;

fn rule(matches: Vec<Match>, verdict: Verdict) -> Rule {
    Rule { handle: 1, matches, verdict, counter: None, comment: None, text: String::new() }
}

fn port(port: u16) -> Match {
    let range = netdiag_common::observation::rules::PortRange { first: port, last: port };
    Match::DestinationPort { ranges: vec![range], negated: false }
}

fn unknown() -> Match {
    Match::Other { text: "meta mark 0x1".to_owned() }
}

fn chain(name: &str, base: Option<(Hook, i32, Verdict)>, rules: Vec<Rule>) -> Chain {
    let base = base.map(|(hook, priority, policy)| BaseChain { hook, priority, kind: "filter".to_owned(), policy });
    Chain { name: name.to_owned(), base, rules }
}

fn forward(priority: i32, rules: Vec<Rule>) -> Chain {
    chain(&format!("fw{priority}"), Some((Hook::Forward, priority, Verdict::Accept)), rules)
}

fn ruleset(family: &str, chains: Vec<Chain>) -> Ruleset {
    let table = Table { backend: Backend::Nftables, family: family.to_owned(), name: "site".to_owned(), chains };
    Ruleset { tables: vec![table], ..Ruleset::default() }
}

/// 10.244.1.2 dials 10.96.0.7:80, which is translated to 10.244.2.3:8080.
fn walked(rules: &Ruleset, hook: Hook) -> Vec<(String, bool)> {
    let packet = Packet {
        source: "10.244.1.2".parse().ok(),
        dialled: "10.96.0.7:80".parse().expect("a socket"),
        endpoint: "10.244.2.3:8080".parse().expect("a socket"),
        protocol: Protocol::Tcp,
        input: Some("veth1"),
        output: None,
    };
    stops(rules, &[hook], &packet, false).iter().map(|stop| (stop.chain.name.clone(), stop.sure)).collect()
}

fn sure(name: &str) -> Vec<(String, bool)> {
    vec![(name.to_owned(), true)]
}

#[test]
fn the_endpoint_is_what_forward_chains_see() {
    let drops = |number| ruleset("inet", vec![forward(0, vec![rule(vec![port(number)], Verdict::Drop)])]);
    assert_eq!(walked(&drops(8080), Hook::Forward), sure("fw0"));
    assert!(walked(&drops(80), Hook::Forward).is_empty());
}

#[test]
fn before_the_translation_prerouting_sees_the_service() {
    let at = |priority| {
        let base = Some((Hook::Prerouting, priority, Verdict::Accept));
        ruleset("ip", vec![chain("raw", base, vec![rule(vec![port(80)], Verdict::Drop)])])
    };
    assert_eq!(walked(&at(-300), Hook::Prerouting), sure("raw"));
    assert!(walked(&at(0), Hook::Prerouting).is_empty());
}

#[test]
fn an_accept_does_not_save_from_a_later_base_chain() {
    let accepts = forward(0, vec![rule(vec![], Verdict::Accept), rule(vec![], Verdict::Drop)]);
    let drops = forward(10, vec![rule(vec![port(8080)], Verdict::Drop)]);
    assert_eq!(walked(&ruleset("inet", vec![drops, accepts.clone()]), Hook::Forward), sure("fw10"));
    assert!(walked(&ruleset("inet", vec![accepts]), Hook::Forward).is_empty());
}

#[test]
fn a_jump_comes_back_and_a_goto_does_not() {
    let empty = chain("aside", None, vec![]);
    let to = |verdict| vec![rule(vec![], verdict), rule(vec![], Verdict::Drop)];
    let jump = forward(0, to(Verdict::Jump { chain: "aside".to_owned() }));
    let goto = forward(0, to(Verdict::Goto { chain: "aside".to_owned() }));
    assert_eq!(walked(&ruleset("ip", vec![jump, empty.clone()]), Hook::Forward), sure("fw0"));
    assert!(walked(&ruleset("ip", vec![goto, empty]), Hook::Forward).is_empty());
}

#[test]
fn chains_that_jump_in_a_circle_end() {
    let circle = chain("a", None, vec![rule(vec![], Verdict::Jump { chain: "a".to_owned() })]);
    let start = forward(0, vec![rule(vec![], Verdict::Jump { chain: "a".to_owned() })]);
    assert!(walked(&ruleset("ip", vec![start, circle]), Hook::Forward).is_empty());
}

#[test]
fn what_cannot_be_decided_makes_the_rest_uncertain() {
    let maybe_accepts = vec![rule(vec![unknown()], Verdict::Accept), rule(vec![], Verdict::Drop)];
    assert_eq!(walked(&ruleset("ip", vec![forward(0, maybe_accepts)]), Hook::Forward), [("fw0".to_owned(), false)]);
    let maybe_drops = vec![rule(vec![unknown()], Verdict::Drop)];
    assert_eq!(walked(&ruleset("ip", vec![forward(0, maybe_drops)]), Hook::Forward), [("fw0".to_owned(), false)]);
    let marked = vec![rule(vec![unknown()], Verdict::Continue), rule(vec![], Verdict::Drop)];
    assert_eq!(walked(&ruleset("ip", vec![forward(0, marked)]), Hook::Forward), sure("fw0"));
}

#[test]
fn a_policy_drops_what_no_rule_accepts() {
    let base = |policy| Some((Hook::Forward, 0, policy));
    let closed = chain("FORWARD", base(Verdict::Drop), vec![rule(vec![port(22)], Verdict::Accept)]);
    assert_eq!(walked(&ruleset("ip", vec![closed]), Hook::Forward), sure("FORWARD"));
    let open = chain("FORWARD", base(Verdict::Drop), vec![rule(vec![port(8080)], Verdict::Accept)]);
    assert!(walked(&ruleset("ip", vec![open]), Hook::Forward).is_empty());
}

#[test]
fn tables_of_the_other_family_and_replies_do_not_count() {
    let all = vec![rule(vec![], Verdict::Drop)];
    assert!(walked(&ruleset("ip6", vec![forward(0, all.clone())]), Hook::Forward).is_empty());
    assert!(walked(&ruleset("bridge", vec![forward(0, all)]), Hook::Forward).is_empty());
    let states = Match::ConntrackState { states: vec!["invalid".to_owned()], negated: false };
    assert!(
        walked(&ruleset("ip", vec![forward(0, vec![rule(vec![states], Verdict::Drop)])]), Hook::Forward).is_empty()
    );
}
