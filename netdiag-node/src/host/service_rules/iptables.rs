//! kube-proxy `--proxy-mode=iptables`, through iptables-nft or legacy iptables: KUBE-SERVICES leads to KUBE-SVC-… and
//! KUBE-EXT-…, those to KUBE-SEP-…, which translate; REJECT and DROP for Services without endpoints are in the table filter
//! (`pkg/proxy/iptables/proxier.go`). Node ports are not listed: their rules name no address.

use std::collections::{BTreeSet, HashMap};

use netdiag_common::observation::rules::{Backend, Chain, Hook, Match, Rule, Ruleset, Table, Verdict};
use netdiag_common::observation::service_rules::{Endpoint, ServiceAction};

use super::{Found, Key, chains_of};
use crate::host::rules::RawRules;

const SERVICES: &str = "KUBE-SERVICES";

/// Chains lead to chains: firewall to external, external to local or service, service to endpoint.
const MAX_DEPTH: u32 = 5;

/// The backend whose tables hold kube-proxy's chains; none when neither does.
pub(super) fn decode(raw: &RawRules, found: &mut Found) -> Option<Backend> {
    let backends = [Backend::IptablesNft, Backend::IptablesLegacy];
    // Both only after a change of the iptables variant; the one in use has the rules.
    let backend = backends
        .into_iter()
        .filter(|backend| weight(&raw.ruleset, *backend).is_some())
        .max_by_key(|backend| weight(&raw.ruleset, *backend))?;
    for other in backends.into_iter().filter(|other| *other != backend) {
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
                decode_filter(chain, found);
            }
        }
        if let Some(nat) = table("nat")
            && let Some(services) = nat.chains.iter().find(|chain| chain.name == SERVICES)
        {
            found.unhooked |= services.rules.is_empty() || !is_hooked(nat);
            decode_nat(services, &chains_of(nat), found);
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

fn decode_nat(services: &Chain, chains: &HashMap<&str, &Chain>, found: &mut Found) {
    for rule in &services.rules {
        let Verdict::Jump { chain } = &rule.verdict else { continue };
        let Some(key) = key_of(rule).filter(|key| !found.entries.contains_key(key)) else { continue };
        // Before Kubernetes 1.22 a rule that only marks came first.
        if chain == "KUBE-MARK-MASQ" {
            continue;
        }
        let mut endpoints = BTreeSet::new();
        match collect(chain, chains, MAX_DEPTH, &mut endpoints) {
            Ok(()) if endpoints.is_empty() => {
                found.undecoded(|| format!("chain {chain} for {} port {} leads to no endpoint", key.0, key.2));
            }
            Ok(()) => {
                found.insert(key, service_name(rule), ServiceAction::Endpoints(endpoints.into_iter().collect()));
            }
            Err(why) => found.undecoded(|| why),
        }
    }
}

fn decode_filter(chain: &Chain, found: &mut Found) {
    for rule in &chain.rules {
        let action = match rule.verdict {
            Verdict::Reject { .. } => ServiceAction::Reject,
            Verdict::Drop => ServiceAction::Drop,
            _ => continue,
        };
        if let Some(key) = key_of(rule) {
            found.insert(key, service_name(rule), action);
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

/// `default/web:http` from `default/web:http cluster IP`, `… has no endpoints`, …
fn service_name(rule: &Rule) -> Option<String> {
    let name = rule.comment.as_ref()?.split_whitespace().next()?;
    name.contains('/').then(|| name.to_owned())
}

fn collect(
    name: &str,
    chains: &HashMap<&str, &Chain>,
    depth: u32,
    endpoints: &mut BTreeSet<Endpoint>,
) -> Result<(), String> {
    let chain = chains.get(name).ok_or_else(|| format!("there is no chain {name}"))?;
    let Some(depth) = depth.checked_sub(1) else { return Err(format!("chain {name} leads too deep")) };
    let is_external = name.starts_with("KUBE-EXT-");
    for rule in &chain.rules {
        match &rule.verdict {
            Verdict::Dnat { to } => {
                for target in to {
                    let (Some(address), Some(port)) = (target.address, target.port) else {
                        return Err(format!("the target of chain {name} has no address or no port"));
                    };
                    endpoints.insert(Endpoint { address, port });
                }
            }
            Verdict::Jump { chain: next } if !next.starts_with("KUBE-") || next == "KUBE-MARK-MASQ" => {}
            // Short cuts for packets of pods and of the node; the rule for packets from outside asks nothing.
            Verdict::Jump { .. } if is_external && !rule.matches.is_empty() => {}
            Verdict::Jump { chain: next } => collect(next, chains, depth, endpoints)?,
            Verdict::Other { text } => return Err(format!("chain {name} has an unknown rule: {text}")),
            _ => {}
        }
    }
    Ok(())
}
