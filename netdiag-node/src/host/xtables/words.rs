//! Words that both `nft` and `iptables` print the same way.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use ipnet::IpNet;
use netdiag_common::escape::plain;
use netdiag_common::observation::rules::{NatTarget, Verdict};

/// Longer lists are cut in the text (not in the matches): a text is for people.
const MAX_LISTED: usize = 16;

/// A rule's text is for people; a line longer than this helps none.
pub(crate) const MAX_TEXT: usize = 1000;

/// One value as it is, several in braces.
pub(crate) fn braced(count: usize, mut values: impl Iterator<Item = String>) -> String {
    if count == 1 { values.next().unwrap_or_default() } else { braces(count, values) }
}

pub(crate) fn braces(count: usize, values: impl Iterator<Item = String>) -> String {
    let mut listed: Vec<String> = values.take(MAX_LISTED).collect();
    if count > MAX_LISTED {
        listed.push(format!("… {} more", count - MAX_LISTED));
    }
    format!("{{ {} }}", listed.join(", "))
}

/// As `nft` prints it.
pub(crate) fn nft_verdict(verdict: &Verdict) -> String {
    match verdict {
        Verdict::Accept => "accept".into(),
        Verdict::Drop => "drop".into(),
        Verdict::Reject { with } => format!("reject with {with}"),
        Verdict::Jump { chain } => format!("jump {chain}"),
        Verdict::Goto { chain } => format!("goto {chain}"),
        Verdict::Return => "return".into(),
        Verdict::Continue => "continue".into(),
        Verdict::Dnat { to } => format!("dnat to {}", targets(to)),
        Verdict::Snat { to } => format!("snat to {}", targets(to)),
        Verdict::Masquerade => "masquerade".into(),
        Verdict::Map { name } => format!("vmap @{name}"),
        Verdict::Queue => "queue".into(),
        Verdict::Other { text } => text.clone(),
    }
}

/// As `iptables -S` prints it.
pub(crate) fn verdict(verdict: &Verdict) -> String {
    match verdict {
        Verdict::Accept => "-j ACCEPT".into(),
        Verdict::Drop => "-j DROP".into(),
        Verdict::Reject { with } => format!("-j REJECT --reject-with {}", with.replace(' ', "-")),
        Verdict::Jump { chain } => format!("-j {chain}"),
        Verdict::Goto { chain } => format!("-g {chain}"),
        Verdict::Return => "-j RETURN".into(),
        Verdict::Continue => String::new(),
        Verdict::Dnat { to } => format!("-j DNAT --to-destination {}", targets(to)),
        Verdict::Snat { to } => format!("-j SNAT --to-source {}", targets(to)),
        Verdict::Masquerade => "-j MASQUERADE".into(),
        Verdict::Map { name } => format!("vmap @{name}"),
        Verdict::Queue => "-j NFQUEUE".into(),
        Verdict::Other { text } => text.clone(),
    }
}

pub(crate) fn targets(to: &[NatTarget]) -> String {
    braced(to.len(), to.iter().map(target))
}

fn target(to: &NatTarget) -> String {
    match (to.address, to.port) {
        (Some(address), Some(port)) => SocketAddr::new(address, port).to_string(),
        (Some(address), None) => address.to_string(),
        (None, Some(port)) => format!(":{port}"),
        (None, None) => String::new(),
    }
}

/// The addresses from `first` to `last`; none when there are more than `most`.
pub(crate) fn address_range(first: IpAddr, last: IpAddr, most: u32) -> Option<Vec<IpAddr>> {
    match (first, last) {
        (IpAddr::V4(first), IpAddr::V4(last)) => {
            let (first, last) = (u32::from(first), u32::from(last));
            (last.checked_sub(first)? < most).then(|| (first..=last).map(|a| Ipv4Addr::from(a).into()).collect())
        }
        (IpAddr::V6(first), IpAddr::V6(last)) => {
            let (first, last) = (u128::from(first), u128::from(last));
            let few = last.checked_sub(first)? < u128::from(most);
            few.then(|| (first..=last).map(|a| Ipv6Addr::from(a).into()).collect())
        }
        _ => None,
    }
}

/// Joins the parts of a rule and cuts what is too long. Names of chains and sets in it are any bytes: what a terminal would obey is
/// escaped.
pub(crate) fn sentence(parts: &[String]) -> String {
    let mut text = plain(&parts.join(" "));
    if let Some((cut, _)) = text.char_indices().nth(MAX_TEXT) {
        text.truncate(cut);
        text.push('…');
    }
    text
}

/// A host without its prefix length.
pub(crate) fn net(net: IpNet) -> String {
    if net.prefix_len() == net.max_prefix_len() { net.addr().to_string() } else { net.to_string() }
}

/// The value of a map for NAT: an address, a port, or an address and a port.
pub(crate) fn nat_value(value: &[u8]) -> String {
    let port = |bytes: &[u8]| bytes.get(..2).map(|port| u16::from_be_bytes([port[0], port[1]]));
    let v4 = |bytes: &[u8]| <[u8; 4]>::try_from(bytes).ok().map(|bytes| Ipv4Addr::from(bytes).to_string());
    let v6 = |bytes: &[u8]| <[u8; 16]>::try_from(bytes).ok().map(|bytes| Ipv6Addr::from(bytes).to_string());
    let words = match value.len() {
        2 => port(value).map(|port| port.to_string()),
        4 => v4(value),
        8 => v4(&value[..4]).zip(port(&value[4..])).map(|(address, port)| format!("{address} . {port}")),
        16 => v6(value),
        20 => v6(&value[..16]).zip(port(&value[16..])).map(|(address, port)| format!("{address} . {port}")),
        _ => None,
    };
    words.unwrap_or_else(|| format!("{} bytes", value.len()))
}

/// As `/etc/protocols` calls it, or the number.
pub(crate) fn protocol(number: u8) -> String {
    let name = match number {
        1 => "icmp",
        2 => "igmp",
        4 => "ipencap",
        6 => "tcp",
        17 => "udp",
        33 => "dccp",
        41 => "ipv6",
        47 => "gre",
        50 => "esp",
        51 => "ah",
        58 => "ipv6-icmp",
        89 => "ospf",
        132 => "sctp",
        136 => "udplite",
        _ => return number.to_string(),
    };
    name.into()
}

/// Names of `RTN_*` in rtnetlink.h.
pub(crate) fn address_type(number: u64) -> String {
    let names =
        ["unspec", "unicast", "local", "broadcast", "anycast", "multicast", "blackhole", "unreachable", "prohibit"];
    usize::try_from(number)
        .ok()
        .and_then(|index| names.get(index))
        .map_or_else(|| number.to_string(), |name| (*name).to_owned())
}

/// `"text"` with what would break a line escaped.
pub(crate) fn quoted(text: &str) -> String {
    format!("\"{}\"", text.escape_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_lists_say_how_much_was_cut() {
        assert_eq!(braced(1, ["a".to_owned()].into_iter()), "a");
        let twenty = braced(20, (0..20).map(|i| i.to_string()));
        assert!(twenty.ends_with("15, … 4 more }"), "{twenty}");
    }

    #[test]
    fn names_in_a_rule_are_shown_and_not_obeyed() {
        let hostile = "jump \u{1b}[2Jfw\u{202e}\n".to_owned();
        assert_eq!(sentence(&[hostile, "counter".to_owned()]), "jump \\u{1b}[2Jfw\\u{202e}\\n counter");
    }

    #[test]
    fn a_text_is_cut_between_characters() {
        let text = sentence(&["ü".repeat(MAX_TEXT + 5)]);
        assert_eq!(text.chars().count(), MAX_TEXT + 1);
    }
}
