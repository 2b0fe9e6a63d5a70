//! kube-proxy runs, but the kernel or the tool refuses what it writes, so that a node's rules stay as they were.

use std::collections::BTreeSet;

use netdiag_common::Netns;
use netdiag_common::observation::kube_proxy::KubeProxy;

use super::kube_proxy_rules_stale::{self as stale, Stale};
use super::proxied::proxied;
use super::{Condition, Explains, Read, Relation, Severity, Verdict, Words};
use crate::evidence::object::Object;
use crate::evidence::{KindName, Look, ObjectRef, View};
use crate::finding::{Finding, Fix, Impact, Proof};
use crate::path::Path;

pub const CONDITION: Condition = Condition {
    code: "kube_proxy_sync_fails",
    severity: Severity::Critical,
    words: Words {
        means: "kube-proxy cannot write its rules on a node: its restore or transaction fails, so the rules get old",
        how_we_know: "the node's rules differ from the EndpointSlices, kube-proxy counts failed syncs, and its last good sync \
                      is older than the changes that wait",
        silent_when: "the rules are right, the failures are over (a sync went well after the last change), or kube-proxy \
                      counts none: then it does not try, and something else keeps the rules old",
        what_to_do: "read the error in kube-proxy's log; give it an nft or iptables that fits the kernel and its mode, and \
                     remove what holds the xtables lock or conflicts with its tables",
        sources: &[
            "https://kubernetes.io/docs/reference/instrumentation/metrics/",
            "kube-proxy pkg/proxy/metrics: sync_proxy_rules_iptables_restore_failures_total, \
             sync_proxy_rules_nftables_sync_failures_total",
        ],
    },
    faults: &["kp-restore-failure"],
    reads: &[
        Read::Kind(KindName::Services),
        Read::Kind(KindName::EndpointSlices),
        Read::Kind(KindName::Nodes),
        Read::Topic("service_rules"),
        Read::Topic("kube_proxy"),
    ],
    lookalikes: &["service_has_no_ready_endpoints", "service_port_not_defined", "host_firewall_drops_path"],
    explains: &[Explains { code: "kube_proxy_rules_stale", relation: Relation::SameNode }],
    judge,
};

/// A node whose rules are old because kube-proxy cannot write them.
struct Failing {
    rules: Stale,
    /// `12 of its syncs failed, …`
    how: String,
    proof: Proof,
}

fn judge(path: &Path, view: &mut View) -> Verdict {
    let (service, port) = match proxied(path) {
        Ok(found) => found,
        Err(because) => return Verdict::not_applicable(because),
    };
    let (Look::Seen(slices), Look::Seen(_)) = (view.endpoint_slices(), view.services()) else {
        return Verdict::unknown(view);
    };
    let nodes: BTreeSet<&str> = path.clients.iter().map(|client| client.node.as_str()).collect();
    let mut failing = Vec::new();
    let (mut dark, mut compared, mut works) = (false, false, None);
    for node in &nodes {
        let rules = match stale::on_node(path, service, port, node, view) {
            stale::Node::Stale(rules) => rules,
            stale::Node::Dark => {
                dark = true;
                continue;
            }
            stale::Node::Right => {
                compared = true;
                continue;
            }
            stale::Node::Idle(_) | stale::Node::Silent(_) => continue,
        };
        match view.kube_proxy(node, &Netns::Host) {
            Look::Seen(seen) => match how_it_fails(seen.value) {
                Some(how) => {
                    let proof = Proof::observed("kube-proxy", node, seen.at, how.clone());
                    failing.push(Failing { rules, how, proof });
                }
                None => works = Some(*node),
            },
            Look::Absent(_) => works = Some(*node),
            Look::Dark => dark = true,
        }
    }
    let Some(first) = failing.first() else {
        return match works {
            _ if dark => Verdict::unknown(view),
            Some(node) => Verdict::clear(format!("kube-proxy on node {node} tells of no sync that fails")),
            None if compared => {
                Verdict::clear("the rules of the clients' nodes are what kube-proxy should have written")
            }
            None => Verdict::not_applicable("no node's rules were compared"),
        };
    };
    let all = failing.len() == nodes.len() && failing.iter().all(|failing| failing.rules.breaks);
    let mut claim =
        format!("kube-proxy on node {} cannot write its rules: {}; {}", first.rules.node, first.how, first.rules.what);
    if nodes.len() > 1 {
        claim.push_str(&format!("; so on {} of {} nodes", failing.len(), nodes.len()));
    }
    let mut proofs: Vec<Proof> =
        failing.iter().flat_map(|failing| [failing.proof.clone(), failing.rules.proof.clone()]).collect();
    proofs.push(stale::intended(path, service, port, &first.rules.node, slices.at, view));
    let mut subjects: Vec<ObjectRef> = failing.iter().map(|failing| ObjectRef::of_node(&failing.rules.node)).collect();
    subjects.push(service.reference());
    Verdict::found(Finding {
        subjects,
        since: None,
        impact: if all { Impact::Breaks } else { Impact::Degrades },
        claim,
        proofs,
        predicts: &[],
        fix: fix(path, &first.rules.node),
    })
}

/// Failures are counted since kube-proxy started: they last when something waits that no sync has brought in since.
fn how_it_fails(proxy: &KubeProxy) -> Option<String> {
    let failures = proxy.sync_failures.filter(|failures| *failures > 0)?;
    let (what, queued) = match (proxy.last_sync, proxy.last_queued) {
        (Some(sync), Some(queued)) if queued > sync => (format!("the last good one was at {sync}"), Some(queued)),
        (Some(_), _) => return None,
        (None, queued) => ("none has gone well since it started".to_owned(), queued),
    };
    let waiting = queued.map(|queued| format!(", changes wait since {queued}")).unwrap_or_default();
    Some(format!("{failures} syncs failed, {what}{waiting}"))
}

fn fix(path: &Path, node: &str) -> Fix {
    Fix {
        text: format!(
            "read on node {node} why the sync fails (kube-proxy's log names the rule or the tool), and remove the cause: an nft \
             or iptables that does not fit the kernel, a held xtables lock, a conflicting table; a restart alone fails again"
        ),
        commands: vec![format!(
            "kubectl -n kube-system logs -l k8s-app=kube-proxy --tail=-1 --prefix | grep -iE 'failed|error'  # of node {node}"
        )],
        verify: path.ask_again(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_that_are_over_are_not_told() {
        let at = |text: &str| text.parse().ok();
        let (early, late) = ("2026-01-01T11:00:00Z", "2026-01-01T11:30:00Z");
        let proxy = |failures, sync, queued| KubeProxy {
            running: true,
            sync_failures: failures,
            last_sync: at(sync),
            last_queued: at(queued),
            ..KubeProxy::default()
        };
        assert!(how_it_fails(&proxy(Some(3), early, late)).is_some());
        assert!(how_it_fails(&proxy(Some(1), "never", late)).is_some_and(|how| how.contains("none has gone well")));
        assert_eq!(how_it_fails(&proxy(Some(3), late, early)), None);
        assert_eq!(how_it_fails(&proxy(Some(0), early, late)), None);
        assert_eq!(how_it_fails(&proxy(None, early, late)), None);
    }
}
