//! Address translation: how a rule's range becomes the connection's new addresses, and how those change a packet
//! (`nf_nat_core.c`, `nf_nat_proto.c` of Linux 6.18).
//!
//! One thing about it is assumed: that no other connection already uses the addresses and ports that are chosen. Where
//! one does, the kernel takes another port; that a range of few ports may have none left is named.

mod own;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::conntrack::{Direction, Entry, State, Tuple, status};
use super::expression::{NatKind, Verdict};
use super::fact::Fact;
use super::hash;
use super::machine::{Result, Run, Tracking};
use super::packet::{ICMP, ICMPV6, Protocol, UnknownBytes, octets};
use super::path::Decision;
use super::state::Hook;

/// `NF_NAT_RANGE_*`
pub(super) mod flag {
    pub const RANDOM: u32 = 1 << 2;
    pub const PERSISTENT: u32 = 1 << 3;
    pub const RANDOM_FULLY: u32 = 1 << 4;
    pub const OFFSET: u32 = 1 << 5;
    pub const NETMAP: u32 = 1 << 6;
}

/// So few ports to choose from are followed one by one; of more, the port is unknown.
const FOLLOWED_PORTS: u32 = 16;

/// `struct nf_nat_range2`
pub(super) struct Request {
    pub kind: NatKind,
    pub addresses: Option<(IpAddr, IpAddr)>,
    pub ports: Option<(u16, u16)>,
    /// The first port of the range that a rule with an offset started from.
    pub base_port: u16,
    pub flags: u32,
}

impl Request {
    /// From the registers that a rule names: `nft_nat_eval`.
    pub(super) fn from_registers(
        run: &Run<'_>,
        kind: NatKind,
        address: [Option<u32>; 2],
        port: [Option<u32>; 2],
        flags: u32,
    ) -> Result<Self> {
        let addresses = match address[0] {
            None => None,
            Some(first) => {
                let first = load_address(run, first)?;
                let last = address[1].map_or(Ok(first), |last| load_address(run, last))?;
                Some(if flags & flag::NETMAP == 0 { (first, last) } else { mapped(run, kind, first, last) })
            }
        };
        Ok(Self { kind, addresses, ports: load_ports(run, port)?, base_port: 0, flags })
    }
}

pub(super) fn load_ports(run: &Run<'_>, port: [Option<u32>; 2]) -> Result<Option<(u16, u16)>> {
    let load = |register| match run.load_port(register) {
        Fact::Known(port) => Ok(port),
        Fact::Unknown(why) => Err(run.unknown(format!("the port to translate to is not known: {why}"))),
    };
    let Some(first) = port[0] else { return Ok(None) };
    let first = load(first)?;
    Ok(Some((first, port[1].map_or(Ok(first), load)?)))
}

fn load_address(run: &Run<'_>, register: u32) -> Result<IpAddr> {
    let bytes = if run.packet.protocol == Protocol::Ipv4 { 4 } else { 16 };
    match run.registers.load(register, bytes).known() {
        Ok(bytes) => match (<[u8; 4]>::try_from(bytes), <[u8; 16]>::try_from(bytes)) {
            (Ok(address), _) => Ok(Ipv4Addr::from(address).into()),
            (_, Ok(address)) => Ok(Ipv6Addr::from(address).into()),
            _ => Err(run.unknown("the address to translate to is in no register")),
        },
        Err(reason) => Err(run.unknown(format!("the address to translate to is not known: {}", run.words(reason)))),
    }
}

/// `nft_nat_setup_netmap`: the network of the range with the host part of the packet's address.
fn mapped(run: &Run<'_>, kind: NatKind, first: IpAddr, last: IpAddr) -> (IpAddr, IpAddr) {
    let own = if kind == NatKind::Source { run.packet.source() } else { run.packet.destination() };
    let (first, last, own) = (octets(first), octets(last), octets(own));
    let mixed: Vec<u8> = first
        .iter()
        .zip(&last)
        .zip(&own)
        .map(|((first, last), own)| (first & !(first ^ last)) | (own & (first ^ last)))
        .collect();
    let address = from_octets(&mixed);
    (address, address)
}

/// Four octets are IPv4; anything but sixteen others is cut or filled up, which does not happen.
fn from_octets(octets: &[u8]) -> IpAddr {
    if let Ok(octets) = <[u8; 4]>::try_from(octets) {
        return Ipv4Addr::from(octets).into();
    }
    let mut all = [0; 16];
    for (to, from) in all.iter_mut().zip(octets) {
        *to = *from;
    }
    Ipv6Addr::from(all).into()
}

impl Run<'_> {
    /// `nf_nat_setup_info`
    pub(super) fn translate(&mut self, request: Request) -> Result<Verdict> {
        let Tracking::Tracked(tracked) = &self.tracking else {
            return Err(self.unknown("a rule translates addresses of a packet that is not tracked"));
        };
        let done = match request.kind {
            NatKind::Source => status::SOURCE_NAT_DONE,
            NatKind::Destination => status::DESTINATION_NAT_DONE,
        };
        if tracked.entry.status & status::CONFIRMED != 0 {
            return Ok(Verdict::Accept);
        }
        if tracked.entry.status & done != 0 {
            return Ok(Verdict::Drop);
        }
        let current = tracked.entry.reply.inverted();
        let zone = tracked.entry.zone;
        let (new, unknown_port) = self.unique(&current, &request, zone);
        if let Tracking::Tracked(tracked) = &mut self.tracking {
            if new != current || unknown_port {
                tracked.entry.reply = new.inverted();
                tracked.entry.status |= match request.kind {
                    NatKind::Source => status::SOURCE_NAT,
                    NatKind::Destination => status::DESTINATION_NAT,
                };
            }
            match request.kind {
                NatKind::Source => tracked.unknown_ports.source = unknown_port,
                NatKind::Destination => tracked.unknown_ports.destination = unknown_port,
            }
            tracked.entry.status |= done;
        }
        Ok(Verdict::Accept)
    }

    /// `netmap_tg4`, `netmap_tg6`: a network for a network.
    pub(super) fn map_network(&mut self, (first, last): (IpAddr, IpAddr)) -> Result<Verdict> {
        let is_destination = matches!(self.hook, Hook::Prerouting | Hook::Output);
        let kind = if is_destination { NatKind::Destination } else { NatKind::Source };
        let addresses = Some(mapped(self, kind, first, last));
        self.translate(Request { kind, addresses, ports: None, base_port: 0, flags: 0 })
    }

    /// `get_unique_tuple`, with no other connection in the way. The second is true when its port cannot be foreseen.
    fn unique(&mut self, current: &Tuple, request: &Request, zone: u16) -> (Tuple, bool) {
        let source = request.kind == NatKind::Source;
        let random = request.flags & (flag::RANDOM | flag::RANDOM_FULLY) != 0;
        let port_of = |tuple: &Tuple| match tuple.protocol {
            // The identifier is the same in both directions.
            ICMP | ICMPV6 => tuple.source_port,
            _ if source => tuple.source_port,
            _ => tuple.destination_port,
        };
        let port_fits = |tuple: &Tuple| {
            request
                .ports
                .is_none_or(|(first, last)| !has_ports(tuple.protocol) || (first..=last).contains(&port_of(tuple)))
        };
        if let Some((first, last)) = request.ports
            && source
            && has_ports(current.protocol)
            && u32::from(first.abs_diff(last)) < FOLLOWED_PORTS
        {
            self.add_gap(format!(
                "whether other connections leave one of the ports {first}-{last} free is not evaluated: without one the packet is \
                 dropped"
            ));
        }
        if source && !random {
            let address_fits =
                request.addresses.is_none_or(|(first, last)| first <= current.source && current.source <= last);
            if address_fits && port_fits(current) {
                return (current.clone(), false);
            }
        }
        let mut new = current.clone();
        if let Some((first, last)) = request.addresses {
            let chosen = if first == last { first } else { spread(current, (first, last), request, zone) };
            *if source { &mut new.source } else { &mut new.destination } = chosen;
        }
        let offset = request.flags & flag::OFFSET != 0;
        let keeps_port = !random && !(request.ports.is_some() && (offset || !port_fits(&new)));
        if keeps_port || !has_ports(new.protocol) {
            return (new, false);
        }
        let is_icmp = matches!(new.protocol, ICMP | ICMPV6);
        let old = port_of(&new);
        let (first, last) = match request.ports {
            Some((first, last)) => (first.min(last), first.max(last)),
            None if is_icmp => (0, u16::MAX),
            // The destination's port is kept.
            None if !source => return (new, false),
            None if old < 512 => (1, 511),
            None if old < 1024 => (600, 1023),
            None => (1024, u16::MAX),
        };
        let count = u32::from(last) - u32::from(first) + 1;
        let (step, unknown) = if offset {
            (u32::from(old.wrapping_sub(request.base_port)) % count, false)
        } else if count <= FOLLOWED_PORTS {
            (self.draw(&format!("port {first}-{last}"), count), false)
        } else {
            (0, true)
        };
        let port = first.wrapping_add(u16::try_from(step).unwrap_or(0));
        *if source || is_icmp { &mut new.source_port } else { &mut new.destination_port } = port;
        (new, unknown)
    }

    /// `nf_nat_packet`: changes the packet as its connection says.
    pub(super) fn apply_translation(&mut self, kind: NatKind) {
        let Tracking::Tracked(tracked) = &self.tracking else { return };
        let entry = &tracked.entry;
        let reply = entry.direction == Direction::Reply;
        let bit = match (kind, reply) {
            (NatKind::Source, false) | (NatKind::Destination, true) => status::SOURCE_NAT,
            (NatKind::Destination, false) | (NatKind::Source, true) => status::DESTINATION_NAT,
        };
        if entry.status & bit == 0 {
            return;
        }
        let target = if reply { entry.original.inverted() } else { entry.reply.inverted() };
        // Of an error message only the outer addresses are followed.
        let with_ports = tracked.state != State::Related;
        let unknown_port = match kind {
            NatKind::Source => tracked.unknown_ports.source,
            NatKind::Destination => tracked.unknown_ports.destination,
        };
        let Some(from) = Tuple::of(&self.packet) else { return };
        let ipv4 = self.packet.protocol == Protocol::Ipv4;
        let source = kind == NatKind::Source;
        let (offset, address) = match (source, ipv4) {
            (true, true) => (12, target.source),
            (false, true) => (16, target.destination),
            (true, false) => (8, target.source),
            (false, false) => (24, target.destination),
        };
        self.packet.write(offset, &octets(address));
        if let (true, Some(transport)) = (with_ports && has_ports(target.protocol), self.packet.transport()) {
            let (at, port) = match (target.protocol, source) {
                (ICMP | ICMPV6, _) => (4, target.source_port),
                (_, true) => (0, target.source_port),
                (_, false) => (2, target.destination_port),
            };
            self.packet.write(transport.offset + at, &port.to_be_bytes());
            if unknown_port {
                let why = "the port that address translation chose".into();
                self.packet.unknown.push(UnknownBytes { offset: transport.offset + at, bytes: 2, why });
            }
        }
        if let Some(to) = Tuple::of(&self.packet)
            && to != from
        {
            self.decisions.push(Decision::Translated { hook: self.hook, from, to });
        }
    }
}

/// Protocols of which translation knows ports or identifiers.
fn has_ports(protocol: u8) -> bool {
    matches!(protocol, ICMP | ICMPV6 | 6 | 17 | 33 | 132 | 136)
}

/// `find_best_ips_proto`: one address of the range, by a hash of the packet's addresses.
fn spread(tuple: &Tuple, (first, last): (IpAddr, IpAddr), request: &Request, zone: u16) -> IpAddr {
    let words = |address: IpAddr| -> Vec<u32> {
        octets(address).chunks_exact(4).map(|word| u32::from_be_bytes([word[0], word[1], word[2], word[3]])).collect()
    };
    // As they stand in memory, in the machine's byte order.
    let raw = |address: IpAddr| -> Vec<u32> { words(address).into_iter().map(u32::to_be).collect() };
    let mut source = raw(tuple.source);
    source.resize(4, 0);
    let destination = raw(tuple.destination);
    let persistent = request.flags & flag::PERSISTENT != 0;
    let seed = if persistent { 0 } else { destination.last().copied().unwrap_or(0) ^ u32::from(zone) };
    let mut hashed = hash::jhash2(&source, seed);
    let (first, last) = (words(first), words(last));
    let mut full_range = false;
    let mut chosen = Vec::new();
    for (at, (low, high)) in first.iter().zip(&last).enumerate() {
        let (start, count) = if full_range { (0, u32::MAX) } else { (*low, high.wrapping_sub(*low).wrapping_add(1)) };
        let word = start.wrapping_add(hash::scale(hashed, count));
        full_range |= word != *high;
        chosen.extend(word.to_be_bytes());
        if !persistent {
            hashed ^= destination.get(at).copied().unwrap_or(0);
        }
    }
    from_octets(&chosen)
}

/// A connection that begins with this packet.
pub(super) fn new_entry(original: Tuple, zone: u16) -> Entry {
    let reply = original.inverted();
    let masqueraded = Fact::Known(None);
    Entry { direction: Direction::Original, status: 0, mark: 0, zone, original, reply, masqueraded }
}
