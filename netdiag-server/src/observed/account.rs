//! What one node's programs counted in one subject, term by term: whoever adds the terms up finds that nothing is missing.

use std::collections::BTreeMap;

use jiff::Timestamp;
use netdiag_common::observation::dns::Dns;
use netdiag_common::observation::kfree_skb::Drops;
use netdiag_common::observation::neighbour::Failures;
use netdiag_common::observation::reject::Rejects;
use netdiag_common::observation::tcp::Tcp;
use netdiag_common::observation::udp::Udp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Subject;

/// The counts of one node's whole kernel, filters or not: rows are what of them is meant, and in this node's namespaces.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Account {
    pub node: String,
    pub subject: Subject,
    /// RFC 3339. Later than the start of the window when the agent is younger.
    #[schemars(with = "String")]
    pub since: Timestamp,
    /// Which terms add up to which: `total = attributed + coarse + …`.
    pub identity: String,
    /// What `identity` leaves over: 0 unless a counter lies.
    pub unaccounted: i64,
    /// All counters, also those of another identity.
    pub terms: BTreeMap<String, u64>,
}

impl Account {
    pub(super) fn of_drops(node: &str, seen: &Drops) -> Self {
        let identity = "total = attributed + coarse + foreign_netns + reason_only + link + foreign + unparsed";
        Self::new(node, Subject::Drops, seen.since, identity, seen.accounts.unaccounted(), &seen.accounts)
    }

    pub(super) fn of_rejects(node: &str, seen: &Rejects) -> Self {
        let identity = "total = attributed + coarse + foreign_netns + total_only + unparsed + shed";
        Self::new(node, Subject::Rejects, seen.since, identity, seen.accounts.unaccounted(), &seen.accounts)
    }

    pub(super) fn of_tcp(node: &str, seen: &Tcp) -> Self {
        let identity = "open_before + connects + unmatched = established + refused + timed_out + reset + unreachable + \
                        abandoned + no_port + other + untracked + lost + open";
        Self::new(node, Subject::Tcp, seen.since, identity, seen.accounts.unaccounted(), &seen.accounts)
    }

    pub(super) fn of_udp(node: &str, seen: &Udp) -> Self {
        let identity = "total = attributed + coarse + foreign_netns + total_only";
        Self::new(node, Subject::Udp, seen.since, identity, seen.accounts.unaccounted(), &seen.accounts)
    }

    pub(super) fn of_neighbours(node: &str, seen: &Failures) -> Self {
        let identity = "total = attributed + coarse + foreign_netns + total_only";
        Self::new(node, Subject::Neighbours, seen.since, identity, seen.accounts.unaccounted(), &seen.accounts)
    }

    pub(super) fn of_dns(node: &str, seen: &Dns) -> Self {
        let identity = "queries + open_before = answered + unanswered + unparsed + shed + open";
        Self::new(node, Subject::Dns, seen.since, identity, seen.accounts.unaccounted(), &seen.accounts)
    }

    /// `accounts` is a structure of numbers, which gives the terms their names.
    fn new(
        node: &str,
        subject: Subject,
        since: Timestamp,
        identity: &str,
        unaccounted: i64,
        accounts: &impl Serialize,
    ) -> Self {
        let counters = serde_json::to_value(accounts).ok();
        let counters = counters.as_ref().and_then(serde_json::Value::as_object).into_iter().flatten();
        Self {
            node: node.to_owned(),
            subject,
            since,
            identity: identity.to_owned(),
            unaccounted,
            terms: counters.filter_map(|(name, count)| Some((name.clone(), count.as_u64()?))).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use netdiag_common::observation::udp::UdpAccounts;

    use super::*;

    #[test]
    fn every_word_of_an_identity_is_a_term() {
        let at: Timestamp = "2026-01-01T12:00:00Z".parse().expect("a time");
        let accounts = UdpAccounts { total: 9, attributed: 6, coarse: 2, ..UdpAccounts::default() };
        let (groups, unseen) = (Vec::new(), Vec::new());
        let udp = Udp { since: at, window_s: 60.0, accounts, groups, omitted_groups: 0, unseen };
        let account = Account::of_udp("n1", &udp);
        let words = account.identity.split([' ', '+', '=']).filter(|word| !word.is_empty());
        assert!(words.clone().count() > 3 && words.clone().all(|word| account.terms.contains_key(word)), "{account:?}");
        assert_eq!((account.terms["total"], account.unaccounted), (9, 1));
    }
}
