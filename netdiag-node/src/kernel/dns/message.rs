//! The question of a DNS message, from bytes that anybody may have sent.
//!
//! hickory-proto reads whole messages into many allocations; a question needs one, and this is called for each sample. A test
//! compares the two.

use netdiag_common::record::dns::HEADER_BYTES;

/// RFC 1035 §2.3.4.
const MAX_LABEL: u8 = 63;
const MAX_NAME: usize = 255;

/// A name that was not copied to its end is shown up to here.
const CUT: &str = "…";

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Question {
    /// Lower case, absolute, without the last dot; `.` for the root.
    pub(super) name: String,
    /// 0 when the copy ends before it.
    pub(super) kind: u16,
}

/// None for what is no question: labels that are too long, a name that is too long, compression (there is nothing before
/// the first name that it could point to), or an end in the middle of a message that is shorter than `room`.
pub(super) fn question(message: &[u8], room: usize) -> Option<Question> {
    let mut rest = message.get(HEADER_BYTES..)?;
    let mut name = String::with_capacity(64);
    let mut wire_bytes = 1;
    // A message that fills its room may go on behind it.
    let cut = |mut name: String| {
        (message.len() >= room).then(|| {
            name.push_str(CUT);
            Question { name, kind: 0 }
        })
    };
    loop {
        let Some((length, behind)) = rest.split_first() else { return cut(name) };
        if *length == 0 {
            rest = behind;
            break;
        }
        wire_bytes += usize::from(*length) + 1;
        if *length > MAX_LABEL || wire_bytes > MAX_NAME {
            return None;
        }
        if !name.is_empty() {
            name.push('.');
        }
        let Some((label, behind)) = behind.split_at_checked(usize::from(*length)) else {
            push_label(&mut name, behind);
            return cut(name);
        };
        push_label(&mut name, label);
        rest = behind;
    }
    if name.is_empty() {
        name.push('.');
    }
    match rest {
        [high, low, ..] => Some(Question { name, kind: u16::from_be_bytes([*high, *low]) }),
        _ => (message.len() >= room).then_some(Question { name, kind: 0 }),
    }
}

/// RFC 1035 §5.1: what is not printable as `\DDD`, dots and backslashes inside labels with a backslash.
fn push_label(name: &mut String, label: &[u8]) {
    for byte in label {
        match byte {
            b'.' | b'\\' => {
                name.push('\\');
                name.push(char::from(*byte));
            }
            b'!'..=b'~' => name.push(char::from(byte.to_ascii_lowercase())),
            _ => name.push_str(&format!("\\{byte:03}")),
        }
    }
}

/// As in the IANA registry "Resource Record (RR) TYPEs", and RFC 3597 for others.
pub(super) fn type_name(kind: u16) -> String {
    match kind {
        1 => "A",
        2 => "NS",
        5 => "CNAME",
        6 => "SOA",
        12 => "PTR",
        15 => "MX",
        16 => "TXT",
        28 => "AAAA",
        33 => "SRV",
        64 => "SVCB",
        65 => "HTTPS",
        255 => "ANY",
        _ => return format!("TYPE{kind}"),
    }
    .to_owned()
}

#[cfg(test)]
mod tests {
    use std::str::FromStr as _;

    use hickory_proto::op::{Message, Query};
    use hickory_proto::rr::{Name, RecordType};
    use proptest::prelude::*;

    use super::*;

    const ROOM: usize = 160;

    fn message(name: &str, kind: RecordType) -> Vec<u8> {
        let mut message = Message::query();
        message.add_query(Query::query(Name::from_str(name).unwrap(), kind));
        message.to_vec().unwrap()
    }

    fn read(bytes: &[u8]) -> Option<(String, u16)> {
        question(&bytes[..bytes.len().min(ROOM)], ROOM).map(|question| (question.name, question.kind))
    }

    #[test]
    fn names_as_resolvers_send_them() {
        assert_eq!(
            read(&message("Web.Shop.svc.cluster.local.", RecordType::AAAA)),
            Some(("web.shop.svc.cluster.local".to_owned(), 28))
        );
        assert_eq!(read(&message(".", RecordType::NS)), Some((".".to_owned(), 2)));
    }

    #[test]
    fn every_byte_can_be_part_of_a_label() {
        let mut bytes = vec![0; HEADER_BYTES];
        bytes.extend([5, b'.', b'\\', 0, b' ', 0xff, 0, 0, 1, 0, 1]);
        assert_eq!(read(&bytes), Some((r"\.\\\000\032\255".to_owned(), 1)));
    }

    #[test]
    fn what_is_broken_is_no_question() {
        let header = [0; HEADER_BYTES];
        let with = |question: &[u8]| read(&[&header[..], question].concat());
        assert_eq!(with(&[]), None, "nothing behind the header");
        assert_eq!(with(&[3, b'a', b'b']), None, "ends inside a label");
        assert_eq!(with(&[1, b'a', 0, 0]), None, "ends inside the type");
        assert_eq!(with(&[0xc0, 12, 0, 1, 0, 1]), None, "points to itself");
        assert_eq!(with(&[64; 100]), None, "a label of 64 bytes");
        assert_eq!(question(&[0; 5], ROOM), None, "no header");
        let mut long = header.to_vec();
        for _ in 0..5 {
            long.push(62);
            long.extend([b'a'; 62]);
        }
        assert_eq!(question(&long, 1000), None, "a name of 315 bytes");
    }

    #[test]
    fn a_name_longer_than_its_copy_is_shown_as_cut() {
        let label = "a".repeat(60);
        let bytes = message(&format!("{label}.{label}.{label}."), RecordType::A);
        let (name, kind) = read(&bytes).unwrap();
        assert_eq!(name, format!("{label}.{label}.{}…", "a".repeat(ROOM - HEADER_BYTES - 2 * 61 - 1)));
        assert_eq!(kind, 0);
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300), room in 0..300_usize) {
            if let Some(question) = question(&bytes, room) {
                prop_assert!(question.name.len() <= 4 * MAX_NAME + CUT.len());
                prop_assert!(question.name.chars().all(|letter| letter.is_ascii_graphic() || letter == '…'));
            }
        }

        /// A strict reader agrees with a general one about every name that it accepts.
        #[test]
        fn hickory_reads_the_same(
            labels in proptest::collection::vec("[a-zA-Z0-9][a-zA-Z0-9_]{0,19}", 0..6), kind in any::<u16>(), tail in any::<[u8; 9]>()
        ) {
            let mut bytes = message(&format!("{}.", labels.join(".")), RecordType::from(kind));
            bytes.extend(tail);
            let (name, found) = read(&bytes).unwrap();
            prop_assert_eq!(name, if labels.is_empty() { ".".to_owned() } else { labels.join(".").to_lowercase() });
            prop_assert_eq!(found, kind);
        }
    }
}
