//! What could not be read, as sentences: what it was, why, and what would make it visible.

use std::io;

use netdiag_common::observation::probe::ProbeRequest;
use netdiag_common::{Gap, GapReason, Need, Netns, Topic};

use crate::host::ReadError;
use crate::kernel::LoadError;
use crate::mesh::MeshError;
use crate::probe::ProbeRefused;

/// Why a need could not be met.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    #[error(transparent)]
    Read(#[from] ReadError),
    #[error(transparent)]
    Probe(#[from] ProbeRefused),
    #[error("no process of pod {uid} runs on node {node}")]
    NoSuchPod { uid: String, node: String },
    #[error("this agent runs on node {own} and was asked about node {asked}")]
    OtherNode { own: String, asked: String },
    #[error("{topic} is read for the node only, not for a pod")]
    HostOnly { topic: &'static str },
    #[error("it was still being read when the request's {budget_ms} ms were over")]
    Late { budget_ms: u128 },
    #[error("its reader panicked; the agent's log has the place")]
    Panicked,
    #[error("{0}")]
    Other(OtherFailure),
}

/// A failure whose class and remedy its source knows best.
#[derive(Debug, thiserror::Error)]
#[error("{why}")]
pub struct OtherFailure {
    pub reason: GapReason,
    pub why: String,
    pub remedy: String,
}

impl From<MeshError> for Failure {
    fn from(error: MeshError) -> Self {
        match error {
            MeshError::Start(error) => Self::Read(error),
            MeshError::Refused(refused) => Self::Other(OtherFailure {
                reason: GapReason::NotAllowed,
                why: format!("the agent does not carry out this mesh: {refused}"),
                remedy: "assign within the limits".to_owned(),
            }),
        }
    }
}

impl From<&LoadError> for Failure {
    fn from(error: &LoadError) -> Self {
        Self::Other(OtherFailure {
            reason: error.gap_reason(),
            why: error.to_string(),
            remedy: error.remedy().to_owned(),
        })
    }
}

/// The gap that a failure leaves.
pub fn gap(need: &Need, failure: &Failure) -> Gap {
    let reason = reason(failure);
    Gap {
        what: format!("{} of {}", subject(&need.topic), place(need)),
        node: Some(need.node.clone()),
        reason,
        why: failure.to_string(),
        remedy: remedy(need, failure, reason),
    }
}

/// The gap for a need of a newer server, of which only its JSON is known.
pub fn undecodable(node: &str, raw: &serde_json::Value, why: &serde_json::Error) -> Gap {
    let topic = match raw.get("topic") {
        Some(serde_json::Value::String(name)) => name.clone(),
        Some(serde_json::Value::Object(fields)) => fields.keys().next().cloned().unwrap_or_default(),
        _ => String::new(),
    };
    let what = if topic.is_empty() { "a need without a topic".to_owned() } else { format!("topic {topic}") };
    Gap {
        what: format!("{what} of node {node}"),
        node: Some(node.to_owned()),
        reason: GapReason::WireVersion,
        why: format!("netdiag-node {} does not know this need: {why}", env!("CARGO_PKG_VERSION")),
        remedy: "upgrade netdiag-node to the server's version".to_owned(),
    }
}

fn subject(topic: &Topic) -> String {
    let words = match topic {
        Topic::Preflight => "abilities and rights of the agent",
        Topic::Pods => "pods and their network namespaces",
        Topic::Network => "links, addresses, routes and neighbours",
        Topic::Sysctls => "forwarding sysctls",
        Topic::Listeners => "listening sockets",
        Topic::Conntrack => "connection tracking statistics",
        Topic::Flows => "tracked flows",
        Topic::FindFlows(query) => return format!("tracked flows {}", query.words()),
        Topic::Resolver => "resolv.conf",
        Topic::Rules => "packet filter rules",
        Topic::ServiceRules => "service rules",
        Topic::KubeProxy => "kube-proxy's own health",
        Topic::Kubelet => "the kubelet's DNS settings",
        Topic::Cni => "the container runtime's network configurations",
        Topic::Networkd => "systemd-networkd and its settings",
        Topic::Drops => "dropped packets",
        Topic::Dns => "DNS queries and answers",
        Topic::Rejects => "ICMP errors and TCP resets",
        Topic::Tcp => "TCP connections",
        Topic::Udp => "full UDP sockets",
        Topic::Libraries => "lookups and TLS handshakes of programs",
        Topic::Devices => "network devices and their queues",
        Topic::Neighbours => "neighbours",
        Topic::Sockets => "sockets and their limits",
        Topic::Counters => "network counters",
        Topic::Probe(ProbeRequest::TcpConnect { address, port, .. }) => {
            return format!("a TCP connect to {}", std::net::SocketAddr::new(*address, *port));
        }
        Topic::Probe(ProbeRequest::Dns { server, name, .. }) => {
            return format!("a DNS query for {name} to {server}");
        }
        Topic::Series(request) => return format!("{} probes of {}", request.probe.name(), request.probe.target()),
        Topic::Fate(request) => return format!("fate of {}", request.words()),
        Topic::PolicyMap(query) => return format!("what policy maps say about {}", query.words()),
        Topic::Mesh(_) => "continuous probes",
        Topic::Trace(request) => return format!("trace of {}", request.tuple),
        Topic::Tagged(request) => return format!("the way of {}", request.tuple),
        Topic::Tags => "armed tags",
    };
    words.to_owned()
}

fn place(need: &Need) -> String {
    match &need.netns {
        Netns::Host => format!("node {}", need.node),
        Netns::Pod(uid) => format!("pod {uid}"),
    }
}

fn reason(failure: &Failure) -> GapReason {
    match failure {
        Failure::Read(error) => read_reason(error),
        Failure::NoSuchPod { .. } => GapReason::Gone,
        Failure::Probe(_) | Failure::HostOnly { .. } => GapReason::NotAllowed,
        Failure::OtherNode { .. } | Failure::Late { .. } | Failure::Panicked => GapReason::Failed,
        Failure::Other(other) => other.reason,
    }
}

/// The class of a reader's error.
pub(crate) fn read_reason(error: &ReadError) -> GapReason {
    match error {
        ReadError::File { source, .. } | ReadError::Call { source, .. } => {
            if source.kind() == io::ErrorKind::PermissionDenied {
                GapReason::Rights
            } else if matches!(
                source.raw_os_error(),
                Some(libc::EOPNOTSUPP | libc::EPROTONOSUPPORT | libc::EAFNOSUPPORT)
            ) {
                GapReason::Kernel
            } else {
                GapReason::Failed
            }
        }
        ReadError::Malformed { .. } => GapReason::Malformed,
        ReadError::Unsupported { .. } => GapReason::Kernel,
        ReadError::Gone { .. } => GapReason::Gone,
    }
}

fn remedy(need: &Need, failure: &Failure, reason: GapReason) -> String {
    let node = &need.node;
    match (failure, reason) {
        (Failure::Other(other), _) => return other.remedy.clone(),
        (Failure::OtherNode { .. }, _) => "check that the address of the Node object belongs to that node",
        (Failure::HostOnly { .. }, _) => "ask for the node's own namespace",
        (Failure::Late { .. }, _) => "ask again with a longer --timeout",
        (_, GapReason::Gone) => "check where the pod runs: kubectl get pods -A -o wide",
        (_, GapReason::Rights) => {
            return format!("run netdiag status: it lists the capabilities and mounts that the agent on {node} lacks");
        }
        (_, GapReason::Kernel) => "use a kernel that has it; netdiag status lists what this one can do",
        (_, GapReason::NotAllowed) => "ask within the limits",
        _ => return format!("see the agent's log on {node}, and report it to the netdiag project if it persists"),
    }
    .to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn missing_right_is_told_with_its_remedy() {
        let need = Need::pod("n1", "u-1", Topic::Listeners);
        let source = io::Error::from_raw_os_error(libc::EPERM);
        let error = ReadError::Call { step: "enter network namespace 7".to_owned(), source };
        let gap = gap(&need, &error.into());
        assert_eq!(gap.what, "listening sockets of pod u-1");
        assert_eq!(gap.reason, GapReason::Rights);
        assert_eq!(gap.why, "cannot enter network namespace 7: Operation not permitted (os error 1)");
        assert!(gap.remedy.contains("netdiag status"));
    }

    #[test]
    fn unknown_topic_is_named() {
        let raw = serde_json::json!({"node": "n1", "netns": "host", "topic": {"packet_trace": {}}});
        let why = serde_json::from_value::<Need>(raw.clone()).unwrap_err();
        let gap = undecodable("n1", &raw, &why);
        assert_eq!(gap.what, "topic packet_trace of node n1");
        assert_eq!(gap.reason, GapReason::WireVersion);
    }
}
