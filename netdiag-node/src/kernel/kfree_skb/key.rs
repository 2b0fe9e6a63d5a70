//! Decodes the kernel program's keys, and what lies beside them.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use netdiag_common::observation::kfree_skb::{Direction, Translation};
use netdiag_common::record::kfree_skb::{
    DIRECTION, Exemplar, FLAG_CROSSED, FLAG_DESTINATION, FLAG_RECEIVED, FLAG_ROUTED, FLAG_TRACKED, FLAG_TRANSLATED,
    Slot, TranslatedV4, TranslatedV6, WAYS, WORDS_V4, WORDS_V6, place_word, split_place, split_service,
};

use crate::kernel::table::Table;
use crate::window::Count;

/// A kernel key, decoded. Coarse keys have no tuple.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct GroupKey {
    pub(super) netns: u64,
    pub(super) location: u32,
    pub(super) reason: u32,
    pub(super) ifindex: u32,
    pub(super) tuple: Option<Tuple>,
    /// Flags of the service word, but for the tuple's own.
    flags: u8,
    pub(super) level: Level,
}

/// In how much detail the kernel counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Level {
    /// With a tuple. If there is none, we forgot it.
    Full,
    /// Without, because its set was full.
    Coarse,
    /// A frame of this EtherType that has none to count.
    Frame(u16),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Tuple {
    pub(super) source: IpAddr,
    pub(super) destination: IpAddr,
    pub(super) protocol: u8,
    pub(super) service_port: u16,
    pub(super) port_is_destination: bool,
}

impl GroupKey {
    /// The key that the kernel counted the exemplar's packet with.
    pub(super) fn of(exemplar: &Exemplar) -> Self {
        let port_is_destination = exemplar.flags & FLAG_DESTINATION != 0;
        let port = if port_is_destination { exemplar.destination_port } else { exemplar.source_port };
        let tuple = Tuple {
            source: address(exemplar.version, exemplar.source),
            destination: address(exemplar.version, exemplar.destination),
            protocol: exemplar.protocol,
            service_port: port,
            port_is_destination,
        };
        Self {
            netns: exemplar.netns,
            location: split_place(place_word(exemplar.location, exemplar.reason)).0,
            reason: exemplar.reason,
            ifindex: exemplar.ifindex,
            tuple: Some(tuple),
            flags: exemplar.flags & !FLAG_DESTINATION,
            level: Level::Full,
        }
    }

    pub(super) fn without_tuple(self) -> Self {
        Self { tuple: None, flags: self.flags & DIRECTION, ..self }
    }

    /// What keys share whose packets are at one point of their way.
    pub(super) fn place(self) -> Self {
        Self { tuple: None, flags: self.flags & (DIRECTION | FLAG_ROUTED), level: Level::Full, ..self }
    }

    pub(super) fn direction(&self) -> Direction {
        direction(self.flags)
    }

    pub(super) fn is_tracked(&self) -> bool {
        self.flags & FLAG_TRACKED != 0
    }

    pub(super) fn is_translated(&self) -> bool {
        self.flags & FLAG_TRANSLATED != 0
    }
}

fn direction(flags: u8) -> Direction {
    if flags & FLAG_RECEIVED == 0 {
        Direction::Out
    } else if flags & FLAG_CROSSED == 0 {
        Direction::In
    } else {
        Direction::Forwarded
    }
}

/// Calls `with` for each used slot of the half `left` and its row, and empties it.
pub(super) fn take<const WORDS: usize>(
    table: &Table<Slot<WORDS>>,
    left: usize,
    cpus: usize,
    sets: u32,
    mut with: impl FnMut(usize, &Slot<WORDS>),
) {
    let half = cpus * sets as usize * WAYS;
    for row in left * half..(left + 1) * half {
        let slot = table.row(row);
        // SAFETY: a row of the mapping that no program writes now. Clearing `packets` is what makes a slot empty.
        unsafe {
            if (*slot).packets != 0 {
                with(row, &*slot);
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
    let flags = flags & !FLAG_DESTINATION;
    GroupKey { netns, location, reason, ifindex, tuple: Some(tuple), flags, level: Level::Full }
}

pub(super) fn coarse_key(words: &[u64; WORDS_V4]) -> GroupKey {
    let [netns, kind, place, service] = *words;
    let (location, reason) = split_place(place);
    let (ifindex, _, _, flags) = split_service(service);
    let level = match u16::try_from(kind) {
        Ok(ether_type) if ether_type != 0 => Level::Frame(ether_type),
        _ => Level::Coarse,
    };
    GroupKey { netns, location, reason, ifindex, tuple: None, flags, level }
}

pub(super) fn translation4(row: &TranslatedV4) -> Translation {
    let address = |words: [u32; 1], port: u16| SocketAddr::new(words[0].to_ne_bytes().into(), u16::from_be(port));
    Translation { before: address(row.before, row.before_port), after: address(row.after, row.after_port) }
}

pub(super) fn translation6(row: &TranslatedV6) -> Translation {
    let address = |words: [u32; 4], port: u16| {
        let mut bytes = [0; 16];
        bytes.chunks_exact_mut(4).zip(words).for_each(|(four, word)| four.copy_from_slice(&word.to_ne_bytes()));
        SocketAddr::new(Ipv6Addr::from(bytes).into(), u16::from_be(port))
    };
    Translation { before: address(row.before, row.before_port), after: address(row.after, row.after_port) }
}

/// Of an exemplar, whose record has room for six.
pub(super) fn translation(exemplar: &Exemplar) -> Option<Translation> {
    let six = exemplar.translated;
    (exemplar.flags & FLAG_TRANSLATED != 0).then(|| match exemplar.version {
        4 => translation4(&TranslatedV4 {
            before: [six.before[0]],
            after: [six.after[0]],
            before_port: six.before_port,
            after_port: six.after_port,
        }),
        _ => translation6(&six),
    })
}

pub(in crate::kernel) fn address(version: u8, bytes: [u8; 16]) -> IpAddr {
    match version {
        4 => Ipv4Addr::new(bytes[0], bytes[1], bytes[2], bytes[3]).into(),
        _ => Ipv6Addr::from(bytes).into(),
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use netdiag_common::record::kfree_skb::service_word;

    /// A key like others but for its port.
    pub(in crate::kernel::kfree_skb) fn key_of_port(port: u16) -> GroupKey {
        let service = service_word(7, port, 6, FLAG_DESTINATION | FLAG_RECEIVED);
        ipv4_key(&[9, word([10, 0, 0, 2, 10, 0, 0, 1]), place_word(0xffff_ffff_8123_4567, 2), service])
    }

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

        let key = coarse_key(&[9, 0, place, service_word(7, 0, 0, FLAG_RECEIVED | FLAG_CROSSED)]);
        assert_eq!((key.tuple, key.level, key.ifindex), (None, Level::Coarse, 7));
        assert_eq!(key.direction(), Direction::Forwarded);
        assert_eq!(coarse_key(&[9, 0x0806, place, 0]).level, Level::Frame(0x0806));
    }

    #[test]
    fn translations_come_back_in_both_families() {
        let four = TranslatedV4 {
            before: [u32::from_ne_bytes([10, 96, 0, 10])],
            after: [u32::from_ne_bytes([10, 2, 0, 2])],
            before_port: 80_u16.to_be(),
            after_port: 8080_u16.to_be(),
        };
        let seen = translation4(&four);
        assert_eq!((seen.before.to_string(), seen.after.to_string()), ("10.96.0.10:80".into(), "10.2.0.2:8080".into()));
        let word = |text: [u8; 4]| u32::from_ne_bytes(text);
        let six = TranslatedV6 {
            before: [word([0xfd, 9, 0, 0]), 0, 0, word([0, 0, 0, 1])],
            after: [0, 0, 0, word([0, 0, 0, 1])],
            before_port: 53_u16.to_be(),
            after_port: 0,
        };
        let seen = translation6(&six);
        assert_eq!((seen.before.to_string(), seen.after.to_string()), ("[fd09::1]:53".into(), "[::1]:0".into()));
    }
}
