//! Reads `table.txt`: what is injected, and what must be seen.

use std::path::PathBuf;

/// Reasons and functions, any of which counts, in one of the three namespaces or in all (`*`).
#[derive(Debug, Clone)]
pub struct Signature {
    pub namespace: String,
    pub reasons: Vec<String>,
    pub functions: Vec<String>,
}

impl Signature {
    pub fn covers(&self, namespace: &str, reason: &str, function: &str) -> bool {
        let within = |wanted: &str, found: &str| wanted == "*" || wanted == found;
        within(&self.namespace, namespace)
            && self.reasons.iter().any(|wanted| within(wanted, reason))
            && self.functions.iter().any(|wanted| within(wanted, function))
    }
}

#[derive(Debug)]
pub enum Step {
    /// A shell command in a namespace.
    Shell { namespace: String, command: String },
    /// A verb of the test and its words.
    Act { namespace: String, words: Vec<String> },
}

#[derive(Debug)]
pub struct Entry {
    pub name: String,
    pub drop: Signature,
    pub also: Vec<Signature>,
    /// Netfilter hook and direction, as the observation spells them.
    pub hook: Option<(String, String)>,
    pub needs: Vec<PathBuf>,
    pub steps: Vec<Step>,
}

pub struct Table {
    /// Side traffic of every entry.
    pub common: Vec<Signature>,
    pub entries: Vec<Entry>,
}

pub fn parse(text: &str) -> Table {
    let mut table = Table { common: Vec::new(), entries: Vec::new() };
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
    for line in lines {
        if let Some(name) = line.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
            table.entries.push(Entry {
                name: name.to_owned(),
                drop: Signature { namespace: String::new(), reasons: Vec::new(), functions: Vec::new() },
                also: Vec::new(),
                hook: None,
                needs: Vec::new(),
                steps: Vec::new(),
            });
            continue;
        }
        if let Some(rest) = line.strip_prefix("common ") {
            table.common.push(signature(rest));
            continue;
        }
        let entry = table.entries.last_mut().expect("an entry's lines follow its name");
        let words = || line.split_whitespace().skip(1);
        match line.split_whitespace().next().expect("the line is not empty") {
            "drop" => entry.drop = signature(&line[5..]),
            "also" => entry.also.push(signature(&line[5..])),
            "hook" => entry.hook = words().next().map(str::to_owned).zip(words().nth(1).map(str::to_owned)),
            "needs" => entry.needs.extend(words().map(PathBuf::from)),
            first => entry.steps.push(step(first, line)),
        }
    }
    table
}

fn step(first: &str, line: &str) -> Step {
    let rest = line[first.len()..].trim();
    if let Some(namespace) = first.strip_suffix(':') {
        return Step::Shell { namespace: namespace.to_owned(), command: rest.to_owned() };
    }
    let namespace = first.strip_suffix('>').unwrap_or_else(|| panic!("no such line: {line}"));
    Step::Act { namespace: namespace.to_owned(), words: rest.split_whitespace().map(str::to_owned).collect() }
}

/// `NS: REASON ... @ FUNCTION ...`.
fn signature(text: &str) -> Signature {
    let (namespace, rest) = text.split_once(':').unwrap_or_else(|| panic!("no namespace: {text}"));
    let (reasons, functions) = rest.split_once('@').unwrap_or_else(|| panic!("no function: {text}"));
    let words = |text: &str| text.split_whitespace().map(str::to_owned).collect();
    Signature { namespace: namespace.trim().to_owned(), reasons: words(reasons), functions: words(functions) }
}

#[test]
fn the_table_is_complete() {
    let table = parse(include_str!("table.txt"));
    let mut pairs: Vec<(&str, &str)> =
        table.entries.iter().map(|entry| (entry.drop.reasons[0].as_str(), entry.drop.functions[0].as_str())).collect();
    pairs.sort_unstable();
    pairs.dedup();
    assert!(pairs.len() >= 54, "{} ways to drop a packet", pairs.len());
    for entry in &table.entries {
        assert!(["c", "r", "s"].contains(&entry.drop.namespace.as_str()), "{}", entry.name);
        assert!(!entry.steps.is_empty(), "{}", entry.name);
    }
}
