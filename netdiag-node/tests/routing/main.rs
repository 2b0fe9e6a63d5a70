//! The evaluator of routing against the kernel: random rules, tables, next hops and links in a namespace made for it, and
//! random questions, each evaluated and asked of the kernel (`RTM_GETROUTE`), and compared field by field.
//!
//! `NETDIAG_EVALUATOR_CASES` sets how many questions are asked, `NETDIAG_EVALUATOR_FIRST` the first setup by its number, and
//! `NETDIAG_EVALUATOR_ONLY` runs the one setup that a failure names.
#![expect(clippy::unwrap_used, reason = "a test that cannot be set up fails")]

#[path = "../evaluator/cable.rs"]
mod cable;
mod compare;
mod filter;
mod fixed;
mod kernel;
mod lab;
mod query;
#[path = "../evaluator/random.rs"]
mod random;
mod setup;
mod size;

use compare::{Compared, compare};
use lab::in_namespace;
use netdiag_common::forwarding::state::RouteQuery;
use random::Random;

/// Questions of one run. A few seconds.
const CASES: usize = 500;

/// Questions per setup.
const QUESTIONS: usize = 50;

#[test]
fn packets_are_routed_as_the_evaluator_says() {
    let name = "packets_are_routed_as_the_evaluator_says";
    let wanted = number("NETDIAG_EVALUATOR_CASES").unwrap_or(CASES);
    let only = number("NETDIAG_EVALUATOR_ONLY");
    let mut seed = only.or(number("NETDIAG_EVALUATOR_FIRST")).unwrap_or(1);
    let mut tally = Tally::default();
    while tally.cases < wanted {
        let ran = in_namespace(name, move || {
            let mut random = Random(seed as u64);
            let setup = setup::make(&mut random);
            lab::apply(&setup);
            let mut tally = Tally { setups: 1, ..Tally::default() };
            for number in 0..QUESTIONS {
                let query = query::make(&mut random);
                tally.add(&query, &format!("setup {seed}, question {number}"));
            }
            tally
        });
        let Some(of_setup) = ran else { return };
        tally.join(of_setup);
        if only.is_some() {
            break;
        }
        seed += 1;
    }
    tally.finish(name);
}

#[test]
fn differences_found_before_are_none_now() {
    let name = "differences_found_before_are_none_now";
    let mut tally = Tally::default();
    for case in &fixed::CASES {
        let ran = in_namespace(name, || {
            lab::apply(&lab::Setup::of(case.setup));
            let mut tally = Tally { setups: 1, ..Tally::default() };
            for query in (case.queries)() {
                tally.add(&query, case.fact);
            }
            tally
        });
        let Some(of_case) = ran else { return };
        tally.join(of_case);
    }
    tally.finish(name);
}

/// Routes of the large table: more than are kept whole.
const MANY: u32 = 3_000;

#[test]
fn of_a_large_table_only_what_is_asked_for_is_read() {
    let name = "of_a_large_table_only_what_is_asked_for_is_read";
    let many = number("NETDIAG_ROUTES").and_then(|many| many.try_into().ok()).unwrap_or(MANY);
    let ran = in_namespace(name, || {
        let mut setup = lab::Setup::of("-4 route add 10.64.0.0/10 via 10.1.0.254 metric 7");
        let route =
            |number: u32| format!("-4 route add {}/32 via 10.2.0.254", std::net::Ipv4Addr::from(0x0a40_0000 + number));
        setup.lines.extend((0..many).map(route));
        lab::apply(&setup);
        let mut tally = Tally { setups: 1, ..Tally::default() };
        let began = std::time::Instant::now();
        for destination in ["10.64.0.9", "10.100.0.9", "10.2.0.9"] {
            tally.add(&fixed::sent(destination, None), destination);
        }
        (tally, began.elapsed() / 3)
    });
    let Some((tally, each)) = ran else { return };
    println!("{name}: {} ms for one question among {many} routes", each.as_millis());
    tally.finish(name);
}

#[derive(Default)]
struct Tally {
    cases: usize,
    setups: usize,
    refused: usize,
    discarded: usize,
    /// Questions with more than one answer.
    forked: usize,
    complaints: Vec<String>,
}

impl Tally {
    fn add(&mut self, query: &RouteQuery, case: &str) {
        self.cases += 1;
        match compare(query) {
            Compared::Same { answers, refused, discarded } => {
                self.forked += usize::from(answers > 1);
                self.refused += usize::from(refused);
                self.discarded += usize::from(discarded);
            }
            Compared::Differs(complaint) => self.complaints.push(format!("{case}: {complaint}")),
        }
    }

    fn join(&mut self, other: Self) {
        self.cases += other.cases;
        self.setups += other.setups;
        self.refused += other.refused;
        self.discarded += other.discarded;
        self.forked += other.forked;
        self.complaints.extend(other.complaints);
    }

    fn finish(self, name: &str) {
        let Self { cases, setups, refused, discarded, forked, complaints } = self;
        println!(
            "{name}: {cases} cases, {} disagreements ({setups} setups, {forked} questions with several answers, {refused} \
             refused, {discarded} of them discarded)",
            complaints.len()
        );
        complaints.iter().take(10).for_each(|complaint| println!("{complaint}"));
        assert!(complaints.is_empty(), "{} disagreements", complaints.len());
    }
}

fn number(variable: &str) -> Option<usize> {
    std::env::var(variable).ok().and_then(|text| text.parse().ok())
}
