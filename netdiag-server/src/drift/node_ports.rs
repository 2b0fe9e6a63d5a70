//! On which of a node's addresses its node ports are, against what kube-proxy is told (`nodePortAddresses`). Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;
use netdiag_common::observation::kube_proxy::KubeProxySettings;
use netdiag_common::observation::network::Network;
use netdiag_common::observation::service_rules::{NodePortAddresses, OwnAddresses, Proxier, ServiceRules};
use netdiag_common::observation::{Observation, Protocol};
use netdiag_common::{Gap, Need, Reading, Topic};

use super::node::old_agent;
use super::pods::host;
use super::services::Compared;
use super::{Difference, Entrance, Kind, NodeDrift, Readings, gap};
use crate::evidence::Cluster;
use crate::evidence::object::Node;
use crate::listing::named;

const WHAT: &str = "addresses of node ports";
/// The one word beside networks: the addresses that the API has for the node (`NodePortAddressesPrimary`).
const PRIMARY: &str = "primary";
/// On it are the addresses of Services in IPVS mode. Node ports may be on them, too, where `nodePortAddresses` or another device
/// has them: the rules do not tell their virtual servers from those of Services, so they are left out on both sides.
const IPVS_DEVICE: &str = "kube-ipvs0";
/// Addresses and ports of one difference that are named; the rest is counted.
const MAX_NAMED: usize = 8;

/// Node ports of one family, with the addresses that they are on.
type Found = BTreeMap<OwnAddresses, Vec<(Protocol, u16)>>;

pub(super) fn compare(cluster: &Cluster, rules: &ServiceRules, readings: &Readings, drift: &mut NodeDrift) {
    let ports = rules.node_ports.as_deref().unwrap_or_default();
    // Where no packet gets to the rules, that is said.
    if ports.is_empty() || !rules.hooked {
        return;
    }
    if rules.proxier != Proxier::Ipvs && rules.node_port_addresses.is_none() {
        return drift.gaps.push(old_agent(&drift.node, WHAT));
    }
    let settings = match settings(readings, &drift.node) {
        Ok(settings) => settings,
        Err(gap) => return drift.gaps.push(gap),
    };
    let families: BTreeSet<bool> = ports.iter().map(|port| port.ipv6).collect();
    let Some(settings) = settings else { return drift.gaps.extend(untold(rules, &families, &drift.node)) };
    // Without the node's addresses, what is missing is said with its routes.
    let (Some(host), Some(node)) = (host(readings, &drift.node), cluster.nodes.get("", &drift.node)) else { return };
    let Some(nets) = nets(settings, node, rules.proxier) else {
        return drift.gaps.push(unreadable(settings, &drift.node));
    };
    let is_unclear = !rules.undecoded.is_empty() || !host.left_out.is_empty();
    for ipv6 in families {
        let wanted = wanted(&nets, host, rules.proxier, ipv6);
        let wrong = found(rules, ipv6).into_iter().filter(|(on, _)| *on != wanted);
        for (on, ports) in wrong {
            if is_unclear {
                let why = "rules or addresses were not read to their end".to_owned();
                let remedy = "look on the node at what leads to the rules of node ports";
                return drift.gaps.push(gap(&drift.node, WHAT, why, remedy));
            }
            match newer(node, rules.proxier, &wanted, &on) {
                Some(newer) => drift.gaps.push(not_yet(&drift.node, ipv6, &newer)),
                None => drift.differences.push(difference(rules.proxier, ipv6, &wanted, &on, &ports)),
            }
        }
    }
}

/// The families (whether IPv6) in which kube-proxy is told of networks or primary addresses, and the node has no address of them.
/// The gap says why that is not known.
pub(super) fn nowhere(
    cluster: &Cluster,
    proxier: Proxier,
    readings: &Readings,
    node_name: &str,
) -> Result<BTreeSet<bool>, Gap> {
    let Some(settings) = settings(readings, node_name)? else { return Err(silent(node_name)) };
    let (Some(host), Some(node)) = (host(readings, node_name), cluster.nodes.get("", node_name)) else {
        let why = "the node did not answer with its addresses".to_owned();
        return Err(gap(node_name, WHAT, why, "ask again"));
    };
    let Some(nets) = nets(settings, node, proxier) else { return Err(unreadable(settings, node_name)) };
    let none = OwnAddresses::Only(BTreeSet::new());
    let is_nowhere = |ipv6: &bool| limits(&nets, *ipv6).is_some() && wanted(&nets, host, proxier, *ipv6) == none;
    let nowhere: BTreeSet<bool> = [false, true].into_iter().filter(is_nowhere).collect();
    if !nowhere.is_empty() && !host.left_out.is_empty() {
        let why = "the node's addresses were not read to their end".to_owned();
        return Err(gap(node_name, WHAT, why, "look at them on the node with ip address"));
    }
    Ok(nowhere)
}

/// In IPVS mode a node port is a virtual server on each of its addresses: where the node has no address that kube-proxy is told of,
/// none is missing. The gap says why that is not known.
pub(super) fn not_meant(
    cluster: &Cluster,
    rules: &ServiceRules,
    readings: &Readings,
    (node, compared): (&str, &mut Compared),
) -> Option<Gap> {
    let served: BTreeSet<bool> = rules.node_ports.iter().flatten().map(|port| port.ipv6).collect();
    // A family that has one node port has an address for the others.
    let family = |difference: &Difference| match (difference.kind, difference.entrance) {
        (Kind::Missing, Some(Entrance::NodePort { ipv6, .. })) if !served.contains(&ipv6) => Some(ipv6),
        _ => None,
    };
    let before = compared.differences.len();
    if !compared.differences.iter().any(|difference| family(difference).is_some()) {
        return None;
    }
    match nowhere(cluster, rules.proxier, readings, node) {
        Ok(nowhere) => {
            compared.differences.retain(|found| family(found).is_none_or(|ipv6| !nowhere.contains(&ipv6)));
            None
        }
        Err(cause) => {
            compared.differences.retain(|found| family(found).is_none());
            let count = before - compared.differences.len();
            compared.entrances -= count;
            let why = format!("{count} have no virtual server, and it is not known if they should: {}", cause.why);
            Some(Gap { what: WHAT.to_owned(), why, ..cause })
        }
    }
}

/// None where it does not tell them.
fn settings<'r>(readings: &'r Readings, node: &str) -> Result<Option<&'r KubeProxySettings>, Gap> {
    match readings.get(&Need::host(node, Topic::KubeProxy)) {
        Some(Reading::Seen { value: Observation::KubeProxy(proxy), .. }) => Ok(proxy.settings.as_ref()),
        Some(Reading::Unavailable { gap }) => Err(gap.clone()),
        _ => Ok(None),
    }
}

/// kube-proxy does not tell what it is told. In iptables mode it takes all addresses by itself: where node ports are on all of
/// them, none is missing.
fn untold(rules: &ServiceRules, families: &BTreeSet<bool>, node: &str) -> Option<Gap> {
    let is_iptables = matches!(rules.proxier, Proxier::IptablesNft | Proxier::IptablesLegacy);
    let seen = families.iter().flat_map(|&ipv6| found(rules, ipv6).into_keys().map(move |on| (ipv6, on)));
    let seen: Vec<(bool, OwnAddresses)> = seen.collect();
    if is_iptables && seen.iter().all(|(_, on)| *on == OwnAddresses::All) {
        return None;
    }
    let mut gap = silent(node);
    // What was not read to its end may have more addresses.
    if rules.undecoded.is_empty() {
        let on = named(
            seen.iter().map(|(ipv6, on)| format!("{} node ports are on {}", family(*ipv6), words(on))),
            MAX_NAMED,
        );
        gap.why = format!("{on}; {}", gap.why);
    }
    Some(gap)
}

fn silent(node: &str) -> Gap {
    let why = "kube-proxy does not tell its settings there (nodePortAddresses)".to_owned();
    gap(node, WHAT, why, "let it answer for /configz on 127.0.0.1:10249 (metricsBindAddress)")
}

fn unreadable(settings: &KubeProxySettings, node: &str) -> Gap {
    let why = format!("{} is no list of networks (nodePortAddresses)", settings.node_port_addresses.join(", "));
    gap(node, WHAT, why, "read the log of kube-proxy on that node")
}

/// What it is told, or takes by itself; none where that cannot be read. nftables mode takes the primary addresses by itself
/// (`cmd/kube-proxy/app/server_linux.go`, Kubernetes 1.31 to 1.36), and the others all.
fn nets(settings: &KubeProxySettings, node: &Node, proxier: Proxier) -> Option<Vec<IpNet>> {
    let listed = &settings.node_port_addresses;
    let by_itself = listed.is_empty() && proxier == Proxier::Nftables;
    if by_itself || listed.iter().eq([PRIMARY]) {
        let bound = settings.bind_address.parse().ok();
        return Some([true, false].into_iter().filter_map(|ipv4| primary(node, bound, ipv4)).collect());
    }
    listed.iter().map(|text| text.parse().ok()).collect()
}

/// The address that kube-proxy binds to, or else the node's first one of this family, internal ones before external ones
/// (`detectNodeIPs` of `cmd/kube-proxy/app/server.go`, `GetNodeHostIPs` of `pkg/util/node`).
fn primary(node: &Node, bound: Option<IpAddr>, ipv4: bool) -> Option<IpNet> {
    let of_kind = |kind: &'static str| node.status.addresses.iter().filter(move |listed| listed.kind == kind);
    let listed = of_kind("InternalIP").chain(of_kind("ExternalIP")).filter_map(|listed| listed.address.parse().ok());
    let bound = bound.filter(|address: &IpAddr| !address.is_unspecified());
    let own = bound.into_iter().chain(listed).find(|address| address.is_ipv4() == ipv4);
    own.filter(|address| !address.is_loopback()).map(IpNet::from)
}

/// Those of one family; none for all addresses, where none of the family is named or one has them all
/// (`pkg/proxy/util/nodeport_addresses.go`).
fn limits(nets: &[IpNet], ipv6: bool) -> Option<Vec<&IpNet>> {
    let nets: Vec<&IpNet> = nets.iter().filter(|net| net.addr().is_ipv6() == ipv6).collect();
    let is_all = nets.is_empty() || nets.iter().any(|net| net.prefix_len() == 0);
    (!is_all).then_some(nets)
}

/// The node's addresses in these networks. In IPVS mode all of them are single ones as well.
fn wanted(nets: &[IpNet], host: &Network, proxier: Proxier, ipv6: bool) -> OwnAddresses {
    let limits = limits(nets, ipv6);
    if limits.is_none() && proxier != Proxier::Ipvs {
        return OwnAddresses::All;
    }
    let of_services = host.links.iter().find(|link| link.name == IPVS_DEVICE).map(|link| link.index);
    let of_services = host.addresses.iter().filter(|own| Some(own.link_index) == of_services);
    let of_services: BTreeSet<IpAddr> = of_services.map(|own| own.address).collect();
    let own = host.addresses.iter().map(|own| own.address).filter(|own| own.is_ipv6() == ipv6);
    let own = own.filter(|own| !own.is_loopback() && !of_services.contains(own));
    // `isValidForSet` of `pkg/proxy/ipvs/netlink_linux.go`
    let is_linked = |own: &IpAddr| matches!(own, IpAddr::V6(own) if own.is_unicast_link_local());
    let is_in = |own: &IpAddr| match &limits {
        Some(nets) => nets.iter().any(|net| net.contains(own)),
        None => !is_linked(own),
    };
    OwnAddresses::Only(own.filter(is_in).collect())
}

/// What alone is missing, where it may have come after kube-proxy last looked at the node's addresses: nftables mode does so where
/// it sets up its tables (`setupNFTables` of `pkg/proxy/nftables/proxier.go`), in newer versions at a full sync alone, once an
/// hour; the other modes at each sync. What the API has for the node is taken to be as old as the node.
fn newer(node: &Node, proxier: Proxier, wanted: &OwnAddresses, on: &OwnAddresses) -> Option<BTreeSet<IpAddr>> {
    let (OwnAddresses::Only(wanted), OwnAddresses::Only(on)) = (wanted, on) else { return None };
    let listed: BTreeSet<IpAddr> =
        node.status.addresses.iter().filter_map(|listed| listed.address.parse().ok()).collect();
    let missing: BTreeSet<IpAddr> = wanted.difference(on).copied().collect();
    let may_be_newer = proxier == Proxier::Nftables && on.is_subset(wanted) && missing.is_disjoint(&listed);
    may_be_newer.then_some(missing)
}

fn not_yet(node: &str, ipv6: bool, newer: &BTreeSet<IpAddr>) -> Gap {
    let newer = named(newer.iter(), MAX_NAMED);
    let why = format!(
        "{} node ports are not on {newer}: added after kube-proxy last looked at the node's addresses, or left out by mistake",
        family(ipv6)
    );
    let remedy = "ask again in an hour, after the next full sync of nftables mode, or restart kube-proxy there";
    gap(node, WHAT, why, remedy)
}

/// Loopback is left out: whether node ports are there, too, is another setting of kube-proxy (`localhostNodePorts`).
fn found(rules: &ServiceRules, ipv6: bool) -> Found {
    let mut found = Found::new();
    let ports = rules.node_ports.iter().flatten().filter(|port| port.ipv6 == ipv6);
    if rules.proxier != Proxier::Ipvs {
        let on = rules.node_port_addresses.iter().flatten().find(|addresses| addresses.ipv6 == ipv6);
        let on = match on.map(|NodePortAddresses { on, .. }| on) {
            Some(OwnAddresses::All) => OwnAddresses::All,
            Some(OwnAddresses::Only(taken)) => {
                OwnAddresses::Only(taken.iter().copied().filter(|address| !address.is_loopback()).collect())
            }
            None => OwnAddresses::Only(BTreeSet::new()),
        };
        found.insert(on, ports.map(|port| (port.protocol, port.port)).collect());
        return found;
    }
    let mut taken: BTreeMap<(Protocol, u16), BTreeSet<IpAddr>> = BTreeMap::new();
    for server in rules.entries.iter().filter(|server| server.node_port && server.address.is_ipv6() == ipv6) {
        taken.entry((server.protocol, server.port)).or_default().insert(server.address);
    }
    for port in ports {
        let key = (port.protocol, port.port);
        found.entry(OwnAddresses::Only(taken.remove(&key).unwrap_or_default())).or_default().push(key);
    }
    found
}

fn difference(
    proxier: Proxier,
    ipv6: bool,
    wanted: &OwnAddresses,
    on: &OwnAddresses,
    ports: &[(Protocol, u16)],
) -> Difference {
    let table = if ipv6 { "ip6" } else { "ip" };
    let ports = named(ports.iter().map(|(protocol, port)| format!("{port}/{protocol}")), MAX_NAMED);
    Difference {
        kind: Kind::NodePortAddresses,
        service: String::new(),
        entrance: None,
        expected: format!("{} node ports on {}", family(ipv6), words(wanted)),
        found: format!("{ports} on {}", words(on)),
        rule: match proxier {
            Proxier::Nftables => format!("set nodeport-ips of table {table} kube-proxy"),
            Proxier::Ipvs => "virtual servers of IPVS".to_owned(),
            _ => format!("end of chain KUBE-SERVICES of table {table} nat"),
        },
    }
}

fn family(ipv6: bool) -> &'static str {
    if ipv6 { "IPv6" } else { "IPv4" }
}

fn words(on: &OwnAddresses) -> String {
    match on {
        OwnAddresses::All => "all addresses of the node".to_owned(),
        OwnAddresses::Only(none) if none.is_empty() => "no address of the node".to_owned(),
        OwnAddresses::Only(some) => named(some.iter(), MAX_NAMED),
    }
}
