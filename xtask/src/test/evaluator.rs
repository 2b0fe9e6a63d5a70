//! The exact evaluators against the kernel, with as many random cases as are asked for, summed up.

use std::process::Command;

use anyhow::Result;

use super::outcome::Tally;

/// Random cases of each kind of rules.
const CASES: usize = 2_000;

/// The tests' binaries; each of their tests prints one line with what it compared.
const BINARIES: [&str; 2] = ["evaluator", "routing"];

/// What one test compared.
#[derive(Debug, PartialEq, Eq)]
struct Compared<'a> {
    test: &'a str,
    cases: usize,
    disagreements: usize,
}

/// Runs the tests with `cargo`, whose output `count` shows and counts; prints `N cases, N disagreements`.
pub(super) fn run(mut cargo: Command, count: impl Fn(Command) -> Result<(String, Tally)>) -> Result<Tally> {
    cargo.args(["test", "--package", "netdiag-node"]);
    for binary in BINARIES {
        cargo.args(["--test", binary]);
    }
    cargo.args(["--no-fail-fast", "--", "--show-output"]);
    if std::env::var_os("NETDIAG_EVALUATOR_CASES").is_none() {
        cargo.env("NETDIAG_EVALUATOR_CASES", CASES.to_string());
    }
    let (text, mut tally) = count(cargo)?;
    let compared: Vec<Compared<'_>> = text.lines().filter_map(parse).collect();
    for Compared { test, cases, disagreements } in &compared {
        println!("{test}: {cases} cases, {disagreements} disagreements");
    }
    let cases: usize = compared.iter().map(|compared| compared.cases).sum();
    let disagreements: usize = compared.iter().map(|compared| compared.disagreements).sum();
    if cases == 0 && tally.skips.is_empty() {
        tally.add(&Tally::failed("no test said what it compared"));
    }
    println!("{cases} cases, {disagreements} disagreements");
    Ok(tally)
}

/// `NAME: N cases, N disagreements (…)`
fn parse(line: &str) -> Option<Compared<'_>> {
    let (test, said) = line.split_once(": ")?;
    let (cases, said) = said.split_once(" cases, ")?;
    let (disagreements, _) = said.split_once(" disagreements")?;
    Some(Compared { test, cases: cases.parse().ok()?, disagreements: disagreements.parse().ok()? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_test_compared_is_read_from_its_line() {
        let line = "native_rules: 2003 cases, 1 disagreements (180 rulesets, 3 more set aside)";
        assert_eq!(parse(line), Some(Compared { test: "native_rules", cases: 2003, disagreements: 1 }));
        assert_eq!(parse("native_rules: 1 disagreements"), None);
    }
}
