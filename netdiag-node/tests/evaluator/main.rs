//! The evaluator of packet filters against the kernel: random rules and random packets, each predicted, then sent and
//! traced by the kernel itself, and compared hook by hook.
//!
//! `NETDIAG_EVALUATOR_CASES` sets how many packets each test sends, `NETDIAG_EVALUATOR_FIRST` the first ruleset by its
//! number, and `NETDIAG_EVALUATOR_ONLY` runs the one ruleset that a failure names. `NETDIAG_ELEMENTS` sets how
//! large the large set is.
#![expect(clippy::unwrap_used, reason = "a test that cannot be set up fails")]

mod bridge;
mod cable;
mod compare;
mod fixed;
mod fixed_legacy;
mod fixed_modules;
mod fixed_sockets;
mod fixed_stateful;
mod iptables;
mod lab;
mod large;
mod legacy;
mod nflog;
mod random;
mod rewritten;
mod rules;
mod segments;
mod sets;
mod trace;
mod traffic;
mod wire;

use compare::{Compared, Connections, Traces};
use lab::Lab;
use netdiag_common::forwarding::Fact;
use netdiag_common::forwarding::conntrack::{Connection, status};
use netdiag_common::forwarding::packet::Packet;
use netdiag_common::forwarding::path::{Decision, End, Path};
use nflog::Log;
use random::Random;
use trace::Tracer;

/// Packets of one run. A few seconds.
const CASES: usize = 500;

/// First packets per ruleset; answers and third packets come on top.
const PACKETS: usize = 8;

/// Rulesets that may be refused as a whole before the generator is wrong.
const REFUSED: usize = 5;

/// Makes, loads and returns random rules.
type Load = fn(&mut Random) -> Result<String, String>;

#[test]
fn native_rules_do_what_the_evaluator_says() {
    run("native_rules_do_what_the_evaluator_says", rules::load);
}

#[test]
fn rules_of_iptables_do_what_the_evaluator_says() {
    run("rules_of_iptables_do_what_the_evaluator_says", iptables::load);
}

#[test]
fn rules_of_legacy_iptables_do_what_the_evaluator_says() {
    let name = "rules_of_legacy_iptables_do_what_the_evaluator_says";
    lab::in_lab(name, move |lab| match legacy::prepare() {
        Ok(log) => run_with(name, lab, legacy::load, Some(log)),
        Err(why) => println!("netdiag-skip: {name}: {why}"),
    });
}

fn run(name: &'static str, load: Load) {
    lab::in_lab(name, move |lab| run_with(name, lab, load, None));
}

fn run_with(name: &'static str, lab: &Lab, load: Load, log: Option<Log>) {
    let wanted = number("NETDIAG_EVALUATOR_CASES").unwrap_or(CASES);
    let only = number("NETDIAG_EVALUATOR_ONLY");
    let mut seed = only.or(number("NETDIAG_EVALUATOR_FIRST")).unwrap_or(1);
    let traces = Traces { tracer: Tracer::open(), log };
    let mut tally = Tally::default();
    while tally.cases < wanted && tally.refused.len() < REFUSED {
        ruleset(lab, &traces, seed, load, &mut tally);
        if only.is_some() {
            break;
        }
        seed += 1;
    }
    println!("{name}: {}", tally.words());
    for complaint in tally.refused.iter().chain(tally.complaints.iter().take(30)) {
        println!("{complaint}");
    }
    assert!(tally.refused.is_empty(), "{} rulesets were refused", tally.refused.len());
    assert!(tally.complaints.is_empty(), "{} disagreements", tally.complaints.len());
}

#[derive(Default)]
struct Tally {
    cases: usize,
    rulesets: usize,
    /// Packets for which more than one path was possible.
    forked: usize,
    translated: usize,
    answers: usize,
    /// Packets that nothing can be said about: too many paths, or a port that another connection of the test holds.
    set_aside: usize,
    complaints: Vec<String>,
    refused: Vec<String>,
}

impl Tally {
    fn words(&self) -> String {
        let Self { cases, rulesets, forked, translated, answers, set_aside, complaints, .. } = self;
        format!(
            "{cases} cases, {} disagreements ({rulesets} rulesets, {forked} packets with several paths, {translated} \
             translated, {answers} in established connections; {set_aside} more set aside)",
            complaints.len()
        )
    }

    fn add(&mut self, compared: Compared, packet: &Packet, case: &str, rules: &str) -> Option<Path> {
        match compared {
            Compared::SetAside => {
                self.set_aside += 1;
                None
            }
            Compared::Differs(complaint) => {
                self.cases += 1;
                self.complaints.push(format!("{case}: {complaint}\n{rules}"));
                None
            }
            Compared::Same(path) => {
                self.cases += 1;
                self.forked += usize::from(!path.assumptions.is_empty());
                let translated = |decision: &_| matches!(decision, Decision::Translated { .. });
                self.answers += usize::from(matches!(packet.connection, Fact::Known(Connection::Existing(_))));
                self.translated += usize::from(path.decisions.iter().any(translated));
                Some(*path)
            }
        }
    }
}

fn ruleset(lab: &Lab, traces: &Traces, seed: usize, load: Load, tally: &mut Tally) {
    let mut random = Random(seed as u64);
    let rules = match load(&mut random) {
        Ok(rules) => rules,
        Err(why) => {
            tally.refused.push(format!("ruleset {seed}: {why}"));
            return;
        }
    };
    trace::forget_connections();
    let mut connections = Connections::default();
    tally.rulesets += 1;
    for number in 0..PACKETS {
        let first = traffic::packet(lab, &mut random, u16::try_from(20_000 + number * 7).unwrap());
        let case = format!("ruleset {seed}, packet {number}");
        conversation(&first, lab, &mut |packet| {
            let compared = compare::compare(lab, traces, packet, &mut connections);
            tally.add(compared, packet, &case, &rules)
        });
    }
}

/// A packet, the one that answers it, and the next one of whoever began.
fn conversation(first: &Packet, lab: &Lab, check: &mut dyn FnMut(&Packet) -> Option<Path>) {
    let Some(path) = check(first) else { return };
    if !traffic::begins(first) {
        return;
    }
    let Some(answer) = traffic::answer(lab, &path) else { return };
    let Some(answered) = check(&answer) else { return };
    // This host complains about what none of its sockets wants, and changes the connection with that.
    let complains = answered.end == End::Delivered && answer.ports().is_some();
    // Without its answer, tracking takes what comes next for no part of a TCP connection.
    let entry = answered.connection.or(path.connection).filter(|entry| entry.status & status::SEEN_REPLY != 0);
    if let Some(entry) = entry.filter(|_| !complains) {
        check(&traffic::next(lab, first, &entry));
    }
}

#[test]
fn differences_found_before_are_none_now() {
    let name = "differences_found_before_are_none_now";
    lab::in_lab(name, move |lab| repeat(name, lab, &fixed::CASES.each_ref(), None));
}

#[test]
fn differences_found_in_legacy_tables_are_none_now() {
    let name = "differences_found_in_legacy_tables_are_none_now";
    lab::in_lab(name, move |lab| match legacy::prepare() {
        Ok(log) => repeat(name, lab, &fixed_legacy::CASES.each_ref(), Some(log)),
        Err(why) => println!("netdiag-skip: {name}: {why}"),
    });
}

#[test]
fn what_cannot_be_read_is_followed_in_all_its_ways() {
    let name = "what_cannot_be_read_is_followed_in_all_its_ways";
    lab::in_lab(name, move |lab| repeat(name, lab, &fixed_stateful::CASES.each_ref(), None));
}

#[test]
fn flowtables_do_what_the_evaluator_says() {
    if_there("flowtables_do_what_the_evaluator_says", &fixed_modules::FLOWTABLE);
}

#[test]
fn queues_do_what_the_evaluator_says() {
    if_there("queues_do_what_the_evaluator_says", &fixed_modules::QUEUE);
}

#[test]
fn queues_of_iptables_do_what_the_evaluator_says() {
    if_there("queues_of_iptables_do_what_the_evaluator_says", &fixed_modules::QUEUE_OF_IPTABLES);
}

#[test]
fn programs_of_classic_bpf_do_what_the_evaluator_says() {
    if_there("programs_of_classic_bpf_do_what_the_evaluator_says", &fixed_modules::PROGRAM);
}

#[test]
fn classes_of_control_groups_do_what_the_evaluator_says() {
    if_there("classes_of_control_groups_do_what_the_evaluator_says", &fixed_modules::CLASS);
}

#[test]
fn sockets_and_proxies_do_what_the_evaluator_says() {
    let name = "sockets_and_proxies_do_what_the_evaluator_says";
    lab::in_lab(name, move |lab| {
        let _sockets = fixed_sockets::open();
        for case in &fixed_sockets::CASES {
            repeat_if_there(name, lab, case);
        }
    });
}

#[test]
fn lists_and_headers_do_what_the_evaluator_says() {
    let name = "lists_and_headers_do_what_the_evaluator_says";
    lab::in_lab(name, move |lab| fixed_modules::CASES.iter().for_each(|case| repeat_if_there(name, lab, case)));
}

/// A case of what a kernel may be built without.
fn if_there(name: &'static str, case: &'static fixed::Case) {
    lab::in_lab(name, move |lab| repeat_if_there(name, lab, case));
}

fn repeat_if_there(name: &str, lab: &Lab, case: &fixed::Case) {
    match load_case(case) {
        Err(why) if fixed_modules::is_missing(&why) => {
            println!("netdiag-skip: {name}: {}", why.lines().next().unwrap_or_default());
        }
        // Loaded once more, and refused for whatever else it may be.
        _ => repeat(name, lab, &[case], None),
    }
}

/// Its rules, and nothing else but what traces packets.
fn load_case(case: &fixed::Case) -> Result<(), String> {
    lab::nft(&format!("flush ruleset\n{}", rules::PROBE)).unwrap();
    let arguments: &[&str] = match case.tool {
        "nft" => &["-f", "-"],
        legacy::IPTABLES | legacy::IP6TABLES => {
            legacy::clear().unwrap();
            &legacy::PATIENT
        }
        _ => &[],
    };
    lab::feed(case.tool, arguments, case.rules)
}

fn repeat(name: &str, lab: &Lab, cases: &[&fixed::Case], log: Option<Log>) {
    let traces = Traces { tracer: Tracer::open(), log };
    let mut tally = Tally::default();
    for case in cases {
        load_case(case).unwrap_or_else(|why| panic!("{}: {why}", case.fact));
        trace::forget_connections();
        let mut connections = Connections::default();
        tally.rulesets += 1;
        for first in (case.packets)(lab) {
            conversation(&first, lab, &mut |packet| {
                let compared = compare::compare(lab, &traces, packet, &mut connections);
                tally.add(compared, packet, case.fact, case.rules)
            });
        }
    }
    println!("{name}: {}", tally.words());
    tally.complaints.iter().for_each(|complaint| println!("{complaint}"));
    assert!(tally.complaints.is_empty(), "{} disagreements", tally.complaints.len());
}

fn number(variable: &str) -> Option<usize> {
    std::env::var(variable).ok().and_then(|text| text.parse().ok())
}
