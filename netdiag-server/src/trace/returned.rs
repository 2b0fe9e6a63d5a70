//! What an answer is that came back.

use std::net::IpAddr;

use netdiag_common::forwarding::path::Decision;
use netdiag_common::{Gap, GapReason};

use super::{Direction, Leg, Place, WayEnd};

/// What an answer is that is delivered. Whom it comes from tells whether it was translated back: what a bridge hands on past the rules
/// of IP is not, nor what comes back by other namespaces than the one that translated the packet, and no connection takes it.
pub(super) fn returned(legs: &[Leg], answer: &Leg) -> WayEnd {
    let Some(asked) = legs.first().filter(|first| first.place == answer.place) else { return WayEnd::Astray };
    let (from, to) = (answer.path().packet.source(), asked.fate.packet.destination());
    if from == to {
        return WayEnd::Answered;
    }
    let is_past_rules = |decision: &Decision| matches!(decision, Decision::Switched { filtered: false, .. });
    let replies = || legs.iter().filter(|leg| leg.direction == Direction::Reply);
    if replies().any(|leg| leg.path().decisions.iter().any(is_past_rules)) {
        let why = "a bridge handed it on past the rules, which would have translated it (br_netfilter)".to_owned();
        return WayEnd::Untranslated { from, why };
    }
    let is_translated = |leg: &&Leg| leg.fate.packet.destination() != leg.path().packet.destination();
    let forward = legs.iter().filter(|leg| leg.direction == Direction::Forward && leg.carrier.is_none());
    let translators: Vec<&Place> = forward.filter(is_translated).map(|leg| &leg.place).collect();
    let passes = |place: &&Place| replies().any(|leg| leg.carrier.is_none() && leg.place == **place);
    // What is not evaluated, there or back, may translate it all the same.
    let is_seen = legs.iter().all(|leg| leg.path().gaps.is_empty() && leg.fate.unseen.is_empty());
    match translators.first() {
        Some(Place { node, .. }) if is_seen && !translators.iter().any(passes) => {
            let why = format!("node {node} translated the packet, and the answer comes back by another way");
            WayEnd::Untranslated { from, why }
        }
        first => {
            let translator = first.copied().unwrap_or(&answer.place);
            WayEnd::Unseen { gap: Box::new(from_another(translator, from, to)) }
        }
    }
}

/// IPVS keeps connections of its own, which are not evaluated, and a translation may be missed on the way back.
fn from_another(translator: &Place, from: IpAddr, to: IpAddr) -> Gap {
    let node = &translator.node;
    Gap {
        what: format!("whether the answer of {from} is translated back"),
        node: Some(node.clone()),
        reason: GapReason::Failed,
        why: format!("it comes back from {from}, and the client sent to {to}: no rule was seen to translate it"),
        remedy: format!("look on node {node} at `conntrack -L -d {to}` and `ipvsadm -Lnc` while the client asks"),
    }
}
