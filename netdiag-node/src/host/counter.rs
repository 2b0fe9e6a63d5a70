//! The SNMP counters of one network namespace: every name that the kernel prints, known or not.
//!
//! `net/ipv4/proc.c` (snmp, netstat), `net/ipv6/proc.c` (snmp6), `net/sctp/proc.c` (sctp/snmp).

use std::collections::BTreeMap;
use std::path::Path;

use netdiag_common::observation::counter::{Counter, GAUGES};

use super::{ReadError, file, own_net};
use crate::history::Seen;

/// Two lines a group; netstat of Linux 6.18 has 4 KiB.
const TEXT_BYTES: u64 = 256 * 1024;
/// Names kept of one namespace: Linux 6.18 has 460.
const MAX_COUNTERS: usize = 4_096;
/// Groups that snmp6 runs together with their names: `Ip6InReceives`. The longest first.
const GROUPS_OF_SNMP6: [&str; 4] = ["UdpLite6", "Icmp6", "Udp6", "Ip6"];

/// What was read, and what was not.
pub(crate) struct Found {
    /// `Group.Name` and value.
    pub(crate) counters: Vec<(String, u64)>,
    pub(crate) left_out: Vec<String>,
}

/// The calling thread's namespace.
pub(crate) fn read() -> Result<Found, ReadError> {
    let net = own_net();
    let mut found = Found { counters: Vec::new(), left_out: Vec::new() };
    for name in ["snmp", "netstat"] {
        let malformed = parse_pairs(&file::text(&net.join(name), TEXT_BYTES)?, &mut found.counters);
        if malformed > 0 {
            found.left_out.push(format!("{malformed} counters of /proc/net/{name} that are no numbers"));
        }
    }
    // Not there: no IPv6, no SCTP.
    read_lines(&net.join("snmp6"), split_snmp6, &mut found)?;
    read_lines(&net.join("sctp/snmp"), split_sctp, &mut found)?;
    if found.counters.len() > MAX_COUNTERS {
        let total = found.counters.len();
        found.left_out.push(format!("{} of {total} counters", total - MAX_COUNTERS));
        found.counters.truncate(MAX_COUNTERS);
    }
    Ok(found)
}

/// Every counter, for [`Series::look`](crate::history::Series::look); gauges do not grow.
pub(crate) fn seen(counters: &mut BTreeMap<String, Counter>) -> Vec<Seen<'_>> {
    let counters = counters.iter_mut().filter(|(name, _)| !GAUGES.contains(&name.as_str()));
    counters.map(|(name, counter)| Seen { object: 0, name, counter }).collect()
}

fn read_lines(path: &Path, split: fn(&str) -> String, found: &mut Found) -> Result<(), ReadError> {
    if let Some(text) = file::text_if_there(path, TEXT_BYTES)? {
        found.counters.extend(parse_lines(&text, split));
    }
    Ok(())
}

/// `Group: Name Name …`, then `Group: 0 1 …`. Returns how many values are no numbers.
///
/// The kernel prints `Tcp.MaxConn` as -1 where there is no limit; it is a setting, and is kept as 0.
fn parse_pairs(text: &str, counters: &mut Vec<(String, u64)>) -> usize {
    let mut malformed = 0;
    let mut lines = text.lines();
    while let (Some(names), Some(values)) = (lines.next(), lines.next()) {
        let (Some((group, names)), Some((_, values))) = (names.split_once(':'), values.split_once(':')) else {
            malformed += 1;
            continue;
        };
        for (name, value) in names.split_ascii_whitespace().zip(values.split_ascii_whitespace()) {
            match value.parse::<i128>() {
                Ok(value) => counters.push((format!("{group}.{name}"), u64::try_from(value).unwrap_or(0))),
                Err(_) => malformed += 1,
            }
        }
    }
    malformed
}

/// One name and value a line.
fn parse_lines(text: &str, split: fn(&str) -> String) -> impl Iterator<Item = (String, u64)> {
    text.lines().filter_map(move |line| {
        let mut words = line.split_ascii_whitespace();
        let name = split(words.next()?);
        Some((name, words.next()?.parse().ok()?))
    })
}

/// `Ip6InReceives` is `Ip6.InReceives`, in the manner of the other files.
fn split_snmp6(name: &str) -> String {
    let group = GROUPS_OF_SNMP6.iter().find(|group| name.starts_with(**group));
    match group {
        Some(group) => format!("{group}.{}", &name[group.len()..]),
        None => format!("Snmp6.{name}"),
    }
}

/// `SctpCurrEstab` is `Sctp.CurrEstab`.
fn split_sctp(name: &str) -> String {
    format!("Sctp.{}", name.strip_prefix("Sctp").unwrap_or(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pairs(text: &str) -> (BTreeMap<String, u64>, usize) {
        let mut counters = Vec::new();
        let malformed = parse_pairs(text, &mut counters);
        (counters.into_iter().collect(), malformed)
    }

    #[test]
    fn dump_of_linux_6_18() {
        let (found, malformed) = pairs(include_str!("../../tests/fixtures/host/snmp"));
        assert_eq!(malformed, 0);
        assert_eq!((found["Tcp.ActiveOpens"], found["Tcp.MaxConn"], found["IcmpMsg.InType3"]), (10_274, 0, 200));
        let (found, malformed) = pairs(include_str!("../../tests/fixtures/host/netstat"));
        assert_eq!(malformed, 0);
        assert_eq!((found["TcpExt.TW"], found["IpExt.InOctets"]), (1_742, 2_207_786_500));
        assert!(found.contains_key("MPTcpExt.MPJoinRejected"));
        let text = include_str!("../../tests/fixtures/host/snmp6");
        let found: BTreeMap<_, _> = parse_lines(text, split_snmp6).collect();
        assert_eq!((found["Ip6.InReceives"], found["Ip6.InNoRoutes"]), (1_482, 19));
        assert!(found.contains_key("Icmp6.OutRouterSolicits") && found.contains_key("UdpLite6.RcvbufErrors"));
        assert!(!found.keys().any(|name| name.starts_with("Snmp6.")), "{found:?}");
    }

    #[test]
    fn names_of_newer_kernels_are_kept() {
        let (found, malformed) = pairs("NewExt: Alpha Beta\nNewExt: 1 18446744073709551615\n");
        assert_eq!((found["NewExt.Alpha"], found["NewExt.Beta"], malformed), (1, u64::MAX, 0));
        let found: Vec<_> = parse_lines("Tunnel6Weird \t 3\n", split_snmp6).collect();
        assert_eq!(found, [("Snmp6.Tunnel6Weird".to_owned(), 3)]);
        assert_eq!(split_sctp("SctpAborteds"), "Sctp.Aborteds");
    }

    #[test]
    fn broken_text_is_counted_and_not_guessed() {
        let (found, malformed) = pairs("Ip: A B\nIp: 1 x\nno colon\nIp: 3\n");
        assert_eq!((found.len(), found["Ip.A"], malformed), (1, 1, 2));
    }

    #[test]
    fn this_machine_counts() {
        let found = read().unwrap();
        assert!(found.left_out.is_empty(), "{:?}", found.left_out);
        assert!(found.counters.iter().any(|(name, _)| name == "TcpExt.ListenOverflows"));
    }

    proptest::proptest! {
        #[test]
        fn any_text_ends(text in ".{0,400}") {
            let (found, _) = pairs(&text);
            assert!(found.len() + parse_lines(&text, split_snmp6).count() <= text.len());
        }
    }
}
