//! A served certificate in words, bounded: it is the far side's text.

use std::net::IpAddr;

use jiff::Timestamp;
use netdiag_common::observation::series::tls::Certificate;
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::{GeneralName, ParsedExtension};
use x509_parser::time::ASN1Time;

/// Names of one certificate that are told. Content networks have a hundred.
const MAX_NAMES: usize = 100;
/// RFC 5280's upper bound of a DNS name is 255; a subject has more parts.
const MAX_TEXT: usize = 256;

pub(super) fn describe(der: &[u8], parsed: &X509Certificate<'_>) -> Certificate {
    Certificate {
        subject: cut(&parsed.subject().to_string()),
        issuer: cut(&parsed.issuer().to_string()),
        names: names(parsed),
        not_before: time(parsed.validity().not_before),
        not_after: time(parsed.validity().not_after),
        sha256: sha256(der),
        serial: cut(&parsed.raw_serial_as_string()),
    }
}

/// One that cannot be read, so that the chain's length stays true.
pub(super) fn unreadable(der: &[u8]) -> Certificate {
    Certificate {
        subject: "(not readable)".to_owned(),
        issuer: String::new(),
        names: Vec::new(),
        not_before: String::new(),
        not_after: String::new(),
        sha256: sha256(der),
        serial: String::new(),
    }
}

/// Hex of the DER's SHA-256.
pub(super) fn sha256(der: &[u8]) -> String {
    let digest = ring::digest::digest(&ring::digest::SHA256, der);
    let digits = digest.as_ref().iter().flat_map(|byte| [byte >> 4, byte & 15]);
    digits.filter_map(|digit| char::from_digit(digit.into(), 16)).collect()
}

/// RFC 3339; empty for a time that no calendar has.
pub(super) fn time(time: ASN1Time) -> String {
    Timestamp::from_second(time.timestamp()).map(|at| at.to_string()).unwrap_or_default()
}

/// Printable and short, whatever the far side wrote.
pub(super) fn cut(text: &str) -> String {
    text.chars().take(MAX_TEXT).map(|one| if one.is_control() { '?' } else { one }).collect()
}

/// DNS names and addresses of the alternative names; the common name is no name since RFC 9525.
fn names(parsed: &X509Certificate<'_>) -> Vec<String> {
    let alternatives = parsed.extensions().iter().filter_map(|extension| match extension.parsed_extension() {
        ParsedExtension::SubjectAlternativeName(names) => Some(&names.general_names),
        _ => None,
    });
    let texts = alternatives.flatten().filter_map(|name| match name {
        GeneralName::DNSName(name) => Some(cut(name)),
        GeneralName::IPAddress(bytes) => address(bytes).map(|address| address.to_string()),
        _ => None,
    });
    texts.take(MAX_NAMES).collect()
}

fn address(bytes: &[u8]) -> Option<IpAddr> {
    match bytes.len() {
        4 => <[u8; 4]>::try_from(bytes).ok().map(IpAddr::from),
        16 => <[u8; 16]>::try_from(bytes).ok().map(IpAddr::from),
        _ => None,
    }
}
