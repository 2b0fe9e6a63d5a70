//! The bytes of netlink messages: their headers, and the attributes that requests and answers are made of.

/// Length of `struct nlmsghdr`.
pub(super) const HEADER_BYTES: usize = 16;
/// The attribute's type without the two flag bits (nested, byte order).
const ATTRIBUTE_TYPE: u16 = 0x3fff;

/// The type and payload of each message of a datagram that answers no request. Stops at the first one that does not fit.
pub(crate) fn messages(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let header = Header::parse(bytes)?;
        let payload = bytes.get(HEADER_BYTES..header.length)?;
        bytes = bytes.get(align(header.length)..).unwrap_or_default();
        Some((header.kind, payload))
    })
}

/// The type and payload of each attribute (`struct nlattr`). Stops at the first one that does not fit.
pub(crate) fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let length = usize::from(short(bytes, 0)?);
        let kind = short(bytes, 2)? & ATTRIBUTE_TYPE;
        let payload = bytes.get(4..length)?;
        bytes = bytes.get(align(length)..).unwrap_or_default();
        Some((kind, payload))
    })
}

/// One attribute for a request.
pub(crate) fn attribute(kind: u16, payload: &[u8]) -> Vec<u8> {
    let length = u16::try_from(4 + payload.len()).expect("attributes of requests are a few bytes");
    let mut bytes = Vec::with_capacity(align(length.into()));
    bytes.extend(length.to_ne_bytes());
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(payload);
    bytes.resize(align(length.into()), 0);
    bytes
}

/// Host byte order, as the kernel writes everything that is not declared otherwise.
pub(crate) fn short(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

/// Host byte order.
pub(crate) fn int(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

/// Host byte order.
pub(crate) fn long(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_ne_bytes(bytes.get(at..at + 8)?.try_into().ok()?))
}

/// `AF_UNSPEC`, `AF_INET` and `AF_INET6` as the byte that requests and messages carry.
pub(crate) const UNSPECIFIED: u8 = 0;
pub(crate) const IPV4: u8 = 2;
pub(crate) const IPV6: u8 = 10;

/// A name that the kernel ends with a zero byte.
pub(crate) fn string(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(&bytes[..end]).into_owned()
}

/// An address by its length: 4 or 16 bytes in network byte order.
pub(crate) fn address(bytes: &[u8]) -> Option<std::net::IpAddr> {
    match bytes.len() {
        4 => <[u8; 4]>::try_from(bytes).ok().map(Into::into),
        16 => <[u8; 16]>::try_from(bytes).ok().map(Into::into),
        _ => None,
    }
}

/// `struct nlmsghdr`, without the port that sent it.
pub(super) struct Header {
    pub(super) length: usize,
    pub(super) kind: u16,
    pub(super) flags: u16,
    pub(super) sequence: u32,
}

impl Header {
    pub(super) fn parse(bytes: &[u8]) -> Option<Self> {
        let length = int(bytes, 0)? as usize;
        let header = Self { length, kind: short(bytes, 4)?, flags: short(bytes, 6)?, sequence: int(bytes, 8)? };
        (length >= HEADER_BYTES).then_some(header)
    }
}

/// Messages and attributes start at multiples of four.
pub(super) fn align(length: usize) -> usize {
    length.next_multiple_of(4)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_come_back_as_they_were_written() {
        let bytes = [attribute(3, b"eth0\0"), attribute(4, &1500u32.to_ne_bytes())].concat();
        let found: Vec<_> = attributes(&bytes).collect();
        assert_eq!(found.len(), 2);
        assert_eq!(string(found[0].1), "eth0");
        assert_eq!(int(found[1].1, 0), Some(1500));
    }

    #[test]
    fn nested_flag_is_not_part_of_the_type() {
        let bytes = attribute(0x8012, &[]);
        assert_eq!(attributes(&bytes).next().map(|(kind, _)| kind), Some(0x12));
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_end(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..200)) {
            assert!(attributes(&bytes).count() <= bytes.len());
            assert!(messages(&bytes).count() <= bytes.len() / HEADER_BYTES);
        }
    }
}
