//! Which Service a rule of kube-proxy is for, by the names it gives its chains.
//!
//! In nftables mode a chain's name ends with namespace, name, protocol and port; in iptables mode it is a hash of those (Kubernetes
//! 1.36, `pkg/proxy/nftables/proxier.go` and `pkg/proxy/iptables/proxier.go`), which is computed for every Service here: comments
//! are left out above 1 000 endpoints.

use std::cell::OnceCell;
use std::collections::HashMap;
use std::net::SocketAddr;

use data_encoding::BASE32;
use netdiag_common::forwarding::virtual_server::VirtualServerKey;
use netdiag_common::observation::Protocol;
use ring::digest::{SHA256, digest};

use crate::evidence::Cluster;
use crate::evidence::object::{Service, ServicePort};
use crate::path::backends;

/// What a Service's chains begin with in iptables mode.
const OF_SERVICES: [&str; 4] = ["KUBE-SVC-", "KUBE-SVL-", "KUBE-EXT-", "KUBE-FW-"];
const OF_ENDPOINT: &str = "KUBE-SEP-";
/// The same in nftables mode.
const OF_NFTABLES: [&str; 4] = ["service-", "external-", "firewall-", "endpoint-"];

/// Bytes of the encoded hash that a name has.
const HASH: usize = 16;

/// Names of Services by those of their chains.
pub struct ServiceChains<'c> {
    cluster: &'c Cluster,
    /// Of all Services, computed when the first chain with a hash is asked for: nodes in nftables mode have none.
    hashed: OnceCell<HashMap<String, String>>,
}

impl<'c> ServiceChains<'c> {
    pub fn of(cluster: &'c Cluster) -> Self {
        Self { cluster, hashed: OnceCell::new() }
    }

    fn hashed(&self) -> HashMap<String, String> {
        let cluster = self.cluster;
        let mut chains = HashMap::new();
        for service in cluster.services.iter() {
            for port in &service.spec.ports {
                let full = full_name(service, port);
                let words = format!("Service {full}");
                let hash = hash(&full, port.protocol.0, None);
                chains.extend(OF_SERVICES.map(|prefix| (format!("{prefix}{hash}"), words.clone())));
                for backend in backends(cluster, service, port) {
                    let endpoint = SocketAddr::new(backend.address, backend.port);
                    let hash = self::hash(&full, port.protocol.0, Some(endpoint));
                    chains.insert(format!("{OF_ENDPOINT}{hash}"), format!("{words}, endpoint {endpoint}"));
                }
            }
        }
        chains
    }

    /// `Service shop/web:http`; none for chains that belong to no Service of the cluster.
    pub fn object(&self, chain: &str) -> Option<String> {
        if OF_SERVICES.iter().chain(&[OF_ENDPOINT]).any(|prefix| chain.starts_with(prefix)) {
            return self.hashed.get_or_init(|| self.hashed()).get(chain).cloned();
        }
        let rest = OF_NFTABLES.iter().find_map(|prefix| chain.strip_prefix(prefix))?;
        // HASH-NAMESPACE/NAME/PROTOCOL/PORT, and of an endpoint `__ADDRESS/PORT` behind it.
        let (_, named) = rest.split_once('-')?;
        let (namespace, rest) = named.split_once('/')?;
        let (name, rest) = rest.split_once('/')?;
        let (_, rest) = rest.split_once('/')?;
        let port = rest.split_once("__").map_or(rest, |(port, _)| port);
        let colon = if port.is_empty() { "" } else { ":" };
        Some(format!("Service {namespace}/{name}{colon}{port}"))
    }

    /// The Service that a virtual server of IPVS is for: by its own addresses, or by the port of nodes'.
    pub fn of_virtual_server(&self, key: &VirtualServerKey) -> Option<String> {
        let VirtualServerKey::Address { address, protocol, port } = *key else { return None };
        let (cluster, protocol) = (self.cluster, Protocol::from_number(protocol)?);
        let is_it = |of: &&ServicePort| of.protocol.0 == protocol && of.port == port;
        let external = || cluster.service_by_external_address(address, Some((protocol, port)));
        let own = cluster.service_by_address(address).or_else(external);
        let (service, port) = match own {
            Some(service) => (service, service.spec.ports.iter().find(is_it)?),
            None => cluster.node_by_address(address).and_then(|_| cluster.service_by_node_port(protocol, port))?,
        };
        Some(format!("Service {}", full_name(service, port)))
    }
}

/// `ServicePortName`: the namespace, the name, and that of the port if it has one.
fn full_name(service: &Service, port: &ServicePort) -> String {
    let name = format!("{}/{}", service.metadata.namespace, service.metadata.name);
    if port.name.is_empty() { name } else { format!("{name}:{}", port.name) }
}

/// `portProtoHash`, `servicePortEndpointChainName`
fn hash(service_port: &str, protocol: Protocol, endpoint: Option<SocketAddr>) -> String {
    let endpoint = endpoint.map(|endpoint| endpoint.to_string()).unwrap_or_default();
    let text = format!("{service_port}{protocol}{endpoint}");
    let mut encoded = BASE32.encode(digest(&SHA256, text.as_bytes()).as_ref());
    encoded.truncate(HASH);
    encoded
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::evidence::parse;

    #[test]
    fn names_are_those_that_kube_proxy_computes() {
        // As seen in a cluster of Kubernetes 1.36 in iptables mode.
        assert_eq!(hash("shop/web:http", Protocol::Tcp, None), "67NZLRHBNDSAWJRO");
    }

    #[test]
    fn names_of_nftables_mode_are_read() {
        let cluster = Cluster::default();
        let chains = ServiceChains::of(&cluster);
        let object = |chain| chains.object(chain).unwrap_or_default();
        assert_eq!(object("service-KHN6ECMT-shop/web/tcp/http"), "Service shop/web:http");
        assert_eq!(object("endpoint-KHN6ECMT-shop/web/tcp/http__10.244.1.4/8080"), "Service shop/web:http");
        assert_eq!(object("service-KHN6ECMT-shop/web/tcp/"), "Service shop/web");
        assert_eq!(chains.object("services"), None);
        assert_eq!(chains.object("service-endpoints-check"), None);
    }

    #[test]
    fn virtual_servers_are_known_by_addresses_of_services_and_ports_of_nodes() {
        let mut cluster = Cluster::default();
        for object in [
            json!({"kind": "Node", "metadata": {"name": "n1"},
                "status": {"addresses": [{"type": "InternalIP", "address": "10.0.0.7"}]}}),
            json!({"kind": "Service", "metadata": {"namespace": "shop", "name": "web"},
                "spec": {"clusterIP": "10.96.0.1", "externalIPs": ["192.0.2.1"],
                    "ports": [{"name": "http", "port": 80, "nodePort": 30080, "protocol": "TCP"}]}}),
        ] {
            parse::add(&mut cluster, object).unwrap();
        }
        let chains = ServiceChains::of(&cluster);
        let of = |address: &str, protocol, port| {
            let key = VirtualServerKey::Address { address: address.parse().unwrap(), protocol, port };
            chains.of_virtual_server(&key)
        };
        for (address, port) in [("10.96.0.1", 80), ("192.0.2.1", 80), ("10.0.0.7", 30_080)] {
            assert_eq!(of(address, 6, port).as_deref(), Some("Service shop/web:http"), "{address}");
        }
        // Another port, another protocol, and the same port of something that is no node.
        for (address, protocol, port) in [("10.96.0.1", 6, 81), ("10.96.0.1", 17, 80), ("10.0.0.9", 6, 30_080)] {
            assert_eq!(of(address, protocol, port), None, "{address} {protocol} {port}");
        }
    }
}
