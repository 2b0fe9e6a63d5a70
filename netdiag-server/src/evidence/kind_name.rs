//! The kinds of the API by their names: which are read, which of them are judged, and where each one's gap stands.

use netdiag_common::Gap;

use super::cluster::Cluster;

/// The kinds of the API that are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum KindName {
    Namespaces,
    Nodes,
    Pods,
    Services,
    EndpointSlices,
    NetworkPolicies,
    Workloads,
    Events,
    ConfigMaps,
    Ingresses,
    HttpRoutes,
    GrpcRoutes,
    TlsRoutes,
    Gateways,
    ReferenceGrants,
    ServiceCidrs,
}

impl KindName {
    pub const ALL: [Self; 16] = [
        Self::Namespaces,
        Self::Nodes,
        Self::Pods,
        Self::Services,
        Self::EndpointSlices,
        Self::NetworkPolicies,
        Self::Workloads,
        Self::Events,
        Self::ConfigMaps,
        Self::Ingresses,
        Self::HttpRoutes,
        Self::GrpcRoutes,
        Self::TlsRoutes,
        Self::Gateways,
        Self::ReferenceGrants,
        Self::ServiceCidrs,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Self::Namespaces => "namespaces",
            Self::Nodes => "nodes",
            Self::Pods => "pods",
            Self::Services => "services",
            Self::EndpointSlices => "endpointslices",
            Self::NetworkPolicies => "networkpolicies",
            Self::Workloads => "workloads",
            Self::Events => "events",
            Self::ConfigMaps => "configmaps",
            Self::Ingresses => "ingresses",
            Self::HttpRoutes => "httproutes",
            Self::GrpcRoutes => "grpcroutes",
            Self::TlsRoutes => "tlsroutes",
            Self::Gateways => "gateways",
            Self::ReferenceGrants => "referencegrants",
            Self::ServiceCidrs => "servicecidrs",
        }
    }

    /// Whether every answer lacks something without it. The others say where probes can go, or are a proof beside what nodes have
    /// programmed: who looks at one of them says that it is missing.
    pub fn is_judged(self) -> bool {
        !matches!(
            self,
            Self::Ingresses
                | Self::HttpRoutes
                | Self::GrpcRoutes
                | Self::TlsRoutes
                | Self::Gateways
                | Self::ReferenceGrants
                | Self::ServiceCidrs
        )
    }

    pub fn gap(self, cluster: &Cluster) -> Option<&Gap> {
        match self {
            Self::Namespaces => cluster.namespaces.gap(),
            Self::Nodes => cluster.nodes.gap(),
            Self::Pods => cluster.pods.gap(),
            Self::Services => cluster.services.gap(),
            Self::EndpointSlices => cluster.endpoint_slices.gap(),
            Self::NetworkPolicies => cluster.network_policies.gap(),
            Self::Workloads => cluster.workloads.gap(),
            Self::Events => cluster.events.gap(),
            Self::ConfigMaps => cluster.config_maps.gap(),
            Self::Ingresses => cluster.ingresses.gap(),
            Self::HttpRoutes => cluster.http_routes.gap(),
            Self::GrpcRoutes => cluster.grpc_routes.gap(),
            Self::TlsRoutes => cluster.tls_routes.gap(),
            Self::Gateways => cluster.gateways.gap(),
            Self::ReferenceGrants => cluster.reference_grants.gap(),
            Self::ServiceCidrs => cluster.service_cidrs.gap(),
        }
    }

    pub fn set_gap(self, cluster: &mut Cluster, gap: Option<Gap>) {
        match self {
            Self::Namespaces => cluster.namespaces.set_gap(gap),
            Self::Nodes => cluster.nodes.set_gap(gap),
            Self::Pods => cluster.pods.set_gap(gap),
            Self::Services => cluster.services.set_gap(gap),
            Self::EndpointSlices => cluster.endpoint_slices.set_gap(gap),
            Self::NetworkPolicies => cluster.network_policies.set_gap(gap),
            Self::Workloads => cluster.workloads.set_gap(gap),
            Self::Events => cluster.events.set_gap(gap),
            Self::ConfigMaps => cluster.config_maps.set_gap(gap),
            Self::Ingresses => cluster.ingresses.set_gap(gap),
            Self::HttpRoutes => cluster.http_routes.set_gap(gap),
            Self::GrpcRoutes => cluster.grpc_routes.set_gap(gap),
            Self::TlsRoutes => cluster.tls_routes.set_gap(gap),
            Self::Gateways => cluster.gateways.set_gap(gap),
            Self::ReferenceGrants => cluster.reference_grants.set_gap(gap),
            Self::ServiceCidrs => cluster.service_cidrs.set_gap(gap),
        }
    }

    /// The kind that an object of this `kind` belongs to; none when it is never judged.
    pub fn of_object(kind: &str) -> Option<Self> {
        match kind {
            "Namespace" => Some(Self::Namespaces),
            "Node" => Some(Self::Nodes),
            "Pod" => Some(Self::Pods),
            "Service" => Some(Self::Services),
            "EndpointSlice" => Some(Self::EndpointSlices),
            "NetworkPolicy" => Some(Self::NetworkPolicies),
            "Deployment" | "ReplicaSet" | "DaemonSet" | "StatefulSet" => Some(Self::Workloads),
            "Event" => Some(Self::Events),
            "ConfigMap" => Some(Self::ConfigMaps),
            "Ingress" => Some(Self::Ingresses),
            "HTTPRoute" => Some(Self::HttpRoutes),
            "GRPCRoute" => Some(Self::GrpcRoutes),
            "TLSRoute" => Some(Self::TlsRoutes),
            "Gateway" => Some(Self::Gateways),
            "ReferenceGrant" => Some(Self::ReferenceGrants),
            "ServiceCIDR" => Some(Self::ServiceCidrs),
            _ => None,
        }
    }
}
