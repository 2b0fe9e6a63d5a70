//! Which Service address leads where, as the rules of one node's proxy say. Decoded from the rules themselves, not from
//! what the proxy reports.

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::Protocol;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceRules {
    /// Whose layout was recognised in the rules.
    pub proxier: Proxier,
    pub entries: Vec<ServiceRule>,
    /// The entry points are in place: base chains jump to the service chains. False when somebody flushed them: then the
    /// entries exist, but no packet reaches them.
    pub hooked: bool,
    /// Chains and maps that follow the layout but could not be decoded, with the reason.
    #[serde(default)]
    pub undecoded: Vec<String>,
    /// What is done on ports of the node's own addresses; none from an agent that does not list them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node_ports: Option<Vec<NodePortRule>>,
    /// Where rules of kube-proxy are besides; none from an agent that does not look.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub others: Option<Vec<Proxier>>,
    /// Packets that kube-proxy marks get the node's address when they leave, in each family; none from an agent that does not look,
    /// and where rules were left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub masquerades: Option<bool>,
    /// On which addresses node ports are, for each family that has rules; none from an agent that does not look, and in IPVS mode,
    /// where each virtual server has an address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node_port_addresses: Option<Vec<NodePortAddresses>>,
    /// In IPVS mode: the ipsets with the source ranges of load balancers were read. Rules of the other modes have them themselves.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub knows_source_sets: bool,
}

/// Whose packets of one family get to the rules of node ports.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodePortAddresses {
    pub ipv6: bool,
    pub on: OwnAddresses,
}

/// Of the node's own addresses.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OwnAddresses {
    All,
    Only(BTreeSet<IpAddr>),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Proxier {
    /// kube-proxy `--proxy-mode=nftables`: tables `ip kube-proxy` and `ip6 kube-proxy`.
    Nftables,
    /// kube-proxy `--proxy-mode=iptables` through iptables-nft.
    IptablesNft,
    /// kube-proxy `--proxy-mode=iptables` through legacy iptables.
    IptablesLegacy,
    /// kube-proxy `--proxy-mode=ipvs`: virtual servers, with the Services' addresses on the device kube-ipvs0.
    Ipvs,
    /// No rules of kube-proxy were found.
    None,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceRule {
    pub address: IpAddr,
    pub protocol: Protocol,
    pub port: u16,
    /// `namespace/name:port` when the rules say it (chain names in nftables mode, comments in iptables mode).
    #[serde(default)]
    pub service: Option<String>,
    pub action: ServiceAction,
    /// The chain that it leads to; none for those that end there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub chain: Option<String>,
    /// None where they could not be decoded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub terms: Option<Terms>,
    /// It is a node port, listed here for one of the node's addresses.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub node_port: bool,
}

/// Under which conditions endpoints are chosen.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Terms {
    /// A client stays with its endpoint for a while.
    pub sticky: bool,
    /// Sources that are let in; none for all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sources: Option<BTreeSet<IpNet>>,
}

/// As [`ServiceRule`], for a port on the node's own addresses of one family.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodePortRule {
    pub ipv6: bool,
    pub protocol: Protocol,
    pub port: u16,
    #[serde(default)]
    pub service: Option<String>,
    pub action: ServiceAction,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub chain: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub terms: Option<Terms>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ServiceAction {
    /// One of these is chosen per connection.
    Endpoints(Vec<Endpoint>),
    /// No endpoints: the client is refused.
    Reject,
    /// No local endpoints under a Local policy: silence.
    Drop,
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Endpoint {
    pub address: IpAddr,
    pub port: u16,
}

impl ServiceRules {
    pub fn find(&self, address: IpAddr, protocol: Protocol, port: u16) -> Option<&ServiceRule> {
        self.entries.iter().find(|e| e.address == address && e.protocol == protocol && e.port == port)
    }
}
