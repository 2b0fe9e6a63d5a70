//! Decodes one entry of a table (`struct ipt_entry`, `struct ip6t_entry`; layouts checked against the headers of Linux 6.1 on
//! a 64-bit machine).

use std::collections::HashMap;
use std::net::IpAddr;
use std::ops::Range;
use std::sync::Arc;

use ipnet::IpNet;
use netdiag_common::observation::Protocol;
use netdiag_common::observation::rules::{Counter, Match, Rule, Verdict};

use super::sockopt::Family;
use crate::host::xtables::bytes::{address_at, text_at, u8_at, u16_at, u32_at, u64_at};
use crate::host::xtables::{self, words};

/// Places in an entry, in bytes.
pub(super) struct Layout {
    address: usize,
    interfaces: usize,
    protocol: usize,
    flags: usize,
    inverted: usize,
    pub(super) target: usize,
    next: usize,
    counters: usize,
    pub(super) matches: usize,
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
pub(super) const ERROR_TARGET: &str = "ERROR";

/// Stands for matches that do not fit the entry.
pub(super) const CUT_SHORT: &str = "(cut short)";

pub(super) struct Entry<'a> {
    family: Family,
    /// Offset in the table.
    pub(super) at: usize,
    pub(super) body: &'a [u8],
    target_at: usize,
}

/// Where jumps lead: the name of the chain whose first rule is at an offset.
pub(super) type Starts = HashMap<usize, Arc<str>>;

/// The entries from one offset to another, without keeping them; ends with the offset of the first one that does not fit.
pub(super) fn between(
    family: Family,
    bytes: &[u8],
    offsets: Range<usize>,
) -> impl Iterator<Item = Result<Entry<'_>, usize>> {
    let mut at = offsets.start;
    std::iter::from_fn(move || {
        if at >= offsets.end {
            return None;
        }
        let entry = one(family, bytes, at).ok_or(at);
        // After one that does not fit, nothing is known of the next.
        at = entry.as_ref().map_or(offsets.end, |entry| at + entry.body.len());
        Some(entry)
    })
}

fn one(family: Family, bytes: &[u8], at: usize) -> Option<Entry<'_>> {
    let layout = family.layout();
    let rest = bytes.get(at..)?;
    let place = |field| u16_at(rest, field).map(usize::from);
    let (target_at, next) = place(layout.target).zip(place(layout.next))?;
    let fits = layout.matches <= target_at && target_at + PART_HEADER_BYTES <= next && next <= rest.len();
    fits.then(|| Entry { family, at, body: &rest[..next], target_at })
}

impl Family {
    pub(super) fn layout(self) -> &'static Layout {
        match self {
            Self::Ipv4 => &IPV4,
            Self::Ipv6 => &IPV6,
        }
    }

    /// `IPT_F_GOTO`, `IP6T_F_GOTO`
    fn goto(self) -> u8 {
        match self {
            Self::Ipv4 => 0x02,
            Self::Ipv6 => 0x04,
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

    pub(super) fn chain_name(&self) -> Option<String> {
        (self.target_name() == ERROR_TARGET).then(|| text_at(self.target(), PART_HEADER_BYTES, 32)).flatten()
    }

    pub(super) fn rule(&self, chain: &str, position: u64, starts: &Starts, with_text: bool) -> Rule {
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
        // Kept for each of very many rules.
        matches.shrink_to_fit();
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

    /// `struct ipt_ip`, `struct ip6t_ip6`
    pub(super) fn own(&self) -> &[u8] {
        &self.body[..self.family.layout().target - 4]
    }

    /// Whether every packet passes [`Self::own`].
    pub(super) fn asks_nothing(&self) -> bool {
        let flags = self.family.layout().flags;
        // A goto is no question.
        self.own().iter().enumerate().all(|(at, byte)| *byte == 0 || (at == flags && *byte == self.family.goto()))
    }

    pub(super) fn is_goto(&self) -> bool {
        u8_at(self.body, self.family.layout().flags).unwrap_or(0) & self.family.goto() != 0
    }

    /// The offset that a standard target continues at, or its negative verdict.
    pub(super) fn standard(&self) -> Result<usize, i32> {
        let number = u32_at(self.target(), PART_HEADER_BYTES).map_or(0, u32::cast_signed);
        usize::try_from(number).map_err(|_| number)
    }

    /// Name, revision and structure of the target; the name of a standard target is empty.
    pub(super) fn target_part(&self) -> (String, u32, &[u8]) {
        let revision = u32::from(u8_at(self.target(), 31).unwrap_or(0));
        (self.target_name(), revision, &self.target()[PART_HEADER_BYTES..])
    }

    /// Name, revision and structure of each match.
    pub(super) fn parts(&self) -> Vec<(String, u32, &[u8])> {
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
            parts.push((CUT_SHORT.into(), 0, rest));
        }
        parts
    }

    pub(super) fn verdict(&self, starts: &Starts) -> (Verdict, String) {
        let (name, revision, info) = self.target_part();
        if !name.is_empty() {
            let action = xtables::parse_target(&name, revision, info, self.family == Family::Ipv6);
            return (action.verdict, action.text);
        }
        let verdict = self.standard_verdict(starts);
        let text = words::verdict(&verdict);
        (verdict, text)
    }

    /// `struct xt_standard_target`: an offset to continue at, or a verdict as `-NF_… - 1`.
    fn standard_verdict(&self, starts: &Starts) -> Verdict {
        let offset = match self.standard() {
            Ok(offset) => offset,
            Err(number) => {
                return match number {
                    -1 => Verdict::Drop,
                    -2 => Verdict::Accept,
                    -4 => Verdict::Queue,
                    -5 => Verdict::Return,
                    number => Verdict::Other { text: format!("verdict {number}") },
                };
            }
        };
        // A rule without target continues at the next one.
        if offset == self.at + self.body.len() {
            return Verdict::Continue;
        }
        let Some(chain) = starts.get(&offset).map(ToString::to_string) else {
            return Verdict::Other { text: format!("jump to byte {offset}") };
        };
        if self.is_goto() { Verdict::Goto { chain } } else { Verdict::Jump { chain } }
    }
}

fn net(address: IpAddr, mask: IpAddr) -> Option<IpNet> {
    IpNet::with_netmask(address, mask).ok()
}
