//! The path a question means, by the intended view alone: clients → name → Service → endpoints.
//!
//! A path is resolved once per evidence and shared by all conditions.

use std::net::IpAddr;
use std::sync::Arc;

use netdiag_common::Netns;
use netdiag_common::observation::Protocol;

use crate::evidence::ObjectRef;
use crate::evidence::object::{Object, Pod, Service, ServicePort};
use crate::question::{Purpose, Question};

pub mod filter;
pub mod forwarding;
pub mod hops;
mod lived;
mod name;
mod named;
pub mod overlay;
pub mod policy;
mod resolve;
pub mod route;
mod symptom;

pub use lived::{FEWEST_FAILURES, Lived, SMALLEST_SHARE_PERCENT, lived};
pub use name::{DnsName, ServiceName, cluster_domain};
pub use named::edit_distance;
pub(crate) use named::exists;
pub(crate) use resolve::backends;
pub use resolve::{ResolveError, resolve, target_port_of};
pub(crate) use symptom::{MAX_BACKEND_PROBES, MAX_CLIENT_PROBES};
pub use symptom::{
    ProbeSeen, ProbeTo, SYMPTOM_READS, Symptom, SymptomState, address_probes, dns_probe, lookups, symptom,
};

/// What the question means in this cluster.
#[derive(Debug, Clone)]
pub struct Path {
    pub question: Question,
    /// Where connections start: the asked pod or node, else every node's host.
    pub clients: Vec<Client>,
    pub protocol: Protocol,
    /// Asked by name: what the client would look up.
    pub name: Option<DnsName>,
    pub target: TargetObject,
    /// The port the client dials; none when the question names none and the target has not exactly one.
    pub port: Option<u16>,
    /// What the client dials: cluster IPs, a pod's or node's addresses; one per family that exists.
    pub addresses: Vec<IpAddr>,
    /// For Services: where their endpoints are, from EndpointSlices. For pods: the pod itself.
    pub backends: Vec<Backend>,
}

/// What is behind the asked target.
#[derive(Debug, Clone)]
pub enum TargetObject {
    Service {
        service: Arc<Service>,
        /// The port that was asked for; none when the Service has no such port.
        port: Option<ServicePort>,
    },
    Pod(Arc<Pod>),
    Node(ObjectRef),
    /// An address that belongs to nothing we know.
    Address,
    /// The name leads to nothing in the cluster.
    UnknownName,
}

/// Where a connection starts.
#[derive(Debug, Clone)]
pub struct Client {
    pub reference: ObjectRef,
    pub node: String,
    pub netns: Netns,
    /// None for a node's host.
    pub pod: Option<Arc<Pod>>,
    pub addresses: Vec<IpAddr>,
}

/// One endpoint of the path.
#[derive(Debug, Clone)]
pub struct Backend {
    pub address: IpAddr,
    /// The port the endpoint is reached at, after the Service's translation.
    pub port: u16,
    /// Empty when the slice does not say and the pod is unknown.
    pub node: String,
    pub pod: Option<Arc<Pod>>,
    /// Gets new connections (ready, or the Service publishes all).
    pub ready: bool,
    pub terminating: bool,
}

impl Client {
    /// Whether it has an address of this one's family. One whose addresses are not known is taken to have both.
    pub fn speaks_to(&self, address: IpAddr) -> bool {
        self.addresses.is_empty() || self.addresses.iter().any(|own| own.is_ipv4() == address.is_ipv4())
    }
}

impl Path {
    pub fn service(&self) -> Option<&Arc<Service>> {
        match &self.target {
            TargetObject::Service { service, .. } => Some(service),
            _ => None,
        }
    }

    /// `Service shop/web`, `Pod shop/web-1`, or what was asked for where that is no object.
    pub fn target_words(&self) -> String {
        match &self.target {
            TargetObject::Service { service, .. } => service.reference().to_string(),
            TargetObject::Pod(pod) => pod.reference().to_string(),
            TargetObject::Node(node) => node.to_string(),
            TargetObject::Address | TargetObject::UnknownName => self.question.to.to_string().replacen("ip/", "", 1),
        }
    }

    pub fn service_port(&self) -> Option<&ServicePort> {
        match &self.target {
            TargetObject::Service { port, .. } => port.as_ref(),
            _ => None,
        }
    }

    /// The endpoints that get new connections.
    pub fn ready_backends(&self) -> impl Iterator<Item = &Backend> {
        self.backends.iter().filter(|backend| backend.ready && !backend.terminating)
    }

    /// The address of the given family that the client dials.
    pub fn address_like(&self, family: IpAddr) -> Option<IpAddr> {
        self.addresses.iter().copied().find(|address| address.is_ipv4() == family.is_ipv4())
    }

    /// Somebody asked about exactly this path.
    pub fn is_asked(&self) -> bool {
        self.question.purpose == Purpose::Diagnose
    }

    /// `netdiag diagnose …` that asks this question again: the way to verify a fix.
    pub fn ask_again(&self) -> String {
        let mut command = String::from("netdiag diagnose");
        if !matches!(self.question.from, crate::question::Origin::EveryNode) {
            command.push_str(&format!(" --from {}", self.question.from));
        }
        command.push_str(&format!(" --to {}", self.question.to));
        if self.protocol != Protocol::Tcp {
            command.push_str(&format!(" --protocol {}", self.protocol));
        }
        command
    }
}

impl Backend {
    /// `pod shop/web-1 (10.244.1.4:8080)` or the bare address.
    pub fn words(&self) -> String {
        let socket = std::net::SocketAddr::new(self.address, self.port);
        match &self.pod {
            Some(pod) => format!("pod {}/{} ({socket})", pod.metadata.namespace, pod.metadata.name),
            None => socket.to_string(),
        }
    }

    /// The pod's network namespace, when the backend is a pod of its own.
    pub fn netns(&self) -> Option<Netns> {
        let pod = self.pod.as_ref()?;
        if pod.spec.host_network { Some(Netns::Host) } else { Some(Netns::Pod(pod.metadata.uid.clone())) }
    }
}
