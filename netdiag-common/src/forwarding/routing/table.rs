//! Routing rules, routes and settings as the kernel holds them: what the evaluation of a route reads.

use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::super::packet::Protocol;
use super::super::state::{Key, RuleState, Table};

/// `RTN_*` of linux/rtnetlink.h.
pub mod kind {
    pub const UNICAST: u8 = 1;
    pub const LOCAL: u8 = 2;
    pub const BROADCAST: u8 = 3;
    pub const ANYCAST: u8 = 4;
    pub const MULTICAST: u8 = 5;
    pub const BLACKHOLE: u8 = 6;
    pub const UNREACHABLE: u8 = 7;
    pub const PROHIBIT: u8 = 8;
    pub const THROW: u8 = 9;
}

/// `FR_ACT_*` of linux/fib_rules.h.
pub mod action {
    pub const TO_TABLE: u8 = 1;
    pub const GOTO: u8 = 2;
    pub const NOP: u8 = 3;
    pub const BLACKHOLE: u8 = 6;
    pub const UNREACHABLE: u8 = 7;
    pub const PROHIBIT: u8 = 8;
}

/// What a route says about who made it: `RTPROT_*` of linux/rtnetlink.h (Linux 6.18) as rt_protos of iproute2 spells them; a number
/// for others, which each site gives as it likes.
///
/// Makers write what they like: Cilium's routes say `kernel`, so that networkd leaves them alone (`RTProto` in its linux_defaults).
pub fn maker(protocol: u8) -> String {
    let name = match protocol {
        0 => "unspec",
        1 => "redirect",
        2 => "kernel",
        3 => "boot",
        4 => "static",
        8 => "gated",
        9 => "ra",
        10 => "mrt",
        11 => "zebra",
        12 => "bird",
        13 => "dnrouted",
        14 => "xorp",
        15 => "ntk",
        16 => "dhcp",
        17 => "mrouted",
        18 => "keepalived",
        42 => "babel",
        84 => "ovn",
        99 => "openr",
        186 => "bgp",
        187 => "isis",
        188 => "ospf",
        189 => "rip",
        192 => "eigrp",
        other => return other.to_string(),
    };
    name.to_owned()
}

/// `RT_TABLE_*` of linux/rtnetlink.h.
pub const DEFAULT_TABLE: u32 = 253;
pub const MAIN_TABLE: u32 = 254;
pub const LOCAL_TABLE: u32 = 255;

/// One rule of ip-rule(8).
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct RoutingRule {
    pub priority: u32,
    /// See [`action`].
    pub action: u8,
    pub table: u32,
    /// Priority of the rule to go on with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub goto: Option<u32>,
    /// It applies to what does not match.
    pub inverted: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<IpNet>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub destination: Option<IpNet>,
    /// `lo` for packets of this host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub input: Option<Arc<str>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub output: Option<Arc<str>>,
    pub mark: u32,
    pub mask: u32,
    /// Type of service, 0 for any.
    pub service: u8,
    /// Differentiated services as a whole: value and mask of its six bits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub differentiated: Option<(u8, u8)>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub users: Option<(u32, u32)>,
    /// 0 for any.
    pub protocol: u8,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source_ports: Option<Ports>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub destination_ports: Option<Ports>,
    /// It applies to packets of VRFs, and leads to the table of the VRF.
    pub vrf: bool,
    /// Routes with a prefix of at most this length do not count.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub suppressed_length: Option<u32>,
    /// Routes out of interfaces of this group do not count.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub suppressed_group: Option<u32>,
    /// Selectors that are not evaluated, in words: `tun_id 5`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub others: Vec<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ports {
    pub first: u16,
    pub last: u16,
    /// All bits but with a mask, which only single ports have (Linux 6.15).
    pub mask: u16,
}

/// One route of a table.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TableRoute {
    pub destination: IpNet,
    /// The prefix that sources have to be of (IPv6).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<IpNet>,
    /// See [`kind`].
    pub kind: u8,
    /// `RT_SCOPE_*`
    pub scope: u8,
    /// Type of service, 0 for any.
    pub service: u8,
    pub metric: u32,
    /// `RTPROT_*`: who made it, see [`maker`]; 2 is the kernel.
    pub protocol: u8,
    /// Of routers (IPv6, RFC 4191): 0 medium, 1 high, 3 low.
    pub preference: u8,
    /// The address that packets of this host get.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub own: Option<IpAddr>,
    /// The next-hop object that its next hops are from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub object: Option<u32>,
    /// `LWTUNNEL_ENCAP_*`: what packets are put into on this way.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub encapsulation: Option<u16>,
    /// `RTAX_MTU`, in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u32>,
    /// Whether nothing that is learned changes it.
    #[serde(default)]
    pub mtu_locked: bool,
    pub hops: Vec<NextHop>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NextHop {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interface: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gateway: Option<IpAddr>,
    /// 1 to 65536.
    pub weight: u32,
    /// `RTNH_F_DEAD`, which the kernel also reports where there is no carrier and `ignore_routes_with_linkdown` is set.
    pub dead: bool,
    /// `RTNH_F_LINKDOWN`
    pub no_carrier: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct TableKey {
    pub protocol: Protocol,
    pub table: u32,
}

/// A table, whole or as far as destinations were asked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RouteTable {
    Whole(Vec<TableRoute>),
    /// Of a table with more routes than are kept: those that hold an address, by the address.
    Asked(Table<IpAddr, Vec<TableRoute>>),
}

/// `net.ipv4.conf.*` and `net.ipv6.conf.*` that routing asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Settings {
    pub ipv4: Ipv4Settings,
    pub ipv6: Ipv6Settings,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[expect(clippy::struct_excessive_bools, reason = "one for each setting, which are switches")]
pub struct Ipv4Settings {
    pub forwarding: bool,
    /// 0 off, 1 strict, 2 loose.
    pub rp_filter: u8,
    pub accept_local: bool,
    pub route_localnet: bool,
    pub src_valid_mark: bool,
    pub send_redirects: bool,
    pub bc_forwarding: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Ipv6Settings {
    pub forwarding: bool,
    /// Linux 6.17
    pub force_forwarding: bool,
    pub disabled: bool,
}

/// One interface as routing sees it.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct RoutedInterface {
    pub settings: Settings,
    pub up: bool,
    /// Of IP packets, in bytes; 0 when it was not read.
    #[serde(default)]
    pub mtu: u32,
    /// `net.ipv6.conf.*.mtu`; none without IPv6.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtu6: Option<u32>,
    /// Of the other end of a veth pair, which drops what is longer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peer_mtu: Option<u32>,
    /// The bridge that it is a port of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bridge: Option<u32>,
    /// The VRF that it belongs to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vrf: Option<Arc<str>>,
}

/// Settings of the whole namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct HostSettings {
    /// `net.ipv4.conf.all`, `net.ipv6.conf.all`
    pub all: Settings,
    /// `net.ipv4.fib_multipath_hash_policy`, `net.ipv6.fib_multipath_hash_policy`
    pub hash_policy: [u8; 2],
    /// `net.ipv4.fib_multipath_use_neigh`
    pub use_neighbours: bool,
}

/// All that has been read about routing.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct RoutingState {
    /// Whether the kernel can be asked for its own answer ([`Key::Route`]), which is then compared with the evaluated one.
    pub live: bool,
    /// In the order in which they are looked at.
    pub rules: Table<Protocol, Vec<RoutingRule>>,
    pub tables: Table<TableKey, RouteTable>,
    pub interfaces: Table<u32, Option<RoutedInterface>>,
    pub host: Option<HostSettings>,
    /// `NUD_*` by interface and address; 0 for none.
    pub neighbours: Table<(u32, IpAddr), u16>,
}

impl RuleState {
    pub(in crate::forwarding) fn routing_rules(&self, protocol: Protocol) -> Result<&[RoutingRule], Key> {
        self.routing.rules.read(&protocol, Key::RouteRules).map(Vec::as_slice)
    }

    /// The routes of a table that hold this address, in the kernel's order.
    pub(super) fn routes_to(&self, key: TableKey, address: IpAddr) -> Result<Vec<&TableRoute>, Key> {
        let routes = match self.routing.tables.read(&key, Key::RouteTable)? {
            RouteTable::Whole(routes) => routes,
            RouteTable::Asked(asked) => asked.read(&address, |address| Key::RoutesTo { table: key, address })?,
        };
        Ok(routes.iter().filter(|route| route.destination.contains(&address)).collect())
    }

    /// None when it is not there.
    pub(in crate::forwarding) fn routed_interface(&self, index: u32) -> Result<Option<&RoutedInterface>, Key> {
        self.routing.interfaces.read(&index, |index| Key::RoutedInterface { index }).map(Option::as_ref)
    }

    pub(in crate::forwarding) fn host_settings(&self) -> Result<&HostSettings, Key> {
        self.routing.host.as_ref().ok_or(Key::HostSettings)
    }

    pub(super) fn neighbour(&self, interface: u32, address: IpAddr) -> Result<u16, Key> {
        let missing = |(interface, address)| Key::Neighbour { interface, address };
        self.routing.neighbours.read(&(interface, address), missing).copied()
    }
}
