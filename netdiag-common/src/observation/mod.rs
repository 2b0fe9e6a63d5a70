//! What an agent saw, as the server receives it. Facts only: an observation never judges.

use serde::{Deserialize, Serialize};

pub mod cni;
pub mod conntrack;
pub mod counter;
pub mod device;
pub mod dns;
pub mod fate;
pub mod flow;
pub mod histogram;
pub mod kfree_skb;
pub mod kube_proxy;
pub mod kubelet;
pub mod library;
pub mod listener;
pub mod mesh;
pub mod neighbour;
pub mod network;
pub mod networkd;
pub mod pod;
pub mod policy_map;
pub mod preflight;
pub mod probe;
pub mod reject;
pub mod resolver;
pub mod rules;
pub mod series;
pub mod service_rules;
pub mod socket;
pub mod sysctl;
pub mod tag;
pub mod tcp;
pub mod trace;
pub mod udp;

/// The value of a reading, one variant per [`Topic`](crate::Topic).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "topic", content = "value", rename_all = "snake_case")]
pub enum Observation {
    Preflight(preflight::Preflight),
    Pods(Vec<pod::PodOnNode>),
    Network(network::Network),
    Sysctls(sysctl::Sysctls),
    Listeners(Vec<listener::Listener>),
    Conntrack(conntrack::Conntrack),
    Flows(flow::Flows),
    FoundFlows(flow::FoundFlows),
    Resolver(resolver::Resolver),
    Rules(rules::Ruleset),
    ServiceRules(service_rules::ServiceRules),
    KubeProxy(kube_proxy::KubeProxy),
    Kubelet(kubelet::Kubelet),
    Cni(cni::Cni),
    Networkd(networkd::Networkd),
    Drops(kfree_skb::Drops),
    Rejects(reject::Rejects),
    Tcp(tcp::Tcp),
    Udp(udp::Udp),
    Libraries(library::Libraries),
    Devices(device::Devices),
    Neighbours(neighbour::Neighbours),
    Sockets(socket::Sockets),
    Counters(counter::Counters),
    Dns(dns::Dns),
    Probe(probe::ProbeResult),
    Series(series::SeriesResult),
    Mesh(mesh::MeshReport),
    Fate(std::sync::Arc<fate::Fate>),
    PolicyMap(policy_map::PolicyVerdict),
    Trace(trace::TraceRecord),
    Tagged(tag::Tagged),
    Tags(Vec<tag::TagTuple>),
}

/// Whose network namespace something happened in.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Owner {
    Host,
    Pod {
        uid: String,
    },
    /// A namespace that belongs to no pod we know, by cookie (inode on kernels before 5.12). 0: there was neither device,
    /// socket nor route, so nobody can say.
    Unknown {
        id: u64,
    },
}

/// Layer 4 protocol of a tuple.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(inline)]
pub enum Protocol {
    Tcp,
    Udp,
    Sctp,
    Icmp,
    Icmpv6,
    // IPv4 in IPv4 (RFC 2003), by which tunnels between nodes carry pods' packets.
    Ipip,
}

impl Protocol {
    /// IANA protocol number.
    pub fn number(self) -> u8 {
        match self {
            Self::Icmp => 1,
            Self::Ipip => 4,
            Self::Tcp => 6,
            Self::Udp => 17,
            Self::Icmpv6 => 58,
            Self::Sctp => 132,
        }
    }

    pub fn from_number(number: u8) -> Option<Self> {
        let known = [Self::Tcp, Self::Udp, Self::Sctp, Self::Icmp, Self::Icmpv6, Self::Ipip];
        known.into_iter().find(|p| p.number() == number)
    }

    /// As Kubernetes spells it in `spec.ports[].protocol`.
    pub fn kubernetes(self) -> &'static str {
        match self {
            Self::Tcp => "TCP",
            Self::Udp => "UDP",
            Self::Sctp => "SCTP",
            Self::Icmp => "ICMP",
            Self::Icmpv6 => "ICMPv6",
            Self::Ipip => "IPIP",
        }
    }
}

impl std::fmt::Display for Protocol {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Sctp => "sctp",
            Self::Icmp => "icmp",
            Self::Icmpv6 => "icmpv6",
            Self::Ipip => "ipip",
        })
    }
}
