//! Single rules in words: those that a packet's way names, without reading all others.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io;
use std::ops::ControlFlow;

use netdiag_common::forwarding::state::ChainKey;
use netdiag_common::observation::rules::{Backend, BaseChain, Chain, Counter, Hook, Rule, Table, Verdict};

use super::attribute::{self, Attributes};
use super::builder::{OTHER_ELEMENTS, style_of};
use super::exact::family_number;
use super::expression::{self, Expression};
use super::rule::{self, Context, Style};
use super::set::{Element, Set};
use super::socket::NfTables;
use super::{ReadError, interfaces};

/// A rule that looks its target up in a set without a name is several rules; so many of them are spelled out.
const MAX_ALTERNATIVES: usize = 4;

/// One rule in words.
pub(crate) struct WordedRule {
    pub chain: ChainKey,
    pub handle: u64,
    pub text: String,
    pub comment: Option<String>,
    pub counter: Option<Counter>,
}

/// The rules with these handles. `base` are the base chains, whose names tell who wrote a table. What is gone meanwhile is
/// left out.
pub(crate) fn in_words(
    wanted: &BTreeMap<ChainKey, BTreeSet<u64>>,
    base: &[ChainKey],
) -> Result<Vec<WordedRule>, ReadError> {
    read(wanted, base).map_err(|source| ReadError::Call { step: "read rules of nf_tables".into(), source })
}

fn read(wanted: &BTreeMap<ChainKey, BTreeSet<u64>>, base: &[ChainKey]) -> io::Result<Vec<WordedRule>> {
    let mut socket = NfTables::open()?;
    let interfaces = interfaces();
    let mut found = Vec::new();
    for (chain, handles) in wanted {
        let family = family_number(chain.family);
        let style = style_of(&outline(chain, base));
        for body in rules(&mut socket, chain, handles)? {
            let attributes = Attributes(&body);
            let (handle, expressions, userdata) = (3, 4, 7);
            let Some(handle) = attributes.u64(handle) else { continue };
            let list = attributes.find(expressions).unwrap_or_default();
            let sets = sets(&mut socket, chain, list)?;
            let style = if expression::uses_xt(list) { Style::Iptables } else { style };
            let context = Context { family, sets: &sets, interfaces: &interfaces, style, with_text: true };
            let comment = attributes.find(userdata).and_then(attribute::user_comment);
            let rules = rule::decode(&context, handle, &chain.chain, list, comment);
            found.push(worded(chain.clone(), handle, rules));
        }
    }
    Ok(found)
}

fn worded(chain: ChainKey, handle: u64, rules: Vec<Rule>) -> WordedRule {
    let mut texts: Vec<String> = Vec::new();
    for rule in &rules {
        if !texts.contains(&rule.text) {
            texts.push(rule.text.clone());
        }
    }
    let more = texts.len().saturating_sub(MAX_ALTERNATIVES);
    texts.truncate(MAX_ALTERNATIVES);
    if more > 0 {
        texts.push(format!("{more} more"));
    }
    let text = texts.join(" or ");
    let first = rules.into_iter().next();
    let (comment, counter) = first.map(|rule| (rule.comment, rule.counter)).unwrap_or_default();
    WordedRule { chain, handle, text, comment, counter }
}

/// The attributes of the rules with these handles.
fn rules(socket: &mut NfTables, key: &ChainKey, handles: &BTreeSet<u64>) -> io::Result<Vec<Vec<u8>>> {
    let (table, chain, handle) = (1, 2, 3);
    let names = [(table, &*key.table), (chain, &*key.chain)];
    let mut found = Vec::new();
    socket.request(libc::NFT_MSG_GETRULE, family_number(key.family), &names, true, &mut |message| {
        if Attributes(message.body).u64(handle).is_some_and(|handle| handles.contains(&handle)) {
            found.push(message.body.to_vec());
        }
        ControlFlow::Continue(())
    })?;
    Ok(found)
}

/// The sets that a rule asks. Of those with a name the name says enough.
fn sets(socket: &mut NfTables, chain: &ChainKey, list: &[u8]) -> io::Result<HashMap<String, Set>> {
    let (table, name, elements) = (1, 2, 3);
    let mut sets = HashMap::new();
    for expression in expression::parse_all(list) {
        let Expression::Lookup { set: asked, .. } = expression else { continue };
        let family = family_number(chain.family);
        let names = [(table, &*chain.table), (name, &*asked)];
        let mut found = None;
        let answer = socket.request(libc::NFT_MSG_GETSET, family, &names, false, &mut |message| {
            found = Set::parse(message.family, message.body);
            ControlFlow::Continue(())
        });
        let Some(mut set) = unless_gone(answer, found)? else { continue };
        set.complete = false;
        if set.is_anonymous() {
            set.complete = true;
            let answer = socket.request(libc::NFT_MSG_GETSETELEM, family, &names, true, &mut |message| {
                for (_, body) in Attributes(Attributes(message.body).find(elements).unwrap_or_default()) {
                    match Element::parse(body) {
                        Some(element) if set.elements.len() < OTHER_ELEMENTS => set.elements.push(element),
                        _ => set.complete = false,
                    }
                }
                ControlFlow::Continue(())
            });
            unless_gone(answer, Some(()))?;
        }
        sets.insert(set.name.clone(), set);
    }
    Ok(sets)
}

fn unless_gone<T, U>(answer: io::Result<U>, found: Option<T>) -> io::Result<Option<T>> {
    match answer {
        Ok(_) => Ok(found),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(None),
        Err(error) => Err(error),
    }
}

/// A table with its base chains, as far as it takes to tell who wrote it.
fn outline(of: &ChainKey, base: &[ChainKey]) -> Table {
    let chain = |key: &ChainKey| Chain {
        name: key.chain.to_string(),
        base: Some(BaseChain { hook: Hook::Input, priority: 0, kind: String::new(), policy: Verdict::Accept }),
        rules: Vec::new(),
    };
    let own = base.iter().filter(|key| key.family == of.family && key.table == of.table);
    Table {
        backend: Backend::Nftables,
        family: of.family.to_string(),
        name: of.table.to_string(),
        chains: own.map(chain).collect(),
    }
}
