//! Decodes rules recorded from a real cluster (Kubernetes 1.36.3, dual-stack, one node).

use netdiag_common::observation::rules::{Match, Verdict};
use netdiag_common::observation::service_rules::{Endpoint, OwnAddresses};

use super::*;
use crate::host::budget::Budget;
use crate::host::rules::RawRules;
use crate::host::{iptables as legacy, nftables as netlink};

const NFTABLES: &[u8] = include_bytes!("../../../tests/fixtures/rules/kube-proxy-nftables.netlink");
const IPTABLES_NFT: &[u8] = include_bytes!("../../../tests/fixtures/rules/kube-proxy-iptables-nft.netlink");
const IPTABLES_LEGACY: &[u8] = include_bytes!("../../../tests/fixtures/rules/kube-proxy-iptables-legacy.sockopt");

fn of_netlink(recording: &[u8]) -> RawRules {
    RawRules::of_nftables(netlink::replay(recording, LIMITS)).0
}

fn of_sockopt(recording: &[u8]) -> RawRules {
    let mut raw = RawRules::default();
    raw.ruleset.tables = legacy::replay(recording, &mut Budget::new(LIMITS));
    raw
}

fn every_mode() -> [(RawRules, Proxier); 3] {
    [
        (of_netlink(NFTABLES), Proxier::Nftables),
        (of_netlink(IPTABLES_NFT), Proxier::IptablesNft),
        (of_sockopt(IPTABLES_LEGACY), Proxier::IptablesLegacy),
    ]
}

/// Name and action of one address.
fn find(rules: &ServiceRules, address: &str, protocol: Protocol, port: u16) -> (Option<String>, ServiceAction) {
    let found = rules.find(address.parse().unwrap(), protocol, port);
    let found = found.unwrap_or_else(|| panic!("no {address} {protocol} {port} in {:#?}", rules.entries));
    (found.service.clone(), found.action.clone())
}

fn endpoints(addresses: [&str; 3], port: u16) -> ServiceAction {
    let endpoint = |address: &str| Endpoint { address: address.parse().unwrap(), port };
    ServiceAction::Endpoints(addresses.map(endpoint).to_vec())
}

/// The same cluster was recorded in all modes: one app of three pods behind Services of several kinds.
#[test]
fn every_mode_says_the_same_about_the_same_services() {
    let pods = ["10.244.1.2", "10.244.1.3", "10.244.1.4"];
    let pods6 = ["fd00:244:1::2", "fd00:244:1::3", "fd00:244:1::4"];
    let api = ServiceAction::Endpoints(vec![Endpoint { address: "172.30.77.10".parse().unwrap(), port: 6443 }]);
    for (raw, proxier) in every_mode() {
        let rules = decode(&raw);
        assert_eq!((rules.proxier, rules.hooked), (proxier, true));
        assert_eq!(rules.undecoded, Vec::<String>::new(), "{proxier:?}");
        assert_eq!(rules.masquerades, Some(true), "{proxier:?}");
        let (tcp, udp) = (Protocol::Tcp, Protocol::Udp);
        for (address, protocol, port, name, action) in [
            ("10.96.0.1", tcp, 443, "default/kubernetes:https", api.clone()),
            ("10.96.17.17", tcp, 80, "default/web:http", endpoints(pods, 8080)),
            ("10.96.17.17", tcp, 8081, "default/web:alt", endpoints(pods, 8080)),
            ("10.96.17.17", udp, 53, "default/web:dns", endpoints(pods, 5353)),
            ("fd00:96::9f80", tcp, 80, "default/web:http", endpoints(pods6, 8080)),
            ("10.96.129.61", tcp, 80, "default/plain", endpoints(pods, 8080)),
            ("10.96.49.152", tcp, 80, "default/sticky", endpoints(pods, 8080)),
            ("203.0.113.9", tcp, 80, "default/node", endpoints(pods, 8080)),
            ("192.0.2.10", tcp, 443, "default/lb", endpoints(pods, 8080)),
            ("10.96.12.252", tcp, 80, "default/empty:http", ServiceAction::Reject),
            ("fd00:96::942a", tcp, 80, "default/empty:http", ServiceAction::Reject),
            ("10.96.119.104", tcp, 80, "default/local-only", ServiceAction::Drop),
            ("192.0.2.11", tcp, 443, "default/lb-empty", ServiceAction::Drop),
        ] {
            assert_eq!(find(&rules, address, protocol, port), (Some(name.into()), action), "{proxier:?} {address}");
        }
        assert!(rules.find("10.96.17.17".parse().unwrap(), udp, 80).is_none());
    }
}

#[test]
fn node_ports_are_listed_in_every_mode() {
    let pods = ["10.244.1.2", "10.244.1.3", "10.244.1.4"];
    for (raw, proxier) in every_mode() {
        let rules = decode(&raw);
        let find = |ipv6: bool, port: u16| {
            let rule = rules.node_ports.iter().flatten().find(|rule| (rule.ipv6, rule.port) == (ipv6, port));
            rule.map(|rule| (rule.service.clone().unwrap_or_default(), rule.action.clone()))
        };
        assert_eq!(find(false, 30080), Some(("default/node".into(), endpoints(pods, 8080))), "{proxier:?}");
        assert_eq!(find(false, 32737).map(|(_, action)| action), Some(ServiceAction::Drop), "{proxier:?}");
        assert_eq!(find(false, 1), None);
    }
    let rules = decode(&of_netlink(NFTABLES));
    let node = find(&rules, "172.30.77.11", Protocol::Tcp, 30080);
    assert_eq!(node, (Some("default/node".into()), endpoints(pods, 8080)));
    assert!(rules.find("172.30.77.11".parse().unwrap(), Protocol::Tcp, 30080).unwrap().node_port);
}

/// On which IPv4 addresses node ports are.
fn node_port_addresses(raw: &RawRules) -> Option<OwnAddresses> {
    let all = decode(raw).node_port_addresses.expect("they are always looked for");
    all.into_iter().find(|addresses| !addresses.ipv6).map(|addresses| addresses.on)
}

#[test]
fn addresses_of_node_ports_are_seen_in_every_mode() {
    let one = || OwnAddresses::Only(["172.30.77.11".parse().unwrap()].into());
    for (mut raw, proxier) in every_mode() {
        // nftables mode takes the node's primary address by itself, the others take all.
        let is_nftables = proxier == Proxier::Nftables;
        let by_itself = if is_nftables { one() } else { OwnAddresses::All };
        assert_eq!(node_port_addresses(&raw), Some(by_itself), "{proxier:?}");
        if is_nftables {
            raw.sets.retain(|set| set.name != "nodeport-ips");
            assert_eq!(node_port_addresses(&raw), Some(OwnAddresses::All));
            continue;
        }
        let chains = raw.ruleset.tables.iter_mut().flat_map(|table| &mut table.chains);
        for rule in chains.filter(|chain| chain.name == "KUBE-SERVICES").flat_map(|chain| &mut chain.rules) {
            if matches!(&rule.verdict, Verdict::Jump { chain } if chain == "KUBE-NODEPORTS") {
                let nets = vec!["172.30.77.11/32".parse().unwrap()];
                rule.matches = vec![Match::Destination { nets, negated: false }];
            }
        }
        assert_eq!(node_port_addresses(&raw), Some(one()), "{proxier:?}");
    }
}

#[test]
fn session_affinity_is_seen_in_every_mode() {
    for (raw, proxier) in every_mode() {
        let rules = decode(&raw);
        let sticky = |address: &str| {
            let rule = rules.find(address.parse().unwrap(), Protocol::Tcp, 80).unwrap();
            rule.terms.clone().map(|terms| terms.sticky)
        };
        assert_eq!(sticky("10.96.49.152"), Some(true), "{proxier:?}");
        assert_eq!(sticky("10.96.129.61"), Some(false), "{proxier:?}");
        assert_eq!(rules.others, Some(Vec::new()), "{proxier:?}");
    }
}

#[test]
fn source_ranges_are_seen_in_every_mode() {
    let of = |rules: &ServiceRules| {
        let rule = rules.find("192.0.2.10".parse().unwrap(), Protocol::Tcp, 443).unwrap();
        rule.terms.clone().and_then(|terms| terms.sources).unwrap_or_default()
    };
    let [nftables, iptables, legacy] = every_mode().map(|(raw, _)| of(&decode(&raw)));
    assert!(!nftables.is_empty());
    assert_eq!((&nftables, &nftables), (&iptables, &legacy));
}

#[test]
fn rules_of_another_mode_are_seen_beside() {
    let mut raw = of_netlink(NFTABLES);
    raw.ruleset.tables.extend(of_sockopt(IPTABLES_LEGACY).ruleset.tables);
    let rules = decode(&raw);
    assert_eq!((rules.proxier, rules.others), (Proxier::Nftables, Some(vec![Proxier::IptablesLegacy])));
}

#[test]
fn flushed_chains_leave_entries_that_no_packet_reaches() {
    for (mut raw, proxier) in every_mode() {
        for chain in raw.ruleset.tables.iter_mut().flat_map(|table| &mut table.chains) {
            if chain.base.is_some() {
                chain.rules.clear();
            }
        }
        let rules = decode(&raw);
        assert_eq!((rules.proxier, rules.hooked), (proxier, false));
        assert!(rules.find("10.96.17.17".parse().unwrap(), Protocol::Tcp, 80).is_some());
    }
}

#[test]
fn one_family_without_its_jumps_is_enough_to_be_unhooked() {
    for (mut raw, proxier) in every_mode() {
        let of_v6 = raw.ruleset.tables.iter_mut().filter(|table| table.family == "ip6");
        for chain in of_v6.flat_map(|table| &mut table.chains).filter(|chain| chain.base.is_some()) {
            chain.rules.clear();
        }
        assert!(!decode(&raw).hooked, "{proxier:?}");
    }
}

#[test]
fn packets_keep_their_source_without_what_marks_or_masquerades_them() {
    for name in ["KUBE-MARK-MASQ", "masquerading", "KUBE-POSTROUTING", "nat-postrouting", "POSTROUTING"] {
        for (mut raw, proxier) in every_mode() {
            let nat = raw.ruleset.tables.iter_mut().filter(|table| table.family == "ip6" && table.name != "mangle");
            let emptied = nat.flat_map(|table| &mut table.chains).filter(|chain| chain.name == name);
            let there = emptied.map(|chain| chain.rules.clear()).count() > 0;
            assert_eq!(decode(&raw).masquerades, Some(!there), "{name} of {proxier:?}");
        }
    }
}

#[test]
fn everything_flushed_is_seen_as_chains_without_services() {
    for (mut raw, proxier) in every_mode() {
        raw.ruleset.tables.iter_mut().flat_map(|table| &mut table.chains).for_each(|chain| chain.rules.clear());
        for set in &mut raw.sets {
            set.elements.clear();
        }
        let rules = decode(&raw);
        assert_eq!((rules.proxier, rules.hooked, rules.entries.len()), (proxier, false, 0));
    }
}

#[test]
fn without_comments_a_service_has_no_name() {
    let mut raw = of_netlink(IPTABLES_NFT);
    for rule in raw.ruleset.tables.iter_mut().flat_map(|table| &mut table.chains).flat_map(|chain| &mut chain.rules) {
        rule.comment = None;
    }
    let (name, action) = find(&decode(&raw), "10.96.17.17", Protocol::Tcp, 80);
    assert_eq!((name, action), (None, endpoints(["10.244.1.2", "10.244.1.3", "10.244.1.4"], 8080)));
}

#[test]
fn a_missing_service_chain_is_told_and_not_guessed() {
    for (mut raw, proxier) in every_mode() {
        for table in &mut raw.ruleset.tables {
            table.chains.retain(|chain| {
                !chain.name.starts_with("service-EDE2N7RF") && chain.name != "KUBE-SVC-BJWR5DPVIKTHVKZU"
            });
        }
        let rules = decode(&raw);
        assert!(rules.find("10.96.49.152".parse().unwrap(), Protocol::Tcp, 80).is_none(), "{proxier:?}");
        assert!(rules.undecoded.iter().any(|why| why.contains("there is no chain")), "{:?}", rules.undecoded);
    }
}

#[test]
fn a_namespace_without_kube_proxy_has_no_services() {
    let rules = decode(&RawRules::default());
    assert_eq!((rules.proxier, rules.hooked, rules.entries.len()), (Proxier::None, false, 0));
}

/// Writes the rules of the namespace this runs in as a fixture: `NETDIAG_RECORD=kube-proxy-nftables cargo test record`.
/// Nothing is recorded, and so nothing is tested, without that variable.
#[test]
fn record() {
    let Ok(name) = std::env::var("NETDIAG_RECORD") else { return };
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/rules");
    std::fs::create_dir_all(folder).unwrap();
    let netlink = crate::host::nftables::record(LIMITS).unwrap();
    std::fs::write(format!("{folder}/{name}.netlink"), netlink).unwrap();
    let legacy = crate::host::iptables::record().unwrap();
    if !legacy.is_empty() {
        std::fs::write(format!("{folder}/{name}.sockopt"), legacy).unwrap();
    }
}
