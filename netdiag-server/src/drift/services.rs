//! The rules of one node's kube-proxy against what they should be, entrance by entrance. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::SocketAddr;

use ipnet::IpNet;
use jiff::Timestamp;
use netdiag_common::observation::service_rules::{Endpoint, Proxier, ServiceAction, ServiceRules, Terms};

use super::intended::{Entrance, Intention};
use super::{Difference, Kind};
use crate::listing::named;

/// A change younger than this when the rules were read may not have reached them, as for `kube_proxy_rules_stale`.
pub(super) const SETTLE_S: f64 = 10.0;

/// Since Kubernetes 1.34 hints for nodes are heeded by themselves; what kube-proxy there is told about it is not read.
const WITHOUT_NODES: &str = "they ignore the endpoints' hints for nodes, as kube-proxy before 1.34 does, or one with the gate \
                             PreferSameTrafficDistribution off";

/// `pkg/proxy/ipvs/ipset.go`
const IN_IPSETS: &str = "source ranges are in the ipsets KUBE-LOAD-BALANCER-FW and KUBE-LOAD-BALANCER-SOURCE-CIDR in IPVS \
                         mode (for IPv6 KUBE-6-…), which the agent did not read";
/// `hash_ipportnet4_uadt` of `net/netfilter/ipset/ip_set_hash_ipportnet.c` takes no prefix of no bits.
const NOT_IN_IPSETS: &str = "ipsets of IPVS mode have no range of all addresses";

/// What the comparison of one node's rules brought.
#[derive(Debug, Default)]
pub(super) struct Compared {
    /// Entrances that were compared.
    pub entrances: usize,
    /// Entrances of Services that changed a moment before.
    pub settling: usize,
    pub differences: Vec<Difference>,
    /// What could not be compared, once for each reason, with how many entrances it concerns.
    pub unknown: BTreeMap<&'static str, usize>,
}

/// What the rules say about one entrance.
struct Have<'r> {
    service: Option<&'r str>,
    chain: Option<&'r str>,
    action: &'r ServiceAction,
    terms: Option<&'r Terms>,
}

pub(super) fn compare(
    intended: &BTreeMap<Entrance, Intention>,
    rules: &ServiceRules,
    read_at: Timestamp,
    now: Timestamp,
) -> Compared {
    let mut compared = Compared::default();
    let have = entrances(rules);
    for (entrance, intention) in intended {
        if matches!(entrance, Entrance::NodePort { .. }) && rules.node_ports.is_none() {
            *compared.unknown.entry("the agent does not list node ports").or_default() += 1;
            continue;
        }
        if intention.changed_at.is_some_and(|changed| is_settling(changed, read_at, now)) {
            compared.settling += 1;
            continue;
        }
        one(entrance, intention, have.get(entrance), rules, &mut compared);
    }
    if rules.node_ports.is_none() {
        // Without the list, an entry for a node's address may be that of a node port.
        *compared.unknown.entry("what no Service has is not told apart from node ports").or_default() += 1;
        return compared;
    }
    let is_intended =
        |entrance: &Entrance| intended.contains_key(entrance) || is_node_port(entrance, intended, rules.proxier);
    let leftovers = have.iter().filter(|(entrance, _)| !is_intended(entrance));
    compared.differences.extend(leftovers.map(|(entrance, have)| Difference {
        kind: Kind::Leftover,
        service: have.service.unwrap_or_default().to_owned(),
        entrance: Some(*entrance),
        expected: "nothing: no Service has it".to_owned(),
        found: action_in_words(have.action),
        rule: rule(rules.proxier, entrance, have.chain),
    }));
    compared
}

/// A virtual server of a node port on an address of a Service. Those addresses are on the node as well, so kube-proxy takes them
/// for its own where `nodePortAddresses` or another device has them (`syncProxyRules` of `pkg/proxy/ipvs/proxier.go`, which
/// drops loopback alone).
fn is_node_port(entrance: &Entrance, intended: &BTreeMap<Entrance, Intention>, proxier: Proxier) -> bool {
    let Entrance::Address(address, protocol, port) = *entrance else { return false };
    let node_port = Entrance::NodePort { ipv6: address.is_ipv6(), protocol, port };
    proxier == Proxier::Ipvs && intended.contains_key(&node_port)
}

/// All entrances that there are. In nftables mode node ports are listed by the node's addresses besides, which say the same.
fn entrances(rules: &ServiceRules) -> BTreeMap<Entrance, Have<'_>> {
    let node_ports = rules.node_ports.as_deref().unwrap_or_default();
    let ports: BTreeSet<_> = node_ports.iter().map(|rule| (rule.ipv6, rule.protocol, rule.port)).collect();
    let mut have = BTreeMap::new();
    for rule in &rules.entries {
        if rule.node_port && ports.contains(&(rule.address.is_ipv6(), rule.protocol, rule.port)) {
            continue;
        }
        let of = Have {
            service: rule.service.as_deref(),
            chain: rule.chain.as_deref(),
            action: &rule.action,
            terms: rule.terms.as_ref(),
        };
        have.insert(Entrance::Address(rule.address, rule.protocol, rule.port), of);
    }
    for rule in node_ports {
        let of = Have {
            service: rule.service.as_deref(),
            chain: rule.chain.as_deref(),
            action: &rule.action,
            terms: rule.terms.as_ref(),
        };
        have.insert(Entrance::NodePort { ipv6: rule.ipv6, protocol: rule.protocol, port: rule.port }, of);
    }
    have
}

fn one(
    entrance: &Entrance,
    intention: &Intention,
    have: Option<&Have<'_>>,
    rules: &ServiceRules,
    compared: &mut Compared,
) {
    let difference = |kind, expected: String, found: String, chain: Option<&str>| Difference {
        kind,
        service: intention.service.clone(),
        entrance: Some(*entrance),
        expected,
        found,
        rule: rule(rules.proxier, entrance, chain),
    };
    let expected = expected(intention);
    let Some(have) = have else {
        if !rules.undecoded.is_empty() {
            *compared.unknown.entry("they have no entry that could be decoded").or_default() += 1;
            return;
        }
        compared.entrances += 1;
        compared.differences.push(difference(Kind::Missing, expected, "no entry".to_owned(), None));
        return;
    };
    compared.entrances += 1;
    let found = action_in_words(have.action);
    if let Some(service) = have.service.filter(|service| *service != intention.service) {
        let (expected, found) = (format!("an entry of {}", intention.service), format!("one of {service}"));
        compared.differences.push(difference(Kind::OtherService, expected, found, have.chain));
        return;
    }
    if !leads_right(intention, have.action, rules.proxier) {
        if !leads_instead(intention, have.action) {
            compared.differences.push(difference(Kind::Endpoints, expected, found, have.chain));
            return;
        }
        *compared.unknown.entry(WITHOUT_NODES).or_default() += 1;
    }
    if !matches!(have.action, ServiceAction::Endpoints(_)) {
        return;
    }
    match have.terms {
        None => *compared.unknown.entry("session affinity and source ranges could not be decoded").or_default() += 1,
        Some(terms) => {
            if terms.sticky != intention.sticky {
                let words = |sticky| if sticky { "clients stay with an endpoint" } else { "no session affinity" };
                let (expected, found) = (words(intention.sticky).to_owned(), words(terms.sticky).to_owned());
                compared.differences.push(difference(Kind::Affinity, expected, found, have.chain));
            }
            let has_all = intention.sources.iter().flatten().any(|net| net.prefix_len() == 0);
            if rules.proxier == Proxier::Ipvs && intention.sources.is_some() && (has_all || !rules.knows_source_sets) {
                let why = if has_all { NOT_IN_IPSETS } else { IN_IPSETS };
                *compared.unknown.entry(why).or_default() += 1;
            } else if !same_sources(entrance, intention.sources.as_ref(), terms.sources.as_ref()) {
                let (expected, found) = (sources(intention.sources.as_ref()), sources(terms.sources.as_ref()));
                compared.differences.push(difference(Kind::Sources, expected, found, have.chain));
            }
        }
    }
}

fn leads_right(intention: &Intention, action: &ServiceAction, proxier: Proxier) -> bool {
    let wanted = &intention.wanted;
    match action {
        ServiceAction::Endpoints(have) => !have.is_empty() && are(have, &wanted.endpoints),
        // IPVS refuses wherever a virtual server has no real one.
        ServiceAction::Reject => wanted.endpoints.is_empty() && (!wanted.anywhere || proxier == Proxier::Ipvs),
        ServiceAction::Drop => wanted.endpoints.is_empty() && wanted.anywhere,
    }
}

/// Where they would be right if the proxy heeded no hints for nodes.
fn leads_instead(intention: &Intention, action: &ServiceAction) -> bool {
    let ServiceAction::Endpoints(have) = action else { return false };
    intention.wanted.instead.iter().any(|wanted| are(have, wanted))
}

fn are(have: &[Endpoint], wanted: &BTreeSet<Endpoint>) -> bool {
    have.iter().collect::<BTreeSet<_>>().into_iter().eq(wanted)
}

fn expected(intention: &Intention) -> String {
    let wanted = &intention.wanted;
    match () {
        () if !wanted.endpoints.is_empty() => endpoints(wanted.endpoints.iter()),
        () if wanted.anywhere => "dropped: no endpoint on this node".to_owned(),
        () => "refused: no endpoint".to_owned(),
    }
}

fn action_in_words(action: &ServiceAction) -> String {
    match action {
        ServiceAction::Endpoints(list) => endpoints(list.iter()),
        ServiceAction::Reject => "refused".to_owned(),
        ServiceAction::Drop => "dropped".to_owned(),
    }
}

/// Endpoints named of one entrance; the rest is counted.
const MAX_NAMED: usize = 8;

fn endpoints<'e>(list: impl ExactSizeIterator<Item = &'e Endpoint>) -> String {
    named(list.map(|endpoint| SocketAddr::new(endpoint.address, endpoint.port)), MAX_NAMED)
}

fn sources(nets: Option<&BTreeSet<IpNet>>) -> String {
    nets.map_or_else(
        || "open to everybody".to_owned(),
        |nets| format!("only from {}", nets.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")),
    )
}

/// In iptables mode the load balancer's own address may be let in besides: packets of nodes can have it as their source.
fn same_sources(entrance: &Entrance, wanted: Option<&BTreeSet<IpNet>>, have: Option<&BTreeSet<IpNet>>) -> bool {
    match (wanted, have) {
        (None, None) => true,
        (Some(wanted), Some(have)) => {
            let is_own =
                |net: &IpNet| matches!(entrance, Entrance::Address(address, ..) if IpNet::from(*address) == *net);
            wanted.is_subset(have) && have.difference(wanted).all(is_own)
        }
        _ => false,
    }
}

/// Where the rule is, or should be.
fn rule(proxier: Proxier, entrance: &Entrance, chain: Option<&str>) -> String {
    let family = match entrance {
        Entrance::Address(address, ..) if address.is_ipv4() => "ip",
        Entrance::NodePort { ipv6: false, .. } => "ip",
        _ => "ip6",
    };
    let is_node_port = matches!(entrance, Entrance::NodePort { .. });
    let place = match (proxier, is_node_port) {
        (Proxier::Nftables, false) => format!("map service-ips of table {family} kube-proxy"),
        (Proxier::Nftables, true) => format!("map service-nodeports of table {family} kube-proxy"),
        (Proxier::Ipvs, _) => "virtual servers of IPVS".to_owned(),
        (_, false) => format!("chain KUBE-SERVICES of table {family} nat"),
        (_, true) => format!("chain KUBE-NODEPORTS of table {family} nat"),
    };
    chain.map_or(place.clone(), |chain| format!("{place}, chain {chain}"))
}

/// Nodes have clocks of their own: one that is ahead must not make a change look old.
pub(super) fn is_settling(changed: Timestamp, read_at: Timestamp, now: Timestamp) -> bool {
    read_at.min(now).duration_since(changed).as_secs_f64() < SETTLE_S
}

impl fmt::Display for Entrance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(address, protocol, port) => write!(f, "{}/{protocol}", SocketAddr::new(*address, *port)),
            Self::NodePort { ipv6, protocol, port } => {
                write!(f, "node port {port}/{protocol} ({})", if *ipv6 { "IPv6" } else { "IPv4" })
            }
        }
    }
}
