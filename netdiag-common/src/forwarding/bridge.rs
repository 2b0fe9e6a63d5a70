//! Bridges, as far as they decide which hooks a packet passes that comes in by one of their ports.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::packet::Protocol;
use super::state::{Key, RuleState};

/// A bridge of the namespace.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bridge {
    pub index: u32,
    pub name: Arc<str>,
    pub ports: Vec<Port>,
    /// Ethernet addresses by which frames are for this host: the bridge's own, and those of its ports (`br_fdb_add_local`).
    pub own: Vec<[u8; 6]>,
    /// What comes in by a port passes the hooks of IPv4 (`br_nf_pre_routing`): `br_netfilter` is loaded, and
    /// `net.bridge.bridge-nf-call-iptables` or the bridge's own setting is on.
    pub calls_iptables: bool,
    /// The same for IPv6.
    pub calls_ip6tables: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Port {
    pub index: u32,
    pub name: Arc<str>,
}

/// The ports that a packet passes the hooks of IP between (`struct nf_bridge_info`), which stays with what this host takes or
/// routes, too.
#[derive(Debug, Clone)]
pub(super) struct Between<'a> {
    pub input: &'a str,
    /// Those by which it may leave; none before the bridge has decided to hand it to one, and none of what it does not hand on.
    pub outputs: Vec<&'a str>,
}

impl Bridge {
    pub(super) fn is_filtered(&self, protocol: Protocol) -> bool {
        match protocol {
            Protocol::Ipv4 => self.calls_iptables,
            Protocol::Ipv6 => self.calls_ip6tables,
        }
    }
}

impl RuleState {
    /// The bridge that an interface is a port of; none for all other interfaces.
    pub(super) fn bridge_of(&self, port: u32) -> Result<Option<&Bridge>, Key> {
        let Some(index) = self.routed_interface(port)?.and_then(|interface| interface.bridge) else { return Ok(None) };
        self.bridges.read(&index, |index| Key::Bridge { index }).map(Option::as_ref)
    }
}
