//! Membership in ipsets (`xt_set.c`, `net/netfilter/ipset`, Linux 6.18): which part of the packet is looked up is told by
//! the set's type, such as `hash:ip,port`, and the kernel is asked whether the set has it.

use super::{Blob, Matched};
use crate::forwarding::fact::Fact;
use crate::forwarding::ipset::{IpSetPart, IpSetQuery};
use crate::forwarding::machine::{Result, Run};
use crate::forwarding::packet::{ICMP, ICMPV6, Packet, Protocol};

/// `IPSET_INV_MATCH`, `IPSET_RETURN_NOMATCH`
const INVERTED: u8 = 1;
const RETURN_NO_MATCH: u8 = 1 << 7;

/// What the packet has for one dimension of a set.
enum Found {
    Part(IpSetPart),
    /// The packet has no such thing, and is in no such set.
    Nothing,
    Unknown(String),
}

impl Run<'_> {
    /// `set_match_v1` and later revisions, `ip_set_test`.
    pub(super) fn ip_set(&mut self, revision: u32, blob: Blob<'_>) -> Result<Option<Matched>> {
        let (Some(index), Some(dimensions), Some(flags)) = (blob.u16(0), blob.byte(2), blob.byte(3)) else {
            return Ok(None);
        };
        if !(1..=4).contains(&revision) || flags & RETURN_NO_MATCH != 0 || asks_for_counters(revision, blob) {
            return Ok(None);
        }
        let Some(set) = self.state.ip_set(index)? else {
            return Ok(Some(Matched::Unknown(format!("ipset number {index} has the packet, but it is not there"))));
        };
        let outcome = |holds: bool| Ok(Some(Matched::from(holds != (flags & INVERTED != 0))));
        let (_, parts) = set.kind.split_once(':').unwrap_or_default();
        let parts: Vec<&str> = parts.split(',').collect();
        let other_family = set.protocol.is_some_and(|protocol| protocol != self.packet.protocol);
        if parts.len() > usize::from(dimensions) || other_family {
            return outcome(false);
        }
        let mut query = IpSetQuery { set: set.name.clone(), parts: Vec::new() };
        for (at, part) in parts.iter().enumerate() {
            let is_source = flags >> (at + 1) & 1 != 0;
            match self.part(part, is_source, &set.kind) {
                Found::Part(part) => query.parts.push(part),
                Found::Nothing => return outcome(false),
                Found::Unknown(why) => {
                    return Ok(Some(Matched::Unknown(format!("ipset {} has the packet, although {why}", set.name))));
                }
            }
        }
        match self.state.ip_set_element(&query)? {
            Some(holds) => outcome(holds),
            None => Ok(Some(Matched::Unknown(format!("ipset {} has the packet", set.name)))),
        }
    }

    /// What the `kadt` function of a set's type takes from the packet.
    fn part(&self, part: &str, is_source: bool, kind: &str) -> Found {
        match part {
            "ip" | "net" => {
                let address = if is_source { self.packet.source() } else { self.packet.destination() };
                Found::Part(IpSetPart::Address(address))
            }
            "port" => port(&self.packet, is_source, kind == "bitmap:port"),
            "iface" => match if is_source { self.input } else { self.output } {
                Some(interface) => Found::Part(IpSetPart::Interface(interface.name.clone())),
                None => Found::Nothing,
            },
            "mark" => match &self.packet.mark {
                Fact::Known(mark) => Found::Part(IpSetPart::Mark(*mark)),
                Fact::Unknown(why) => Found::Unknown(why.clone()),
            },
            "mac" => {
                let at = if is_source { 6 } else { 0 };
                match Blob(&self.packet.link).array(at) {
                    Some(address) => Found::Part(IpSetPart::Hardware(address)),
                    None => Found::Unknown("its Ethernet header is not known".into()),
                }
            }
            part => Found::Unknown(format!("sets of {part} are not evaluated")),
        }
    }
}

/// Whether how often an element matched decides as well (`--packets-eq` and others): revisions 3 and 4 keep an operator and
/// a number for packets and for bytes, in other places.
fn asks_for_counters(revision: u32, blob: Blob<'_>) -> bool {
    const RETURN_NO_MATCH: u32 = 1 << 7;
    let operators = match revision {
        3 => [8, 24],
        4 => [16, 32],
        _ => return false,
    };
    let asks = |at: usize| blob.byte(at).is_some_and(|operator| operator != 0);
    operators.into_iter().any(asks) || blob.u32(40).is_some_and(|flags| flags & RETURN_NO_MATCH != 0)
}

/// `ip_set_get_ip4_port`, `ip_set_get_ip6_port`, `ip_set_get_ip_port`: ICMP has its type and code in place of a port,
/// protocols without ports have 0.
fn port(packet: &Packet, is_source: bool, only_ports: bool) -> Found {
    let Some(transport) = packet.transport() else { return Found::Nothing };
    let is_icmp = match packet.protocol {
        Protocol::Ipv4 => transport.protocol == ICMP,
        Protocol::Ipv6 => transport.protocol == ICMPV6,
    };
    let has_ports = matches!(transport.protocol, 6 | 17 | 132 | 136);
    if only_ports && !matches!(transport.protocol, 6 | 17) {
        return Found::Nothing;
    }
    let number = if has_ports || is_icmp {
        if transport.fragment != 0 {
            return Found::Nothing;
        }
        let at = if is_source || is_icmp { 0 } else { 2 };
        match packet.number(transport.offset + at) {
            Some(number) => number,
            None => return Found::Nothing,
        }
    } else {
        0
    };
    let protocol = (!only_ports).then_some(transport.protocol);
    Found::Part(IpSetPart::Port { protocol, number })
}
