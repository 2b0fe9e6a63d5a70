//! Targets that change a packet's header, or what the kernel keeps beside it.

use std::net::IpAddr;

use super::Blob;
use super::header::segment_option;
use crate::forwarding::expression::Verdict;
use crate::forwarding::fact::Fact;
use crate::forwarding::machine::{Result, Run};
use crate::forwarding::packet::{Packet, Protocol, TCP, UnknownBytes};

/// How a target gives the largest segment that is read from the route (`XT_TCPMSS_CLAMP_PMTU`).
const BY_ROUTE: u16 = 0xffff;

impl Run<'_> {
    /// `ttl_tg`, `hl_tg6`
    pub(super) fn hops_target(&mut self, blob: Blob<'_>) -> Option<Verdict> {
        let (mode, by, own) = (blob.byte(0)?, blob.byte(1)?, self.packet.hops_left());
        let hops = match mode {
            0 => by,
            1 => own.saturating_add(by),
            2 => own.saturating_sub(by),
            _ => return None,
        };
        let at = if self.packet.protocol == Protocol::Ipv4 { 8 } else { 7 };
        self.packet.write(at, &[hops]);
        Some(Verdict::Continue)
    }

    /// `dscp_tg`, `dscp_tg6`: leaves the bits of congestion alone.
    pub(super) fn dscp_target(&mut self, blob: Blob<'_>) -> Option<Verdict> {
        let value = blob.byte(0)?;
        let service = (self.packet.service() & 3) | (value << 2);
        set_service(&mut self.packet, service);
        Some(Verdict::Continue)
    }

    /// `tos_tg`, `tos_tg6`
    pub(super) fn tos_target(&mut self, revision: u32, blob: Blob<'_>) -> Option<Verdict> {
        let (value, mask) = (blob.byte(0)?, blob.byte(1).filter(|_| revision == 1)?);
        let service = (self.packet.service() & !mask) ^ value;
        set_service(&mut self.packet, service);
        Some(Verdict::Continue)
    }

    /// `classify_tg`
    pub(super) fn classify_target(&mut self, blob: Blob<'_>) -> Option<Verdict> {
        self.packet.priority = Fact::Known(blob.u32(0)?);
        Some(Verdict::Continue)
    }

    /// `tcpmss_tg4`, `tcpmss_tg6`: makes the largest segment smaller, or adds one.
    pub(super) fn segment_target(&mut self, blob: Blob<'_>) -> Option<Verdict> {
        let wanted = blob.u16(0)?;
        if self.packet.transport().is_some_and(|transport| transport.fragment != 0) {
            return Some(Verdict::Continue);
        }
        let Ok(option) = segment_option(&self.packet) else { return Some(Verdict::Drop) };
        let Some(at) = option else {
            self.add_segment_option(wanted);
            return Some(Verdict::Continue);
        };
        if wanted == BY_ROUTE {
            self.unknown_segment(at);
        } else if self.packet.number(at)? > wanted {
            self.packet.write(at, &wanted.to_be_bytes());
        }
        Some(Verdict::Continue)
    }

    fn unknown_segment(&mut self, offset: usize) {
        let why = "the largest segment, as the route's MTU makes it".into();
        self.packet.unknown.push(UnknownBytes { offset, bytes: 2, why });
    }

    /// Before all other options, in a packet without payload whose header has room (`tcpmss_mangle_packet`).
    fn add_segment_option(&mut self, wanted: u16) {
        const HEADER_BYTES: usize = 20;
        const MOST_HEADER_BYTES: usize = 60;
        let ipv4 = self.packet.protocol == Protocol::Ipv4;
        let Some(transport) = self.packet.transport().filter(|transport| transport.protocol == TCP) else { return };
        let at = transport.offset;
        let Some(words) = self.packet.bytes.get(at + 12).map(|byte| byte >> 4) else { return };
        let header = usize::from(words) * 4;
        let whole = usize::try_from(self.packet.length).unwrap_or(usize::MAX);
        if whole > at + header || header >= MOST_HEADER_BYTES || self.packet.bytes.len() < whole {
            return;
        }
        // What hosts take without the option (RFC 9293, section 3.7.1).
        let segment = wanted.min(if ipv4 { 536 } else { 1220 });
        let [high, low] = segment.to_be_bytes();
        let place = at + HEADER_BYTES;
        self.packet.bytes.splice(place..place, [2, 4, high, low]);
        self.packet.length += 4;
        if wanted == BY_ROUTE {
            self.unknown_segment(place + 2);
        }
        let first = self.packet.bytes.get(at + 12).copied().unwrap_or(0);
        self.packet.write(at + 12, &[first.wrapping_add(0x10)]);
        let length = if ipv4 { 2 } else { 4 };
        let said = self.packet.number(length).unwrap_or(0).wrapping_add(4);
        self.packet.write(length, &said.to_be_bytes());
    }

    /// `tproxy_tg4_v0`, `tproxy_tg4_v1`, `tproxy_tg6_v1`: a proxy's socket is given the packet, which is then routed by
    /// its new mark; without such a socket the packet is dropped.
    pub(super) fn tproxy_target(&mut self, revision: u32, blob: Blob<'_>) -> Result<Option<Verdict>> {
        let Some((mask, value, address, port)) = proxy(self.packet.protocol, revision, blob) else { return Ok(None) };
        if !self.give_to_proxy(Some(address), Some(port))? {
            return Ok(Some(Verdict::Drop));
        }
        self.packet.mark = masked(&self.packet.mark, mask, value);
        Ok(Some(Verdict::Accept))
    }
}

/// `struct xt_tproxy_target_info`, `struct xt_tproxy_target_info_v1`: mask and value of the mark, address and port.
fn proxy(protocol: Protocol, revision: u32, blob: Blob<'_>) -> Option<(u32, u32, IpAddr, u16)> {
    let address = match protocol {
        Protocol::Ipv4 => IpAddr::from(blob.array::<4>(8)?),
        Protocol::Ipv6 => IpAddr::from(blob.array::<16>(8)?),
    };
    let port = match revision {
        0 => 12,
        1 => 24,
        _ => return None,
    };
    Some((blob.u32(0)?, blob.u32(4)?, address, blob.port(port)?))
}

/// A mark of which `mask` is replaced.
pub(super) fn masked(mark: &Fact<u32>, mask: u32, value: u32) -> Fact<u32> {
    match mark {
        Fact::Known(mark) => Fact::Known((mark & !mask) ^ value),
        Fact::Unknown(_) if mask == u32::MAX => Fact::Known(value),
        unknown @ Fact::Unknown(_) => unknown.clone(),
    }
}

fn set_service(packet: &mut Packet, service: u8) {
    match packet.protocol {
        Protocol::Ipv4 => packet.write(1, &[service]),
        Protocol::Ipv6 => {
            let first = packet.number(0).unwrap_or(0) & 0xf00f;
            packet.write(0, &(first | u16::from(service) << 4).to_be_bytes());
        }
    }
}
