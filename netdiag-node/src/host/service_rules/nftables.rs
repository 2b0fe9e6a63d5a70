//! kube-proxy `--proxy-mode=nftables`: tables `ip kube-proxy` and `ip6 kube-proxy`. The map `service-ips` leads to one chain
//! per Service port, whose rule chooses an endpoint; `no-endpoint-services` holds the others
//! (`pkg/proxy/nftables/proxier.go`, seen with Kubernetes 1.36).

use std::collections::{BTreeSet, HashMap};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use netdiag_common::observation::Protocol;
use netdiag_common::observation::rules::{Backend, Chain, Hook, Table, Verdict};
use netdiag_common::observation::service_rules::{Endpoint, ServiceAction};

use super::{Found, Key, chains_of};
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
        decode_family(&sets, &chains, found);
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

fn leads_to(chain: &Chain, wanted: impl Fn(&str) -> bool) -> bool {
    chain.rules.iter().any(|rule| match &rule.verdict {
        Verdict::Jump { chain } | Verdict::Goto { chain } => wanted(chain),
        _ => false,
    })
}

fn decode_family(sets: &HashMap<&str, &Set>, chains: &HashMap<&str, &Chain>, found: &mut Found) {
    let node_addresses: Vec<IpAddr> = sets
        .get("nodeport-ips")
        .map(|set| set.elements.iter().filter_map(|element| address(&element.key)).collect())
        .unwrap_or_default();
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
            let keys = if on_node_addresses {
                let port = protocol_and_port(&element.key);
                node_addresses
                    .iter()
                    .filter_map(|address| port.map(|(protocol, port)| (*address, protocol, port)))
                    .collect()
            } else {
                service_key(&element.key).into_iter().collect::<Vec<_>>()
            };
            decode_element(map, element, &keys, chains, found);
        }
    }
}

fn decode_element(map: &str, element: &Element, keys: &[Key], chains: &HashMap<&str, &Chain>, found: &mut Found) {
    if !keys.is_empty() && keys.iter().all(|key| found.entries.contains_key(key)) {
        return;
    }
    let decoded = match &element.value {
        Value::Verdict(Verdict::Drop) => Ok((element.comment.clone(), ServiceAction::Drop)),
        Value::Verdict(Verdict::Goto { chain } | Verdict::Jump { chain }) => {
            let service = service_name(chain).or_else(|| element.comment.clone());
            action_of(chain, chains).map(|action| (service, action))
        }
        _ => Err("its value is no verdict of kube-proxy".to_owned()),
    };
    match decoded {
        Ok((service, action)) => {
            for key in keys {
                found.insert(*key, service.clone(), action.clone());
            }
        }
        Err(why) => {
            let whom = keys.first().map(|(address, protocol, port)| format!(" for {address} {protocol} {port}"));
            found.undecoded(|| format!("element of map {map}{}: {why}", whom.unwrap_or_default()));
        }
    }
}

/// What the chain does with a packet.
fn action_of(name: &str, chains: &HashMap<&str, &Chain>) -> Result<ServiceAction, String> {
    let chain = chains.get(name).ok_or_else(|| format!("there is no chain {name}"))?;
    if chain.rules.iter().any(|rule| matches!(rule.verdict, Verdict::Reject { .. })) {
        return Ok(ServiceAction::Reject);
    }
    let mut endpoints = BTreeSet::new();
    collect(chain, chains, MAX_DEPTH, &mut endpoints)?;
    if endpoints.is_empty() {
        return Err(format!("chain {name} leads to no endpoint"));
    }
    Ok(ServiceAction::Endpoints(endpoints.into_iter().collect()))
}

fn collect(
    chain: &Chain,
    chains: &HashMap<&str, &Chain>,
    depth: u32,
    endpoints: &mut BTreeSet<Endpoint>,
) -> Result<(), String> {
    let Some(depth) = depth.checked_sub(1) else { return Err(format!("chain {} leads too deep", chain.name)) };
    for rule in &chain.rules {
        match &rule.verdict {
            Verdict::Dnat { to } => {
                for target in to {
                    let (Some(address), Some(port)) = (target.address, target.port) else {
                        return Err(format!("a target of chain {} has no address or no port", chain.name));
                    };
                    endpoints.insert(Endpoint { address, port });
                }
            }
            // Short cuts for packets of pods and of the node lead to all endpoints, also where others only reach local
            // ones: the last rule of an external chain is the one for packets from outside.
            Verdict::Goto { .. } if chain.name.starts_with("external-") && !rule.matches.is_empty() => {}
            Verdict::Goto { chain: next } | Verdict::Jump { chain: next } => {
                let next = chains.get(&**next).ok_or_else(|| format!("there is no chain {next}"))?;
                collect(next, chains, depth, endpoints)?;
            }
            Verdict::Other { text } => return Err(format!("chain {} has an unknown rule: {text}", chain.name)),
            _ => {}
        }
    }
    Ok(())
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
