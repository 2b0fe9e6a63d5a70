//! Whether today's Service rules would send a flow where its entry sends it.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;

use netdiag_common::observation::Protocol;
use netdiag_common::observation::flow::RulesToday;
use netdiag_common::observation::service_rules::{Endpoint, Proxier, ServiceAction, ServiceRules};

/// From an address to an endpoint, as one tracked flow has it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Mapping {
    pub address: IpAddr,
    pub protocol: Protocol,
    pub port: u16,
    pub endpoint: Endpoint,
}

/// The rules of one moment, made for looking up.
pub(super) struct Index {
    rules: HashMap<(IpAddr, Protocol, u16), Option<String>>,
    /// What the rules of one address lead to.
    pairs: HashSet<Mapping>,
    /// Addresses whose rules refuse or drop.
    nowhere: HashSet<(IpAddr, Protocol, u16)>,
    /// Service and endpoint, over all addresses of the Service.
    of_service: HashSet<(String, Endpoint)>,
    /// Every rule of the layout was decoded: what is not here is not there.
    is_whole: bool,
}

impl Index {
    /// None when no flow can be judged by them: they are not kube-proxy's, or no packet reaches them.
    pub fn new(rules: ServiceRules) -> Option<Self> {
        // IPVS keeps connections of its own.
        if matches!(rules.proxier, Proxier::None | Proxier::Ipvs) || !rules.hooked {
            return None;
        }
        let mut index = Self {
            rules: HashMap::new(),
            pairs: HashSet::new(),
            nowhere: HashSet::new(),
            of_service: HashSet::new(),
            is_whole: rules.undecoded.is_empty(),
        };
        for rule in rules.entries {
            let key = (rule.address, rule.protocol, rule.port);
            match rule.action {
                ServiceAction::Endpoints(endpoints) => {
                    for endpoint in endpoints {
                        let (address, protocol, port) = key;
                        index.pairs.insert(Mapping { address, protocol, port, endpoint: endpoint.clone() });
                        index.of_service.extend(rule.service.clone().map(|service| (service, endpoint)));
                    }
                }
                ServiceAction::Reject | ServiceAction::Drop => {
                    index.nowhere.insert(key);
                }
            }
            index.rules.insert(key, rule.service);
        }
        Some(index)
    }

    pub fn today(&self, mapping: &Mapping) -> RulesToday {
        let key = (mapping.address, mapping.protocol, mapping.port);
        let Some(service) = self.rules.get(&key) else {
            return if self.is_whole { RulesToday::SayNothing } else { RulesToday::NotKnown };
        };
        // Under a Local policy an address leads outside clients to local endpoints only, and the clients of this node to all
        // that another address of the same Service leads to.
        let elsewhere_in_service =
            || service.as_ref().is_some_and(|name| self.of_service.contains(&(name.clone(), mapping.endpoint.clone())));
        if self.pairs.contains(mapping) || elsewhere_in_service() {
            RulesToday::LeadThere
        } else if self.nowhere.contains(&key) {
            RulesToday::LeadNowhere
        } else {
            RulesToday::LeadElsewhere
        }
    }

    /// The Service that the rules name for an address.
    pub fn service(&self, mapping: &Mapping) -> Option<&String> {
        self.rules.get(&(mapping.address, mapping.protocol, mapping.port))?.as_ref()
    }
}

#[cfg(test)]
pub(super) mod tests {
    use netdiag_common::observation::service_rules::ServiceRule;

    use super::*;

    pub fn endpoint(text: &str) -> Endpoint {
        let (address, port) = text.split_once(':').unwrap();
        Endpoint { address: address.parse().unwrap(), port: port.parse().unwrap() }
    }

    pub fn rule(address: &str, port: u16, service: &str, endpoints: &[&str]) -> ServiceRule {
        let action = if endpoints.is_empty() {
            ServiceAction::Reject
        } else {
            ServiceAction::Endpoints(endpoints.iter().map(|text| endpoint(text)).collect())
        };
        let address = address.parse().unwrap();
        ServiceRule {
            address,
            protocol: Protocol::Udp,
            port,
            service: Some(service.to_owned()),
            action,
            chain: None,
            terms: None,
            node_port: false,
        }
    }

    pub fn rules(entries: Vec<ServiceRule>) -> ServiceRules {
        ServiceRules {
            proxier: Proxier::Nftables,
            entries,
            hooked: true,
            undecoded: Vec::new(),
            node_ports: None,
            others: None,
            masquerades: None,
            node_port_addresses: None,
            knows_source_sets: false,
        }
    }

    fn mapping(address: &str, port: u16, to: &str) -> Mapping {
        Mapping { address: address.parse().unwrap(), protocol: Protocol::Udp, port, endpoint: endpoint(to) }
    }

    #[test]
    fn an_endpoint_that_left_is_told_apart_from_a_service_that_lost_all() {
        let index = Index::new(rules(vec![
            rule("10.96.0.10", 53, "kube-system/kube-dns:dns", &["10.244.1.2:53"]),
            rule("10.96.0.11", 53, "shop/dns", &[]),
        ]))
        .unwrap();
        assert_eq!(index.today(&mapping("10.96.0.10", 53, "10.244.1.2:53")), RulesToday::LeadThere);
        assert_eq!(index.today(&mapping("10.96.0.10", 53, "10.244.9.9:53")), RulesToday::LeadElsewhere);
        assert_eq!(index.today(&mapping("10.96.0.11", 53, "10.244.9.9:53")), RulesToday::LeadNowhere);
        assert_eq!(index.today(&mapping("192.0.2.1", 8080, "10.244.9.9:80")), RulesToday::SayNothing);
    }

    #[test]
    fn local_policy_does_not_make_remote_endpoints_outdated() {
        let index = Index::new(rules(vec![
            rule("10.96.0.20", 80, "shop/web:http", &["10.244.1.2:80", "10.244.2.3:80"]),
            rule("203.0.113.5", 80, "shop/web:http", &["10.244.1.2:80"]),
        ]))
        .unwrap();
        assert_eq!(index.today(&mapping("203.0.113.5", 80, "10.244.2.3:80")), RulesToday::LeadThere);
    }

    #[test]
    fn incomplete_rules_prove_nothing_about_what_they_do_not_name() {
        let undecoded = vec!["chain x".to_owned()];
        let index = Index::new(ServiceRules { undecoded, ..rules(Vec::new()) }).unwrap();
        assert_eq!(index.today(&mapping("10.96.0.10", 53, "10.244.1.2:53")), RulesToday::NotKnown);
        assert!(Index::new(ServiceRules { hooked: false, ..rules(Vec::new()) }).is_none());
    }
}
