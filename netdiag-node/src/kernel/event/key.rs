//! Decodes the keys of counted events.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use netdiag_common::record::event::split_what;
use netdiag_common::record::kfree_skb::split_service;
use netdiag_common::record::table::{WORDS_V4, WORDS_V6};

/// A kernel key, decoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(in crate::kernel) struct Key {
    pub(in crate::kernel) netns: u64,
    pub(in crate::kernel) kind: u8,
    pub(in crate::kernel) detail: u32,
    /// The power of two of what was measured, or `NO_MEASURE`.
    pub(in crate::kernel) measure: u8,
    pub(in crate::kernel) flags: u8,
    /// None at the coarse level, and when we forgot them.
    pub(in crate::kernel) ends: Option<Ends>,
    /// The kernel counted it without its ends.
    pub(in crate::kernel) coarse: bool,
}

/// Addresses that the hook does not keep are unspecified.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(in crate::kernel) struct Ends {
    pub(in crate::kernel) source: IpAddr,
    pub(in crate::kernel) destination: IpAddr,
    pub(in crate::kernel) port: u16,
    pub(in crate::kernel) protocol: u8,
}

pub(super) fn ipv4_key(words: &[u64; WORDS_V4]) -> Key {
    let [netns, addresses, what, service] = *words;
    // The bytes as they lay in memory: the destination in the low half.
    let [d0, d1, d2, d3, s0, s1, s2, s3] = addresses.to_le_bytes();
    full_key(netns, what, service, Ipv4Addr::new(s0, s1, s2, s3).into(), Ipv4Addr::new(d0, d1, d2, d3).into())
}

pub(super) fn ipv6_key(words: &[u64; WORDS_V6]) -> Key {
    let [netns, s0, s1, d0, d1, what, service] = *words;
    full_key(netns, what, service, address([s0, s1], 6), address([d0, d1], 6))
}

pub(super) fn coarse_key(words: &[u64; WORDS_V4]) -> Key {
    let [netns, _, what, service] = *words;
    let (kind, detail, measure) = split_what(what);
    Key { netns, kind, detail, measure, flags: split_service(service).3, ends: None, coarse: true }
}

/// An address whose bytes lie in the words as they lay in the kernel's memory; IPv4 in the first four.
pub(in crate::kernel) fn address(words: [u64; 2], version: u8) -> IpAddr {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&words[0].to_le_bytes());
    bytes[8..].copy_from_slice(&words[1].to_le_bytes());
    match version {
        4 => Ipv4Addr::new(bytes[0], bytes[1], bytes[2], bytes[3]).into(),
        _ => Ipv6Addr::from(bytes).into(),
    }
}

fn full_key(netns: u64, what: u64, service: u64, source: IpAddr, destination: IpAddr) -> Key {
    let (kind, detail, measure) = split_what(what);
    let (_, port, protocol, flags) = split_service(service);
    let ends = Ends { source, destination, port, protocol };
    Key { netns, kind, detail, measure, flags, ends: Some(ends), coarse: false }
}

#[cfg(test)]
mod tests {
    use super::*;
    use netdiag_common::record::event::{NO_MEASURE, what_word};
    use netdiag_common::record::kfree_skb::service_word;

    /// The words as the program builds them from bytes in memory.
    fn word(bytes: [u8; 8]) -> u64 {
        u64::from_le_bytes(bytes)
    }

    #[test]
    fn addresses_and_service_come_back() {
        let (what, service) = (what_word(3, 111, 12), service_word(0, 443, 6, 2));
        let key = ipv4_key(&[9, word([10, 0, 0, 2, 10, 0, 0, 1]), what, service]);
        assert_eq!((key.netns, key.kind, key.detail, key.measure, key.flags), (9, 3, 111, 12, 2));
        let ends = key.ends.unwrap();
        assert_eq!((ends.source, ends.destination), (IpAddr::from([10, 0, 0, 1]), IpAddr::from([10, 0, 0, 2])));
        assert_eq!((ends.port, ends.protocol), (443, 6));

        let (first, second) = (word([0xfd, 9, 0, 0, 0, 0, 0, 0]), word([0, 0, 0, 0, 0, 0, 0, 2]));
        let ends = ipv6_key(&[9, 0, 0, first, second, what, service]).ends.unwrap();
        assert_eq!((ends.source.to_string(), ends.destination.to_string()), ("::".to_owned(), "fd09::2".to_owned()));

        let key = coarse_key(&[9, 0, what_word(3, 111, NO_MEASURE), service_word(0, 0, 0, 2)]);
        assert_eq!((key.ends, key.coarse, key.flags, key.measure), (None, true, 2, NO_MEASURE));
    }
}
