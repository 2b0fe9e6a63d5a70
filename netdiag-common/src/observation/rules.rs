//! The packet filter of one namespace: nf_tables (native and iptables-nft) and legacy iptables in one shape.

use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::Protocol;

/// How [`Ruleset::left_out`] begins about rules in the chains that kube-proxy has for single Services.
pub const SERVICE_CHAINS: &str = "rules in chains of Services";
/// The same about the maps in which its nftables mode lists Services.
pub const SERVICE_MAPS: &str = "elements of kube-proxy's map";

#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Ruleset {
    /// nf_tables generation id (`NFT_MSG_GETGEN`); none when nf_tables is absent.
    #[serde(default)]
    pub generation: Option<u32>,
    pub tables: Vec<Table>,
    /// What was not read because of the size limit; empty when complete.
    #[serde(default)]
    pub left_out: Vec<String>,
}

impl Ruleset {
    /// What was not read, but for what kube-proxy has for single Services: no rule of anybody else is among that, and some hundred
    /// Services are enough for it to be cut.
    pub fn left_out_elsewhere(&self) -> impl Iterator<Item = &str> {
        let is_of_services = |line: &&str| line.starts_with(SERVICE_CHAINS) || line.starts_with(SERVICE_MAPS);
        self.left_out.iter().map(String::as_str).filter(move |line| !is_of_services(line))
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Table {
    pub backend: Backend,
    /// `ip`, `ip6`, `inet`, `arp`, `bridge`, `netdev`.
    pub family: String,
    pub name: String,
    pub chains: Vec<Chain>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Backend {
    Nftables,
    /// nf_tables written through the iptables command (rules carry `xt` expressions).
    IptablesNft,
    IptablesLegacy,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Chain {
    pub name: String,
    /// Set for base chains.
    #[serde(default)]
    pub base: Option<BaseChain>,
    pub rules: Vec<Rule>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BaseChain {
    pub hook: Hook,
    pub priority: i32,
    /// `filter`, `nat`, `route`.
    pub kind: String,
    /// What happens to a packet that no rule decided about.
    pub policy: Verdict,
}

/// Where netfilter looks at packets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Hook {
    /// Of one device, before the IP layer.
    Ingress,
    Prerouting,
    Input,
    Forward,
    Output,
    Postrouting,
    /// Of one device, after the IP layer.
    Egress,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rule {
    /// nf_tables handle, or 1-based position in its chain for legacy iptables.
    pub handle: u64,
    pub matches: Vec<Match>,
    pub verdict: Verdict,
    #[serde(default)]
    pub counter: Option<Counter>,
    /// The comment its author wrote (nft comment or `-m comment`).
    #[serde(default)]
    pub comment: Option<String>,
    /// The rule in words close to `nft list ruleset` / `iptables -S`, for people.
    pub text: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Counter {
    pub packets: u64,
    pub bytes: u64,
}

/// What a rule asks of a packet. All matches of a rule must hold.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "on", rename_all = "snake_case")]
pub enum Match {
    Source {
        nets: Vec<IpNet>,
        negated: bool,
    },
    Destination {
        nets: Vec<IpNet>,
        negated: bool,
    },
    Protocol {
        protocols: Vec<Protocol>,
        negated: bool,
    },
    SourcePort {
        ranges: Vec<PortRange>,
        negated: bool,
    },
    DestinationPort {
        ranges: Vec<PortRange>,
        negated: bool,
    },
    /// Names; a trailing `*` (nft) or `+` (iptables) is a prefix and is given as `*`.
    InputInterface {
        names: Vec<String>,
        negated: bool,
    },
    OutputInterface {
        names: Vec<String>,
        negated: bool,
    },
    /// `new`, `established`, `related`, `invalid`, `untracked`.
    ConntrackState {
        states: Vec<String>,
        negated: bool,
    },
    /// `nfproto`, as `ip` or `ip6`, in tables of family inet.
    Family {
        family: String,
    },
    /// Something this reader does not decode: the rule may or may not match.
    Other {
        text: String,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortRange {
    pub first: u16,
    pub last: u16,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "do", rename_all = "snake_case")]
pub enum Verdict {
    Accept,
    Drop,
    /// With what the sender is told: `icmp port-unreachable`, `tcp reset`, …
    Reject {
        with: String,
    },
    Jump {
        chain: String,
    },
    Goto {
        chain: String,
    },
    Return,
    /// No verdict: counts, marks, logs; the next rule follows.
    Continue,
    Dnat {
        to: Vec<NatTarget>,
    },
    Snat {
        to: Vec<NatTarget>,
    },
    Masquerade,
    /// A verdict map or set decides, per packet.
    Map {
        name: String,
    },
    Queue,
    Other {
        text: String,
    },
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NatTarget {
    #[serde(default)]
    pub address: Option<IpAddr>,
    #[serde(default)]
    pub port: Option<u16>,
}
