//! The address that a packet of this host gets when its socket has none (`inet_select_addr`, Linux 6.18).

use std::net::{IpAddr, Ipv4Addr};

use super::super::state::InterfaceAddress;
use super::{Result, Router};

/// `IFA_F_SECONDARY`
const SECONDARY: u32 = 1;

/// `RT_SCOPE_LINK`, `RT_SCOPE_HOST`
pub(super) const LINK: u8 = 253;
const HOST: u8 = 254;

impl Router<'_> {
    /// The first primary address of the interface whose scope reaches, rather one whose network holds the next hop; or the
    /// first such one of any interface.
    pub(super) fn own4(&self, interface: u32, next_hop: Option<IpAddr>, scope: u8) -> Result<Option<IpAddr>> {
        let next_hop = match next_hop {
            Some(IpAddr::V4(address)) => Some(address),
            _ => None,
        };
        let here = self.state.interface(interface)?.map_or(&[][..], |interface| &interface.addresses);
        let mut first = None;
        for (own, address) in primary(here.iter()) {
            if self.reach(interface, own.scope)? > scope {
                continue;
            }
            if next_hop.is_none_or(|hop| same_network(address, hop, own.prefix)) {
                return Ok(Some(address.into()));
            }
            first = first.or(Some(address));
        }
        if first.is_some() {
            return Ok(first.map(IpAddr::from));
        }
        let all = self.state.addresses()?;
        let mut others = primary(all.iter().map(|(_, own)| own));
        Ok(others.find(|(own, _)| own.scope != LINK && own.scope <= scope).map(|(_, address)| address.into()))
    }

    /// Addresses of the host itself reach the link where `route_localnet` is set.
    fn reach(&self, interface: u32, scope: u8) -> Result<u8> {
        if scope < HOST {
            return Ok(scope);
        }
        let settings = self.state.routed_interface(interface)?.map(|interface| interface.settings.ipv4);
        let all = self.state.host_settings()?.all.ipv4;
        let localnet = all.route_localnet || settings.is_some_and(|settings| settings.route_localnet);
        Ok(if localnet { LINK } else { HOST })
    }
}

fn primary<'a>(
    all: impl Iterator<Item = &'a InterfaceAddress>,
) -> impl Iterator<Item = (&'a InterfaceAddress, Ipv4Addr)> {
    all.filter_map(|own| match own.address {
        IpAddr::V4(address) if own.flags & SECONDARY == 0 => Some((own, address)),
        _ => None,
    })
}

fn same_network(a: Ipv4Addr, b: Ipv4Addr, prefix: u8) -> bool {
    let differing = (u32::from(a) ^ u32::from(b)).leading_zeros();
    differing >= u32::from(prefix)
}
