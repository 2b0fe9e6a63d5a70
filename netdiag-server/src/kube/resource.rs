//! The resources that are read, and where each one's objects go in the snapshot.

use netdiag_common::{Gap, GapReason};

use super::error::RequestError;
use crate::evidence::{Cluster, KindName};

/// One resource of the API.
#[derive(Debug)]
pub(super) struct Resource {
    /// As in YAML.
    pub kind: &'static str,
    /// As in RBAC.
    pub plural: &'static str,
    /// Of the collection over all namespaces, or of the one namespace that is read.
    pub path: &'static str,
    /// The same in older versions of its API, for clusters that do not serve the version of `path`; they are read alike.
    pub older: &'static [&'static str],
    /// Narrows the list; empty for all objects.
    pub query: &'static str,
    pub goes_to: KindName,
    /// Its definition may be missing (a CRD): then there are no objects, which is no gap.
    pub is_optional: bool,
}

const fn resource(
    kind: &'static str,
    plural: &'static str,
    path: &'static str,
    query: &'static str,
    goes_to: KindName,
) -> Resource {
    Resource { kind, plural, path, older: &[], query, goes_to, is_optional: false }
}

/// Of an API that a cluster may lack.
const fn optional(
    kind: &'static str,
    plural: &'static str,
    path: &'static str,
    older: &'static [&'static str],
    goes_to: KindName,
) -> Resource {
    Resource { kind, plural, path, older, query: "", goes_to, is_optional: true }
}

pub(super) const RESOURCES: [Resource; 19] = [
    resource("Namespace", "namespaces", "/api/v1/namespaces", "", KindName::Namespaces),
    resource("Node", "nodes", "/api/v1/nodes", "", KindName::Nodes),
    resource("Pod", "pods", "/api/v1/pods", "", KindName::Pods),
    resource("Service", "services", "/api/v1/services", "", KindName::Services),
    resource(
        "EndpointSlice",
        "endpointslices.discovery.k8s.io",
        "/apis/discovery.k8s.io/v1/endpointslices",
        "",
        KindName::EndpointSlices,
    ),
    resource(
        "NetworkPolicy",
        "networkpolicies.networking.k8s.io",
        "/apis/networking.k8s.io/v1/networkpolicies",
        "",
        KindName::NetworkPolicies,
    ),
    resource("Deployment", "deployments.apps", "/apis/apps/v1/deployments", "", KindName::Workloads),
    resource("ReplicaSet", "replicasets.apps", "/apis/apps/v1/replicasets", "", KindName::Workloads),
    resource("DaemonSet", "daemonsets.apps", "/apis/apps/v1/daemonsets", "", KindName::Workloads),
    resource("StatefulSet", "statefulsets.apps", "/apis/apps/v1/statefulsets", "", KindName::Workloads),
    // Most events are Normal and say that something went well.
    resource("Event", "events", "/api/v1/events", "fieldSelector=type%21%3DNormal", KindName::Events),
    resource(
        "ConfigMap",
        "configmaps",
        "/api/v1/namespaces/kube-system/configmaps",
        "fieldSelector=metadata.name%3Dcoredns",
        KindName::ConfigMaps,
    ),
    resource("Ingress", "ingresses.networking.k8s.io", "/apis/networking.k8s.io/v1/ingresses", "", KindName::Ingresses),
    optional(
        "HTTPRoute",
        "httproutes.gateway.networking.k8s.io",
        "/apis/gateway.networking.k8s.io/v1/httproutes",
        &[],
        KindName::HttpRoutes,
    ),
    optional(
        "GRPCRoute",
        "grpcroutes.gateway.networking.k8s.io",
        "/apis/gateway.networking.k8s.io/v1/grpcroutes",
        &[],
        KindName::GrpcRoutes,
    ),
    // v1 since Gateway API 1.5; before that in its experimental channel alone.
    optional(
        "TLSRoute",
        "tlsroutes.gateway.networking.k8s.io",
        "/apis/gateway.networking.k8s.io/v1/tlsroutes",
        &["/apis/gateway.networking.k8s.io/v1alpha2/tlsroutes"],
        KindName::TlsRoutes,
    ),
    optional(
        "ReferenceGrant",
        "referencegrants.gateway.networking.k8s.io",
        "/apis/gateway.networking.k8s.io/v1/referencegrants",
        &["/apis/gateway.networking.k8s.io/v1beta1/referencegrants"],
        KindName::ReferenceGrants,
    ),
    optional(
        "Gateway",
        "gateways.gateway.networking.k8s.io",
        "/apis/gateway.networking.k8s.io/v1/gateways",
        &[],
        KindName::Gateways,
    ),
    // v1 since Kubernetes 1.33. No optional one: a cluster without it has ranges of Services all the same.
    Resource {
        older: &["/apis/networking.k8s.io/v1beta1/servicecidrs"],
        ..resource(
            "ServiceCIDR",
            "servicecidrs.networking.k8s.io",
            "/apis/networking.k8s.io/v1/servicecidrs",
            "",
            KindName::ServiceCidrs,
        )
    },
];

impl Resource {
    /// Whether this error says that the cluster does not have the API at all, and may lack it.
    pub fn is_absent(&self, error: &RequestError) -> bool {
        self.is_optional && matches!(error, RequestError::NotServed(_))
    }

    /// Why this resource is not in the snapshot.
    pub fn gap(&self, error: &RequestError) -> Gap {
        match error {
            RequestError::Forbidden(why) => Cluster::forbidden(self.plural, why.clone()),
            RequestError::NotServed(_) if self.goes_to == KindName::ServiceCidrs => Gap {
                what: "the ranges of Services".to_owned(),
                node: None,
                reason: GapReason::Failed,
                why: "this cluster has no ServiceCIDR objects; they came with Kubernetes 1.33".to_owned(),
                remedy: "compare --service-cluster-ip-range of the API server by hand".to_owned(),
            },
            other => Gap {
                what: format!("{} of the cluster", self.plural),
                node: None,
                reason: GapReason::Failed,
                why: format!("cannot list {}: {other}", self.plural),
                remedy: format!("see whether `kubectl get {} -A` works, then ask again", self.plural),
            },
        }
    }

    /// Replaces this resource's objects in `cluster` with those of `fresh`, which holds nothing else.
    pub fn replace(&self, cluster: &mut Cluster, fresh: Cluster) {
        match self.goes_to {
            KindName::Namespaces => cluster.namespaces = fresh.namespaces,
            KindName::Nodes => cluster.nodes = fresh.nodes,
            KindName::Pods => cluster.pods = fresh.pods,
            KindName::Services => cluster.services = fresh.services,
            KindName::EndpointSlices => cluster.endpoint_slices = fresh.endpoint_slices,
            KindName::NetworkPolicies => cluster.network_policies = fresh.network_policies,
            KindName::Events => cluster.events = fresh.events,
            KindName::ConfigMaps => cluster.config_maps = fresh.config_maps,
            KindName::Ingresses => cluster.ingresses = fresh.ingresses,
            KindName::HttpRoutes => cluster.http_routes = fresh.http_routes,
            KindName::GrpcRoutes => cluster.grpc_routes = fresh.grpc_routes,
            KindName::TlsRoutes => cluster.tls_routes = fresh.tls_routes,
            KindName::ReferenceGrants => cluster.reference_grants = fresh.reference_grants,
            KindName::Gateways => cluster.gateways = fresh.gateways,
            KindName::ServiceCidrs => cluster.service_cidrs = fresh.service_cidrs,
            // Four resources share this kind.
            KindName::Workloads => cluster.workloads.replace_prefixed(&format!("{}/", self.kind), fresh.workloads),
        }
        let own = format!("{} ", self.kind);
        cluster.unread.retain(|gap| !gap.what.starts_with(&own));
        cluster.unread.extend(fresh.unread);
    }

    /// Takes one object out.
    pub fn remove(&self, cluster: &mut Cluster, namespace: &str, name: &str) {
        match self.goes_to {
            KindName::Namespaces => cluster.namespaces.remove(namespace, name),
            KindName::Nodes => cluster.nodes.remove(namespace, name),
            KindName::Pods => cluster.pods.remove(namespace, name),
            KindName::Services => cluster.services.remove(namespace, name),
            KindName::EndpointSlices => cluster.endpoint_slices.remove(namespace, name),
            KindName::NetworkPolicies => cluster.network_policies.remove(namespace, name),
            KindName::Events => cluster.events.remove(namespace, name),
            KindName::ConfigMaps => cluster.config_maps.remove(namespace, name),
            KindName::Ingresses => cluster.ingresses.remove(namespace, name),
            KindName::HttpRoutes => cluster.http_routes.remove(namespace, name),
            KindName::GrpcRoutes => cluster.grpc_routes.remove(namespace, name),
            KindName::TlsRoutes => cluster.tls_routes.remove(namespace, name),
            KindName::ReferenceGrants => cluster.reference_grants.remove(namespace, name),
            KindName::Gateways => cluster.gateways.remove(namespace, name),
            KindName::ServiceCidrs => cluster.service_cidrs.remove(namespace, name),
            KindName::Workloads => cluster.workloads.remove(namespace, &format!("{}/{name}", self.kind)),
        }
    }
}

/// `v1`, `apps/v1`: from a collection's path, where it stands after `api` or `apis`.
pub(super) fn api_version(path: &str) -> String {
    let mut parts = path.trim_start_matches('/').split('/');
    match (parts.next(), parts.next(), parts.next()) {
        (Some("apis"), Some(group), Some(version)) => format!("{group}/{version}"),
        (_, Some(version), _) => version.to_owned(),
        _ => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_api_that_a_cluster_may_lack_is_absent_and_only_when_it_is_not_served() {
        let of = |kind: &str| RESOURCES.iter().find(|resource| resource.kind == kind).expect("a resource");
        let (missing, forbidden) = (RequestError::NotServed(String::new()), RequestError::Forbidden(String::new()));
        for kind in ["HTTPRoute", "GRPCRoute", "TLSRoute", "ReferenceGrant", "Gateway"] {
            assert!(of(kind).is_absent(&missing), "{kind}");
        }
        assert!(!of("Gateway").is_absent(&forbidden), "a right that is missing is a gap");
        assert!(!of("Ingress").is_absent(&missing), "every API server has Ingresses");
    }

    #[test]
    fn a_cluster_without_service_cidrs_has_ranges_that_are_not_known() {
        let of = RESOURCES.iter().find(|resource| resource.kind == "ServiceCIDR").expect("a resource");
        let missing = RequestError::NotServed(String::new());
        assert!(!of.is_absent(&missing));
        assert_eq!(of.gap(&missing).what, "the ranges of Services");
        assert_eq!(of.gap(&RequestError::Forbidden(String::new())).reason, GapReason::Rights);
    }

    #[test]
    fn every_version_of_a_resource_is_the_same_collection() {
        for resource in &RESOURCES {
            let (collection, _) = resource.plural.split_once('.').unwrap_or((resource.plural, ""));
            for path in std::iter::once(resource.path).chain(resource.older.iter().copied()) {
                assert_eq!(path.rsplit('/').next(), Some(collection), "{path}");
            }
        }
        assert_eq!(
            api_version("/apis/gateway.networking.k8s.io/v1alpha2/tlsroutes"),
            "gateway.networking.k8s.io/v1alpha2"
        );
        assert_eq!(api_version("/api/v1/namespaces/kube-system/configmaps"), "v1");
    }
}
