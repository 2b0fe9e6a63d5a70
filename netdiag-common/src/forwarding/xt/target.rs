//! Targets: verdicts, translations and marks.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::Blob;
use super::change::masked;
use crate::forwarding::expression::{NatKind, Queues, Verdict};
use crate::forwarding::fact::Fact;
use crate::forwarding::machine::{Result, Run, Tracking};
use crate::forwarding::nat::Request;
use crate::forwarding::packet::Protocol;
use crate::forwarding::path::Reject;

/// `NF_NAT_RANGE_MAP_IPS`, `NF_NAT_RANGE_PROTO_SPECIFIED`
const MAP_ADDRESSES: u32 = 1;
const PORTS_GIVEN: u32 = 2;

/// `nfqueue_tg` and its later revisions: which queues, and whether a packet goes on that nobody takes from them.
fn queue_target(revision: u32, blob: Blob<'_>) -> Option<(Queues, bool)> {
    const BYPASS: u16 = 1;
    const BY_PROCESSOR: u16 = 2;
    let first = blob.u16(0)?;
    let total = if revision == 0 { 1 } else { blob.u16(2)? };
    let flags = match revision {
        0 | 1 => 0,
        // Of revision 2 it is a truth value.
        2 | 3 => blob.u16(4)?,
        _ => return None,
    };
    Some((Queues::Range { first, total, by_processor: flags & BY_PROCESSOR != 0 }, flags & BYPASS != 0))
}

/// A range of addresses and ports as targets carry it.
struct Range {
    flags: u32,
    addresses: (IpAddr, IpAddr),
    ports: (u16, u16),
    base_port: u16,
}

impl Run<'_> {
    pub(in crate::forwarding) fn xt_target(&mut self, name: &str, revision: u32, info: &[u8]) -> Result<Verdict> {
        let blob = Blob(info);
        let decided = match name {
            "DNAT" | "SNAT" => match self.range_of(revision, blob) {
                Some(range) => {
                    let kind = if name == "SNAT" { NatKind::Source } else { NatKind::Destination };
                    Some(self.translate(Request {
                        kind,
                        addresses: (range.flags & MAP_ADDRESSES != 0).then_some(range.addresses),
                        ports: (range.flags & PORTS_GIVEN != 0).then_some(range.ports),
                        base_port: range.base_port,
                        flags: range.flags,
                    })?)
                }
                None => None,
            },
            "MASQUERADE" | "REDIRECT" => match self.range_of(revision, blob) {
                Some(range) => {
                    let ports = (range.flags & PORTS_GIVEN != 0).then_some(range.ports);
                    Some(if name == "REDIRECT" {
                        self.redirect_to(ports, range.flags)?
                    } else {
                        self.masquerade_to(ports, range.flags)?
                    })
                }
                None => None,
            },
            "REJECT" => blob.u32(0).and_then(|how| self.reject_target(how)),
            "MARK" => self.mark_target(revision, blob),
            "CONNMARK" => self.connmark_target(revision, blob),
            "CT" => self.ct_target(blob),
            "NOTRACK" => Some(self.notrack()),
            "NETMAP" => match self.range_of(revision, blob) {
                Some(range) => Some(self.map_network(range.addresses)?),
                None => None,
            },
            "NFQUEUE" => match queue_target(revision, blob) {
                Some((queues, bypass)) => Some(self.queue(queues, bypass)?),
                None => None,
            },
            "TPROXY" => self.tproxy_target(revision, blob)?,
            "TTL" | "HL" => self.hops_target(blob),
            "DSCP" => self.dscp_target(blob),
            "TOS" => self.tos_target(revision, blob),
            "CLASSIFY" => self.classify_target(blob),
            "TCPMSS" => self.segment_target(blob),
            "SYNPROXY" => Some(self.synproxy_target()),
            // The name of a chain, where rules run into it (`ipt_error`).
            "ERROR" => Some(Verdict::Drop),
            // These change nothing that is read here.
            "LOG" | "NFLOG" | "TRACE" | "CHECKSUM" | "TEE" | "AUDIT" | "SET" | "IDLETIMER" | "LED" | "RATEEST"
            | "SECMARK" | "CONNSECMARK" => Some(Verdict::Continue),
            _ => None,
        };
        decided.ok_or_else(|| self.unknown(format!("target {name}, revision {revision}, is not evaluated")))
    }

    fn range_of(&self, revision: u32, blob: Blob<'_>) -> Option<Range> {
        // The first revision of IPv4 targets has one range behind a count; IPv6 targets began with the later structure.
        let old = self.packet.protocol == Protocol::Ipv4 && revision == 0;
        if old {
            let address = |at| Some(IpAddr::from(Ipv4Addr::from(blob.array::<4>(at)?)));
            return Some(Range {
                flags: blob.u32(4)?,
                addresses: (address(8)?, address(12)?),
                ports: (blob.port(16)?, blob.port(18)?),
                base_port: 0,
            });
        }
        let address = |at| {
            let bytes = blob.array::<16>(at)?;
            Some(match self.packet.protocol {
                Protocol::Ipv4 => IpAddr::from(Ipv4Addr::new(bytes[0], bytes[1], bytes[2], bytes[3])),
                Protocol::Ipv6 => IpAddr::from(Ipv6Addr::from(bytes)),
            })
        };
        Some(Range {
            flags: blob.u32(0)?,
            addresses: (address(4)?, address(20)?),
            ports: (blob.port(36)?, blob.port(38)?),
            base_port: if revision >= 2 { blob.port(40)? } else { 0 },
        })
    }

    /// `enum ipt_reject_with`, `enum ip6t_reject_with`
    fn reject_target(&mut self, how: u32) -> Option<Verdict> {
        let unreachable = |kind, code| Reject::Unreachable { kind, code };
        self.rejected = Some(match (self.packet.protocol, how) {
            (Protocol::Ipv4, 7) | (Protocol::Ipv6, 6) => Reject::TcpReset,
            // Codes of the network, host, protocol and port being unreachable, or prohibited.
            (Protocol::Ipv4, code @ 0..=3) => unreachable(3, u8::try_from(code).ok()?),
            (Protocol::Ipv4, 5) => unreachable(3, 9),
            (Protocol::Ipv4, 6) => unreachable(3, 10),
            (Protocol::Ipv4, 8) => unreachable(3, 13),
            (Protocol::Ipv6, code @ 0..=4) => unreachable(1, u8::try_from(code).ok()?),
            (Protocol::Ipv6, 7) => unreachable(1, 5),
            (Protocol::Ipv6, 8) => unreachable(1, 6),
            _ => return None,
        });
        Some(Verdict::Drop)
    }

    /// `mark_tg`
    fn mark_target(&mut self, revision: u32, blob: Blob<'_>) -> Option<Verdict> {
        if revision < 2 {
            return None;
        }
        let (value, mask) = (blob.u32(0)?, blob.u32(4)?);
        self.packet.mark = masked(&self.packet.mark, mask, value);
        Some(Verdict::Continue)
    }

    /// `connmark_tg`: sets, saves or restores; revision 2 also shifts.
    fn connmark_target(&mut self, revision: u32, blob: Blob<'_>) -> Option<Verdict> {
        let (value, mask, packet_mask) = (blob.u32(0)?, blob.u32(4)?, blob.u32(8)?);
        let (mode, right, bits) = match revision {
            1 => (blob.byte(12)?, false, 0),
            2 => (blob.byte(14)?, blob.byte(12)? != 0, u32::from(blob.byte(13)?)),
            _ => return None,
        };
        let shifted = |mark: u32| {
            let moved = if right { mark.checked_shr(bits) } else { mark.checked_shl(bits) };
            moved.unwrap_or(0)
        };
        let Tracking::Tracked(tracked) = &mut self.tracking else { return Some(Verdict::Continue) };
        let connection = tracked.entry.mark;
        match (mode, &self.packet.mark) {
            (0, _) => tracked.entry.mark = shifted((connection & !mask) ^ value),
            (1, Fact::Known(mark)) => tracked.entry.mark = (connection & !mask) ^ shifted(mark & packet_mask),
            (2, Fact::Known(mark)) => {
                self.packet.mark = Fact::Known((mark & !packet_mask) ^ shifted(connection & mask));
            }
            _ => return None,
        }
        Some(Verdict::Continue)
    }

    /// `xt_ct_target`: keeps the packet from being tracked, or gives it a zone.
    fn ct_target(&mut self, blob: Blob<'_>) -> Option<Verdict> {
        const NOTRACK: u16 = 1;
        let (flags, zone) = (blob.u16(0)?, blob.u16(2)?);
        if matches!(self.tracking, Tracking::Unseen | Tracking::Invalid) {
            self.tracking = if flags & NOTRACK != 0 { Tracking::Untracked } else { Tracking::Template { zone } };
        }
        Some(Verdict::Continue)
    }
}
