//! Reads the fixed places of x_tables structures. They are in host byte order unless said otherwise.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Subnets, Ipv6Subnets};
use netdiag_common::observation::rules::PortRange;

pub(crate) fn u8_at(info: &[u8], at: usize) -> Option<u8> {
    info.get(at).copied()
}

pub(crate) fn u16_at(info: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(info.get(at..at + 2)?.try_into().ok()?))
}

pub(crate) fn be16_at(info: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(info.get(at..at + 2)?.try_into().ok()?))
}

pub(crate) fn u32_at(info: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(info.get(at..at + 4)?.try_into().ok()?))
}

pub(crate) fn u64_at(info: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_ne_bytes(info.get(at..at + 8)?.try_into().ok()?))
}

/// `union nf_inet_addr`: sixteen bytes, of which IPv4 uses the first four.
pub(crate) fn address_at(info: &[u8], at: usize, ipv6: bool) -> Option<IpAddr> {
    Some(if ipv6 {
        Ipv6Addr::from(<[u8; 16]>::try_from(info.get(at..at + 16)?).ok()?).into()
    } else {
        Ipv4Addr::from(<[u8; 4]>::try_from(info.get(at..at + 4)?).ok()?).into()
    })
}

/// A NUL-terminated text in a field of `bytes` bytes.
pub(crate) fn text_at(info: &[u8], at: usize, bytes: usize) -> Option<String> {
    let field = info.get(at..info.len().min(at + bytes))?;
    let text = field.split(|byte| *byte == 0).next()?;
    Some(String::from_utf8_lossy(text).into_owned())
}

/// The nets that hold exactly the addresses from `first` to `last`.
pub(crate) fn addresses(first: IpAddr, last: IpAddr) -> Option<Vec<IpNet>> {
    match (first, last) {
        (IpAddr::V4(first), IpAddr::V4(last)) if first <= last => {
            Some(Ipv4Subnets::new(first, last, 0).map(IpNet::V4).collect())
        }
        (IpAddr::V6(first), IpAddr::V6(last)) if first <= last => {
            Some(Ipv6Subnets::new(first, last, 0).map(IpNet::V6).collect())
        }
        _ => None,
    }
}

/// None for a range that holds every port, which is how "any" is written.
pub(crate) fn port_range(first: u16, last: u16) -> Option<PortRange> {
    (first, last).ne(&(0, u16::MAX)).then_some(PortRange { first, last })
}
