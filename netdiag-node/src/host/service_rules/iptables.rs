//! kube-proxy `--proxy-mode=iptables`, through iptables-nft or legacy iptables: KUBE-SERVICES leads to KUBE-SVC-… and
//! KUBE-EXT-…, those to KUBE-SEP-…, which translate; REJECT and DROP for Services without endpoints are in the table filter
//! (`pkg/proxy/iptables/proxier.go`). Those of node ports, in KUBE-NODEPORTS, name no address.

use std::collections::{BTreeSet, HashMap};

use ipnet::IpNet;
use netdiag_common::observation::Protocol;
use netdiag_common::observation::rules::{Backend, Chain, Hook, Match, Rule, Ruleset, Table, Verdict};
use netdiag_common::observation::service_rules::{
    Endpoint, NodePortAddresses, OwnAddresses, Proxier, ServiceAction, Terms,
};

use super::{Found, Key, NodePort, Reached, Way, chains_of, proxier_of};
use crate::host::rules::RawRules;

const SERVICES: &str = "KUBE-SERVICES";
const NODE_PORTS: &str = "KUBE-NODEPORTS";
const BACKENDS: [Backend; 2] = [Backend::IptablesNft, Backend::IptablesLegacy];

/// Chains lead to chains: firewall to external, external to local or service, service to endpoint.
const MAX_DEPTH: u32 = 5;

/// Where kube-proxy has rules.
pub(super) fn there(raw: &RawRules) -> Vec<Proxier> {
    let has_rules = |backend: &Backend| weight(&raw.ruleset, *backend).is_some_and(|rules| rules > 0);
    BACKENDS.into_iter().filter(has_rules).map(proxier_of).collect()
}

/// Where kube-proxy has chains of endpoints, which it has in this mode alone.
pub(super) fn with_endpoints(raw: &RawRules) -> Vec<Proxier> {
    let leads_on = |backend: &Backend| {
        let tables = raw.ruleset.tables.iter().filter(|table| table.backend == *backend && table.name == "nat");
        tables.flat_map(|table| &table.chains).any(|chain| chain.name.starts_with("KUBE-SEP-"))
    };
    BACKENDS.into_iter().filter(leads_on).map(proxier_of).collect()
}

/// The backend whose tables hold kube-proxy's chains; none when neither does.
pub(super) fn decode(raw: &RawRules, found: &mut Found) -> Option<Backend> {
    // Both only after a change of the iptables variant; the one in use has the rules.
    let backend = BACKENDS
        .into_iter()
        .filter(|backend| weight(&raw.ruleset, *backend).is_some())
        .max_by_key(|backend| weight(&raw.ruleset, *backend))?;
    for other in BACKENDS.into_iter().filter(|other| *other != backend) {
        if weight(&raw.ruleset, other).is_some_and(|rules| rules > 0) {
            found.undecoded(|| format!("{other:?} has rules of kube-proxy as well; those of {backend:?} are given"));
        }
    }
    for family in ["ip", "ip6"] {
        let table = |name: &str| {
            let wanted = |table: &&Table| table.backend == backend && table.family == family && table.name == name;
            raw.ruleset.tables.iter().find(wanted)
        };
        // First, and it stays: what is dropped or rejected never gets further, whatever the table nat would do.
        for chain in table("filter").into_iter().flat_map(|filter| &filter.chains) {
            if chain.name == SERVICES || chain.name == "KUBE-EXTERNAL-SERVICES" {
                decode_filter(chain, family == "ip6", found);
            }
        }
        if let Some(nat) = table("nat")
            && let Some(services) = nat.chains.iter().find(|chain| chain.name == SERVICES)
        {
            found.unhooked |= services.rules.is_empty() || !is_hooked(nat);
            let chains = chains_of(nat);
            found.unmasqueraded |= !masquerades(nat, &chains);
            found.node_port_addresses.push(NodePortAddresses { ipv6: family == "ip6", on: taken(services) });
            decode_nat(services, &chains, found);
            if let Some(node_ports) = chains.get(NODE_PORTS) {
                decode_node_ports(node_ports, family == "ip6", &chains, found);
            }
        }
    }
    Some(backend)
}

/// Rules in the KUBE-SERVICES chains of a backend; none when it has no such chain.
fn weight(ruleset: &Ruleset, backend: Backend) -> Option<usize> {
    let tables = ruleset.tables.iter().filter(|table| table.backend == backend && table.name == "nat");
    let chains = tables.flat_map(|table| &table.chains).filter(|chain| chain.name == SERVICES);
    chains.map(|chain| chain.rules.len()).reduce(|a, b| a + b)
}

fn is_hooked(nat: &Table) -> bool {
    [Hook::Prerouting, Hook::Output].into_iter().all(|hook| {
        let at_hook = |chain: &&Chain| chain.base.as_ref().is_some_and(|base| base.hook == hook);
        let jumps = |rule: &Rule| matches!(&rule.verdict, Verdict::Jump { chain } if chain == SERVICES);
        nat.chains.iter().filter(at_hook).any(|chain| chain.rules.iter().any(jumps))
    })
}

/// Services' chains mark packets, and what is marked meets a rule that masquerades on its way out.
fn masquerades(nat: &Table, chains: &HashMap<&str, &Chain>) -> bool {
    let at_hook = |chain: &&Chain| chain.base.as_ref().is_some_and(|base| base.hook == Hook::Postrouting);
    let jumps = |rule: &Rule| matches!(&rule.verdict, Verdict::Jump { chain } if chain == "KUBE-POSTROUTING");
    let marks = chains.get("KUBE-MARK-MASQ").is_some_and(|chain| !chain.rules.is_empty());
    let changes = chains
        .get("KUBE-POSTROUTING")
        .is_some_and(|chain| chain.rules.iter().any(|rule| rule.verdict == Verdict::Masquerade));
    marks && changes && nat.chains.iter().filter(at_hook).any(|chain| chain.rules.iter().any(jumps))
}

fn decode_nat(services: &Chain, chains: &HashMap<&str, &Chain>, found: &mut Found) {
    for rule in &services.rules {
        let Verdict::Jump { chain } = &rule.verdict else { continue };
        let Some(key) = key_of(rule).filter(|key| !found.entries.contains_key(key)) else { continue };
        // Before Kubernetes 1.22 a rule that only marks came first.
        if chain == "KUBE-MARK-MASQ" {
            continue;
        }
        match way(chain, chains) {
            Ok(None) => found.undecoded(|| format!("chain {chain} for {} port {} leads to no endpoint", key.0, key.2)),
            Ok(Some(way)) => found.insert(key, service_name(rule), way, false),
            Err(why) => found.undecoded(|| why),
        }
    }
}

fn decode_node_ports(list: &Chain, ipv6: bool, chains: &HashMap<&str, &Chain>, found: &mut Found) {
    for rule in &list.rules {
        let Verdict::Jump { chain } = &rule.verdict else { continue };
        let Some((protocol, port)) = node_port(rule).filter(|_| chain != "KUBE-MARK-MASQ") else { continue };
        // What is dropped in the table filter has a chain all the same, for packets of pods.
        if found.node_ports.contains_key(&(ipv6, protocol, port)) {
            continue;
        }
        match way(chain, chains) {
            Ok(None) => found.undecoded(|| format!("chain {chain} for node port {port} leads to no endpoint")),
            Ok(Some(way)) => found.insert_node_port((ipv6, protocol, port), service_name(rule), way),
            Err(why) => found.undecoded(|| why),
        }
    }
}

/// Which addresses' packets KUBE-SERVICES sends on to node ports, at its end: those of single ones, or of all that are the node's
/// (`-m addrtype --dst-type LOCAL`), where loopback may be excepted.
fn taken(services: &Chain) -> OwnAddresses {
    let mut taken = BTreeSet::new();
    for rule in &services.rules {
        if !matches!(&rule.verdict, Verdict::Jump { chain } if chain == NODE_PORTS) {
            continue;
        }
        let single = rule.matches.iter().find_map(|found| match found {
            Match::Destination { nets, negated: false } => Some(nets),
            _ => None,
        });
        let Some(nets) = single else { return OwnAddresses::All };
        taken.extend(nets.iter().map(IpNet::addr));
    }
    OwnAddresses::Only(taken)
}

/// What a packet meets in a chain; none when it meets no endpoint.
fn way(chain: &str, chains: &HashMap<&str, &Chain>) -> Result<Option<Way>, String> {
    let mut reached = Reached::default();
    collect(chain, chains, MAX_DEPTH, &mut reached)?;
    let Reached { endpoints, sticky } = reached;
    let action = ServiceAction::Endpoints(endpoints.into_iter().collect());
    let is_empty = matches!(&action, ServiceAction::Endpoints(list) if list.is_empty());
    let terms = Some(Terms { sticky, sources: chains.get(chain).and_then(|chain| sources(chain)) });
    Ok((!is_empty).then(|| Way { action, chain: Some(chain.to_owned()), terms }))
}

/// Whom a firewall chain lets on; what it leaves is dropped in KUBE-PROXY-FIREWALL of the table filter.
fn sources(chain: &Chain) -> Option<BTreeSet<IpNet>> {
    if !chain.name.starts_with("KUBE-FW-") {
        return None;
    }
    let nets = |rule: &Rule| match &rule.matches[..] {
        [] => vec![IpNet::default()],
        matches => {
            let of_source = |found: &Match| match found {
                Match::Source { nets, negated: false } => nets.clone(),
                _ => Vec::new(),
            };
            matches.iter().flat_map(of_source).collect()
        }
    };
    let jumps =
        chain.rules.iter().filter(|rule| matches!(&rule.verdict, Verdict::Jump { chain } if chain != "KUBE-MARK-MASQ"));
    Some(jumps.flat_map(nets).collect())
}

fn decode_filter(chain: &Chain, ipv6: bool, found: &mut Found) {
    for rule in &chain.rules {
        let action = match rule.verdict {
            Verdict::Reject { .. } => ServiceAction::Reject,
            Verdict::Drop => ServiceAction::Drop,
            _ => continue,
        };
        if let Some(key) = key_of(rule) {
            found.insert(key, service_name(rule), Way::end(action), false);
        } else if let Some((protocol, port)) = node_port(rule) {
            let key: NodePort = (ipv6, protocol, port);
            found.insert_node_port(key, service_name(rule), Way::end(action));
        }
    }
}

/// The address, protocol and port that a rule is for.
fn key_of(rule: &Rule) -> Option<Key> {
    let (mut address, mut protocol, mut port) = (None, None, None);
    for found in &rule.matches {
        match found {
            Match::Destination { nets, negated: false } => match &nets[..] {
                [net] if net.prefix_len() == net.max_prefix_len() => address = Some(net.addr()),
                _ => return None,
            },
            Match::Protocol { protocols, negated: false } if protocols.len() == 1 => protocol = Some(protocols[0]),
            Match::DestinationPort { ranges, negated: false } => match &ranges[..] {
                [range] if range.first == range.last => port = Some(range.first),
                _ => return None,
            },
            _ => {}
        }
    }
    Some((address?, protocol?, port?))
}

/// The protocol and port of a rule for node ports. The one for 127.0.0.0/8, which only counts, is beside it.
fn node_port(rule: &Rule) -> Option<(Protocol, u16)> {
    let (mut protocol, mut port) = (None, None);
    for found in &rule.matches {
        match found {
            Match::Destination { .. } => return None,
            Match::Protocol { protocols, negated: false } if protocols.len() == 1 => protocol = Some(protocols[0]),
            Match::DestinationPort { ranges, negated: false } => match &ranges[..] {
                [range] if range.first == range.last => port = Some(range.first),
                _ => return None,
            },
            _ => {}
        }
    }
    Some((protocol?, port?))
}

/// `default/web:http` from `default/web:http cluster IP`, `… has no endpoints`, …
fn service_name(rule: &Rule) -> Option<String> {
    let name = rule.comment.as_ref()?.split_whitespace().next()?;
    name.contains('/').then(|| name.to_owned())
}

fn collect(name: &str, chains: &HashMap<&str, &Chain>, depth: u32, reached: &mut Reached) -> Result<(), String> {
    let chain = chains.get(name).ok_or_else(|| format!("there is no chain {name}"))?;
    let Some(depth) = depth.checked_sub(1) else { return Err(format!("chain {name} leads too deep")) };
    let is_external = name.starts_with("KUBE-EXT-");
    for rule in &chain.rules {
        reached.sticky |=
            rule.matches.iter().any(|found| matches!(found, Match::Other { text } if text.starts_with("-m recent")));
        match &rule.verdict {
            Verdict::Dnat { to } => {
                for target in to {
                    let (Some(address), Some(port)) = (target.address, target.port) else {
                        return Err(format!("the target of chain {name} has no address or no port"));
                    };
                    reached.endpoints.insert(Endpoint { address, port });
                }
            }
            Verdict::Jump { chain: next } if !next.starts_with("KUBE-") || next == "KUBE-MARK-MASQ" => {}
            // Short cuts for packets of pods and of the node; the rule for packets from outside asks nothing.
            Verdict::Jump { .. } if is_external && !rule.matches.is_empty() => {}
            Verdict::Jump { chain: next } => collect(next, chains, depth, reached)?,
            Verdict::Other { text } => return Err(format!("chain {name} has an unknown rule: {text}")),
            _ => {}
        }
    }
    Ok(())
}
