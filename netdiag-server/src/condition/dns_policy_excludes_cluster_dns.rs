//! A pod asks other name servers than the cluster's, because its own specification says so.

use super::dns::{self, Asks, Elsewhere};
use super::{Condition, Read, Severity, Verdict, Words};
use crate::evidence::object::{Object, Pod};
use crate::evidence::{KindName, View};
use crate::finding::{Finding, Fix, Impact, Proof};
use crate::path::Path;

pub const CONDITION: Condition = Condition {
    code: "dns_policy_excludes_cluster_dns",
    severity: Severity::High,
    words: Words {
        means: "a pod's dnsPolicy, or its place on the node's network, leaves the cluster's DNS out, so that it does not find the \
                cluster's names",
        how_we_know: "the pod's specification asks for other servers, its resolv.conf names them and not the DNS Service, its lookups \
                      there fail, and the same pod gets the name from the DNS Service",
        silent_when: "the dnsPolicy asks for the cluster's DNS, a server of the pod leads to it, a lookup is answered, or the name is of \
                      no Service",
        what_to_do: "set dnsPolicy to ClusterFirst, for pods on the node's network to ClusterFirstWithHostNet, where the pod is made \
                     from, and start it anew",
        sources: &[
            "https://kubernetes.io/docs/concepts/services-networking/dns-pod-service/#pod-s-dns-policy",
            "https://github.com/kubernetes/kubernetes/blob/v1.34.0/pkg/kubelet/network/dns/dns.go (getPodDNSType)",
        ],
    },
    faults: &["dns-wrong-dnspolicy"],
    reads: &[Read::Kind(KindName::Services), Read::Topic("resolver"), Read::Topic("probe")],
    lookalikes: &["cluster_dns_has_no_endpoints", "egress_policy_blocks_dns", "name_does_not_exist"],
    explains: &[],
    judge,
};

fn judge(path: &Path, view: &mut View) -> Verdict {
    let Some((client, pod)) = dns::asker(path) else {
        return Verdict::not_applicable("no pod is asked about that looks a name up");
    };
    let Some((reason, remedy)) = excluded(pod) else {
        return Verdict::clear(format!("the dnsPolicy of {} asks for the cluster's DNS", pod.reference()));
    };
    let elsewhere = match dns::asks(path, client, pod, view) {
        Asks::Elsewhere(elsewhere) => elsewhere,
        Asks::Fine(because) => return Verdict::clear(because),
        Asks::Moot(because) => return Verdict::not_applicable(because),
        Asks::Dark => return Verdict::unknown(view),
    };
    let Elsewhere { servers, dns, address, mut proofs } = *elsewhere;
    proofs.push(Proof::intended(pod.reference(), view.now(), reason.clone()));
    Verdict::found(Finding {
        subjects: vec![pod.reference()],
        since: None,
        impact: Impact::Breaks,
        claim: format!(
            "{} asks {} for names, not {dns} at {address}: {reason}",
            pod.reference(),
            dns::listed(&servers)
        ),
        proofs,
        predicts: dns::FATES,
        fix: Fix {
            text: format!(
                "where {} is made from, {remedy}; a pod keeps what it was started with, so start it anew",
                pod.reference()
            ),
            commands: Vec::new(),
            verify: path.ask_again(),
        },
    })
}

/// Why the pod gets other servers, and what would change that. None where it gets the cluster's.
fn excluded(pod: &Pod) -> Option<(String, &'static str)> {
    if dns::is_by_cluster(pod) {
        return None;
    }
    Some(match pod.spec.dns_policy.as_str() {
        "" | "ClusterFirst" => (
            "it is on the node's network, where dnsPolicy ClusterFirst means the node's own servers".to_owned(),
            "set dnsPolicy to ClusterFirstWithHostNet",
        ),
        "None" => (
            "its dnsPolicy is None, so dnsConfig alone names its servers".to_owned(),
            "add the cluster's DNS to dnsConfig.nameservers, or set dnsPolicy to ClusterFirst",
        ),
        other if pod.spec.host_network => {
            (format!("its dnsPolicy is {other}"), "set dnsPolicy to ClusterFirstWithHostNet")
        }
        other => (format!("its dnsPolicy is {other}"), "set dnsPolicy to ClusterFirst"),
    })
}
