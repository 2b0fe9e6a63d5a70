//! Chains, rules, sets and elements out of nf_tables' messages, without loss.

use std::sync::Arc;

use netdiag_common::forwarding::expression::{Data, Verdict};
use netdiag_common::forwarding::set::{Element, Elements, Set};
use netdiag_common::forwarding::state::{BaseChain, ChainKey, ChainKind, Family, Hook, Rule};

use super::super::attribute::{self, Attributes};
use super::expression;

/// `NFT_SET_ELEM_INTERVAL_END`
const ENDS_RANGE: u32 = 0x1;

/// `NFT_TABLE_F_DORMANT`: its chains are at no hook.
const DORMANT: u32 = 0x1;

pub(in crate::host) fn family_of(number: u8) -> Option<Family> {
    Some(match i32::from(number) {
        libc::NFPROTO_INET => Family::Inet,
        libc::NFPROTO_IPV4 => Family::Ip,
        libc::NFPROTO_IPV6 => Family::Ip6,
        libc::NFPROTO_ARP => Family::Arp,
        libc::NFPROTO_BRIDGE => Family::Bridge,
        libc::NFPROTO_NETDEV => Family::Netdev,
        _ => return None,
    })
}

pub(in crate::host) fn number_of(family: Family) -> u8 {
    let number = match family {
        Family::Inet => libc::NFPROTO_INET,
        Family::Ip | Family::LegacyIp => libc::NFPROTO_IPV4,
        Family::Ip6 | Family::LegacyIp6 => libc::NFPROTO_IPV6,
        Family::Arp => libc::NFPROTO_ARP,
        Family::Bridge => libc::NFPROTO_BRIDGE,
        Family::Netdev => libc::NFPROTO_NETDEV,
    };
    u8::try_from(number).expect("NFPROTO_* are below 16")
}

/// Family, name and handle of a table whose chains are at their hooks.
pub(super) fn table(payload: &[u8]) -> Option<(Family, String, u64)> {
    let (family, attributes) = split(payload)?;
    let (name, flags, handle) = (1, 2, 4);
    let active = attributes.u32(flags).unwrap_or(0) & DORMANT == 0;
    active.then(|| Some((family, attributes.text(name)?.into_owned(), attributes.u64(handle)?))).flatten()
}

pub(super) fn chain_key(payload: &[u8]) -> Option<ChainKey> {
    let (family, attributes) = split(payload)?;
    let (table, name) = (1, 3);
    Some(ChainKey { family, table: Arc::from(&*attributes.text(table)?), chain: Arc::from(&*attributes.text(name)?) })
}

/// A base chain; none for chains that are only jumped to. `table_handle` is filled in by the caller.
pub(super) fn base_chain(payload: &[u8]) -> Option<BaseChain> {
    let (family, attributes) = split(payload)?;
    let (handle, hook, policy, kind) = (2, 4, 5, 7);
    let (number, priority) = (1, 2);
    let at = Attributes(attributes.find(hook)?);
    Some(BaseChain {
        key: chain_key(payload)?,
        kind: match &*attributes.text(kind)? {
            "nat" => ChainKind::Nat,
            "route" => ChainKind::Route,
            _ => ChainKind::Filter,
        },
        hook: hook_of(family, at.u32(number)?)?,
        priority: at.u32(priority)?.cast_signed(),
        policy: if attributes.u32(policy) == Some(0) { Verdict::Drop } else { Verdict::Accept },
        made: (0, attributes.u64(handle)?),
    })
}

/// `enum nf_inet_hooks`, `enum nf_dev_hooks`
fn hook_of(family: Family, number: u32) -> Option<Hook> {
    Some(match (family, number) {
        (Family::Netdev, 0) | (Family::Inet, 5) => Hook::Ingress,
        (Family::Netdev, 1) => Hook::Egress,
        (_, 0) => Hook::Prerouting,
        (_, 1) => Hook::Input,
        (_, 2) => Hook::Forward,
        (_, 3) => Hook::Output,
        (_, 4) => Hook::Postrouting,
        _ => return None,
    })
}

pub(super) fn rule(payload: &[u8]) -> Option<Rule> {
    let (_, attributes) = split(payload)?;
    let (handle, expressions, userdata) = (3, 4, 7);
    Some(Rule {
        handle: attributes.u64(handle)?,
        expressions: expression::parse_all(attributes.find(expressions).unwrap_or_default()),
        comment: attributes.find(userdata).and_then(attribute::user_comment).map(Arc::from),
    })
}

/// A set without its elements.
pub(super) fn set(payload: &[u8]) -> Option<Set> {
    let (_, attributes) = split(payload)?;
    let (flags, key_bytes, data_bytes, description, object) = (3, 5, 7, 9, 15);
    let concatenation = attributes.find(description).and_then(|description| Attributes(description).find(2));
    let field = |(_, body)| Attributes(body).u32(1);
    Some(Set {
        flags: attributes.u32(flags).unwrap_or(0),
        key_bytes: attributes.u32(key_bytes)?,
        data_bytes: attributes.u32(data_bytes).unwrap_or(0),
        object: attributes.u32(object),
        fields: concatenation.map(|list| Attributes(list).filter_map(field).collect()).unwrap_or_default(),
        elements: Elements::unread(),
    })
}

/// The elements of one message.
pub(super) fn elements(payload: &[u8]) -> Vec<Element> {
    let list = 3;
    let elements = split(payload).and_then(|(_, attributes)| attributes.find(list));
    elements.map(|list| Attributes(list).filter_map(|(_, body)| element(body)).collect()).unwrap_or_default()
}

fn element(body: &[u8]) -> Option<Element> {
    let attributes = Attributes(body);
    let (key, data, flags, userdata, one, object, last, many) = (1, 2, 3, 6, 7, 9, 10, 11);
    let bytes = |kind| match expression::data(attributes.find(kind)?)? {
        Data::Value(value) => Some(value),
        Data::Verdict(_) => None,
    };
    Some(Element {
        key: bytes(key).unwrap_or_default(),
        last: bytes(last),
        ends_range: attributes.u32(flags).unwrap_or(0) & ENDS_RANGE != 0,
        data: match attributes.find(data) {
            Some(data) => Some(expression::data(data)?),
            None => None,
        },
        object: attributes.text(object).map(Into::into),
        expressions: match (attributes.find(many), attributes.find(one)) {
            (Some(list), _) => expression::parse_all(list),
            (None, Some(one)) => vec![expression::parse_one(one)],
            (None, None) => Vec::new(),
        },
        comment: attributes.find(userdata).and_then(attribute::user_comment).map(Arc::from),
    })
}

/// `struct nfgenmsg`, then attributes.
fn split(payload: &[u8]) -> Option<(Family, Attributes<'_>)> {
    Some((family_of(*payload.first()?)?, Attributes(payload.get(4..)?)))
}
