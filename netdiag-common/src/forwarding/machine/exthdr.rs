//! IPv6 extension headers, IPv4 options and TCP options.

use super::Run;
use crate::forwarding::expression::{ExthdrSource, Verdict};
use crate::forwarding::packet::{Packet, Protocol, TCP, UnknownBytes};

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

    /// `nft_exthdr_tcp_set_eval` (Linux 6.18): without the option the rule goes on.
    pub(super) fn write_tcp_option(&mut self, kind: u8, offset: usize, bytes: usize, from: u32) -> Verdict {
        let Some((start, header)) = tcp_header(&self.packet) else { return Verdict::Break };
        let Some((at, length)) = option_in(header, kind) else { return Verdict::Continue };
        if at + length > header.len() || offset.saturating_add(bytes) > length {
            return Verdict::Break;
        }
        let at = start + at + offset;
        let held = self.packet.bytes.get(at..at + bytes).unwrap_or_default().to_vec();
        let was_known =
            !self.packet.unknown.iter().any(|part| part.offset < at + bytes && part.offset + part.bytes > at);
        let loaded = self.registers.load(from, bytes);
        let value = loaded.bytes.to_vec();
        let unknown = loaded.known().err();
        if kind == LARGEST_SEGMENT && bytes == 2 && (!was_known || (unknown.is_none() && held <= value)) {
            // It is never made larger.
            return Verdict::Continue;
        }
        self.packet.write(at, &value);
        if let Some(reason) = unknown {
            let why = self.words(reason).to_string();
            self.packet.unknown.push(UnknownBytes { offset: at, bytes, why });
        }
        Verdict::Continue
    }

    /// `nft_exthdr_tcp_strip_eval` (Linux 6.18): what is removed becomes options that do nothing.
    pub(super) fn remove_tcp_option(&mut self, kind: u8) -> Verdict {
        /// `TCPOPT_NOP`
        const NOTHING: u8 = 1;
        let Some((start, header)) = tcp_header(&self.packet) else { return Verdict::Break };
        let Some((at, length)) = option_in(header, kind) else { return Verdict::Continue };
        if at + length > header.len() {
            return Verdict::Drop;
        }
        self.packet.write(start + at, &vec![NOTHING; length]);
        Verdict::Continue
    }
}

/// `TCPOPT_MSS`
const LARGEST_SEGMENT: u8 = 2;

/// Where the extension header with this number starts, as `ipv6_find_hdr` finds it.
pub(in crate::forwarding) fn extension_header(packet: &Packet, kind: u8) -> Option<usize> {
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
    let (start, header) = tcp_header(packet)?;
    let (at, length) = option_in(header, kind)?;
    (at + length <= header.len() && bytes <= length).then_some(start + at)
}

/// Where the header of TCP starts, and the header with its options (`nft_tcp_header_pointer`).
fn tcp_header(packet: &Packet) -> Option<(usize, &[u8])> {
    const LEAST: usize = 20;
    let transport = packet.transport().filter(|transport| transport.protocol == TCP && transport.fragment == 0)?;
    let header = packet.bytes.get(transport.offset..)?;
    let length = usize::from(header.get(12)? >> 4) * 4;
    Some((transport.offset, header.get(..length).filter(|header| header.len() >= LEAST)?))
}

/// Where the first option of this kind starts in a header, and its length, which may reach behind the header's end.
fn option_in(header: &[u8], kind: u8) -> Option<(usize, usize)> {
    let mut at = 20;
    // An option needs its length byte as well.
    while at + 1 < header.len() {
        // End of options and padding have no length; a length of zero would not lead on.
        let step = if header[at] <= 1 || header[at + 1] == 0 { 1 } else { usize::from(header[at + 1]) };
        if header[at] == kind {
            return Some((at, step));
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
