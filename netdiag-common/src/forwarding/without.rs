//! Rules that a question takes not to be there: what would become of the packet if somebody removed them.
//!
//! Nothing else changes with them: sets that only they fill, and whether connections are tracked at all, stay as they were read.

use std::collections::BTreeSet;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::state::{ChainKey, Family, Rule};

/// One rule. Handles are given by each network namespace anew: the same key may be another rule in another one.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct RuleKey {
    pub chain: ChainKey,
    /// Of legacy iptables, the rule's number in its chain.
    pub handle: u64,
}

pub type Without = BTreeSet<RuleKey>;

/// Bytes of a table's or chain's name, without the zero at its end (`NFT_NAME_MAXLEN`, nf_tables.h).
const MAX_NAME: usize = 255;

/// Words of an answer around two names and a number.
const MAX_LENGTH: usize = 2 * MAX_NAME + 64;

/// The text of a rule that is not understood, and what is.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RuleKeyError {
    #[error(
        "{text:?} names no rule: use FAMILY TABLE CHAIN HANDLE as answers name rules, such as 'inet filter forward 7', \
         with family inet, ip, ip6, 'legacy iptables' or 'legacy ip6tables' (of the last two, the rule's number)"
    )]
    Form { text: String },
    #[error("rules of family {family} are not evaluated, so nothing can be said about the way without them")]
    NotEvaluated { family: Family },
    #[error("the name of a rule has {length} characters, which is more than any rule's")]
    TooLong { length: usize },
}

impl RuleKey {
    /// Whether the kernel can have a table and a chain of these names.
    pub fn is_possible(&self) -> bool {
        let is_name = |name: &str| (1..=MAX_NAME).contains(&name.len()) && !name.contains('\0');
        is_name(&self.chain.table) && is_name(&self.chain.chain)
    }
}

impl FromStr for RuleKey {
    type Err = RuleKeyError;

    fn from_str(text: &str) -> Result<Self, RuleKeyError> {
        if text.len() > MAX_LENGTH {
            return Err(RuleKeyError::TooLong { length: text.len() });
        }
        let bad = || RuleKeyError::Form { text: text.to_owned() };
        let words: Vec<&str> = text.split_whitespace().collect();
        let (family, names) = match words.as_slice() {
            ["legacy", "iptables", rest @ ..] => (Family::LegacyIp, rest),
            ["legacy", "ip6tables", rest @ ..] => (Family::LegacyIp6, rest),
            ["inet", rest @ ..] => (Family::Inet, rest),
            ["ip", rest @ ..] => (Family::Ip, rest),
            ["ip6", rest @ ..] => (Family::Ip6, rest),
            ["arp", ..] => return Err(RuleKeyError::NotEvaluated { family: Family::Arp }),
            ["bridge", ..] => return Err(RuleKeyError::NotEvaluated { family: Family::Bridge }),
            ["netdev", ..] => return Err(RuleKeyError::NotEvaluated { family: Family::Netdev }),
            _ => return Err(bad()),
        };
        // `netdiag trace` calls it rule, causes and `nft -a` call it handle.
        let ([table, chain, number] | [table, chain, "rule" | "handle", number]) = names else { return Err(bad()) };
        let handle = number.parse().ok().filter(|number: &u64| *number > 0).ok_or_else(bad)?;
        let key = Self { chain: ChainKey { family, table: (*table).into(), chain: (*chain).into() }, handle };
        if key.is_possible() { Ok(key) } else { Err(bad()) }
    }
}

impl std::fmt::Display for RuleKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} rule {}", self.chain, self.handle)
    }
}

/// Which rules of one chain are taken not to be there.
#[derive(Debug, Clone, Default)]
pub(super) struct PassedOver(Vec<u64>);

impl PassedOver {
    pub(super) fn of(without: &Without, chain: &ChainKey) -> Self {
        Self(without.iter().filter(|rule| rule.chain == *chain).map(|rule| rule.handle).collect())
    }

    pub(super) fn has(&self, rule: &Rule) -> bool {
        self.0.contains(&rule.handle)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_are_read_as_answers_name_them() {
        for (text, shown) in [
            ("inet site fw 2", "inet site fw rule 2"),
            ("inet site fw rule 2", "inet site fw rule 2"),
            (" ip6  t c handle 17 ", "ip6 t c rule 17"),
            ("ip t rule 3", "ip t rule rule 3"),
            ("legacy iptables filter FORWARD 1", "legacy iptables filter FORWARD rule 1"),
            ("legacy ip6tables nat KUBE-SERVICES rule 4", "legacy ip6tables nat KUBE-SERVICES rule 4"),
        ] {
            let key: RuleKey = text.parse().expect(text);
            assert_eq!(key.to_string(), shown);
            assert_eq!(shown.parse::<RuleKey>(), Ok(key));
        }
    }

    #[test]
    fn what_names_no_rule_is_told_the_form() {
        for text in [
            "",
            "fw 2",
            "inet site fw",
            "inet site fw two",
            "inet site fw 0",
            "inet site fw -1",
            "inet site fw rules 2",
            "inet site fw rule 2 3",
            "iptables filter FORWARD 1",
            "filter FORWARD 1",
        ] {
            let error = text.parse::<RuleKey>().expect_err(text).to_string();
            assert!(error.contains("use FAMILY TABLE CHAIN HANDLE"), "{error}");
        }
        let long = format!("inet {} c 1", "t".repeat(MAX_NAME + 1));
        assert!(matches!(long.parse::<RuleKey>(), Err(RuleKeyError::Form { .. })));
        let longer = "x".repeat(MAX_LENGTH + 1);
        assert_eq!(longer.parse::<RuleKey>(), Err(RuleKeyError::TooLong { length: MAX_LENGTH + 1 }));
        assert_eq!("bridge t c 1".parse::<RuleKey>(), Err(RuleKeyError::NotEvaluated { family: Family::Bridge }));
    }
}
