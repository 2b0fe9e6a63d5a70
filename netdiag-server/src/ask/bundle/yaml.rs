//! YAML streams as kubectl writes them, cut into documents and items that keep their line in the file. Pure.

use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::Value;

use crate::evidence::parse;

/// One object and the line of the file where it starts, from 1.
#[derive(Debug, PartialEq)]
pub(super) struct Item {
    pub line: usize,
    pub value: Value,
}

/// A document that is not YAML.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Broken {
    pub line: usize,
    pub why: String,
}

/// What a file of objects holds.
#[derive(Debug, Default)]
pub(super) struct Objects {
    pub items: Vec<Item>,
    /// Kinds of the typed lists, which may be empty: `Pod` for a `PodList`.
    pub listed: Vec<String>,
    pub broken: Vec<Broken>,
}

impl Objects {
    /// Takes one document apart. `lines` holds the line of each item of a list, where known.
    pub fn add(&mut self, value: Value, first_line: usize, lines: &[usize]) {
        let kind = value.get("kind").and_then(Value::as_str).unwrap_or_default();
        self.listed.extend(kind.strip_suffix("List").filter(|kind| !kind.is_empty()).map(str::to_owned));
        for (index, value) in parse::items(value).into_iter().enumerate() {
            let line = first_line + lines.get(index).map_or(0, |line| line - 1);
            self.items.push(Item { line, value });
        }
    }
}

/// All objects of a stream. A broken document costs itself alone.
pub(super) fn objects(text: &str) -> Objects {
    let mut objects = Objects::default();
    for (first_line, document) in documents(text) {
        match parse_document(document) {
            Ok(Value::Null) => {}
            Ok(value) => {
                let lines = if value.get("items").is_some() { item_lines(document) } else { Vec::new() };
                objects.add(value, first_line, &lines);
            }
            Err(error) => {
                let line = error.location().map_or(1, |at| usize::try_from(at.line()).unwrap_or(1));
                let why = complaint(&error.to_string());
                objects.broken.push(Broken { line: first_line + line.max(1) - 1, why });
            }
        }
    }
    objects
}

/// The parser's first line without its place: the others repeat the source, and its lines count from the document's start.
fn complaint(message: &str) -> String {
    let first = message.lines().next().unwrap_or_default();
    first.split_once(" at line ").map_or(first, |(what, _)| what).to_owned()
}

/// The documents with the line each starts at. `---` at the start of a line always separates: inside a block scalar every
/// line is indented, and quoted scalars may not hold it (YAML 1.2.2, 9.1.2).
fn documents(text: &str) -> Vec<(usize, &str)> {
    let mut documents = Vec::new();
    let (mut start, mut start_line, mut at) = (0, 1, 0);
    for (index, line) in text.split_inclusive('\n').enumerate() {
        let next = at + line.len();
        if line.trim_end() == "---" || line.starts_with("--- ") {
            documents.push((start_line, &text[start..at]));
            (start, start_line) = (next, index + 2);
        }
        at = next;
    }
    documents.push((start_line, &text[start..]));
    documents.retain(|(_, document)| !document.trim().is_empty());
    documents
}

fn parse_document(document: &str) -> Result<Value, serde_saphyr::Error> {
    serde_saphyr::from_str_with_options(document, options(document))
}

/// The line of each item of a list, from 1 within the document. Read only to say where something is.
fn item_lines(document: &str) -> Vec<usize> {
    #[derive(Deserialize)]
    struct List {
        #[serde(default)]
        items: Vec<serde_saphyr::Spanned<IgnoredAny>>,
    }
    let list: Result<List, _> = serde_saphyr::from_str_with_options(document, options(document));
    let items = list.map(|list| list.items).unwrap_or_default();
    items.iter().map(|item| usize::try_from(item.referenced.line()).unwrap_or(1).max(1)).collect()
}

/// The parser's default limits suit configuration files. A dump of a cluster is larger: its size bounds the work, since
/// kubectl writes no aliases and we accept none.
fn options(document: &str) -> serde_saphyr::Options {
    let events = document.len().max(1_000);
    let mut options = serde_saphyr::Options::default();
    options.strict_booleans = true;
    options.with_snippet = false;
    if let Some(budget) = options.budget.as_mut() {
        budget.max_events = events;
        budget.max_nodes = events;
        budget.max_total_scalar_bytes = events;
        budget.max_aliases = 0;
    }
    options
}

#[cfg(test)]
mod tests {
    use super::*;

    const TWO: &str = "---\nkind: Node\nmetadata:\n  name: n1\n---\n\nkind: Node\nmetadata: {name: n2}\n";

    #[test]
    fn documents_keep_their_lines() {
        let Objects { items: found, broken, .. } = objects(TWO);
        assert!(broken.is_empty(), "{broken:?}");
        assert_eq!(found.iter().map(|item| item.line).collect::<Vec<_>>(), [2, 6]);
        assert_eq!(found[1].value["metadata"]["name"], "n2");
    }

    #[test]
    fn items_of_a_list_keep_their_lines_and_get_its_kind() {
        let text = "apiVersion: v1\nitems:\n- metadata:\n    name: a\n- metadata:\n    name: b\nkind: PodList\n";
        let Objects { items: found, broken, .. } = objects(text);
        assert!(broken.is_empty(), "{broken:?}");
        assert_eq!(found.iter().map(|item| item.line).collect::<Vec<_>>(), [3, 5]);
        assert_eq!(found[0].value["kind"], "Pod");
    }

    #[test]
    fn a_broken_document_costs_itself_and_names_its_line() {
        let Objects { items: found, broken, .. } =
            objects("kind: Node\nmetadata: {name: n1}\n---\nkind: Node\n  metadata: [\n---\nkind: Pod\n");
        assert_eq!(found.len(), 2);
        assert_eq!(broken.len(), 1);
        assert!((4..=6).contains(&broken[0].line), "{broken:?}");
        assert!(!broken[0].why.is_empty() && !broken[0].why.contains('\n'));
    }

    #[test]
    fn words_that_look_like_booleans_stay_words() {
        let Objects { items: found, .. } = objects("kind: ConfigMap\ndata: {a: on, b: \"true\", c: 'yes', d: y}\n");
        assert_eq!(found[0].value["data"], serde_json::json!({"a": "on", "b": "true", "c": "yes", "d": "y"}));
    }
}
