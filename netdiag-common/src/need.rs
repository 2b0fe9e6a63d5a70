//! What somebody must know next. A need travels from the server to a node and comes back as a [`Reading`](crate::Reading).

use serde::{Deserialize, Serialize};

use crate::observation::fate::FateRequest;
use crate::observation::flow::FlowQuery;
use crate::observation::mesh::MeshRequest;
use crate::observation::policy_map::PolicyQuery;
use crate::observation::probe::ProbeRequest;
use crate::observation::series::SeriesRequest;
use crate::observation::tag::TagRequest;
use crate::observation::trace::TraceRequest;

/// One thing to read on one node.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Need {
    /// The Kubernetes node name.
    pub node: String,
    pub netns: Netns,
    pub topic: Topic,
    /// How far back counts go; means nothing to topics that are read at one moment.
    #[serde(default, skip_serializing_if = "Window::is_default")]
    pub window: Window,
}

/// How far back an answer counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default, Serialize, Deserialize)]
pub enum Window {
    #[serde(rename = "10s")]
    TenSeconds,
    #[serde(rename = "1m")]
    Minute,
    /// Long enough to see a retry loop, short enough to be about now.
    #[default]
    #[serde(rename = "5m")]
    FiveMinutes,
    #[serde(rename = "1h")]
    Hour,
}

/// Whose network namespace.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Netns {
    /// The node's own.
    Host,
    /// A pod's, by the pod's UID.
    Pod(String),
}

/// What to read there.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Topic {
    /// What this kernel and these rights allow. Host only.
    Preflight,
    /// Pods found on the node with their namespaces and container ids. Host only.
    Pods,
    /// Interfaces, addresses, routes, policy rules and neighbours.
    Network,
    /// The sysctls that decide about forwarding.
    Sysctls,
    /// TCP and UDP sockets that accept packets, with their processes.
    Listeners,
    /// Entries, limit and failure counters of connection tracking.
    Conntrack,
    /// Flows of connection tracking, counted, with where Service addresses lead them. For the node: its pods' tables too.
    Flows,
    /// Single entries of connection tracking.
    FindFlows(FlowQuery),
    /// `/etc/resolv.conf` as the pod sees it; of the node for [`Netns::Host`].
    Resolver,
    /// nftables and iptables rules, structured.
    Rules,
    /// Which Service address leads to which endpoints, as kube-proxy's rules say. Host only.
    ServiceRules,
    /// kube-proxy's own health and last sync. Host only.
    KubeProxy,
    /// What the kubelet writes into its pods' resolv.conf. Host only.
    Kubelet,
    /// The container runtime's network configurations. Host only.
    Cni,
    /// systemd-networkd: since when it runs, and what it removes. Host only.
    Networkd,
    /// Packets dropped by the kernel, by namespace, reason and place. Host only: the reading covers the node and its pods.
    Drops,
    /// DNS queries and answers, by namespace, server and name. Host only: the reading covers the node and its pods.
    Dns,
    /// ICMP errors and TCP resets, sent and received. Host only: the reading covers the node and its pods.
    Rejects,
    /// TCP connections by result, with handshake times and retransmits. Host only, as for drops.
    Tcp,
    /// Datagrams that found their socket full. Host only, as for drops.
    Udp,
    /// Host names that programs looked up, and TLS handshakes of clients, where uprobes are on. Host only, as for drops.
    Libraries,
    /// Network devices: state, errors, queues, driver statistics; for the node also softirq backlogs.
    Devices,
    /// Hosts on the link that do not answer, and how full the neighbour tables are.
    Neighbours,
    /// Sockets per state, their queues and limits; descriptors and control groups of their processes.
    Sockets,
    /// Every SNMP counter, with its growth in the window.
    Counters,
    /// One active probe.
    Probe(ProbeRequest),
    /// Probes of one kind, on a schedule.
    Series(Box<SeriesRequest>),
    /// Probes that go on in the background. Host only.
    Mesh(MeshRequest),
    /// What would become of one packet, by the rules and routes of the namespace.
    Fate(FateRequest),
    /// What the maps of a policy engine's eBPF programs say about one packet. Host only.
    PolicyMap(PolicyQuery),
    /// What the kernel does with the packets of one tuple.
    Trace(TraceRequest),
    /// The way of one connection's packets, in every namespace of the node, while they are followed. Host only.
    Tagged(TagRequest),
    /// The tags that are armed, by what they follow: who sends waits until its own is among them. Host only.
    Tags,
}

/// How much asking costs the world. A question climbs only while two hypotheses are alive.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Tier {
    /// Reads what is there.
    Passive,
    /// Sends packets, or follows those of a probe.
    Probe,
    /// Adds rules to the namespace's packet filter, which mark a few packets for the kernel to report about.
    Trace,
}

impl Need {
    pub fn host(node: impl Into<String>, topic: Topic) -> Self {
        Self { node: node.into(), netns: Netns::Host, topic, window: Window::default() }
    }

    pub fn pod(node: impl Into<String>, uid: impl Into<String>, topic: Topic) -> Self {
        Self { node: node.into(), netns: Netns::Pod(uid.into()), topic, window: Window::default() }
    }

    /// The same over another stretch of time.
    pub fn over(self, window: Window) -> Self {
        Self { window, ..self }
    }

    pub fn tier(&self) -> Tier {
        match self.topic {
            Topic::Probe(_) | Topic::Series(_) | Topic::Mesh(_) | Topic::Tagged(_) => Tier::Probe,
            Topic::Trace(_) => Tier::Trace,
            _ => Tier::Passive,
        }
    }
}

impl Window {
    pub const ALL: [Self; 4] = [Self::TenSeconds, Self::Minute, Self::FiveMinutes, Self::Hour];

    /// Length in seconds.
    pub fn seconds(self) -> u64 {
        match self {
            Self::TenSeconds => 10,
            Self::Minute => 60,
            Self::FiveMinutes => 300,
            Self::Hour => 3600,
        }
    }

    #[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
    fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

impl std::fmt::Display for Window {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::TenSeconds => "10s",
            Self::Minute => "1m",
            Self::FiveMinutes => "5m",
            Self::Hour => "1h",
        })
    }
}

impl Topic {
    /// Whether the agent itself counts it, from its start on. The other topics are read from what the kernel keeps.
    pub fn is_counted(&self) -> bool {
        matches!(
            self,
            Self::Drops | Self::Rejects | Self::Tcp | Self::Udp | Self::Libraries | Self::Dns | Self::Counters
        )
    }

    /// Whether it is asked about the node only.
    pub fn is_host_only(&self) -> bool {
        matches!(
            self,
            Self::Preflight
                | Self::Pods
                | Self::ServiceRules
                | Self::KubeProxy
                | Self::Kubelet
                | Self::Cni
                | Self::Networkd
                | Self::Drops
                | Self::Rejects
                | Self::Tcp
                | Self::Udp
                | Self::Dns
                | Self::Libraries
                | Self::Mesh(_)
                | Self::Tagged(_)
                | Self::PolicyMap(_)
                | Self::Tags
        )
    }

    /// The topic's stable name, as it appears in trails, bundles and messages.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Preflight => "preflight",
            Self::Pods => "pods",
            Self::Network => "network",
            Self::Sysctls => "sysctls",
            Self::Listeners => "listeners",
            Self::Conntrack => "conntrack",
            Self::Flows => "flows",
            Self::FindFlows(_) => "find_flows",
            Self::Resolver => "resolver",
            Self::Rules => "rules",
            Self::ServiceRules => "service_rules",
            Self::KubeProxy => "kube_proxy",
            Self::Kubelet => "kubelet",
            Self::Cni => "cni",
            Self::Networkd => "networkd",
            Self::Drops => "drops",
            Self::Dns => "dns",
            Self::Rejects => "rejects",
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Libraries => "libraries",
            Self::Devices => "devices",
            Self::Neighbours => "neighbours",
            Self::Sockets => "sockets",
            Self::Counters => "counters",
            Self::Probe(_) => "probe",
            Self::Series(_) => "series",
            Self::Mesh(_) => "mesh",
            Self::Fate(_) => "fate",
            Self::PolicyMap(_) => "policy_map",
            Self::Trace(_) => "trace",
            Self::Tagged(_) => "tagged",
            Self::Tags => "tags",
        }
    }
}
