//! Sets and maps: looked up, and changed by the packet itself.

use std::sync::Arc;

use super::bits::hex;
use super::{Result, Run};
use crate::forwarding::expression::{Data, Dynset, Expression, Verdict};
use crate::forwarding::path::FoundElement;
use crate::forwarding::register::VERDICT;
use crate::forwarding::set::{Element, Set};
use crate::forwarding::state::{ChainKey, Key, SetKey};

/// What a lookup found.
enum Looked {
    Element(Arc<Element>),
    Nothing,
    /// The key, in words.
    Unknown(String),
}

impl<'a> Run<'a> {
    /// `nft_lookup_eval`. `to` is none for a set, 0 for a map of verdicts.
    pub(super) fn lookup(&mut self, name: &Arc<str>, from: u32, to: Option<u32>, negated: bool) -> Result<Verdict> {
        let (key, set) = self.set(name)?;
        let element = match self.find(&key, set, from)? {
            Looked::Unknown(what) if to.is_none() => {
                let inside = self.decide(&format!("{what} in set {name}"));
                return Ok(if inside == negated { Verdict::Break } else { Verdict::Continue });
            }
            Looked::Unknown(what) => {
                // What the map holds for an unknown key cannot be listed; that it holds nothing is one case.
                if self.decide(&format!("{what} in map {name}")) {
                    return Err(self.unknown(format!("map {name} was asked for {what}, which is not known")));
                }
                return Ok(Verdict::Break);
            }
            Looked::Element(element) if !negated => Some(element),
            Looked::Nothing if negated => None,
            Looked::Element(_) | Looked::Nothing => match catch_all(&key, set)? {
                Some(element) => Some(element.clone()),
                None => return Ok(Verdict::Break),
            },
        };
        let Some(element) = element else { return Ok(Verdict::Continue) };
        self.note(name, &element);
        let mut verdict = Verdict::Continue;
        match (to, &element.data) {
            (Some(VERDICT), Some(Data::Verdict(decided))) => verdict = decided.clone(),
            (Some(to), Some(Data::Value(value))) => self.registers.store(to, value),
            (Some(_), _) => return Err(self.unknown(format!("the element found in map {name} has no value"))),
            (None, _) => {}
        }
        // A limit or a counter of the element comes last, and overrules it.
        match self.attached(&element)? {
            Verdict::Continue => Ok(verdict),
            other => Ok(other),
        }
    }

    /// `nft_objref_map_eval`
    pub(super) fn object_map(&mut self, name: &Arc<str>, from: u32) -> Result<Verdict> {
        let (key, set) = self.set(name)?;
        let element = match self.find(&key, set, from)? {
            Looked::Unknown(what) => {
                let inside = self.decide(&format!("{what} in map {name}"));
                return Ok(if inside { Verdict::Continue } else { Verdict::Break });
            }
            Looked::Element(element) => Some(element),
            Looked::Nothing => catch_all(&key, set)?.cloned(),
        };
        let Some(element) = element else { return Ok(Verdict::Break) };
        self.note(name, &element);
        let object = element.object.clone().unwrap_or_default();
        Ok(self.object(set.object.unwrap_or(0), &object))
    }

    /// `nft_dynset_eval`
    pub(super) fn dynset(&mut self, expression: &'a Expression) -> Result<Verdict> {
        let Expression::Dynset { set: name, operation, key: from, data, negated, expressions } = expression else {
            return Ok(Verdict::Continue);
        };
        let (of, set) = self.set(name)?;
        let Ok(key) = self.registers.load(*from, set.key_bytes as usize).known().map(<[u8]>::to_vec) else {
            // Whatever it adds is not found later by any key that is known.
            return Ok(if *negated { Verdict::Break } else { Verdict::Continue });
        };
        if *operation == Dynset::Delete {
            self.changed.push((of, key, None));
            return Ok(Verdict::Continue);
        }
        let known = match self.find(&of, set, *from)? {
            Looked::Element(element) => Some(element),
            Looked::Nothing | Looked::Unknown(_) => None,
        };
        if let Some(element) = known {
            let verdict = self.attached(&element)?;
            return Ok(if *negated { Verdict::Break } else { verdict });
        }
        let value = data.map(|data| self.registers.load(data, set.data_bytes as usize));
        let element = Element {
            key: key.clone(),
            last: None,
            ends_range: false,
            data: value.and_then(|value| value.known().ok()).map(|value| Data::Value(value.to_vec())),
            object: None,
            expressions: expressions.clone(),
            comment: None,
        };
        let element = Arc::new(element);
        if set.may_be_full() {
            self.add_gap(format!(
                "whether set {name} has room for one more element is not evaluated: where it is full, the rule ends"
            ));
        }
        self.changed.push((of, key, Some(element.clone())));
        let verdict = self.attached(&element)?;
        Ok(if *negated { Verdict::Break } else { verdict })
    }

    fn set(&mut self, name: &Arc<str>) -> Result<(SetKey, &'a Set)> {
        let Some(ChainKey { family, table, .. }) = &self.chain else {
            return Err(self.unknown("a lookup outside of any chain"));
        };
        let key = SetKey { family: *family, table: table.clone(), set: name.clone() };
        let state = self.state;
        match state.set(&key)? {
            Some(set) => Ok((key, set)),
            None => Err(self.unknown(format!("set {name} is not there"))),
        }
    }

    fn find(&mut self, of: &SetKey, set: &'a Set, from: u32) -> Result<Looked> {
        let loaded = self.registers.load(from, set.key_bytes as usize);
        let key = match loaded.known() {
            Ok(key) => key,
            Err(reason) => return Ok(Looked::Unknown(self.words(reason).to_string())),
        };
        let changed = self.changed.iter().rev().find(|(set, changed, _)| set == of && changed == key);
        if let Some((.., element)) = changed {
            return Ok(element.clone().map_or(Looked::Nothing, Looked::Element));
        }
        Ok(match set.find(key).map_err(|_| Key::Element { set: of.clone(), key: key.to_vec() })? {
            Some(element) => Looked::Element(element.clone()),
            None => Looked::Nothing,
        })
    }

    /// Executes what is attached to an element.
    fn attached(&mut self, element: &Element) -> Result<Verdict> {
        for expression in &element.expressions {
            let verdict = match expression {
                Expression::Counter { .. } | Expression::Last => Verdict::Continue,
                // It decides by its own state only, so it may outlive the run's borrow of the ruleset.
                Expression::Limit { .. } | Expression::Quota { .. } | Expression::Connlimit { .. } => {
                    self.stateful(expression, &format!("element {}", hex(&element.key)))
                }
                other => return Err(self.unknown(format!("an element has {other:?}"))),
            };
            if verdict != Verdict::Continue {
                return Ok(verdict);
            }
        }
        Ok(Verdict::Continue)
    }

    fn note(&mut self, set: &Arc<str>, element: &Element) {
        self.found.push(FoundElement { set: set.clone(), key: element.key.clone(), comment: element.comment.clone() });
    }
}

/// The element for all keys that have none.
fn catch_all<'a>(of: &SetKey, set: &'a Set) -> std::result::Result<Option<&'a Arc<Element>>, Key> {
    set.catch_all().map_err(|_| Key::CatchAll { set: of.clone() })
}
