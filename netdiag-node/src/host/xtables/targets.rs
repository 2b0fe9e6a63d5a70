//! Targets of x_tables (`-j NAME`).

use std::net::IpAddr;

use netdiag_common::observation::rules::{NatTarget, Verdict};

use super::bytes::{address_at, addresses, be16_at, text_at, u8_at, u16_at, u32_at};
use super::words;

/// Address ranges for NAT that are longer are only given in the text.
const MAX_NAT_RANGE: u32 = 64;

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Action {
    pub verdict: Verdict,
    /// As `iptables -S` prints it.
    pub text: String,
}

/// Targets that let the packet go on to the next rule, whatever else they do to it.
const CONTINUING: [&str; 24] = [
    "AUDIT",
    "CHECKSUM",
    "CLASSIFY",
    "CONNMARK",
    "CONNSECMARK",
    "DSCP",
    "ECN",
    "HL",
    "HMARK",
    "IDLETIMER",
    "LED",
    "LOG",
    "MARK",
    "NFLOG",
    "NOTRACK",
    "RATEEST",
    "SECMARK",
    "SET",
    "TCPMSS",
    "TCPOPTSTRIP",
    "TEE",
    "TOS",
    "TRACE",
    "TTL",
];

/// Reads `struct xt_NAME_…` of this revision. What is not known, or too short, becomes `Verdict::Other`.
pub(crate) fn parse_target(name: &str, revision: u32, info: &[u8], ipv6: bool) -> Action {
    let action = match name {
        "DNAT" | "SNAT" => nat(name, revision, info, ipv6),
        "MASQUERADE" => Some(decided(Verdict::Masquerade)),
        "REJECT" => reject(info, ipv6),
        "NFQUEUE" => queue(revision, info).map(|text| Action { verdict: Verdict::Queue, text }),
        "LOG" => text_at(info, 2, 30).map(|prefix| goes_on(format!("-j LOG --log-prefix {}", words::quoted(&prefix)))),
        "MARK" if revision == 2 => u32_at(info, 0)
            .zip(u32_at(info, 4))
            .map(|(mark, mask)| goes_on(format!("-j MARK --set-xmark {mark:#x}/{mask:#x}"))),
        "CT" => u16_at(info, 0).zip(u16_at(info, 2)).map(|(flags, zone)| goes_on(connection(flags, zone))),
        "CONNMARK" => connection_mark(revision, info).map(goes_on),
        "TCPMSS" => u16_at(info, 0).map(|size| goes_on(largest_segment(size))),
        "TTL" | "HL" => hops(name, info).map(goes_on),
        "REDIRECT" => redirect(revision, info, ipv6).map(decided_elsewhere),
        "NETMAP" => map_network(revision, info, ipv6).map(decided_elsewhere),
        "TPROXY" => proxy(revision, info, ipv6).map(decided_elsewhere),
        "SYNPROXY" => syn_proxy(info).map(decided_elsewhere),
        _ => None,
    };
    let action = action.or_else(|| CONTINUING.contains(&name).then(|| goes_on(format!("-j {name}"))));
    action.unwrap_or_else(|| {
        let text = format!("-j {name} (revision {revision}, {} bytes, not decoded)", info.len());
        Action { verdict: Verdict::Other { text: text.clone() }, text }
    })
}

/// `struct xt_ct_target_info` and its later revisions, which begin alike.
fn connection(flags: u16, zone: u16) -> String {
    const NOTRACK: u16 = 1 << 0;
    match (flags & NOTRACK != 0, zone) {
        (true, _) => "-j CT --notrack".to_owned(),
        (false, 0) => "-j CT".to_owned(),
        (false, zone) => format!("-j CT --zone {zone}"),
    }
}

fn goes_on(text: String) -> Action {
    Action { verdict: Verdict::Continue, text }
}

fn decided(verdict: Verdict) -> Action {
    let text = words::verdict(&verdict);
    Action { verdict, text }
}

/// What the contract has no verdict for: where such a packet goes is said in words alone.
fn decided_elsewhere(text: String) -> Action {
    Action { verdict: Verdict::Other { text: text.clone() }, text }
}

/// `NF_NAT_RANGE_*`
const ADDRESSES: u32 = 1 << 0;
const PORTS: u32 = 1 << 1;
const RANDOM: u32 = 1 << 2;

struct Range {
    flags: u32,
    addresses: (IpAddr, IpAddr),
    ports: (u16, u16),
}

/// Revision 0 of IPv4 is `nf_nat_ipv4_multi_range_compat`; `nf_nat_range` and `nf_nat_range2` start alike.
fn range(revision: u32, info: &[u8], ipv6: bool) -> Option<Range> {
    Some(if revision == 0 && !ipv6 {
        Range {
            flags: u32_at(info, 4)?,
            addresses: (address_at(info, 8, false)?, address_at(info, 12, false)?),
            ports: (be16_at(info, 16)?, be16_at(info, 18)?),
        }
    } else {
        Range {
            flags: u32_at(info, 0)?,
            addresses: (address_at(info, 4, ipv6)?, address_at(info, 20, ipv6)?),
            ports: (be16_at(info, 36)?, be16_at(info, 38)?),
        }
    })
}

fn redirect(revision: u32, info: &[u8], ipv6: bool) -> Option<String> {
    let Range { flags, ports: (first, last), .. } = range(revision, info, ipv6)?;
    let mut text = "-j REDIRECT".to_owned();
    if flags & PORTS != 0 {
        let last = if first == last { String::new() } else { format!("-{last}") };
        text += &format!(" --to-ports {first}{last}");
    }
    if flags & RANDOM != 0 {
        text += " --random";
    }
    Some(text)
}

/// The range is that of a network; the bits behind its prefix stay as they are.
fn map_network(revision: u32, info: &[u8], ipv6: bool) -> Option<String> {
    let (first, last) = range(revision, info, ipv6)?.addresses;
    match addresses(first, last)?[..] {
        [net] => Some(format!("-j NETMAP --to {}", words::net(net))),
        _ => None,
    }
}

/// `struct xt_tproxy_target_info` and `_v1`.
fn proxy(revision: u32, info: &[u8], ipv6: bool) -> Option<String> {
    let (mask, mark, address) = (u32_at(info, 0)?, u32_at(info, 4)?, address_at(info, 8, ipv6)?);
    let port = be16_at(info, if revision == 0 { 12 } else { 24 })?;
    Some(format!("-j TPROXY --on-port {port} --on-ip {address} --tproxy-mark {mark:#x}/{mask:#x}"))
}

/// `struct xt_synproxy_info`
fn syn_proxy(info: &[u8]) -> Option<String> {
    let (options, scale, segment) = (u8_at(info, 0)?, u8_at(info, 1)?, u16_at(info, 2)?);
    let mut text = "-j SYNPROXY".to_owned();
    for (bit, option) in [(4, " --sack-perm"), (8, " --timestamp")] {
        if options & bit != 0 {
            text += option;
        }
    }
    if options & 2 != 0 {
        text += &format!(" --wscale {scale}");
    }
    if options & 1 != 0 {
        text += &format!(" --mss {segment}");
    }
    Some(text)
}

/// `struct xt_connmark_tginfo1` and `2`.
fn connection_mark(revision: u32, info: &[u8]) -> Option<String> {
    let (mark, mask, packet_mask) = (u32_at(info, 0)?, u32_at(info, 4)?, u32_at(info, 8)?);
    let (mode, shift) = match revision {
        1 => (u8_at(info, 12)?, String::new()),
        2 => {
            let direction = if u8_at(info, 12)? == 0 { "left" } else { "right" };
            let shift = match u8_at(info, 13)? {
                0 => String::new(),
                bits => format!(" --{direction}-shift-mark {bits}"),
            };
            (u8_at(info, 14)?, shift)
        }
        _ => return None,
    };
    let how = match mode {
        0 => format!("--set-xmark {mark:#x}/{mask:#x}"),
        1 => format!("--save-mark --nfmask {packet_mask:#x} --ctmask {mask:#x}"),
        2 => format!("--restore-mark --nfmask {packet_mask:#x} --ctmask {mask:#x}"),
        _ => return None,
    };
    Some(format!("-j CONNMARK {how}{shift}"))
}

/// `struct xt_NFQ_info` and its later revisions.
fn queue(revision: u32, info: &[u8]) -> Option<String> {
    let first = u16_at(info, 0)?;
    let total = if revision == 0 { 1 } else { u16_at(info, 2)? };
    let flags = if revision < 2 { 0 } else { u16_at(info, 4)? };
    let mut text = match total {
        0 | 1 => format!("-j NFQUEUE --queue-num {first}"),
        total => format!("-j NFQUEUE --queue-balance {first}:{}", u32::from(first) + u32::from(total) - 1),
    };
    for (bit, option) in [(1, " --queue-bypass"), (2, " --queue-cpu-fanout")] {
        if flags & bit != 0 {
            text += option;
        }
    }
    Some(text)
}

/// `struct xt_tcpmss_info`
fn largest_segment(size: u16) -> String {
    /// `XT_TCPMSS_CLAMP_PMTU`
    const BY_ROUTE: u16 = 0xffff;
    match size {
        BY_ROUTE => "-j TCPMSS --clamp-mss-to-pmtu".to_owned(),
        size => format!("-j TCPMSS --set-mss {size}"),
    }
}

/// `struct ipt_TTL_info`, and `ip6t_HL_info` of the same layout.
fn hops(name: &str, info: &[u8]) -> Option<String> {
    let how = *["set", "inc", "dec"].get(usize::from(u8_at(info, 0)?))?;
    Some(format!("-j {name} --{}-{how} {}", name.to_lowercase(), u8_at(info, 1)?))
}

fn nat(name: &str, revision: u32, info: &[u8], ipv6: bool) -> Option<Action> {
    let Range { flags, addresses: (first, last), ports } = range(revision, info, ipv6)?;
    let addresses = if flags & ADDRESSES == 0 {
        vec![None]
    } else {
        words::address_range(first, last, MAX_NAT_RANGE)?.into_iter().map(Some).collect()
    };
    let port = match (flags & PORTS != 0, ports) {
        (false, _) => None,
        (true, (first, last)) if first == last => Some(first),
        // A range of ports has no place in a target.
        (true, _) => return None,
    };
    let to = addresses.into_iter().map(|address| NatTarget { address, port }).collect();
    Some(decided(if name == "DNAT" { Verdict::Dnat { to } } else { Verdict::Snat { to } }))
}

/// `enum ipt_reject_with` and `enum ip6t_reject_with`.
fn reject(info: &[u8], ipv6: bool) -> Option<Action> {
    let ipv4_names = [
        "icmp net-unreachable",
        "icmp host-unreachable",
        "icmp prot-unreachable",
        "icmp port-unreachable",
        "icmp echo-reply",
        "icmp net-prohibited",
        "icmp host-prohibited",
        "tcp reset",
        "icmp admin-prohibited",
    ];
    let ipv6_names = [
        "icmpv6 no-route",
        "icmpv6 admin-prohibited",
        "icmpv6 not-neighbour",
        "icmpv6 addr-unreachable",
        "icmpv6 port-unreachable",
        "icmpv6 echo-reply",
        "tcp reset",
        "icmpv6 policy-fail",
        "icmpv6 reject-route",
    ];
    let with = u32_at(info, 0)? as usize;
    let name = if ipv6 { ipv6_names.get(with)? } else { ipv4_names.get(with)? };
    Some(decided(Verdict::Reject { with: (*name).to_owned() }))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_target_says_what_it_does_to_connection_tracking() {
        let text = |info: &[u8]| parse_target("CT", 2, info, false).text;
        assert_eq!(text(&[1, 0, 0, 0]), "-j CT --notrack");
        assert_eq!(text(&[0, 0, 7, 0]), "-j CT --zone 7");
        assert_eq!(text(&[0]), "-j CT (revision 2, 1 bytes, not decoded)");
    }

    #[test]
    fn a_target_without_a_verdict_of_its_own_is_told_in_full() {
        let mut proxy = [0; 28];
        proxy[..4].copy_from_slice(&u32::MAX.to_ne_bytes());
        proxy[4..8].copy_from_slice(&0x200_u32.to_ne_bytes());
        proxy[24..26].copy_from_slice(&[0x23, 0x28]);
        let action = parse_target("TPROXY", 1, &proxy, false);
        assert_eq!(action.text, "-j TPROXY --on-port 9000 --on-ip 0.0.0.0 --tproxy-mark 0x200/0xffffffff");
        assert!(matches!(action.verdict, Verdict::Other { .. }));
        let mut mark = [0; 16];
        mark[4..12].copy_from_slice(&[0xff; 8]);
        mark[14] = 2;
        let action = parse_target("CONNMARK", 2, &mark, false);
        assert_eq!(action.text, "-j CONNMARK --restore-mark --nfmask 0xffffffff --ctmask 0xffffffff");
        assert_eq!(action.verdict, Verdict::Continue);
        assert_eq!(parse_target("CONNMARK", 7, &mark, false).text, "-j CONNMARK");
    }

    #[test]
    fn several_queues_are_told_as_a_range_with_what_the_rule_says_of_them() {
        let info: Vec<u8> = [10_u16, 4, 3].into_iter().flat_map(u16::to_ne_bytes).collect();
        let several = "-j NFQUEUE --queue-balance 10:13 --queue-bypass --queue-cpu-fanout";
        assert_eq!(parse_target("NFQUEUE", 3, &info, false).text, several);
        assert_eq!(parse_target("NFQUEUE", 0, &info, false).text, "-j NFQUEUE --queue-num 10");
    }

    #[test]
    fn a_port_range_is_not_called_one_port() {
        let mut info = vec![0u8; 44];
        info[..4].copy_from_slice(&3u32.to_ne_bytes());
        info[4..8].copy_from_slice(&[10, 0, 0, 1]);
        info[20..24].copy_from_slice(&[10, 0, 0, 1]);
        info[36..40].copy_from_slice(&[0, 80, 0, 90]);
        assert!(matches!(parse_target("DNAT", 2, &info, false).verdict, Verdict::Other { .. }));
        info[39] = 80;
        assert_eq!(parse_target("DNAT", 2, &info, false).text, "-j DNAT --to-destination 10.0.0.1:80");
    }

    #[test]
    fn an_unknown_target_is_never_called_harmless() {
        assert!(matches!(parse_target("TPROXY", 1, &[0; 24], false).verdict, Verdict::Other { .. }));
        assert_eq!(parse_target("MARK", 2, &[0; 8], false).verdict, Verdict::Continue);
    }

    proptest! {
        #[test]
        fn garbage_never_panics(name in 0usize..12, revision in 0u32..4, info in prop::collection::vec(any::<u8>(), 0..60), ipv6: bool) {
            let names = ["DNAT", "SNAT", "REJECT", "NFQUEUE", "LOG", "MARK", "X", "REDIRECT", "NETMAP", "TPROXY",
                "CONNMARK", "TTL"];
            parse_target(names[name], revision, &info, ipv6);
        }
    }
}
