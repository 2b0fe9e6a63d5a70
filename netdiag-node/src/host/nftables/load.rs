//! Which field an expression loads into a register.

use super::field::{Field, Subject};

const NETWORK_HEADER: u32 = 1;
const TRANSPORT_HEADER: u32 = 2;

const ICMP: [u8; 2] = [1, 58];

/// What is known about the packet at this point of a rule, from the table's family and earlier conditions.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Layers {
    /// `ip` or `ip6`.
    pub network: Option<&'static str>,
    /// IANA number.
    pub transport: Option<u8>,
}

/// The fields that `bytes` bytes at `offset` hold, each with the number of bytes loaded of it. nft joins neighbouring
/// fields into one load, and loads only the first bytes of an address that is compared with a prefix.
pub(super) fn payload(layers: Layers, base: u32, offset: u32, bytes: u32) -> Vec<(Field, usize)> {
    let mut fields = Vec::new();
    let (mut at, end) = (offset, offset.saturating_add(bytes));
    while at < end {
        let Some((field, loaded)) = field_at(layers, base, at, end - at) else {
            return vec![(raw(layers, base, offset, bytes), bytes as usize)];
        };
        at += u32::try_from(loaded).unwrap_or(u32::MAX).max(1);
        fields.push((field, loaded));
    }
    fields
}

fn field_at(layers: Layers, base: u32, offset: u32, left: u32) -> Option<(Field, usize)> {
    let (subject, name, bytes) = match (base, layers.network, offset) {
        (NETWORK_HEADER, Some("ip"), 12) => (Subject::Source, "ip saddr".into(), 4),
        (NETWORK_HEADER, Some("ip"), 16) => (Subject::Destination, "ip daddr".into(), 4),
        (NETWORK_HEADER, Some("ip"), 9) => (Subject::Protocol, "ip protocol".into(), 1),
        (NETWORK_HEADER, Some("ip6"), 8) => (Subject::Source, "ip6 saddr".into(), 16),
        (NETWORK_HEADER, Some("ip6"), 24) => (Subject::Destination, "ip6 daddr".into(), 16),
        // With extension headers in between this is not the transport protocol, so it stays what it is.
        (NETWORK_HEADER, Some("ip6"), 6) => (Subject::Number, "ip6 nexthdr".into(), 1),
        (TRANSPORT_HEADER, _, 0 | 2) if !layers.transport.is_some_and(|number| ICMP.contains(&number)) => {
            let header = transport_name(layers.transport);
            let (subject, end) =
                if offset == 0 { (Subject::SourcePort, "sport") } else { (Subject::DestinationPort, "dport") };
            (subject, format!("{header} {end}"), 2)
        }
        (TRANSPORT_HEADER, _, 0) => (Subject::Number, format!("{} type", transport_name(layers.transport)), 1),
        (TRANSPORT_HEADER, _, 1) => (Subject::Number, format!("{} code", transport_name(layers.transport)), 1),
        (TRANSPORT_HEADER, _, 13) if layers.transport == Some(6) => (Subject::Flags, "tcp flags".into(), 1),
        _ => return None,
    };
    let loaded = bytes.min(left as usize);
    let partial = loaded < bytes && !matches!(subject, Subject::Source | Subject::Destination);
    (!partial).then(|| (Field::new(subject, name, bytes), loaded))
}

/// As nft prints a load it has no name for: base, first bit, bits.
fn raw(layers: Layers, base: u32, offset: u32, bytes: u32) -> Field {
    let base = match base {
        NETWORK_HEADER => layers.network.map_or("@nh", |network| if network == "ip" { "@ip" } else { "@ip6" }),
        TRANSPORT_HEADER => "@th",
        0 => "@ll",
        _ => "@ih",
    };
    let name = format!("{base},{},{}", offset.saturating_mul(8), bytes.saturating_mul(8));
    Field::new(Subject::Number, name, bytes as usize)
}

fn transport_name(number: Option<u8>) -> &'static str {
    match number {
        Some(1) => "icmp",
        Some(6) => "tcp",
        Some(17) => "udp",
        Some(33) => "dccp",
        Some(58) => "icmpv6",
        Some(132) => "sctp",
        Some(136) => "udplite",
        _ => "th",
    }
}

/// `enum nft_meta_keys`.
pub(super) fn meta(key: u32) -> Field {
    match key {
        0 => Field::new(Subject::Flags, "meta length", 4),
        1 => Field::new(Subject::EtherType, "meta protocol", 2),
        2 => Field::new(Subject::Flags, "meta priority", 4),
        3 => Field::new(Subject::Flags, "meta mark", 4),
        4 => Field::new(Subject::InputIndex, "iif", 4),
        5 => Field::new(Subject::OutputIndex, "oif", 4),
        6 => Field::new(Subject::InputInterface, "iifname", libc::IFNAMSIZ),
        7 => Field::new(Subject::OutputInterface, "oifname", libc::IFNAMSIZ),
        8 => Field::new(Subject::Flags, "iiftype", 2),
        9 => Field::new(Subject::Flags, "oiftype", 2),
        10 => Field::new(Subject::Flags, "meta skuid", 4),
        11 => Field::new(Subject::Flags, "meta skgid", 4),
        12 => Field::new(Subject::Flags, "meta nftrace", 1),
        15 => Field::new(Subject::Family, "meta nfproto", 1),
        16 => Field::new(Subject::Protocol, "meta l4proto", 1),
        19 => Field::new(Subject::Flags, "meta pkttype", 1),
        20 => Field::new(Subject::Flags, "meta cpu", 4),
        21 => Field::new(Subject::Flags, "iifgroup", 4),
        22 => Field::new(Subject::Flags, "oifgroup", 4),
        23 => Field::new(Subject::Flags, "meta cgroup", 4),
        key => Field::new(Subject::Flags, format!("meta key {key}"), 4),
    }
}

/// `enum nft_ct_keys`. Directions: 0 original, 1 reply.
pub(super) fn ct(key: u32, direction: Option<u8>) -> Field {
    let direction = match direction {
        Some(0) => "original ",
        Some(_) => "reply ",
        None => "",
    };
    let (subject, name, bytes) = match key {
        0 => return Field::new(Subject::ConntrackState, "ct state", 4),
        1 => (Subject::Flags, "direction", 1),
        2 => (Subject::Flags, "status", 4),
        3 => (Subject::Flags, "mark", 4),
        8 => (Subject::Number, "saddr", 16),
        9 => (Subject::Number, "daddr", 16),
        10 => (Subject::Number, "protocol", 1),
        11 => (Subject::Number, "proto-src", 2),
        12 => (Subject::Number, "proto-dst", 2),
        17 => (Subject::Flags, "zone", 2),
        19 => (Subject::Number, "ip saddr", 4),
        20 => (Subject::Number, "ip daddr", 4),
        21 => (Subject::Number, "ip6 saddr", 16),
        22 => (Subject::Number, "ip6 daddr", 16),
        key => return Field::new(Subject::Flags, format!("ct {direction}key {key}"), 4),
    };
    Field::new(subject, format!("ct {direction}{name}"), bytes)
}

/// `enum nft_socket_keys`.
pub(super) fn socket(key: u32, level: u32) -> Field {
    match key {
        0 => Field::new(Subject::Number, "socket transparent", 1),
        1 => Field::new(Subject::Flags, "socket mark", 4),
        2 => Field::new(Subject::Number, "socket wildcard", 1),
        3 => Field::new(Subject::Flags, format!("socket cgroupv2 level {level}"), 8),
        key => Field::new(Subject::Flags, format!("socket key {key}"), 4),
    }
}

/// `NFTA_FIB_RESULT` and `NFTA_FIB_FLAGS`.
pub(super) fn fib(result: u32, flags: u32) -> Field {
    let keys = [(1, "saddr"), (2, "daddr"), (4, "mark"), (8, "iif"), (16, "oif")];
    let keys: Vec<_> = keys.iter().filter(|(bit, _)| flags & bit != 0).map(|(_, name)| *name).collect();
    let keys = keys.join(" . ");
    match result {
        1 => Field::new(Subject::Flags, format!("fib {keys} oif"), 4),
        2 => Field::new(Subject::Flags, format!("fib {keys} oifname"), libc::IFNAMSIZ),
        3 => Field::new(Subject::AddressType, format!("fib {keys} type"), 4),
        result => Field::new(Subject::Flags, format!("fib {keys} result {result}"), 4),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const IP_TCP: Layers = Layers { network: Some("ip"), transport: Some(6) };

    #[test]
    fn joined_loads_are_taken_apart() {
        let names: Vec<_> = payload(IP_TCP, 1, 12, 8).into_iter().map(|(f, n)| (f.name.into_owned(), n)).collect();
        assert_eq!(names, [("ip saddr".to_owned(), 4), ("ip daddr".to_owned(), 4)]);
        let ports: Vec<_> = payload(IP_TCP, 2, 0, 4).into_iter().map(|(f, _)| f.subject).collect();
        assert_eq!(ports, [Subject::SourcePort, Subject::DestinationPort]);
    }

    #[test]
    fn the_start_of_an_address_is_still_that_address() {
        let [(field, loaded)] = &payload(IP_TCP, 1, 16, 2)[..] else { panic!() };
        assert_eq!((field.subject, field.bytes, *loaded), (Subject::Destination, 4, 2));
    }

    #[test]
    fn without_the_network_protocol_an_offset_means_nothing() {
        let [(field, _)] = &payload(Layers::default(), 1, 12, 4)[..] else { panic!() };
        assert_eq!((field.subject, &*field.name), (Subject::Number, "@nh,96,32"));
    }

    #[test]
    fn icmp_has_no_ports() {
        let [(field, _)] = &payload(Layers { network: Some("ip"), transport: Some(1) }, 2, 0, 1)[..] else { panic!() };
        assert_eq!(&*field.name, "icmp type");
    }
}
