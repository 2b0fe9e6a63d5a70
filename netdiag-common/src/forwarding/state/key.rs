//! The keys by which what has not been read yet is asked for, and what they are made of: families, hooks, queries of routes.

use std::net::IpAddr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::forwarding::ipset::IpSetQuery;
use crate::forwarding::packet::Protocol;
use crate::forwarding::routing::TableKey;
use crate::forwarding::socket::SocketQuery;
use crate::forwarding::virtual_server::VirtualServerKey;

/// Something that the next step needs to know.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Key {
    /// All base chains and whatever else is registered at hooks.
    Hooks,
    Chain(ChainKey),
    Set(SetKey),
    /// The element that a key leads to, which may be a range.
    Element {
        set: SetKey,
        key: Vec<u8>,
    },
    /// The element for all other keys.
    CatchAll {
        set: SetKey,
    },
    /// All of them: a namespace has few, and a connection does not say which one has it.
    Flowtables,
    /// The queues that programs listen to.
    Queues,
    Interface {
        index: u32,
    },
    /// The addresses of all interfaces.
    Addresses,
    /// Whether connections of this protocol are tracked.
    Tracking(Protocol),
    /// How connections of TCP are tracked.
    TrackingSettings,
    /// The kernel's own answer.
    Route(RouteQuery),
    /// All rules of ip-rule(8).
    RouteRules(Protocol),
    /// A routing table, as far as it is kept whole.
    RouteTable(TableKey),
    /// The routes of a large table that hold an address.
    RoutesTo {
        table: TableKey,
        address: IpAddr,
    },
    RoutedInterface {
        index: u32,
    },
    HostSettings,
    /// A bridge that the packet comes in by a port of.
    Bridge {
        index: u32,
    },
    Neighbour {
        interface: u32,
        address: IpAddr,
    },
    /// `fib … type`
    AddressType(AddressQuery),
    /// `fib … oif`
    Fib(FibQuery),
    /// The ipset that rules know by this number.
    IpSet {
        index: u16,
    },
    IpSetElement(IpSetQuery),
    /// The sockets that take a packet with these ends.
    Sockets(SocketQuery),
    /// The list that rules with the match recent know by this name.
    Recent {
        list: String,
    },
    /// The virtual server of IPVS with its real servers.
    VirtualServer(VirtualServerKey),
    /// How IPVS is set.
    VirtualSettings,
}

/// `NFPROTO_*` of a table of nf_tables, or one of the two legacy commands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Family {
    Inet,
    Ip,
    Ip6,
    Arp,
    Bridge,
    Netdev,
    /// Of `ip_tables.c`. Handles of its rules are their numbers in the chain, as traces and `iptables -L` count them.
    LegacyIp,
    /// Of `ip6_tables.c`.
    LegacyIp6,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Hook {
    Prerouting,
    Input,
    Forward,
    Output,
    Postrouting,
    /// Of netdev tables, and of inet tables at a device.
    Ingress,
    Egress,
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ChainKey {
    pub family: Family,
    pub table: Arc<str>,
    pub chain: Arc<str>,
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct SetKey {
    pub family: Family,
    pub table: Arc<str>,
    pub set: Arc<str>,
}

/// Where a packet with these properties goes: what `RTM_GETROUTE` is asked.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct RouteQuery {
    pub destination: IpAddr,
    pub source: Option<IpAddr>,
    /// The interface it came in on; none for packets of this host.
    pub input: Option<u32>,
    /// The interface that its socket is bound to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub output: Option<u32>,
    pub mark: u32,
    /// Type of service, or traffic class.
    pub service: u8,
    pub protocol: u8,
    pub ports: Option<(u16, u16)>,
    pub uid: Option<u32>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct AddressQuery {
    pub address: IpAddr,
    /// Only addresses of this interface count.
    pub interface: Option<u32>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct FibQuery {
    pub destination: IpAddr,
    pub source: Option<IpAddr>,
    pub mark: u32,
    pub service: u8,
    /// For link-local destinations, which exist once per interface.
    pub interface: Option<u32>,
}

impl Family {
    pub fn is_legacy(self) -> bool {
        matches!(self, Self::LegacyIp | Self::LegacyIp6)
    }

    /// Whether its chains see packets of this protocol.
    pub fn sees(self, protocol: Protocol) -> bool {
        match self {
            Self::Inet => true,
            Self::Ip | Self::LegacyIp => protocol == Protocol::Ipv4,
            Self::Ip6 | Self::LegacyIp6 => protocol == Protocol::Ipv6,
            Self::Arp | Self::Bridge | Self::Netdev => false,
        }
    }
}

impl std::fmt::Display for Family {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Inet => "inet",
            Self::Ip => "ip",
            Self::Ip6 => "ip6",
            Self::Arp => "arp",
            Self::Bridge => "bridge",
            Self::Netdev => "netdev",
            Self::LegacyIp => "legacy iptables",
            Self::LegacyIp6 => "legacy ip6tables",
        })
    }
}

impl std::fmt::Display for Hook {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Prerouting => "prerouting",
            Self::Input => "input",
            Self::Forward => "forward",
            Self::Output => "output",
            Self::Postrouting => "postrouting",
            Self::Ingress => "ingress",
            Self::Egress => "egress",
        })
    }
}

impl std::fmt::Display for ChainKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {} {}", self.family, self.table, self.chain)
    }
}
