//! What `netdiag observe -o json` says, and whether an event is in it: once, with the right names, and counted exactly.

use anyhow::Result;
use serde_json::Value;

use crate::cluster::Cluster;
use crate::e2e::asker::Asker;
use crate::install;

/// Asks as users do: through the server in the cluster.
pub(super) struct Observer<'a> {
    pub(super) cluster: &'a Cluster,
    pub(super) asker: &'a Asker,
}

/// A row that there must be, exactly once.
pub(super) struct Expected<'e> {
    /// `a refused connection`.
    pub(super) event: &'static str,
    /// Section of the answer: `tcp`, `dns_names`.
    pub(super) section: &'static str,
    /// What tells the row apart, by JSON pointer.
    pub(super) key: &'e [(&'static str, &'e str)],
    /// What the row must say, by JSON pointer.
    pub(super) says: &'e [(&'static str, Said<'e>)],
}

#[derive(Clone, Copy)]
pub(super) enum Said<'e> {
    Text(&'e str),
    Count(u64),
    AtLeast(u64),
}

impl Observer<'_> {
    pub(super) fn look(&self, arguments: &[&str]) -> Result<Value> {
        install::ask(&self.asker.program, self.cluster, &[&["observe", "--once"], arguments].concat())
    }
}

/// The rows of one section; none when it is not there.
pub(super) fn rows<'v>(look: &'v Value, section: &str) -> &'v [Value] {
    look[section]["rows"].as_array().map_or(&[], Vec::as_slice)
}

impl Expected<'_> {
    /// What is wrong with the answer; empty when nothing is.
    pub(super) fn missed(&self, look: &Value) -> Vec<String> {
        let has_key = |row: &&Value| self.key.iter().all(|(pointer, text)| text_at(row, pointer) == *text);
        let found: Vec<&Value> = rows(look, self.section).iter().filter(has_key).collect();
        let [row] = found.as_slice() else {
            return vec![format!("{}: {} rows with {:?} in {}", self.event, found.len(), self.key, self.section)];
        };
        let wrong = self.says.iter().filter(|(pointer, said)| !said.is_at(row, pointer));
        let told = |(pointer, said): &(&str, Said)| {
            let there = row.pointer(pointer).unwrap_or(&Value::Null);
            format!("{}: {pointer} is {there} instead of {}", self.event, said.words())
        };
        wrong.map(told).collect()
    }
}

impl Said<'_> {
    fn is_at(&self, row: &Value, pointer: &str) -> bool {
        match self {
            Self::Text(text) => text_at(row, pointer) == *text,
            Self::Count(count) => row.pointer(pointer).and_then(Value::as_u64) == Some(*count),
            Self::AtLeast(count) => row.pointer(pointer).and_then(Value::as_u64) >= Some(*count),
        }
    }

    fn words(&self) -> String {
        match self {
            Self::Text(text) => format!("{text:?}"),
            Self::Count(count) => count.to_string(),
            Self::AtLeast(count) => format!("at least {count}"),
        }
    }
}

fn text_at<'v>(row: &'v Value, pointer: &str) -> &'v str {
    row.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
}
