//! A rule takes a Service's packets out of connection tracking, so that nothing translates them.

use netdiag_common::Netns;

use super::rule::{Rule, rule};
use super::way::{Met, Search, search};
use super::{Condition, Explains, Read, Relation, Severity, Verdict, Words};
use crate::evidence::object::Object;
use crate::evidence::{ObjectRef, View};
use crate::finding::{Fate, Finding, Fix, Proof};
use crate::path::Path;
use crate::trace::{Direction, Leg};

pub const CONDITION: Condition = Condition {
    code: "service_traffic_untracked",
    severity: Severity::High,
    words: Words {
        means: "a notrack rule on a node covers connections to the Service's address: without connection tracking nothing \
                translates that address to an endpoint",
        how_we_know: "the packet is followed from namespace to namespace by the rules of each of them; it enters a node \
                      for the Service's address, a rule takes it out of connection tracking, and no translation follows",
        silent_when: "the packet is tracked, or it goes to an endpoint directly",
        what_to_do: "remove the notrack rule, or make it match fewer addresses",
        sources: &[
            "iptables-extensions(8), CT --notrack",
            "nft(8), notrack",
            "https://kubernetes.io/docs/tasks/administer-cluster/nodelocaldns/",
            "net/netfilter/nf_nat_core.c: nf_nat_inet_fn",
        ],
    },
    faults: &["ct-notrack-vip"],
    reads: &[Read::Topic("fate"), Read::Topic("network"), Read::Topic("listeners"), Read::Topic("probe")],
    lookalikes: &["kube_proxy_rules_stale", "service_port_not_defined", "host_firewall_drops_path"],
    explains: &[Explains { code: "kube_proxy_rules_stale", relation: Relation::SameNode }],
    judge,
};

fn judge(path: &Path, view: &mut View) -> Verdict {
    let Some(service) = path.service() else {
        return Verdict::not_applicable("the path does not lead to a Service");
    };
    let addresses = &path.addresses;
    let met = search(path, view, |_, leg| {
        let enters = leg.direction == Direction::Forward && leg.place.netns == Netns::Host;
        let for_service = addresses.contains(&leg.request.destination);
        let untranslated = addresses.contains(&leg.path().packet.destination());
        (enters && for_service && untranslated).then(|| untracked(leg)).flatten()
    });
    let Met { found, impact } = match met {
        Search::Met(met) => met,
        Search::Not(verdict) => return verdict,
    };
    let mut subjects: Vec<ObjectRef> = Vec::new();
    let (mut proofs, mut claims, mut commands) = (Vec::new(), Vec::new(), Vec::new());
    for met in &found {
        let (place, rule, address) = (&met.leg.place, &met.what, met.leg.request.destination);
        claims.push(format!(
            "on {}, {} takes connections to {address} of {} out of connection tracking, so that nothing translates them: {} \
             (written by {})",
            place.words(view),
            rule.place(),
            service.reference(),
            rule.text,
            rule.writer()
        ));
        let text = format!("{}: {}; the packet goes on for {address}", rule.place(), rule.text);
        proofs.push(Proof::programmed("packet filter", &place.node, met.leg.at, text));
        proofs.extend(rule.counted(&place.node, met.leg.at));
        commands.extend(rule.removal(&place.node));
        place.subject(view).add_once(&mut subjects);
    }
    subjects.push(service.reference());
    let text = format!("its address is {}", addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "));
    proofs.push(Proof::intended(service.reference().to_string(), view.now(), text));
    let fix = Fix {
        text:
            "remove the notrack rule, or make it match only what needs no translation (left over from a node-local DNS \
               cache, or from tuning against floods)"
                .to_owned(),
        commands,
        verify: path.ask_again(),
    };
    let claim = claims.join("; ");
    let predicts = &[Fate::Silence, Fate::Refused, Fate::Unreachable];
    Verdict::found(Finding { subjects, since: None, impact, claim, proofs, predicts, fix })
}

/// The rule that takes the packet out of connection tracking.
fn untracked(leg: &Leg) -> Option<Rule> {
    let way = leg.path();
    if way.connection.is_some() {
        return None;
    }
    let says_so = |rule: &Rule| rule.text.to_lowercase().contains("notrack");
    way.decisions.iter().filter_map(|decision| rule(&leg.fate, decision)).find(says_so)
}
