//! Whom a pod asks for names, and whether the cluster's DNS would know better: what conditions about its DNS share.

use std::net::IpAddr;
use std::sync::Arc;

use netdiag_common::observation::probe::{DnsRecord, ProbeRequest};
use netdiag_common::{Gap, GapReason};

use crate::evidence::cluster::Kind;
use crate::evidence::object::{Object, Pod, Service};
use crate::evidence::{Look, ObjectRef, View};
use crate::finding::{Fate, Proof};
use crate::path::{self, Client, DnsName, Path};
use crate::question::Origin;

/// Name servers that a resolver uses of its list (MAXNS of resolv.conf(5)).
const MAX_SERVERS: usize = 3;
/// As the client's own lookups.
pub const TIMEOUT_MS: u32 = 1_500;

/// What lookups at a server meet that is not the cluster's: nobody is there, or it does not know.
pub const FATES: &[Fate] = &[
    Fate::LookupNoSuchName,
    Fate::LookupServerError,
    Fate::LookupRefused,
    Fate::LookupSilence,
    Fate::LookupUnreachable,
];

/// A pod that asks servers which do not know the name, while the cluster's DNS does.
pub struct Elsewhere {
    /// As its resolv.conf has them.
    pub servers: Vec<IpAddr>,
    pub dns: ObjectRef,
    /// The cluster's DNS, as the pod should reach it.
    pub address: IpAddr,
    /// Of the file, and of the lookup at the cluster's DNS.
    pub proofs: Vec<Proof>,
}

pub enum Asks {
    Elsewhere(Box<Elsewhere>),
    /// Why that is no cause.
    Fine(String),
    /// Nothing that could be compared.
    Moot(String),
    Dark,
}

/// The one pod that looks the asked name up.
pub fn asker(path: &Path) -> Option<(&Client, &Arc<Pod>)> {
    let (Some(_), [client]) = (&path.name, path.clients.as_slice()) else { return None };
    let pod = client.pod.as_ref()?;
    (path.question.from != Origin::EveryNode).then_some((client, pod))
}

/// `ClusterFirst` is the default, and falls back to the node's resolver for hostNetwork pods.
pub fn is_by_cluster(pod: &Pod) -> bool {
    match pod.spec.dns_policy.as_str() {
        "" | "ClusterFirst" => !pod.spec.host_network,
        other => other == "ClusterFirstWithHostNet",
    }
}

/// The cluster's DNS is at this address, or a cache on the node that asks it: those listen at a link-local address.
pub fn leads_to(dns: &Service, server: IpAddr) -> bool {
    dns.cluster_ips().contains(&server) || matches!(server, IpAddr::V4(v4) if v4.is_link_local())
}

/// Whom the pod asks, by its own resolv.conf. Lookups decide: a server of another address may be the cluster's too.
pub fn asks(path: &Path, client: &Client, pod: &Pod, view: &mut View) -> Asks {
    let Some(name) = &path.name else { return Asks::Moot("no name was asked".to_owned()) };
    let Look::Seen(services) = view.services() else { return Asks::Dark };
    let Some(dns) = view.cluster().dns_service() else {
        return Asks::Moot("there is no Service kube-system/kube-dns".to_owned());
    };
    let resolver = match view.resolver(&client.node, &client.netns) {
        Look::Seen(resolver) => resolver,
        Look::Absent(_) => return Asks::Moot(format!("{} has no resolv.conf", pod.reference())),
        Look::Dark => return Asks::Dark,
    };
    let servers: Vec<IpAddr> = resolver.value.nameservers.iter().copied().take(MAX_SERVERS).collect();
    if servers.is_empty() {
        return Asks::Moot(format!("resolv.conf of {} names no server", pod.reference()));
    }
    if servers.iter().any(|server| leads_to(dns, *server)) {
        return Asks::Fine(format!("{} asks {}", pod.reference(), dns.reference()));
    }
    let Some((service, full)) = meant(name, &pod.metadata.namespace, services.value) else {
        return Asks::Moot("the name stands for no Service, so other servers may be those that know it".to_owned());
    };
    let lookups = path::lookups(path, view);
    if lookups.is_empty() {
        return Asks::Moot("nobody has looked the name up at the pod's servers".to_owned());
    }
    if let Some(found) = lookups.iter().find(|lookup| lookup.fate().is_none()) {
        return Asks::Fine(format!("the name is known there: {}", found.words(path)));
    }
    let speaks = |address: &IpAddr| client.addresses.iter().any(|own| own.is_ipv4() == address.is_ipv4());
    let Some(address) = dns.cluster_ips().into_iter().find(speaks) else {
        return Asks::Moot(format!("{} has no address that {} could ask", dns.reference(), pod.reference()));
    };
    let question = ProbeRequest::Dns {
        server: address,
        zone: None,
        port: 53,
        name: full.clone(),
        record: record(service),
        timeout_ms: TIMEOUT_MS,
    };
    let Look::Seen(answer) = view.probe(&client.node, &client.netns, question) else { return Asks::Dark };
    if let Some(attempt) = answer.value.attempts.iter().find(|attempt| Fate::of_lookup(&attempt.outcome).is_some()) {
        let words =
            format!("{} at {address} does not give {full} either: {}", dns.reference(), attempt.outcome.words());
        view.leave_open(open(client, words, format!("ask for the path to {} first", dns.reference())));
        return Asks::Dark;
    }
    let proofs = vec![
        Proof::programmed(
            format!("resolv.conf of {}", pod.reference()),
            &client.node,
            resolver.at,
            format!("nameserver {}; search {}", listed(&servers), resolver.value.search.join(" ")),
        ),
        Proof::probe(
            format!("probe from {}", pod.reference()),
            &client.node,
            answer.at,
            format!("{} at {address} answers {full} to the same pod", dns.reference()),
        ),
    ];
    Asks::Elsewhere(Box::new(Elsewhere { servers, dns: dns.reference(), address, proofs }))
}

/// What stays open about a pod's servers.
pub fn open(client: &Client, why: String, remedy: String) -> Gap {
    Gap {
        what: format!("who gave {} its name servers", client.reference),
        node: Some(client.node.clone()),
        reason: GapReason::Failed,
        why,
        remedy,
    }
}

/// `10.96.0.99, 10.96.0.98`.
pub fn listed(addresses: &[IpAddr]) -> String {
    addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

/// The Service that the cluster's own search list leads to, with its full name.
pub fn meant<'s>(name: &DnsName, namespace: &str, services: &'s Kind<Service>) -> Option<(&'s Arc<Service>, String)> {
    let domain = &name.cluster_domain;
    let usual = [format!("{namespace}.svc.{domain}"), format!("svc.{domain}"), domain.clone()];
    let usual = DnsName::new(&name.asked, &usual, 5);
    usual.services().into_iter().filter(|named| !named.of_pod).find_map(|named| {
        let service = services.get(&named.namespace, &named.service)?;
        Some((service, usual.candidates[named.candidate].clone()))
    })
}

/// A Service of IPv6 alone has no A record.
pub fn record(service: &Service) -> DnsRecord {
    let addresses = service.cluster_ips();
    let only_v6 = !addresses.is_empty() && addresses.iter().all(IpAddr::is_ipv6);
    if only_v6 { DnsRecord::Aaaa } else { DnsRecord::A }
}
