//! What an answer says about rules that were taken not to be there: that it is about no packet of today, and what each of them does.

use std::collections::BTreeMap;

use netdiag_common::forwarding::RuleKey;
use netdiag_common::observation::fate::LeftOutRole;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::answer::page::Page;
use crate::evidence::Cluster;
use crate::trace::{Follow, Leg, Place};

/// The prediction is of what would be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct WhatIf {
    /// `predicted as if inet site fw rule 2 were not there; nothing was sent, and nothing was changed`
    pub said: String,
    /// One for each rule that was named.
    pub without: Vec<WithoutEntry>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct WithoutEntry {
    /// `inet site fw rule 2`
    pub rule: String,
    pub effect: EffectName,
    /// Where there is a rule of this name. Each namespace numbers its own rules: it need not be the same one.
    pub places: Vec<WithoutPlace>,
}

/// What leaving a rule out changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(inline)]
pub enum EffectName {
    /// The packet would meet it somewhere: with it, something else is decided there.
    Changes,
    /// It is there, and no packet on these ways meets it.
    Nothing,
    /// No namespace that was read has such a rule.
    NotThere,
    /// No namespace was read.
    NotRead,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct WithoutPlace {
    pub node: String,
    /// `pod shop/client`, or `node`.
    pub place: String,
    /// The packet would meet it there.
    pub met: bool,
    /// The rule in words; empty when they could not be read.
    pub text: String,
}

/// None when no rule was left out.
pub(super) fn of(followed: &Follow) -> Option<WhatIf> {
    if followed.without.is_empty() {
        return None;
    }
    let legs = || followed.traces.iter().flat_map(|trace| &trace.followed.ways).flat_map(|way| &way.legs);
    let without: Vec<WithoutEntry> =
        followed.without.iter().map(|rule| entry(&followed.cluster, rule, legs())).collect();
    let rules: Vec<&str> = without.iter().map(|entry| entry.rule.as_str()).collect();
    let said =
        format!("predicted as if {} were not there; nothing was sent, and nothing was changed", rules.join(" and "));
    Some(WhatIf { said, without })
}

fn entry<'l>(cluster: &Cluster, rule: &RuleKey, legs: impl Iterator<Item = &'l Leg>) -> WithoutEntry {
    let mut is_read = false;
    let mut places: BTreeMap<&Place, (bool, &str)> = BTreeMap::new();
    for leg in legs {
        let Some(left_out) = leg.fate.left_out.iter().find(|left_out| left_out.rule == *rule) else { continue };
        is_read = true;
        if left_out.role == LeftOutRole::Absent {
            continue;
        }
        let (met, text) = places.entry(&leg.place).or_default();
        *met |= left_out.role == LeftOutRole::Met;
        let words = leg.fate.rules.iter().find(|known| known.chain == rule.chain && known.handle == rule.handle);
        if let Some(words) = words {
            *text = &words.text;
        }
    }
    let effect = match () {
        () if !is_read => EffectName::NotRead,
        () if places.is_empty() => EffectName::NotThere,
        () if places.values().any(|(met, _)| *met) => EffectName::Changes,
        () => EffectName::Nothing,
    };
    let place = |(place, (met, text)): (&Place, (bool, &str))| WithoutPlace {
        node: place.node.clone(),
        place: super::place(cluster, place),
        met,
        text: text.to_owned(),
    };
    WithoutEntry { rule: rule.to_string(), effect, places: places.into_iter().map(place).collect() }
}

impl WhatIf {
    pub(super) fn lines(&self, page: &mut Page) {
        page.line("what if", &self.said);
        for (number, line) in self.without.iter().flat_map(WithoutEntry::words).enumerate() {
            page.line(if number == 0 { "without" } else { "" }, &line);
        }
    }
}

impl WithoutEntry {
    fn words(&self) -> Vec<String> {
        let Self { rule, effect, places } = self;
        match effect {
            EffectName::NotRead => vec![format!("{rule}: no namespace was read, so it is not known what it does")],
            EffectName::NotThere => {
                vec![format!("{rule}: there is none in the namespaces that were read, so this changes nothing")]
            }
            EffectName::Nothing | EffectName::Changes => {
                places.iter().map(|place| format!("{rule} {}", place.words())).collect()
            }
        }
    }
}

impl WithoutPlace {
    fn words(&self) -> String {
        let Self { node, place, met, text } = self;
        let does =
            if *met { "the packet would meet it" } else { "no packet on these ways meets it, so this changes nothing" };
        let text = if text.is_empty() { String::new() } else { format!(": {text}") };
        format!("on {node} ({place}), {does}{text}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::answer::page::Paint;

    fn entry(rule: &str, effect: EffectName, places: &[(&str, bool)]) -> WithoutEntry {
        let place = |(node, met): &(&str, bool)| WithoutPlace {
            node: (*node).to_owned(),
            place: "node".to_owned(),
            met: *met,
            text: "tcp dport 80 drop".to_owned(),
        };
        WithoutEntry { rule: rule.to_owned(), effect, places: places.iter().map(place).collect() }
    }

    #[test]
    fn of_each_rule_it_is_said_what_it_does_and_where() {
        let without = vec![
            entry("inet site fw rule 2", EffectName::Changes, &[("n1", true), ("n2", false)]),
            entry("inet site fw rule 3", EffectName::Nothing, &[("n1", false)]),
            entry("inet site fw rule 9", EffectName::NotThere, &[]),
            entry("ip t c rule 1", EffectName::NotRead, &[]),
        ];
        let mut page = Page::new(Paint::Plain);
        WhatIf { said: "predicted as if they were not there".to_owned(), without }.lines(&mut page);
        let text: Vec<String> =
            page.finish().lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect();
        let text = text.join(" ");
        for wanted in [
            "what if predicted as if they were not there",
            "without inet site fw rule 2 on n1 (node), the packet would meet it: tcp dport 80 drop",
            "inet site fw rule 2 on n2 (node), no packet on these ways meets it, so this changes nothing: tcp dport 80",
            "inet site fw rule 3 on n1 (node), no packet on these ways meets it",
            "inet site fw rule 9: there is none in the namespaces that were read, so this changes nothing",
            "ip t c rule 1: no namespace was read",
        ] {
            assert!(text.contains(wanted), "{wanted:?} is not in:\n{text}");
        }
    }
}
