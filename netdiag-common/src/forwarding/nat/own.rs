//! Translation to an address of this host: masquerade and redirect (`nf_nat_masquerade.c`, `nf_nat_redirect.c`).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::{Request, load_ports, octets};
use crate::forwarding::conntrack::{Direction, status};
use crate::forwarding::expression::{NatKind, Verdict};
use crate::forwarding::fact::Fact;
use crate::forwarding::machine::{Result, Run, Tracking};
use crate::forwarding::packet::Protocol;
use crate::forwarding::state::{Hook, Interface, InterfaceAddress, Route};

/// `IFA_F_SECONDARY`, `IFA_F_DEPRECATED`, `IFA_F_TENTATIVE`
const SECONDARY: u32 = 0x01;
const DEPRECATED: u32 = 0x20;
const TENTATIVE: u32 = 0x40;

/// `RT_SCOPE_LINK`
const LINK_SCOPE: u8 = 253;

impl Run<'_> {
    /// `nft_masq_eval` and `nf_nat_masquerade_ipv4`, `nf_nat_masquerade_ipv6`.
    pub(in crate::forwarding) fn masquerade(&mut self, port: [Option<u32>; 2], flags: u32) -> Result<Verdict> {
        let ports = load_ports(self, port)?;
        self.masquerade_to(ports, flags)
    }

    pub(in crate::forwarding) fn masquerade_to(&mut self, ports: Option<(u16, u16)>, flags: u32) -> Result<Verdict> {
        let Some(output) = self.output else { return Err(self.unknown("masquerade without an output interface")) };
        let next_hop = match &self.route {
            Some(Route::Forward { gateway: Some(gateway), .. }) => *gateway,
            _ => self.packet.destination(),
        };
        let chosen = match self.packet.protocol {
            Protocol::Ipv4 => match ipv4_source(output, next_hop) {
                Some(address) => Some(address),
                None => {
                    let all = self.state.addresses()?.iter().map(|(_, own)| own);
                    primary(all.filter(|own| own.address.is_ipv4())).next().map(|own| own.address)
                }
            },
            Protocol::Ipv6 => ipv6_source(output.index, self.state.addresses()?, self.packet.destination()),
        };
        let Some(address) = chosen else { return Ok(Verdict::Drop) };
        if let Tracking::Tracked(tracked) = &mut self.tracking {
            tracked.entry.masqueraded = Fact::Known(Some(output.index));
        }
        let addresses = Some((address, address));
        self.translate(Request { kind: NatKind::Source, addresses, ports, base_port: 0, flags })
    }

    /// `nf_nat_oif_changed`: a masqueraded connection does not survive that its packets leave by another interface.
    pub(in crate::forwarding) fn leaves_elsewhere(&mut self) -> bool {
        let (Tracking::Tracked(tracked), Hook::Postrouting, Some(output)) = (&self.tracking, self.hook, self.output)
        else {
            return false;
        };
        let entry = &tracked.entry;
        if entry.direction == Direction::Reply {
            return false;
        }
        match &entry.masqueraded {
            Fact::Known(masqueraded) => masqueraded.is_some_and(|index| index != output.index),
            // Where it was masqueraded to an address of this interface, it was at this interface.
            Fact::Unknown(_) => {
                let own = output.addresses.iter().any(|own| own.address == entry.reply.destination);
                let translated = entry.status & status::SOURCE_NAT != 0;
                translated && !own && self.decide("the connection was masqueraded at another interface")
            }
        }
    }

    /// `nft_redir_eval` and `nf_nat_redirect_ipv4`, `nf_nat_redirect_ipv6`.
    pub(in crate::forwarding) fn redirect(&mut self, port: [Option<u32>; 2], flags: u32) -> Result<Verdict> {
        let ports = load_ports(self, port)?;
        self.redirect_to(ports, flags)
    }

    pub(in crate::forwarding) fn redirect_to(&mut self, ports: Option<(u16, u16)>, flags: u32) -> Result<Verdict> {
        let ipv4 = self.packet.protocol == Protocol::Ipv4;
        let address = match (self.hook, ipv4) {
            (Hook::Output, true) => Some(IpAddr::from(Ipv4Addr::LOCALHOST)),
            (Hook::Output, false) => Some(IpAddr::from(Ipv6Addr::LOCALHOST)),
            (_, true) => self.input.and_then(|input| own_addresses(input, true).next()).map(|own| own.address),
            (_, false) => {
                let wanted = is_link_local(self.packet.destination());
                let usable =
                    |own: &&InterfaceAddress| own.flags & TENTATIVE == 0 && is_link_local(own.address) == wanted;
                self.input.and_then(|input| own_addresses(input, false).find(usable)).map(|own| own.address)
            }
        };
        match address {
            None => Ok(Verdict::Drop),
            Some(address) => {
                let addresses = Some((address, address));
                self.translate(Request { kind: NatKind::Destination, addresses, ports, base_port: 0, flags })
            }
        }
    }
}

fn own_addresses(interface: &Interface, ipv4: bool) -> impl Iterator<Item = &InterfaceAddress> {
    interface.addresses.iter().filter(move |own| own.address.is_ipv4() == ipv4)
}

/// Addresses that `inet_select_addr` takes for a destination anywhere.
fn primary<'a>(own: impl Iterator<Item = &'a InterfaceAddress>) -> impl Iterator<Item = &'a InterfaceAddress> {
    own.filter(|own| own.flags & SECONDARY == 0 && own.scope < LINK_SCOPE)
}

/// The first primary address of the interface, rather one whose network holds the next hop. An interface without one,
/// such as lo, lets the first of any other stand in.
fn ipv4_source(interface: &Interface, next_hop: IpAddr) -> Option<IpAddr> {
    let usable = || primary(own_addresses(interface, true));
    let near = usable().find(|own| common_bits(own.address, next_hop) >= u32::from(own.prefix));
    near.or_else(|| usable().next()).map(|own| own.address)
}

/// Source address selection (RFC 6724, section 5; `ipv6_dev_get_saddr`): the destination itself, then scope, then not
/// deprecated, then of the output interface, then the longest common prefix. Temporary and home addresses are no case here.
fn ipv6_source(output: u32, all: &[(u32, InterfaceAddress)], destination: IpAddr) -> Option<IpAddr> {
    let wanted_scope = is_link_local(destination);
    let usable = all.iter().filter(|(interface, own)| {
        let usable = own.address.is_ipv6() && own.flags & TENTATIVE == 0;
        // Addresses of one link say nothing on another.
        usable && (*interface == output || !(wanted_scope || is_link_local(own.address)))
    });
    let rank = |(interface, own): &&(u32, InterfaceAddress)| {
        // An address that reaches as far as the destination is away.
        let reaches = (own.scope < LINK_SCOPE) || wanted_scope;
        let common = common_bits(own.address, destination).min(u32::from(own.prefix));
        (own.address == destination, reaches, own.flags & DEPRECATED == 0, *interface == output, common)
    };
    // Of equals the first in the kernel's list wins, so the last of the reversed list.
    let mut ranked: Vec<_> = usable.collect();
    ranked.reverse();
    ranked.into_iter().max_by_key(rank).map(|(_, own)| own.address)
}

fn common_bits(a: IpAddr, b: IpAddr) -> u32 {
    let (a, b) = (octets(a), octets(b));
    let mut bits = 0;
    for (a, b) in a.iter().zip(&b) {
        bits += (a ^ b).leading_zeros();
        if a != b {
            break;
        }
    }
    bits
}

fn is_link_local(address: IpAddr) -> bool {
    matches!(address, IpAddr::V6(address) if address.segments()[0] & 0xffc0 == 0xfe80)
}
