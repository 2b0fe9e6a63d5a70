//! The kubelet of a node writes the address of another name server into its pods' resolv.conf than the cluster's DNS has.

use netdiag_common::observation::kubelet::{Kubelet, SettingFrom};
use netdiag_common::{Gap, Netns};

use super::dns::{self, Asks, Elsewhere};
use super::{Condition, Read, Severity, Verdict, Words};
use crate::evidence::object::Object;
use crate::evidence::{KindName, Look, ObjectRef, View};
use crate::finding::{Finding, Fix, Impact, Proof};
use crate::path::{Client, Path};

pub const CONDITION: Condition = Condition {
    code: "kubelet_names_wrong_dns",
    severity: Severity::High,
    words: Words {
        means: "the kubelet of a node gives its pods another name server than the cluster's DNS, or none, so that they do not find the \
                cluster's names",
        how_we_know: "the pod's resolv.conf has the addresses of its kubelet's clusterDNS and none of the DNS Service; its lookups there \
                      fail, and the same pod gets the name from the DNS Service",
        silent_when: "one of the pod's servers is the DNS Service or at a link-local address (NodeLocal DNSCache), a lookup is answered, \
                      the pod's dnsPolicy asks for other servers, or the name is of no Service; it cannot be told where the kubelet \
                      names the right address by now: then the pod is older than that, or another wrote its file",
        what_to_do: "set clusterDNS in the kubelet's configuration to the DNS Service's address, restart the kubelet, and start the \
                     node's pods anew",
        sources: &[
            "https://kubernetes.io/docs/reference/config-api/kubelet-config.v1beta1/",
            "https://github.com/kubernetes/kubernetes/blob/v1.34.0/pkg/kubelet/network/dns/dns.go (GetPodDNS)",
        ],
    },
    faults: &["dns-kubelet-wrong-server"],
    reads: &[Read::Kind(KindName::Services), Read::Topic("resolver"), Read::Topic("kubelet"), Read::Topic("probe")],
    lookalikes: &["cluster_dns_has_no_endpoints", "egress_policy_blocks_dns", "name_does_not_exist"],
    explains: &[],
    judge,
};

fn judge(path: &Path, view: &mut View) -> Verdict {
    let Some((client, pod)) = dns::asker(path) else {
        return Verdict::not_applicable("no pod is asked about that looks a name up");
    };
    if pod.spec.host_network || !dns::is_by_cluster(pod) {
        return Verdict::not_applicable("the pod does not ask its kubelet for the cluster's DNS");
    }
    let elsewhere = match dns::asks(path, client, pod, view) {
        Asks::Elsewhere(elsewhere) => elsewhere,
        Asks::Fine(because) => return Verdict::clear(because),
        Asks::Moot(because) => return Verdict::not_applicable(because),
        Asks::Dark => return Verdict::unknown(view),
    };
    let kubelet = match view.kubelet(&client.node, &Netns::Host) {
        Look::Seen(kubelet) => kubelet,
        Look::Absent(_) => {
            let why = format!("node {} runs no process of its own that is named kubelet", client.node);
            let remedy =
                "compare clusterDNS of what starts the kubelet there with the DNS Service's address".to_owned();
            view.leave_open(dns::open(client, why, remedy));
            return Verdict::unknown(view);
        }
        Look::Dark => return Verdict::unknown(view),
    };
    let named = &kubelet.value.cluster_dns;
    let is_written = named.value.iter().any(|server| elsewhere.servers.contains(server));
    if named.value.contains(&elsewhere.address) || (!named.value.is_empty() && !is_written) {
        view.leave_open(written_by_another(client, &elsewhere, kubelet.value));
        return Verdict::unknown(view);
    }
    let Elsewhere { servers, dns, address, mut proofs } = *elsewhere;
    let node = &client.node;
    let claim = if named.value.is_empty() {
        format!(
            "the kubelet of node {node} names no DNS server for its pods, so {} asks the node's own, {}, and not {dns} at {address}",
            pod.reference(),
            dns::listed(&servers)
        )
    } else {
        format!(
            "the kubelet of node {node} tells its pods to ask {} for names, not {dns} at {address}",
            dns::listed(&named.value)
        )
    };
    proofs.push(Proof::programmed("kubelet's settings", node, kubelet.at, settings(kubelet.value)));
    let addresses = format!("{dns} has {address}");
    proofs.push(Proof::intended(&dns, view.now(), addresses));
    Verdict::found(Finding {
        subjects: vec![ObjectRef::of_node(node)],
        since: None,
        impact: Impact::Breaks,
        claim,
        proofs,
        predicts: dns::FATES,
        fix: Fix {
            text: format!(
                "on node {node} set {} to {address}, restart the kubelet, and start the pods anew that it has started: they keep what \
                 was written",
                place(&named.from)
            ),
            commands: Vec::new(),
            verify: path.ask_again(),
        },
    })
}

/// The kubelet names the cluster's DNS, or a third server: it did not write what the pod has, or not since.
fn written_by_another(client: &Client, elsewhere: &Elsewhere, kubelet: &Kubelet) -> Gap {
    let why = format!(
        "it asks {}, and the kubelet of node {} names {} {}: the pod is older than that, or its resolv.conf was written by another",
        dns::listed(&elsewhere.servers),
        client.node,
        dns::listed(&kubelet.cluster_dns.value),
        kubelet.cluster_dns.from
    );
    let remedy = format!("start {} anew, and look at its resolv.conf again", client.reference);
    dns::open(client, why, remedy)
}

/// `clusterDNS 10.96.0.99 by /var/lib/kubelet/config.yaml`.
fn settings(kubelet: &Kubelet) -> String {
    let Kubelet { cluster_dns, unusable, resolv_conf, .. } = kubelet;
    let mut words = match cluster_dns.value.as_slice() {
        [] => format!("clusterDNS has no address {}; resolvConf {}", cluster_dns.from, resolv_conf.value),
        addresses => format!("clusterDNS {} {}", dns::listed(addresses), cluster_dns.from),
    };
    if !unusable.is_empty() {
        words.push_str(&format!("; no addresses, and left out: {}", unusable.join(", ")));
    }
    words
}

/// What has to be changed.
fn place(from: &SettingFrom) -> String {
    match from {
        SettingFrom::Default => "clusterDNS in the kubelet's configuration".to_owned(),
        SettingFrom::Flag { name } => format!("the kubelet's flag {name}"),
        SettingFrom::File { path } => format!("clusterDNS in {path}"),
    }
}
