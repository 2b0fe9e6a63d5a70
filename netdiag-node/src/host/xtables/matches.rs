//! Matches of x_tables (`-m NAME`).

use netdiag_common::observation::rules::{Match, PortRange};

use super::bytes::{address_at, addresses, port_range, text_at, u8_at, u16_at, u32_at};
use super::{extension, rarer, words};

/// What one `-m` says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Part {
    /// Empty for a comment, which asks nothing.
    pub matches: Vec<Match>,
    pub comment: Option<String>,
    /// As `iptables -S` prints it.
    pub text: String,
}

/// Reads `struct xt_NAME_…` of this revision. What is not known, or too short, becomes `Match::Other`.
pub(crate) fn parse_match(name: &str, revision: u32, info: &[u8], ipv6: bool) -> Part {
    let part = match name {
        "comment" => comment(info),
        "conntrack" => conntrack(revision, info),
        "state" => state(info),
        "tcp" => tcp(info),
        "udp" | "udplite" => udp(name, info),
        "multiport" => multiport(info),
        "iprange" => iprange(info, ipv6),
        "addrtype" => addrtype(revision, info),
        "mark" | "connmark" => mark(name, info),
        "statistic" => statistic(info),
        "limit" => limit(info),
        "recent" => recent(revision, info, ipv6),
        "icmp" | "icmp6" => icmp(name, info),
        "nfacct" => text_at(info, 0, 32).map(|counter| other(format!("-m nfacct --nfacct-name {counter}"))),
        "set" => u16_at(info, 0).map(|index| other(format!("-m set (ipset number {index})"))),
        _ => {
            let headers = || extension::parse(name, info, ipv6).map(|options| format!("-m {name}{options}"));
            rarer::parse(name, revision, info).or_else(headers).map(other)
        }
    };
    part.unwrap_or_else(|| other(format!("-m {name} (revision {revision}, {} bytes, not decoded)", info.len())))
}

fn other(text: String) -> Part {
    Part { matches: vec![Match::Other { text: text.clone() }], comment: None, text }
}

pub(super) fn not(inverted: bool) -> &'static str {
    if inverted { "! " } else { "" }
}

/// `struct xt_comment_info`.
fn comment(info: &[u8]) -> Option<Part> {
    let comment = text_at(info, 0, 256)?;
    let text = format!("-m comment --comment {}", words::quoted(&comment));
    Some(Part { matches: Vec::new(), comment: Some(comment), text })
}

/// `struct xt_conntrack_mtinfo1` to `3`: the flags start at the same place in all of them.
fn conntrack(revision: u32, info: &[u8]) -> Option<Part> {
    const STATE: u16 = 1 << 0;
    const STATUS: u16 = 1 << 6;
    /// Says that the rule was written with `-m state`.
    const STATE_ALIAS: u16 = 1 << 13;
    let (flags, inverted) = (u16_at(info, 146)?, u16_at(info, 148)?);
    let (states, status) = match revision {
        1 => (u16::from(u8_at(info, 150)?), u16::from(u8_at(info, 151)?)),
        2 | 3 => (u16_at(info, 150)?, u16_at(info, 152)?),
        _ => return None,
    };
    let mut part = Part { matches: Vec::new(), comment: None, text: "-m conntrack".into() };
    if flags & STATE != 0 {
        let negated = inverted & STATE != 0;
        let (names, all_known) = state_names(states);
        part.text += &format!(" {}--ctstate {}", not(negated), names.join(",").to_uppercase());
        part.matches.push(if all_known {
            Match::ConntrackState { states: names, negated }
        } else {
            Match::Other { text: format!("{}ctstate {}", not(negated), names.join(",").to_uppercase()) }
        });
    }
    if flags & STATUS != 0 {
        let text = format!("{}--ctstatus {status:#x}", not(inverted & STATUS != 0));
        part.text += &format!(" {text}");
        part.matches.push(Match::Other { text });
    }
    if flags & !(STATE | STATUS | STATE_ALIAS) != 0 {
        let text = format!("conntrack flags {:#x} inverted {inverted:#x}", flags & !(STATE | STATUS | STATE_ALIAS));
        part.text += &format!(" ({text})");
        part.matches.push(Match::Other { text });
    }
    Some(part)
}

/// `XT_CONNTRACK_STATE_*`. The second value is false when a name is none of the contract's (`snat`, `dnat`).
fn state_names(mask: u16) -> (Vec<String>, bool) {
    let known = [
        (1, "invalid"),
        (2, "established"),
        (4, "related"),
        (8, "new"),
        (64, "snat"),
        (128, "dnat"),
        (256, "untracked"),
    ];
    let names = known.iter().filter(|(bit, _)| mask & bit != 0).map(|(_, name)| (*name).to_owned());
    let plain: u16 = 1 | 2 | 4 | 8 | 256;
    (names.collect(), mask & !plain == 0)
}

/// `struct xt_state_info`: the same bits, but untracked follows the five states directly.
fn state(info: &[u8]) -> Option<Part> {
    const UNTRACKED: u32 = 1 << 6;
    let mask = u32_at(info, 0)?;
    let (mut states, all_known) = state_names(u16::try_from(mask & 0xf).ok()?);
    if mask & UNTRACKED != 0 {
        states.push("untracked".into());
    }
    let text = format!("-m state --state {}", states.join(",").to_uppercase());
    let matches = if all_known && mask & !(0xf | UNTRACKED) == 0 {
        vec![Match::ConntrackState { states, negated: false }]
    } else {
        vec![Match::Other { text: text.clone() }]
    };
    Some(Part { matches, comment: None, text })
}

/// `struct xt_tcp`.
fn tcp(info: &[u8]) -> Option<Part> {
    const OPTION_INVERTED: u8 = 0x08;
    const FLAGS_INVERTED: u8 = 0x04;
    let (option, mask, compared, inverted) = (u8_at(info, 8)?, u8_at(info, 9)?, u8_at(info, 10)?, u8_at(info, 11)?);
    let mut part = ports("tcp", info, inverted)?;
    if mask != 0 {
        let (mask, compared) = (flags(mask), flags(compared));
        let text = format!("{}--tcp-flags {mask} {compared}", not(inverted & FLAGS_INVERTED != 0));
        part.text += &format!(" {text}");
        part.matches.push(Match::Other { text });
    }
    if option != 0 {
        let text = format!("{}--tcp-option {option}", not(inverted & OPTION_INVERTED != 0));
        part.text += &format!(" {text}");
        part.matches.push(Match::Other { text });
    }
    Some(part)
}

/// As `iptables` takes them; it has no names for the last two bits.
fn flags(bits: u8) -> String {
    const NAMES: [(u8, &str); 6] = [(1, "FIN"), (2, "SYN"), (4, "RST"), (8, "PSH"), (16, "ACK"), (32, "URG")];
    match bits {
        0 => "NONE".to_owned(),
        1..64 => {
            let set = NAMES.iter().filter(|(bit, _)| bits & bit != 0).map(|(_, name)| *name);
            set.collect::<Vec<_>>().join(",")
        }
        64.. => format!("{bits:#04x}"),
    }
}

/// `struct xt_udp`.
fn udp(name: &str, info: &[u8]) -> Option<Part> {
    ports(name, info, u8_at(info, 8)?)
}

/// Two ranges of ports, and their inversion in the lowest two bits.
fn ports(name: &str, info: &[u8], inverted: u8) -> Option<Part> {
    let range = |at| Some((u16_at(info, at)?, u16_at(info, at + 2)?));
    let (source, destination) = (range(0)?, range(4)?);
    let mut part = Part { matches: Vec::new(), comment: None, text: format!("-m {name}") };
    for ((first, last), option, bit) in [(source, "--sport", 1), (destination, "--dport", 2)] {
        let negated = inverted & bit != 0;
        let Some(range) = port_range(first, last).or(negated.then_some(PortRange { first, last })) else { continue };
        part.text += &format!(" {}{option} {}", not(negated), spell(range));
        let ranges = vec![range];
        part.matches.push(if option == "--sport" {
            Match::SourcePort { ranges, negated }
        } else {
            Match::DestinationPort { ranges, negated }
        });
    }
    Some(part)
}

fn spell(range: PortRange) -> String {
    if range.first == range.last { range.first.to_string() } else { format!("{}:{}", range.first, range.last) }
}

/// `struct xt_multiport_v1`.
fn multiport(info: &[u8]) -> Option<Part> {
    const MOST: u8 = 15;
    let (side, count, inverted) = (u8_at(info, 0)?, u8_at(info, 1)?, u8_at(info, 47)? != 0);
    let mut ranges = Vec::new();
    let mut index = 0;
    while index < count.min(MOST) {
        let at = |index: u8| u16_at(info, 2 + 2 * usize::from(index));
        // A flag on a port says that the next one ends its range.
        let is_range = u8_at(info, 32 + usize::from(index))? != 0 && index + 1 < count;
        let first = at(index)?;
        let last = if is_range { at(index + 1)? } else { first };
        ranges.push(PortRange { first, last });
        index += if is_range { 2 } else { 1 };
    }
    let option = ["--sports", "--dports", "--ports"].get(usize::from(side))?;
    let listed = ranges.iter().map(|range| spell(*range)).collect::<Vec<_>>().join(",");
    let text = format!("-m multiport {}{option} {listed}", not(inverted));
    let found = match side {
        0 => Match::SourcePort { ranges, negated: inverted },
        1 => Match::DestinationPort { ranges, negated: inverted },
        _ => Match::Other { text: text.clone() },
    };
    Some(Part { matches: vec![found], comment: None, text })
}

/// `struct xt_iprange_mtinfo`.
fn iprange(info: &[u8], ipv6: bool) -> Option<Part> {
    let flags = u8_at(info, 64)?;
    let mut part = Part { matches: Vec::new(), comment: None, text: "-m iprange".into() };
    for (bit, inverted_bit, at, option) in [(1, 16, 0, "--src-range"), (2, 32, 32, "--dst-range")] {
        if flags & bit == 0 {
            continue;
        }
        let (first, last) = (address_at(info, at, ipv6)?, address_at(info, at + 16, ipv6)?);
        let negated = flags & inverted_bit != 0;
        part.text += &format!(" {}{option} {first}-{last}", not(negated));
        let nets = addresses(first, last)?;
        part.matches.push(match option {
            "--src-range" => Match::Source { nets, negated },
            _ => Match::Destination { nets, negated },
        });
    }
    Some(part)
}

/// `struct xt_addrtype_info` and `_v1`.
fn addrtype(revision: u32, info: &[u8]) -> Option<Part> {
    let (source, destination, flags) = (u16_at(info, 0)?, u16_at(info, 2)?, u32_at(info, 4)?);
    let inverted = match revision {
        0 => [flags != 0, u32_at(info, 8)? != 0],
        _ => [flags & 1 != 0, flags & 2 != 0],
    };
    let names = |mask: u16| {
        let bits = (0..16).filter(|bit| mask >> bit & 1 != 0);
        bits.map(|bit| words::address_type(bit).to_uppercase()).collect::<Vec<_>>().join(",")
    };
    let mut text = "-m addrtype".to_owned();
    for (mask, inverted, option) in [(source, inverted[0], "--src-type"), (destination, inverted[1], "--dst-type")] {
        if mask != 0 {
            text += &format!(" {}{option} {}", not(inverted), names(mask));
        }
    }
    if revision > 0 && flags & 4 != 0 {
        text += " --limit-iface-in";
    }
    if revision > 0 && flags & 8 != 0 {
        text += " --limit-iface-out";
    }
    Some(other(text))
}

/// `struct xt_mark_mtinfo1`, and `xt_connmark_mtinfo1` of the same layout.
fn mark(name: &str, info: &[u8]) -> Option<Part> {
    let (mark, mask, inverted) = (u32_at(info, 0)?, u32_at(info, 4)?, u8_at(info, 8)? != 0);
    Some(other(format!("-m {name} {}--mark {mark:#x}/{mask:#x}", not(inverted))))
}

/// `struct xt_statistic_info`.
fn statistic(info: &[u8]) -> Option<Part> {
    /// Probabilities are fractions of 2^31.
    const CERTAIN: f64 = 2_147_483_648.0;
    let (mode, flags, value) = (u16_at(info, 0)?, u16_at(info, 2)?, u32_at(info, 4)?);
    let inverted = not(flags & 1 != 0);
    Some(other(match mode {
        0 => format!("-m statistic --mode random {inverted}--probability {:.10}", f64::from(value) / CERTAIN),
        1 => {
            format!("-m statistic --mode nth {inverted}--every {} --packet {}", u64::from(value) + 1, u32_at(info, 8)?)
        }
        _ => return None,
    }))
}

/// `struct xt_rateinfo`: one packet in `average` ten-thousandths of a second.
fn limit(info: &[u8]) -> Option<Part> {
    // `XT_LIMIT_SCALE`
    const SCALE: u64 = 10_000;
    let (average, burst) = (u32_at(info, 0)?, u32_at(info, 4)?);
    let rate = rarer::per(SCALE, average.into())?;
    Some(other(format!("-m limit --limit {rate} --limit-burst {burst}")))
}

/// `struct xt_recent_mtinfo`, and `_v1`, which has a mask.
fn recent(revision: u32, info: &[u8], ipv6: bool) -> Option<Part> {
    const REAP: u8 = 32;
    const HOPS: u8 = 16;
    let (seconds, hits, flags, inverted) = (u32_at(info, 0)?, u32_at(info, 4)?, u8_at(info, 8)?, u8_at(info, 9)?);
    let (name, side) = (text_at(info, 10, 200)?, u8_at(info, 210)?);
    let options = [(2, "--set"), (1, "--rcheck"), (4, "--update"), (8, "--remove")];
    let option = options.iter().find(|(bit, _)| flags & bit != 0).map_or("", |(_, option)| option);
    let mut text = format!("-m recent {}{option}", not(inverted != 0));
    if seconds > 0 {
        text += &format!(" --seconds {seconds}");
    }
    if flags & REAP != 0 {
        text += " --reap";
    }
    if hits > 0 {
        text += &format!(" --hitcount {hits}");
    }
    if flags & HOPS != 0 {
        text += " --rttl";
    }
    text += &format!(" --name {name}");
    if revision > 0 {
        text += &format!(" --mask {}", address_at(info, 212, ipv6)?);
    }
    text += if side == 0 { " --rsource" } else { " --rdest" };
    Some(other(text))
}

/// `struct ipt_icmp` and `struct ip6t_icmp`.
fn icmp(name: &str, info: &[u8]) -> Option<Part> {
    let (kind, first, last, inverted) = (u8_at(info, 0)?, u8_at(info, 1)?, u8_at(info, 2)?, u8_at(info, 3)?);
    let code = if (first, last) == (0, u8::MAX) { String::new() } else { format!("/{first}") };
    let option = if name == "icmp6" { "icmpv6" } else { name };
    Some(other(format!("-m {name} {}--{option}-type {kind}{code}", not(inverted & 1 != 0))))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn conntrack_info(flags: u16, inverted: u16, states: u16) -> Vec<u8> {
        let mut info = vec![0; 168];
        info[146..148].copy_from_slice(&flags.to_ne_bytes());
        info[148..150].copy_from_slice(&inverted.to_ne_bytes());
        info[150..152].copy_from_slice(&states.to_ne_bytes());
        info
    }

    #[test]
    fn translated_connections_are_no_connection_state() {
        let plain = parse_match("conntrack", 3, &conntrack_info(1, 1, 2 | 4), false);
        assert_eq!(
            plain.matches,
            [Match::ConntrackState { states: vec!["established".into(), "related".into()], negated: true }]
        );
        let translated = parse_match("conntrack", 3, &conntrack_info(1, 1, 2 | 4 | 128), false);
        assert!(matches!(translated.matches[..], [Match::Other { .. }]));
        assert_eq!(translated.text, "-m conntrack ! --ctstate ESTABLISHED,RELATED,DNAT");
    }

    #[test]
    fn a_tcp_match_without_ports_asks_nothing() {
        let any = [0, 0, 255, 255, 0, 0, 255, 255, 0, 0, 0, 0];
        assert!(parse_match("tcp", 0, &any, false).matches.is_empty());
    }

    #[test]
    fn flags_are_named_as_iptables_takes_them() {
        let info = |mask: u8, compared: u8| [0, 0, 255, 255, 0, 0, 255, 255, 0, mask, compared, 0];
        assert_eq!(parse_match("tcp", 0, &info(0x17, 0x02), false).text, "-m tcp --tcp-flags FIN,SYN,RST,ACK SYN");
        assert_eq!(
            parse_match("tcp", 0, &info(0x3f, 0), false).text,
            "-m tcp --tcp-flags FIN,SYN,RST,PSH,ACK,URG NONE"
        );
    }

    #[test]
    fn a_multiport_range_takes_two_places() {
        let mut info = vec![0u8; 48];
        info[..2].copy_from_slice(&[1, 3]);
        for (index, port) in [80u16, 8000, 8080].into_iter().enumerate() {
            info[2 + 2 * index..4 + 2 * index].copy_from_slice(&port.to_ne_bytes());
        }
        info[33] = 1;
        let part = parse_match("multiport", 1, &info, false);
        assert_eq!(part.text, "-m multiport --dports 80,8000:8080");
    }

    #[test]
    fn what_is_cut_short_is_kept_as_unknown() {
        let part = parse_match("tcp", 0, &[1, 2, 3], false);
        assert_eq!(part.matches.len(), 1);
        assert!(part.text.contains("not decoded"));
    }

    proptest! {
        #[test]
        fn garbage_never_panics(name in 0usize..16, revision in 0u32..5, info in prop::collection::vec(any::<u8>(), 0..300), ipv6: bool) {
            let names = ["comment", "conntrack", "state", "tcp", "udp", "multiport", "iprange", "addrtype", "mark",
                "statistic", "limit", "recent", "icmp", "nfacct", "set", "other"];
            parse_match(names[name], revision, &info, ipv6);
        }
    }
}
