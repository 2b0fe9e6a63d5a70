//! One table: its bytes, where its chains are in them, and chains as the evaluator knows them.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

use netdiag_common::forwarding::Expression;
use netdiag_common::forwarding::expression::{Data, Verdict};
use netdiag_common::forwarding::state::{BaseChain, Chain, ChainKey, ChainKind, Family, Hook, Rule};
use netdiag_common::observation::rules;

use super::super::entries::{self, HOOK_NAMES};
use super::super::entry::{CUT_SHORT, ERROR_TARGET, Entry, Starts, between};
use super::super::sockopt::{self, Blob};
use super::loops;
use crate::host::xtables;

/// `NFT_REG_VERDICT`: where [`Expression::Immediate`] puts a verdict.
const VERDICT: u32 = 0;

const HOOKS: [Hook; sockopt::HOOKS] = [Hook::Prerouting, Hook::Input, Hook::Forward, Hook::Output, Hook::Postrouting];

pub(super) struct IndexedTable {
    family: sockopt::Family,
    name: Arc<str>,
    blob: Blob,
    /// Rules of each chain, without the return or policy that ends it.
    chains: HashMap<Arc<str>, Range<usize>>,
    starts: Starts,
    /// Of base chains, by hook.
    policies: Vec<(usize, Verdict)>,
}

/// A chain while its entries go by.
struct Open {
    name: Arc<str>,
    start: usize,
    /// The hook of a base chain.
    hook: Option<usize>,
    /// The entry before this one, if it may end the chain: only a return without conditions does.
    end: Option<usize>,
}

impl IndexedTable {
    /// Looks through all entries once; `Err` says what does not fit. After that, every chain can be made.
    pub(super) fn new(family: sockopt::Family, name: &str, blob: Blob) -> Result<Self, String> {
        let (mut chains, mut starts, mut policies) = (HashMap::new(), Starts::new(), Vec::new());
        let mut open: Option<Open> = None;
        for entry in between(family, &blob.entries, 0..blob.entries.len()) {
            let entry = entry.map_err(|at| format!("the entry at byte {at} does not fit"))?;
            if let Some(hook) = hook_at(&blob, entry.at) {
                close(open.take(), &mut chains)?;
                let (name, _) = HOOK_NAMES[hook];
                open = Some(Open { name: name.into(), start: entry.at, hook: Some(hook), end: None });
            }
            if let Some(chain) = entry.chain_name() {
                close(open.take(), &mut chains)?;
                let (name, start): (Arc<str>, _) = (chain.into(), entry.at + entry.body.len());
                starts.insert(start, name.clone());
                open = Some(Open { name, start, hook: None, end: None });
                continue;
            }
            let Some(chain) = &mut open else { return Err(format!("the entry at byte {} is in no chain", entry.at)) };
            let verdict = unconditional(&entry);
            match chain.hook {
                Some(hook) if blob.underflow[hook] as usize == entry.at => {
                    let policy = verdict.filter(|verdict| matches!(verdict, Verdict::Accept | Verdict::Drop));
                    let policy = policy.ok_or_else(|| format!("chain {} ends without a policy", chain.name))?;
                    policies.push((hook, policy));
                    chains.insert(chain.name.clone(), chain.start..entry.at);
                    open = None;
                }
                _ => chain.end = (verdict == Some(Verdict::Return)).then_some(entry.at),
            }
        }
        // The end of the table looks like a chain of this name, without rules.
        let end = open.ok_or("it has no end")?;
        if &*end.name != ERROR_TARGET || end.start != blob.entries.len() {
            return Err(format!("it ends with chain {}", end.name));
        }
        let table = Self { family, name: name.into(), blob, chains, starts, policies };
        table.check()?;
        Ok(table)
    }

    /// That all parts fit, all jumps lead to chains, and all hooks have one.
    fn check(&self) -> Result<(), String> {
        for (hook, (name, _)) in HOOK_NAMES.iter().enumerate() {
            if self.blob.valid_hooks >> hook & 1 != 0 && !self.policies.iter().any(|(of, _)| *of == hook) {
                return Err(format!("there is no chain {name}"));
            }
        }
        let mut places: Vec<usize> = self.chains.values().map(|range| range.start).collect();
        places.sort_unstable();
        let mut jumps = Vec::new();
        for entry in self.entries() {
            if entry.parts().iter().any(|(name, _, _)| name == CUT_SHORT) {
                return Err(format!("the matches of the entry at byte {} do not fit", entry.at));
            }
            let Ok(offset) = entry.standard() else { continue };
            if !entry.target_part().0.is_empty() || offset == entry.at + entry.body.len() {
                continue;
            }
            let to = places.binary_search(&offset).ok().filter(|_| self.starts.contains_key(&offset));
            let Some(to) = to else {
                return Err(format!("the entry at byte {} jumps to byte {offset}, where no chain is", entry.at));
            };
            // The chain that begins last before the entry is its own.
            jumps.push((places.partition_point(|place| *place <= entry.at).saturating_sub(1), to));
        }
        if loops::is_circular(places.len(), jumps) {
            return Err("its chains jump in a circle".into());
        }
        Ok(())
    }

    pub(super) fn family(&self) -> Family {
        if self.family == sockopt::Family::Ipv4 { Family::LegacyIp } else { Family::LegacyIp6 }
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    pub(super) fn base_chains(&self) -> impl Iterator<Item = BaseChain> {
        self.policies.iter().map(|(hook, policy)| {
            let (chain, at) = HOOK_NAMES[*hook];
            BaseChain {
                key: ChainKey { family: self.family(), table: self.name.clone(), chain: chain.into() },
                kind: match entries::kind(&self.name, at) {
                    "nat" => ChainKind::Nat,
                    "route" => ChainKind::Route,
                    _ => ChainKind::Filter,
                },
                hook: HOOKS[*hook],
                priority: entries::priority(&self.name, at),
                policy: policy.clone(),
                made: (0, 0),
            }
        })
    }

    /// The rules of a chain, by their numbers from 1.
    pub(super) fn chain(&self, name: &str) -> Option<Chain> {
        let rules = self.chain_entries(name)?.zip(1..).map(|(entry, number)| self.rule(&entry, number));
        Some(Chain { rules: rules.collect(), ..Chain::default() })
    }

    /// A rule as `iptables -S` writes it, with its counter.
    pub(super) fn worded(&self, chain: &str, number: u64) -> Option<rules::Rule> {
        let index = usize::try_from(number.checked_sub(1)?).ok()?;
        let entry = self.chain_entries(chain)?.nth(index)?;
        Some(entry.rule(chain, number, &self.starts, true))
    }

    pub(super) fn has_part(&self, is_wanted: &dyn Fn(&str, &[u8]) -> bool) -> bool {
        self.entries().any(|entry| {
            let (target, _, info) = entry.target_part();
            is_wanted(&target, info) || entry.parts().iter().any(|(name, _, info)| is_wanted(name, info))
        })
    }

    fn entries(&self) -> impl Iterator<Item = Entry<'_>> {
        between(self.family, &self.blob.entries, 0..self.blob.entries.len()).filter_map(Result::ok)
    }

    fn chain_entries(&self, name: &str) -> Option<impl Iterator<Item = Entry<'_>>> {
        let range = self.chains.get(name)?.clone();
        Some(between(self.family, &self.blob.entries, range).filter_map(Result::ok))
    }

    fn rule(&self, entry: &Entry<'_>, handle: u64) -> Rule {
        let mut expressions = Vec::new();
        if !entry.asks_nothing() {
            expressions.push(Expression::XtEntry { info: entry.own().to_vec() });
        }
        let mut comment = None;
        for (name, revision, info) in entry.parts() {
            if name == "comment" {
                // It asks nothing of the packet, and has 256 bytes whatever it says.
                let text = xtables::parse_match(&name, revision, info, self.family == sockopt::Family::Ipv6).comment;
                comment = comment.or(text.map(Arc::from));
                continue;
            }
            expressions.push(Expression::XtMatch { name: name.into(), revision, info: info.to_vec() });
        }
        let (name, revision, info) = entry.target_part();
        if name.is_empty() {
            expressions.extend(self.standard(entry).map(|verdict| {
                let data = Data::Verdict(verdict);
                Expression::Immediate { to: VERDICT, data }
            }));
        } else {
            expressions.push(Expression::XtTarget { name: name.into(), revision, info: info.to_vec() });
        }
        Rule { handle, expressions, comment }
    }

    /// What a standard target does; none when it goes on to the next entry.
    fn standard(&self, entry: &Entry<'_>) -> Option<Verdict> {
        let offset = match entry.standard() {
            Ok(offset) => offset,
            Err(number) => return Some(verdict_of(number)),
        };
        if offset == entry.at + entry.body.len() {
            return None;
        }
        let to = self.starts.get(&offset)?.clone();
        Some(if entry.is_goto() { Verdict::Goto(to) } else { Verdict::Jump(to) })
    }
}

/// A chain of its own ends with a return that its rules do not show.
fn close(chain: Option<Open>, chains: &mut HashMap<Arc<str>, Range<usize>>) -> Result<(), String> {
    let Some(chain) = chain else { return Ok(()) };
    let end = chain.end.filter(|_| chain.hook.is_none());
    let end = end.ok_or_else(|| format!("chain {} has no end", chain.name))?;
    chains.insert(chain.name, chain.start..end);
    Ok(())
}

fn hook_at(blob: &Blob, at: usize) -> Option<usize> {
    (0..HOOKS.len()).find(|hook| blob.valid_hooks >> hook & 1 != 0 && blob.hook_entry[*hook] as usize == at)
}

/// The verdict of an entry that asks nothing of the packet and has no target but that.
fn unconditional(entry: &Entry<'_>) -> Option<Verdict> {
    let standard = entry.target_part().0.is_empty() && entry.asks_nothing() && entry.parts().is_empty();
    entry.standard().err().filter(|_| standard).map(verdict_of)
}

/// `-NF_… - 1`, or `XT_RETURN`.
fn verdict_of(number: i32) -> Verdict {
    match number {
        -1 => Verdict::Drop,
        -2 => Verdict::Accept,
        -3 => Verdict::Stolen,
        // `-j QUEUE`
        -4 => Verdict::Queue { number: 0, bypass: false },
        -5 => Verdict::Return,
        number => Verdict::Other(number),
    }
}
