//! The packet filter of the calling thread's network namespace: nf_tables and legacy iptables in one shape.

use netdiag_common::observation::rules::Ruleset;

use super::budget::{Budget, Limits};
use super::nftables::Set;
use super::{ReadError, iptables, nftables};

/// A reading is a message: this many rules are about 3 MB of JSON.
const MAX_RULES: usize = 8_000;

/// Rules of single Services are read as such by [`super::service_rules`]; here they only complete the picture.
const MAX_SERVICE_RULES: usize = 2_000;

const LIMITS: Limits =
    Limits { rules: MAX_RULES, service_rules: MAX_SERVICE_RULES, service_elements: MAX_SERVICE_RULES, with_text: true };

/// Reads the rules, with their text.
pub fn read() -> Result<Ruleset, ReadError> {
    Ok(RawRules::read(LIMITS)?.ruleset)
}

/// What the readings of rules and of Services are made of.
#[derive(Debug, Clone, Default)]
pub(crate) struct RawRules {
    pub ruleset: Ruleset,
    /// Named sets and maps of nf_tables.
    pub sets: Vec<Set>,
}

impl RawRules {
    pub(crate) fn read(limits: Limits) -> Result<Self, ReadError> {
        let (mut raw, mut budget) = match nftables::read(limits)? {
            Some(nftables) => Self::of_nftables(nftables),
            None => (Self::default(), Budget::new(limits)),
        };
        let (tables, left_out) = iptables::read(&mut budget)?;
        raw.ruleset.tables.extend(tables);
        raw.ruleset.left_out.extend(left_out);
        raw.ruleset.left_out.extend(budget.left_out());
        Ok(raw)
    }

    pub(crate) fn of_nftables(nftables: nftables::Nftables) -> (Self, Budget) {
        let ruleset = Ruleset { generation: nftables.generation, tables: nftables.tables, left_out: nftables.left_out };
        (Self { ruleset, sets: nftables.sets }, nftables.budget)
    }
}
