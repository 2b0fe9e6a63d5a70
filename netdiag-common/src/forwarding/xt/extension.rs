//! Matches about the extension headers of IPv6 (`net/ipv6/netfilter/ip6t_*.c`, Linux 6.18). Of a packet without the
//! header that a match is about, none of them holds, whatever the rule negates: parts of a header that is there are
//! compared, and nothing else.

use super::{Blob, Matched};
use crate::forwarding::machine::{Run, extension_header};
use crate::forwarding::packet::Protocol;

/// `NEXTHDR_*`
mod header {
    pub const HOP_BY_HOP: u8 = 0;
    pub const ROUTING: u8 = 43;
    pub const FRAGMENT: u8 = 44;
    pub const ESP: u8 = 50;
    pub const AUTHENTICATION: u8 = 51;
    pub const NONE: u8 = 59;
    pub const DESTINATION: u8 = 60;
    pub const MOBILITY: u8 = 135;
}

impl Run<'_> {
    /// `rt_mt6`, `frag_mt6`, `hbh_mt6`, `ah_mt6`, `srh_mt6`, `mh_mt6`, and `ah_mt` of IPv4. None where the header is
    /// there: its parts are not compared.
    pub(super) fn extension_match(&self, name: &str) -> Option<Matched> {
        let number = match name {
            "rt" | "srh" => header::ROUTING,
            "frag" => header::FRAGMENT,
            "hbh" => header::HOP_BY_HOP,
            "dst" => header::DESTINATION,
            "ah" => header::AUTHENTICATION,
            _ => header::MOBILITY,
        };
        // Both are rules for this protocol alone, as entries and their matches are checked.
        if self.packet.protocol == Protocol::Ipv4 || number == header::MOBILITY {
            let is_there = self.packet.transport().is_some_and(|transport| transport.protocol == number);
            return (!is_there).then_some(Matched::No);
        }
        match (extension_header(&self.packet, number), self.packet.transport()) {
            (Some(_), _) => None,
            (None, Some(_)) => Some(Matched::No),
            (None, None) if name == "srh" => Some(Matched::No),
            (None, None) => Some(Matched::Drop),
        }
    }

    /// `ipv6header_mt6`: which headers there are, of all or at least of those wanted.
    pub(super) fn headers(&self, blob: Blob<'_>) -> Option<Matched> {
        const ESP: u8 = 4;
        const NONE: u8 = 2;
        const PROTOCOL: u8 = 1;
        let (wanted, inverted, is_soft) = (blob.byte(0)?, blob.byte(1)?, blob.byte(2)? != 0);
        let bytes = &self.packet.bytes;
        let length = usize::try_from(self.packet.length).unwrap_or(usize::MAX);
        let (mut next, mut at, mut found) = (*bytes.get(6)?, 40, 0);
        loop {
            let (bit, unit) = match next {
                header::NONE => {
                    found |= NONE;
                    break;
                }
                header::HOP_BY_HOP => (128, 8),
                header::DESTINATION => (64, 8),
                header::ROUTING => (32, 8),
                header::FRAGMENT => (16, 0),
                header::AUTHENTICATION => (8, 4),
                header::ESP => (ESP, 0),
                _ => {
                    found |= PROTOCOL;
                    break;
                }
            };
            if length < at + 2 {
                return Some(Matched::No);
            }
            found |= bit;
            if next == header::ESP {
                break;
            }
            let (Some(following), Some(units)) = (bytes.get(at), bytes.get(at + 1)) else { return Some(Matched::Drop) };
            next = *following;
            at += match unit {
                0 => 8,
                4 => (usize::from(*units) + 2) * 4,
                unit => (usize::from(*units) + 1) * unit,
            };
            if at > length {
                // The loop ends here with what follows unread.
                found |= if matches!(next, header::NONE | header::ESP) { 0 } else { PROTOCOL };
                break;
            }
        }
        Some(Matched::from(match (is_soft, inverted != 0) {
            (true, _) => (found ^ wanted ^ inverted) & wanted == 0,
            (false, is_inverted) => (found == wanted) != is_inverted,
        }))
    }

    /// `eui64_mt6`: the lower half of the source is made of the sender's hardware address.
    pub(super) fn interface_identifier(&self) -> Option<Matched> {
        if self.packet.protocol == Protocol::Ipv4 {
            return None;
        }
        let link = Blob(&self.packet.link);
        let (Some(hardware), Some(kind)) = (link.array::<6>(6), link.port(12)) else {
            return Some(Matched::Unknown("the sender's address is made of its hardware address".into()));
        };
        let (own, [first, rest @ ..]) = (self.packet.bytes.get(16..24)?, hardware);
        let made = [&[first ^ 2][..], &rest[..2], &[0xff, 0xfe], &rest[2..]].concat();
        Some(Matched::from(kind == 0x86dd && own == made))
    }
}
