//! The name that was asked for stands for no Service.

use std::sync::Arc;

use super::{Condition, Read, Severity, Verdict, Words};
use crate::evidence::object::{Object, Service};
use crate::evidence::{Kind, KindName, Look, ObjectRef, View};
use crate::finding::{Fate, Finding, Fix, Impact, Proof};
use crate::path::{self, DnsName, Path, ServiceName, edit_distance};
use crate::question::Origin;

pub const CONDITION: Condition = Condition {
    code: "name_does_not_exist",
    severity: Severity::High,
    words: Words {
        means: "the asked name stands for no Service: it is misspelt, in another namespace, or deleted",
        how_we_know: "none of the names that the client's search list makes of it is a Service, and lookups find nothing",
        silent_when: "the name is outside the cluster's domain, a name server knows it, the lookup itself fails, or only \
                      the client's search list is missing",
        what_to_do: "ask for the Service's real name, with its namespace, or create the Service",
        sources: &[
            "https://kubernetes.io/docs/concepts/services-networking/dns-pod-service/#services",
            "https://man7.org/linux/man-pages/man5/resolv.conf.5.html",
        ],
    },
    faults: &["svc-missing-or-wrong-namespace"],
    reads: &[
        Read::Kind(KindName::Services),
        Read::Kind(KindName::Namespaces),
        Read::Kind(KindName::ConfigMaps),
        Read::Topic("resolver"),
        Read::Topic("probe"),
    ],
    lookalikes: &["cluster_dns_has_no_endpoints", "egress_policy_blocks_dns"],
    explains: &[],
    judge,
};

/// CoreDNS plugins that make names out of nothing: with them the absence of a Service proves nothing.
const INVENTING_PLUGINS: [&str; 4] = ["rewrite", "hosts", "template", "file"];

fn judge(path: &Path, view: &mut View) -> Verdict {
    let Some(name) = &path.name else { return Verdict::not_applicable("no name was asked") };
    if let (Some(leads), Some(service)) = (name.leads, path.service()) {
        return Verdict::clear(format!("{} is {}", name.candidates[leads], service.reference()));
    }
    let (Look::Seen(services), Look::Seen(namespaces)) = (view.services(), view.namespaces()) else {
        return Verdict::unknown(view);
    };
    let services = services.value;
    let (asker, search) = match path.clients.as_slice() {
        [client] if path.question.from != Origin::EveryNode => {
            let own = client.pod.as_ref().map_or("", |pod| pod.metadata.namespace.as_str());
            match view.resolver(&client.node, &client.netns) {
                Look::Seen(resolver) => (own, Some((client, resolver))),
                // Without the search list only a name that needs none can be judged.
                Look::Absent(_) | Look::Dark if !name.is_in_cluster_domain() => return Verdict::unknown(view),
                Look::Absent(_) | Look::Dark => (own, None),
            }
        }
        _ if name.is_in_cluster_domain() => ("", None),
        _ => return Verdict::not_applicable("a short name means nothing without the pod that asks"),
    };
    if let Some(service) = unsearched(name, asker, services) {
        return Verdict::clear(format!("{service} exists; it is the client's search list that does not lead to it"));
    }
    let exists = |namespace: &str| namespaces.value.get("", namespace).is_some();
    let Some(meant) = meant(name, services, exists) else {
        return Verdict::not_applicable("the name is not one that this cluster gives to Services");
    };
    let lookups = path::lookups(path, view);
    if let Some(found) = lookups.iter().find(|probe| probe.fate().is_none()) {
        return Verdict::clear(format!("the name is known: {}", found.words(path)));
    }
    if lookups.is_empty() && invents_names(view) {
        return Verdict::unknown(view);
    }
    let nowhere = |probe: &&path::ProbeSeen| probe.fate() == Some(Fate::LookupNoSuchName);
    if let (Some(first), None) = (lookups.first(), lookups.iter().find(nowhere)) {
        return Verdict::clear(format!("the lookup itself fails: {}", first.words(path)));
    }
    let missing = ObjectRef {
        kind: Service::KIND.to_owned(),
        namespace: meant.namespace.clone(),
        name: meant.service.clone(),
        ..ObjectRef::default()
    };
    let near = nearest(&meant, services);
    let in_namespace = services.in_namespace(&meant.namespace).count();
    let lack = if exists(&meant.namespace) {
        format!("there is no {missing}")
    } else {
        format!("there is no {missing}, nor a namespace {}", meant.namespace)
    };
    let mut proofs = vec![Proof::intended(
        "Services",
        view.now(),
        format!("{in_namespace} Services in namespace {}, none named {}", meant.namespace, meant.service),
    )];
    let mut form = String::new();
    if let Some((client, resolver)) = search {
        let list = resolver.value.search.join(" ");
        form = format!(" from {} with the search list \"{list}\"", client.reference);
        let text = format!("search {list}, ndots {}: asks for {}", resolver.value.ndots, name.candidates.join(", "));
        proofs.push(Proof::programmed(format!("resolv.conf of {}", client.reference), &client.node, resolver.at, text));
    }
    let nearby = match near.first() {
        Some(_) => format!("; nearest is {}", near.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")),
        None => String::new(),
    };
    let text = match near.first() {
        Some(near) => {
            let full = format!("{}.{}.svc.{}", near.name, near.namespace, name.cluster_domain);
            format!("ask for {full} if {near} is meant, or create {missing}")
        }
        None => format!("create {missing}, or ask for a Service that exists"),
    };
    // What is there and was probably meant; else whoever asks for what is not there.
    let asker = search.map_or(missing, |(client, _)| client.reference.clone());
    let subjects = vec![near.into_iter().next().unwrap_or(asker)];
    Verdict::found(Finding {
        subjects,
        since: None,
        impact: Impact::Breaks,
        claim: format!("{:?}, asked{form}, is no Service: {lack}{nearby}", name.asked),
        proofs,
        predicts: &[Fate::LookupNoSuchName],
        fix: Fix { text, commands: Vec::new(), verify: path.ask_again() },
    })
}

/// The Service that the usual search list of the asker's namespace would lead to, when the client's own list does not.
fn unsearched(name: &DnsName, namespace: &str, services: &Kind<Service>) -> Option<ObjectRef> {
    if namespace.is_empty() {
        return None;
    }
    let domain = &name.cluster_domain;
    let usual = [format!("{namespace}.svc.{domain}"), format!("svc.{domain}"), domain.clone()];
    let usual = DnsName::new(&name.asked, &usual, 5).services();
    let service = |named: &ServiceName| services.get(&named.namespace, &named.service);
    usual.iter().filter(|named| !named.of_pod).find_map(service).map(|service| service.reference())
}

/// The Service the client most likely means; none for names that need not be the cluster's, like `example.com`.
fn meant(name: &DnsName, services: &Kind<Service>, exists: impl Fn(&str) -> bool) -> Option<ServiceName> {
    let explicit = name.is_in_cluster_domain() || name.asked.rsplit('.').next() == Some("svc");
    let close = |named: &ServiceName| {
        services.iter().any(|service| {
            service.metadata.name == named.service && edit_distance(&service.metadata.namespace, &named.namespace) <= 2
        })
    };
    let plain = name.services().into_iter().filter(|named| !named.of_pod);
    plain.into_iter().find(|named| explicit || exists(&named.namespace) || close(named))
}

/// The same name in other namespaces, then close names in the same one.
fn nearest(meant: &ServiceName, services: &Kind<Service>) -> Vec<ObjectRef> {
    let mut near: Vec<(usize, &Arc<Service>)> = services
        .iter()
        .filter_map(|service| {
            let distance = edit_distance(&service.metadata.name, &meant.service);
            match (service.metadata.namespace == meant.namespace, distance) {
                (false, 0) => Some((0, service)),
                // Two letters swapped are two edits; beyond that and a third of the name a suggestion is noise.
                (true, _) if distance <= (meant.service.len() / 3).max(2) && distance < meant.service.len() => {
                    Some((distance, service))
                }
                _ => None,
            }
        })
        .collect();
    near.sort_by_key(|(distance, _)| *distance);
    near.into_iter().take(3).map(|(_, service)| service.reference()).collect()
}

/// The Corefile has a plugin that answers for names without a Service; nothing is known when it cannot be read.
fn invents_names(view: &mut View) -> bool {
    let Look::Seen(maps) = view.config_maps() else { return true };
    let corefile = maps.value.get("kube-system", "coredns").and_then(|map| map.data.get("Corefile"));
    let first_word = |line: &str| line.split_whitespace().next().map(str::to_owned);
    corefile
        .is_some_and(|text| text.lines().filter_map(first_word).any(|word| INVENTING_PLUGINS.contains(&word.as_str())))
}
