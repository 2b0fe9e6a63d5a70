//! Makes chains of the entries of a table, which lie one after the other and are told apart by offsets.

use std::collections::HashSet;

use netdiag_common::observation::rules::{Backend, BaseChain, Chain, Hook, Table, Verdict};

use super::entry::{ERROR_TARGET, Entry, Starts, between};
use super::sockopt::{Blob, Family, HOOKS};
use crate::host::ReadError;
use crate::host::budget::Budget;

pub(super) const HOOK_NAMES: [(&str, Hook); HOOKS] = [
    ("PREROUTING", Hook::Prerouting),
    ("INPUT", Hook::Input),
    ("FORWARD", Hook::Forward),
    ("OUTPUT", Hook::Output),
    ("POSTROUTING", Hook::Postrouting),
];

pub(super) fn parse(family: Family, name: &str, blob: &Blob, budget: &mut Budget) -> Result<Table, ReadError> {
    let malformed =
        |why: String| ReadError::Malformed { what: format!("legacy table {name} of {}", family.command()), why };
    let fits = |entry: Result<_, usize>| entry.map_err(|at| malformed(format!("the entry at byte {at} does not fit")));
    // Gone through twice, since a list of the entries of a large table is large as well.
    let entries = || between(family, &blob.entries, 0..blob.entries.len()).map(fits);
    let starts = chain_starts(blob, entries())?;
    let mut chains: Vec<Chain> = Vec::new();
    let mut underflow = None;
    let mut cut = HashSet::new();
    for entry in entries() {
        let entry = entry?;
        if let Some(hook) = hook_at(blob, &blob.hook_entry, entry.at) {
            let (chain, at) = HOOK_NAMES[hook];
            let base = BaseChain {
                hook: at,
                priority: priority(name, at),
                kind: kind(name, at).into(),
                policy: Verdict::Accept,
            };
            begin(&mut chains, Chain { name: chain.into(), base: Some(base), rules: Vec::new() });
            underflow = Some(blob.underflow[hook] as usize);
        }
        if let Some(chain) = entry.chain_name() {
            begin(&mut chains, Chain { name: chain, base: None, rules: Vec::new() });
            underflow = None;
            continue;
        }
        let Some(chain) = chains.last_mut() else { continue };
        if underflow == Some(entry.at) {
            if let Some(base) = &mut chain.base {
                base.policy = entry.verdict(&starts).0;
            }
            continue;
        }
        if budget.admits(name, &chain.name) {
            budget.add(name, &chain.name, 1);
            let position = chain.rules.len() as u64 + 1;
            chain.rules.push(entry.rule(&chain.name, position, &starts, budget.with_text()));
        } else if chain.base.is_none() {
            // As in nf_tables: a jump to a chain that is not there is seen to be unknown.
            cut.insert(chain.name.clone());
        }
    }
    // The end of the table looks like a chain of this name, so that each one before it has ended.
    chains.retain(|chain| chain.name != ERROR_TARGET && !cut.contains(&chain.name));
    Ok(Table { backend: Backend::IptablesLegacy, family: family.name().into(), name: name.into(), chains })
}

/// Ends the chain before: iptables ends each of its own with a return that nobody wrote.
fn begin(chains: &mut Vec<Chain>, chain: Chain) {
    if let Some(Chain { base: None, rules, .. }) = chains.last_mut() {
        rules.pop_if(|rule| rule.verdict == Verdict::Return && rule.matches.is_empty());
        // There are very many of few rules.
        rules.shrink_to_fit();
    }
    chains.push(chain);
}

fn hook_at(blob: &Blob, offsets: &[u32; HOOKS], at: usize) -> Option<usize> {
    (0..HOOKS).find(|hook| blob.valid_hooks >> hook & 1 != 0 && offsets[*hook] as usize == at)
}

/// Where jumps lead: the offset of the first rule of each chain.
fn chain_starts<'a>(
    blob: &Blob,
    entries: impl Iterator<Item = Result<Entry<'a>, ReadError>>,
) -> Result<Starts, ReadError> {
    let mut starts = Starts::new();
    for entry in entries {
        let entry = entry?;
        if let Some(hook) = hook_at(blob, &blob.hook_entry, entry.at) {
            starts.insert(entry.at, HOOK_NAMES[hook].0.into());
        }
        if let Some(chain) = entry.chain_name() {
            starts.insert(entry.at + entry.body.len(), chain.into());
        }
    }
    Ok(starts)
}

/// Where the tables of `iptable_*.ko` register themselves (`enum nf_ip_hook_priorities`). The parameter
/// `raw_before_defrag` of `iptable_raw.ko` would move table raw to -450; nothing shows it, and it is taken to be off.
pub(super) fn priority(table: &str, hook: Hook) -> i32 {
    match (table, hook) {
        ("raw", _) => -300,
        ("mangle", _) => -150,
        ("nat", Hook::Input | Hook::Postrouting) => 100,
        ("nat", _) => -100,
        ("security", _) => 50,
        _ => 0,
    }
}

pub(super) fn kind(table: &str, hook: Hook) -> &'static str {
    match (table, hook) {
        ("nat", _) => "nat",
        // Its rules may change how a local packet is routed.
        ("mangle", Hook::Output) => "route",
        _ => "filter",
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::host::budget::Limits;

    const LIMITS: Limits = Limits { rules: 100, service_rules: 100, service_elements: 0, with_text: true };

    proptest! {
        #[test]
        fn garbage_never_panics(
            entries in prop::collection::vec(any::<u8>(), 0..1200),
            places in prop::collection::vec((0usize..4, 0u16..300), 0..8),
            ipv6: bool,
        ) {
            let family = if ipv6 { Family::Ipv6 } else { Family::Ipv4 };
            let mut entries = entries;
            // Random offsets never fit: some that do lead further into the decoding.
            for (index, value) in places {
                let at = index * 200 + family.layout().target;
                if let Some(place) = entries.get_mut(at..at + 4) {
                    let matches = u16::try_from(family.layout().matches).unwrap();
                    place[..2].copy_from_slice(&(matches + value % 40).to_ne_bytes());
                    place[2..].copy_from_slice(&200u16.to_ne_bytes());
                }
            }
            let blob = Blob { valid_hooks: 0x1f, hook_entry: [0, 200, 400, 600, 800], underflow: [0; HOOKS], entries };
            let _ = parse(family, "filter", &blob, &mut Budget::new(LIMITS));
        }
    }
}
