//! Sets and maps: elements read one by one as lookups ask for them, or all at once.

use std::collections::HashMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::expression::{Data, Expression};
use super::state::Table;

/// `enum nft_set_flags`
pub const INTERVAL: u32 = 0x4;
pub const MAP: u32 = 0x8;
pub const CONCATENATED: u32 = 0x80;

/// Elements that a burst of new clients may add between the reading and the packet. Sets that a rule adds to and that are declared
/// without a size take 65535 (`nft_dynset_init`, Linux 6.18), which is far from it.
const FEW: u32 = 1024;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Set {
    /// Bits of `enum nft_set_flags`.
    pub flags: u32,
    /// Width of a key in registers, in bytes.
    pub key_bytes: u32,
    /// Width of a value; 0 for sets and for maps of verdicts.
    pub data_bytes: u32,
    /// `NFT_OBJECT_*` for maps of objects.
    pub object: Option<u32>,
    /// Widths of the fields of a concatenation, in bytes; each starts at a multiple of four.
    pub fields: Vec<u32>,
    /// Elements that it takes (`NFTA_SET_DESC_SIZE`); none where it has no limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size: Option<u32>,
    /// Elements that it had when it was read (`NFTA_SET_COUNT`); none of kernels that do not tell it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub count: Option<u32>,
    pub elements: Elements,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Elements {
    /// What single lookups found. The kernel itself answered which element a key leads to, so ranges need no care here. The
    /// element for all other keys is kept by the empty key.
    Asked(Table<Vec<u8>, Option<Arc<Element>>>),
    Whole(Index),
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Element {
    /// Empty for the one for all other keys.
    pub key: Vec<u8>,
    /// The last key, where the element is a range of a concatenation.
    pub last: Option<Vec<u8>>,
    /// It is no element but the first key after a range (`NFT_SET_ELEM_INTERVAL_END`).
    pub ends_range: bool,
    pub data: Option<Data>,
    /// Of a map of objects.
    pub object: Option<String>,
    /// Executed when a lookup finds the element.
    pub expressions: Vec<Expression>,
    pub comment: Option<Arc<str>>,
}

/// All elements, in a form that finds one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Index {
    exact: Table<Vec<u8>, Arc<Element>>,
    /// By first key.
    ranges: Vec<Range>,
    /// Ranges in several fields, which have no order.
    boxes: Vec<Arc<Element>>,
    catch_all: Option<Arc<Element>>,
}

/// An element from its own key up to the first key behind it; without end, to the largest key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Range {
    end: Option<Vec<u8>>,
    element: Arc<Element>,
}

/// The element has not been read.
#[derive(Debug)]
pub(super) struct NotRead;

impl Elements {
    /// Nothing read yet.
    pub fn unread() -> Self {
        Self::Asked(Table(HashMap::new()))
    }
}

impl Index {
    /// From all elements as the kernel lists them, for a set with these flags. The element for all other keys comes apart.
    pub fn new(flags: u32, elements: Vec<Element>, catch_all: Option<Element>) -> Self {
        let mut index =
            Self { exact: Table::default(), ranges: Vec::new(), boxes: Vec::new(), catch_all: catch_all.map(Arc::new) };
        if flags & INTERVAL == 0 {
            index.exact.0 = elements.into_iter().map(|element| (element.key.clone(), Arc::new(element))).collect();
        } else if flags & CONCATENATED != 0 {
            index.boxes = elements.into_iter().map(Arc::new).collect();
        } else {
            index.ranges = ranges(elements);
        }
        index
    }

    fn find(&self, key: &[u8], fields: &[u32]) -> Option<&Arc<Element>> {
        if let Some(element) = self.exact.0.get(key) {
            return Some(element);
        }
        let after = self.ranges.partition_point(|range| range.element.key.as_slice() <= key);
        if let Some(range) = after.checked_sub(1).and_then(|at| self.ranges.get(at))
            && range.end.as_ref().is_none_or(|end| key < end.as_slice())
        {
            return Some(&range.element);
        }
        self.boxes.iter().find(|element| is_inside(key, element, fields))
    }
}

/// The kernel keeps a range as two elements: its first key, and the first key behind it.
fn ranges(mut elements: Vec<Element>) -> Vec<Range> {
    // An end before a start of the same key: ranges may touch.
    elements.sort_by(|a, b| a.key.cmp(&b.key).then(b.ends_range.cmp(&a.ends_range)));
    let mut ranges: Vec<Range> = Vec::new();
    for element in elements {
        if let Some(Range { end: end @ None, .. }) = ranges.last_mut() {
            *end = Some(element.key.clone());
        }
        if !element.ends_range {
            ranges.push(Range { end: None, element: Arc::new(element) });
        }
    }
    ranges
}

/// Whether each field of `key` is within its range, as `nft_set_pipapo` compares them.
fn is_inside(key: &[u8], element: &Element, fields: &[u32]) -> bool {
    let last = element.last.as_ref().unwrap_or(&element.key);
    let mut at = 0;
    fields.iter().all(|bytes| {
        let range = at..at + *bytes as usize;
        at = range.end.next_multiple_of(4);
        match (key.get(range.clone()), element.key.get(range.clone()), last.get(range)) {
            (Some(key), Some(first), Some(last)) => first <= key && key <= last,
            _ => false,
        }
    })
}

impl Set {
    /// Whether few elements keep it from being full, as far as that is known (`nft_dynset_new` adds none to a set of its size). A
    /// large one of which the kernel tells no count is taken to have room.
    pub(super) fn may_be_full(&self) -> bool {
        self.size.is_some_and(|size| size.saturating_sub(self.count.unwrap_or(0)) <= FEW)
    }

    pub(super) fn find(&self, key: &[u8]) -> Result<Option<&Arc<Element>>, NotRead> {
        match &self.elements {
            Elements::Asked(found) => found.0.get(key).map(Option::as_ref).ok_or(NotRead),
            Elements::Whole(index) => Ok(index.find(key, &self.fields)),
        }
    }

    pub(super) fn catch_all(&self) -> Result<Option<&Arc<Element>>, NotRead> {
        match &self.elements {
            Elements::Asked(found) => found.0.get(&[][..]).map(Option::as_ref).ok_or(NotRead),
            Elements::Whole(index) => Ok(index.catch_all.as_ref()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn element(key: &[u8], last: Option<&[u8]>, ends_range: bool) -> Element {
        Element {
            key: key.to_vec(),
            last: last.map(<[u8]>::to_vec),
            ends_range,
            data: None,
            object: None,
            expressions: Vec::new(),
            comment: None,
        }
    }

    fn set(flags: u32, fields: &[u32], elements: Vec<Element>) -> Set {
        Set {
            flags,
            key_bytes: 8,
            data_bytes: 0,
            object: None,
            fields: fields.to_vec(),
            size: None,
            count: None,
            elements: Elements::Whole(Index::new(flags, elements, None)),
        }
    }

    fn has(set: &Set, key: &[u8]) -> bool {
        set.find(key).unwrap().is_some()
    }

    #[test]
    fn ranges_end_before_the_key_behind_them() {
        let bounds = vec![
            element(&[0, 0], None, true),
            element(&[10, 0], None, false),
            element(&[20, 0], None, true),
            element(&[20, 0], None, false),
            element(&[30, 0], None, true),
            element(&[200, 0], None, false),
        ];
        let set = set(INTERVAL, &[], bounds);
        for (key, inside) in [([9, 255], false), ([10, 0], true), ([19, 255], true), ([20, 0], true), ([30, 0], false)]
        {
            assert_eq!(has(&set, &key), inside, "{key:?}");
        }
        assert!(has(&set, &[255, 255]));
    }

    #[test]
    fn a_range_of_fields_holds_when_each_field_does() {
        let boxes = vec![element(&[10, 0, 0, 0, 0, 80, 0, 0], Some(&[10, 255, 0, 0, 0, 90, 0, 0]), false)];
        let set = set(INTERVAL | CONCATENATED, &[2, 2], boxes);
        assert!(has(&set, &[10, 7, 0, 0, 0, 85, 0, 0]));
        assert!(!has(&set, &[10, 7, 0, 0, 0, 91, 0, 0]));
        assert!(!has(&set, &[11, 7, 0, 0, 0, 85, 0, 0]));
    }

    #[test]
    fn an_element_that_was_not_asked_for_is_not_absent() {
        let mut set = set(0, &[], Vec::new());
        assert!(!has(&set, &[1]));
        set.elements = Elements::unread();
        assert!(set.find(&[1]).is_err());
    }
}
