//! Matches: true, false, or not known.

use std::net::{IpAddr, Ipv6Addr};

use super::header::options;
use super::{Blob, Matched, stateful};
use crate::forwarding::conntrack::{Direction, State};
use crate::forwarding::expression::Verdict;
use crate::forwarding::fact::Fact;
use crate::forwarding::fib::kind;
use crate::forwarding::machine::{Result, Run, Tracking};
use crate::forwarding::packet::{ICMP, ICMPV6, TCP, UDP};

impl Run<'_> {
    pub(in crate::forwarding) fn xt_match(&mut self, name: &str, revision: u32, info: &[u8]) -> Result<Verdict> {
        let blob = Blob(info);
        let matched = match name {
            "comment" => Some(Matched::Yes),
            "conntrack" | "state" => self.conntrack(name, revision, blob),
            "addrtype" => self.addrtype(revision, blob)?,
            "mark" => self.mark(blob),
            "connmark" => self.connmark(blob),
            "statistic" => self.statistic(blob),
            "multiport" => self.multiport(blob),
            "tcp" => self.tcp(blob),
            "udp" | "udplite" => self.udp(blob),
            "icmp" | "icmp6" => self.icmp(name, blob),
            "physdev" => self.physical_devices(blob),
            "pkttype" => self.packet_type(blob),
            "length" => self.length(blob),
            "ttl" | "hl" => self.hops(blob),
            "dscp" => self.dscp(blob),
            "tos" => self.tos(revision, blob),
            "iprange" => self.address_range(revision, blob),
            "mac" => self.hardware_address(blob),
            "tcpmss" => self.largest_segment(blob),
            "u32" => self.words_at(blob),
            "string" => self.pattern(revision, blob),
            "owner" => self.owner(revision, blob),
            "bpf" => self.bpf(revision, blob),
            "set" => self.ip_set(revision, blob)?,
            "rpfilter" => self.reverse_path(blob)?,
            "socket" => self.socket_match(revision, blob)?,
            "recent" => self.recent_match(revision, blob)?,
            "rt" | "srh" | "frag" | "hbh" | "dst" | "ah" | "mh" => self.extension_match(name),
            "ipv6header" => self.headers(blob),
            "eui64" => self.interface_identifier(),
            _ => None,
        };
        let holds = match matched {
            Some(Matched::Yes) => true,
            Some(Matched::No) => false,
            Some(Matched::Drop) => return Ok(Verdict::Drop),
            Some(Matched::Unknown(why)) => self.decide(&why),
            None => self.decide_afresh(&stateful::words(name, revision, blob)),
        };
        Ok(if holds { Verdict::Continue } else { Verdict::Break })
    }

    /// `conntrack_mt`, `state_mt`
    fn conntrack(&self, name: &str, revision: u32, blob: Blob<'_>) -> Option<Matched> {
        const STATE: u16 = 1;
        const PROTOCOL: u16 = 1 << 1;
        const STATUS: u16 = 1 << 6;
        const EXPIRES: u16 = 1 << 7;
        const DIRECTION: u16 = 1 << 12;
        if let Tracking::Unknown(why) = &self.tracking {
            return Some(Matched::Unknown(format!("match {name}, because {why}")));
        }
        let tracked = match &self.tracking {
            Tracking::Tracked(tracked) => Some(tracked),
            _ => None,
        };
        let mut state = match (&self.tracking, tracked) {
            (_, Some(tracked)) => state_bit(tracked.state),
            (Tracking::Untracked, _) => 1 << 8,
            (Tracking::Template { .. }, _) => state_bit(State::New),
            _ => 1,
        };
        if name == "state" {
            return Some(Matched::from(u16::try_from(blob.u32(0)?).ok()? & state != 0));
        }
        let (wanted, inverted) = (blob.u16(146)?, blob.u16(148)?);
        let (state_mask, status_mask) = match revision {
            1 => (u16::from(blob.byte(150)?), u16::from(blob.byte(151)?)),
            _ => (blob.u16(150)?, blob.u16(152)?),
        };
        let differs = |flag: u16, holds: bool| wanted & flag != 0 && holds == (inverted & flag != 0);
        if let Some(tracked) = tracked {
            // Translated source, translated destination.
            state |= if tracked.entry.status & (1 << 4) != 0 { 1 << 6 } else { 0 };
            state |= if tracked.entry.status & (1 << 5) != 0 { 1 << 7 } else { 0 };
        }
        if differs(STATE, state_mask & state != 0) {
            return Some(Matched::No);
        }
        let Some(tracked) = tracked else { return Some(Matched::from(wanted & STATE != 0)) };
        let entry = &tracked.entry;
        if differs(DIRECTION, entry.direction == Direction::Original) {
            return Some(Matched::No);
        }
        let addresses = [
            (1 << 2, 0, entry.original.source),
            (1 << 3, 32, entry.original.destination),
            (1 << 4, 64, entry.reply.source),
            (1 << 5, 96, entry.reply.destination),
        ];
        for (flag, at, address) in addresses {
            if differs(flag, within(blob, at, address)?) {
                return Some(Matched::No);
            }
        }
        if differs(PROTOCOL, u16::from(entry.original.protocol) == blob.u16(136)?) {
            return Some(Matched::No);
        }
        let ports = [
            (1 << 8, 138, 154, entry.original.source_port),
            (1 << 9, 140, 156, entry.original.destination_port),
            (1 << 10, 142, 158, entry.reply.source_port),
            (1 << 11, 144, 160, entry.reply.destination_port),
        ];
        for (flag, low, high, port) in ports {
            let holds = match revision {
                // Ranges, of the host's byte order.
                3 => (blob.u16(low)?..=blob.u16(high)?).contains(&port),
                _ => blob.port(low)? == port,
            };
            if differs(flag, holds) {
                return Some(Matched::No);
            }
        }
        let status = u16::try_from(entry.status & 0xffff).ok()?;
        if differs(STATUS, status_mask & status != 0) {
            return Some(Matched::No);
        }
        if wanted & EXPIRES != 0 {
            return Some(Matched::Unknown("the connection expires within the time of a rule".into()));
        }
        Some(Matched::Yes)
    }

    /// `addrtype_mt_v1`
    fn addrtype(&self, revision: u32, blob: Blob<'_>) -> Result<Option<Matched>> {
        const INVERT_SOURCE: u32 = 1;
        const INVERT_DESTINATION: u32 = 2;
        const LIMIT_INPUT: u32 = 4;
        const LIMIT_OUTPUT: u32 = 8;
        let (Some(source), Some(destination), Some(flags)) = (blob.u16(0), blob.u16(2), blob.u32(4)) else {
            return Ok(None);
        };
        if revision == 0 {
            return Ok(None);
        }
        let interface = if flags & LIMIT_INPUT != 0 {
            self.input
        } else if flags & LIMIT_OUTPUT != 0 {
            self.output
        } else {
            None
        };
        let interface = interface.map(|interface| interface.index);
        let sides = [
            (source, self.packet.source(), flags & INVERT_SOURCE != 0),
            (destination, self.packet.destination(), flags & INVERT_DESTINATION != 0),
        ];
        for (mask, address, inverted) in sides {
            if mask == 0 {
                continue;
            }
            let holds = match address {
                IpAddr::V4(_) => {
                    let bit = 1_u32.checked_shl(self.address_type(address, interface)?).unwrap_or(0);
                    u32::from(mask) & bit != 0
                }
                IpAddr::V6(own) => self.is_of_type(own, mask, interface)?,
            };
            if holds == inverted {
                return Ok(Some(Matched::No));
            }
        }
        Ok(Some(Matched::Yes))
    }

    /// `match_type6`: of IPv6 an address may be of several types, and all that are not routes' have to hold.
    fn is_of_type(&self, address: Ipv6Addr, mask: u16, interface: Option<u32>) -> Result<bool> {
        const UNSPECIFIED: u16 = 1;
        const UNICAST: u16 = 1 << kind::UNICAST;
        const MULTICAST: u16 = 1 << kind::MULTICAST;
        const UNREACHABLE: u16 = 1 << kind::UNREACHABLE;
        const BY_ROUTE: u16 = 1 << kind::LOCAL | 1 << kind::ANYCAST | UNREACHABLE;
        let unicast = !address.is_multicast() && !address.is_unspecified();
        if (mask & MULTICAST != 0 && !address.is_multicast())
            || (mask & UNICAST != 0 && !unicast)
            || (mask & UNSPECIFIED != 0 && !address.is_unspecified())
        {
            return Ok(false);
        }
        if mask & BY_ROUTE == 0 {
            return Ok(true);
        }
        let found = match self.address_type(address.into(), interface)? {
            found @ (kind::LOCAL | kind::ANYCAST) => 1 << found,
            // Also for routes that forbid, or say nothing.
            kind::BLACKHOLE..=kind::PROHIBIT => UNREACHABLE,
            _ => 0,
        };
        Ok(mask & found != 0)
    }

    fn mark(&self, blob: Blob<'_>) -> Option<Matched> {
        let (wanted, mask, inverted) = (blob.u32(0)?, blob.u32(4)?, blob.byte(8)? != 0);
        Some(match &self.packet.mark {
            Fact::Known(mark) => Matched::from((mark & mask == wanted) != inverted),
            Fact::Unknown(why) => Matched::Unknown(format!("mark & {mask:#x} == {wanted:#x}, although {why}")),
        })
    }

    fn connmark(&self, blob: Blob<'_>) -> Option<Matched> {
        let (wanted, mask, inverted) = (blob.u32(0)?, blob.u32(4)?, blob.byte(8)? != 0);
        Some(match &self.tracking {
            Tracking::Tracked(tracked) => Matched::from((tracked.entry.mark & mask == wanted) != inverted),
            Tracking::Unknown(why) => Matched::Unknown(format!("mark of the connection, because {why}")),
            _ => Matched::No,
        })
    }

    /// `statistic_mt`: with a chance, or every so many packets.
    fn statistic(&mut self, blob: Blob<'_>) -> Option<Matched> {
        let (mode, inverted) = (blob.u16(0)?, blob.u16(2)? & 1 != 0);
        let chance = match mode {
            0 => f64::from(blob.u32(4)?) / f64::from(1_u32 << 31),
            // `every` is kept less one.
            _ => 1.0 / (f64::from(blob.u32(4)?) + 1.0),
        };
        let what = format!("statistic with chance {chance:.5}");
        if chance >= 1.0 {
            return Some(Matched::from(!inverted));
        }
        Some(Matched::from(self.draw_with(&what, chance) != inverted))
    }

    /// `multiport_mt`
    fn multiport(&self, blob: Blob<'_>) -> Option<Matched> {
        let Some((source, destination)) = self.packet.ports() else { return Some(self.without_header()) };
        let (side, count, inverted) = (blob.byte(0)?, usize::from(blob.byte(1)?), blob.byte(47)? != 0);
        let hit = |port: u16| match side {
            0 => port == source,
            1 => port == destination,
            _ => port == source || port == destination,
        };
        let in_range = |first: u16, last: u16| {
            let inside = |port: u16| first <= port && port <= last;
            match side {
                0 => inside(source),
                1 => inside(destination),
                _ => inside(source) || inside(destination),
            }
        };
        let mut at = 0;
        while at < count.min(15) {
            let port = blob.u16(2 + 2 * at)?;
            // A flag says that the next one is the end of a range.
            let found = if blob.byte(32 + at)? != 0 {
                at += 1;
                in_range(port, blob.u16(2 + 2 * at)?)
            } else {
                hit(port)
            };
            if found {
                return Some(Matched::from(!inverted));
            }
            at += 1;
        }
        Some(Matched::from(inverted))
    }

    /// `tcp_mt`
    fn tcp(&self, blob: Blob<'_>) -> Option<Matched> {
        let Some(transport) = self.packet.transport().filter(|transport| transport.protocol == TCP) else {
            return Some(Matched::No);
        };
        if transport.fragment != 0 {
            // A fragment at offset 8 could overwrite the flags.
            return Some(if transport.fragment == 1 { Matched::Drop } else { Matched::No });
        }
        let (Some((source, destination)), Some(flags)) =
            (self.packet.ports(), self.packet.bytes.get(transport.offset + 13))
        else {
            return Some(Matched::Drop);
        };
        let (option, mask, compare, inverted) = (blob.byte(8)?, blob.byte(9)?, blob.byte(10)?, blob.byte(11)?);
        let holds = in_ports(blob, 0, source, inverted & 1 != 0)?
            && in_ports(blob, 4, destination, inverted & 2 != 0)?
            && ((flags & mask == compare) != (inverted & 4 != 0));
        if !holds || option == 0 {
            return Some(Matched::from(holds));
        }
        Some(match options(&self.packet) {
            Ok(found) => Matched::from(found.iter().any(|(kind, _, _)| *kind == option) != (inverted & 8 != 0)),
            Err(()) => Matched::Drop,
        })
    }

    fn udp(&self, blob: Blob<'_>) -> Option<Matched> {
        let transport = self.packet.transport().filter(|transport| matches!(transport.protocol, UDP | 136));
        if transport.is_none_or(|transport| transport.fragment != 0) {
            return Some(Matched::No);
        }
        let Some((source, destination)) = self.packet.ports() else { return Some(Matched::Drop) };
        let inverted = blob.byte(8)?;
        let holds = in_ports(blob, 0, source, inverted & 1 != 0)? && in_ports(blob, 4, destination, inverted & 2 != 0)?;
        Some(Matched::from(holds))
    }

    fn icmp(&self, name: &str, blob: Blob<'_>) -> Option<Matched> {
        let protocol = if name == "icmp" { ICMP } else { ICMPV6 };
        let transport = self.packet.transport().filter(|transport| transport.protocol == protocol);
        let Some(transport) = transport.filter(|transport| transport.fragment == 0) else { return Some(Matched::No) };
        let Some([kind, code]) = self.packet.bytes.get(transport.offset..transport.offset + 2) else {
            return Some(Matched::Drop);
        };
        let (wanted, first, last, inverted) = (blob.byte(0)?, blob.byte(1)?, blob.byte(2)?, blob.byte(3)? & 1 != 0);
        // Type 255 of ICMP stands for any; ICMPv6 has no such word.
        let any = protocol == ICMP && wanted == 0xff;
        Some(Matched::from((any || (*kind == wanted && (first..=last).contains(code))) != inverted))
    }

    fn packet_type(&self, blob: Blob<'_>) -> Option<Matched> {
        let (wanted, inverted) = (blob.u32(0)?, blob.u32(4)? != 0);
        Some(match &self.packet.kind {
            Fact::Known(kind) => Matched::from((u32::from(*kind) == wanted) != inverted),
            Fact::Unknown(why) => Matched::Unknown(format!("packet type {wanted}, although {why}")),
        })
    }

    /// A packet too short for the ports that a match wants is dropped; a later fragment just does not match.
    fn without_header(&self) -> Matched {
        match self.packet.transport() {
            Some(transport) if transport.fragment == 0 => Matched::Drop,
            _ => Matched::No,
        }
    }
}

/// `XT_CONNTRACK_STATE_BIT`
fn state_bit(state: State) -> u16 {
    match state {
        State::Established => 1 << 1,
        State::Related => 1 << 2,
        State::New => 1 << 3,
    }
}

/// An address and a mask of 16 bytes each.
fn within(blob: Blob<'_>, at: usize, address: IpAddr) -> Option<bool> {
    let address: Vec<u8> = match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    };
    let (wanted, mask) = (blob.array::<16>(at)?, blob.array::<16>(at + 16)?);
    Some(address.iter().zip(wanted).zip(mask).all(|((byte, wanted), mask)| byte & mask == wanted & mask))
}

fn in_ports(blob: Blob<'_>, at: usize, port: u16, inverted: bool) -> Option<bool> {
    Some((blob.u16(at)?..=blob.u16(at + 2)?).contains(&port) != inverted)
}
