//! The evaluator of packet filters against the kernel: random rules and random packets, each predicted, then sent and
//! traced by the kernel itself, and compared hook by hook.
//!
//! `NETDIAG_EVALUATOR_CASES` sets how many packets; `NETDIAG_EVALUATOR_SEED` runs one ruleset again, by the number that a
//! failure names.

mod compare;
mod lab;
mod random;
mod rules;
mod trace;
mod traffic;
mod wire;

use lab::Lab;
use netdiag_common::forwarding::conntrack::status;
use random::Random;
use trace::Tracer;

/// Packets of one run, without their answers. A few seconds.
const CASES: usize = 320;

/// First packets per ruleset.
const PACKETS: usize = 8;

#[test]
fn random_rules_do_what_the_evaluator_says() {
    lab::in_lab("random_rules_do_what_the_evaluator_says", |lab| {
        let wanted = number("NETDIAG_EVALUATOR_CASES").unwrap_or(CASES);
        let only = number("NETDIAG_EVALUATOR_SEED");
        let first = number("NETDIAG_EVALUATOR_FIRST").unwrap_or(1);
        let tracer = Tracer::open();
        let mut tally = Tally::default();
        let mut seed = only.unwrap_or(first);
        while tally.cases < wanted && tally.refused.len() < 5 {
            ruleset(lab, &tracer, seed, &mut tally);
            if only.is_some() {
                break;
            }
            seed += 1;
        }
        println!(
            "{} cases, {} disagreements ({} rulesets, {})",
            tally.cases,
            tally.complaints.len(),
            tally.rulesets,
            tally.paths()
        );
        for complaint in tally.complaints.iter().take(30) {
            println!("{complaint}");
        }
        for refused in &tally.refused {
            println!("nft refused {refused}");
        }
        assert!(tally.refused.is_empty(), "nft refused {} rulesets", tally.refused.len());
        assert!(tally.complaints.is_empty(), "{} disagreements", tally.complaints.len());
    });
}

#[derive(Default)]
struct Tally {
    cases: usize,
    rulesets: usize,
    /// Packets for which more than one path was possible.
    forked: usize,
    translated: usize,
    answers: usize,
    complaints: Vec<String>,
    refused: Vec<String>,
}

impl Tally {
    fn paths(&self) -> String {
        format!(
            "{} with several paths, {} translated, {} in established connections",
            self.forked, self.translated, self.answers
        )
    }
}

fn ruleset(lab: &Lab, tracer: &Tracer, seed: usize, tally: &mut Tally) {
    let mut random = Random(seed as u64);
    let text = match lab::nft_without_refused(&format!("flush ruleset\n{}", rules::ruleset(&mut random))) {
        Ok(text) => text,
        Err(why) => {
            tally.refused.push(format!("seed {seed}: {why}"));
            return;
        }
    };
    trace::forget_connections();
    tally.rulesets += 1;
    for number in 0..PACKETS {
        let first = traffic::packet(lab, &mut random, u16::try_from(20_000 + number * 7).unwrap());
        let mut check = |packet: &netdiag_common::forwarding::Packet| {
            tally.cases += 1;
            match compare::compare(lab, tracer, packet) {
                Ok(path) => {
                    tally.forked += usize::from(!path.assumptions.is_empty());
                    let translated = |decision: &_| {
                        matches!(decision, netdiag_common::forwarding::path::Decision::Translated { .. })
                    };
                    tally.translated += usize::from(path.decisions.iter().any(translated));
                    Some(path)
                }
                Err(complaint) => {
                    tally.complaints.push(format!("seed {seed}, packet {number}: {complaint}\n{text}"));
                    None
                }
            }
        };
        let Some(path) = check(&first) else { continue };
        if !traffic::begins(&first) {
            continue;
        }
        let Some(answer) = traffic::answer(lab, &path) else { continue };
        let Some(answered) = check(&answer) else { continue };
        let entry = answered.connection.or(path.connection);
        // Without its answer, tracking takes what comes next for no part of a TCP connection.
        let third = entry
            .filter(|entry| entry.status & status::SEEN_REPLY != 0)
            .map(|entry| traffic::next(lab, &first, &entry));
        let more = third.map_or(1, |third| {
            check(&third);
            2
        });
        tally.answers += more;
    }
}

fn number(variable: &str) -> Option<usize> {
    std::env::var(variable).ok().and_then(|text| text.parse().ok())
}
