//! One decision of a way as an entry of the answer: whose rule it is, of which object, and what passed it.

use netdiag_common::forwarding::expression::Verdict;
use netdiag_common::forwarding::path::{Decision, End};
use netdiag_common::forwarding::state::Family;
use netdiag_common::forwarding::virtual_server::VirtualServerKey;
use netdiag_common::observation::fate::FateSocket;
use netdiag_common::observation::trace::{TraceEvent, TraceKind};

use super::{Chains, DecisionEntry, words};
use crate::path::filter::{MetRule, Owner, owner_by_names, owner_of_policy, part};
use crate::trace::{Counted, Leg, Side};

pub(super) fn side(chains: &Chains<'_>, leg: &Leg, side: &Side, counted: Option<&Counted>) -> DecisionEntry {
    let (what, of_rule, packets) = match side {
        Side::Untraced(decision) | Side::Both(decision) | Side::Predicted(decision) => {
            (words::decision(leg, decision), rule_of(leg, decision), packets(leg, decision))
        }
        Side::Traced(event) => (words::event(leg, event), rule_of_event(event), None),
    };
    let counted = match side {
        Side::Untraced(decision) | Side::Both(decision) | Side::Predicted(decision) => {
            counted.and_then(|counted| counted.of(leg, decision))
        }
        Side::Traced(_) => None,
    };
    let owner = of_rule.map(|OfRule { table, met, .. }| owner_by_names(table, met.chain, met.leads_to, met.comment));
    let object = of_rule.and_then(|OfRule { table, met, .. }| {
        let services = &chains.services;
        let of_service = services.object(met.chain).or_else(|| services.object(met.leads_to?));
        let of_policy = || chains.policies.object(&met, &all_met(leg, |_| true));
        of_service.or_else(of_policy).or_else(|| part(table, met.chain))
    });
    let balanced = server_of(side).and_then(|server| chains.services.of_virtual_server(server));
    let owner = owner.or_else(|| balanced.as_ref().map(|_| Owner::KubeProxy)).or_else(|| owner_of_drop(leg, side));
    DecisionEntry {
        what,
        predicted: !matches!(side, Side::Traced(_)),
        traced: match side {
            Side::Untraced(_) => None,
            Side::Both(_) | Side::Traced(_) => Some(true),
            Side::Predicted(_) => Some(false),
        },
        owner: owner.map(|owner| owner.words().to_owned()).unwrap_or_default(),
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
    family: Family,
    table: &'a str,
    met: MetRule<'a>,
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

fn rule_of<'a>(leg: &'a Leg, decision: &'a Decision) -> Option<OfRule<'a>> {
    let Decision::Rule { chain, handle, verdict, comment, .. } = decision else { return None };
    let read = || leg.fate.rules.iter().find(|rule| rule.chain == *chain && rule.handle == *handle);
    let comment = comment.as_deref().or_else(|| read()?.comment.as_deref());
    let met = MetRule { chain: &chain.chain, leads_to: leads_to(verdict), comment };
    Some(OfRule { family: chain.family, table: &chain.table, met })
}

fn rule_of_event(event: &TraceEvent) -> Option<OfRule<'_>> {
    let is_rule = event.kind == TraceKind::Rule && event.handle.is_some();
    let met = MetRule { chain: &event.chain, leads_to: leads_to(&event.verdict), comment: None };
    is_rule.then_some(OfRule { family: event.family, table: &event.table, met })
}

fn leads_to(verdict: &Verdict) -> Option<&str> {
    match verdict {
        Verdict::Jump(chain) | Verdict::Goto(chain) => Some(&**chain),
        _ => None,
    }
}

/// The rules that the packet meets in this namespace, of tables that are wanted.
fn all_met<'a>(leg: &'a Leg, is_wanted: impl Fn(&OfRule<'a>) -> bool) -> Vec<MetRule<'a>> {
    let rules = leg.path().decisions.iter().filter_map(|decision| rule_of(leg, decision));
    rules.filter(is_wanted).map(|rule| rule.met).collect()
}

/// Whose policy of a base chain drops the packet here.
fn owner_of_drop(leg: &Leg, side: &Side) -> Option<Owner> {
    let (family, table, chain) = match side {
        Side::Untraced(Decision::Policy { chain, verdict: Verdict::Drop, .. })
        | Side::Both(Decision::Policy { chain, verdict: Verdict::Drop, .. })
        | Side::Predicted(Decision::Policy { chain, verdict: Verdict::Drop, .. }) => {
            (chain.family, &*chain.table, &*chain.chain)
        }
        Side::Traced(event) if event.kind == TraceKind::Policy && event.verdict == Verdict::Drop => {
            (event.family, &*event.table, &*event.chain)
        }
        _ => return None,
    };
    owner_of_policy(table, chain, &all_met(leg, |rule| rule.family == family && rule.table == table))
}

fn packets(leg: &Leg, decision: &Decision) -> Option<u64> {
    let Decision::Rule { chain, handle, .. } = decision else { return None };
    let rule = leg.fate.rules.iter().find(|rule| rule.chain == *chain && rule.handle == *handle)?;
    rule.counter.as_ref().map(|counter| counter.packets)
}

#[cfg(test)]
mod tests {
    use netdiag_common::forwarding::routing::{Considered, RuleResult, TableRoute, Why};
    use netdiag_common::forwarding::state::{ChainKey, Hook, Route};

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
        side(&Chains::of(&cluster), &leg, &Side::Untraced(decision), None)
    }

    /// The entry of a policy that drops, behind a rule of the base chain that leads there.
    fn dropped(table: &str, leads_to: &str) -> DecisionEntry {
        let chain = ChainKey { family: Family::Ip, table: table.into(), chain: "FORWARD".into() };
        let rule = Decision::Rule {
            hook: Hook::Forward,
            chain: chain.clone(),
            handle: 4,
            verdict: Verdict::Jump(leads_to.into()),
            elements: Vec::new(),
            comment: None,
            mark: Some(0),
        };
        let policy = Decision::Policy { hook: Hook::Forward, chain, verdict: Verdict::Drop };
        let cluster = Cluster::default();
        let leg = leg(None, vec![rule, policy.clone()], 2);
        side(&Chains::of(&cluster), &leg, &Side::Untraced(policy), None)
    }

    #[test]
    fn a_policy_that_drops_has_the_owner_whose_rules_lead_out_of_its_chain() {
        for (table, leads_to, owner) in [
            ("filter", "ufw-before-forward", "ufw"),
            ("filter", "KUBE-FORWARD", ""),
            ("firewalld", "filter_FORWARD_POLICIES_pre", "firewalld"),
            ("site", "pods", "an administrator"),
        ] {
            assert_eq!(dropped(table, leads_to).owner, owner, "{table} {leads_to}");
        }
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
