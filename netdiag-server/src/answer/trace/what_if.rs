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
    /// The packet would meet it somewhere, and end in another way there, or in one that is not known.
    Changes,
    /// It is there, and no packet on these ways meets it, or those that do end the same way.
    Nothing,
    /// No namespace that was read has such a rule.
    NotThere,
    /// No agent that was asked left it out.
    NotRead,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct WithoutPlace {
    pub node: String,
    /// `pod shop/client`, or `node`.
    pub place: String,
    /// The packet would meet it there.
    pub met: bool,
    /// With it, the packet would end in another way there, or in one that is not known.
    pub changes: bool,
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
    let mut most: Option<LeftOutRole> = None;
    let mut places: BTreeMap<&Place, (LeftOutRole, &str)> = BTreeMap::new();
    for leg in legs {
        let Some(left_out) = leg.fate.left_out.iter().find(|left_out| left_out.rule == *rule) else { continue };
        most = most.max(Some(left_out.role));
        if left_out.role == LeftOutRole::Absent {
            continue;
        }
        let (role, text) = places.entry(&leg.place).or_insert((left_out.role, ""));
        *role = left_out.role.max(*role);
        let words = leg.fate.rules.iter().find(|known| known.chain == rule.chain && known.handle == rule.handle);
        if let Some(words) = words {
            *text = &words.text;
        }
    }
    let place = |(place, (role, text)): (&Place, (LeftOutRole, &str))| {
        WithoutPlace::new(place.node.clone(), super::place(cluster, place), role, text)
    };
    let places = places.into_iter().map(place).collect();
    WithoutEntry { rule: rule.to_string(), effect: EffectName::of(most), places }
}

impl EffectName {
    /// By the most that the rule does in any namespace; none when no agent said.
    fn of(most: Option<LeftOutRole>) -> Self {
        match most {
            None => Self::NotRead,
            Some(LeftOutRole::Absent) => Self::NotThere,
            Some(LeftOutRole::NotMet | LeftOutRole::MetInVain) => Self::Nothing,
            Some(LeftOutRole::Met) => Self::Changes,
        }
    }
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
            EffectName::NotRead => vec![format!("{rule}: no agent left it out, so it is not known what it does")],
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
    fn new(node: String, place: String, role: LeftOutRole, text: &str) -> Self {
        let (met, changes) = match role {
            LeftOutRole::Absent | LeftOutRole::NotMet => (false, false),
            LeftOutRole::MetInVain => (true, false),
            LeftOutRole::Met => (true, true),
        };
        Self { node, place, met, changes, text: text.to_owned() }
    }

    fn words(&self) -> String {
        let Self { node, place, met, changes, text } = self;
        let does = match (*met, *changes) {
            (_, true) => "the packet would meet it",
            (true, false) => "the packet would meet it, and ends the same way",
            (false, false) => "no packet on these ways meets it, so this changes nothing",
        };
        let text = if text.is_empty() { String::new() } else { format!(": {text}") };
        format!("on {node} ({place}), {does}{text}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::answer::page::Paint;

    /// Each place is a node and what its agent says.
    fn entry(rule: &str, roles: &[(&str, LeftOutRole)]) -> WithoutEntry {
        let there = roles.iter().filter(|(_, role)| *role != LeftOutRole::Absent);
        let place = |(node, role): &(&str, LeftOutRole)| {
            WithoutPlace::new((*node).to_owned(), "node".to_owned(), *role, "tcp dport 80 drop")
        };
        let effect = EffectName::of(roles.iter().map(|(_, role)| *role).max());
        WithoutEntry { rule: rule.to_owned(), effect, places: there.map(place).collect() }
    }

    #[test]
    fn a_rule_that_is_met_in_vain_changes_nothing() {
        use LeftOutRole::{Absent, Met, MetInVain, NotMet};
        for (roles, effect) in [
            (&[("n1", Absent)][..], EffectName::NotThere),
            (&[], EffectName::NotRead),
            (&[("n1", NotMet), ("n2", Absent)], EffectName::Nothing),
            (&[("n1", MetInVain), ("n2", NotMet)], EffectName::Nothing),
            (&[("n1", Met), ("n2", MetInVain)], EffectName::Changes),
        ] {
            assert_eq!(entry("inet site fw rule 2", roles).effect, effect, "{roles:?}");
        }
        let in_vain = &entry("inet site fw rule 2", &[("n1", MetInVain)]).places[0];
        assert!(in_vain.met && !in_vain.changes, "{in_vain:?}");
    }

    #[test]
    fn of_each_rule_it_is_said_what_it_does_and_where() {
        let without = vec![
            entry("inet site fw rule 2", &[("n1", LeftOutRole::Met), ("n2", LeftOutRole::NotMet)]),
            entry("inet site fw rule 3", &[("n1", LeftOutRole::NotMet)]),
            entry("inet site fw rule 4", &[("n1", LeftOutRole::MetInVain)]),
            entry("inet site fw rule 9", &[("n1", LeftOutRole::Absent)]),
            entry("ip t c rule 1", &[]),
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
            "inet site fw rule 4 on n1 (node), the packet would meet it, and ends the same way: tcp dport 80 drop",
            "inet site fw rule 9: there is none in the namespaces that were read, so this changes nothing",
            "ip t c rule 1: no agent left it out, so it is not known what it does",
        ] {
            assert!(text.contains(wanted), "{wanted:?} is not in:\n{text}");
        }
    }
}
