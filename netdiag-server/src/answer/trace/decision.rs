//! One decision of a way as an entry of the answer: whose rule it is, of which object, and what passed it.

use netdiag_common::forwarding::expression::Verdict;
use netdiag_common::forwarding::path::{Decision, End};
use netdiag_common::forwarding::virtual_server::VirtualServerKey;
use netdiag_common::observation::fate::FateSocket;
use netdiag_common::observation::trace::{TraceEvent, TraceKind};

use super::{DecisionEntry, words};
use crate::path::filter::{Owner, ServiceChains, owner_by_names, part};
use crate::trace::{Counted, Leg, Side};

pub(super) fn side(chains: &ServiceChains<'_>, leg: &Leg, side: &Side, counted: Option<&Counted>) -> DecisionEntry {
    let (what, of_rule, packets) = match side {
        Side::Untraced(decision) | Side::Both(decision) | Side::Predicted(decision) => {
            (words::decision(leg, decision), rule_of(decision), packets(leg, decision))
        }
        Side::Traced(event) => (words::event(leg, event), rule_of_event(event), None),
    };
    let counted = match side {
        Side::Untraced(decision) | Side::Both(decision) | Side::Predicted(decision) => {
            counted.and_then(|counted| counted.of(leg, decision))
        }
        Side::Traced(_) => None,
    };
    let jumps_to = |verdict: &Verdict| match verdict {
        Verdict::Jump(chain) | Verdict::Goto(chain) => Some(chain.clone()),
        _ => None,
    };
    let owner = of_rule.map(|rule| {
        let target = jumps_to(rule.verdict);
        owner_by_names(rule.table, rule.chain, target.as_deref(), rule.comment).words().to_owned()
    });
    let object = of_rule.and_then(|rule| {
        let of_service = chains.object(rule.chain).or_else(|| chains.object(&jumps_to(rule.verdict)?));
        of_service.or_else(|| part(rule.table, rule.chain))
    });
    let balanced = server_of(side).and_then(|server| chains.of_virtual_server(server));
    let owner = owner.or_else(|| balanced.as_ref().map(|_| Owner::KubeProxy.words().to_owned()));
    DecisionEntry {
        what,
        predicted: !matches!(side, Side::Traced(_)),
        traced: match side {
            Side::Untraced(_) => None,
            Side::Both(_) | Side::Traced(_) => Some(true),
            Side::Predicted(_) => Some(false),
        },
        owner: owner.unwrap_or_default(),
        object: object.or(balanced).unwrap_or_default(),
        packets,
        counted: counted.map(|(counted, _)| counted),
        expected: counted.and_then(|(_, expected)| expected),
    }
}

/// Which socket takes a packet that is delivered here; none where that was not looked up.
pub(super) fn delivery(leg: &Leg) -> Option<DecisionEntry> {
    // The kernel's own socket.
    if leg.carrier.is_some() {
        return (leg.path().end == End::Delivered).then(|| predicted("delivered to the tunnel".to_owned()));
    }
    let delivery = leg.fate.deliveries.iter().find(|delivery| delivery.path == leg.path)?;
    let sockets: Vec<String> = delivery.sockets.iter().map(FateSocket::words).collect();
    Some(predicted(match &sockets[..] {
        [] => "delivered: no socket takes it".to_owned(),
        [one] => format!("delivered to {one}"),
        several => format!("delivered to one of {}: {}", several.len(), several.join(", ")),
    }))
}

/// What no rule decides and no kernel traces.
pub(super) fn predicted(what: String) -> DecisionEntry {
    DecisionEntry {
        what,
        predicted: true,
        traced: None,
        owner: String::new(),
        object: String::new(),
        packets: None,
        counted: None,
        expected: None,
    }
}

/// What says whose rule it is.
#[derive(Clone, Copy)]
struct OfRule<'a> {
    table: &'a str,
    chain: &'a str,
    verdict: &'a Verdict,
    comment: Option<&'a str>,
}

/// The virtual server that took the packet here.
fn server_of(side: &Side) -> Option<&VirtualServerKey> {
    match side {
        Side::Untraced(Decision::Scheduled { server, .. })
        | Side::Both(Decision::Scheduled { server, .. })
        | Side::Predicted(Decision::Scheduled { server, .. }) => Some(server),
        _ => None,
    }
}

fn rule_of(decision: &Decision) -> Option<OfRule<'_>> {
    let Decision::Rule { chain, verdict, comment, .. } = decision else { return None };
    Some(OfRule { table: &chain.table, chain: &chain.chain, verdict, comment: comment.as_deref() })
}

fn rule_of_event(event: &TraceEvent) -> Option<OfRule<'_>> {
    let is_rule = event.kind == TraceKind::Rule && event.handle.is_some();
    is_rule.then_some(OfRule { table: &event.table, chain: &event.chain, verdict: &event.verdict, comment: None })
}

fn packets(leg: &Leg, decision: &Decision) -> Option<u64> {
    let Decision::Rule { chain, handle, .. } = decision else { return None };
    let rule = leg.fate.rules.iter().find(|rule| rule.chain == *chain && rule.handle == *handle)?;
    rule.counter.as_ref().map(|counter| counter.packets)
}

#[cfg(test)]
mod tests {
    use netdiag_common::forwarding::routing::{Considered, RuleResult, TableRoute, Why};
    use netdiag_common::forwarding::state::{Hook, Route};

    use super::*;
    use crate::answer::trace::example::leg;
    use crate::evidence::Cluster;

    /// By the rule of table main; of a route that this protocol made, where one is known.
    fn routed(protocol: Option<u8>) -> DecisionEntry {
        let made_by = |protocol| TableRoute {
            destination: "10.244.2.0/24".parse().unwrap(),
            source: None,
            kind: 1,
            scope: 0,
            service: 0,
            metric: 0,
            protocol,
            preference: 0,
            own: None,
            object: None,
            encapsulation: None,
            mtu: None,
            mtu_locked: false,
            hops: Vec::new(),
        };
        let rule = "from all lookup main".to_owned();
        let rules = vec![Considered { priority: 32_766, rule, result: RuleResult::Decided }];
        let why = Why { rules, route: protocol.map(made_by), ..Why::default() };
        let route = Route::Forward { interface: 2, gateway: None, source: None };
        let decision = Decision::Routed { hook: Hook::Forward, route, why: Some(Box::new(why)) };
        let cluster = Cluster::default();
        let leg = leg(None, vec![decision.clone()], 2);
        side(&ServiceChains::of(&cluster), &leg, &Side::Untraced(decision), None)
    }

    #[test]
    fn who_made_a_route_is_in_its_words_and_is_no_owner() {
        let rule = "routed: dev interface 2 (rule 32766 from all lookup main";
        for (protocol, what) in [
            (Some(2), format!("{rule}: 10.244.2.0/24 proto kernel)")),
            (Some(12), format!("{rule}: 10.244.2.0/24 proto bird)")),
            (Some(80), format!("{rule}: 10.244.2.0/24 proto 80)")),
            (None, format!("{rule})")),
        ] {
            let entry = routed(protocol);
            assert_eq!((entry.what, entry.owner), (what, String::new()));
        }
    }
}
