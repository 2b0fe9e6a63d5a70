//! The domain that pods search for the cluster's names is not one that the cluster's DNS serves.

use std::net::IpAddr;

use netdiag_common::observation::kubelet::{Kubelet, SettingFrom};
use netdiag_common::observation::probe::ProbeRequest;
use netdiag_common::{Gap, Netns};

use super::dns;
use super::{Condition, Read, Severity, Verdict, Words};
use crate::evidence::corefile::{self, plain};
use crate::evidence::object::{Object, Pod};
use crate::evidence::{KindName, Look, ObjectRef, View};
use crate::finding::{Fate, Finding, Fix, Impact, Proof};
use crate::path::{self, Client, Path};

pub const CONDITION: Condition = Condition {
    code: "cluster_domain_not_served",
    severity: Severity::High,
    words: Words {
        means: "the search list of a node's pods ends in another domain than the cluster's DNS serves, so that they do not find Services \
                by their short names",
        how_we_know: "the pod's resolv.conf has the clusterDomain of its kubelet, which no `kubernetes` line of CoreDNS's Corefile has; \
                      the name is not found in it, and the same server gives it to the same pod in the Corefile's domain",
        silent_when: "the Corefile has the domain, a lookup is answered (as a `rewrite` makes it), the pod asks other servers than the \
                      cluster's DNS or does not follow its kubelet, the name is of no Service, or there is no Corefile in ConfigMap \
                      kube-system/coredns; it cannot be told where the kubelet names another domain by now: then the pod is older than \
                      that, or another wrote its file",
        what_to_do: "set clusterDomain in the kubelet's configuration to the Corefile's domain, restart the kubelet, and start the node's \
                     pods anew; or let CoreDNS serve the kubelet's domain",
        sources: &[
            "https://kubernetes.io/docs/reference/config-api/kubelet-config.v1beta1/",
            "https://coredns.io/plugins/kubernetes/",
            "https://github.com/kubernetes/kubernetes/blob/v1.34.0/pkg/kubelet/network/dns/dns.go (GetPodDNS)",
        ],
    },
    faults: &["dns-cluster-domain-mismatch"],
    reads: &[
        Read::Kind(KindName::Services),
        Read::Kind(KindName::ConfigMaps),
        Read::Topic("resolver"),
        Read::Topic("kubelet"),
        Read::Topic("probe"),
    ],
    lookalikes: &[
        "kubelet_names_wrong_dns",
        "cluster_dns_has_no_endpoints",
        "egress_policy_blocks_dns",
        "name_does_not_exist",
    ],
    explains: &[],
    judge,
};

/// A pod that searches a domain which the cluster's DNS does not serve.
struct Unserved {
    domain: String,
    /// Of the Corefile; at least one.
    served: Vec<String>,
    dns: ObjectRef,
    /// Of the pod's file, the Corefile, and the lookup in the domain that is served.
    proofs: Vec<Proof>,
}

fn judge(path: &Path, view: &mut View) -> Verdict {
    let Some((client, pod)) = dns::asker(path) else {
        return Verdict::not_applicable("no pod is asked about that looks a name up");
    };
    if pod.spec.host_network || !dns::is_by_cluster(pod) {
        return Verdict::not_applicable("the pod does not ask its kubelet for the cluster's DNS");
    }
    let Unserved { domain, served, dns, mut proofs } = match unserved(path, client, pod, view) {
        Ok(unserved) => unserved,
        Err(verdict) => return verdict,
    };
    let zone = &served[0];
    let kubelet = match view.kubelet(&client.node, &Netns::Host) {
        Look::Seen(kubelet) => kubelet,
        Look::Absent(_) => {
            let why = format!("node {} runs no process of its own that is named kubelet", client.node);
            let remedy = format!("compare clusterDomain of what starts the kubelet there with {zone}");
            view.leave_open(dns::open(client, why, remedy));
            return Verdict::unknown(view);
        }
        Look::Dark => return Verdict::unknown(view),
    };
    if plain(&kubelet.value.cluster_domain.value) != domain {
        view.leave_open(written_by_another(client, &domain, kubelet.value));
        return Verdict::unknown(view);
    }
    let (node, from) = (&client.node, &kubelet.value.cluster_domain.from);
    let text = format!("clusterDomain {domain} {from}");
    proofs.push(Proof::programmed("kubelet's settings", node, kubelet.at, text));
    Verdict::found(Finding {
        subjects: vec![ObjectRef::of_node(node)],
        since: None,
        impact: Impact::Breaks,
        claim: format!(
            "the kubelet of node {node} lets its pods search Services in the domain {domain}, and {dns} serves {}",
            served.join(", ")
        ),
        proofs,
        predicts: dns::FATES,
        fix: Fix {
            text: format!(
                "on node {node} set {} to {zone}, restart the kubelet, and start the pods anew that it has started: they \
                 keep what was written; or, if {domain} is what the cluster should be called, add it behind `kubernetes` \
                 in the Corefile",
                place(from)
            ),
            commands: Vec::new(),
            verify: path.ask_again(),
        },
    })
}

/// Compares the pod's search list with the Corefile; lookups decide.
fn unserved(path: &Path, client: &Client, pod: &Pod, view: &mut View) -> Result<Unserved, Verdict> {
    let moot = |because: String| Err(Verdict::not_applicable(because));
    let Some(name) = &path.name else { return moot("no name was asked".to_owned()) };
    let Look::Seen(services) = view.services() else { return Err(Verdict::unknown(view)) };
    let Some(dns) = view.cluster().dns_service() else {
        return moot("there is no Service kube-system/kube-dns".to_owned());
    };
    let resolver = match view.resolver(&client.node, &client.netns) {
        Look::Seen(resolver) => resolver,
        Look::Absent(_) => return moot(format!("{} has no resolv.conf", pod.reference())),
        Look::Dark => return Err(Verdict::unknown(view)),
    };
    if !resolver.value.nameservers.iter().any(|server| dns::leads_to(dns, *server)) {
        return moot(format!("{} does not ask {}", pod.reference(), dns.reference()));
    }
    let Some(domain) = path::cluster_domain(&resolver.value.search).map(|domain| plain(&domain)) else {
        return moot(format!("the search list of {} has no domain of a cluster", pod.reference()));
    };
    let Look::Seen(maps) = view.config_maps() else { return Err(Verdict::unknown(view)) };
    let corefile = maps.value.get("kube-system", "coredns").and_then(|map| map.data.get("Corefile"));
    let served = corefile.map(|text| corefile::served(text)).unwrap_or_default();
    let Some(zone) = served.first() else {
        return moot("no Corefile in ConfigMap kube-system/coredns names the cluster's domain".to_owned());
    };
    if served.contains(&domain) {
        return Err(Verdict::clear(format!("{} searches {domain}, which the Corefile serves", pod.reference())));
    }
    let meant = dns::meant(name, &pod.metadata.namespace, services.value);
    let Some((service, short)) =
        meant.and_then(|(service, full)| Some((service, full.strip_suffix(&name.cluster_domain)?.to_owned())))
    else {
        return moot("the name stands for no Service, so no domain of the cluster makes it known".to_owned());
    };
    let lookups = path::lookups(path, view);
    if lookups.is_empty() {
        return moot("nobody has looked the name up".to_owned());
    }
    if let Some(found) = lookups.iter().find(|lookup| lookup.fate().is_none()) {
        return Err(Verdict::clear(format!("the name is known all the same: {}", found.words(path))));
    }
    let speaks = |address: &IpAddr| client.addresses.iter().any(|own| own.is_ipv4() == address.is_ipv4());
    let Some(server) = dns.cluster_ips().into_iter().find(speaks) else {
        return moot(format!("{} has no address that the pod could ask", dns.reference()));
    };
    let there = format!("{short}{zone}");
    let (record, timeout_ms) = (dns::record(service), dns::TIMEOUT_MS);
    let question = ProbeRequest::Dns { server, zone: None, port: 53, name: there.clone(), record, timeout_ms };
    let Look::Seen(answer) = view.probe(&client.node, &client.netns, question) else {
        return Err(Verdict::unknown(view));
    };
    if let Some(attempt) = answer.value.attempts.iter().find(|attempt| Fate::of_lookup(&attempt.outcome).is_some()) {
        let why = format!("{} at {server} does not give {there} either: {}", dns.reference(), attempt.outcome.words());
        let remedy = format!("ask for the path to {} first", dns.reference());
        view.leave_open(dns::open(client, why, remedy));
        return Err(Verdict::unknown(view));
    }
    let search = format!("search {}", resolver.value.search.join(" "));
    let corefile = format!("its Corefile serves {} (plugin kubernetes)", served.join(", "));
    let answered = format!("{} at {server} answers {there} to the same pod", dns.reference());
    let proofs = vec![
        Proof::programmed(format!("resolv.conf of {}", pod.reference()), &client.node, resolver.at, search),
        Proof::intended("ConfigMap kube-system/coredns", view.now(), corefile),
        Proof::probe(format!("probe from {}", pod.reference()), &client.node, answer.at, answered),
    ];
    Ok(Unserved { domain, served, dns: dns.reference(), proofs })
}

fn written_by_another(client: &Client, domain: &str, kubelet: &Kubelet) -> Gap {
    let named = &kubelet.cluster_domain;
    let value = if named.value.is_empty() { "no domain" } else { &named.value };
    let why = format!(
        "it searches {domain}, and the kubelet of node {} names {value} {}: the pod is older than that, or its resolv.conf was written \
         by another",
        client.node, named.from
    );
    dns::open(client, why, format!("start {} anew, and look at its resolv.conf again", client.reference))
}

/// What has to be changed.
fn place(from: &SettingFrom) -> String {
    match from {
        SettingFrom::Default => "clusterDomain in the kubelet's configuration".to_owned(),
        SettingFrom::Flag { name } => format!("the kubelet's flag {name}"),
        SettingFrom::File { path } => format!("clusterDomain in {path}"),
    }
}
