//! A rule that a followed packet met: whose it is, where it stands, and how it goes away.

use jiff::Timestamp;
use netdiag_common::forwarding::expression::Verdict as Action;
use netdiag_common::forwarding::path::{Decision, End, Path, Place};
use netdiag_common::forwarding::state::{ChainKey, Family};
use netdiag_common::observation::fate::{Fate, FateRule};

use crate::finding::Proof;
use crate::path::filter::{Owner, owner_by_names};
use crate::trace::Leg;

/// A rule that the followed packet met.
pub struct Rule {
    pub owner: Owner,
    /// Close to `nft list ruleset`, or to `iptables -S`.
    pub text: String,
    chain: ChainKey,
    handle: u64,
    /// Packets that its own counter had when it was read.
    packets: Option<u64>,
}

/// The rule of this decision, in words; none for other decisions.
pub fn rule(fate: &Fate, decision: &Decision) -> Option<Rule> {
    let Decision::Rule { chain, handle, verdict, comment, .. } = decision else { return None };
    let read = fate.rules.iter().find(|rule| rule.chain == *chain && rule.handle == *handle);
    let target = match verdict {
        Action::Jump(target) | Action::Goto(target) => Some(target.as_ref()),
        _ => None,
    };
    let comment = comment.as_deref().or_else(|| read?.comment.as_deref());
    let owner = owner_by_names(&chain.table, &chain.chain, target, comment);
    let text = match (read, comment) {
        (Some(rule), Some(comment)) if !rule.text.contains(comment) => format!("{} (comment {comment:?})", rule.text),
        (Some(rule), _) => rule.text.clone(),
        (None, _) => "its words could not be read".to_owned(),
    };
    let counted = |rule: &FateRule| rule.counter.as_ref().map(|counter| counter.packets);
    Some(Rule { owner, text, chain: chain.clone(), handle: *handle, packets: read.and_then(counted) })
}

/// The rule that drops or rejects the packet of this leg.
pub fn stopping(leg: &Leg) -> Option<Rule> {
    stop(&leg.fate, leg.path())
}

/// The rule that drops or rejects the packet on one of its paths.
pub fn stop(fate: &Fate, path: &Path) -> Option<Rule> {
    let Path { decisions, end, .. } = path;
    let (End::Dropped { by } | End::Rejected { by, .. }) = end else { return None };
    let Place { chain: Some(chain), handle: Some(handle), .. } = by else { return None };
    let is_it = |decision: &&Decision| matches!(decision, Decision::Rule { chain: own, handle: number, .. } if own == chain && number == handle);
    rule(fate, decisions.iter().rev().find(is_it)?)
}

impl Rule {
    /// `table inet site, chain fw, handle 4`; the position instead of the handle for legacy iptables.
    pub fn place(&self) -> String {
        let ChainKey { family, table, chain } = &self.chain;
        let number = if family.is_legacy() { "rule" } else { "handle" };
        format!("table {} {table}, chain {chain}, {number} {}", family_name(*family), self.handle)
    }

    pub fn writer(&self) -> String {
        match self.owner {
            Owner::Administrator => "nobody we know: an administrator".to_owned(),
            known => known.words().to_owned(),
        }
    }

    /// Packets have passed it.
    pub fn counted(&self, node: &str, at: Timestamp) -> Option<Proof> {
        let packets = self.packets.filter(|packets| *packets > 0)?;
        Some(Proof::observed("the rule's counter", node, at, format!("{packets} packets have met this rule")))
    }

    /// How an administrator removes it; nothing for what a program would write again.
    pub fn removal(&self, node: &str) -> Option<String> {
        if self.owner != Owner::Administrator {
            return None;
        }
        let ChainKey { family, table, chain } = &self.chain;
        let handle = self.handle;
        Some(match family {
            Family::LegacyIp => format!("iptables-legacy -t {table} -D {chain} {handle}  # on node {node}"),
            Family::LegacyIp6 => format!("ip6tables-legacy -t {table} -D {chain} {handle}  # on node {node}"),
            _ => format!("nft delete rule {} {table} {chain} handle {handle}  # on node {node}", family_name(*family)),
        })
    }
}

fn family_name(family: Family) -> &'static str {
    match family {
        Family::Inet => "inet",
        Family::Ip | Family::LegacyIp => "ip",
        Family::Ip6 | Family::LegacyIp6 => "ip6",
        Family::Arp => "arp",
        Family::Bridge => "bridge",
        Family::Netdev => "netdev",
    }
}
