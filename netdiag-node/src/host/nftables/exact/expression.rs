//! Expressions as the kernel writes them, into the evaluator's. Attribute numbers are those of
//! `include/uapi/linux/netfilter/nf_tables.h` and `nf_tables_compat.h`.

use std::sync::Arc;

use netdiag_common::forwarding::expression::{
    Base, Bitwise, Data, Dynset, Expression, ExthdrSource, NatKind, Queues, Verdict,
};

use super::super::attribute::Attributes;
use super::super::expression::operator;

/// Reads `NFTA_RULE_EXPRESSIONS` and lists like it; none of a list that was cut. What cannot be decoded stays, by its name.
pub(super) fn parse_all(list: &[u8]) -> Option<Vec<Expression>> {
    Attributes(list).are_whole().then(|| Attributes(list).map(|(_, body)| parse_one(body)).collect())
}

/// One expression with its name (`NFTA_EXPR_NAME`, `NFTA_EXPR_DATA`).
pub(super) fn parse_one(body: &[u8]) -> Expression {
    let (name, data) = (1, 2);
    let attributes = Attributes(body);
    let name = attributes.text(name).unwrap_or_default();
    let data = Attributes(attributes.find(data).unwrap_or_default());
    let is_whole = attributes.are_whole() && data.are_whole();
    is_whole.then(|| parse(&name, data)).flatten().unwrap_or_else(|| Expression::Unknown { name: name.into_owned() })
}

/// What the match `comment` of iptables says (`struct xt_comment_info`: a text that ends with a zero byte).
pub(super) fn xt_comment(body: &[u8]) -> Option<String> {
    let (name, data) = (1, 2);
    let attributes = Attributes(body);
    if attributes.find(name)? != b"match\0" {
        return None;
    }
    let (name, info) = (1, 3);
    let of = Attributes(attributes.find(data)?);
    (of.find(name)?.strip_suffix(b"\0")? == b"comment").then(|| of.text(info).map(std::borrow::Cow::into_owned))?
}

fn parse(name: &str, of: Attributes<'_>) -> Option<Expression> {
    Some(match name {
        "immediate" => Expression::Immediate { to: of.u32(1)?, data: data(of.find(2)?)? },
        "payload" => payload(of)?,
        "exthdr" => exthdr(of)?,
        "meta" => match of.u32(1) {
            Some(to) => Expression::Meta { key: of.u32(2)?, to },
            None => Expression::MetaSet { key: of.u32(2)?, from: of.u32(3)? },
        },
        "ct" => {
            let direction = byte(of, 3);
            match of.u32(1) {
                Some(to) => Expression::Ct { key: of.u32(2)?, direction, to },
                None => Expression::CtSet { key: of.u32(2)?, direction, from: of.u32(4)? },
            }
        }
        "cmp" => Expression::Compare { from: of.u32(1)?, operator: operator(of.u32(2)?)?, value: value(of, 3)? },
        "range" => {
            Expression::Range { from: of.u32(1)?, negated: of.u32(2)? == 1, first: value(of, 3)?, last: value(of, 4)? }
        }
        "bitwise" => {
            Expression::Bitwise { from: of.u32(1)?, to: of.u32(2)?, bytes: of.u32(3)?, operation: bitwise(of)? }
        }
        "byteorder" => Expression::Byteorder { from: of.u32(1)?, to: of.u32(2)?, bytes: of.u32(4)?, size: of.u32(5)? },
        "lookup" => Expression::Lookup {
            set: shared(of, 1)?,
            from: of.u32(2)?,
            to: of.u32(3),
            negated: of.u32(5).unwrap_or(0) & 1 != 0,
        },
        "dynset" => dynset(of)?,
        "counter" => Expression::Counter { bytes: of.u64(1)?, packets: of.u64(2)? },
        "limit" => limit(of)?,
        "quota" => Expression::Quota {
            bytes: of.u64(1)?,
            consumed: of.u64(4).unwrap_or(0),
            negated: of.u32(2).unwrap_or(0) & 1 != 0,
        },
        "connlimit" => Expression::Connlimit { count: of.u32(1)?, negated: of.u32(2).unwrap_or(0) & 1 != 0 },
        "last" => Expression::Last,
        "numgen" => Expression::Numgen {
            random: of.u32(3)? == 1,
            modulus: of.u32(2)?,
            offset: of.u32(4).unwrap_or(0),
            to: of.u32(1)?,
        },
        "hash" => hash(of)?,
        "fib" => Expression::Fib { result: of.u32(2)?, flags: of.u32(3)?, to: of.u32(1)? },
        "socket" => Expression::Socket { key: of.u32(1)?, level: of.u32(3).unwrap_or(0), to: of.u32(2)? },
        "rt" => Expression::Rt { key: of.u32(2)?, to: of.u32(1)? },
        "osf" => Expression::Unreadable { words: "the sender's system".into(), bytes: 16, to: of.u32(1)? },
        "tunnel" => Expression::Unreadable { words: "metadata of a tunnel".into(), bytes: 4, to: of.u32(2)? },
        "xfrm" => Expression::Unreadable { words: "an IPsec state".into(), bytes: 16, to: of.u32(1)? },
        "nat" => Expression::Nat {
            kind: if of.u32(1)? == 0 { NatKind::Source } else { NatKind::Destination },
            family: u8::try_from(of.u32(2)?).ok()?,
            address: [of.u32(3), of.u32(4)],
            port: [of.u32(5), of.u32(6)],
            flags: of.u32(7).unwrap_or(0),
        },
        "masq" => Expression::Masquerade { port: [of.u32(2), of.u32(3)], flags: of.u32(1).unwrap_or(0) },
        "redir" => Expression::Redirect { port: [of.u32(1), of.u32(2)], flags: of.u32(3).unwrap_or(0) },
        "tproxy" => Expression::Tproxy { family: u8::try_from(of.u32(1)?).ok()?, address: of.u32(2), port: of.u32(3) },
        "reject" => Expression::Reject { kind: of.u32(1)?, code: byte(of, 2).unwrap_or(0) },
        "notrack" => Expression::Notrack,
        "log" => Expression::Log,
        "queue" => queue(of)?,
        "objref" => match (of.text(4), of.u32(3)) {
            (Some(map), Some(from)) => Expression::ObjectMap { set: Arc::from(&*map), from },
            _ => Expression::Object { kind: of.u32(1)?, name: of.text(2)?.into_owned() },
        },
        "flow_offload" => Expression::FlowOffload { table: of.text(1)?.into_owned() },
        "synproxy" => Expression::Synproxy,
        "dup" => Expression::Duplicate,
        "match" => Expression::XtMatch { name: shared(of, 1)?, revision: of.u32(2)?, info: of.find(3)?.to_vec() },
        "target" => Expression::XtTarget { name: shared(of, 1)?, revision: of.u32(2)?, info: of.find(3)?.to_vec() },
        _ => return None,
    })
}

/// The attributes in `NFTA_*_DATA`.
pub(super) fn data(body: &[u8]) -> Option<Data> {
    let attributes = Attributes(body);
    let (value, verdict) = (1, 2);
    match attributes.find(value) {
        Some(value) => Some(Data::Value(value.to_vec())),
        None => Some(Data::Verdict(verdict_of(Attributes(attributes.find(verdict)?))?)),
    }
}

pub(in crate::host) fn verdict_of(of: Attributes<'_>) -> Option<Verdict> {
    let (code, chain) = (1, 2);
    // Negative codes are NFT_*, the others are NF_* of linux/netfilter.h.
    let code = of.u32(code)?;
    Some(match code.cast_signed() {
        -1 => Verdict::Continue,
        -2 => Verdict::Break,
        -3 => Verdict::Jump(shared(of, chain)?),
        -4 => Verdict::Goto(shared(of, chain)?),
        -5 => Verdict::Return,
        signed => match code & 0xff {
            0 => Verdict::Drop,
            1 => Verdict::Accept,
            2 => Verdict::Stolen,
            // The queue's number is in the upper half, all of it, and bit 15 says to go on without a listener.
            3 => Verdict::Queue { number: u16::try_from(code >> 16).ok()?, bypass: code & 0x8000 != 0 },
            _ => Verdict::Other(signed),
        },
    })
}

fn payload(of: Attributes<'_>) -> Option<Expression> {
    let base = match of.u32(2)? {
        0 => Base::Link,
        1 => Base::Network,
        2 => Base::Transport,
        3 => Base::Inner,
        _ => return None,
    };
    let (offset, bytes) = (of.u32(3)?, of.u32(4)?);
    Some(match of.u32(1) {
        Some(to) => Expression::Payload { base, offset, bytes, to },
        None => Expression::PayloadWrite { base, offset, bytes, from: of.u32(5)? },
    })
}

fn exthdr(of: Attributes<'_>) -> Option<Expression> {
    let kind = byte(of, 2)?;
    let Some(to) = of.u32(1) else {
        // To remove an option no part of it is named.
        let (offset, bytes) = (of.u32(3).unwrap_or(0), of.u32(4).unwrap_or(0));
        return Some(Expression::ExthdrWrite { kind, offset, bytes, from: of.u32(7) });
    };
    let source = match of.u32(6).unwrap_or(0) {
        0 => ExthdrSource::Ipv6,
        1 => ExthdrSource::TcpOption,
        2 => ExthdrSource::Ipv4Option,
        3 => ExthdrSource::SctpChunk,
        4 => ExthdrSource::DccpOption,
        _ => return None,
    };
    let presence = of.u32(5).unwrap_or(0) & 1 != 0;
    Some(Expression::Exthdr { source, kind, offset: of.u32(3)?, bytes: of.u32(4)?, presence, to })
}

fn bitwise(of: Attributes<'_>) -> Option<Bitwise> {
    let bits = || {
        let value = value(of, 7)?;
        Some(u32::from_ne_bytes(value.get(..4)?.try_into().ok()?))
    };
    Some(match of.u32(6).unwrap_or(0) {
        0 => Bitwise::MaskXor { mask: value(of, 4)?, xor: value(of, 5)? },
        1 => Bitwise::ShiftLeft { bits: bits()? },
        2 => Bitwise::ShiftRight { bits: bits()? },
        operation @ 3..=5 => {
            // The second operand is a register since Linux 6.13; constants are not written by the kernel.
            let with = of.u32(8)?;
            match operation {
                3 => Bitwise::And { with },
                4 => Bitwise::Or { with },
                _ => Bitwise::Xor { with },
            }
        }
        _ => return None,
    })
}

fn dynset(of: Attributes<'_>) -> Option<Expression> {
    let operation = match of.u32(3)? {
        0 => Dynset::Add,
        1 => Dynset::Update,
        2 => Dynset::Delete,
        _ => return None,
    };
    let expressions = match (of.find(10), of.find(7)) {
        (Some(list), _) => parse_all(list)?,
        (None, Some(one)) => vec![parse_one(one)],
        (None, None) => Vec::new(),
    };
    let negated = of.u32(9).unwrap_or(0) & 1 != 0;
    Some(Expression::Dynset { set: shared(of, 1)?, operation, key: of.u32(4)?, data: of.u32(5), negated, expressions })
}

fn limit(of: Attributes<'_>) -> Option<Expression> {
    let (rate, unit, kind) = (of.u64(1)?, of.u64(2)?, of.u32(4).unwrap_or(0));
    let what = if kind == 1 { "bytes" } else { "packets" };
    let words = format!("{rate} {what} in {unit} s");
    Some(Expression::Limit { words, negated: of.u32(5).unwrap_or(0) & 1 != 0 })
}

fn hash(of: Attributes<'_>) -> Option<Expression> {
    let (to, modulus, offset) = (of.u32(2)?, of.u32(4)?, of.u32(6).unwrap_or(0));
    Some(if of.u32(7).unwrap_or(0) == 1 {
        Expression::Symhash { modulus, offset, to }
    } else {
        Expression::Jhash { from: of.u32(1)?, bytes: of.u32(3)?, modulus, seed: of.u32(5), offset, to }
    })
}

fn queue(of: Attributes<'_>) -> Option<Expression> {
    const BYPASS: u16 = 1;
    const BY_PROCESSOR: u16 = 2;
    let (number, total, flags, register) = (1, 2, 3, 4);
    let flags = short(of, flags).unwrap_or(0);
    let queues = match of.u32(register) {
        Some(register) => Queues::Register(register),
        None => Queues::Range {
            first: short(of, number)?,
            total: short(of, total).unwrap_or(1),
            by_processor: flags & BY_PROCESSOR != 0,
        },
    };
    Some(Expression::Queue { queues, bypass: flags & BYPASS != 0 })
}

fn value(of: Attributes<'_>, kind: u16) -> Option<Vec<u8>> {
    match data(of.find(kind)?)? {
        Data::Value(value) => Some(value),
        Data::Verdict(_) => None,
    }
}

fn shared(of: Attributes<'_>, kind: u16) -> Option<Arc<str>> {
    of.text(kind).map(|text| Arc::from(&*text))
}

fn byte(of: Attributes<'_>, kind: u16) -> Option<u8> {
    of.find(kind)?.first().copied()
}

fn short(of: Attributes<'_>, kind: u16) -> Option<u16> {
    Some(u16::from_be_bytes(of.find(kind)?.get(..2)?.try_into().ok()?))
}
