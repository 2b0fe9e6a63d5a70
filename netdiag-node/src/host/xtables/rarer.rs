//! Words for matches that rules of addresses and ports do not need. What `iptables -S` prints is printed in full, so that a rule in
//! an answer is found, and deleted, by its words.

use super::bytes::{text_at, u8_at, u16_at, u32_at, u64_at};
use super::matches::not;
use super::words;

/// `-m NAME` with its options; none for what is not known, or too short.
pub(super) fn parse(name: &str, revision: u32, info: &[u8]) -> Option<String> {
    let options = match (name, revision) {
        ("owner", 1) => owner(info)?,
        ("rpfilter", 0) => reverse_path(info)?,
        ("physdev", 0) => bridge_ports(info)?,
        ("pkttype", 0) => packet_type(info)?,
        ("length", 0) => range("--length", info)?,
        ("tcpmss", 0) => range("--mss", info)?,
        ("mac", 0) => sender(info)?,
        ("ttl" | "hl", 0) => hops(name, info)?,
        ("dscp", 0) => format!(" {}--dscp {:#04x}", not(u8_at(info, 1)? != 0), u8_at(info, 0)?),
        ("tos", 1) => {
            format!(" {}--tos {:#04x}/{:#04x}", not(u8_at(info, 2)? != 0), u8_at(info, 1)?, u8_at(info, 0)?)
        }
        ("string", 1) => pattern(info)?,
        ("bpf", 0 | 1) => program(revision, info)?,
        ("hashlimit", 1..=3) => rate(revision, info)?,
        ("socket", 0..=3) => socket(revision, info)?,
        _ => return None,
    };
    Some(format!("-m {name}{options}"))
}

/// `struct xt_owner_match_info`
fn owner(info: &[u8]) -> Option<String> {
    const SOCKET: u8 = 1 << 2;
    const OTHER_GROUPS: u8 = 1 << 3;
    let (wanted, inverted) = (u8_at(info, 16)?, u8_at(info, 17)?);
    let mut text = String::new();
    if wanted & SOCKET != 0 {
        text += &format!(" {}--socket-exists", not(inverted & SOCKET != 0));
    }
    for (bit, at, option) in [(1, 0, "--uid-owner"), (2, 8, "--gid-owner")] {
        if wanted & bit == 0 {
            continue;
        }
        let (first, last) = (u32_at(info, at)?, u32_at(info, at + 4)?);
        let last = if first == last { String::new() } else { format!("-{last}") };
        text += &format!(" {}{option} {first}{last}", not(inverted & bit != 0));
    }
    if wanted & OTHER_GROUPS != 0 {
        text += " --suppl-groups";
    }
    Some(text)
}

/// `struct xt_socket_mtinfo1` to `3`; the first revision asks nothing.
fn socket(revision: u32, info: &[u8]) -> Option<String> {
    let flags = if revision == 0 { 0 } else { u8_at(info, 0)? };
    let options = [(1, " --transparent"), (2, " --nowildcard"), (4, " --restore-skmark")];
    Some(options.iter().filter(|(bit, _)| flags & bit != 0).map(|(_, option)| *option).collect())
}

/// `struct xt_bpf_info`, `struct xt_bpf_info_v1`: a program of its own, or where one of eBPF is.
fn program(revision: u32, info: &[u8]) -> Option<String> {
    /// `XT_BPF_MAX_NUM_INSTR`
    const MOST: u16 = 64;
    let (mode, count, start) = match revision {
        0 => (0, u16_at(info, 0)?, 4),
        _ => (u16_at(info, 0)?, u16_at(info, 2)?, 8),
    };
    if mode == 1 {
        return Some(format!(" --object-pinned {}", text_at(info, 8, 512)?));
    }
    if mode != 0 || count > MOST {
        return None;
    }
    let mut text = format!(" --bytecode \"{count}");
    for number in 0..usize::from(count) {
        let at = start + 8 * number;
        let (code, if_true, if_false) = (u16_at(info, at)?, u8_at(info, at + 2)?, u8_at(info, at + 3)?);
        text += &format!(",{code} {if_true} {if_false} {}", u32_at(info, at + 4)?);
    }
    Some(text + "\"")
}

/// `struct xt_rpfilter_info`
fn reverse_path(info: &[u8]) -> Option<String> {
    let flags = u8_at(info, 0)?;
    let options = [(1, " --loose"), (2, " --validmark"), (4, " --accept-local"), (8, " --invert")];
    Some(options.iter().filter(|(bit, _)| flags & bit != 0).map(|(_, option)| *option).collect())
}

/// `struct xt_physdev_info`: names with `+` at their end are kept with it.
fn bridge_ports(info: &[u8]) -> Option<String> {
    const NAME_BYTES: usize = 16;
    let (inverted, wanted) = (u8_at(info, 64)?, u8_at(info, 65)?);
    let options = [
        (8, "--physdev-is-in", None),
        (1, "--physdev-in", Some(0)),
        (16, "--physdev-is-out", None),
        (2, "--physdev-out", Some(2 * NAME_BYTES)),
        (4, "--physdev-is-bridged", None),
    ];
    let mut text = String::new();
    for (bit, option, name) in options {
        if wanted & bit == 0 {
            continue;
        }
        text += &format!(" {}{option}", not(inverted & bit != 0));
        if let Some(at) = name {
            text += &format!(" {}", text_at(info, at, NAME_BYTES)?);
        }
    }
    Some(text)
}

/// `struct xt_pkttype_info`, `PACKET_*` of linux/if_packet.h.
fn packet_type(info: &[u8]) -> Option<String> {
    let (kind, inverted) = (u32_at(info, 0)?, u32_at(info, 4)? != 0);
    let name = match kind {
        0 => "unicast",
        1 => "broadcast",
        2 => "multicast",
        _ => return None,
    };
    Some(format!(" {}--pkt-type {name}", not(inverted)))
}

/// `struct xt_length_info`, and `xt_tcpmss_match_info` of the same layout.
fn range(option: &str, info: &[u8]) -> Option<String> {
    let (first, last, inverted) = (u16_at(info, 0)?, u16_at(info, 2)?, u8_at(info, 4)? != 0);
    let last = if first == last { String::new() } else { format!(":{last}") };
    Some(format!(" {}{option} {first}{last}", not(inverted)))
}

/// `struct xt_mac_info`
fn sender(info: &[u8]) -> Option<String> {
    let address: Vec<String> = info.get(..6)?.iter().map(|byte| format!("{byte:02x}")).collect();
    Some(format!(" {}--mac-source {}", not(u32_at(info, 8)? != 0), address.join(":")))
}

/// `struct ipt_ttl_info`, and `ip6t_hl_info` of the same layout.
fn hops(name: &str, info: &[u8]) -> Option<String> {
    let (mode, hops) = (u8_at(info, 0)?, u8_at(info, 1)?);
    let (inverted, how) = match mode {
        0 => (false, "eq"),
        1 => (true, "eq"),
        2 => (false, "lt"),
        3 => (false, "gt"),
        _ => return None,
    };
    Some(format!(" {}--{name}-{how} {hops}", not(inverted)))
}

/// `struct xt_string_info`
fn pattern(info: &[u8]) -> Option<String> {
    const PATTERN: std::ops::Range<usize> = 20..148;
    const INVERTED: u8 = 1;
    const ANY_CASE: u8 = 2;
    let (from, to, algorithm) = (u16_at(info, 0)?, u16_at(info, 2)?, text_at(info, 4, 16)?);
    let (length, flags) = (usize::from(u8_at(info, 148)?), u8_at(info, 149)?);
    let bytes = info.get(PATTERN)?.get(..length)?;
    let is_plain = |byte: &u8| *byte != b'|' && (byte.is_ascii_graphic() || *byte == b' ');
    let (option, pattern) = if bytes.iter().all(is_plain) {
        ("--string", words::quoted(&String::from_utf8_lossy(bytes)))
    } else {
        let hex = bytes.iter().fold(String::new(), |text, byte| text + &format!("{byte:02x}"));
        ("--hex-string", format!("\"|{hex}|\""))
    };
    let mut text = format!(" {}{option} {pattern} --algo {algorithm}", not(flags & INVERTED != 0));
    if from != 0 {
        text += &format!(" --from {from}");
    }
    if to != u16::MAX {
        text += &format!(" --to {to}");
    }
    if flags & ANY_CASE != 0 {
        text += " --icase";
    }
    Some(text)
}

/// `struct xt_hashlimit_mtinfo1` to `3`: how many packets, counted apart by what, under which name. The size of the table and masks
/// of addresses are left out.
fn rate(revision: u32, info: &[u8]) -> Option<String> {
    const ABOVE: u32 = 1 << 4;
    const BYTES: u32 = 1 << 5;
    const SHARE: u32 = 1 << 6;
    // Times are in such parts of a second (`XT_HASHLIMIT_SCALE`, `XT_HASHLIMIT_SCALE_v2`).
    let (name_bytes, mode, average, burst, scale) = match revision {
        1 => (16, u32_at(info, 16)?, u64::from(u32_at(info, 20)?), u64::from(u32_at(info, 24)?), 10_000),
        _ => (255, u32_at(info, 272)?, u64_at(info, 256)?, u64_at(info, 264)?, 1_000_000),
    };
    if mode & (BYTES | SHARE) != 0 {
        return None;
    }
    let rate = per(scale, average)?;
    let option = if mode & ABOVE != 0 { "--hashlimit-above" } else { "--hashlimit-upto" };
    let by = [(4, "srcip"), (8, "srcport"), (1, "dstip"), (2, "dstport")];
    let by: Vec<&str> = by.iter().filter(|(bit, _)| mode & bit != 0).map(|(_, name)| *name).collect();
    let by = if by.is_empty() { String::new() } else { format!(" --hashlimit-mode {}", by.join(",")) };
    let name = text_at(info, 0, name_bytes)?;
    Some(format!(" {option} {rate} --hashlimit-burst {burst}{by} --hashlimit-name {name}"))
}

/// `5/min`, in the unit by which `iptables` has divided: 90 in a minute are no whole number in a second. None for what it does not
/// write. `scale`: the parts of a second that averages are told in.
pub(super) fn per(scale: u64, average: u64) -> Option<String> {
    let units: [(&str, u64); 4] = [("sec", 1), ("min", 60), ("hour", 3_600), ("day", 86_400)];
    units.iter().find_map(|(unit, seconds)| {
        let rate = (scale * seconds).checked_div(average)?;
        ((scale * seconds).checked_div(rate)? == average).then(|| format!("{rate}/{unit}"))
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn processes_are_told_by_their_user_and_group() {
        let mut info = [0; 20];
        info[..4].copy_from_slice(&1337_u32.to_ne_bytes());
        info[4..8].copy_from_slice(&1337_u32.to_ne_bytes());
        info[8..12].copy_from_slice(&5_u32.to_ne_bytes());
        info[12..16].copy_from_slice(&7_u32.to_ne_bytes());
        (info[16], info[17]) = (1 | 2, 2);
        assert_eq!(parse("owner", 1, &info).unwrap(), "-m owner --uid-owner 1337 ! --gid-owner 5-7");
    }

    #[test]
    fn a_program_is_told_by_its_instructions_or_by_its_path() {
        let mut info = [0; 528];
        info[2..4].copy_from_slice(&2_u16.to_ne_bytes());
        for (at, code, constant) in [(8, 0x30_u16, 9_u32), (16, 6, 1)] {
            info[at..at + 2].copy_from_slice(&code.to_ne_bytes());
            info[at + 4..at + 8].copy_from_slice(&constant.to_ne_bytes());
        }
        assert_eq!(parse("bpf", 1, &info).unwrap(), "-m bpf --bytecode \"2,48 0 0 9,6 0 0 1\"");
        info[..2].copy_from_slice(&1_u16.to_ne_bytes());
        info[8..20].copy_from_slice(b"/sys/fs/bpf\0");
        assert_eq!(parse("bpf", 1, &info).unwrap(), "-m bpf --object-pinned /sys/fs/bpf");
    }

    #[test]
    fn bytes_without_letters_are_told_as_numbers() {
        let mut info = [0; 160];
        info[2..4].copy_from_slice(&u16::MAX.to_ne_bytes());
        info[4..6].copy_from_slice(b"bm");
        info[20..23].copy_from_slice(b"a\"c");
        info[148] = 3;
        assert_eq!(parse("string", 1, &info).unwrap(), "-m string --string \"a\\\"c\" --algo bm");
        (info[20], info[149]) = (7, 1 | 2);
        assert_eq!(parse("string", 1, &info).unwrap(), "-m string ! --hex-string \"|072263|\" --algo bm --icase");
        info[148] = 200;
        assert_eq!(parse("string", 1, &info), None);
    }

    #[test]
    fn a_rate_is_told_in_the_unit_that_it_was_given_in() {
        for (average, rate) in [(10_000, "1/sec"), (3_333, "3/sec"), (6_666, "90/min"), (288_000_000, "3/day")] {
            assert_eq!(per(10_000, average).unwrap(), rate, "{average}");
        }
        assert_eq!((per(10_000, 0), per(10_000, u64::MAX)), (None, None));
    }

    #[test]
    fn a_socket_is_told_as_cilium_asks_for_it() {
        assert_eq!(parse("socket", 3, &[7]).unwrap(), "-m socket --transparent --nowildcard --restore-skmark");
        assert_eq!(parse("socket", 0, &[]).unwrap(), "-m socket");
        assert_eq!(parse("socket", 1, &[]), None);
    }

    #[test]
    fn what_is_not_known_has_no_words() {
        assert_eq!(parse("owner", 0, &[0; 200]), None);
        assert_eq!(parse("u32", 0, &[0; 2_000]), None);
        assert_eq!(parse("rpfilter", 0, &[]), None);
    }

    proptest! {
        #[test]
        fn garbage_never_panics(name in 0usize..14, revision in 0u32..4, info in prop::collection::vec(any::<u8>(), 0..300)) {
            let names = ["owner", "rpfilter", "physdev", "pkttype", "length", "tcpmss", "mac", "ttl", "dscp", "tos",
                "string", "hashlimit", "bpf", "socket"];
            parse(names[name], revision, &info);
        }
    }
}
