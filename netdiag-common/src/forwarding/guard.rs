//! What rules ask of a packet first, kept beside them: chains of kube-proxy in iptables mode have a rule for each Service, and
//! whoever goes through all their expressions reads megabytes for one packet.
//!
//! A rule that a guard passes over would have ended at a comparison with nothing but other comparisons before it, and so
//! before it changed anything.

use std::sync::OnceLock;

use super::expression::{Base, Expression, Operator};
use super::packet::Packet;
use super::state::Rule;

/// `NFT_META_L4PROTO`
const TRANSPORT_PROTOCOL: u32 = 16;

/// The guards of one chain, made when the chain is walked for the first time. They are no part of what was read.
#[derive(Debug, Clone, Default)]
pub struct Guards(OnceLock<Box<[Guard]>>);

/// Four bytes that a rule wants; without a mask, it may want anything.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Guard {
    wanted: u32,
    mask: u32,
    /// From the network header.
    offset: usize,
}

impl PartialEq for Guards {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl Eq for Guards {}

impl Guards {
    /// One for each of the chain's rules.
    pub(super) fn of(&self, rules: &[Rule]) -> &[Guard] {
        self.0.get_or_init(|| rules.iter().map(|rule| Guard::of(&rule.expressions)).collect())
    }
}

impl Guard {
    fn of(expressions: &[Expression]) -> Self {
        // iptables-nft asks for the protocol first.
        let rest = match expressions {
            [
                Expression::Meta { key: TRANSPORT_PROTOCOL, to },
                Expression::Compare { from, operator: Operator::Equal, .. },
                rest @ ..,
            ] if from == to => rest,
            rest => rest,
        };
        match rest {
            [
                Expression::Payload { base: Base::Network, offset, bytes, to },
                Expression::Compare { from, operator: Operator::Equal, value },
                ..,
            ] if from == to && *bytes as usize == value.len() => {
                // Addresses of one network differ in their last bytes.
                let Some((skipped, wanted)) = value.len().checked_sub(4).map(|at| (at, word(value, at))) else {
                    return Self::default();
                };
                Self { wanted: wanted.unwrap_or_default(), mask: u32::MAX, offset: *offset as usize + skipped }
            }
            [Expression::XtEntry { info }, ..] if rest.len() == expressions.len() => {
                Self::of_entry(info).unwrap_or_default()
            }
            _ => Self::default(),
        }
    }

    /// `struct ipt_ip`, `struct ip6t_ip6`: addresses, masks, and which of them are meant the other way round.
    fn of_entry(info: &[u8]) -> Option<Self> {
        const SOURCE: u8 = 0x08;
        const DESTINATION: u8 = 0x10;
        // Bytes of an address, where the flags are, and where the network header has the addresses.
        let (bytes, flags, places) = match info.len() {
            84 => (4, 83, [(DESTINATION, 16), (SOURCE, 12)]),
            136 => (16, 132, [(DESTINATION, 24), (SOURCE, 8)]),
            _ => return None,
        };
        let inverted = info.get(flags)?;
        places.into_iter().filter(|(bit, _)| inverted & bit == 0).find_map(|(bit, place)| {
            let own = if bit == SOURCE { 0 } else { bytes };
            (0..bytes).step_by(4).rev().find_map(|at| {
                let (wanted, mask) = (word(info, own + at)?, word(info, own + 2 * bytes + at)?);
                // IPv4 compares with all of what is wanted, IPv6 with what the mask leaves of it.
                let wanted = if bytes == 4 { wanted } else { wanted & mask };
                (mask != 0).then_some(Self { wanted, mask, offset: place + at })
            })
        })
    }

    /// Whether the rule has to be looked at.
    pub(super) fn passes(self, packet: &Packet) -> bool {
        self.mask == 0 || word(&packet.bytes, self.offset).is_none_or(|own| own & self.mask == self.wanted)
    }
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..at + 4)?.try_into().ok().map(u32::from_be_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::forwarding::packet::{Origin, TCP, tcp};

    fn packet(destination: &str) -> Packet {
        let origin = Origin::Received { interface: 2 };
        let source = if destination.contains(':') { "fd00::9" } else { "10.1.0.9" };
        Packet::between(origin, source.parse().unwrap(), destination.parse().unwrap(), TCP, &tcp(1, 80, 2)).unwrap()
    }

    #[test]
    fn a_rule_for_another_address_is_passed_over() {
        let rule = |offset, value: &[u8]| {
            let bytes = u32::try_from(value.len()).unwrap();
            let load = Expression::Payload { base: Base::Network, offset, bytes, to: 1 };
            let compare = Expression::Compare { from: 1, operator: Operator::Equal, value: value.to_vec() };
            let alone = Guard::of(&[load.clone(), compare.clone()]);
            let protocol = Expression::Compare { from: 1, operator: Operator::Equal, value: vec![TCP] };
            let meta = Expression::Meta { key: TRANSPORT_PROTOCOL, to: 1 };
            assert_eq!(Guard::of(&[meta, protocol, load, compare]), alone);
            alone
        };
        assert!(rule(16, &[10, 2, 0, 7]).passes(&packet("10.2.0.7")));
        assert!(!rule(16, &[10, 2, 0, 8]).passes(&packet("10.2.0.7")));
        let mut address = [0; 16];
        (address[0], address[1], address[15]) = (0xfd, 0, 7);
        assert!(rule(24, &address).passes(&packet("fd00::7")));
        assert!(!rule(24, &address).passes(&packet("fd00::8")));
        // Part of a byte or two says too little to be worth it.
        assert!(rule(9, &[17]).passes(&packet("10.2.0.7")));
    }

    #[test]
    fn an_entry_is_passed_over_unless_it_is_meant_the_other_way_round() {
        let mut info = vec![0; 84];
        info[4..8].copy_from_slice(&[10, 2, 0, 0]);
        info[12..16].copy_from_slice(&[255, 255, 0, 0]);
        let guard = |info: &[u8]| Guard::of(&[Expression::XtEntry { info: info.to_vec() }]);
        assert!(guard(&info).passes(&packet("10.2.9.9")));
        assert!(!guard(&info).passes(&packet("10.3.9.9")));
        info[83] = 0x10;
        assert!(guard(&info).passes(&packet("10.3.9.9")));
        // What it asks of the source is looked at then.
        info[0..4].copy_from_slice(&[10, 1, 0, 8]);
        info[8..12].copy_from_slice(&[255; 4]);
        assert!(!guard(&info).passes(&packet("10.3.9.9")));
        assert!(guard(&[0; 20]).passes(&packet("10.3.9.9")));
    }
}
