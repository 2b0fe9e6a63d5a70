//! A rule that is not the cluster's own sends the path's packets to another address.

use std::net::IpAddr;

use netdiag_common::Netns;
use netdiag_common::forwarding::path::Decision;

use super::rule::{Rule, rule};
use super::way::{Met, Search, search};
use super::{Condition, Read, Severity, Verdict, Words};
use crate::evidence::object::Object;
use crate::evidence::{ObjectRef, View};
use crate::finding::{Finding, Fix, Proof};
use crate::path::Path;
use crate::path::filter::Owner;
use crate::trace::{Direction, Leg};

pub const CONDITION: Condition = Condition {
    code: "foreign_rule_translates_path",
    severity: Severity::High,
    words: Words {
        means: "an address translation on a node, which neither Kubernetes nor the network plugin wrote, leads the \
                connection away from where it should go",
        how_we_know: "the packet is followed from namespace to namespace by the rules of each of them; where its \
                      destination changes, the rule that changes it is named, and its counter and the probe agree",
        silent_when: "the rule belongs to kube-proxy, a network plugin or a mesh, the packet gets there all the same, or \
                      only its source is translated",
        what_to_do: "remove the rule, or make it match fewer addresses",
        sources: &[
            "nft(8), NAT statements",
            "iptables-extensions(8), DNAT and REDIRECT",
            "net/netfilter/nf_nat_core.c",
        ],
    },
    faults: &["kp-leftover-rules"],
    reads: &[Read::Topic("fate"), Read::Topic("network"), Read::Topic("listeners"), Read::Topic("probe")],
    lookalikes: &["kube_proxy_rules_stale", "host_firewall_drops_path", "pod_network_route_missing"],
    explains: &[],
    judge,
};

/// Where the packet was to go, where it goes now, and by which rule.
struct Led {
    from: IpAddr,
    to: IpAddr,
    rule: Rule,
}

fn judge(path: &Path, view: &mut View) -> Verdict {
    let Met { found, impact } = match search(path, view, |_, leg| led(leg)) {
        Search::Met(met) => met,
        Search::Not(verdict) => return verdict,
    };
    let mut subjects: Vec<ObjectRef> = Vec::new();
    let (mut proofs, mut claims, mut commands) = (Vec::new(), Vec::new(), Vec::new());
    for met in &found {
        let (place, Led { from, to, rule }) = (&met.leg.place, &met.what);
        claims.push(format!(
            "on {}, {} leads packets for {from} to {to}: {} (written by {})",
            place.words(view),
            rule.place(),
            rule.text,
            rule.writer()
        ));
        let text = format!("{}: {}; the packet leaves for {to}", rule.place(), rule.text);
        proofs.push(Proof::programmed("packet filter", &place.node, met.leg.at, text));
        proofs.extend(rule.counted(&place.node, met.leg.at));
        commands.extend(rule.removal(&place.node));
        place.subject(view).add_once(&mut subjects);
    }
    let intended: Vec<String> = path.ready_backends().map(|backend| backend.address.to_string()).collect();
    if let (Some(service), false) = (path.service(), intended.is_empty()) {
        let text = format!("endpoints are {}", intended.join(", "));
        proofs.push(Proof::intended(format!("EndpointSlices of {}", service.reference()), view.now(), text));
    }
    let fix = Fix {
        text: "if the rule is not meant for pods and Services, remove it, or make it match fewer addresses".to_owned(),
        commands,
        verify: path.ask_again(),
    };
    let claim = claims.join("; ");
    Verdict::found(Finding { subjects, since: None, impact, claim, proofs, predicts: &[], fix })
}

/// The first foreign translation of a new connection's destination in a node's own namespace.
fn led(leg: &Leg) -> Option<Led> {
    if leg.direction == Direction::Reply || leg.place.netns != Netns::Host {
        return None;
    }
    let decisions = &leg.path().decisions;
    let led = decisions.iter().enumerate().find_map(|(index, decision)| {
        let Decision::Translated { hook, from, to } = decision else { return None };
        if (from.destination, from.destination_port) == (to.destination, to.destination_port) {
            return None;
        }
        let of_hook = |decision: &&Decision| matches!(decision, Decision::Rule { hook: own, .. } if own == hook);
        let rules = decisions[..index].iter().rev().filter(of_hook).filter_map(|decision| rule(&leg.fate, decision));
        let rule = rules.into_iter().find(translates)?;
        Some(Led { from: from.destination, to: to.destination, rule })
    })?;
    // Docker publishes ports of its own containers by such rules: what they catch never was a pod's or a Service's.
    let is_foreign = !led.rule.owner.is_cluster() && led.rule.owner != Owner::Docker;
    is_foreign.then_some(led)
}

fn translates(rule: &Rule) -> bool {
    let text = rule.text.to_lowercase();
    ["dnat", "redirect", "netmap"].iter().any(|word| text.contains(word))
}
