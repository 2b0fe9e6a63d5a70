//! What search lists cost: queries for names that nobody meant, made of a short name and each suffix in turn.

use jiff::Timestamp;
use netdiag_common::observation::dns::{Dns, DnsNames};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Column, Names, Place, Row, Selection};

/// The names of one namespace together, as far as they were read.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct DnsSearchRow {
    #[serde(flatten)]
    pub place: Place,
    /// Queries whose names were read.
    pub read: u64,
    /// Of these, answered NXDOMAIN and followed by the next name that a search list makes of the same word.
    pub search_tries: u64,
    /// Of these, names with a whole cluster name in front of the suffix: an absolute name without its last dot.
    pub doubled_suffix: u64,
    /// One of the names that a search list made.
    pub example: String,
}

pub(super) fn rows(node: &str, seen: &Dns, names: &Names, selection: &Selection) -> Vec<DnsSearchRow> {
    let row = |read: &DnsNames| {
        let example = read.search_example.clone().unwrap_or_default();
        let meant = read.search_tries > 0 && selection.takes(&read.netns, &[]) && selection.has_reason(&[&example]);
        meant.then(|| DnsSearchRow {
            place: names.place(node, &read.netns),
            read: read.read,
            search_tries: read.search_tries,
            doubled_suffix: read.doubled_suffix,
            example,
        })
    };
    seen.reading.iter().filter_map(row).collect()
}

impl Row for DnsSearchRow {
    const COLUMNS: &'static [Column] = &[
        Column::Text("where"),
        Column::Text("node"),
        Column::Number("names read"),
        Column::Number("by search"),
        Column::Number("doubled"),
        Column::Text("such as"),
    ];

    fn rank(&self) -> (u64, u64) {
        (self.search_tries, self.read)
    }

    /// It is how resolvers with a search list work.
    fn is_trouble(&self) -> bool {
        false
    }

    fn cells(&self, _now: Timestamp) -> Vec<String> {
        vec![
            self.place.name.clone(),
            self.place.node.clone(),
            self.read.to_string(),
            self.search_tries.to_string(),
            self.doubled_suffix.to_string(),
            self.example.clone(),
        ]
    }
}
