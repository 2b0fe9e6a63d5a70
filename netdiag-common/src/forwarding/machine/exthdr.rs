//! IPv6 extension headers, IPv4 options and TCP options.

use super::Run;
use crate::forwarding::expression::{ExthdrSource, Verdict};
use crate::forwarding::packet::{Packet, Protocol, TCP};

impl Run<'_> {
    /// `nft_exthdr_ipv6_eval`, `nft_exthdr_ipv4_eval`, `nft_exthdr_tcp_eval`
    pub(super) fn exthdr(
        &mut self,
        source: ExthdrSource,
        kind: u8,
        offset: u32,
        bytes: u32,
        presence: bool,
        to: u32,
    ) -> Verdict {
        let start = match source {
            ExthdrSource::Ipv6 => extension_header(&self.packet, kind),
            ExthdrSource::TcpOption => tcp_option(&self.packet, kind, offset.saturating_add(bytes) as usize),
            ExthdrSource::Ipv4Option => ipv4_option(&self.packet, kind),
            ExthdrSource::SctpChunk | ExthdrSource::DccpOption => {
                self.store_unknown(to, bytes as usize, "chunks of SCTP and options of DCCP are not read");
                return Verdict::Continue;
            }
        };
        if presence {
            self.registers.store(to, &[u8::from(start.is_some())]);
            return Verdict::Continue;
        }
        let at = start.map(|start| start + offset as usize);
        match at.and_then(|at| self.packet.bytes.get(at..at + bytes as usize)) {
            Some(value) => {
                self.registers.store(to, value);
                Verdict::Continue
            }
            None => Verdict::Break,
        }
    }

    /// `nft_exthdr_tcp_set_eval`, `nft_exthdr_tcp_strip_eval`: the option itself decides nothing later on that path.
    pub(super) fn write_exthdr(&mut self, kind: u8) -> Verdict {
        match self.packet.transport() {
            Some(transport) if transport.protocol == TCP && tcp_option(&self.packet, kind, 0).is_some() => {
                Verdict::Continue
            }
            _ => Verdict::Break,
        }
    }
}

/// Where the extension header with this number starts, as `ipv6_find_hdr` finds it.
fn extension_header(packet: &Packet, kind: u8) -> Option<usize> {
    if packet.protocol != Protocol::Ipv6 {
        return None;
    }
    let (mut next, mut offset) = (*packet.bytes.get(6)?, 40);
    while next != kind {
        let length = match next {
            0 | 43 | 60 => (usize::from(*packet.bytes.get(offset + 1)?) + 1) * 8,
            51 => (usize::from(*packet.bytes.get(offset + 1)?) + 2) * 4,
            44 => 8,
            _ => return None,
        };
        next = *packet.bytes.get(offset)?;
        offset += length;
    }
    Some(offset)
}

/// Where a TCP option of at least `bytes` bytes starts.
fn tcp_option(packet: &Packet, kind: u8, bytes: usize) -> Option<usize> {
    let transport = packet.transport().filter(|transport| transport.protocol == TCP && transport.fragment == 0)?;
    let header = packet.bytes.get(transport.offset..)?;
    let length = usize::from(header.get(12)? >> 4) * 4;
    let header = header.get(..length)?;
    let mut at = 20;
    // An option needs its length byte as well.
    while at + 1 < length {
        // End of options and padding have no length; a length of zero would not lead on.
        let step = if header[at] <= 1 || header[at + 1] == 0 { 1 } else { usize::from(header[at + 1]) };
        if header[at] == kind {
            return (at + step <= length && bytes <= step).then_some(transport.offset + at);
        }
        at += step;
    }
    None
}

fn ipv4_option(packet: &Packet, kind: u8) -> Option<usize> {
    if packet.protocol != Protocol::Ipv4 {
        return None;
    }
    let end = usize::from(packet.bytes.first()? & 0xf) * 4;
    let mut at = 20;
    while at + 1 < end {
        match (packet.bytes.get(at)?, packet.bytes.get(at + 1)?) {
            (found, _) if *found == kind => return Some(at),
            (0, _) => return None,
            (1, _) => at += 1,
            (_, length) => at += usize::from(*length).max(2),
        }
    }
    None
}
