//! Decodes the kernel program's keys.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use netdiag_common::record::kfree_skb::{FLAG_DESTINATION, Slot, WAYS, WORDS_V4, WORDS_V6, split_place, split_service};

use super::table::Table;
use crate::window::Count;

/// A kernel key, decoded. Coarse keys have no tuple.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct GroupKey {
    pub(super) netns: u64,
    pub(super) location: u32,
    pub(super) reason: u32,
    pub(super) ifindex: u32,
    pub(super) tuple: Option<Tuple>,
    /// The kernel counted it without its tuple; else, if there is none, we forgot it.
    pub(super) coarse: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Tuple {
    pub(super) source: IpAddr,
    pub(super) destination: IpAddr,
    pub(super) protocol: u8,
    pub(super) service_port: u16,
    pub(super) port_is_destination: bool,
}

/// Calls `with` for each used slot of the half `left`, and empties it.
pub(super) fn take<const WORDS: usize>(
    table: &Table<Slot<WORDS>>,
    left: usize,
    cpus: usize,
    sets: u32,
    mut with: impl FnMut(&Slot<WORDS>),
) {
    let half = cpus * sets as usize * WAYS;
    for row in left * half..(left + 1) * half {
        let slot = table.row(row);
        // SAFETY: a row of the mapping that no program writes now. Clearing `packets` is what makes a slot empty.
        unsafe {
            if (*slot).packets != 0 {
                with(&*slot);
                (*slot).packets = 0;
            }
        }
    }
}

pub(super) fn count_of<const WORDS: usize>(slot: &Slot<WORDS>) -> Count {
    Count { packets: slot.packets, bytes: slot.bytes, first_ns: slot.first_ns, last_ns: slot.last_ns }
}

pub(super) fn ipv4_key(words: &[u64; WORDS_V4]) -> GroupKey {
    let [netns, addresses, place, service] = *words;
    // The header's bytes as they lay in memory: the destination in the low half.
    let [d0, d1, d2, d3, s0, s1, s2, s3] = addresses.to_le_bytes();
    let (source, destination) = (Ipv4Addr::new(s0, s1, s2, s3), Ipv4Addr::new(d0, d1, d2, d3));
    full_key(netns, place, service, source.into(), destination.into())
}

pub(super) fn ipv6_key(words: &[u64; WORDS_V6]) -> GroupKey {
    let [netns, s0, s1, d0, d1, place, service] = *words;
    full_key(netns, place, service, ipv6(s0, s1).into(), ipv6(d0, d1).into())
}

/// The words are the header's bytes as they lay in memory.
fn ipv6(first: u64, second: u64) -> Ipv6Addr {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&first.to_le_bytes());
    bytes[8..].copy_from_slice(&second.to_le_bytes());
    bytes.into()
}

fn full_key(netns: u64, place: u64, service: u64, source: IpAddr, destination: IpAddr) -> GroupKey {
    let (location, reason) = split_place(place);
    let (ifindex, service_port, protocol, flags) = split_service(service);
    let port_is_destination = flags & FLAG_DESTINATION != 0;
    let tuple = Tuple { source, destination, protocol, service_port, port_is_destination };
    GroupKey { netns, location, reason, ifindex, tuple: Some(tuple), coarse: false }
}

pub(super) fn coarse_key(words: &[u64; WORDS_V4]) -> GroupKey {
    let [netns, _, place, service] = *words;
    let (location, reason) = split_place(place);
    GroupKey { netns, location, reason, ifindex: split_service(service).0, tuple: None, coarse: true }
}

#[cfg(test)]
mod tests {
    use super::*;
    use netdiag_common::record::kfree_skb::{place_word, service_word};

    /// The words as the program builds them from a header's bytes in memory.
    fn word(bytes: [u8; 8]) -> u64 {
        u64::from_le_bytes(bytes)
    }

    #[test]
    fn addresses_and_service_come_back() {
        let place = place_word(0xffff_ffff_8123_4567, 0x2_0003);
        let service = service_word(7, 443, 6, FLAG_DESTINATION);
        let key = ipv4_key(&[9, word([10, 0, 0, 2, 10, 0, 0, 1]), place, service]);
        let tuple = key.tuple.unwrap();
        assert_eq!((tuple.source, tuple.destination), (IpAddr::from([10, 0, 0, 1]), IpAddr::from([10, 0, 0, 2])));
        assert_eq!((tuple.protocol, tuple.service_port, tuple.port_is_destination), (6, 443, true));
        assert_eq!((key.netns, key.location, key.reason, key.ifindex), (9, 0x8123_4567, 0x2_0003, 7));

        let (first, second) = (word([0xfd, 9, 0, 0, 0, 0, 0, 0]), word([0, 0, 0, 0, 0, 0, 0, 2]));
        let tuple = ipv6_key(&[9, first, second, 0, word([0, 0, 0, 0, 0, 0, 0, 1]), place, service]).tuple.unwrap();
        assert_eq!((tuple.source.to_string(), tuple.destination.to_string()), ("fd09::2".to_owned(), "::1".to_owned()));

        let key = coarse_key(&[9, 0, place, service_word(7, 0, 0, 0)]);
        assert_eq!((key.tuple, key.coarse, key.ifindex), (None, true, 7));
    }
}
