//! A network plugin's or policy engine's rule stops the path's packets, although no NetworkPolicy says so.

use super::rule::stopping;
use super::way::{Met, Search, search};
use super::{Condition, Read, Severity, Verdict, Words};
use crate::evidence::{KindName, Look, ObjectRef, View};
use crate::finding::{Fate, Finding, Fix, Proof};
use crate::path::Path;
use crate::path::filter::Owner;
use crate::path::policy::{Decision, Flow, decide};

pub const CONDITION: Condition = Condition {
    code: "plugin_rule_stops_path",
    severity: Severity::High,
    words: Words {
        means: "a rule that a network plugin or policy engine wrote drops or rejects the connection on a node, and no \
                NetworkPolicy denies it: the rule is old, or comes from a kind of policy of the engine's own",
        how_we_know: "the packet is followed from namespace to namespace by the rules of each of them, to the rule that \
                      ends it; the cluster's NetworkPolicies are evaluated for the same connection and allow it",
        silent_when: "a NetworkPolicy denies the connection, the rule is not a plugin's, or the probes get through",
        what_to_do: "look for cluster-wide policies of the engine; if there are none, restart its agent on that node, or \
                     remove what an engine that is gone has left behind",
        sources: &[
            "https://kubernetes.io/docs/concepts/services-networking/network-policies/",
            "https://network-policy-api.sigs.k8s.io/",
            "https://docs.tigera.io/calico/latest/reference/resources/globalnetworkpolicy",
        ],
    },
    faults: &["np-agent-lag", "np-global-deny"],
    reads: &[
        Read::Kind(KindName::NetworkPolicies),
        Read::Kind(KindName::Pods),
        Read::Kind(KindName::Namespaces),
        Read::Topic("fate"),
        Read::Topic("network"),
        Read::Topic("listeners"),
        Read::Topic("probe"),
    ],
    lookalikes: &["policy_denies_path", "host_firewall_drops_path"],
    explains: &[],
    judge,
};

fn judge(path: &Path, view: &mut View) -> Verdict {
    let Met { found, impact } =
        match search(path, view, |_, leg| stopping(leg).filter(|rule| matches!(rule.owner, Owner::Plugin(_)))) {
            Search::Met(met) => met,
            Search::Not(verdict) => return verdict,
        };
    let (Look::Seen(policies), Look::Seen(_), Look::Seen(_)) =
        (view.network_policies(), view.pods(), view.namespaces())
    else {
        return Verdict::unknown(view);
    };
    let cluster = view.cluster();
    let flows = path.clients.iter().flat_map(|client| path.ready_backends().map(move |backend| (client, backend)));
    for (client, backend) in flows {
        let Some(flow) = Flow::of(path, client, backend) else { continue };
        match decide(cluster, &flow) {
            Decision::Allowed(_) => {}
            Decision::Denied(_) => return Verdict::clear("NetworkPolicies deny connections of this path"),
            Decision::Undefined(because) => return Verdict::not_applicable(because),
        }
    }
    let (mut proofs, mut claims) = (Vec::new(), Vec::new());
    let mut subjects: Vec<ObjectRef> = Vec::new();
    for met in &found {
        let (place, rule) = (&met.leg.place, &met.what);
        claims.push(format!(
            "on {}, {} stops the path to {} although no NetworkPolicy denies it: {} (written by {})",
            place.words(view),
            rule.place(),
            path.target_words(),
            rule.text,
            rule.writer()
        ));
        let text = format!("{}: {}", rule.place(), rule.text);
        proofs.push(Proof::programmed("packet filter", &place.node, met.leg.at, text));
        proofs.extend(rule.counted(&place.node, met.leg.at));
        place.subject(view).add_once(&mut subjects);
    }
    let text = format!("{} policies, and none denies this connection", policies.value.iter().count());
    proofs.push(Proof::intended("NetworkPolicies", policies.at, text));
    let engine = found.first().map(|met| met.what.writer()).unwrap_or_default();
    let fix = Fix {
        text: format!(
            "look for policies of {engine}'s own kinds and for (Baseline)AdminNetworkPolicies that deny this connection; \
             without any, restart {engine}'s agent on {}, or remove its rules there if it is no longer installed",
            subjects.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
        ),
        commands: Vec::new(),
        verify: path.ask_again(),
    };
    let claim = claims.join("; ");
    let predicts = &[Fate::Silence, Fate::Refused, Fate::Unreachable, Fate::NotPermitted];
    Verdict::found(Finding { subjects, since: None, impact, claim, proofs, predicts, fix })
}
