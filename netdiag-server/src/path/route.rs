//! Whether a node knows the way to a pod of another node, by its main routing table.

use std::net::IpAddr;

use ipnet::IpNet;
use netdiag_common::observation::network::{Network, PolicyRule, Route, RouteKind};

/// `default`, `main` and `local` (linux/rtnetlink.h: `enum rt_class_t`); 0 is none.
const USUAL_TABLES: [u32; 4] = [0, 253, 254, 255];

/// What the table has for an address of another node's pod network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Way {
    /// A route more specific than the default one.
    Known(Route),
    /// Nothing fits.
    Nothing,
    /// Only the default route fits.
    OnlyDefault(Route),
    /// The best route throws packets away: blackhole, unreachable or prohibit.
    Refused(Route),
}

impl Way {
    pub fn is_known(&self) -> bool {
        matches!(self, Self::Known(_))
    }
}

pub fn way(network: &Network, address: IpAddr) -> Way {
    let Some(route) = network.route_to(address) else { return Way::Nothing };
    match route.kind {
        RouteKind::Blackhole | RouteKind::Unreachable | RouteKind::Prohibit => Way::Refused(route.clone()),
        _ if route.destination.prefix_len() == 0 => Way::OnlyDefault(route.clone()),
        _ => Way::Known(route.clone()),
    }
}

/// Rules besides the three that every Linux has (`local`, `main`, `default`; ip-rule(8)): then the main table alone does not
/// decide.
pub fn is_steered(network: &Network) -> bool {
    let usual = [(0, 255), (32_766, 254), (32_767, 253)];
    network.policy_rules.iter().any(|rule| !rule.selector.is_empty() || !usual.contains(&(rule.priority, rule.table)))
}

/// Routes to the address, other than default ones, in tables besides those that every Linux has.
pub fn aside(network: &Network, address: IpAddr) -> impl Iterator<Item = &Route> {
    network.routes.iter().filter(move |route| {
        !USUAL_TABLES.contains(&route.table)
            && route.kind == RouteKind::Unicast
            && route.destination.prefix_len() > 0
            && route.destination.contains(&address)
    })
}

/// Whether some rule leads packets to such addresses to this table. The one that the kernel makes for virtual routing domains names
/// no table, so it leads to any (`FRA_L3MDEV`, net/l3mdev/l3mdev.c).
pub fn leads_to(network: &Network, table: u32, address: IpAddr) -> bool {
    let mut rules = network.policy_rules.iter().filter(|rule| is_of_family(rule, address));
    rules.any(|rule| rule.table == table || rule.selector.contains("l3mdev"))
}

/// Rules of IPv4 and IPv6 are apart.
pub fn is_of_family(rule: &PolicyRule, address: IpAddr) -> bool {
    rule.family.is_empty() || rule.family == if address.is_ipv4() { "ip" } else { "ip6" }
}

/// `10.244.2.0/24 via 172.30.0.12 dev eth0`, `unreachable 10.244.2.0/24`, `default via 172.30.0.1 dev eth0`.
pub fn words(route: &Route, network: &Network) -> String {
    let mut words = match route.kind {
        RouteKind::Blackhole => "blackhole ",
        RouteKind::Unreachable => "unreachable ",
        RouteKind::Prohibit => "prohibit ",
        _ => "",
    }
    .to_owned();
    match route.destination {
        net if net.prefix_len() == 0 => words.push_str("default"),
        net => words.push_str(&net.to_string()),
    }
    if let Some(gateway) = route.gateway {
        words.push_str(&format!(" via {gateway}"));
    }
    if let Some(link) = route.link_index.and_then(|index| network.link(index)) {
        words.push_str(&format!(" dev {}", link.name));
    }
    words
}

/// An address inside the network, to ask the table about it.
pub fn inside(net: &IpNet) -> IpAddr {
    net.hosts().nth(1).unwrap_or_else(|| net.addr())
}
