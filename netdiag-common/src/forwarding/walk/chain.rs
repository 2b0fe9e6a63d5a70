//! A base chain and the chains it leads to, rule by rule.

use super::{queue, reroute, window};
use crate::forwarding::expression::Verdict;
use crate::forwarding::guard::Guard;
use crate::forwarding::machine::{Result, Run, Stop};
use crate::forwarding::packet::{Packet, Protocol};
use crate::forwarding::path::{Decision, End};
use crate::forwarding::register::Registers;
use crate::forwarding::state::{BaseChain, ChainKey, ChainKind, Hook, Rule};
use crate::forwarding::without::PassedOver;

/// `NFT_JUMP_STACK_SIZE`
const MAX_JUMPS: usize = 16;

/// Rules that one run looks at. A ruleset that was read while it changed may lead in a circle.
const MAX_RULES: u32 = 100_000;

/// One base chain, to its verdict.
pub(super) fn filter<'a>(run: &mut Run<'a>, base: &'a BaseChain) -> Result<()> {
    let fields = |packet: &Packet| {
        let addresses = (packet.source(), packet.destination(), packet.mark.clone(), packet.service());
        // IPv6 looks at the whole first word and at the hop limit.
        let rest = if packet.protocol == Protocol::Ipv6 { packet.bytes.get(..8).map(<[u8]>::to_vec) } else { None };
        (addresses, rest)
    };
    let before = (base.kind == ChainKind::Route && run.hook == Hook::Output).then(|| fields(&run.packet));
    let verdict = chain(run, base)?;
    match verdict {
        Verdict::Accept => {
            // `nf_route_table_hook4`, `nf_route_table_hook6`
            if before.is_some_and(|before| before != fields(&run.packet)) {
                reroute(run)?;
            }
            Ok(())
        }
        Verdict::Drop => Err(Stop::End(match run.rejected {
            Some(with) => End::Rejected { by: run.place(), with },
            None => End::Dropped { by: run.place() },
        })),
        Verdict::Queue { number, bypass } => {
            queue::given(run, number, bypass)?;
            // Of legacy tables alone also what was not accepted (`ipt_mangle_out`, `ip6t_mangle_out`).
            if base.key.family.is_legacy() && before.is_some_and(|before| before != fields(&run.packet)) {
                reroute(run)?;
            }
            Ok(())
        }
        Verdict::Stolen => {
            let what = run.stolen_by.unwrap_or("a target of iptables").into();
            Err(Stop::End(End::Taken { by: run.place(), what }))
        }
        other => Err(run.unknown(format!("verdict {other:?} of a base chain"))),
    }
}

/// `nft_do_chain`, `ipt_do_table`, `ip6t_do_table`
fn chain<'a>(run: &mut Run<'a>, base: &'a BaseChain) -> Result<Verdict> {
    let mut key = base.key.clone();
    let mut rules = rules(run, &key)?;
    let mut returns: Vec<(ChainKey, Rules<'a>)> = Vec::new();
    let mut seen = 0_u32;
    loop {
        run.chain = Some(key.clone());
        let mut verdict = Verdict::Continue;
        while let Some(rule) = rules.next(&run.packet) {
            seen += 1;
            if seen > MAX_RULES {
                return Err(run.unknown(format!("more than {MAX_RULES} rules of one base chain")));
            }
            verdict = execute(run, &key, rule)?;
            if verdict != Verdict::Continue {
                break;
            }
        }
        match verdict {
            // Legacy tables have a stack as deep as they have chains, and no loops (`mark_source_chains`).
            Verdict::Jump(to) if returns.len() >= MAX_JUMPS && !key.family.is_legacy() => {
                return Err(run.unknown(format!("more than {MAX_JUMPS} jumps lead to chain {to}")));
            }
            Verdict::Jump(to) => {
                let next = ChainKey { chain: to, ..key.clone() };
                let next_rules = self::rules(run, &next)?;
                returns.push((std::mem::replace(&mut key, next), std::mem::replace(&mut rules, next_rules)));
            }
            Verdict::Goto(to) => {
                key = ChainKey { chain: to, ..key };
                rules = self::rules(run, &key)?;
            }
            Verdict::Continue | Verdict::Return => {
                run.handle = None;
                if verdict == Verdict::Continue {
                    let mark = run.packet.mark.known().copied();
                    run.decisions.push(Decision::EndOfChain { hook: run.hook, chain: key.clone(), mark });
                }
                match returns.pop() {
                    Some((back, rest)) => (key, rules) = (back, rest),
                    None => {
                        run.chain = Some(base.key.clone());
                        let (hook, chain, verdict) = (run.hook, base.key.clone(), base.policy.clone());
                        run.decisions.push(Decision::Policy { hook, chain, verdict });
                        return Ok(base.policy.clone());
                    }
                }
            }
            other => return Ok(other),
        }
    }
}

/// The rest of a chain.
struct Rules<'a> {
    rest: std::iter::Zip<std::slice::Iter<'a, Rule>, std::slice::Iter<'a, Guard>>,
    passed_over: PassedOver,
}

impl<'a> Rules<'a> {
    /// The next rule that may have anything to do with the packet. Of bytes that are not known, rules themselves decide.
    fn next(&mut self, packet: &Packet) -> Option<&'a Rule> {
        let is_known = packet.unknown.is_empty();
        let passed_over = &self.passed_over;
        let is_met = |rule: &Rule, guard: &Guard| !passed_over.has(rule) && (!is_known || guard.passes(packet));
        self.rest.find(|(rule, guard)| is_met(rule, guard)).map(|(rule, _)| rule)
    }
}

fn rules<'a>(run: &Run<'a>, key: &ChainKey) -> Result<Rules<'a>> {
    let state = run.state;
    match state.chain(key)? {
        Some(chain) => {
            let passed_over = PassedOver::of(run.without, key);
            Ok(Rules { rest: chain.rules.iter().zip(chain.guards.of(&chain.rules)), passed_over })
        }
        None => Err(run.unknown(format!("chain {key} is not there"))),
    }
}

/// One rule; its verdict, [`Verdict::Continue`] also when it does not match.
fn execute<'a>(run: &mut Run<'a>, chain: &ChainKey, rule: &'a Rule) -> Result<Verdict> {
    run.handle = Some(rule.handle);
    run.registers = Registers::default();
    run.found.clear();
    let mut verdict = Verdict::Continue;
    for (at, expression) in rule.expressions.iter().enumerate() {
        window::ask(run, &rule.expressions[at..])?;
        verdict = run.execute(expression)?;
        if verdict != Verdict::Continue {
            break;
        }
    }
    if verdict == Verdict::Break {
        return Ok(Verdict::Continue);
    }
    run.decisions.push(Decision::Rule {
        hook: run.hook,
        chain: chain.clone(),
        handle: rule.handle,
        verdict: verdict.clone(),
        elements: std::mem::take(&mut run.found),
        comment: rule.comment.clone(),
        mark: run.packet.mark.known().copied(),
    });
    Ok(verdict)
}
