//! The intended view at one moment: every kind that is judged, each either listed or not readable.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use netdiag_common::observation::Protocol;
use netdiag_common::{Gap, GapReason};

use super::object::{
    ConfigMap, EndpointSlice, Event, Gateway, GrpcRoute, HttpRoute, Ingress, Namespace, NetworkPolicy, Node, Object,
    Pod, ReferenceGrant, Service, ServiceCidr, ServicePort, TlsRoute, Workload,
};

/// All objects of one kind, by (namespace, name).
#[derive(Debug, Clone)]
pub struct Kind<T> {
    objects: BTreeMap<(String, String), Arc<T>>,
    gap: Option<Gap>,
}

impl<T> Kind<T> {
    pub fn unavailable(gap: Gap) -> Self {
        Self { objects: BTreeMap::new(), gap: Some(gap) }
    }

    /// Why this kind could not be listed, or not all of it; then nothing may be concluded from what it holds.
    pub fn gap(&self) -> Option<&Gap> {
        self.gap.as_ref()
    }

    pub fn set_gap(&mut self, gap: Option<Gap>) {
        self.gap = gap;
    }

    pub fn get(&self, namespace: &str, name: &str) -> Option<&Arc<T>> {
        self.objects.get(&(namespace.to_owned(), name.to_owned()))
    }

    pub fn iter(&self) -> impl Iterator<Item = &Arc<T>> {
        self.objects.values()
    }

    pub fn in_namespace(&self, namespace: &str) -> impl Iterator<Item = &Arc<T>> {
        let from = (namespace.to_owned(), String::new());
        self.objects.range(from..).take_while(move |((ns, _), _)| *ns == namespace).map(|(_, object)| object)
    }

    pub fn len(&self) -> usize {
        self.objects.len()
    }

    pub fn is_empty(&self) -> bool {
        self.objects.is_empty()
    }

    pub fn insert(&mut self, namespace: &str, name: &str, object: Arc<T>) {
        self.objects.insert((namespace.to_owned(), name.to_owned()), object);
    }

    pub fn remove(&mut self, namespace: &str, name: &str) {
        self.objects.remove(&(namespace.to_owned(), name.to_owned()));
    }

    /// Replaces the objects whose key's name starts with `prefix` by those of `fresh`. The gap stays.
    pub fn replace_prefixed(&mut self, prefix: &str, fresh: Self) {
        self.objects.retain(|(_, name), _| !name.starts_with(prefix));
        self.objects.extend(fresh.objects);
    }
}

impl<T> Default for Kind<T> {
    fn default() -> Self {
        Self { objects: BTreeMap::new(), gap: None }
    }
}

impl<T: Object> FromIterator<Arc<T>> for Kind<T> {
    fn from_iter<I: IntoIterator<Item = Arc<T>>>(objects: I) -> Self {
        let mut kind = Self::default();
        for object in objects {
            let (namespace, name) = (object.meta().namespace.clone(), object.meta().name.clone());
            kind.insert(&namespace, &name, object);
        }
        kind
    }
}

/// Everything the Kubernetes API says, as far as it is judged.
#[derive(Debug, Clone, Default)]
pub struct Cluster {
    /// The name shown in answers: the kubeconfig's context, or the bundle's.
    pub name: String,
    pub namespaces: Kind<Namespace>,
    pub nodes: Kind<Node>,
    pub pods: Kind<Pod>,
    pub services: Kind<Service>,
    pub endpoint_slices: Kind<EndpointSlice>,
    pub network_policies: Kind<NetworkPolicy>,
    /// Keyed by `kind/name` instead of the name alone.
    pub workloads: Kind<Workload>,
    pub events: Kind<Event>,
    /// `kube-system/coredns` alone.
    pub config_maps: Kind<ConfigMap>,
    pub ingresses: Kind<Ingress>,
    /// This and the kinds below are empty, too, where the cluster does not have them: they are the Gateway API's.
    pub http_routes: Kind<HttpRoute>,
    pub grpc_routes: Kind<GrpcRoute>,
    pub tls_routes: Kind<TlsRoute>,
    pub gateways: Kind<Gateway>,
    pub reference_grants: Kind<ReferenceGrant>,
    /// The ranges that addresses of Services are taken from. A gap where the cluster does not have this kind.
    pub service_cidrs: Kind<ServiceCidr>,
    /// Single objects and files that could not be understood; the rest of their kind is there.
    pub unread: Vec<Gap>,
}

impl Cluster {
    /// A gap for a kind that the API did not let us list.
    pub fn forbidden(resource: &str, why: String) -> Gap {
        Gap {
            what: format!("{resource} of the cluster"),
            node: None,
            reason: GapReason::Rights,
            why,
            remedy: format!("allow the verbs list and watch on {resource} to the identity netdiag runs with"),
        }
    }

    /// The slices of one Service.
    pub fn slices_of<'a>(&'a self, service: &'a Service) -> impl Iterator<Item = &'a Arc<EndpointSlice>> {
        self.endpoint_slices
            .in_namespace(&service.metadata.namespace)
            .filter(|slice| slice.service_name() == service.metadata.name)
    }

    /// The running pod that has this address; hostNetwork pods share their node's and are left out.
    pub fn pod_by_address(&self, address: IpAddr) -> Option<&Arc<Pod>> {
        self.pods
            .iter()
            .filter(|pod| !pod.spec.host_network && !pod.is_finished())
            .find(|pod| pod.addresses().any(|own| own == address))
    }

    /// The Service one of whose cluster IPs this is.
    pub fn service_by_address(&self, address: IpAddr) -> Option<&Arc<Service>> {
        self.services.iter().find(|service| service.cluster_ips().contains(&address))
    }

    /// Whether some pod, node or Service of the cluster has this address.
    pub fn has_address(&self, address: IpAddr) -> bool {
        self.pod_by_address(address).is_some()
            || self.node_by_address(address).is_some()
            || self.service_by_address(address).is_some()
    }

    /// The Service that has this address of a load balancer or of `externalIPs`. Services may share one, and nodes may lend
    /// theirs: with `port` only the one that takes it.
    pub fn service_by_external_address(&self, address: IpAddr, port: Option<(Protocol, u16)>) -> Option<&Arc<Service>> {
        let takes = |service: &&Arc<Service>| {
            port.is_none_or(|(protocol, number)| {
                service.spec.ports.iter().any(|port| port.protocol.0 == protocol && port.port == number)
            })
        };
        self.services.iter().filter(takes).find(|service| service.external_ips().any(|own| own == address))
    }

    /// The Service, and the port of it, that nodes take at this port of their own addresses.
    pub fn service_by_node_port(&self, protocol: Protocol, number: u16) -> Option<(&Arc<Service>, &ServicePort)> {
        let is_it = |port: &&ServicePort| port.protocol.0 == protocol && port.node_port == number && number != 0;
        self.services.iter().find_map(|service| Some((service, service.spec.ports.iter().find(is_it)?)))
    }

    pub fn node_by_address(&self, address: IpAddr) -> Option<&Arc<Node>> {
        self.nodes.iter().find(|node| node.internal_ips().any(|own| own == address))
    }

    /// The cluster's DNS Service: `kube-system/kube-dns` (every installer keeps that name, whatever the server is),
    /// else the only Service labelled `k8s-app: kube-dns`.
    pub fn dns_service(&self) -> Option<&Arc<Service>> {
        self.services.get("kube-system", "kube-dns").or_else(|| {
            let label = |s: &Service| s.metadata.labels.get("k8s-app").is_some_and(|app| app == "kube-dns");
            self.services.in_namespace("kube-system").find(|service| label(service))
        })
    }
}
