//! Evaluating as if rules were not there, and telling what each of them does: the packet is evaluated once more with that rule
//! alone among them.

use netdiag_common::forwarding::{Outcome, Packet, RuleKey, RuleState, Without};
use netdiag_common::observation::fate::{LeftOut, LeftOutRole, MAX_WITHOUT};

use super::complete;
use super::filters::Filters;
use super::route::Routes;
use super::routing::Routing;
use crate::host::ReadError;

/// What becomes of the packet without these rules, and what each of them would change about that.
pub(super) fn told(
    without: &Without,
    state: &mut RuleState,
    packet: &Packet,
    (tables, routes, routing): (&mut Filters, &mut Routes, &mut Routing),
) -> Result<(Outcome, Vec<LeftOut>), ReadError> {
    let outcome = complete(without, state, packet, tables, routes, routing)?;
    let mut left_out = Vec::new();
    for rule in without {
        let role = if has(state, rule, tables)? {
            let others: Without = without.iter().filter(|other| *other != rule).cloned().collect();
            role(&complete(&others, state, packet, tables, routes, routing)?, &outcome)
        } else {
            LeftOutRole::Absent
        };
        left_out.push(LeftOut { rule: rule.clone(), role });
    }
    Ok((outcome, left_out))
}

/// Of a rule that is there, by what becomes of the packet with it and without it. Each rule that matches is a decision of its own,
/// also one that decides nothing.
fn role(with_it: &Outcome, without_it: &Outcome) -> LeftOutRole {
    match () {
        () if with_it == without_it => LeftOutRole::NotMet,
        () if with_it.ends_as(without_it) => LeftOutRole::MetInVain,
        () => LeftOutRole::Met,
    }
}

/// Whether the namespace has the rule. Its chain may be none that the packet comes to, and is read then.
fn has(state: &mut RuleState, rule: &RuleKey, tables: &mut Filters) -> Result<bool, ReadError> {
    if !state.chains.0.contains_key(&rule.chain) {
        let chain = tables.chain(&rule.chain)?;
        state.chains.0.insert(rule.chain.clone(), chain);
    }
    let chain = state.chains.0.get(&rule.chain).and_then(Option::as_ref);
    Ok(chain.is_some_and(|chain| chain.rules.iter().any(|own| own.handle == rule.handle)))
}

/// That an agent can be asked about these rules at all.
pub(super) fn check(without: &Without) -> Result<(), ReadError> {
    let malformed = |why| ReadError::Malformed { what: "the rules that were to be left out".into(), why };
    if without.len() > MAX_WITHOUT {
        return Err(malformed(format!("{} of them, and an agent leaves out {MAX_WITHOUT} at most", without.len())));
    }
    if !without.iter().all(RuleKey::is_possible) {
        return Err(malformed("one of them has a name that no table or chain can have".into()));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use netdiag_common::forwarding::Path;
    use netdiag_common::forwarding::expression::Verdict;
    use netdiag_common::forwarding::packet::{Origin, TCP, tcp};
    use netdiag_common::forwarding::path::{Decision, End, Place};
    use netdiag_common::forwarding::state::Hook;

    use super::*;

    fn rule(chain: &str, handle: u64) -> RuleKey {
        let mut rule: RuleKey = "inet t c 1".parse().unwrap();
        (rule.chain.chain, rule.handle) = (chain.into(), handle);
        rule
    }

    /// By rules of one chain that match, of which the last one's verdict is this one.
    fn outcome(handles: &[u64], verdict: &Verdict) -> Outcome {
        let chain = rule("c", 1).chain;
        let decision = |handle: &u64| Decision::Rule {
            hook: Hook::Input,
            chain: chain.clone(),
            handle: *handle,
            verdict: if handles.last() == Some(handle) { verdict.clone() } else { Verdict::Continue },
            elements: Vec::new(),
            comment: None,
            mark: Some(0),
        };
        let by = Place { hook: Hook::Input, chain: Some(chain.clone()), handle: handles.last().copied() };
        let end = if *verdict == Verdict::Drop { End::Dropped { by } } else { End::Delivered };
        let (source, destination) = ("10.0.0.1".parse().unwrap(), "10.0.0.2".parse().unwrap());
        let packet = Packet::between(Origin::Sent, source, destination, TCP, &tcp(4242, 80, 2)).unwrap();
        let decisions = handles.iter().map(decision).collect();
        let path = Path { assumptions: Vec::new(), decisions, gaps: Vec::new(), end, packet, connection: None };
        Outcome { paths: vec![path], cut: false }
    }

    #[test]
    fn a_rule_that_only_counts_is_met_in_vain() {
        let dropped = outcome(&[2, 3], &Verdict::Drop);
        assert_eq!(role(&dropped, &dropped), LeftOutRole::NotMet);
        assert_eq!(role(&dropped, &outcome(&[3], &Verdict::Drop)), LeftOutRole::MetInVain);
        assert_eq!(role(&dropped, &outcome(&[2], &Verdict::Continue)), LeftOutRole::Met);
        // It accepts what is accepted anyway.
        assert_eq!(role(&outcome(&[4], &Verdict::Accept), &outcome(&[], &Verdict::Accept)), LeftOutRole::MetInVain);
    }

    #[test]
    fn what_is_over_a_limit_is_refused() {
        let many = |count| (1..=count).map(|handle| rule("c", handle)).collect::<Without>();
        assert!(check(&many(16)).is_ok());
        assert!(check(&many(17)).unwrap_err().to_string().contains("17 of them"));
        // A longer name would not fit into a request to the kernel.
        for name in ["", "a\0b", "c".repeat(256).as_str(), "c".repeat(70_000).as_str()] {
            assert!(check(&Without::from([rule(name, 1)])).is_err(), "{} bytes", name.len());
        }
    }
}
