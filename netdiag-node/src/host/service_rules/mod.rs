//! Which Service address leads where, decoded from kube-proxy's rules in the calling thread's network namespace.

mod iptables;
mod nftables;

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;

use netdiag_common::observation::Protocol;
use netdiag_common::observation::rules::{Backend, Chain, Table};
use netdiag_common::observation::service_rules::{Proxier, ServiceAction, ServiceRule, ServiceRules};

use super::ReadError;
use super::budget::Limits;
use super::rules::RawRules;

/// 10 000 Services of three endpoints are about 120 000 rules in iptables mode, and 60 000 elements in nftables mode.
/// Without their text that is about 60 MB while they are decoded.
const LIMITS: Limits = Limits { rules: 4_000, service_rules: 200_000, service_elements: 200_000, with_text: false };

/// Reasons beyond this number say nothing new.
const MAX_UNDECODED: usize = 50;

pub fn read() -> Result<ServiceRules, ReadError> {
    Ok(decode(&RawRules::read(LIMITS)?))
}

/// Recognises kube-proxy's layout: nftables mode first, since kube-proxy removes the rules of its other modes.
pub(crate) fn decode(raw: &RawRules) -> ServiceRules {
    let mut found = Found::default();
    let proxier = if nftables::decode(raw, &mut found) {
        Proxier::Nftables
    } else {
        match iptables::decode(raw, &mut found) {
            Some(Backend::IptablesLegacy) => Proxier::IptablesLegacy,
            Some(Backend::IptablesNft | Backend::Nftables) => Proxier::IptablesNft,
            None => Proxier::None,
        }
    };
    // Without a proxier this is about other rules.
    if proxier != Proxier::None {
        found.undecoded.extend(raw.ruleset.left_out.iter().cloned());
    }
    ServiceRules {
        hooked: proxier != Proxier::None && !found.unhooked,
        proxier,
        entries: found.entries.into_values().collect(),
        undecoded: found.undecoded,
    }
}

type Key = (IpAddr, Protocol, u16);

/// What decoding collects.
#[derive(Default)]
struct Found {
    entries: BTreeMap<Key, ServiceRule>,
    undecoded: Vec<String>,
    /// Some family's packets do not reach the service chains.
    unhooked: bool,
}

impl Found {
    fn insert(&mut self, key: Key, service: Option<String>, action: ServiceAction) {
        let (address, protocol, port) = key;
        self.entries.insert(key, ServiceRule { address, protocol, port, service, action });
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
