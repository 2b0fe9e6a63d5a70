//! Words for matches about the extension headers of IPv6 (`include/uapi/linux/netfilter_ipv6/ip6t_*.h`), and about the
//! authentication header of both protocols, as `ip6tables -S` and `iptables -S` print them.

use std::net::Ipv6Addr;

use super::bytes::{u8_at, u16_at, u32_at};
use super::matches::not;

/// The options behind `-m NAME`; none for what is not known, or too short.
pub(super) fn parse(name: &str, info: &[u8], ipv6: bool) -> Option<String> {
    match name {
        "rt" => routing(info),
        "frag" => fragment(info),
        "hbh" | "dst" => options(name, info),
        "ah" => authentication(info, ipv6),
        "mh" => mobility(info),
        "ipv6header" => headers(info),
        "eui64" => Some(String::new()),
        _ => None,
    }
}

/// ` ! --option 3:7`; nothing for a range that holds everything.
fn range(option: &str, inverted: bool, (first, last): (u32, u32), most: u32) -> String {
    if (first, last) == (0, most) {
        return String::new();
    }
    let last = if first == last { String::new() } else { format!(":{last}") };
    format!(" {}{option} {first}{last}", not(inverted))
}

/// `struct ip6t_rt`
fn routing(info: &[u8]) -> Option<String> {
    const ADDRESSES: usize = 20;
    const MOST: usize = 16;
    let (flags, inverted) = (u8_at(info, 16)?, u8_at(info, 17)?);
    let mut text = String::new();
    if flags & 1 != 0 {
        text += &format!(" {}--rt-type {}", not(inverted & 1 != 0), u32_at(info, 0)?);
    }
    text += &range("--rt-segsleft", inverted & 2 != 0, (u32_at(info, 4)?, u32_at(info, 8)?), u32::MAX);
    if flags & 4 != 0 {
        text += &format!(" {}--rt-len {}", not(inverted & 4 != 0), u32_at(info, 12)?);
    }
    if flags & 8 != 0 {
        text += " --rt-0-res";
    }
    if flags & 0x10 != 0 {
        let count = usize::from(u8_at(info, ADDRESSES + MOST * 16)?).min(MOST);
        let address = |number: usize| {
            let at = ADDRESSES + number * 16;
            Some(Ipv6Addr::from(<[u8; 16]>::try_from(info.get(at..at + 16)?).ok()?).to_string())
        };
        text += &format!(" --rt-0-addrs {}", (0..count).map(address).collect::<Option<Vec<_>>>()?.join(","));
    }
    if flags & 0x20 != 0 {
        text += " --rt-0-not-strict";
    }
    Some(text)
}

/// `struct ip6t_frag`
fn fragment(info: &[u8]) -> Option<String> {
    let (flags, inverted) = (u8_at(info, 12)?, u8_at(info, 13)?);
    let mut text = range("--fragid", inverted & 1 != 0, (u32_at(info, 0)?, u32_at(info, 4)?), u32::MAX);
    if flags & 2 != 0 {
        text += &format!(" {}--fraglen {}", not(inverted & 2 != 0), u32_at(info, 8)?);
    }
    for (bit, option) in [(4, " --fragres"), (8, " --fragfirst"), (0x10, " --fragmore"), (0x20, " --fraglast")] {
        if flags & bit != 0 {
            text += option;
        }
    }
    Some(text)
}

/// `struct ip6t_opts`: an option's type, and its length where that matters.
fn options(name: &str, info: &[u8]) -> Option<String> {
    const MOST: usize = 16;
    let (flags, inverted) = (u8_at(info, 4)?, u8_at(info, 5)?);
    let mut text = String::new();
    if flags & 1 != 0 {
        text += &format!(" {}--{name}-len {}", not(inverted & 1 != 0), u32_at(info, 0)?);
    }
    if flags & 2 != 0 {
        let count = usize::from(u8_at(info, 6 + 2 * MOST)?).min(MOST);
        let option = |number: usize| {
            let option = u16_at(info, 6 + 2 * number)?;
            let length = if option & 0xff == 0xff { String::new() } else { format!(":{}", option & 0xff) };
            Some(format!("{}{length}", option >> 8))
        };
        text += &format!(" --{name}-opts {}", (0..count).map(option).collect::<Option<Vec<_>>>()?.join(","));
    }
    Some(text)
}

/// `struct ip6t_ah`, `struct ipt_ah`
fn authentication(info: &[u8], ipv6: bool) -> Option<String> {
    let spis = (u32_at(info, 0)?, u32_at(info, 4)?);
    if !ipv6 {
        return Some(range("--ahspi", u8_at(info, 8)? & 1 != 0, spis, u32::MAX));
    }
    let (length, reserved, inverted) = (u32_at(info, 8)?, u8_at(info, 12)?, u8_at(info, 13)?);
    let mut text = range("--ahspi", inverted & 1 != 0, spis, u32::MAX);
    if length != 0 || inverted & 2 != 0 {
        text += &format!(" {}--ahlen {length}", not(inverted & 2 != 0));
    }
    if reserved != 0 {
        text += " --ahres";
    }
    Some(text)
}

/// `struct ip6t_mh`
fn mobility(info: &[u8]) -> Option<String> {
    let types = (u8_at(info, 0)?.into(), u8_at(info, 1)?.into());
    Some(range("--mh-type", u8_at(info, 2)? & 1 != 0, types, u8::MAX.into()))
}

/// `struct ip6t_ipv6header_info`, with the names that /etc/protocols has.
fn headers(info: &[u8]) -> Option<String> {
    const NAMES: [(u8, &str); 8] = [
        (128, "hop-by-hop"),
        (32, "ipv6-route"),
        (16, "ipv6-frag"),
        (4, "esp"),
        (8, "ah"),
        (2, "ipv6-nonxt"),
        (64, "ipv6-opts"),
        (1, "protocol"),
    ];
    let (wanted, inverted, is_soft) = (u8_at(info, 0)?, u8_at(info, 1)? != 0, u8_at(info, 2)? != 0);
    let named: Vec<&str> = NAMES.iter().filter(|(bit, _)| wanted & bit != 0).map(|(_, name)| *name).collect();
    let soft = if is_soft { " --soft" } else { "" };
    Some(format!(" {}--header {}{soft}", not(inverted), named.join(",")))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_rule_that_ufw_begins_with_is_told_as_it_is_written() {
        let mut info = [0; 280];
        info[8..12].fill(0xff);
        info[16] = 1;
        assert_eq!(parse("rt", &info, true).unwrap(), " --rt-type 0");
        (info[4], info[17]) = (3, 1 | 2);
        info[8..12].copy_from_slice(&7_u32.to_ne_bytes());
        assert_eq!(parse("rt", &info, true).unwrap(), " ! --rt-type 0 ! --rt-segsleft 3:7");
    }

    #[test]
    fn headers_and_options_are_told_by_name_and_number() {
        assert_eq!(parse("ipv6header", &[128 | 8, 0xff, 1], true).unwrap(), " ! --header hop-by-hop,ah --soft");
        let mut info = [0; 40];
        (info[4], info[38]) = (2, 2);
        info[6..8].copy_from_slice(&0x05_02_u16.to_ne_bytes());
        info[8..10].copy_from_slice(&0x01_ff_u16.to_ne_bytes());
        assert_eq!(parse("hbh", &info, true).unwrap(), " --hbh-opts 5:2,1");
        assert_eq!(parse("eui64", &[], true).unwrap(), "");
        assert_eq!(parse("mh", &[0, 255, 0], true).unwrap(), "");
    }

    proptest! {
        #[test]
        fn garbage_never_panics(name in 0usize..8, info in prop::collection::vec(any::<u8>(), 0..300), ipv6: bool) {
            let names = ["rt", "frag", "hbh", "dst", "ah", "mh", "ipv6header", "eui64"];
            parse(names[name], &info, ipv6);
        }
    }
}
