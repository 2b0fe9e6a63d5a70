//! kube-proxy `--proxy-mode=nftables`: tables `ip kube-proxy` and `ip6 kube-proxy`. The map `service-ips` leads to one chain
//! per Service port, whose rule chooses an endpoint; `no-endpoint-services` holds the others
//! (`pkg/proxy/nftables/proxier.go`, seen with Kubernetes 1.36).

use std::collections::{BTreeSet, HashMap};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use netdiag_common::observation::Protocol;
use netdiag_common::observation::rules::{Backend, Chain, Hook, Match, Rule, Table, Verdict};
use netdiag_common::observation::service_rules::{Endpoint, NodePortAddresses, OwnAddresses, ServiceAction, Terms};

use super::{Found, Key, NodePort, Reached, Way, chains_of};
use crate::host::budget::KUBE_PROXY_TABLE;
use crate::host::nftables::{Element, Set, Value};
use crate::host::rules::RawRules;

/// Chains lead to chains: external to local or service, service to endpoint.
const MAX_DEPTH: u32 = 4;

/// False when there is no table of kube-proxy.
pub(super) fn decode(raw: &RawRules, found: &mut Found) -> bool {
    let tables =
        raw.ruleset.tables.iter().filter(|table| table.backend == Backend::Nftables && table.name == KUBE_PROXY_TABLE);
    let mut any = false;
    for (table, family) in tables.filter_map(|table| Some((table, family_number(table)?))) {
        any = true;
        let sets = raw.sets.iter().filter(|set| set.family == family && set.table == KUBE_PROXY_TABLE);
        let sets: HashMap<&str, &Set> = sets.map(|set| (&*set.name, set)).collect();
        let chains = chains_of(table);
        found.unhooked |= !is_hooked(table, &chains);
        found.unmasqueraded |= !masquerades(table, &chains);
        decode_family(&sets, &chains, &table.family == "ip6", found);
    }
    any
}

fn family_number(table: &Table) -> Option<u8> {
    let number = match &*table.family {
        "ip" => libc::NFPROTO_IPV4,
        "ip6" => libc::NFPROTO_IPV6,
        _ => return None,
    };
    u8::try_from(number).ok()
}

/// Packets from pods and from the node itself come to the chain `services`, and it asks the map.
fn is_hooked(table: &Table, chains: &HashMap<&str, &Chain>) -> bool {
    let jumps = |hook: Hook| {
        let at_hook = |chain: &&Chain| chain.base.as_ref().is_some_and(|base| base.hook == hook && base.kind == "nat");
        table.chains.iter().filter(at_hook).any(|chain| leads_to(chain, |to| to == "services"))
    };
    let asks_map = chains.get("services").is_some_and(|chain| {
        chain.rules.iter().any(|rule| matches!(&rule.verdict, Verdict::Map { name } if name == "service-ips"))
            || leads_to(chain, |to| to.starts_with("service-") || to.starts_with("external-"))
    });
    jumps(Hook::Prerouting) && jumps(Hook::Output) && asks_map
}

/// What Services' chains have marked meets a rule that masquerades on its way out. They mark it themselves, or in a chain of its own.
fn masquerades(table: &Table, chains: &HashMap<&str, &Chain>) -> bool {
    let at_hook =
        |chain: &&Chain| chain.base.as_ref().is_some_and(|base| base.hook == Hook::Postrouting && base.kind == "nat");
    let marks = chains.get("mark-for-masquerade").is_none_or(|chain| !chain.rules.is_empty());
    // Besides, connections of a pod to itself are masqueraded by their addresses.
    let by_address = |rule: &Rule| {
        rule.matches.iter().any(|on| match on {
            Match::Source { .. } => true,
            Match::Other { text } => text.contains("saddr"),
            _ => false,
        })
    };
    let changes = |rule: &Rule| rule.verdict == Verdict::Masquerade && !by_address(rule);
    let changes = chains.get("masquerading").is_some_and(|chain| chain.rules.iter().any(changes));
    marks && changes && table.chains.iter().filter(at_hook).any(|chain| leads_to(chain, |to| to == "masquerading"))
}

fn leads_to(chain: &Chain, wanted: impl Fn(&str) -> bool) -> bool {
    chain.rules.iter().any(|rule| match &rule.verdict {
        Verdict::Jump { chain } | Verdict::Goto { chain } => wanted(chain),
        _ => false,
    })
}

fn decode_family(sets: &HashMap<&str, &Set>, chains: &HashMap<&str, &Chain>, ipv6: bool, found: &mut Found) {
    let firewalls = firewalls(sets, found);
    let taken = sets.get("nodeport-ips");
    let node_addresses: Vec<IpAddr> =
        taken.map(|set| set.elements.iter().filter_map(|element| address(&element.key)).collect()).unwrap_or_default();
    // kube-proxy deletes the set where it takes all of the node's addresses (`setupNFTables`, Kubernetes 1.31 to 1.36).
    let on = taken.map_or(OwnAddresses::All, |_| OwnAddresses::Only(node_addresses.iter().copied().collect()));
    if taken.is_none_or(|set| set.complete) {
        found.node_port_addresses.push(NodePortAddresses { ipv6, on });
    } else {
        found.undecoded(|| "set nodeport-ips was not read to its end".to_owned());
    }
    // What has no endpoints comes first and stays: its drop or reject is what happens to a packet, whatever the chain of
    // the same address would do.
    for (map, on_node_addresses) in [
        ("no-endpoint-services", false),
        ("no-endpoint-nodeports", true),
        ("service-ips", false),
        ("service-nodeports", true),
    ] {
        let Some(set) = sets.get(map) else {
            found.undecoded(|| format!("there is no map {map}"));
            continue;
        };
        if !set.complete {
            found.undecoded(|| format!("map {map} was not read to its end"));
        }
        for element in &set.elements {
            let port = protocol_and_port(&element.key).filter(|_| on_node_addresses);
            let keys = match port {
                Some((protocol, port)) => {
                    node_addresses.iter().map(|address| (*address, protocol, port)).collect::<Vec<_>>()
                }
                None => service_key(&element.key).into_iter().collect(),
            };
            let node_port = port.map(|(protocol, port)| (ipv6, protocol, port));
            decode_element(map, element, (&keys, node_port), (chains, &firewalls), found);
        }
    }
}

/// Chains that let some sources on only, by what they are for.
fn firewalls(sets: &HashMap<&str, &Set>, found: &mut Found) -> HashMap<Key, String> {
    let Some(set) = sets.get("firewall-ips") else { return HashMap::new() };
    if !set.complete {
        found.undecoded(|| "map firewall-ips was not read to its end".to_owned());
    }
    let chain = |element: &Element| match &element.value {
        Value::Verdict(Verdict::Goto { chain } | Verdict::Jump { chain }) => {
            Some((service_key(&element.key)?, chain.clone()))
        }
        _ => None,
    };
    set.elements.iter().filter_map(chain).collect()
}

type Chains<'c, 'n> = HashMap<&'n str, &'c Chain>;

fn decode_element(
    map: &str,
    element: &Element,
    (keys, node_port): (&[Key], Option<NodePort>),
    (chains, firewalls): (&Chains<'_, '_>, &HashMap<Key, String>),
    found: &mut Found,
) {
    let is_known = node_port.is_none_or(|key| found.node_ports.contains_key(&key));
    if is_known && (node_port.is_some() || !keys.is_empty()) && keys.iter().all(|key| found.entries.contains_key(key)) {
        return;
    }
    let firewall = keys.first().and_then(|key| firewalls.get(key)).filter(|_| node_port.is_none());
    let decoded = match &element.value {
        Value::Verdict(Verdict::Drop) => Ok((element.comment.clone(), Way::end(ServiceAction::Drop))),
        Value::Verdict(Verdict::Goto { chain } | Verdict::Jump { chain }) => {
            let service = service_name(chain).or_else(|| element.comment.clone());
            way(chain, firewall, chains).map(|way| (service, way))
        }
        _ => Err("its value is no verdict of kube-proxy".to_owned()),
    };
    match decoded {
        Ok((service, way)) => {
            for key in keys {
                found.insert(*key, service.clone(), way.clone(), node_port.is_some());
            }
            if let Some(key) = node_port {
                found.insert_node_port(key, service, way);
            }
        }
        Err(why) => {
            let whom = keys.first().map(|(address, protocol, port)| format!(" for {address} {protocol} {port}"));
            found.undecoded(|| format!("element of map {map}{}: {why}", whom.unwrap_or_default()));
        }
    }
}

/// What the chain does with a packet that its firewall lets on.
fn way(name: &str, firewall: Option<&String>, chains: &Chains<'_, '_>) -> Result<Way, String> {
    let chain = chains.get(name).ok_or_else(|| format!("there is no chain {name}"))?;
    if chain.rules.iter().any(|rule| matches!(rule.verdict, Verdict::Reject { .. })) {
        return Ok(Way::end(ServiceAction::Reject));
    }
    let mut reached = Reached::default();
    collect(chain, chains, MAX_DEPTH, &mut reached)?;
    let Reached { endpoints, sticky } = reached;
    if endpoints.is_empty() {
        return Err(format!("chain {name} leads to no endpoint"));
    }
    let terms = match firewall {
        None => Some(Terms { sticky, sources: None }),
        Some(firewall) => sources(firewall, chains).map(|sources| Terms { sticky, sources: Some(sources) }),
    };
    let action = ServiceAction::Endpoints(endpoints.into_iter().collect());
    Ok(Way { action, chain: Some(name.to_owned()), terms })
}

/// `ip saddr != { … } drop`; none when the rule is another one.
fn sources(firewall: &str, chains: &Chains<'_, '_>) -> Option<BTreeSet<IpNet>> {
    let mut drops = chains.get(firewall)?.rules.iter().filter(|rule| rule.verdict == Verdict::Drop);
    let (rule, None) = (drops.next()?, drops.next()) else { return None };
    match &rule.matches[..] {
        [Match::Source { nets, negated: true }] => Some(nets.iter().copied().collect()),
        _ => None,
    }
}

fn collect(chain: &Chain, chains: &HashMap<&str, &Chain>, depth: u32, reached: &mut Reached) -> Result<(), String> {
    let Some(depth) = depth.checked_sub(1) else { return Err(format!("chain {} leads too deep", chain.name)) };
    for rule in &chain.rules {
        reached.sticky |= is_affinity(rule);
        match &rule.verdict {
            Verdict::Dnat { to } => {
                for target in to {
                    let (Some(address), Some(port)) = (target.address, target.port) else {
                        return Err(format!("a target of chain {} has no address or no port", chain.name));
                    };
                    reached.endpoints.insert(Endpoint { address, port });
                }
            }
            // Short cuts for packets of pods and of the node lead to all endpoints, also where others only reach local
            // ones: the last rule of an external chain is the one for packets from outside.
            Verdict::Goto { .. } if chain.name.starts_with("external-") && !rule.matches.is_empty() => {}
            Verdict::Goto { chain: next } | Verdict::Jump { chain: next } => {
                let next = chains.get(&**next).ok_or_else(|| format!("there is no chain {next}"))?;
                collect(next, chains, depth, reached)?;
            }
            Verdict::Other { text } => return Err(format!("chain {} has an unknown rule: {text}", chain.name)),
            _ => {}
        }
    }
    Ok(())
}

/// `ip saddr @affinity-… goto endpoint-…`. A set with few elements is read as the addresses that it has.
fn is_affinity(rule: &Rule) -> bool {
    let asks_source = |found: &Match| match found {
        Match::Source { negated, .. } => !negated,
        Match::Other { text } => text.contains("@affinity-"),
        _ => false,
    };
    matches!(&rule.verdict, Verdict::Goto { chain } if chain.starts_with("endpoint-"))
        && rule.matches.iter().any(asks_source)
}

/// `default/web:http` from `service-SUSTUHLJ-default/web/tcp/http`; a port without name leaves the last part empty.
fn service_name(chain: &str) -> Option<String> {
    let (_kind, rest) = chain.split_once('-')?;
    let (_hash, rest) = rest.split_once('-')?;
    let [namespace, name, _protocol, port] = <[&str; 4]>::try_from(rest.split('/').collect::<Vec<_>>()).ok()?;
    Some(if port.is_empty() { format!("{namespace}/{name}") } else { format!("{namespace}/{name}:{port}") })
}

fn address(key: &[u8]) -> Option<IpAddr> {
    match key.len() {
        4 => Some(Ipv4Addr::from(<[u8; 4]>::try_from(key).ok()?).into()),
        16 => Some(Ipv6Addr::from(<[u8; 16]>::try_from(key).ok()?).into()),
        _ => None,
    }
}

/// `inet_proto . inet_service`, each padded to four bytes.
fn protocol_and_port(key: &[u8]) -> Option<(Protocol, u16)> {
    let [protocol, _, _, _, high, low, _, _] = *key else { return None };
    Some((Protocol::from_number(protocol)?, u16::from_be_bytes([high, low])))
}

/// `ipv4_addr . inet_proto . inet_service`, or with `ipv6_addr`.
fn service_key(key: &[u8]) -> Option<Key> {
    let (address_bytes, rest) = key.split_at_checked(key.len().checked_sub(8)?)?;
    let (protocol, port) = protocol_and_port(rest)?;
    Some((address(address_bytes)?, protocol, port))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_from_chains() {
        assert_eq!(service_name("service-SUSTUHLJ-default/web/tcp/http").as_deref(), Some("default/web:http"));
        assert_eq!(service_name("external-6HJDO7EY-my-ns/node-1/udp/").as_deref(), Some("my-ns/node-1"));
        assert_eq!(service_name("reject-chain"), None);
    }

    #[test]
    fn keys_of_both_families_are_read() {
        let v4 = [10, 96, 0, 1, 6, 0, 0, 0, 1, 187, 0, 0];
        assert_eq!(service_key(&v4), Some(("10.96.0.1".parse().unwrap(), Protocol::Tcp, 443)));
        assert_eq!(service_key(&v4[..7]), None);
    }
}
