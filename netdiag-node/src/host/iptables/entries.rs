//! Decodes the entries of a table: one after the other, chains told apart by offsets (`struct ipt_entry`,
//! `struct ip6t_entry`; layouts checked against the headers of Linux 6.1 on a 64-bit machine).

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;

use ipnet::IpNet;
use netdiag_common::observation::Protocol;
use netdiag_common::observation::rules::{Backend, BaseChain, Chain, Counter, Hook, Match, Rule, Table, Verdict};

use super::sockopt::{Blob, Family, HOOKS};
use crate::host::ReadError;
use crate::host::budget::Budget;
use crate::host::xtables::bytes::{address_at, text_at, u8_at, u16_at, u32_at, u64_at};
use crate::host::xtables::{self, words};

/// Places in an entry, in bytes.
struct Layout {
    address: usize,
    interfaces: usize,
    protocol: usize,
    flags: usize,
    inverted: usize,
    target: usize,
    next: usize,
    counters: usize,
    matches: usize,
}

const IPV4: Layout = Layout {
    address: 4,
    interfaces: 16,
    protocol: 80,
    flags: 82,
    inverted: 83,
    target: 88,
    next: 90,
    counters: 96,
    matches: 112,
};

const IPV6: Layout = Layout {
    address: 16,
    interfaces: 64,
    protocol: 128,
    flags: 131,
    inverted: 132,
    target: 140,
    next: 142,
    counters: 152,
    matches: 168,
};

/// `struct xt_entry_match` and `xt_entry_target`: size, name, revision.
const PART_HEADER_BYTES: usize = 32;
const PART_NAME_BYTES: usize = 29;

/// The target that names a chain, and ends the table under its own name (`XT_ERROR_TARGET`).
const ERROR_TARGET: &str = "ERROR";

const HOOK_NAMES: [(&str, Hook); HOOKS] = [
    ("PREROUTING", Hook::Prerouting),
    ("INPUT", Hook::Input),
    ("FORWARD", Hook::Forward),
    ("OUTPUT", Hook::Output),
    ("POSTROUTING", Hook::Postrouting),
];

pub(super) fn parse(family: Family, name: &str, blob: &Blob, budget: &mut Budget) -> Result<Table, ReadError> {
    let malformed =
        |why: String| ReadError::Malformed { what: format!("legacy table {name} of {}", family.command()), why };
    let entries =
        split(family, &blob.entries).map_err(|at| malformed(format!("the entry at byte {at} does not fit")))?;
    let starts = chain_starts(blob, &entries);
    let mut chains: Vec<Chain> = Vec::new();
    let mut underflow = None;
    let mut cut = HashSet::new();
    for entry in &entries {
        if let Some(hook) = hook_at(blob, &blob.hook_entry, entry.at) {
            let (chain, at) = HOOK_NAMES[hook];
            let base = BaseChain {
                hook: at,
                priority: priority(name, at),
                kind: kind(name, at).into(),
                policy: Verdict::Accept,
            };
            chains.push(Chain { name: chain.into(), base: Some(base), rules: Vec::new() });
            underflow = Some(blob.underflow[hook] as usize);
        }
        if let Some(chain) = entry.chain_name() {
            chains.push(Chain { name: chain, base: None, rules: Vec::new() });
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
    for chain in chains.iter_mut().filter(|chain| chain.base.is_none()) {
        // iptables ends each of its own chains with a return that nobody wrote.
        if chain.rules.last().is_some_and(|rule| rule.verdict == Verdict::Return && rule.matches.is_empty()) {
            chain.rules.pop();
        }
    }
    // The end of the table looks like a chain of this name.
    chains.retain(|chain| chain.name != ERROR_TARGET && !cut.contains(&chain.name));
    Ok(Table { backend: Backend::IptablesLegacy, family: family.name().into(), name: name.into(), chains })
}

struct Entry<'a> {
    family: Family,
    /// Offset in the table.
    at: usize,
    body: &'a [u8],
    target_at: usize,
}

/// The entries in order, or the offset of the first one that does not fit.
fn split(family: Family, bytes: &[u8]) -> Result<Vec<Entry<'_>>, usize> {
    let layout = family.layout();
    let mut entries = Vec::new();
    let mut at = 0;
    while at < bytes.len() {
        let rest = &bytes[at..];
        let place = |field| u16_at(rest, field).map(usize::from);
        let (target_at, next) = place(layout.target).zip(place(layout.next)).ok_or(at)?;
        let fits = layout.matches <= target_at && target_at + PART_HEADER_BYTES <= next && next <= rest.len();
        if !fits {
            return Err(at);
        }
        entries.push(Entry { family, at, body: &rest[..next], target_at });
        at += next;
    }
    Ok(entries)
}

fn hook_at(blob: &Blob, offsets: &[u32; HOOKS], at: usize) -> Option<usize> {
    (0..HOOKS).find(|hook| blob.valid_hooks >> hook & 1 != 0 && offsets[*hook] as usize == at)
}

/// Where jumps lead: the offset of the first rule of each chain.
fn chain_starts(blob: &Blob, entries: &[Entry<'_>]) -> HashMap<usize, String> {
    let own = entries.iter().filter_map(|entry| Some((entry.at + entry.body.len(), entry.chain_name()?)));
    let base = entries.iter().filter_map(|entry| {
        hook_at(blob, &blob.hook_entry, entry.at).map(|hook| (entry.at, HOOK_NAMES[hook].0.to_owned()))
    });
    own.chain(base).collect()
}

impl Family {
    fn layout(self) -> &'static Layout {
        match self {
            Self::Ipv4 => &IPV4,
            Self::Ipv6 => &IPV6,
        }
    }
}

impl Entry<'_> {
    fn target(&self) -> &[u8] {
        &self.body[self.target_at..]
    }

    fn target_name(&self) -> String {
        text_at(self.target(), 2, PART_NAME_BYTES).unwrap_or_default()
    }

    fn chain_name(&self) -> Option<String> {
        (self.target_name() == ERROR_TARGET).then(|| text_at(self.target(), PART_HEADER_BYTES, 32)).flatten()
    }

    fn rule(&self, chain: &str, position: u64, starts: &HashMap<usize, String>, with_text: bool) -> Rule {
        let mut matches = Vec::new();
        let mut text = vec![format!("-A {chain}")];
        self.addresses(&mut matches, &mut text);
        self.interfaces(&mut matches, &mut text);
        self.protocol(&mut matches, &mut text);
        let mut comment = None;
        for (name, revision, info) in self.parts() {
            let part = xtables::parse_match(&name, revision, info, self.family == Family::Ipv6);
            matches.extend(part.matches);
            comment = comment.or(part.comment);
            text.push(part.text);
        }
        let (verdict, words) = self.verdict(starts);
        text.push(words);
        let count = |at| u64_at(self.body, self.family.layout().counters + at).unwrap_or(0);
        Rule {
            handle: position,
            matches,
            verdict,
            counter: Some(Counter { packets: count(0), bytes: count(8) }),
            comment,
            text: if with_text { words::sentence(&text) } else { String::new() },
        }
    }

    fn inverted(&self, bit: u8) -> bool {
        u8_at(self.body, self.family.layout().inverted).unwrap_or(0) & bit != 0
    }

    fn addresses(&self, matches: &mut Vec<Match>, text: &mut Vec<String>) {
        const SOURCE_INVERTED: u8 = 0x08;
        const DESTINATION_INVERTED: u8 = 0x10;
        let width = self.family.layout().address;
        for (index, option, bit) in [(0, "-s", SOURCE_INVERTED), (1, "-d", DESTINATION_INVERTED)] {
            let at = |index: usize| address_at(self.body, index * width, self.family == Family::Ipv6);
            let (Some(address), Some(mask)) = (at(index), at(index + 2)) else { continue };
            if mask.is_unspecified() {
                continue;
            }
            let negated = self.inverted(bit);
            let not = if negated { "! " } else { "" };
            let Some(net) = net(address, mask) else {
                text.push(format!("{not}{option} {address}/{mask}"));
                matches.push(Match::Other { text: format!("{not}{option} {address}/{mask}") });
                continue;
            };
            text.push(format!("{not}{option} {}", words::net(net)));
            let nets = vec![net];
            matches.push(if index == 0 {
                Match::Source { nets, negated }
            } else {
                Match::Destination { nets, negated }
            });
        }
    }

    fn interfaces(&self, matches: &mut Vec<Match>, text: &mut Vec<String>) {
        let start = 4 * self.family.layout().address;
        debug_assert_eq!(start, self.family.layout().interfaces);
        for (index, option, bit) in [(0, "-i", 0x01), (1, "-o", 0x02)] {
            let place = |index: usize| self.body.get(start + 16 * index..start + 16 * (index + 1));
            let (Some(name), Some(mask)) = (place(index), place(index + 2)) else { continue };
            let compared = mask.iter().take_while(|byte| **byte != 0).count();
            if compared == 0 {
                continue;
            }
            // A name is compared with its NUL, a prefix without.
            let prefix = !name[..compared].contains(&0);
            let name = text_at(&name[..compared], 0, compared).unwrap_or_default();
            let negated = self.inverted(bit);
            text.push(format!("{}{option} {name}{}", if negated { "! " } else { "" }, if prefix { "+" } else { "" }));
            let names = vec![if prefix { name + "*" } else { name }];
            matches.push(if index == 0 {
                Match::InputInterface { names, negated }
            } else {
                Match::OutputInterface { names, negated }
            });
        }
    }

    fn protocol(&self, matches: &mut Vec<Match>, text: &mut Vec<String>) {
        const PROTOCOL_INVERTED: u8 = 0x40;
        const FRAGMENT_INVERTED: u8 = 0x20;
        let layout = self.family.layout();
        let number = u16_at(self.body, layout.protocol).and_then(|number| u8::try_from(number).ok()).unwrap_or(0);
        if number != 0 {
            let negated = self.inverted(PROTOCOL_INVERTED);
            text.push(format!("{}-p {}", if negated { "! " } else { "" }, words::protocol(number)));
            let protocols = Protocol::from_number(number).into_iter().collect();
            matches.push(Match::Protocol { protocols, negated });
        }
        let flags = u8_at(self.body, layout.flags).unwrap_or(0);
        let special = match self.family {
            Family::Ipv4 if flags & 1 != 0 && self.inverted(FRAGMENT_INVERTED) => Some("! -f"),
            Family::Ipv4 if flags & 1 != 0 => Some("-f"),
            Family::Ipv6 if flags & 2 != 0 => Some("traffic class"),
            _ => None,
        };
        if let Some(special) = special {
            text.push(special.into());
            matches.push(Match::Other { text: special.into() });
        }
    }

    /// Name, revision and structure of each match.
    fn parts(&self) -> Vec<(String, u32, &[u8])> {
        let mut parts = Vec::new();
        let mut rest = &self.body[self.family.layout().matches..self.target_at];
        while let Some(size) = u16_at(rest, 0).map(usize::from)
            && let Some(info) = rest.get(PART_HEADER_BYTES..size)
        {
            let name = text_at(rest, 2, PART_NAME_BYTES).unwrap_or_default();
            parts.push((name, u32::from(u8_at(rest, 31).unwrap_or(0)), info));
            rest = &rest[size..];
        }
        if !rest.is_empty() {
            parts.push(("(cut short)".into(), 0, rest));
        }
        parts
    }

    fn verdict(&self, starts: &HashMap<usize, String>) -> (Verdict, String) {
        let name = self.target_name();
        if !name.is_empty() {
            let revision = u32::from(u8_at(self.target(), 31).unwrap_or(0));
            let info = &self.target()[PART_HEADER_BYTES..];
            let action = xtables::parse_target(&name, revision, info, self.family == Family::Ipv6);
            return (action.verdict, action.text);
        }
        let verdict = self.standard_verdict(starts);
        let text = words::verdict(&verdict);
        (verdict, text)
    }

    /// `struct xt_standard_target`: an offset to continue at, or a verdict as `-NF_… - 1`.
    fn standard_verdict(&self, starts: &HashMap<usize, String>) -> Verdict {
        const GOTO: [u8; 2] = [0x02, 0x04];
        let number = u32_at(self.target(), PART_HEADER_BYTES).map_or(0, u32::cast_signed);
        let Ok(offset) = usize::try_from(number) else {
            return match number {
                -1 => Verdict::Drop,
                -2 => Verdict::Accept,
                -4 => Verdict::Queue,
                -5 => Verdict::Return,
                number => Verdict::Other { text: format!("verdict {number}") },
            };
        };
        // A rule without target continues at the next one.
        if offset == self.at + self.body.len() {
            return Verdict::Continue;
        }
        let Some(chain) = starts.get(&offset).cloned() else {
            return Verdict::Other { text: format!("jump to byte {offset}") };
        };
        let flags = u8_at(self.body, self.family.layout().flags).unwrap_or(0);
        let goto = if self.family == Family::Ipv4 { GOTO[0] } else { GOTO[1] };
        if flags & goto != 0 { Verdict::Goto { chain } } else { Verdict::Jump { chain } }
    }
}

fn net(address: IpAddr, mask: IpAddr) -> Option<IpNet> {
    IpNet::with_netmask(address, mask).ok()
}

/// Where the tables of `iptable_*.ko` register themselves (`enum nf_ip_hook_priorities`).
fn priority(table: &str, hook: Hook) -> i32 {
    match (table, hook) {
        ("raw", _) => -300,
        ("mangle", _) => -150,
        ("nat", Hook::Input | Hook::Postrouting) => 100,
        ("nat", _) => -100,
        ("security", _) => 50,
        _ => 0,
    }
}

fn kind(table: &str, hook: Hook) -> &'static str {
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
