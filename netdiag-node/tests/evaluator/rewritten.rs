//! Rules that somebody rewrites while they are read.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use netdiag_common::forwarding::path::End;
use netdiag_node::host::forwarding::evaluate;

use crate::fixed::in_tcp;
use crate::lab;

/// Each has a chain that the other lacks: half of one and half of the other lead nowhere.
const PASSING: &str = "flush ruleset
table ip t {
    chain passes { accept; }
    chain f { type filter hook forward priority 0; jump passes; }
}
";
const STOPPING: &str = "flush ruleset
table ip t {
    chain stops { drop; }
    chain f { type filter hook forward priority 0; jump stops; }
}
";

/// Answers of each kind that have to come.
const ENOUGH: usize = 20;
/// A second is what it takes.
const PATIENCE: Duration = Duration::from_mins(1);

#[test]
fn rules_that_are_rewritten_meanwhile_are_read_whole_or_not_at_all() {
    lab::in_lab("rules_that_are_rewritten_meanwhile_are_read_whole_or_not_at_all", |lab| {
        let packet = in_tcp(lab, 20_000);
        lab::nft(PASSING).unwrap();
        let is_over = AtomicBool::new(false);
        let (mut passed, mut stopped, mut refused) = (0, 0, 0);
        let mut wrong = None;
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !is_over.load(Ordering::Relaxed) {
                    lab::nft(STOPPING).unwrap();
                    lab::nft(PASSING).unwrap();
                }
            });
            let started = Instant::now();
            while passed.min(stopped) < ENOUGH && wrong.is_none() && started.elapsed() < PATIENCE {
                match evaluate(&packet) {
                    Ok(evaluation) => match &evaluation.outcome.paths[..] {
                        [path] if matches!(path.end, End::Sent { .. }) => passed += 1,
                        [path] if matches!(path.end, End::Dropped { .. }) => stopped += 1,
                        paths => wrong = Some(format!("{paths:?}")),
                    },
                    Err(error) if error.to_string().contains("the rules changed during each of") => refused += 1,
                    Err(error) => wrong = Some(error.to_string()),
                }
            }
            is_over.store(true, Ordering::Relaxed);
        });
        assert_eq!(wrong, None);
        assert!(passed.min(stopped) >= ENOUGH, "{passed} passed, {stopped} stopped, {refused} were not read");
    });
}
