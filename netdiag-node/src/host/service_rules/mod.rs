//! Which Service address leads where, decoded from kube-proxy's rules in the calling thread's network namespace.

mod iptables;
mod ipvs;
mod nftables;
mod sources;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;

use netdiag_common::observation::Protocol;
use netdiag_common::observation::rules::{Backend, Chain, Table};
use netdiag_common::observation::service_rules::{
    Endpoint, NodePortAddresses, NodePortRule, Proxier, ServiceAction, ServiceRule, ServiceRules, Terms,
};

use super::ReadError;
use super::budget::Limits;
use super::rules::RawRules;

/// 10 000 Services of three endpoints are about 120 000 rules in iptables mode, and 60 000 elements in nftables mode.
/// Without their text that is about 60 MB while they are decoded.
const LIMITS: Limits = Limits { rules: 4_000, service_rules: 200_000, service_elements: 200_000, with_text: false };

/// Reasons beyond this number say nothing new.
const MAX_UNDECODED: usize = 50;

pub fn read() -> Result<ServiceRules, ReadError> {
    let virtual_servers = ipvs::read()?;
    let raw = RawRules::read(LIMITS)?;
    Ok(if ipvs::is_there(&virtual_servers) { decode_ipvs(&virtual_servers, &raw) } else { decode(&raw) })
}

/// In this mode kube-proxy has rules in KUBE-SERVICES, too, which match ipsets and lead to no endpoint.
fn decode_ipvs(virtual_servers: &ipvs::Raw, raw: &RawRules) -> ServiceRules {
    let mut found = Found::default();
    ipvs::decode(virtual_servers, &mut found);
    ServiceRules {
        hooked: true,
        proxier: Proxier::Ipvs,
        entries: found.entries.into_values().collect(),
        undecoded: found.undecoded,
        node_ports: Some(found.node_ports.into_values().collect()),
        others: Some(iptables::with_endpoints(raw)),
        masquerades: None,
        node_port_addresses: None,
        knows_source_sets: ipvs::knows_sources(virtual_servers),
    }
}

/// Recognises kube-proxy's layout: nftables mode first, since kube-proxy removes the rules of its other modes.
pub(crate) fn decode(raw: &RawRules) -> ServiceRules {
    let mut found = Found::default();
    let mut there = iptables::there(raw);
    let proxier = if nftables::decode(raw, &mut found) {
        Proxier::Nftables
    } else {
        iptables::decode(raw, &mut found).map_or(Proxier::None, proxier_of)
    };
    there.retain(|other| *other != proxier);
    // Without a proxier this is about other rules.
    if proxier != Proxier::None {
        found.undecoded.extend(raw.ruleset.left_out.iter().cloned());
    }
    ServiceRules {
        hooked: proxier != Proxier::None && !found.unhooked,
        proxier,
        entries: found.entries.into_values().collect(),
        undecoded: found.undecoded,
        node_ports: Some(found.node_ports.into_values().collect()),
        others: Some(there),
        masquerades: (proxier != Proxier::None && raw.ruleset.left_out.is_empty()).then_some(!found.unmasqueraded),
        node_port_addresses: Some(found.node_port_addresses),
        knows_source_sets: false,
    }
}

fn proxier_of(backend: Backend) -> Proxier {
    match backend {
        Backend::IptablesLegacy => Proxier::IptablesLegacy,
        Backend::IptablesNft | Backend::Nftables => Proxier::IptablesNft,
    }
}

/// Whether IPv6, protocol and port.
type NodePort = (bool, Protocol, u16);

/// What a packet meets behind an entry.
#[derive(Debug, Clone)]
struct Way {
    action: ServiceAction,
    chain: Option<String>,
    terms: Option<Terms>,
}

impl Way {
    /// Without a chain.
    fn end(action: ServiceAction) -> Self {
        Self { action, chain: None, terms: None }
    }
}

/// What the chains behind an entry do.
#[derive(Default)]
struct Reached {
    endpoints: BTreeSet<Endpoint>,
    sticky: bool,
}

type Key = (IpAddr, Protocol, u16);

/// What decoding collects.
#[derive(Default)]
struct Found {
    entries: BTreeMap<Key, ServiceRule>,
    node_ports: BTreeMap<NodePort, NodePortRule>,
    undecoded: Vec<String>,
    /// Some family's packets do not reach the service chains.
    unhooked: bool,
    /// Some family's packets that are marked for it keep their source.
    unmasqueraded: bool,
    node_port_addresses: Vec<NodePortAddresses>,
}

impl Found {
    fn insert(&mut self, key: Key, service: Option<String>, way: Way, node_port: bool) {
        let (address, protocol, port) = key;
        let Way { action, chain, terms } = way;
        self.entries.insert(key, ServiceRule { address, protocol, port, service, action, chain, terms, node_port });
    }

    /// The first one stays, as it decides.
    fn insert_node_port(&mut self, key: NodePort, service: Option<String>, way: Way) {
        let (ipv6, protocol, port) = key;
        let Way { action, chain, terms } = way;
        let rule = NodePortRule { ipv6, protocol, port, service, action, chain, terms };
        self.node_ports.entry(key).or_insert(rule);
    }

    fn undecoded(&mut self, what: impl FnOnce() -> String) {
        if self.undecoded.len() < MAX_UNDECODED {
            self.undecoded.push(what());
        }
    }
}

fn chains_of(table: &Table) -> HashMap<&str, &Chain> {
    table.chains.iter().map(|chain| (&*chain.name, chain)).collect()
}

#[cfg(test)]
mod tests;
