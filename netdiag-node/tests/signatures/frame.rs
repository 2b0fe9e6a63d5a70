//! Ethernet frames from words: `PROTOCOL KEY=VALUE ...`, correct unless the words ask for a fault.
//!
//! PROTOCOL is `udp`, `tcp`, `icmp`, a number, or `raw` with `type=` and `payload=` in hex. Keys: `src` `dst` `sport` `dport`
//! `ttl` `id` `length` (of the IP payload's data) `payload` (hex) `flags` (letters) `seq` `ack` `timestamp` `options` (hex)
//! `version` `total-length`; words: `more-fragments` `dont-fragment` `bad-checksum` `bad-header-checksum`.

use std::net::Ipv4Addr;

pub struct Words<'a>(pub &'a [String]);

impl<'a> Words<'a> {
    pub fn get(&self, key: &str) -> Option<&'a str> {
        self.0.iter().find_map(|word| word.strip_prefix(key)?.strip_prefix('='))
    }

    pub fn has(&self, word: &str) -> bool {
        self.0.iter().any(|found| found == word)
    }

    pub fn number<T: std::str::FromStr>(&self, key: &str, default: T) -> T {
        self.get(key).map_or(default, |text| text.parse().unwrap_or_else(|_| panic!("{key}={text} is no number")))
    }

    fn address(&self, key: &str, default: [u8; 4]) -> [u8; 4] {
        self.get(key).map_or(default, |text| text.parse::<Ipv4Addr>().unwrap().octets())
    }

    fn hex(&self, key: &str) -> Option<Vec<u8>> {
        let digits = self.get(key)?.as_bytes();
        let byte = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap();
        Some(digits.chunks(2).map(byte).collect())
    }
}

/// The address of a device of the topology (`r0`), or as written.
pub fn mac(name: &str) -> [u8; 6] {
    match name {
        "c0" => [2, 0, 0, 0, 1, 2],
        "r0" => [2, 0, 0, 0, 1, 1],
        "r1" => [2, 0, 0, 0, 2, 1],
        "s0" => [2, 0, 0, 0, 2, 2],
        written => {
            let bytes: Vec<u8> = written.split(':').map(|byte| u8::from_str_radix(byte, 16).unwrap()).collect();
            bytes.try_into().unwrap()
        }
    }
}

pub fn build(from: &str, protocol: &str, words: &Words<'_>) -> Vec<u8> {
    let mut frame = mac(words.get("to").expect("a frame goes to a device")).to_vec();
    frame.extend(mac(from));
    if protocol == "raw" {
        frame.extend(words.hex("type").expect("a raw frame has a type"));
        frame.extend(words.hex("payload").expect("a raw frame has a payload"));
        return frame;
    }
    frame.extend([8, 0]);
    let (source, destination) = (words.address("src", [10, 1, 0, 2]), words.address("dst", [10, 2, 0, 2]));
    let number = match protocol {
        "icmp" => 1,
        "tcp" => 6,
        "udp" => 17,
        number => number.parse().unwrap_or_else(|_| panic!("no such protocol: {number}")),
    };
    let data = words.hex("payload").unwrap_or_else(|| {
        let length = if number == 6 { 0 } else { 8 };
        vec![b'x'; words.number("length", length)]
    });
    let mut transport = transport(number, words, &data);
    if let Some(at) = match number {
        1 => Some(2),
        6 => Some(16),
        17 => Some(6),
        _ => None,
    } {
        let length = u16::try_from(transport.len()).unwrap().to_be_bytes();
        let pseudo: Vec<u8> = match number {
            1 => Vec::new(),
            _ => [&source[..], &destination, &[0, number], &length].concat(),
        };
        let wrong = if words.has("bad-checksum") { 0x1234 } else { 0 };
        let sum = checksum(&[pseudo, transport.clone()].concat()) ^ wrong;
        transport[at..at + 2].copy_from_slice(&sum.to_be_bytes());
    }
    frame.extend(header(number, source, destination, words, transport.len()));
    frame.extend(transport);
    frame
}

fn header(protocol: u8, source: [u8; 4], destination: [u8; 4], words: &Words<'_>, payload: usize) -> Vec<u8> {
    let options = words.hex("options").unwrap_or_default();
    let length = 20 + options.len();
    let total = words.number("total-length", u16::try_from(length + payload).unwrap());
    let fragment = u16::from(words.has("dont-fragment")) << 14 | u16::from(words.has("more-fragments")) << 13;
    let mut header = vec![words.number("version", 4_u8) << 4 | u8::try_from(length / 4).unwrap(), 0];
    header.extend(total.to_be_bytes());
    header.extend(words.number("id", 1_u16).to_be_bytes());
    header.extend(fragment.to_be_bytes());
    header.extend([words.number("ttl", 64), protocol, 0, 0]);
    header.extend(source);
    header.extend(destination);
    header.extend(options);
    let wrong = if words.has("bad-header-checksum") { 0x1111 } else { 0 };
    let sum = checksum(&header) ^ wrong;
    header[10..12].copy_from_slice(&sum.to_be_bytes());
    header
}

/// RFC 768, 792, 9293; checksums are still 0.
fn transport(protocol: u8, words: &Words<'_>, data: &[u8]) -> Vec<u8> {
    let (from, to) = (words.number("sport", 1111_u16), words.number("dport", 9_u16));
    let mut out = Vec::new();
    match protocol {
        1 => out.extend([8, 0, 0, 0, 0, 1, 0, 1]),
        6 => {
            let mut options = Vec::new();
            if let Some(timestamp) = words.get("timestamp") {
                // Two fillers, then RFC 7323's option with an answer of 1.
                options.extend([1, 1, 8, 10]);
                options.extend(timestamp.parse::<u32>().unwrap().to_be_bytes());
                options.extend(1_u32.to_be_bytes());
            }
            let flags: u8 =
                words.get("flags").unwrap_or("S").chars().map(|flag| 1 << "FSRPAU".find(flag).unwrap()).sum();
            out.extend(from.to_be_bytes());
            out.extend(to.to_be_bytes());
            out.extend(words.number("seq", 1_u32).to_be_bytes());
            out.extend(words.number("ack", 0_u32).to_be_bytes());
            out.extend([u8::try_from(5 + options.len() / 4).unwrap() << 4, flags, 4, 0, 0, 0, 0, 0]);
            out.extend(options);
        }
        17 => {
            out.extend(from.to_be_bytes());
            out.extend(to.to_be_bytes());
            out.extend(u16::try_from(8 + data.len()).unwrap().to_be_bytes());
            out.extend([0, 0]);
        }
        _ => {}
    }
    out.extend(data);
    out
}

/// RFC 1071.
fn checksum(bytes: &[u8]) -> u16 {
    let word = |pair: &[u8]| u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0));
    let mut sum: u32 = bytes.chunks(2).map(word).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).unwrap()
}
