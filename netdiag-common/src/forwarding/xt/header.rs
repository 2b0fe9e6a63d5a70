//! Matches that look at headers and bytes of the packet.

use std::net::IpAddr;

use super::{Blob, Matched};
use crate::forwarding::machine::Run;
use crate::forwarding::packet::{Packet, Protocol, TCP};

impl Run<'_> {
    /// `length_mt`, `length_mt6`: what the header says, not what came.
    pub(super) fn length(&self, blob: Blob<'_>) -> Option<Matched> {
        let length = match self.packet.protocol {
            Protocol::Ipv4 => u32::from(self.packet.number(2)?),
            Protocol::Ipv6 => u32::from(self.packet.number(4)?) + 40,
        };
        let (first, last, inverted) = (blob.u16(0)?, blob.u16(2)?, blob.byte(4)? != 0);
        Some(Matched::from((u32::from(first)..=u32::from(last)).contains(&length) != inverted))
    }

    /// `ttl_mt`, `hl_mt6`
    pub(super) fn hops(&self, blob: Blob<'_>) -> Option<Matched> {
        let (mode, wanted, own) = (blob.byte(0)?, blob.byte(1)?, self.packet.hops_left());
        Some(Matched::from(match mode {
            0 => own == wanted,
            1 => own != wanted,
            2 => own < wanted,
            3 => own > wanted,
            _ => false,
        }))
    }

    /// `dscp_mt`, `dscp_mt6`
    pub(super) fn dscp(&self, blob: Blob<'_>) -> Option<Matched> {
        let (wanted, inverted) = (blob.byte(0)?, blob.byte(1)? != 0);
        Some(Matched::from((self.packet.service() >> 2 == wanted) != inverted))
    }

    /// `tos_mt`
    pub(super) fn tos(&self, revision: u32, blob: Blob<'_>) -> Option<Matched> {
        let (mask, value, inverted) = (blob.byte(0)?, blob.byte(1)?, blob.byte(2)? != 0);
        (revision == 1).then(|| Matched::from((self.packet.service() & mask == value) != inverted))
    }

    /// `iprange_mt4`, `iprange_mt6`
    pub(super) fn address_range(&self, revision: u32, blob: Blob<'_>) -> Option<Matched> {
        let flags = blob.byte(64).filter(|_| revision == 1)?;
        for (index, own) in [(0, self.packet.source()), (1, self.packet.destination())] {
            if flags >> index & 1 == 0 {
                continue;
            }
            let address = |at: usize| match own {
                IpAddr::V4(_) => blob.array::<4>(at).map(IpAddr::from),
                IpAddr::V6(_) => blob.array::<16>(at).map(IpAddr::from),
            };
            let (first, last) = (address(32 * index)?, address(32 * index + 16)?);
            let inverted = flags >> (4 + index) & 1 != 0;
            if (first..=last).contains(&own) == inverted {
                return Some(Matched::No);
            }
        }
        Some(Matched::Yes)
    }

    /// `mac_mt`
    pub(super) fn hardware_address(&self, blob: Blob<'_>) -> Option<Matched> {
        /// `ARPHRD_ETHER`
        const ETHERNET: u16 = 1;
        let (wanted, inverted) = (blob.array::<6>(0)?, blob.u32(8)? != 0);
        if self.input.is_none_or(|input| input.hardware != ETHERNET) {
            return Some(Matched::No);
        }
        Some(match Blob(&self.packet.link).array::<6>(6) {
            Some(own) => Matched::from((own == wanted) != inverted),
            None => Matched::Unknown("the sender's hardware address is that of a rule".into()),
        })
    }

    /// `tcpmss_mt`
    pub(super) fn largest_segment(&self, blob: Blob<'_>) -> Option<Matched> {
        let (first, last, inverted) = (blob.u16(0)?, blob.u16(2)?, blob.byte(4)? != 0);
        Some(match segment_option(&self.packet) {
            Err(()) => Matched::Drop,
            Ok(None) => Matched::from(inverted),
            Ok(Some(at)) => Matched::from((first..=last).contains(&self.packet.number(at)?) != inverted),
        })
    }

    /// `u32_match_it`: numbers of four bytes, masked, shifted and used as offsets.
    pub(super) fn words_at(&self, blob: Blob<'_>) -> Option<Matched> {
        const TEST_BYTES: usize = 180;
        let (tests, inverted) = (usize::from(blob.byte(11 * TEST_BYTES)?), blob.byte(11 * TEST_BYTES + 1)? != 0);
        for test in 0..tests {
            let at = test * TEST_BYTES;
            let value = match word(&self.packet, blob, at)? {
                Word::Beyond => return Some(Matched::from(inverted)),
                Word::Cut => return Some(Matched::Unknown("bytes behind those that are known match u32".into())),
                Word::Value(value) => value,
            };
            let ranges = usize::from(blob.byte(at + 177)?);
            let in_range =
                |index: usize| Some((blob.u32(at + 88 + 8 * index)?..=blob.u32(at + 92 + 8 * index)?).contains(&value));
            if !(0..ranges.min(11)).any(|index| in_range(index).unwrap_or(false)) {
                return Some(Matched::from(inverted));
            }
        }
        Some(Matched::from(!inverted))
    }

    /// `string_mt`: the pattern as a whole lies between two offsets from the network header.
    pub(super) fn pattern(&self, revision: u32, blob: Blob<'_>) -> Option<Matched> {
        const INVERTED: u8 = 1;
        const ANY_CASE: u8 = 2;
        if revision != 1 {
            return None;
        }
        let (from, to) = (usize::from(blob.u16(0)?), usize::from(blob.u16(2)?));
        let (length, flags) = (usize::from(blob.byte(148)?), blob.byte(149)?);
        let pattern = blob.0.get(20..148)?.get(..length).filter(|pattern| !pattern.is_empty())?;
        let bytes = &self.packet.bytes;
        let within = bytes.get(from..bytes.len().min(to)).unwrap_or_default();
        let equal = |part: &[u8]| {
            if flags & ANY_CASE != 0 { part.eq_ignore_ascii_case(pattern) } else { part == pattern }
        };
        if within.windows(length).any(equal) {
            return Some(Matched::from(flags & INVERTED == 0));
        }
        let is_cut = usize::try_from(self.packet.length).unwrap_or(usize::MAX).min(to) > bytes.len();
        Some(if is_cut {
            Matched::Unknown("the rest of the packet has the text of a rule".into())
        } else {
            Matched::from(flags & INVERTED != 0)
        })
    }
}

enum Word {
    Value(u32),
    /// The packet has no such bytes.
    Beyond,
    /// It has, but they are not known.
    Cut,
}

/// One test of u32, from its first number on.
fn word(packet: &Packet, blob: Blob<'_>, test: usize) -> Option<Word> {
    let load = |at: u32, place: u32| {
        let start = u64::from(at) + u64::from(place);
        if start + 4 > u64::from(packet.length) {
            return Word::Beyond;
        }
        match usize::try_from(start).ok().and_then(|start| Blob(&packet.bytes).array::<4>(start)) {
            Some(bytes) => Word::Value(u32::from_be_bytes(bytes)),
            None => Word::Cut,
        }
    };
    let mut at = 0_u32;
    let Word::Value(mut value) = load(0, blob.u32(test)?) else { return Some(load(0, blob.u32(test)?)) };
    for index in 1..usize::from(blob.byte(test + 176)?).min(11) {
        let (number, operation) = (blob.u32(test + 8 * index)?, blob.byte(test + 8 * index + 4)?);
        match operation {
            0 => value &= number,
            1 => value = value.wrapping_shl(number),
            2 => value = value.wrapping_shr(number),
            _ => {
                let Some(further) = at.checked_add(value) else { return Some(Word::Beyond) };
                at = further;
                match load(at, number) {
                    Word::Value(loaded) => value = loaded,
                    none => return Some(none),
                }
            }
        }
    }
    Some(Word::Value(value))
}

/// Kind, offset from the network header and room of TCP's options, as the kernel goes through them; `Err` when the header
/// does not add up.
pub(super) fn options(packet: &Packet) -> Result<Vec<(u8, usize, usize)>, ()> {
    let transport = packet.transport().filter(|transport| transport.protocol == TCP).ok_or(())?;
    let header = packet.bytes.get(transport.offset..).unwrap_or_default();
    let length = usize::from(header.get(12).ok_or(())? >> 4) * 4;
    let options = header.get(20..length).ok_or(())?;
    let (mut found, mut at) = (Vec::new(), 0);
    while let Some(kind) = options.get(at) {
        found.push((*kind, transport.offset + 20 + at, options.len() - at));
        at += match (kind, options.get(at + 1)) {
            // End of options and padding have no length.
            (0 | 1, _) | (_, None | Some(0)) => 1,
            (_, Some(size)) => usize::from(*size),
        };
    }
    Ok(found)
}

/// Offset of the value of TCP's option of the largest segment (`TCPOPT_MSS`, `TCPOLEN_MSS`).
pub(super) fn segment_option(packet: &Packet) -> Result<Option<usize>, ()> {
    let is_whole = |at: usize, room: usize| room >= 4 && packet.bytes.get(at + 1) == Some(&4);
    let found = options(packet)?.into_iter().find(|(kind, at, room)| *kind == 2 && is_whole(*at, *room));
    Ok(found.map(|(_, at, _)| at + 2))
}
