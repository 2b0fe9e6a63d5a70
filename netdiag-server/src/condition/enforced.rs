//! Whether a node makes NetworkPolicies happen: shared by the conditions about policies.

use jiff::Timestamp;
use netdiag_common::Netns;

use crate::evidence::{Look, View};
use crate::finding::Proof;
use crate::path::policy::{Enforcer, enforcer};

/// What a node's links and rules say.
pub enum Enforced {
    By(Enforcer, Proof),
    /// Both were read, and no engine left a trace.
    Nobody,
    /// Links or rules could not be read, and what was read shows no engine.
    Dark,
}

/// Looks at the links first: most engines show there, and the rules of a large node are long.
pub fn enforced_on(view: &mut View, node: &str) -> Enforced {
    let network = view.network(node, &Netns::Host);
    if let Look::Seen(seen) = network
        && let Some(enforcer) = enforcer(Some(seen.value), None)
    {
        return by(enforcer, "links", node, seen.at);
    }
    let rules = view.rules(node, &Netns::Host);
    match (&network, rules) {
        (_, Look::Seen(seen)) => match enforcer(None, Some(seen.value)) {
            Some(enforcer) => by(enforcer, "packet filter", node, seen.at),
            None if matches!(network, Look::Dark) || !seen.value.left_out.is_empty() => Enforced::Dark,
            None => Enforced::Nobody,
        },
        (&Look::Seen(_), Look::Absent(_)) => Enforced::Nobody,
        _ => Enforced::Dark,
    }
}

fn by(enforcer: Enforcer, source: &str, node: &str, at: Timestamp) -> Enforced {
    let text = format!("{} enforces policies here ({})", enforcer.name, enforcer.seen);
    Enforced::By(enforcer, Proof::programmed(source, node, at, text))
}
