//! What somebody wants to watch: which nodes are asked, and which rows are shown.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use netdiag_common::observation::Owner;
use netdiag_common::{Need, Netns, Window};
use serde::{Deserialize, Serialize};

use super::names::ends;
use super::{Needs, Subject};
use crate::evidence::Cluster;
use crate::evidence::object::Pod;
use crate::path::{self, ResolveError};

/// Network namespaces asked one by one in one look: a look must end before the next one begins.
const MAX_NAMESPACES: usize = 128;

/// As it was asked (`POST /v1/observe`). Empty filters select nothing away; all given ones must hold.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Wanted {
    /// None: an overview, with what goes wrong of all subjects that tell pods apart.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub subject: Option<Subject>,
    pub window: Window,
    /// Also what harms nobody.
    pub all: bool,
    /// `NAMESPACE/NAME`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub pod: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub namespace: String,
    /// `NAMESPACE/NAME`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub service: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub node: String,
    /// Part of a reason's, result's or name's text, whatever its case.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub reason: String,
}

/// What [`Wanted`] means in this cluster now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Selection {
    /// Nodes that can have seen it, by name.
    pub nodes: BTreeSet<String>,
    /// Pods on these nodes that have a network namespace of their own and are meant, by node and UID.
    pods: Vec<(String, String)>,
    scopes: Vec<Scope>,
    /// Lower case.
    reason: String,
}

/// One filter that names objects.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Scope {
    uids: BTreeSet<String>,
    addresses: BTreeSet<IpAddr>,
    /// What happens in a namespace counts, whatever addresses it has to do with: a pod is meant, not a Service.
    by_owner: bool,
}

/// The text is no `NAMESPACE/NAME`, or names something that is not there.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SelectError {
    #[error("{text:?} does not name a {kind}: use NAMESPACE/NAME")]
    Name { kind: &'static str, text: String },
    #[error("no node can have seen what all of these filters mean: leave one of them out")]
    Nowhere,
    #[error(transparent)]
    Resolve(#[from] ResolveError),
}

impl Wanted {
    pub fn subjects(&self) -> Vec<Subject> {
        self.subject.map_or_else(|| Subject::OVERVIEW.to_vec(), |subject| vec![subject])
    }

    /// One need per node and subject; of some subjects, one per network namespace.
    pub fn needs(&self, selection: &Selection) -> Needs {
        let mut needs = Needs::default();
        for subject in self.subjects() {
            let need =
                |node: &str, netns| Need { node: node.to_owned(), netns, topic: subject.topic(), window: self.window };
            if !subject.is_per_namespace() {
                needs.needs.extend(selection.nodes.iter().map(|node| need(node, Netns::Host)));
                if subject == Subject::Drops {
                    // A drop is told together with what answered it.
                    let answers = |node| Need { topic: Subject::Rejects.topic(), ..need(node, Netns::Host) };
                    needs.needs.extend(selection.nodes.iter().map(|node| answers(node)));
                }
                continue;
            }
            let hosts = selection.nodes.iter().filter(|_| selection.scopes.is_empty());
            let hosts = hosts.map(|node| need(node, Netns::Host));
            let pods = selection.pods.iter().map(|(node, uid)| need(node, Netns::Pod(uid.clone())));
            let all: Vec<Need> = hosts.chain(pods).collect();
            needs.left_out += all.len().saturating_sub(MAX_NAMESPACES);
            needs.needs.extend(all.into_iter().take(MAX_NAMESPACES));
        }
        needs
    }

    pub fn select(&self, cluster: &Cluster) -> Result<Selection, SelectError> {
        let every_node = || cluster.nodes.iter().map(|node| node.metadata.name.clone()).collect::<BTreeSet<_>>();
        let mut nodes = every_node();
        let mut scopes = Vec::new();
        if !self.node.is_empty() {
            path::exists(&cluster.nodes, "Node", "", &self.node)?;
            nodes.retain(|node| *node == self.node);
        }
        if !self.pod.is_empty() {
            let (namespace, name) = split("Pod", &self.pod)?;
            let pod = path::exists(&cluster.pods, "Pod", namespace, name)?;
            if pod.spec.node_name.is_empty() {
                return Err(ResolveError::Unscheduled { name: self.pod.clone() }.into());
            }
            nodes.retain(|node| *node == pod.spec.node_name);
            scopes.push(Scope::of_pods(std::iter::once(&**pod)));
        }
        if !self.namespace.is_empty() {
            // Without the right to list namespaces, their pods name them.
            if cluster.namespaces.gap().is_none() {
                path::exists(&cluster.namespaces, "namespace", "", &self.namespace)?;
            }
            let pods = || cluster.pods.in_namespace(&self.namespace).map(|pod| &**pod);
            let mut scope = Scope::of_pods(pods());
            let services = cluster.services.in_namespace(&self.namespace);
            let service_addresses: BTreeSet<IpAddr> = services.flat_map(|service| service.cluster_ips()).collect();
            // The clients of a Service may be anywhere.
            if service_addresses.is_empty() {
                let with_pods: BTreeSet<&str> = pods().map(|pod| pod.spec.node_name.as_str()).collect();
                nodes.retain(|node| with_pods.contains(node.as_str()));
            }
            scope.addresses.extend(service_addresses);
            scopes.push(scope);
        }
        if !self.service.is_empty() {
            let (namespace, name) = split("Service", &self.service)?;
            let service = path::exists(&cluster.services, "Service", namespace, name)?;
            let endpoints = cluster.slices_of(service).flat_map(|slice| &slice.endpoints);
            let behind: Vec<IpAddr> =
                endpoints.flat_map(|endpoint| &endpoint.addresses).filter_map(|address| address.parse().ok()).collect();
            let pods = cluster.pods.iter().filter(|pod| pod.addresses().any(|own| behind.contains(&own)));
            let mut scope = Scope { by_owner: false, ..Scope::of_pods(pods.map(|pod| &**pod)) };
            scope.addresses.extend(service.cluster_ips());
            scope.addresses.extend(behind);
            scopes.push(scope);
        }
        if nodes.is_empty() && !cluster.nodes.is_empty() {
            return Err(SelectError::Nowhere);
        }
        let with_own_namespace = |pod: &&Arc<Pod>| !pod.spec.host_network && !pod.is_finished();
        let pods = cluster.pods.iter().filter(with_own_namespace).filter(|pod| nodes.contains(&pod.spec.node_name));
        let meant = pods.filter(|pod| scopes.iter().all(|scope: &Scope| scope.uids.contains(&pod.metadata.uid)));
        let pods = meant.map(|pod| (pod.spec.node_name.clone(), pod.metadata.uid.clone())).collect();
        Ok(Selection { nodes, pods, scopes, reason: self.reason.to_lowercase() })
    }
}

fn split<'t>(kind: &'static str, text: &'t str) -> Result<(&'t str, &'t str), SelectError> {
    match text.split_once('/') {
        Some((namespace, name)) if !namespace.is_empty() && !name.is_empty() && !name.contains('/') => {
            Ok((namespace, name))
        }
        _ => Err(SelectError::Name { kind, text: text.to_owned() }),
    }
}

impl Scope {
    fn of_pods<'c>(pods: impl Iterator<Item = &'c Pod>) -> Self {
        let (uids, addresses) = ends(pods);
        Self { uids, addresses, by_owner: true }
    }

    fn takes(&self, owner: &Owner, addresses: &[IpAddr]) -> bool {
        let is_owner = matches!(owner, Owner::Pod { uid } if self.uids.contains(uid));
        let has_address = addresses.iter().any(|address| self.addresses.contains(address));
        has_address || (is_owner && (self.by_owner || addresses.is_empty()))
    }
}

impl Selection {
    /// Whether what happened in this namespace, with these addresses, is meant.
    pub fn takes(&self, owner: &Owner, addresses: &[IpAddr]) -> bool {
        self.scopes.iter().all(|scope| scope.takes(owner, addresses))
    }

    /// Whether one of these words has the wanted text in it.
    pub fn has_reason(&self, words: &[&str]) -> bool {
        self.reason.is_empty() || words.iter().any(|word| word.to_lowercase().contains(&self.reason))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::evidence::parse;

    fn cluster() -> Cluster {
        let mut cluster = Cluster::default();
        for object in [
            json!({"kind": "Node", "metadata": {"name": "n1"}}),
            json!({"kind": "Node", "metadata": {"name": "n2"}}),
            json!({"kind": "Namespace", "metadata": {"name": "shop"}}),
            json!({"kind": "Namespace", "metadata": {"name": "lab"}}),
            json!({"kind": "Pod", "metadata": {"name": "web-1", "namespace": "shop", "uid": "u1"},
                   "spec": {"nodeName": "n1"}, "status": {"podIP": "10.244.1.4"}}),
            json!({"kind": "Pod", "metadata": {"name": "other", "namespace": "lab", "uid": "u2"},
                   "spec": {"nodeName": "n2"}, "status": {"podIP": "10.244.2.9"}}),
            json!({"kind": "Service", "metadata": {"name": "web", "namespace": "shop"},
                   "spec": {"clusterIP": "10.96.0.5"}}),
            json!({"kind": "EndpointSlice", "metadata": {"name": "web-x", "namespace": "shop",
                   "labels": {"kubernetes.io/service-name": "web"}}, "endpoints": [{"addresses": ["10.244.1.4"]}]}),
        ] {
            parse::add(&mut cluster, object).expect("an object");
        }
        cluster
    }

    fn pod(uid: &str) -> Owner {
        Owner::Pod { uid: uid.to_owned() }
    }

    fn addresses(list: &[&str]) -> Vec<IpAddr> {
        list.iter().map(|text| text.parse().expect("an address")).collect()
    }

    #[test]
    fn a_pod_is_meant_by_its_namespace_and_by_its_address() {
        let wanted = Wanted { pod: "shop/web-1".to_owned(), ..Wanted::default() };
        let selection = wanted.select(&cluster()).expect("a selection");
        assert_eq!(selection.nodes, BTreeSet::from(["n1".to_owned()]));
        assert!(selection.takes(&pod("u1"), &addresses(&["10.96.0.10"])));
        assert!(selection.takes(&Owner::Host, &addresses(&["10.244.1.4", "10.244.2.9"])));
        assert!(!selection.takes(&Owner::Host, &addresses(&["10.244.2.9"])));
    }

    #[test]
    fn a_service_is_meant_by_addresses_and_not_by_what_its_pods_do_elsewhere() {
        let wanted = Wanted { service: "shop/web".to_owned(), ..Wanted::default() };
        let selection = wanted.select(&cluster()).expect("a selection");
        assert_eq!(selection.nodes.len(), 2, "its clients may be anywhere");
        assert!(selection.takes(&pod("u2"), &addresses(&["10.96.0.5"])));
        assert!(!selection.takes(&pod("u1"), &addresses(&["10.96.0.10"])), "its pod asks DNS");
        assert!(selection.takes(&pod("u1"), &[]), "what has no address is its pod's own");
    }

    #[test]
    fn namespaces_are_asked_one_by_one_only_where_they_are_meant() {
        let asked = |wanted: Wanted| {
            let needs = wanted.needs(&wanted.select(&cluster()).expect("a selection"));
            needs.needs.into_iter().map(|need| (need.node, need.netns)).collect::<Vec<_>>()
        };
        let host = |node: &str| (node.to_owned(), Netns::Host);
        let of_pod = |node: &str, uid: &str| (node.to_owned(), Netns::Pod(uid.to_owned()));
        let sockets = Wanted { subject: Some(Subject::Sockets), ..Wanted::default() };
        assert_eq!(asked(sockets.clone()), [host("n1"), of_pod("n1", "u1"), host("n2"), of_pod("n2", "u2")]);
        assert_eq!(asked(Wanted { namespace: "shop".to_owned(), ..sockets }), [of_pod("n1", "u1")]);
        let drops = Wanted { subject: Some(Subject::Drops), namespace: "shop".to_owned(), ..Wanted::default() };
        let of_each = |node: &str| [host(node), host(node)];
        assert_eq!(asked(drops), [of_each("n1"), of_each("n2")].concat(), "drops and what answered them");
    }

    #[test]
    fn all_filters_must_hold() {
        let wanted = Wanted { pod: "shop/web-1".to_owned(), node: "n2".to_owned(), ..Wanted::default() };
        assert_eq!(wanted.select(&cluster()), Err(SelectError::Nowhere), "the pod is on n1");
        let wanted = Wanted { namespace: "lab".to_owned(), node: "n1".to_owned(), ..Wanted::default() };
        assert_eq!(wanted.select(&cluster()), Err(SelectError::Nowhere), "it has no Service that could be used there");
    }

    #[test]
    fn what_is_not_there_says_what_is() {
        for (wanted, says) in [
            (Wanted { pod: "web-1".to_owned(), ..Wanted::default() }, "use NAMESPACE/NAME"),
            (Wanted { pod: "shop/web-2".to_owned(), ..Wanted::default() }, "there is shop/web-1"),
            (Wanted { namespace: "shup".to_owned(), ..Wanted::default() }, "there is shop"),
            (Wanted { node: "n3".to_owned(), ..Wanted::default() }, "there is"),
        ] {
            let error = wanted.select(&cluster()).expect_err("a name that is not there").to_string();
            assert!(error.contains(says), "{error}");
        }
    }
}
