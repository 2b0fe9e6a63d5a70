//! Objects by their names, and the names nearest to one that is not there.

use std::sync::Arc;

use super::ResolveError;
use crate::evidence::cluster::Kind;
use crate::evidence::object::Object;

pub(crate) fn exists<'c, T: Object>(
    kind: &'c Kind<T>,
    word: &'static str,
    namespace: &str,
    name: &str,
) -> Result<&'c Arc<T>, ResolveError> {
    if let Some(object) = kind.get(namespace, name) {
        return Ok(object);
    }
    let shown = if namespace.is_empty() { name.to_owned() } else { format!("{namespace}/{name}") };
    if let Some(gap) = kind.gap() {
        return Err(ResolveError::Unreadable { kind: word, name: shown, why: gap.why.clone() });
    }
    Err(ResolveError::Missing { kind: word, name: shown, near: near(kind, namespace, name) })
}

/// The same name in another namespace, then the closest names of the same namespace.
fn near<T: Object>(kind: &Kind<T>, namespace: &str, name: &str) -> Vec<String> {
    let mut all: Vec<(usize, &ObjectRefName)> = Vec::new();
    let names: Vec<ObjectRefName> = kind
        .iter()
        .map(|object| ObjectRefName { namespace: object.meta().namespace.clone(), name: object.meta().name.clone() })
        .collect();
    for candidate in &names {
        let elsewhere = usize::from(candidate.namespace != namespace);
        let distance = edit_distance(&candidate.name, name);
        // Half of the name may differ; beyond that a suggestion is noise, except for the neighbours in the namespace.
        if distance * 2 <= name.len().max(2) || elsewhere == 0 {
            all.push((distance * 2 + elsewhere, candidate));
        }
    }
    all.sort();
    all.into_iter().take(5).map(|(_, candidate)| candidate.words()).collect()
}

#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct ObjectRefName {
    namespace: String,
    name: String,
}

impl ObjectRefName {
    fn words(&self) -> String {
        if self.namespace.is_empty() { self.name.clone() } else { format!("{}/{}", self.namespace, self.name) }
    }
}

/// Levenshtein distance in characters.
pub fn edit_distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut previous: Vec<usize> = (0..=b.len()).collect();
    for (i, left) in a.chars().enumerate() {
        let mut current = vec![i + 1];
        for (j, right) in b.iter().enumerate() {
            let change = previous[j] + usize::from(left != *right);
            current.push(change.min(previous[j + 1] + 1).min(current[j] + 1));
        }
        previous = current;
    }
    previous[b.len()]
}
