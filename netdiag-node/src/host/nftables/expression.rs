//! The expressions a rule of nf_tables is made of, as the kernel sends them. Attribute numbers are those of
//! `include/uapi/linux/netfilter/nf_tables.h` and `nf_tables_compat.h`.

use std::borrow::Cow;

use netdiag_common::forwarding::expression::Operator;
use netdiag_common::observation::rules::{Counter, Verdict};

use super::attribute::Attributes;

#[derive(Debug)]
pub(super) enum Expression<'a> {
    Payload {
        base: u32,
        offset: u32,
        bytes: u32,
        to: u32,
    },
    Meta {
        key: u32,
        to: u32,
    },
    SetMeta {
        key: u32,
        from: u32,
    },
    Ct {
        key: u32,
        to: u32,
        direction: Option<u8>,
    },
    SetCt {
        key: u32,
        from: u32,
    },
    Fib {
        result: u32,
        flags: u32,
        to: u32,
    },
    /// Writes a value that does not depend on one field of the packet alone: numgen, jhash, socket, rt, …
    Computed {
        words: String,
        random: bool,
        to: u32,
    },
    Bitwise {
        from: u32,
        to: u32,
        mask: &'a [u8],
        xor: &'a [u8],
    },
    Compare {
        from: u32,
        operator: Operator,
        value: &'a [u8],
    },
    Range {
        from: u32,
        negated: bool,
        first: &'a [u8],
        last: &'a [u8],
    },
    Lookup {
        set: Cow<'a, str>,
        from: u32,
        to: Option<u32>,
        negated: bool,
    },
    Immediate {
        to: u32,
        value: Data<'a>,
    },
    Counter(Counter),
    Socket {
        key: u32,
        level: u32,
        to: u32,
    },
    Tproxy {
        family: u32,
        address: Option<u32>,
        port: Option<u32>,
    },
    Nat {
        source: bool,
        address: [Option<u32>; 2],
        port: [Option<u32>; 2],
    },
    Masquerade,
    Reject {
        kind: u32,
        code: u8,
    },
    /// In words.
    Queue(String),
    /// May stop the packet from reaching the rest of the rule: limits, quotas.
    Condition(String),
    /// Does something beside deciding: log, set updates, marks.
    Statement(String),
    /// Decides, in a way the contract has no word for: redirect, synproxy, dup, fwd.
    Decision(String),
    Match {
        name: Cow<'a, str>,
        revision: u32,
        info: &'a [u8],
    },
    Target {
        name: Cow<'a, str>,
        revision: u32,
        info: &'a [u8],
    },
    Unknown(String),
}

#[derive(Debug)]
pub(super) enum Data<'a> {
    Value(&'a [u8]),
    Verdict(Verdict),
}

impl<'a> Data<'a> {
    /// From the attributes in `NFTA_*_DATA`.
    pub(super) fn parse(body: &'a [u8]) -> Option<Self> {
        let attributes = Attributes(body);
        let (value, verdict) = (1, 2);
        if let Some(value) = attributes.find(value) {
            return Some(Self::Value(value));
        }
        let verdict = Attributes(attributes.find(verdict)?);
        let (code, chain) = (1, 2);
        // Negative codes are NFT_*, the others are NF_* of linux/netfilter.h.
        let code = verdict.u32(code)?.cast_signed();
        let chain = || verdict.text(chain).map(Cow::into_owned);
        Some(Self::Verdict(match code {
            0 => Verdict::Drop,
            1 => Verdict::Accept,
            -1 | -2 => Verdict::Continue,
            -3 => Verdict::Jump { chain: chain()? },
            -4 => Verdict::Goto { chain: chain()? },
            -5 => Verdict::Return,
            // The queue's number is in the upper half.
            code if code & 0xff == 3 => Verdict::Queue,
            code => Verdict::Other { text: format!("verdict {code}") },
        }))
    }
}

/// Reads `NFTA_RULE_EXPRESSIONS`.
pub(super) fn parse_all(list: &[u8]) -> Vec<Expression<'_>> {
    Attributes(list)
        .map(|(_, body)| {
            let (name, data) = (1, 2);
            let attributes = Attributes(body);
            let name = attributes.text(name).unwrap_or_default();
            parse(&name, Attributes(attributes.find(data).unwrap_or_default()))
                .unwrap_or_else(|| Expression::Unknown(name.into_owned()))
        })
        .collect()
}

fn parse<'a>(name: &str, of: Attributes<'a>) -> Option<Expression<'a>> {
    Some(match name {
        "payload" => match of.u32(1) {
            Some(to) => Expression::Payload { base: of.u32(2)?, offset: of.u32(3)?, bytes: of.u32(4)?, to },
            None => Expression::Statement("payload write".into()),
        },
        "meta" => match of.u32(1) {
            Some(to) => Expression::Meta { key: of.u32(2)?, to },
            None => Expression::SetMeta { key: of.u32(2)?, from: of.u32(3)? },
        },
        "ct" => match of.u32(1) {
            Some(to) => Expression::Ct { key: of.u32(2)?, to, direction: of.find(3).and_then(|d| d.first().copied()) },
            None => Expression::SetCt { key: of.u32(2)?, from: of.u32(4)? },
        },
        "fib" => Expression::Fib { to: of.u32(1)?, result: of.u32(2)?, flags: of.u32(3)? },
        "numgen" => {
            let kind = if of.u32(3)? == 0 { "inc" } else { "random" };
            computed(format!("numgen {kind} mod {}{}", of.u32(2)?, offset(of.u32(4))), true, of.u32(1)?)
        }
        "hash" => {
            let kind = if of.u32(7).unwrap_or(0) == 0 { "jhash" } else { "symhash" };
            computed(format!("{kind} mod {}{}", of.u32(4)?, offset(of.u32(6))), true, of.u32(2)?)
        }
        "exthdr" if of.find(1).is_none() => Expression::Statement("exthdr write".into()),
        "exthdr" => {
            let kind = of.find(2).and_then(|kind| kind.first().copied()).unwrap_or(0);
            let source = if of.u32(6).unwrap_or(0) == 1 { "tcp option" } else { "exthdr" };
            computed(format!("{source} {kind} @{},{}", of.u32(3)?, of.u32(4)?), false, of.u32(1)?)
        }
        "rt" => computed(routing(of.u32(2)?), false, of.u32(1)?),
        "socket" => Expression::Socket { key: of.u32(1)?, level: of.u32(3).unwrap_or(0), to: of.u32(2)? },
        "osf" => computed("osf name".into(), false, of.u32(1)?),
        "tunnel" => computed(format!("tunnel key {}", of.u32(1)?), false, of.u32(2)?),
        "xfrm" => computed(format!("ipsec key {}", of.u32(2)?), false, of.u32(1)?),
        "byteorder" => computed("byteorder".into(), false, of.u32(2)?),
        "bitwise" => return Some(bitwise(of)),
        "cmp" => Expression::Compare { from: of.u32(1)?, operator: operator(of.u32(2)?)?, value: value(of, 3)? },
        "range" => {
            Expression::Range { from: of.u32(1)?, negated: of.u32(2)? == 1, first: value(of, 3)?, last: value(of, 4)? }
        }
        "lookup" => Expression::Lookup {
            set: of.text(1)?,
            from: of.u32(2)?,
            to: of.u32(3),
            negated: of.u32(5).unwrap_or(0) & 1 != 0,
        },
        "immediate" => Expression::Immediate { to: of.u32(1)?, value: Data::parse(of.find(2)?)? },
        "counter" => Expression::Counter(Counter { bytes: of.u64(1)?, packets: of.u64(2)? }),
        "nat" => {
            Expression::Nat { source: of.u32(1)? == 0, address: [of.u32(3), of.u32(4)], port: [of.u32(5), of.u32(6)] }
        }
        "masq" => Expression::Masquerade,
        "redir" => Expression::Decision("redirect".into()),
        "tproxy" => Expression::Tproxy { family: of.u32(1)?, address: of.u32(2), port: of.u32(3) },
        "synproxy" => Expression::Decision(syn_proxy(of)),
        "dup" | "fwd" => Expression::Decision(name.into()),
        "reject" => {
            Expression::Reject { kind: of.u32(1)?, code: of.find(2).and_then(|c| c.first().copied()).unwrap_or(0) }
        }
        "queue" => Expression::Queue(queue(of)),
        "limit" => Expression::Condition(limit(of)?),
        "quota" => {
            let over = if of.u32(2).unwrap_or(0) & 1 != 0 { "over " } else { "" };
            Expression::Condition(format!("quota {over}{} bytes", of.u64(1)?))
        }
        "connlimit" => {
            let over = if of.u32(2).unwrap_or(0) & 1 != 0 { "over " } else { "" };
            Expression::Condition(format!("ct count {over}{}", of.u32(1)?))
        }
        "log" => Expression::Statement(match of.text(2) {
            Some(prefix) => format!("log prefix {}", crate::host::xtables::words::quoted(&prefix)),
            None => "log".into(),
        }),
        "notrack" => Expression::Statement("notrack".into()),
        "last" => Expression::Statement("last".into()),
        "flow_offload" => Expression::Statement("flow offload".into()),
        "dynset" => dynset(of)?,
        "objref" => objref(of)?,
        "match" => Expression::Match { name: of.text(1)?, revision: of.u32(2)?, info: of.find(3)? },
        "target" => Expression::Target { name: of.text(1)?, revision: of.u32(2)?, info: of.find(3)? },
        _ => return None,
    })
}

fn computed(words: String, random: bool, to: u32) -> Expression<'static> {
    Expression::Computed { words, random, to }
}

fn offset(offset: Option<u32>) -> String {
    offset.filter(|offset| *offset != 0).map_or_else(String::new, |offset| format!(" offset {offset}"))
}

fn value(of: Attributes<'_>, kind: u16) -> Option<&[u8]> {
    match Data::parse(of.find(kind)?)? {
        Data::Value(value) => Some(value),
        Data::Verdict(_) => None,
    }
}

/// `enum nft_cmp_ops`
pub(super) fn operator(number: u32) -> Option<Operator> {
    Some(match number {
        0 => Operator::Equal,
        1 => Operator::NotEqual,
        2 => Operator::Less,
        3 => Operator::LessOrEqual,
        4 => Operator::Greater,
        5 => Operator::GreaterOrEqual,
        _ => return None,
    })
}

fn bitwise(of: Attributes<'_>) -> Expression<'_> {
    let mask_and_xor = || Some((of.u32(1)?, of.u32(2)?, value(of, 4)?, value(of, 5)?));
    match (of.u32(6).unwrap_or(0), mask_and_xor(), of.u32(2)) {
        (0, Some((from, to, mask, xor)), _) => Expression::Bitwise { from, to, mask, xor },
        // Shifts, and the operations on two registers of Linux 6.13.
        (_, _, Some(to)) => computed("bitwise".into(), false, to),
        _ => Expression::Unknown("bitwise".into()),
    }
}

/// As nft lists it since 0.9.9: `queue flags bypass to 0-3`.
fn queue(of: Attributes<'_>) -> String {
    let (number, total, flags, register) = (1, 2, 3, 4);
    let short = |kind| Some(u16::from_be_bytes(of.find(kind)?.get(..2)?.try_into().ok()?));
    let bits: u16 = short(flags).unwrap_or(0);
    let flags = match bits & 3 {
        1 => " flags bypass",
        2 => " flags fanout",
        3 => " flags bypass,fanout",
        _ => "",
    };
    let to = match (of.u32(register), short(number), short(total)) {
        (None, Some(first), Some(total @ 2..)) => format!("{first}-{}", u32::from(first) + u32::from(total) - 1),
        (None, Some(first), _) => first.to_string(),
        _ => "a number that the rule computes".to_owned(),
    };
    format!("queue{flags} to {to}")
}

/// `enum nft_rt_keys`
fn routing(key: u32) -> String {
    match key {
        0 => "rt classid".into(),
        1 => "rt ip nexthop".into(),
        2 => "rt ip6 nexthop".into(),
        3 => "rt mtu".into(),
        4 => "rt ipsec".into(),
        key => format!("rt key {key}"),
    }
}

/// `synproxy mss 1460 wscale 7 timestamp sack-perm`
fn syn_proxy(of: Attributes<'_>) -> String {
    let (segment, scale, flags) = (1, 2, 3);
    let flags = of.u32(flags).unwrap_or(0);
    let segment = of.find(segment).and_then(|value| Some(u16::from_be_bytes(value.get(..2)?.try_into().ok()?)));
    let scale = of.find(scale).and_then(<[u8]>::first);
    let mut text = "synproxy".to_owned();
    if let (true, Some(segment)) = (flags & 1 != 0, segment) {
        text += &format!(" mss {segment}");
    }
    if let (true, Some(scale)) = (flags & 2 != 0, scale) {
        text += &format!(" wscale {scale}");
    }
    for (bit, option) in [(8, " timestamp"), (4, " sack-perm")] {
        if flags & bit != 0 {
            text += option;
        }
    }
    text
}

fn limit(of: Attributes<'_>) -> Option<String> {
    let (rate, unit, burst, kind, flags) = (of.u64(1)?, of.u64(2)?, of.u32(3), of.u32(4), of.u32(5));
    let unit = match unit {
        1 => "second".to_owned(),
        60 => "minute".to_owned(),
        3_600 => "hour".to_owned(),
        86_400 => "day".to_owned(),
        seconds => format!("{seconds} seconds"),
    };
    let over = if flags.unwrap_or(0) & 1 != 0 { "over " } else { "" };
    let what = if kind.unwrap_or(0) == 1 { "bytes" } else { "packets" };
    let rate = if what == "bytes" { format!("{rate} bytes/{unit}") } else { format!("{rate}/{unit}") };
    Some(format!("limit rate {over}{rate} burst {} {what}", burst.unwrap_or(0)))
}

/// Updating a set decides nothing by itself; with a limit attached to the element it is a condition.
fn dynset(of: Attributes<'_>) -> Option<Expression<'_>> {
    let (set, operation) = (of.text(1)?, of.u32(3)?);
    let operation = ["add", "update", "delete"].get(operation as usize).copied().unwrap_or("change");
    let conditional = of.find(7).is_some() || of.find(10).is_some();
    let words = format!("{operation} @{set}");
    Some(if conditional { Expression::Condition(words) } else { Expression::Statement(words) })
}

fn objref(of: Attributes<'_>) -> Option<Expression<'_>> {
    if let Some(map) = of.text(4) {
        return Some(Expression::Condition(format!("object of map @{map}")));
    }
    let (kind, name) = (of.u32(1)?, of.text(2)?);
    Some(match kind {
        1 => Expression::Statement(format!("counter name \"{name}\"")),
        2 => Expression::Condition(format!("quota name \"{name}\"")),
        3 => Expression::Statement(format!("ct helper set \"{name}\"")),
        4 => Expression::Condition(format!("limit name \"{name}\"")),
        5 => Expression::Condition(format!("ct count name \"{name}\"")),
        7 => Expression::Statement(format!("ct timeout set \"{name}\"")),
        8 => Expression::Statement(format!("secmark name \"{name}\"")),
        9 => Expression::Statement(format!("ct expectation set \"{name}\"")),
        10 => Expression::Decision(format!("synproxy name \"{name}\"")),
        _ => Expression::Condition(format!("object {kind} name \"{name}\"")),
    })
}

/// Whether a rule has matches or targets of x_tables, which only iptables-nft writes.
pub(super) fn uses_xt(list: &[u8]) -> bool {
    let name = 1;
    Attributes(list).any(|(_, body)| matches!(Attributes(body).text(name).as_deref(), Some("match" | "target")))
}
