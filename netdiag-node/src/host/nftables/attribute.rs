//! Netlink attributes (`struct nlattr`): a type, a length and bytes, one after the other, padded to four bytes.

use std::borrow::Cow;

/// The upper two bits of a type say "nested" and "network byte order"; both are known from the type here.
const TYPE_MASK: u16 = 0x3fff;

const HEADER_BYTES: usize = 4;

/// Iterates over attributes. Stops at the first one whose length does not fit: what comes after it cannot be framed.
#[derive(Clone, Copy)]
pub(in crate::host) struct Attributes<'a>(pub &'a [u8]);

#[expect(clippy::copy_iterator, reason = "every search starts from a copy of this cursor of two words")]
impl<'a> Iterator for Attributes<'a> {
    type Item = (u16, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let header = self.0.get(..HEADER_BYTES)?;
        let length = usize::from(u16::from_ne_bytes([header[0], header[1]]));
        let kind = u16::from_ne_bytes([header[2], header[3]]) & TYPE_MASK;
        let value = self.0.get(HEADER_BYTES..length)?;
        self.0 = self.0.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    }
}

impl<'a> Attributes<'a> {
    pub(in crate::host) fn find(self, kind: u16) -> Option<&'a [u8]> {
        let mut attributes = self;
        attributes.find_map(|(found, value)| (found == kind).then_some(value))
    }

    /// Whether all bytes are attributes. What was cut off may have been a condition of a rule.
    pub(in crate::host) fn are_whole(self) -> bool {
        let mut attributes = self;
        while attributes.next().is_some() {}
        attributes.0.is_empty()
    }

    pub(in crate::host) fn u32(self, kind: u16) -> Option<u32> {
        self.find(kind).and_then(be_u32)
    }

    pub(in crate::host) fn u64(self, kind: u16) -> Option<u64> {
        Some(u64::from_be_bytes(self.find(kind)?.get(..8)?.try_into().ok()?))
    }

    pub(in crate::host) fn text(self, kind: u16) -> Option<Cow<'a, str>> {
        self.find(kind).map(text)
    }
}

/// nf_tables sends all its integers in network byte order.
pub(in crate::host) fn be_u32(value: &[u8]) -> Option<u32> {
    Some(u32::from_be_bytes(value.get(..4)?.try_into().ok()?))
}

/// A NUL-terminated name.
pub(in crate::host) fn text(value: &[u8]) -> Cow<'_, str> {
    String::from_utf8_lossy(value.split(|byte| *byte == 0).next().unwrap_or_default())
}

/// The comment in nftables' user data (libnftnl `udata.c`: one byte type, one byte length, value). Comments are type 0
/// both in rules and in set elements.
pub(in crate::host) fn user_comment(mut userdata: &[u8]) -> Option<String> {
    const COMMENT: u8 = 0;
    while let [kind, length, rest @ ..] = userdata {
        let value = rest.get(..usize::from(*length))?;
        if *kind == COMMENT {
            return Some(text(value).into_owned());
        }
        userdata = &rest[usize::from(*length)..];
    }
    None
}

/// Appends one attribute to a request.
pub(in crate::host) fn push(message: &mut Vec<u8>, kind: u16, value: &[u8]) {
    let length =
        u16::try_from(HEADER_BYTES + value.len()).expect("requests carry names, which are shorter than 256 bytes");
    message.extend_from_slice(&length.to_ne_bytes());
    message.extend_from_slice(&kind.to_ne_bytes());
    message.extend_from_slice(value);
    message.resize(message.len().next_multiple_of(4), 0);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_read_back_with_their_padding() {
        let mut message = Vec::new();
        push(&mut message, 1, b"abc\0x");
        push(&mut message, 2, &7u32.to_be_bytes());
        let attributes = Attributes(&message);
        assert_eq!(attributes.text(1).as_deref(), Some("abc"));
        assert_eq!(attributes.u32(2), Some(7));
        assert_eq!(attributes.u32(3), None);
    }

    #[test]
    fn a_length_beyond_the_end_stops_the_walk() {
        assert_eq!(Attributes(&[200, 0, 1, 0, 1, 2, 3, 4]).count(), 0);
        assert_eq!(Attributes(&[0, 0, 1, 0]).count(), 0);
        assert!(!Attributes(&[200, 0, 1, 0, 1, 2, 3, 4]).are_whole());
        assert!(Attributes(&[5, 0, 1, 0, 9, 0, 0, 0, 4, 0, 2, 0]).are_whole());
    }

    #[test]
    fn comments_are_found_behind_other_user_data() {
        assert_eq!(user_comment(&[3, 1, 9, 0, 3, b'h', b'i', 0]).as_deref(), Some("hi"));
        assert_eq!(user_comment(&[0, 200, b'h']), None);
    }
}
