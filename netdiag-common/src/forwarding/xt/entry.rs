//! What an entry of a legacy table asks of a packet before its matches: addresses, interfaces, protocol, fragments.

use super::Blob;
use crate::forwarding::expression::Verdict;
use crate::forwarding::machine::Run;
use crate::forwarding::packet::Protocol;
use crate::forwarding::state::Interface;

/// `IPT_INV_*`, `IP6T_INV_*`
mod inverted {
    pub const INPUT: u8 = 0x01;
    pub const OUTPUT: u8 = 0x02;
    pub const SOURCE: u8 = 0x08;
    pub const DESTINATION: u8 = 0x10;
    pub const FRAGMENT: u8 = 0x20;
    pub const PROTOCOL: u8 = 0x40;
}

/// `IFNAMSIZ`
const NAME_BYTES: usize = 16;

impl Run<'_> {
    /// `ip_packet_match`, `ip6_packet_match` (Linux 6.18). A structure that is too short matches nothing.
    pub(in crate::forwarding) fn xt_entry(&self, info: &[u8]) -> Verdict {
        let blob = Blob(info);
        let matched = match self.packet.protocol {
            Protocol::Ipv4 => self.ipv4_entry(blob),
            Protocol::Ipv6 => self.ipv6_entry(blob),
        };
        matched.unwrap_or(Verdict::Break)
    }

    fn ipv4_entry(&self, blob: Blob<'_>) -> Option<Verdict> {
        /// `IPT_F_FRAG`
        const FRAGMENT: u8 = 0x01;
        let (protocol, flags, inverted) = (blob.u16(80)?, blob.byte(82)?, blob.byte(83)?);
        let own = u16::from(*self.packet.bytes.get(9)?);
        let is_fragment = self.packet.number(6)? & 0x1fff != 0;
        let holds = self.addresses_and_interfaces::<4>(blob, [12, 16], inverted)?
            && (protocol == 0 || (own == protocol) != (inverted & inverted::PROTOCOL != 0))
            && (flags & FRAGMENT == 0 || is_fragment) != (inverted & inverted::FRAGMENT != 0);
        Some(if holds { Verdict::Continue } else { Verdict::Break })
    }

    fn ipv6_entry(&self, blob: Blob<'_>) -> Option<Verdict> {
        /// `IP6T_F_PROTO`
        const PROTOCOL: u8 = 0x01;
        let (protocol, flags, inverted) = (blob.u16(128)?, blob.byte(131)?, blob.byte(132)?);
        if !self.addresses_and_interfaces::<16>(blob, [8, 24], inverted)? {
            return Some(Verdict::Break);
        }
        if flags & PROTOCOL == 0 {
            return Some(Verdict::Continue);
        }
        // Headers that do not add up are dropped for it (`hotdrop`).
        let Some(transport) = self.packet.transport() else { return Some(Verdict::Drop) };
        let is_negated = inverted & inverted::PROTOCOL != 0;
        let holds = if protocol == u16::from(transport.protocol) { !is_negated } else { protocol == 0 || is_negated };
        Some(if holds { Verdict::Continue } else { Verdict::Break })
    }

    /// The parts that both structures begin with; `places` are those of source and destination in the network header.
    fn addresses_and_interfaces<const N: usize>(
        &self,
        blob: Blob<'_>,
        places: [usize; 2],
        inverted: u8,
    ) -> Option<bool> {
        for (index, bit) in [(0, inverted::SOURCE), (1, inverted::DESTINATION)] {
            let own: [u8; N] = Blob(&self.packet.bytes).array(places[index])?;
            let (wanted, mask): ([u8; N], [u8; N]) = (blob.array(N * index)?, blob.array(N * (index + 2))?);
            // `ipv6_masked_addr_cmp` leaves out what is wanted outside the mask, IPv4 does not.
            let ignored = |mask: u8| if N == 4 { 0xff } else { mask };
            let equal =
                own.iter().zip(wanted).zip(mask).all(|((own, wanted), mask)| own & mask == wanted & ignored(mask));
            if equal == (inverted & bit != 0) {
                return Some(false);
            }
        }
        for (index, interface, bit) in [(0, self.input, inverted::INPUT), (1, self.output, inverted::OUTPUT)] {
            let at = 4 * N + NAME_BYTES * index;
            let (wanted, mask) = (blob.array(at)?, blob.array(at + 2 * NAME_BYTES)?);
            if is_named(interface, wanted, mask) == (inverted & bit != 0) {
                return Some(false);
            }
        }
        Some(true)
    }
}

/// `ifname_compare_aligned`: no interface has an empty name.
fn is_named(interface: Option<&Interface>, wanted: [u8; NAME_BYTES], mask: [u8; NAME_BYTES]) -> bool {
    let mut name = [0; NAME_BYTES];
    for (byte, letter) in name.iter_mut().zip(interface.map_or("", |interface| &interface.name).bytes()) {
        *byte = letter;
    }
    name.iter().zip(wanted).zip(mask).all(|((own, wanted), mask)| (own ^ wanted) & mask == 0)
}
