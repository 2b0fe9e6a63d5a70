//! The packet filter of the calling thread's network namespace: nf_tables and legacy iptables in one shape.

use netdiag_common::observation::rules::Ruleset;

use super::ReadError;
use super::nftables::{self, Limits};

/// A reading is a message: this many rules are about 3 MB of JSON.
const MAX_RULES: usize = 8_000;

/// Rules of single Services are read as such elsewhere ([`super::service_rules`]); here they only complete the picture.
const MAX_SERVICE_RULES: usize = 2_000;

const LIMITS: Limits =
    Limits { rules: MAX_RULES, service_rules: MAX_SERVICE_RULES, service_elements: MAX_SERVICE_RULES, with_text: true };

/// Reads the rules, with their text.
pub fn read() -> Result<Ruleset, ReadError> {
    let nftables = nftables::read(LIMITS)?.unwrap_or_default();
    Ok(Ruleset { generation: nftables.generation, tables: nftables.tables, left_out: nftables.left_out })
}
