//! A network namespace that ends with its thread, and a few ways to look at what was read there.

use std::io::Write;
use std::process::{Command, Stdio};

use netdiag_common::observation::rules::{Chain, Match, Rule, Ruleset, Table, Verdict};
use netdiag_node::host::rules;
use nix::sched::{CloneFlags, unshare};

/// Runs `test` in a fresh network namespace; says so when this machine does not allow one.
pub fn in_namespace(name: &str, test: impl FnOnce() + Send + 'static) {
    let thread = std::thread::spawn(|| {
        unshare(CloneFlags::CLONE_NEWNET)?;
        test();
        Ok::<(), nix::Error>(())
    });
    match thread.join() {
        Ok(Ok(())) => {}
        Ok(Err(errno)) => println!("netdiag-skip: {name}: cannot create a network namespace: {errno}"),
        Err(panic) => std::panic::resume_unwind(panic),
    }
}

/// Runs a tool with this input; false, with a note, when the machine does not have it.
pub fn run(name: &str, tool: &str, arguments: &[&str], input: &str) -> bool {
    let child = Command::new(tool).args(arguments).stdin(Stdio::piped()).stderr(Stdio::piped()).spawn();
    let mut child = match child {
        Ok(child) => child,
        Err(error) => {
            println!("netdiag-skip: {name}: cannot run {tool}: {error}");
            return false;
        }
    };
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{tool} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    true
}

pub fn read() -> Ruleset {
    rules::read().unwrap()
}

pub fn table<'a>(ruleset: &'a Ruleset, family: &str, name: &str) -> &'a Table {
    let found = ruleset.tables.iter().find(|table| table.family == family && table.name == name);
    found.unwrap_or_else(|| panic!("no table {family} {name} in {ruleset:?}"))
}

pub fn chain<'a>(table: &'a Table, name: &str) -> &'a Chain {
    table.chains.iter().find(|chain| chain.name == name).unwrap_or_else(|| panic!("no chain {name} in {table:?}"))
}

/// Matches and verdict of the rules of a chain.
pub fn meaning(chain: &Chain) -> Vec<(Vec<Match>, Verdict)> {
    chain.rules.iter().map(|rule| (rule.matches.clone(), rule.verdict.clone())).collect()
}

pub fn texts(chain: &Chain) -> Vec<&str> {
    chain.rules.iter().map(|Rule { text, .. }| &**text).collect()
}

pub fn source(nets: &[&str], negated: bool) -> Match {
    Match::Source { nets: nets.iter().map(|net| net.parse().unwrap()).collect(), negated }
}

pub fn destination(nets: &[&str], negated: bool) -> Match {
    Match::Destination { nets: nets.iter().map(|net| net.parse().unwrap()).collect(), negated }
}

pub fn destination_ports(ranges: &[(u16, u16)], negated: bool) -> Match {
    use netdiag_common::observation::rules::PortRange;
    let ranges = ranges.iter().map(|(first, last)| PortRange { first: *first, last: *last }).collect();
    Match::DestinationPort { ranges, negated }
}

pub fn protocol(protocol: netdiag_common::observation::Protocol) -> Match {
    Match::Protocol { protocols: vec![protocol], negated: false }
}

pub fn states(states: &[&str], negated: bool) -> Match {
    Match::ConntrackState { states: states.iter().map(|state| (*state).to_owned()).collect(), negated }
}
