//! Decodes one rule of nf_tables: follows its expressions over the registers and writes down what they ask of a packet.
//!
//! A rule becomes several when it looks its verdict (or a tuple of fields) up in a small set: one per element, all with the
//! rule's handle. At most one element matches a packet, so the sequence means the same as the lookup.

use std::collections::HashMap;
use std::net::IpAddr;

use netdiag_common::observation::rules::{Counter, Match, NatTarget, Rule, Verdict};

use super::expression::{self, Data, Expression};
use super::field::{self, Field, Interfaces, Interval, Subject};
use super::load::{self, Layers};
use super::register::{Content, Registers};
use super::set::Set;
use crate::host::xtables::{self, words};

/// Larger sets are named, not listed: the reading stays small, and block lists are nobody's rule to read line by line.
pub(super) const MAX_INLINE_ELEMENTS: usize = 256;

/// Address ranges for NAT that are longer are only given in the text.
const MAX_NAT_RANGE: u32 = 64;

/// What a rule needs to know about its table.
pub(super) struct Context<'a> {
    pub family: u8,
    /// The table's sets by name.
    pub sets: &'a HashMap<String, Set>,
    pub interfaces: &'a Interfaces,
    pub style: Style,
    /// Off where nobody reads it: it is most of a rule's memory.
    pub with_text: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Style {
    Nft,
    /// As `iptables -S` prints.
    Iptables,
}

/// A rule while its expressions are followed.
#[derive(Clone)]
pub(super) struct Draft {
    pub matches: Vec<Match>,
    pub words: Vec<String>,
    pub verdict: Option<Verdict>,
    pub registers: Registers,
    pub layers: Layers,
    /// The lower bound that the last match asked for, and the number of matches then.
    pub lower_bound: Option<(Field, Vec<u8>, usize)>,
    /// This is one of several rules that a lookup became.
    pub unfolded: bool,
    counter: Option<Counter>,
    comment: Option<String>,
}

/// Decodes `NFTA_RULE_EXPRESSIONS`. `comment` is the one in the rule's user data.
pub(super) fn decode(
    context: &Context<'_>,
    handle: u64,
    chain: &str,
    list: &[u8],
    comment: Option<String>,
) -> Vec<Rule> {
    let network = match i32::from(context.family) {
        libc::NFPROTO_IPV4 => Some("ip"),
        libc::NFPROTO_IPV6 => Some("ip6"),
        _ => None,
    };
    let mut drafts = vec![Draft {
        matches: Vec::new(),
        words: Vec::new(),
        verdict: None,
        registers: Registers::default(),
        layers: Layers { network, transport: None },
        lower_bound: None,
        unfolded: false,
        counter: None,
        comment,
    }];
    for expression in expression::parse_all(list) {
        drafts = drafts.into_iter().flat_map(|draft| draft.follow(context, &expression)).collect();
    }
    // An empty vmap leaves nothing that could match; the rule itself is still there.
    drafts.into_iter().map(|draft| draft.finish(context, handle, chain)).collect()
}

impl Draft {
    /// Most expressions continue one draft; a lookup may turn it into several.
    fn follow(mut self, context: &Context<'_>, expression: &Expression<'_>) -> Vec<Self> {
        match expression {
            Expression::Payload { base, offset, bytes, to } => {
                let fields = load::payload(self.layers, *base, *offset, *bytes);
                let contents = fields.into_iter().map(|(field, bytes)| (Content::Field(field), bytes)).collect();
                self.registers.load(*to, contents);
            }
            Expression::Meta { key, to } => self.load_field(*to, load::meta(*key)),
            Expression::Ct { key, to, direction } => self.load_field(*to, load::ct(*key, *direction)),
            Expression::Fib { result, flags, to } => self.load_field(*to, load::fib(*result, *flags)),
            Expression::Computed { words, random, to } => {
                self.registers.load(*to, vec![(Content::Computed { words: words.clone(), random: *random }, 4)]);
            }
            Expression::Bitwise { from, to, mask, xor } => self.mask(*from, *to, mask, xor),
            Expression::Compare { from, operator, value } => self.compare(context, *from, *operator, value),
            Expression::Range { from, negated, first, last } => {
                let interval = Interval { first: first.to_vec(), last: last.to_vec() };
                self.range(context, *from, interval, *negated);
            }
            Expression::Lookup { set, from, to, negated } => return self.lookup(context, set, *from, *to, *negated),
            Expression::Immediate { to, value: Data::Value(value) } => {
                self.registers.load(*to, vec![(Content::OneOf(vec![value.to_vec()]), value.len())]);
            }
            Expression::Immediate { value: Data::Verdict(verdict), .. } => self.decide(context, verdict.clone()),
            Expression::Counter(counter) => {
                self.counter = Some(*counter);
                if context.style == Style::Nft {
                    self.words.push(format!("counter packets {} bytes {}", counter.packets, counter.bytes));
                }
            }
            Expression::Socket { key, level, to } => self.load_field(*to, load::socket(*key, *level)),
            Expression::Tproxy { family, address, port } => self.proxy(context, *family, *address, *port),
            Expression::Nat { source, address, port } => self.translate(context, *source, *address, *port),
            Expression::Masquerade => self.decide(context, Verdict::Masquerade),
            Expression::Reject { kind, code } => {
                let with = reject_with(*kind, *code, self.layers.network);
                self.decide(context, Verdict::Reject { with });
            }
            Expression::Queue(words) => {
                self.words.push(words.clone());
                self.verdict = Some(Verdict::Queue);
            }
            Expression::Decision(words) => self.decide(context, Verdict::Other { text: words.clone() }),
            Expression::Condition(words) => self.other(words.clone()),
            Expression::Statement(words) => self.words.push(words.clone()),
            Expression::SetMeta { key, from } => self.set(&load::meta(*key), *from),
            Expression::SetCt { key, from } => self.set(&load::ct(*key, None), *from),
            Expression::Match { name, revision, info } => {
                let found = xtables::parse_match(name, *revision, info, self.layers.network == Some("ip6"));
                self.matches.extend(found.matches);
                self.comment = self.comment.or(found.comment);
                self.words.push(found.text);
            }
            Expression::Target { name, revision, info } => {
                let found = xtables::parse_target(name, *revision, info, self.layers.network == Some("ip6"));
                self.words.push(found.text);
                if found.verdict != Verdict::Continue {
                    self.verdict = Some(found.verdict);
                }
            }
            // It may be a condition, a statement or a decision.
            Expression::Unknown(name) => {
                self.other(format!("[{name}]"));
                self.verdict.get_or_insert(Verdict::Other { text: format!("[{name}]") });
            }
        }
        vec![self]
    }

    fn finish(mut self, context: &Context<'_>, handle: u64, chain: &str) -> Rule {
        if !context.with_text {
            self.words.clear();
        } else if context.style == Style::Iptables {
            self.words.insert(0, format!("-A {chain}"));
        } else if let Some(comment) = &self.comment {
            self.words.push(format!("comment {}", words::quoted(comment)));
        }
        Rule {
            handle,
            matches: self.matches,
            verdict: self.verdict.unwrap_or(Verdict::Continue),
            counter: self.counter,
            comment: self.comment,
            text: words::sentence(&self.words),
        }
    }

    pub(super) fn other(&mut self, text: String) {
        self.words.push(text.clone());
        self.matches.push(Match::Other { text });
    }

    pub(super) fn decide(&mut self, context: &Context<'_>, verdict: Verdict) {
        let text = match context.style {
            Style::Nft => words::nft_verdict(&verdict),
            Style::Iptables => words::verdict(&verdict),
        };
        if !text.is_empty() {
            self.words.push(text);
        }
        self.verdict = Some(verdict);
    }

    fn load_field(&mut self, register: u32, field: Field) {
        let bytes = field.bytes;
        self.registers.load(register, vec![(Content::Field(field), bytes)]);
    }

    fn mask(&mut self, from: u32, to: u32, mask: &[u8], xor: &[u8]) {
        let content = match self.registers.get(from).map(|loaded| &loaded.content) {
            Some(Content::Field(field)) if xor.iter().all(|byte| *byte == 0) => {
                Content::Masked { field: field.clone(), mask: mask.to_vec() }
            }
            Some(content) => {
                let (name, kept, flipped) = (content.words(), field::host_endian(mask), field::host_endian(xor));
                let all = field::host_endian(&vec![0xff; mask.len()]);
                let words = match kept {
                    _ if kept == all => format!("{name} ^ {flipped:#x}"),
                    // How nft writes `|`: clear the bits, then flip them.
                    _ if kept == all & !flipped => format!("{name} | {flipped:#x}"),
                    _ => format!("{name} & {kept:#x} ^ {flipped:#x}"),
                };
                Content::Computed { words, random: false }
            }
            None => Content::Computed { words: "bitwise".into(), random: false },
        };
        self.registers.load(to, vec![(content, mask.len())]);
    }

    fn set(&mut self, field: &Field, from: u32) {
        let value = match self.registers.get(from).map(|loaded| &loaded.content) {
            Some(Content::OneOf(values)) if values.len() == 1 => field.value(&Interval::single(&values[0]), &[]),
            Some(content) => content.words(),
            None => "…".into(),
        };
        self.words.push(format!("{} set {value}", field.name));
    }

    fn translate(&mut self, context: &Context<'_>, source: bool, address: [Option<u32>; 2], port: [Option<u32>; 2]) {
        let targets = self.targets(address, port);
        let action = if source { "snat" } else { "dnat" };
        let verdict = match targets {
            Some(to) if source => Verdict::Snat { to },
            Some(to) => Verdict::Dnat { to },
            None => Verdict::Other { text: format!("{action} to a computed address") },
        };
        self.decide(context, verdict);
    }

    /// `tproxy ip to 10.0.0.9:9000`: tables of one family do not name it.
    fn proxy(&mut self, context: &Context<'_>, family: u32, address: Option<u32>, port: Option<u32>) {
        const IPV4: u32 = libc::NFPROTO_IPV4.cast_unsigned();
        const IPV6: u32 = libc::NFPROTO_IPV6.cast_unsigned();
        let only = |register: u32, bytes: usize| match self.registers.values(register, bytes)?[..] {
            [value] => Some(value.to_vec()),
            _ => None,
        };
        let of = match (i32::from(context.family), family) {
            (libc::NFPROTO_INET, IPV4) => " ip",
            (libc::NFPROTO_INET, IPV6) => " ip6",
            _ => "",
        };
        let address = address.map(|register| {
            let value = only(register, if family == IPV6 { 16 } else { 4 });
            match value.and_then(|value| field::address(&value)) {
                Some(IpAddr::V6(address)) => format!("[{address}]"),
                Some(IpAddr::V4(address)) => address.to_string(),
                None => "an address that the rule computes".to_owned(),
            }
        });
        let port = port.map(|register| match only(register, 2).as_deref() {
            Some(&[high, low]) => format!(":{}", u16::from_be_bytes([high, low])),
            _ => ":a port that the rule computes".to_owned(),
        });
        let text = format!("tproxy{of} to {}{}", address.unwrap_or_default(), port.unwrap_or_default());
        self.decide(context, Verdict::Other { text });
    }

    /// The addresses and ports to choose from; none when a register holds something else than constants.
    fn targets(&self, address: [Option<u32>; 2], port: [Option<u32>; 2]) -> Option<Vec<NatTarget>> {
        let ports = match port {
            [Some(first), last] => {
                let first = self.registers.values(first, 2)?;
                // A range of ports has no place in a target.
                if last.is_some_and(|last| self.registers.values(last, 2).as_ref() != Some(&first)) {
                    return None;
                }
                Some(first.iter().map(|port| u16::from_be_bytes([port[0], port[1]])).collect::<Vec<_>>())
            }
            [None, _] => None,
        };
        let [Some(first), last] = address else {
            return Some(ports?.into_iter().map(|port| NatTarget { address: None, port: Some(port) }).collect());
        };
        let width = |register| self.registers.values(register, 16).or_else(|| self.registers.values(register, 4));
        let first = width(first)?;
        let addresses = match last.filter(|last| width(*last).as_ref() != Some(&first)) {
            None => first.iter().map(|value| field::address(value)).collect::<Option<Vec<_>>>()?,
            Some(last) => words::address_range(
                field::address(first.first()?)?,
                field::address(width(last)?.first()?)?,
                MAX_NAT_RANGE,
            )?,
        };
        let port = |index: usize| ports.as_ref().and_then(|ports| ports.get(index).or(ports.first()).copied());
        let target = |(index, address)| NatTarget { address: Some(address), port: port(index) };
        Some(addresses.into_iter().enumerate().map(target).collect())
    }

    /// Remembers what an equality says about the packet's layers.
    pub(super) fn learn(&mut self, field: &Field, interval: &Interval) {
        if let Some(family) = field.family(interval) {
            self.layers.network = Some(family);
        }
        if field.subject == Subject::Protocol && interval.first == interval.last {
            self.layers.transport = interval.first.first().copied();
        }
    }
}

/// `NFTA_REJECT_TYPE` and code, in nft's words.
fn reject_with(kind: u32, code: u8, network: Option<&str>) -> String {
    let name = match (kind, network, code) {
        (1, ..) => return "tcp reset".into(),
        // Codes of ICMPv6 type 1 (RFC 4443) and of ICMP type 3 (RFC 792, 1122, 1812).
        (0, Some("ip6"), 0) | (2, _, 0) => "no-route",
        (0, Some("ip6"), 1) | (2, _, 3) => "admin-prohibited",
        (0, Some("ip6"), 3) => "addr-unreachable",
        (0, Some("ip6"), 4) | (2, _, 1) | (0, _, 3) => "port-unreachable",
        (0, Some("ip6"), 5) => "policy-fail",
        (0, Some("ip6"), 6) => "reject-route",
        (0, _, 0) => "net-unreachable",
        (0, _, 1) | (2, _, 2) => "host-unreachable",
        (0, _, 2) => "prot-unreachable",
        (0, _, 9) => "net-prohibited",
        (0, _, 10) => "host-prohibited",
        (0, _, 13) => "admin-prohibited",
        _ => return format!("icmp type {kind} code {code}"),
    };
    let protocol = match (kind, network) {
        (2, _) => "icmpx",
        (_, Some("ip6")) => "icmpv6",
        _ => "icmp",
    };
    format!("{protocol} {name}")
}
