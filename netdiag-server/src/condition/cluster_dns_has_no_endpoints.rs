//! The cluster's DNS Service has no ready server, so no name of the cluster can be looked up.

use netdiag_common::observation::Protocol;

use super::dns::{is_by_cluster, leads_to, listed};
use super::unready::{self, Endpoints};
use super::{Condition, Explains, Read, Relation, Severity, Verdict, Words, proof};
use crate::evidence::object::{Object, Service};
use crate::evidence::{KindName, Look, View};
use crate::finding::{Fate, Finding, Fix, Impact};
use crate::path::Path;
use crate::question::Origin;

pub const CONDITION: Condition = Condition {
    code: "cluster_dns_has_no_endpoints",
    severity: Severity::Critical,
    words: Words {
        means: "no DNS server of the cluster is ready, so names cannot be looked up",
        how_we_know: "the DNS Service has no ready endpoint, nodes refuse its address, and lookups fail",
        silent_when: "a DNS server is ready, or the asking pod uses other name servers",
        what_to_do: "scale the DNS servers up, or make their pods ready",
        sources: &["https://kubernetes.io/docs/tasks/administer-cluster/dns-debugging-resolution/"],
    },
    faults: &["dns-coredns-down"],
    reads: &[
        Read::Kind(KindName::Services),
        Read::Kind(KindName::EndpointSlices),
        Read::Kind(KindName::Pods),
        Read::Kind(KindName::Workloads),
        Read::Kind(KindName::Nodes),
        Read::Kind(KindName::Events),
        Read::Topic("resolver"),
        Read::Topic("service_rules"),
    ],
    lookalikes: &["egress_policy_blocks_dns", "kube_proxy_rules_stale"],
    explains: &[
        Explains { code: "service_has_no_ready_endpoints", relation: Relation::SameService },
        Explains { code: "service_selects_no_pods", relation: Relation::SameService },
        Explains { code: "name_does_not_exist", relation: Relation::SamePath },
    ],
    judge,
};

fn judge(path: &Path, view: &mut View) -> Verdict {
    let by_name = !path.is_dns();
    if by_name && path.name.is_none() {
        return Verdict::not_applicable("no name was asked, and the path does not lead to the cluster's DNS");
    }
    let Look::Seen(_) = view.services() else { return Verdict::unknown(view) };
    let Some(dns) = view.cluster().dns_service() else {
        return Verdict::not_applicable("there is no Service kube-system/kube-dns");
    };
    let reference = dns.reference();
    let lack = match unready::endpoints(dns, dns_port(path, dns), view) {
        Endpoints::Dark => return Verdict::unknown(view),
        Endpoints::Ready { ready, total } => {
            return Verdict::clear(format!("{ready} of {total} endpoints of {reference} are ready"));
        }
        Endpoints::Draining(count) => {
            return Verdict::clear(format!("{count} terminating endpoints of {reference} still serve"));
        }
        Endpoints::SelectsNothing => None,
        Endpoints::Lacking(lack) => Some(lack),
    };
    if by_name {
        match uses(path, dns, view) {
            Uses::Yes => {}
            Uses::No(servers) => return Verdict::clear(format!("the client asks {servers}, not {reference}")),
            Uses::NotSeen => return Verdict::unknown(view),
        }
    }
    let mut subjects = vec![reference.clone()];
    let (why, since, mut proofs, fix) = match lack {
        Some(lack) => {
            subjects.extend(lack.subjects);
            (lack.why, lack.since, lack.proofs, lack.fix)
        }
        None => (
            "no pod and no workload of kube-system carries the labels it selects".to_owned(),
            dns.metadata.changed_at,
            vec![crate::finding::Proof::intended(&reference, view.now(), "its selector matches 0 pods")],
            Fix { text: "install the cluster's DNS servers, or repair the selector".to_owned(), ..Fix::default() },
        ),
    };
    let told = match (by_name, dns.cluster_ips().first(), path.clients.first()) {
        (true, Some(address), Some(client)) => proof::refused_by_rules(client, *address, 53, Protocol::Udp, view),
        _ => proof::nothing_to_forward_to(path, view),
    };
    proofs.extend(told);
    Verdict::found(Finding {
        subjects,
        since,
        impact: Impact::Breaks,
        claim: format!("the cluster's DNS, {reference}, has no ready endpoint: {why}"),
        proofs,
        predicts: if by_name {
            // A cache on the node (NodeLocal DNSCache) answers SERVFAIL instead.
            // Most proxies refuse; some drop what has nowhere to go.
            &[Fate::LookupRefused, Fate::LookupUnreachable, Fate::LookupServerError, Fate::LookupSilence]
        } else {
            &[Fate::Refused, Fate::Unreachable, Fate::Silence]
        },
        fix: Fix { verify: path.ask_again(), ..fix },
    })
}

fn dns_port<'s>(path: &'s Path, dns: &'s Service) -> Option<&'s crate::evidence::object::ServicePort> {
    if path.is_dns() {
        return path.service_port();
    }
    dns.spec.ports.iter().find(|port| port.port == 53 && port.protocol.0 == Protocol::Udp)
}

enum Uses {
    Yes,
    /// The name servers it asks instead.
    No(String),
    NotSeen,
}

/// Whether the client's lookups reach the cluster's DNS: by its resolv.conf, else by its dnsPolicy.
fn uses(path: &Path, dns: &Service, view: &mut View) -> Uses {
    let (false, [client]) = (path.question.from == Origin::EveryNode, path.clients.as_slice()) else {
        return Uses::Yes;
    };
    match view.resolver(&client.node, &client.netns) {
        Look::Seen(resolver) => {
            let servers = &resolver.value.nameservers;
            if servers.iter().any(|server| leads_to(dns, *server)) {
                return Uses::Yes;
            }
            Uses::No(listed(servers))
        }
        Look::Absent(_) | Look::Dark if client.pod.as_ref().is_some_and(|pod| is_by_cluster(pod)) => Uses::Yes,
        Look::Absent(_) | Look::Dark => Uses::NotSeen,
    }
}
