//! Which Service address leads where, as the rules of one node's proxy say. Decoded from the rules themselves, not from
//! what the proxy reports.

use std::net::IpAddr;

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
