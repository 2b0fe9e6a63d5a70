//! Sets and maps of nf_tables, and their elements as intervals.

use netdiag_common::observation::rules::Verdict;

use super::attribute::{self, Attributes};
use super::expression::Data;
use super::field::Interval;

const ANONYMOUS: u32 = 0x1;
const INTERVAL: u32 = 0x4;
const CONCATENATED: u32 = 0x80;

/// Registers hold no more (`NFT_REG32_15`).
const MAX_KEY_BYTES: u32 = 64;

const ELEMENT_ENDS_INTERVAL: u32 = 0x1;
const ELEMENT_IS_CATCH_ALL: u32 = 0x2;

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Set {
    pub family: u8,
    pub table: String,
    pub name: String,
    pub flags: u32,
    /// Width of a key in registers.
    pub key_bytes: usize,
    pub elements: Vec<Element>,
    /// False when there were more elements than were kept.
    pub complete: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Element {
    /// Empty for the catch-all element.
    pub key: Box<[u8]>,
    /// The last key of the element, where an element is a range of concatenated fields.
    pub last: Option<Box<[u8]>>,
    pub flags: u32,
    pub value: Value,
    pub comment: Option<String>,
    /// The element has a condition of its own (`limit`, `quota`), so that finding it is not enough.
    pub conditional: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Value {
    None,
    Bytes(Box<[u8]>),
    Verdict(Verdict),
}

/// One element as ranges of register bytes.
pub(super) struct Entry<'a> {
    /// None for the catch-all element.
    pub keys: Option<Interval>,
    pub value: &'a Value,
}

impl Set {
    /// From `NFT_MSG_NEWSET`.
    pub(super) fn parse(family: u8, body: &[u8]) -> Option<Self> {
        let attributes = Attributes(body);
        let (table, name, flags, key_length) = (1, 2, 3, 5);
        Some(Self {
            family,
            table: attributes.text(table)?.into_owned(),
            name: attributes.text(name)?.into_owned(),
            flags: attributes.u32(flags).unwrap_or(0),
            key_bytes: attributes.u32(key_length).unwrap_or(0).min(MAX_KEY_BYTES) as usize,
            elements: Vec::new(),
            complete: true,
        })
    }

    pub(super) fn is_anonymous(&self) -> bool {
        self.flags & ANONYMOUS != 0
    }

    /// Elements as intervals; none when they cannot be given exactly.
    pub(super) fn entries(&self) -> Option<Vec<Entry<'_>>> {
        if !self.complete || self.elements.iter().any(|element| element.conditional) {
            return None;
        }
        let (catch_all, mut plain): (Vec<&Element>, Vec<&Element>) =
            self.elements.iter().partition(|element| element.flags & ELEMENT_IS_CATCH_ALL != 0);
        // Hash tables have no order of their own; readings of the same rules should be equal.
        plain.sort_by(|a, b| a.key.cmp(&b.key));
        let mut entries = if self.flags & INTERVAL != 0 && self.flags & CONCATENATED == 0 {
            intervals(plain)?
        } else {
            let last = |element: &Element| element.last.as_ref().unwrap_or(&element.key).to_vec();
            let keys = |element: &Element| Interval { first: element.key.to_vec(), last: last(element) };
            plain.into_iter().map(|element| Entry { keys: Some(keys(element)), value: &element.value }).collect()
        };
        entries.extend(catch_all.iter().map(|element| Entry { keys: None, value: &element.value }));
        Some(entries)
    }
}

/// Sets of ranges (`nft_set_rbtree`) keep each range as two elements: its start, and the first key after it.
fn intervals(mut elements: Vec<&Element>) -> Option<Vec<Entry<'_>>> {
    let ends = |element: &Element| element.flags & ELEMENT_ENDS_INTERVAL != 0;
    // An end before a start of the same key: ranges may touch.
    elements.sort_by(|a, b| a.key.cmp(&b.key).then(ends(b).cmp(&ends(a))));
    let mut entries = Vec::new();
    let mut open: Option<&Element> = None;
    for element in elements {
        if let Some(start) = open.take() {
            let last = predecessor(&element.key)?;
            entries.push(Entry { keys: Some(Interval { first: start.key.to_vec(), last }), value: &start.value });
        }
        if !ends(element) {
            open = Some(element);
        }
    }
    if let Some(start) = open {
        let last = vec![0xff; start.key.len()];
        entries.push(Entry { keys: Some(Interval { first: start.key.to_vec(), last }), value: &start.value });
    }
    Some(entries)
}

/// The key just below this one, as a number in network byte order.
fn predecessor(key: &[u8]) -> Option<Vec<u8>> {
    let mut key = key.to_vec();
    for byte in key.iter_mut().rev() {
        let (lower, borrow) = byte.overflowing_sub(1);
        *byte = lower;
        if !borrow {
            return Some(key);
        }
    }
    None
}

impl Element {
    /// From one `NFTA_LIST_ELEM` of `NFT_MSG_NEWSETELEM`.
    pub(super) fn parse(body: &[u8]) -> Option<Self> {
        let attributes = Attributes(body);
        let (key, data, flags, userdata, expression, key_end, expressions) = (1, 2, 3, 6, 7, 10, 11);
        let flags = attributes.u32(flags).unwrap_or(0);
        let bytes = |kind| match Data::parse(attributes.find(kind)?)? {
            Data::Value(value) => Some(Box::from(value)),
            Data::Verdict(_) => None,
        };
        let value = match attributes.find(data).and_then(Data::parse) {
            None => Value::None,
            Some(Data::Value(value)) => Value::Bytes(value.into()),
            Some(Data::Verdict(verdict)) => Value::Verdict(verdict),
        };
        let catch_all = flags & ELEMENT_IS_CATCH_ALL != 0;
        Some(Self {
            key: if catch_all { Box::default() } else { bytes(key)? },
            last: bytes(key_end),
            flags,
            value,
            comment: attributes.find(userdata).and_then(attribute::user_comment),
            conditional: attributes.find(expression).is_some_and(is_condition)
                || attributes.find(expressions).is_some_and(|list| Attributes(list).any(|(_, e)| is_condition(e))),
        })
    }
}

/// Whether an expression attached to an element may decide against the packet.
fn is_condition(expression: &[u8]) -> bool {
    let name = 1;
    !matches!(Attributes(expression).text(name).as_deref(), Some("counter" | "last"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn element(key: u8, flags: u32) -> Element {
        let key = Box::new([0, key]);
        Element { key, last: None, flags, value: Value::None, comment: None, conditional: false }
    }

    fn set(flags: u32, elements: Vec<Element>) -> Set {
        Set { family: 2, table: "t".into(), name: "s".into(), flags, key_bytes: 2, elements, complete: true }
    }

    fn ranges(elements: Vec<Element>) -> Vec<(Vec<u8>, Vec<u8>)> {
        let set = set(INTERVAL, elements);
        let entries = set.entries().unwrap();
        entries.into_iter().filter_map(|entry| entry.keys).map(|keys| (keys.first, keys.last)).collect()
    }

    #[test]
    fn touching_ranges_stay_apart_and_the_leading_end_means_nothing() {
        let found = ranges(vec![element(20, 0), element(0, 1), element(10, 0), element(20, 1), element(30, 1)]);
        assert_eq!(found, [(vec![0, 10], vec![0, 19]), (vec![0, 20], vec![0, 29])]);
    }

    #[test]
    fn a_range_without_end_reaches_the_largest_key() {
        assert_eq!(ranges(vec![element(200, 0)]), [(vec![0, 200], vec![255, 255])]);
    }

    #[test]
    fn an_element_with_a_limit_is_not_taken_for_membership() {
        let limited = Element { conditional: true, ..element(1, 0) };
        assert!(set(0, vec![limited]).entries().is_none());
    }
}
