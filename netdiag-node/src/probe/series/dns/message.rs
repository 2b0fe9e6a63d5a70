//! Queries as they are sent, and what comes back, held against the query: answers are the far side's text.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use hickory_proto::op::{Edns, Header, Message, MessageType, Query};
use hickory_proto::rr::{Name, RData, RecordType};
use hickory_proto::serialize::binary::{BinDecodable as _, BinDecoder};
use netdiag_common::observation::series::dns::{DnsAnswer, DnsType};

use crate::rcode::rcode_name;

/// RFC 1035 §2.3.4, as text without the last dot: 255 bytes on the wire have a length before each label and a root.
const MAX_NAME: usize = 253;
const MAX_LABEL: usize = 63;
/// RFC 1035 §4.1.1.
const HEADER_BYTES: usize = 12;
/// Records of one answer that are told, and characters of each.
const MAX_RECORDS: usize = 64;
const MAX_RECORD_TEXT: usize = 512;

/// A query that can be sent.
#[derive(Debug, Clone)]
pub(super) struct Question {
    pub(super) record: DnsType,
    /// Absolute, without the last dot.
    pub(super) name: String,
    pub(super) bytes: Vec<u8>,
    id: u16,
    query: Query,
}

/// An answer to a question of ours, whatever it says.
#[derive(Debug, Clone)]
pub(super) struct Answer {
    pub(super) told: DnsAnswer,
    pub(super) rcode: u16,
    pub(super) truncated: bool,
    /// Records in its answer section, by its header.
    pub(super) answers: u16,
    /// Neither answer nor referral by one that may: glibc's resolver calls this a lame delegation.
    pub(super) is_lame: bool,
    /// Why it could not be read behind its question.
    pub(super) broken: Option<String>,
}

/// What a message is to a question.
pub(super) enum Heard {
    Answer(Box<Answer>),
    /// Another id, another question, or no answer at all.
    NotOurs,
    /// It has our id and cannot be read as far as its question.
    Malformed(String),
}

impl Question {
    /// `edns_bytes`: the size that is offered (RFC 6891); none: without OPT. An error says in words why the name cannot be asked.
    pub(super) fn new(name: &str, record: DnsType, edns_bytes: Option<u16>) -> Result<Self, String> {
        let name = checked(name)?;
        let mut absolute = Name::from_ascii(name).map_err(|error| format!("{name:?} is no DNS name: {error}"))?;
        absolute.set_fqdn(true);
        let query = Query::query(absolute, kind(record));
        let mut message = Message::query();
        message.metadata.recursion_desired = true;
        message.add_query(query.clone());
        if let Some(bytes) = edns_bytes {
            let mut edns = Edns::new();
            edns.set_max_payload(bytes);
            message.set_edns(edns);
        }
        let bytes = message.to_vec().map_err(|error| format!("{name:?} cannot be asked: {error}"))?;
        Ok(Self { record, name: name.to_owned(), bytes, id: message.metadata.id, query })
    }

    /// Over HTTPS the id is 0, so that answers can be cached (RFC 8484 §4.1).
    pub(super) fn for_https(mut self) -> Self {
        self.id = 0;
        self.bytes[..2].fill(0);
        self
    }

    pub(super) fn hear(&self, bytes: &[u8]) -> Heard {
        if bytes.len() < HEADER_BYTES {
            return Heard::NotOurs;
        }
        let mut decoder = BinDecoder::new(bytes);
        let Ok(header) = Header::read(&mut decoder) else { return Heard::NotOurs };
        let metadata = header.metadata;
        if metadata.id != self.id || metadata.message_type != MessageType::Response {
            return Heard::NotOurs;
        }
        let rcode = u16::from(metadata.response_code);
        match header.counts.queries {
            1 => match Query::read(&mut decoder) {
                Ok(query) if query == self.query => {}
                Ok(_) => return Heard::NotOurs,
                Err(error) => return Heard::Malformed(error.to_string()),
            },
            // Servers that could not read the question answer without it.
            0 if rcode != 0 => {}
            _ => return Heard::NotOurs,
        }
        let mut answer = Answer {
            told: DnsAnswer {
                rcode: rcode_name(rcode),
                bytes: u32::try_from(bytes.len()).unwrap_or(u32::MAX),
                ..DnsAnswer::default()
            },
            rcode,
            truncated: metadata.truncation,
            answers: header.counts.answers,
            is_lame: rcode == 0
                && header.counts.answers == 0
                && !metadata.authoritative
                && !metadata.recursion_available
                && header.counts.additionals == 0,
            broken: None,
        };
        for (is_set, word) in [
            (metadata.authoritative, "aa"),
            (metadata.truncation, "tc"),
            (metadata.recursion_desired, "rd"),
            (metadata.recursion_available, "ra"),
            (metadata.authentic_data, "ad"),
            (metadata.checking_disabled, "cd"),
        ] {
            if is_set {
                answer.told.flags.push(word.to_owned());
            }
        }
        match Message::from_vec(bytes) {
            Ok(message) => fill(&mut answer, &message),
            // A truncated answer may end anywhere.
            Err(_) if metadata.truncation => {}
            Err(error) => answer.broken = Some(error.to_string()),
        }
        Heard::Answer(Box::new(answer))
    }
}

fn fill(answer: &mut Answer, message: &Message) {
    // With the upper bits, which only the OPT record has (RFC 6891 §6.1.3).
    answer.rcode = message.metadata.response_code.into();
    answer.told.rcode = rcode_name(answer.rcode);
    answer.told.ttl = message.answers.iter().map(|record| record.ttl).min();
    answer.told.edns_bytes = message.edns.as_ref().map(Edns::max_payload);
    answer.told.soa = message.authorities.iter().find_map(|record| match &record.data {
        RData::SOA(_) => Some(record.name.to_ascii()),
        _ => None,
    });
    let told = message.answers.iter().take(MAX_RECORDS);
    answer.told.records = told
        .map(|record| {
            let text = format!("{} {} {} {}", record.name, record.ttl, record.record_type(), record.data);
            text.chars().take(MAX_RECORD_TEXT).map(|one| if one.is_control() { '?' } else { one }).collect()
        })
        .collect();
    let addresses = message.answers.iter().filter_map(|record| match &record.data {
        RData::A(address) => Some(IpAddr::from(Ipv4Addr::from(*address))),
        RData::AAAA(address) => Some(Ipv6Addr::from(*address).into()),
        _ => None,
    });
    answer.told.addresses = addresses.take(MAX_RECORDS).collect();
}

/// Without its last dot.
fn checked(name: &str) -> Result<&str, String> {
    let bare = name.strip_suffix('.').unwrap_or(name);
    if name == "." {
        return Ok(name);
    }
    if bare.len() > MAX_NAME {
        return Err(format!("a name of {} bytes cannot be asked: a DNS name has at most {MAX_NAME}", bare.len()));
    }
    for label in bare.split('.') {
        if label.is_empty() {
            return Err(format!("{name:?} is no DNS name: a label is empty"));
        }
        if label.len() > MAX_LABEL {
            return Err(format!("a label of {} bytes cannot be asked: it has at most {MAX_LABEL}", label.len()));
        }
    }
    Ok(bare)
}

fn kind(record: DnsType) -> RecordType {
    match record {
        DnsType::A => RecordType::A,
        DnsType::Aaaa => RecordType::AAAA,
        DnsType::Cname => RecordType::CNAME,
        DnsType::Mx => RecordType::MX,
        DnsType::Ns => RecordType::NS,
        DnsType::Ptr => RecordType::PTR,
        DnsType::Soa => RecordType::SOA,
        DnsType::Srv => RecordType::SRV,
        DnsType::Txt => RecordType::TXT,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn question() -> Question {
        Question::new("web.shop.svc.cluster.local.", DnsType::A, None).unwrap()
    }

    /// The query sent back as an answer, with some bytes changed.
    fn answer(change: impl FnOnce(&mut Vec<u8>)) -> Heard {
        let question = question();
        let mut bytes = question.bytes.clone();
        bytes[2] |= 0x80;
        change(&mut bytes);
        question.hear(&bytes)
    }

    #[test]
    fn names_that_cannot_be_asked_are_refused_in_words() {
        for (name, words) in [
            (format!("{}.a", "x".repeat(64)), "a label of 64 bytes"),
            (vec!["abcdefg"; 40].join("."), "a name of 319 bytes"),
            ("a..b".to_owned(), "a label is empty"),
            (String::new(), "a label is empty"),
            ("a b.c".to_owned(), "is no DNS name"),
        ] {
            let error = Question::new(&name, DnsType::A, None).unwrap_err();
            assert!(error.contains(words), "{error}");
        }
        assert!(Question::new(&vec!["abcdefg"; 31].join("."), DnsType::A, None).is_ok());
        assert!(Question::new(".", DnsType::Ns, None).is_ok());
    }

    #[test]
    fn other_id_and_other_question_are_not_ours() {
        assert!(matches!(answer(|_| {}), Heard::Answer(_)));
        assert!(matches!(answer(|bytes| bytes[0] ^= 1), Heard::NotOurs));
        assert!(matches!(answer(|bytes| bytes[2] &= 0x7f), Heard::NotOurs), "a query");
        assert!(matches!(answer(|bytes| bytes[13] = b'W'), Heard::Answer(_)), "names have no case");
        assert!(matches!(answer(|bytes| bytes[13] = b'v'), Heard::NotOurs));
        assert!(matches!(answer(|bytes| bytes.truncate(11)), Heard::NotOurs));
        assert!(matches!(answer(|bytes| bytes.truncate(20)), Heard::Malformed(_)));
    }

    #[test]
    fn loops_and_lies_end() {
        // A pointer to itself where the question's name is.
        assert!(matches!(answer(|bytes| bytes[12..14].copy_from_slice(&[0xc0, 12])), Heard::Malformed(_)));
        let broken = |heard| match heard {
            Heard::Answer(answer) => answer.broken.is_some(),
            _ => false,
        };
        assert!(broken(answer(|bytes| bytes[6..8].fill(0xff))), "65535 answers that are not there");
        assert!(broken(answer(|bytes| {
            let at = u8::try_from(bytes.len()).unwrap();
            bytes[7] = 1;
            bytes.extend([0xc0, at, 0, 1, 0, 1, 0, 0, 0, 1, 0, 4, 1, 2, 3, 4]);
        })));
    }

    #[test]
    fn truncated_answer_may_end_anywhere() {
        let Heard::Answer(cut) = answer(|bytes| {
            bytes[2] |= 2;
            bytes[7] = 1;
        }) else {
            panic!()
        };
        assert!(cut.truncated && cut.broken.is_none());
    }
}
