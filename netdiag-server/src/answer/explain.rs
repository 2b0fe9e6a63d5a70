//! What a condition means, in text for people, as a value for tools, and as the catalogue page `docs/conditions.md`.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::build::title;
use super::page::{Page, Paint};
use crate::condition::{self, Condition, Read, Relation};
use crate::path::edit_distance;

/// One condition's words and metadata.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Explanation {
    pub code: String,
    pub title: String,
    pub severity: String,
    pub means: String,
    pub how_we_know: String,
    pub silent_when: String,
    pub what_to_do: String,
    /// Kinds of the API and topics of the agents that it looks at.
    pub reads: Vec<String>,
    /// Codes that look alike from outside.
    pub lookalikes: Vec<String>,
    /// Codes that it accounts for when it is found.
    pub explains: Vec<String>,
    pub sources: Vec<String>,
}

impl Explanation {
    pub fn of(condition: &Condition) -> Self {
        let owned = |list: &[&str]| list.iter().map(|&text| text.to_owned()).collect();
        Self {
            code: condition.code.to_owned(),
            title: title(condition.code),
            severity: condition.severity.name().to_owned(),
            means: condition.words.means.to_owned(),
            how_we_know: condition.words.how_we_know.to_owned(),
            silent_when: condition.words.silent_when.to_owned(),
            what_to_do: condition.words.what_to_do.to_owned(),
            reads: condition.reads.iter().map(|read| read_in_words(*read)).collect(),
            lookalikes: owned(condition.lookalikes),
            explains: condition.explains.iter().map(|e| format!("{} ({})", e.code, relation(e.relation))).collect(),
            sources: owned(condition.words.sources),
        }
    }

    pub fn text(&self, paint: Paint) -> String {
        let mut page = Page::new(paint);
        page.line("condition", &format!("{} ({})", self.code, self.severity));
        page.line("means", &self.means);
        page.line("known by", &self.how_we_know);
        page.line("silent when", &self.silent_when);
        page.line("what to do", &self.what_to_do);
        page.line("reads", &self.reads.join(", "));
        if !self.lookalikes.is_empty() {
            page.line("looks like", &self.lookalikes.join(", "));
        }
        if !self.explains.is_empty() {
            page.line("explains", &self.explains.join(", "));
        }
        for (index, source) in self.sources.iter().enumerate() {
            page.line(if index == 0 { "sources" } else { "" }, source);
        }
        page.finish()
    }
}

/// There is no condition with that code. Says which come close.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("there is no condition {code:?}; there is {}", near.join(", "))]
pub struct UnknownCode {
    pub code: String,
    pub near: Vec<String>,
}

pub fn explain(code: &str) -> Result<Explanation, UnknownCode> {
    condition::find(code).map(Explanation::of).ok_or_else(|| {
        let mut near: Vec<&str> = condition::ALL.iter().map(|condition| condition.code).collect();
        near.sort_by_key(|other| edit_distance(other, code));
        UnknownCode { code: code.to_owned(), near: near.into_iter().take(3).map(str::to_owned).collect() }
    })
}

/// All conditions, in the order of the path a packet takes.
pub fn all() -> Vec<Explanation> {
    condition::ALL.iter().map(|condition| Explanation::of(condition)).collect()
}

/// `docs/conditions.md`.
pub fn catalogue() -> String {
    let mut out = String::from(
        "# Conditions\n\nOne cause each, in the order of the path a packet takes. Generated from `src/condition/*.rs`; \
         a test keeps it current.\n\n| code | severity | says |\n|---|---|---|\n",
    );
    let all = all();
    for entry in &all {
        out.push_str(&format!("| [`{0}`](#{0}) | {1} | {2} |\n", entry.code, entry.severity, entry.means));
    }
    for entry in &all {
        out.push_str(&format!("\n## {}\n\n{}.\n\n", entry.code, sentence(&entry.means)));
        out.push_str(&format!("- **How we know**: {}.\n", entry.how_we_know));
        out.push_str(&format!("- **Silent when**: {}.\n", entry.silent_when));
        out.push_str(&format!("- **What to do**: {}.\n", entry.what_to_do));
        out.push_str(&format!("- **Reads**: {}.\n", entry.reads.join(", ")));
        for (label, list) in [("Looks like", &entry.lookalikes), ("Explains", &entry.explains)] {
            if !list.is_empty() {
                let codes: Vec<String> = list.iter().map(|code| in_code(code)).collect();
                out.push_str(&format!("- **{label}**: {}.\n", codes.join(", ")));
            }
        }
        let sources: Vec<String> = entry.sources.iter().map(|source| linked(source)).collect();
        out.push_str(&format!("- **Sources**: {}.\n", sources.join(", ")));
    }
    out
}

fn read_in_words(read: Read) -> String {
    match read {
        Read::Kind(kind) => kind.name().to_owned(),
        Read::Topic(topic) => format!("{topic} of the nodes"),
    }
}

fn relation(relation: Relation) -> &'static str {
    match relation {
        Relation::SameService => "same Service",
        Relation::SameNode => "same node",
        Relation::SamePolicy => "same NetworkPolicy",
        Relation::SamePath => "same path",
    }
}

fn sentence(text: &str) -> String {
    let mut characters = text.chars();
    characters.next().map(|first| first.to_uppercase().chain(characters).collect()).unwrap_or_default()
}

/// `code (same path)` with the code alone in code style.
fn in_code(text: &str) -> String {
    match text.split_once(' ') {
        Some((code, rest)) => format!("`{code}` {rest}"),
        None => format!("`{text}`"),
    }
}

fn linked(source: &str) -> String {
    if source.starts_with("https://") { format!("<{source}>") } else { source.to_owned() }
}
