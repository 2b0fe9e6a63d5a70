//! Virtual servers of IPVS as a packet meets them: what they are known by, and the real servers that take their connections.
//!
//! IPVS's own table of connections is not read. What conntrack keeps of one is: where `net.ipv4.vs.conntrack` is on, as
//! kube-proxy sets it, the answers that its entry expects come from the real server (`ip_vs_update_conntrack`).
//!
//! Not modelled, and not said: data connections of FTP, `cache_bypass`, and that a backup of another balancer takes nothing.

use std::fmt;
use std::net::{IpAddr, SocketAddr};

use serde::{Deserialize, Serialize};

use super::conntrack::{Entry, status};
use super::packet::{Protocol, TCP, UDP};
use super::state::{Key, RuleState, Table};

/// `IPPROTO_SCTP`
const SCTP: u8 = 132;

/// What a virtual server is known by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum VirtualServerKey {
    /// All packets with this mark.
    Mark { protocol: Protocol, mark: u32 },
    /// Port 0 is for all ports that no other virtual server of the address has.
    Address {
        address: IpAddr,
        /// IANA number.
        protocol: u8,
        port: u16,
    },
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VirtualServer {
    /// `rr`, `wrr`, `sh`, …
    pub scheduler: String,
    /// Clients stay with their real server (`IP_VS_SVC_F_PERSISTENT`).
    pub persistent: bool,
    /// Each packet of UDP is a connection (`IP_VS_SVC_F_ONEPACKET`).
    pub one_packet: bool,
    /// In the kernel's order.
    pub destinations: Vec<RealServer>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RealServer {
    pub address: IpAddr,
    /// 0 is the port that the packet has.
    pub port: u16,
    /// 0: it gets no new connection.
    pub weight: u32,
    pub method: ForwardingMethod,
    /// It gets none while it has as many as its upper threshold says.
    pub limited: bool,
}

/// How packets get to a real server: `IP_VS_CONN_F_FWD_MASK`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ForwardingMethod {
    /// With its address.
    Masquerading,
    /// Not at all: it is this host.
    Local,
    Tunnel,
    DirectRouting,
    Bypass,
}

/// Of `net.ipv4.vs`, which holds for IPv6 as well.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct VirtualSettings {
    /// Conntrack keeps the connections of IPVS too; else their packets leave untracked.
    pub conntrack: bool,
    /// TCP begins a connection without SYN too.
    pub sloppy_tcp: bool,
    /// Answers of real servers are routed anew with the virtual server's address.
    pub snat_reroute: bool,
}

/// What has been read of IPVS.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct VirtualState {
    pub settings: Option<VirtualSettings>,
    /// None for what is no virtual server.
    pub servers: Table<VirtualServerKey, Option<VirtualServer>>,
}

impl RuleState {
    pub(super) fn virtual_server(&self, key: &VirtualServerKey) -> Result<Option<&VirtualServer>, Key> {
        self.balancer.servers.read(key, Key::VirtualServer).map(Option::as_ref)
    }

    pub(super) fn virtual_settings(&self) -> Result<VirtualSettings, Key> {
        self.balancer.settings.ok_or(Key::VirtualSettings)
    }
}

impl ForwardingMethod {
    /// None for what no kernel has.
    pub fn from_bits(bits: u32) -> Option<Self> {
        Some(match bits {
            0 => Self::Masquerading,
            1 => Self::Local,
            2 => Self::Tunnel,
            3 => Self::DirectRouting,
            4 => Self::Bypass,
            _ => return None,
        })
    }
}

/// Whether IPVS balances this protocol by address and port. Security associations are followed, and never scheduled.
pub(super) fn is_balanced(protocol: u8) -> bool {
    matches!(protocol, TCP | UDP | SCTP)
}

/// The real server of a connection of IPVS, by what conntrack keeps of it: `ip_vs_update_conntrack` changes where answers come
/// from, and sets none of the bits that address translation sets.
pub(super) fn real_server(entry: &Entry) -> Option<SocketAddr> {
    let Entry { original, reply, .. } = entry;
    let dialled = (original.destination, original.destination_port);
    let is_ours = entry.status & status::DESTINATION_NAT == 0
        && is_balanced(original.protocol)
        && (reply.source, reply.source_port) != dialled;
    is_ours.then(|| SocketAddr::new(reply.source, reply.source_port))
}

impl fmt::Display for VirtualServerKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Mark { mark, .. } => write!(f, "of mark {mark:#x}"),
            Self::Address { address, protocol, port } => {
                write!(f, "{}/", SocketAddr::new(address, port))?;
                match protocol {
                    TCP => f.write_str("tcp"),
                    UDP => f.write_str("udp"),
                    SCTP => f.write_str("sctp"),
                    other => write!(f, "{other}"),
                }
            }
        }
    }
}

impl fmt::Display for ForwardingMethod {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Masquerading => "masquerading",
            Self::Local => "local",
            Self::Tunnel => "tunnel",
            Self::DirectRouting => "direct routing",
            Self::Bypass => "bypass",
        })
    }
}
