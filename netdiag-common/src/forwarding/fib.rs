//! `fib` expressions (`nft_fib_ipv4.c`, `nft_fib_ipv6.c`): what the routing tables say of an address of the packet.

use std::net::{IpAddr, Ipv4Addr};

use super::expression::Verdict;
use super::fact::Fact;
use super::machine::{Result, Run};
use super::packet::Protocol;
use super::state::{AddressQuery, FibEntry, FibQuery, Hook};

/// `enum nft_fib_flags`
const DESTINATION: u32 = 2;
const MARK: u32 = 4;
const INPUT: u32 = 8;
const OUTPUT: u32 = 16;
const PRESENT: u32 = 32;

/// `enum nft_fib_result`
const INDEX: u32 = 1;
const NAME: u32 = 2;
const ADDRESS_TYPE: u32 = 3;

/// `RTN_*`
pub(super) mod kind {
    pub const UNICAST: u32 = 1;
    pub const LOCAL: u32 = 2;
    pub const BROADCAST: u32 = 3;
    pub const ANYCAST: u32 = 4;
    pub const MULTICAST: u32 = 5;
    pub const BLACKHOLE: u32 = 6;
    pub const UNREACHABLE: u32 = 7;
    pub const PROHIBIT: u32 = 8;
}

impl Run<'_> {
    pub(super) fn fib(&mut self, result: u32, flags: u32, to: u32) -> Result<Verdict> {
        let interface = if flags & INPUT != 0 {
            self.input
        } else if flags & OUTPUT != 0 {
            self.output
        } else {
            None
        };
        let (source, destination) = (self.packet.source(), self.packet.destination());
        let (address, other) = if flags & DESTINATION != 0 { (destination, source) } else { (source, destination) };
        if result == ADDRESS_TYPE {
            let kind = self.address_type(address, interface.map(|interface| interface.index))?;
            return Ok(self.store_number(to, kind));
        }
        let loopback = self.input.is_some_and(|input| &*input.name == "lo");
        // At input since Linux 6.16; before, an address of this host was looked up there, and none was found.
        let found = if matches!(self.hook, Hook::Prerouting | Hook::Input) && loopback {
            self.input.map(|input| input.index)
        } else if seeks_address(source, destination) {
            self.input.map(|input| input.index)
        } else {
            self.found_by_route(flags, address, other, interface.map(|interface| interface.index))?
        };
        self.store_found(result, flags & PRESENT != 0, found, to)
    }

    /// `inet_dev_addr_type`: special addresses by themselves, all others by the local table.
    pub(super) fn address_type(&self, address: IpAddr, interface: Option<u32>) -> Result<u32> {
        if let IpAddr::V4(address) = address {
            if address.is_broadcast() || address.octets()[0] == 0 {
                return Ok(kind::BROADCAST);
            }
            if address.is_multicast() {
                return Ok(kind::MULTICAST);
            }
        }
        Ok(self.state.address_type(&AddressQuery { address, interface })?)
    }

    /// The route to the sender, as `rpfilter` looks for it.
    pub(super) fn sender_route(&mut self, by_mark: bool) -> Result<Option<&FibEntry>> {
        let flags = if by_mark { MARK } else { 0 };
        let input = self.input.map(|input| input.index);
        let query = self.fib_query(flags, self.packet.source(), self.packet.destination(), input)?;
        Ok(self.state.fib(&query)?)
    }

    fn found_by_route(
        &mut self,
        flags: u32,
        address: IpAddr,
        other: IpAddr,
        interface: Option<u32>,
    ) -> Result<Option<u32>> {
        let query = self.fib_query(flags, address, other, interface)?;
        let Some(entry) = self.state.fib(&query)? else { return Ok(None) };
        // An address of this host is nobody else's.
        if u32::from(entry.kind) == kind::LOCAL || (address.is_ipv6() && u32::from(entry.kind) == kind::ANYCAST) {
            return Ok(None);
        }
        Ok(match interface {
            None => entry.interfaces.first().copied(),
            Some(wanted) => entry.interfaces.contains(&wanted).then_some(wanted),
        })
    }

    fn fib_query(&self, flags: u32, address: IpAddr, other: IpAddr, interface: Option<u32>) -> Result<FibQuery> {
        let mark = match (flags & MARK != 0, &self.packet.mark) {
            (true, Fact::Known(mark)) => *mark,
            (true, Fact::Unknown(why)) => return Err(self.unknown(format!("fib asks by mark, but {why}"))),
            (false, _) => 0,
        };
        let link_local = matches!(address, IpAddr::V6(address) if address.segments()[0] & 0xffc0 == 0xfe80);
        Ok(FibQuery {
            destination: address,
            source: Some(other).filter(|other| !is_special(*other)),
            mark,
            service: if self.packet.protocol == Protocol::Ipv4 { self.packet.service() & 0xfc } else { 0 },
            interface: if link_local { interface.or(self.input.map(|input| input.index)) } else { None },
        })
    }

    /// `nft_fib_store_result`; nothing found is index 0 and the empty name.
    fn store_found(&mut self, result: u32, presence: bool, found: Option<u32>, to: u32) -> Result<Verdict> {
        match result {
            INDEX if presence => Ok(self.store_number(to, u32::from(found.is_some()))),
            INDEX => Ok(self.store_number(to, found.unwrap_or(0))),
            NAME if presence => Ok(self.store_number(to, u32::from(found.is_some()))),
            NAME => {
                let mut name = [0; 16];
                if let Some(index) = found
                    && let Some(interface) = self.state.interface(index)?
                {
                    for (byte, letter) in name[..15].iter_mut().zip(interface.name.bytes()) {
                        *byte = letter;
                    }
                }
                self.registers.store(to, &name);
                Ok(Verdict::Continue)
            }
            result => Err(self.unknown(format!("fib result {result}"))),
        }
    }
}

/// Not an address to answer to (`get_saddr`).
fn is_special(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => address.is_multicast() || address.is_broadcast() || address.octets()[0] == 0,
        IpAddr::V6(address) => address.is_multicast() || address.is_unspecified(),
    }
}

/// A packet of a host that has no address yet, to everybody on the link: answered without a lookup.
fn seeks_address(source: IpAddr, destination: IpAddr) -> bool {
    let (IpAddr::V4(source), IpAddr::V4(destination)) = (source, destination) else { return false };
    let local_multicast = destination.octets()[..3] == Ipv4Addr::new(224, 0, 0, 0).octets()[..3];
    source.octets()[0] == 0 && (destination.is_broadcast() || local_multicast)
}
