//! What has been read of one network namespace, filled as questions need it, and the keys by which it is asked for.
//!
//! Nothing here is a default: what is not in a map has not been read, and a lookup of it is an `Err` with the [`Key`] to
//! read. What was looked for and is not there is kept as `None`.

use std::collections::HashMap;
use std::hash::Hash;
use std::net::IpAddr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::bridge::Bridge;
use super::conntrack::TrackingSettings;
use super::expression::{Expression, Verdict};
use super::fact::Fact;
use super::flowtable::Flowtable;
use super::guard::Guards;
use super::ipset::{IpSet, IpSetQuery};
use super::packet::Protocol;
use super::recent::RecentEntry;
use super::routing::RoutingState;
use super::set::Set;
use super::socket::{FoundSocket, SocketQuery};
use super::virtual_server::VirtualState;

mod key;

pub use self::key::{AddressQuery, ChainKey, Family, FibQuery, Hook, Key, RouteQuery, SetKey};

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Route {
    /// To this host.
    Local {
        interface: u32,
    },
    Forward {
        interface: u32,
        gateway: Option<IpAddr>,
        source: Option<IpAddr>,
    },
    /// No route, or one that refuses: `network is unreachable`, `blackhole`.
    Refused {
        why: String,
    },
    /// Multicast and what else is not followed.
    Unfollowed {
        why: String,
    },
}

/// What `fib` finds: the route's type (`RTN_*`) and the interfaces of its next hops.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FibEntry {
    pub kind: u8,
    pub interfaces: Vec<u32>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Interface {
    pub index: u32,
    pub name: Arc<str>,
    /// `IFLA_INFO_KIND`: `veth`, `bridge`, …; none for devices that no link type made.
    pub kind: Option<String>,
    /// `ARPHRD_*`
    pub hardware: u16,
    pub group: u32,
    /// In the order of the kernel's list.
    pub addresses: Vec<InterfaceAddress>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InterfaceAddress {
    pub address: IpAddr,
    pub prefix: u8,
    /// `RT_SCOPE_*`: 0 everywhere, 253 on this link, 254 on this host.
    pub scope: u8,
    /// `IFA_F_*`
    pub flags: u32,
}

#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Chain {
    pub rules: Vec<Rule>,
    #[serde(skip)]
    pub guards: Guards,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rule {
    pub handle: u64,
    pub expressions: Vec<Expression>,
    /// What its author wrote beside it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub comment: Option<Arc<str>>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BaseChain {
    pub key: ChainKey,
    pub kind: ChainKind,
    pub hook: Hook,
    pub priority: i32,
    pub policy: Verdict,
    /// Handles of table and chain: the order in which they were made. Legacy iptables has neither, and zeros here.
    pub made: (u64, u64),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ChainKind {
    Filter,
    Nat,
    Route,
}

/// Something at hooks that is not evaluated: tables of legacy iptables that could not be read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Foreign {
    /// None for both.
    pub protocol: Option<Protocol>,
    /// None for all hooks.
    pub hook: Option<Hook>,
    /// `table nat of legacy iptables, which is too large to be read,`
    pub what: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Hooks {
    pub chains: Vec<BaseChain>,
    pub foreign: Vec<Foreign>,
    /// IPVS has virtual servers here, and is at its hooks.
    #[serde(default)]
    pub balanced: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct RuleState {
    /// Of nf_tables (`NFT_MSG_GETGEN`) while all of this was read.
    pub generation: Option<u32>,
    pub hooks: Option<Hooks>,
    pub chains: Table<ChainKey, Option<Chain>>,
    pub sets: Table<SetKey, Option<Set>>,
    #[serde(default)]
    pub flowtables: Option<Vec<Flowtable>>,
    /// Numbers of those that a program listens to.
    #[serde(default)]
    pub queues: Option<Vec<u16>>,
    pub interfaces: Table<u32, Option<Interface>>,
    /// By interface, in the kernel's order.
    pub addresses: Option<Vec<(u32, InterfaceAddress)>>,
    /// Connection tracking is at the hooks of a protocol only while some rule needs it there (`nf_ct_netns_get`).
    pub tracking: Table<Protocol, bool>,
    #[serde(default)]
    pub tracking_settings: Option<TrackingSettings>,
    pub routes: Table<RouteQuery, Route>,
    #[serde(default)]
    pub routing: RoutingState,
    pub address_types: Table<AddressQuery, u32>,
    pub fib: Table<FibQuery, Option<FibEntry>>,
    #[serde(default)]
    pub ip_sets: Table<u16, Option<IpSet>>,
    /// None where the kernel did not say.
    #[serde(default)]
    pub ip_set_elements: Table<IpSetQuery, Option<bool>>,
    /// All that share an address where a packet is given to one of them; unknown where the kernel could not be asked.
    #[serde(default)]
    pub sockets: Table<SocketQuery, Fact<Vec<FoundSocket>>>,
    /// Lists of the match recent by their names; unknown where one could not be read.
    #[serde(default)]
    pub recent: Table<String, Fact<Vec<RecentEntry>>>,
    #[serde(default)]
    pub balancer: VirtualState,
    #[serde(default)]
    pub bridges: Table<u32, Option<Bridge>>,
}

/// A map that goes over the wire as pairs, since its keys are no strings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Table<K: Eq + Hash, V>(pub HashMap<K, V>);

impl<K: Eq + Hash, V> Default for Table<K, V> {
    fn default() -> Self {
        Self(HashMap::new())
    }
}

impl<K: Eq + Hash + Clone, V> Table<K, V> {
    pub(super) fn read(&self, key: &K, missing: impl FnOnce(K) -> Key) -> Result<&V, Key> {
        self.0.get(key).ok_or_else(|| missing(key.clone()))
    }
}

impl<K: Eq + Hash + Serialize, V: Serialize> Serialize for Table<K, V> {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(&self.0)
    }
}

impl<'de, K: Eq + Hash + Deserialize<'de>, V: Deserialize<'de>> Deserialize<'de> for Table<K, V> {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Vec::<(K, V)>::deserialize(deserializer).map(|pairs| Self(pairs.into_iter().collect()))
    }
}

impl RuleState {
    pub(super) fn hooks(&self) -> Result<&Hooks, Key> {
        self.hooks.as_ref().ok_or(Key::Hooks)
    }

    pub(super) fn chain(&self, key: &ChainKey) -> Result<Option<&Chain>, Key> {
        self.chains.read(key, Key::Chain).map(Option::as_ref)
    }

    pub(super) fn set(&self, key: &SetKey) -> Result<Option<&Set>, Key> {
        self.sets.read(key, Key::Set).map(Option::as_ref)
    }

    pub(super) fn queues(&self) -> Result<&[u16], Key> {
        self.queues.as_deref().ok_or(Key::Queues)
    }

    pub(super) fn interface(&self, index: u32) -> Result<Option<&Interface>, Key> {
        self.interfaces.read(&index, |index| Key::Interface { index }).map(Option::as_ref)
    }

    pub(super) fn addresses(&self) -> Result<&[(u32, InterfaceAddress)], Key> {
        self.addresses.as_deref().ok_or(Key::Addresses)
    }

    pub(super) fn is_tracked(&self, protocol: Protocol) -> Result<bool, Key> {
        self.tracking.read(&protocol, Key::Tracking).copied()
    }

    pub(super) fn tracking_settings(&self) -> Result<TrackingSettings, Key> {
        self.tracking_settings.ok_or(Key::TrackingSettings)
    }

    pub(super) fn route(&self, query: &RouteQuery) -> Result<&Route, Key> {
        self.routes.read(query, Key::Route)
    }

    pub(super) fn address_type(&self, query: &AddressQuery) -> Result<u32, Key> {
        self.address_types.read(query, Key::AddressType).copied()
    }

    pub(super) fn fib(&self, query: &FibQuery) -> Result<Option<&FibEntry>, Key> {
        self.fib.read(query, Key::Fib).map(Option::as_ref)
    }

    pub(super) fn ip_set(&self, index: u16) -> Result<Option<&IpSet>, Key> {
        self.ip_sets.read(&index, |index| Key::IpSet { index }).map(Option::as_ref)
    }

    pub(super) fn sockets(&self, query: &SocketQuery) -> Result<&Fact<Vec<FoundSocket>>, Key> {
        self.sockets.read(query, Key::Sockets)
    }

    pub(super) fn recent(&self, list: &str) -> Result<&Fact<Vec<RecentEntry>>, Key> {
        self.recent.0.get(list).ok_or_else(|| Key::Recent { list: list.to_owned() })
    }

    pub(super) fn ip_set_element(&self, query: &IpSetQuery) -> Result<Option<bool>, Key> {
        self.ip_set_elements.read(query, Key::IpSetElement).copied()
    }
}
