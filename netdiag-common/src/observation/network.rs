//! How one network namespace is wired: links, addresses, routes, policy rules, neighbours, forwarding databases (rtnetlink).

use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Network {
    pub links: Vec<Link>,
    pub addresses: Vec<Address>,
    pub routes: Vec<Route>,
    pub policy_rules: Vec<PolicyRule>,
    pub neighbours: Vec<Neighbour>,
    /// Of bridges and of VXLAN devices.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub forwarding: Vec<FdbEntry>,
    /// What was not listed because of the agent's limits; empty when complete.
    #[serde(default)]
    pub left_out: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Link {
    pub index: u32,
    pub name: String,
    /// `veth`, `bridge`, `vxlan`, …; empty for plain devices.
    #[serde(default)]
    pub kind: String,
    pub mtu: u32,
    /// `IFF_UP`.
    pub up: bool,
    /// `IFF_LOWER_UP`: the other end is there.
    pub carrier: bool,
    /// Ethernet address, as in [`FdbEntry::mac`]; none for links that are not Ethernet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mac: Option<String>,
    /// Index of the other end of a veth or netkit pair, in its own namespace.
    #[serde(default)]
    pub peer_index: Option<u32>,
    /// Bridge, bond or VRF this link is enslaved to.
    #[serde(default)]
    pub master_index: Option<u32>,
    /// Only of bridges.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bridge: Option<Bridge>,
    /// Only of links that are ports of a bridge.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bridge_port: Option<BridgePort>,
    /// Only of VLAN devices.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vlan: Option<Vlan>,
    /// Only of VRFs: the routing table of what arrives on their ports (`IFLA_VRF_TABLE`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vrf_table: Option<u32>,
    /// Only of tunnels whose parameters rtnetlink tells: VXLAN, Geneve, IPIP, SIT, GRE. WireGuard's peers are not among them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tunnel: Option<Tunnel>,
}

/// What both ends of a tunnel have to agree on, and whom it sends to (`IFLA_INFO_DATA`).
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Tunnel {
    /// The network's number in each packet: VXLAN and Geneve VNI, GRE's key of what is sent. None where it has none, or each
    /// packet brings its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<u32>,
    /// Source of the outer packets; none: the route decides.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub local: Option<IpAddr>,
    /// The other end, or the group that unknown destinations are sent to; none: the forwarding database decides.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub remote: Option<IpAddr>,
    /// UDP port that is listened on and, where the forwarding database has no other, sent to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    /// VXLAN: where a packet came from is where answers go to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub learning: Option<bool>,
    /// Whoever hands packets over says where to (`external`, `collect_md`): a program or Open vSwitch.
    #[serde(default)]
    pub external: bool,
    /// The device that outer packets leave by, where it is fixed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lower_index: Option<u32>,
    /// Outer packets are packed once more: in UDP (FOU, GUE), or with labels of MPLS.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub encapsulated: bool,
    /// IPIP, SIT, GRE: by which the route of outer packets is looked up, whatever mark they have (`fwmark`); none: by 0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mark: Option<u32>,
}

/// One line of `bridge fdb`: where frames to an Ethernet address go.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct FdbEntry {
    /// The bridge's port, or the VXLAN device.
    pub link_index: u32,
    /// All zeros: what no other entry has.
    pub mac: String,
    /// VXLAN: the node whose tunnel end the frame is sent to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub destination: Option<IpAddr>,
    /// VXLAN: the object of `ip nexthop` that says which nodes' tunnel ends, instead of a destination (Linux 5.8).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_hop_id: Option<u32>,
    /// VXLAN: UDP port and VNI, where they are not the device's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<u32>,
    /// The bridge, where the entry is a bridge's and not the device's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub master_index: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vlan: Option<u16>,
    /// Written by hand or by a network plugin, not learned.
    pub is_static: bool,
}

/// What decides which hooks a packet passes that a bridge hands from port to port (`net/bridge/br_netfilter_hooks.c`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bridge {
    /// Bridged IPv4 packets pass the hooks of IP, whatever the sysctl `net.bridge.bridge-nf-call-iptables` says. None when this
    /// kernel has no `br_netfilter`.
    #[serde(default)]
    pub nf_call_iptables: Option<bool>,
    /// The same for IPv6.
    #[serde(default)]
    pub nf_call_ip6tables: Option<bool>,
    /// Every packet on the bridge is handed to this host, too (`IFLA_PROMISCUITY` is not 0).
    #[serde(default)]
    pub promiscuous: bool,
}

/// What decides which frames a bridge takes from this port, and which it hands to it (`IFLA_BRPORT_*` of linux/if_link.h;
/// `br_handle_frame` and `should_deliver` in `net/bridge`, Linux 6.18). None for what the kernel, or an agent of before, does not
/// tell.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct BridgePort {
    /// A packet may leave by the port that it came in by (`BR_HAIRPIN_MODE`; `should_deliver` in `net/bridge/br_forward.c`).
    pub hairpin: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state: Option<PortState>,
    /// Nothing that came in by it leaves by another isolated port (`br_skb_isolated`, Linux 4.18).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub isolated: Option<bool>,
    /// A message of a spanning tree turns it off (`BR_BPDU_GUARD`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub guard: Option<bool>,
    /// Where a frame came from is where answers go to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub learning: Option<bool>,
    /// It gets frames to addresses that the forwarding database does not have.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unicast_flood: Option<bool>,
    /// The bridge answers ARP and neighbour discovery itself, where it can, and floods less of it here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub neigh_suppress: Option<bool>,
    /// Only senders that the forwarding database has here are let in (Linux 5.18).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub locked: Option<bool>,
}

/// `BR_STATE_*` of linux/if_bridge.h. Only a port that is forwarding takes packets in and lets them out, unless the bridge keeps a
/// state for each VLAN (`mst_enabled`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PortState {
    Disabled,
    Listening,
    Learning,
    Forwarding,
    Blocking,
}

/// The tag of a VLAN device's frames (`IFLA_VLAN_ID`, `IFLA_VLAN_PROTOCOL`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Vlan {
    pub id: u16,
    /// EtherType of the tag: 0x8100 of 802.1Q, 0x88a8 of 802.1ad.
    pub protocol: u16,
    /// The device that carries the tagged frames; none when it is in another namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lower_index: Option<u32>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Address {
    pub link_index: u32,
    pub address: IpAddr,
    pub prefix_length: u8,
}

/// A route with several next hops is given once per hop.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Route {
    pub destination: IpNet,
    pub kind: RouteKind,
    #[serde(default)]
    pub gateway: Option<IpAddr>,
    #[serde(default)]
    pub link_index: Option<u32>,
    #[serde(default)]
    pub source: Option<IpAddr>,
    /// Routing table id; 254 is main, 255 local.
    pub table: u32,
    #[serde(default)]
    pub metric: u32,
    /// The route's own MTU (`RTAX_MTU`), which comes before its link's; none without one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u32>,
    /// `kernel`, `boot`, `static`, `bird`, … (rtm_protocol).
    #[serde(default)]
    pub protocol: String,
}

/// rtm_type.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RouteKind {
    Unicast,
    Local,
    Broadcast,
    Multicast,
    Blackhole,
    Unreachable,
    Prohibit,
    Throw,
    Other,
}

/// One line of `ip rule`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PolicyRule {
    pub priority: u32,
    pub table: u32,
    /// `ip` or `ip6`.
    #[serde(default)]
    pub family: String,
    /// What it matches beyond "from all", and its action when that is not a table, in iproute2's words; empty for none.
    #[serde(default)]
    pub selector: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Neighbour {
    pub link_index: u32,
    pub address: IpAddr,
    /// `reachable`, `stale`, `failed`, `incomplete`, `permanent`, …
    pub state: String,
    #[serde(default)]
    pub mac: Option<String>,
}

impl Network {
    pub fn link(&self, index: u32) -> Option<&Link> {
        self.links.iter().find(|link| link.index == index)
    }

    /// The route of the main and local tables that the kernel would take to `address`: longest prefix, then lowest metric.
    /// Policy rules are not evaluated; callers that see any besides the three default ones must say so.
    pub fn route_to(&self, address: IpAddr) -> Option<&Route> {
        self.routes
            .iter()
            .filter(|route| matches!(route.table, 254 | 255) && route.destination.contains(&address))
            .max_by_key(|route| (route.table, route.destination.prefix_len(), std::cmp::Reverse(route.metric)))
    }
}

impl BridgePort {
    /// What is otherwise than a new port that works has it: `blocking, hairpin, isolated, learning off`; empty for nothing.
    pub fn words(self) -> String {
        let state = self.state.filter(|state| *state != PortState::Forwarding).map(PortState::word);
        let flags = [
            (self.hairpin, "hairpin"),
            (self.isolated == Some(true), "isolated"),
            (self.guard == Some(true), "guard"),
            (self.learning == Some(false), "learning off"),
            (self.unicast_flood == Some(false), "flood off"),
            (self.neigh_suppress == Some(true), "neigh_suppress"),
            (self.locked == Some(true), "locked"),
        ];
        let flags = flags.into_iter().filter(|(is_told, _)| *is_told).map(|(_, word)| word);
        state.into_iter().chain(flags).collect::<Vec<_>>().join(", ")
    }
}

impl PortState {
    pub fn word(self) -> &'static str {
        match self {
            Self::Disabled => "disabled",
            Self::Listening => "listening",
            Self::Learning => "learning",
            Self::Forwarding => "forwarding",
            Self::Blocking => "blocking",
        }
    }
}

impl Vlan {
    /// `VLAN 100`, or `VLAN 100 (802.1ad)` where the tag is not the usual one.
    pub fn words(self) -> String {
        match self.protocol {
            0x8100 => format!("VLAN {}", self.id),
            0x88a8 => format!("VLAN {} (802.1ad)", self.id),
            other => format!("VLAN {} (tag {other:#06x})", self.id),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_tells_what_is_not_as_usual() {
        let usual = BridgePort { state: Some(PortState::Forwarding), learning: Some(true), ..BridgePort::default() };
        assert_eq!(usual.words(), "");
        let odd = BridgePort {
            state: Some(PortState::Blocking),
            hairpin: true,
            isolated: Some(true),
            unicast_flood: Some(false),
            ..usual
        };
        assert_eq!(odd.words(), "blocking, hairpin, isolated, flood off");
    }

    #[test]
    fn a_port_as_agents_of_before_tell_it_says_nothing_more() {
        let port: BridgePort = serde_json::from_str(r#"{"hairpin": true}"#).unwrap();
        assert_eq!((port.isolated, port.state, port.words()), (None, None, "hairpin".to_owned()));
    }

    #[test]
    fn a_vlan_names_its_tag_where_it_is_not_the_usual_one() {
        let vlan = |protocol| Vlan { id: 100, protocol, lower_index: None }.words();
        assert_eq!([vlan(0x8100), vlan(0x88a8)], ["VLAN 100", "VLAN 100 (802.1ad)"]);
        assert_eq!(vlan(0x9100), "VLAN 100 (tag 0x9100)");
    }
}
