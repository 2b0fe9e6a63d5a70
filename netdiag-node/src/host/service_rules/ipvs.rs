//! kube-proxy `--proxy-mode=ipvs`: a virtual server for each address and port, whose real servers are the endpoints; the
//! addresses of Services are on the device kube-ipvs0, so that their packets are delivered here (`pkg/proxy/ipvs/proxier.go`).
//! What IPVS keeps names no Service; source ranges are in ipsets.

use std::collections::BTreeSet;
use std::net::IpAddr;

use netdiag_common::observation::Protocol;
use netdiag_common::observation::service_rules::{Endpoint, ServiceAction, Terms};
use nix::sys::socket::SockProtocol;

use super::sources::{self, Sources};
use super::{Found, Way};
use crate::host::ReadError;
use crate::host::ipvs::{Key, Real, Tables, Virtual, has_servers};
use crate::host::netlink::Netlink;
use crate::host::network;

const DEVICE: &str = "kube-ipvs0";

/// What decides where the packets of a virtual server go.
#[derive(Default)]
pub(super) struct Raw {
    servers: Vec<(Virtual, Vec<Real>)>,
    /// Of [`DEVICE`]; none without it.
    service_addresses: Option<BTreeSet<IpAddr>>,
    /// Of the other devices.
    node_addresses: BTreeSet<IpAddr>,
    /// None where ipsets could not be listed.
    sources: Option<Sources>,
}

pub(super) fn read() -> Result<Raw, ReadError> {
    let mut raw = Raw::default();
    if !has_servers()? {
        return Ok(raw);
    }
    let Some(mut tables) = Tables::open()? else { return Ok(raw) };
    for server in tables.servers()? {
        let reals = tables.reals(server.key)?;
        raw.servers.push((server, reals));
    }
    let mut netlink = Netlink::open(SockProtocol::NetlinkRoute)?;
    let device = network::links(&mut netlink)?.into_iter().find(|found| found.link.name == DEVICE);
    let device = device.map(|found| found.link.index);
    raw.service_addresses = device.map(|_| BTreeSet::new());
    for found in network::addresses(&mut netlink)? {
        match &mut raw.service_addresses {
            Some(addresses) if Some(found.link_index) == device => addresses.insert(found.address),
            _ => raw.node_addresses.insert(found.address),
        };
    }
    // Other users of IPVS have no such sets, and to ask for them loads the kernel's module.
    if device.is_some() {
        raw.sources = sources::read().ok();
    }
    Ok(raw)
}

/// Whether kube-proxy works in this mode here: virtual servers alone may be somebody else's.
pub(super) fn is_there(raw: &Raw) -> bool {
    raw.service_addresses.is_some() && !raw.servers.is_empty()
}

/// Whether the terms of its entries have their source ranges.
pub(super) fn knows_sources(raw: &Raw) -> bool {
    raw.sources.is_some()
}

pub(super) fn decode(raw: &Raw, found: &mut Found) {
    let none = BTreeSet::new();
    let service_addresses = raw.service_addresses.as_ref().unwrap_or(&none);
    for (server, reals) in &raw.servers {
        let Key { address, protocol, port } = server.key;
        let Some(protocol) = Protocol::from_number(protocol) else { continue };
        let sources = raw.sources.as_ref().and_then(|sources| sources.get(&(address, protocol, port)).cloned());
        let terms = Terms { sticky: server.is_persistent, sources };
        let way = Way { action: action(reals), chain: None, terms: Some(terms) };
        if service_addresses.contains(&address) {
            found.insert((address, protocol, port), None, way, false);
        } else if raw.node_addresses.contains(&address) {
            found.insert((address, protocol, port), None, way.clone(), true);
            found.insert_node_port((address.is_ipv6(), protocol, port), None, way);
        } else {
            let at = std::net::SocketAddr::new(address, port);
            found.undecoded(|| format!("IPVS has a virtual server {protocol} {at}, whose address no device has"));
        }
    }
}

/// A real server without weight ends its connections and gets no new ones.
fn action(reals: &[Real]) -> ServiceAction {
    let taking = reals.iter().filter(|real| real.weight > 0);
    let endpoints: BTreeSet<Endpoint> =
        taking.map(|real| Endpoint { address: real.address.ip(), port: real.address.port() }).collect();
    if endpoints.is_empty() { ServiceAction::Reject } else { ServiceAction::Endpoints(endpoints.into_iter().collect()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn virtual_server(address: &str, port: u16, is_persistent: bool) -> Virtual {
        let key = Key { address: address.parse().unwrap(), protocol: 6, port };
        Virtual { key, scheduler: "rr".to_owned(), is_persistent }
    }

    fn real(address: &str, weight: u32) -> Real {
        Real { address: address.parse().unwrap(), method: 0, weight, limited: false }
    }

    fn raw() -> Raw {
        Raw {
            servers: vec![
                (virtual_server("10.96.0.1", 443, true), vec![real("10.0.0.1:6443", 1), real("10.0.0.2:6443", 0)]),
                (virtual_server("10.0.0.7", 30_080, false), vec![]),
                (virtual_server("10.96.0.9", 80, false), vec![real("10.0.0.3:80", 1)]),
            ],
            service_addresses: Some(["10.96.0.1".parse().unwrap()].into()),
            node_addresses: ["10.0.0.7".parse().unwrap()].into(),
            sources: Some(Sources::from([(
                ("10.96.0.1".parse().unwrap(), Protocol::Tcp, 443),
                BTreeSet::from(["198.51.100.0/24".parse().unwrap()]),
            )])),
        }
    }

    #[test]
    fn servers_are_services_node_ports_or_unreachable() {
        let mut found = Found::default();
        decode(&raw(), &mut found);
        let at = |address: &str, port| found.entries[&(address.parse().unwrap(), Protocol::Tcp, port)].clone();
        let api = at("10.96.0.1", 443);
        let endpoint = Endpoint { address: "10.0.0.1".parse().unwrap(), port: 6443 };
        assert_eq!(api.action, ServiceAction::Endpoints(vec![endpoint]), "one without weight takes nothing");
        let terms = api.terms.unwrap();
        assert!(terms.sticky && !api.node_port);
        assert_eq!(terms.sources, Some(BTreeSet::from(["198.51.100.0/24".parse().unwrap()])));
        assert_eq!(at("10.0.0.7", 30_080).terms.unwrap().sources, None, "open to everybody");
        assert!(at("10.0.0.7", 30_080).node_port);
        assert_eq!(found.node_ports[&(false, Protocol::Tcp, 30_080)].action, ServiceAction::Reject);
        assert!(found.undecoded[0].contains("10.96.0.9:80"), "{:?}", found.undecoded);
    }

    #[test]
    fn without_the_device_they_are_somebody_elses() {
        assert!(is_there(&raw()));
        assert!(!is_there(&Raw { service_addresses: None, ..raw() }));
        assert!(!is_there(&Raw { servers: Vec::new(), ..raw() }));
    }
}
