//! Which neighbour is given what is sent, and behind which port of a bridge it is.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::net::IpAddr;

use netdiag_common::forwarding::Outcome;
use netdiag_common::forwarding::path::End;
use netdiag_common::observation::fate::FateNeighbour;
use netdiag_common::observation::network::FdbEntry;
use nix::sys::socket::SockProtocol;

use crate::host::netlink::Netlink;
use crate::host::{ReadError, network};

/// One for each path that ends on a link where addresses are resolved.
pub(super) fn neighbours(outcome: &Outcome) -> Result<Vec<FateNeighbour>, ReadError> {
    let mut kernel = Kernel { netlink: Netlink::open(SockProtocol::NetlinkRoute)?, forwarding: None };
    let mut known: BTreeMap<(u32, IpAddr), Option<FateNeighbour>> = BTreeMap::new();
    let mut neighbours = Vec::new();
    for (path, way) in outcome.paths.iter().enumerate() {
        let End::Sent { interface, gateway } = way.end else { continue };
        let address = gateway.unwrap_or(way.packet.destination());
        let found = match known.entry((interface, address)) {
            Entry::Occupied(before) => before.into_mut(),
            Entry::Vacant(new) => new.insert(kernel.neighbour(interface, address)?),
        };
        neighbours.extend(found.clone().map(|found| FateNeighbour { path, ..found }));
    }
    Ok(neighbours)
}

struct Kernel {
    netlink: Netlink,
    /// None until a neighbour is behind a bridge.
    forwarding: Option<Vec<FdbEntry>>,
}

impl Kernel {
    /// None where nothing is resolved: what is sent is for whoever is at the other end.
    fn neighbour(&mut self, interface: u32, address: IpAddr) -> Result<Option<FateNeighbour>, ReadError> {
        let found = network::link(&mut self.netlink, interface)?.filter(|found| found.resolves);
        let Some(network::FoundLink { link, .. }) = found else { return Ok(None) };
        let entry = network::neighbour(&mut self.netlink, interface, address, network::parse_neighbour)?;
        let (state, mac) = entry.map_or((None, None), |entry| (Some(entry.state), entry.mac));
        let port = match &mac {
            Some(mac) if link.kind == "bridge" => port_of(self.forwarding()?, interface, mac),
            _ => None,
        };
        Ok(Some(FateNeighbour { path: 0, interface, address, state, mac, port }))
    }

    fn forwarding(&mut self) -> Result<&[FdbEntry], ReadError> {
        if self.forwarding.is_none() {
            self.forwarding = Some(network::forwarding(&mut self.netlink)?);
        }
        Ok(self.forwarding.as_deref().unwrap_or_default())
    }
}

/// The only port of a bridge that an Ethernet address is behind.
fn port_of(forwarding: &[FdbEntry], bridge: u32, mac: &str) -> Option<u32> {
    let here = forwarding.iter().filter(|entry| entry.master_index == Some(bridge) && entry.mac == mac);
    // Entries of the bridge itself are for this host.
    let mut ports = here.map(|entry| entry.link_index).filter(|port| *port != bridge);
    let first = ports.next()?;
    ports.all(|port| port == first).then_some(first)
}

#[cfg(test)]
mod tests {
    use super::*;

    const BRIDGE: u32 = 4;

    fn entry(link_index: u32, mac: &str, vlan: Option<u16>) -> FdbEntry {
        FdbEntry { link_index, mac: mac.to_owned(), master_index: Some(BRIDGE), vlan, ..FdbEntry::default() }
    }

    #[test]
    fn an_address_behind_two_ports_is_behind_none_that_is_known() {
        let found = |entries: &[FdbEntry], mac: &str| port_of(entries, BRIDGE, mac);
        let (a, again) = (entry(5, "a", None), entry(5, "a", Some(1)));
        let mut entries = vec![a, again, entry(6, "b", None), entry(BRIDGE, "c", None)];
        assert_eq!((found(&entries, "a"), found(&entries, "b")), (Some(5), Some(6)));
        assert_eq!((found(&entries, "c"), found(&entries, "d")), (None, None));
        entries.push(entry(6, "a", Some(2)));
        assert_eq!(found(&entries, "a"), None);
        entries[2].master_index = Some(9);
        assert_eq!(found(&entries, "b"), None);
    }
}
