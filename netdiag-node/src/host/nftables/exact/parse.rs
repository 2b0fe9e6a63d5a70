//! Chains, rules, sets and elements out of nf_tables' messages, without loss. None is for a message that makes no sense:
//! whoever leaves one out says that a rule is not there.

use std::sync::Arc;

use netdiag_common::forwarding::expression::{Data, Verdict};
use netdiag_common::forwarding::flowtable::{FlowDevice, Flowtable};
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

/// One table.
#[derive(Debug)]
pub(super) struct Table {
    pub family: Family,
    pub name: String,
    pub handle: u64,
    /// Whether its chains are at their hooks.
    pub is_active: bool,
}

pub(super) fn table(payload: &[u8]) -> Option<Table> {
    let (family, attributes) = split(payload)?;
    let (name, flags, handle) = (1, 2, 4);
    let is_active = attributes.u32(flags).unwrap_or(0) & DORMANT == 0;
    Some(Table { family, name: attributes.text(name)?.into_owned(), handle: attributes.u64(handle)?, is_active })
}

pub(super) fn chain_key(payload: &[u8]) -> Option<ChainKey> {
    let (family, attributes) = split(payload)?;
    let (table, name) = (1, 3);
    Some(ChainKey { family, table: Arc::from(&*attributes.text(table)?), chain: Arc::from(&*attributes.text(name)?) })
}

/// Where a chain is called from.
#[derive(Debug)]
pub(super) enum Called {
    /// From a hook. The table's handle is filled in by the caller.
    Base(BaseChain),
    ByRules,
}

impl Called {
    pub(super) fn base(self) -> Option<BaseChain> {
        match self {
            Self::Base(chain) => Some(chain),
            Self::ByRules => None,
        }
    }
}

pub(super) fn called(payload: &[u8]) -> Option<Called> {
    let (family, attributes) = split(payload)?;
    let (handle, hook, policy, kind) = (2, 4, 5, 7);
    let (number, priority) = (1, 2);
    let Some(at) = attributes.find(hook).map(Attributes) else { return Some(Called::ByRules) };
    Some(Called::Base(BaseChain {
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
    }))
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
    let handle = attributes.u64(handle)?;
    let mut comment = attributes.find(userdata).and_then(attribute::user_comment);
    // The kernel writes the list also where it is empty.
    let list = Attributes(attributes.find(expressions)?);
    if !list.are_whole() {
        return None;
    }
    let mut parsed = Vec::new();
    for (_, body) in list {
        match expression::xt_comment(body) {
            // It asks nothing of the packet, and has 256 bytes whatever it says.
            Some(text) => comment = comment.or(Some(text)),
            None => parsed.push(expression::parse_one(body)),
        }
    }
    Some(Rule { handle, expressions: parsed, comment: comment.map(Arc::from) })
}

/// A set without its elements.
pub(super) fn set(payload: &[u8]) -> Option<Set> {
    let (_, attributes) = split(payload)?;
    let (flags, key_bytes, data_bytes, description, object, count) = (3, 5, 7, 9, 15, 20);
    let (size, fields) = (1, 2);
    let description = attributes.find(description).map(Attributes);
    let concatenation = description.and_then(|description| description.find(fields));
    let field = |(_, body)| Attributes(body).u32(1);
    Some(Set {
        flags: attributes.u32(flags).unwrap_or(0),
        key_bytes: attributes.u32(key_bytes)?,
        data_bytes: attributes.u32(data_bytes).unwrap_or(0),
        object: attributes.u32(object),
        fields: concatenation.map(|list| Attributes(list).filter_map(field).collect()).unwrap_or_default(),
        size: description.and_then(|description| description.u32(size)),
        count: attributes.u32(count),
        elements: Elements::unread(),
    })
}

/// `NFTA_FLOWTABLE_*`
pub(super) fn flowtable(payload: &[u8]) -> Option<Flowtable> {
    let (family, attributes) = split(payload)?;
    let (table, name, hook) = (1, 2, 3);
    let (priority, devices) = (2, 3);
    let at = Attributes(attributes.find(hook)?);
    let devices = Attributes(at.find(devices).unwrap_or_default());
    if !at.are_whole() || !devices.are_whole() {
        return None;
    }
    Some(Flowtable {
        family,
        table: Arc::from(&*attributes.text(table)?),
        name: Arc::from(&*attributes.text(name)?),
        priority: at.u32(priority)?.cast_signed(),
        devices: devices.map(flow_device).collect::<Option<Vec<_>>>()?,
    })
}

/// `NFTA_DEVICE_NAME`, and `NFTA_DEVICE_PREFIX` of Linux 6.18. Before it, a name without its end stood for all that begin so.
fn flow_device((kind, name): (u16, &[u8])) -> Option<FlowDevice> {
    let is_prefix = match kind {
        1 => !name.ends_with(b"\0"),
        2 => true,
        _ => return None,
    };
    Some(FlowDevice { name: Arc::from(&*attribute::text(name)), is_prefix })
}

/// The elements of one message.
pub(super) fn elements(payload: &[u8]) -> Option<Vec<Element>> {
    let list = 3;
    let (_, attributes) = split(payload)?;
    let elements = Attributes(attributes.find(list).unwrap_or_default());
    if !elements.are_whole() {
        return None;
    }
    elements.map(|(_, body)| element(body)).collect()
}

fn element(body: &[u8]) -> Option<Element> {
    let attributes = Attributes(body);
    if !attributes.are_whole() {
        return None;
    }
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
            (Some(list), _) => expression::parse_all(list)?,
            (None, Some(one)) => vec![expression::parse_one(one)],
            (None, None) => Vec::new(),
        },
        comment: attributes.find(userdata).and_then(attribute::user_comment).map(Arc::from),
    })
}

/// `struct nfgenmsg`, then attributes.
fn split(payload: &[u8]) -> Option<(Family, Attributes<'_>)> {
    let attributes = Attributes(payload.get(4..)?);
    attributes.are_whole().then_some((family_of(*payload.first()?)?, attributes))
}
