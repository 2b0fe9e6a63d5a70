//! nf_tables of the calling thread's network namespace for the evaluator: piece by piece, as it asks for them, and
//! without loss. Beside it [`super::read`] decodes whole rulesets into words for people.

mod expression;
mod parse;

use std::collections::HashMap;
use std::sync::Arc;

use netdiag_common::forwarding::flowtable::Flowtable;
use netdiag_common::forwarding::set::{Element, Set};
use netdiag_common::forwarding::state::{BaseChain, Chain, ChainKey, SetKey};
use nix::sys::socket::SockProtocol;

use super::attribute::push;
use crate::host::ReadError;
use crate::host::netlink::{Netlink, UNSPECIFIED};

/// `NLA_F_NESTED`
const NESTED: u16 = 0x8000;

/// `NFT_MSG_GETFLOWTABLE`, which libc has no name for.
const GET_FLOWTABLE: libc::c_int = 23;

/// `NFT_SET_ELEM_CATCHALL`
const CATCH_ALL: u32 = 0x2;

pub(in crate::host) use expression::verdict_of;
pub(in crate::host) use parse::family_of;
pub(super) use parse::number_of as family_number;

pub(crate) struct ExactTables {
    netlink: Netlink,
}

/// `struct nfgenmsg`: family, version 0, resource id 0.
fn header(family: u8) -> Vec<u8> {
    vec![family, 0, 0, 0]
}

fn kind(message: libc::c_int) -> u16 {
    u16::try_from((libc::NFNL_SUBSYS_NFTABLES << 8) | message).expect("message types are below 256")
}

fn named(request: &mut Vec<u8>, attribute: u16, name: &str) {
    push(request, attribute, &[name.as_bytes(), b"\0"].concat());
}

/// What the kernel answers when there is no such object.
fn absent<T>(answer: Result<Option<T>, ReadError>) -> Result<Option<T>, ReadError> {
    match answer {
        Err(ReadError::Call { source, .. }) if source.raw_os_error() == Some(libc::ENOENT) => Ok(None),
        answer => answer,
    }
}

fn malformed(step: &str, messages: u32) -> ReadError {
    ReadError::Malformed {
        what: format!("the kernel's answer to `{step}`"),
        why: format!("{messages} of its messages are cut, or lack what this version knows them to have"),
    }
}

impl ExactTables {
    pub(crate) fn open() -> Result<Self, ReadError> {
        Ok(Self { netlink: Netlink::open(SockProtocol::NetlinkNetFilter)? })
    }

    /// The number that every transaction raises.
    pub(crate) fn generation(&mut self) -> Result<Option<u32>, ReadError> {
        let request = header(UNSPECIFIED);
        let id = 1;
        self.netlink.get(kind(libc::NFT_MSG_GETGEN), &request, "read the generation of nf_tables", |payload| {
            super::attribute::Attributes(payload.get(4..)?).u32(id)
        })
    }

    /// All base chains at their hooks. This goes through all chains, since the kernel cannot be asked for these only.
    pub(crate) fn base_chains(&mut self) -> Result<Vec<BaseChain>, ReadError> {
        let request = header(UNSPECIFIED);
        let tables = self.all(libc::NFT_MSG_GETTABLE, &request, "list tables", parse::table)?;
        let active = tables.into_iter().filter(|table| table.is_active);
        let handles: HashMap<_, _> = active.map(|table| ((table.family, table.name), table.handle)).collect();
        let chains = self.all(libc::NFT_MSG_GETCHAIN, &request, "list chains", parse::called)?;
        let mut chains: Vec<BaseChain> = chains.into_iter().filter_map(parse::Called::base).collect();
        chains.retain_mut(|chain| {
            let handle = handles.get(&(chain.key.family, chain.key.table.to_string()));
            chain.made.0 = handle.copied().unwrap_or(0);
            handle.is_some()
        });
        Ok(chains)
    }

    /// The names of all chains.
    pub(crate) fn chain_keys(&mut self) -> Result<Vec<ChainKey>, ReadError> {
        let request = header(UNSPECIFIED);
        self.all(libc::NFT_MSG_GETCHAIN, &request, "list chains", parse::chain_key)
    }

    /// All messages of a dump, each of which has to make sense: what is left out would be said not to be there.
    fn all<T>(
        &mut self,
        message: libc::c_int,
        request: &[u8],
        step: &str,
        decode: impl Fn(&[u8]) -> Option<T>,
    ) -> Result<Vec<T>, ReadError> {
        let mut broken = 0;
        let found = self.netlink.dump(kind(message), request, step, |payload| {
            let one = decode(payload);
            broken += u32::from(one.is_none());
            one
        })?;
        if broken == 0 { Ok(found) } else { Err(malformed(step, broken)) }
    }

    /// The same of the answer about one object; none when there is none.
    fn one<T>(
        &mut self,
        message: libc::c_int,
        request: &[u8],
        step: &str,
        decode: impl Fn(&[u8]) -> Option<T>,
    ) -> Result<Option<T>, ReadError> {
        let answer = self.netlink.get(kind(message), request, step, |payload| Some(decode(payload)));
        match absent(answer)? {
            Some(None) => Err(malformed(step, 1)),
            found => Ok(found.flatten()),
        }
    }

    /// The rules of one chain; none when there is no such chain.
    pub(crate) fn chain(&mut self, key: &ChainKey) -> Result<Option<Chain>, ReadError> {
        let (table, chain) = (1, 2);
        let mut request = header(parse::number_of(key.family));
        named(&mut request, table, &key.table);
        named(&mut request, chain, &key.chain);
        let step = format!("list rules of chain {key}");
        let rules = self.all(libc::NFT_MSG_GETRULE, &request, &step, parse::rule)?;
        if rules.is_empty() && !self.has_chain(key)? {
            return Ok(None);
        }
        Ok(Some(Chain { rules, ..Chain::default() }))
    }

    /// A chain without rules and one that is not there give the same empty list.
    fn has_chain(&mut self, key: &ChainKey) -> Result<bool, ReadError> {
        let (table, name) = (1, 3);
        let mut request = header(parse::number_of(key.family));
        named(&mut request, table, &key.table);
        named(&mut request, name, &key.chain);
        let step = format!("look for chain {key}");
        absent(self.netlink.get(kind(libc::NFT_MSG_GETCHAIN), &request, &step, |_| Some(())))
            .map(|found| found.is_some())
    }

    /// One set without its elements; none when there is no such set.
    pub(crate) fn set(&mut self, key: &SetKey) -> Result<Option<Set>, ReadError> {
        let (table, name) = (1, 2);
        let mut request = header(parse::number_of(key.family));
        named(&mut request, table, &key.table);
        named(&mut request, name, &key.set);
        let step = format!("read set {} of table {}", key.set, key.table);
        self.one(libc::NFT_MSG_GETSET, &request, &step, parse::set)
    }

    /// The element that a key leads to, which may be a range; none when no element has it.
    pub(crate) fn element(&mut self, set: &SetKey, key: &[u8]) -> Result<Option<Arc<Element>>, ReadError> {
        let (key_attribute, value) = (1, 1);
        let mut wrapped = Vec::new();
        push(&mut wrapped, value, key);
        let mut element = Vec::new();
        push(&mut element, key_attribute | NESTED, &wrapped);
        self.ask_element(set, &element)
    }

    /// The element for all other keys.
    pub(crate) fn catch_all(&mut self, set: &SetKey) -> Result<Option<Arc<Element>>, ReadError> {
        let flags = 3;
        let mut element = Vec::new();
        push(&mut element, flags, &CATCH_ALL.to_be_bytes());
        self.ask_element(set, &element)
    }

    /// All flowtables of all tables.
    pub(crate) fn flowtables(&mut self) -> Result<Vec<Flowtable>, ReadError> {
        let request = header(UNSPECIFIED);
        self.all(GET_FLOWTABLE, &request, "list flowtables", parse::flowtable)
    }

    fn ask_element(&mut self, set: &SetKey, element: &[u8]) -> Result<Option<Arc<Element>>, ReadError> {
        let (table, name, elements, one) = (1, 2, 3, 1);
        let mut request = header(parse::number_of(set.family));
        named(&mut request, table, &set.table);
        named(&mut request, name, &set.set);
        let mut list = Vec::new();
        push(&mut list, one | NESTED, element);
        push(&mut request, elements | NESTED, &list);
        let step = format!("look up an element of set {} of table {}", set.set, set.table);
        let found = self.one(libc::NFT_MSG_GETSETELEM, &request, &step, parse::elements)?;
        Ok(found.and_then(|elements| elements.into_iter().next()).map(Arc::new))
    }
}

#[cfg(test)]
mod tests;
