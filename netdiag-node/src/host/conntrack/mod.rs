//! Connection tracking of one network namespace, by ctnetlink (`net/netfilter/nf_conntrack_netlink.c`): its statistics here,
//! its table and what it announces in the files beside.

pub(crate) mod entry;
pub(crate) mod listen;
pub(crate) mod lookup;
pub(crate) mod table;
pub(crate) mod timeout;

use std::collections::BTreeMap;
use std::io;
use std::path::Path;

use netdiag_common::observation::conntrack::{Conntrack, ConntrackCpu};
use nix::sys::socket::SockProtocol;

use super::netlink::{Netlink, attributes};
use super::{ReadError, file};

/// `NFNL_SUBSYS_CTNETLINK << 8`, and the two messages of linux/netfilter/nfnetlink_conntrack.h.
const GET_STATS_PER_CPU: u16 = 1 << 8 | 4;
const GET_STATS: u16 = 1 << 8 | 5;

/// `enum ctattr_stats_cpu` from 1 on, named as conntrack(8) does. Kernels before 4.9 count all of them.
const COUNTERS: [&str; 15] = [
    "searched",
    "found",
    "new",
    "invalid",
    "ignore",
    "delete",
    "delete_list",
    "insert",
    "insert_failed",
    "drop",
    "early_drop",
    "error",
    "search_restart",
    "clash_resolve",
    "chaintoolong",
];
/// Counters of what went as it should: the others tell of failures.
const HARMLESS: [&str; 7] = ["searched", "found", "new", "ignore", "delete", "delete_list", "insert"];
// `CTA_STATS_GLOBAL_*`
const ENTRIES: u16 = 1;
const MAX_ENTRIES: u16 = 2;
/// `struct nfgenmsg`: family unspecified, version 0, resource 0.
const ANY: [u8; 4] = [0; 4];
const STEP: &str = "read conntrack statistics";

const SYSCTLS: &str = "sys/net/netfilter";
const NUMBER_BYTES: u64 = 32;
const SETTING_BYTES: u64 = 256;
/// Linux 6.18 has 45 files there.
const MAX_SETTINGS: usize = 256;

/// The calling thread's namespace. None when this kernel does no connection tracking.
pub(crate) fn read(proc: &Path) -> Result<Option<Conntrack>, ReadError> {
    let Some((entries, limit)) = usage(proc)? else { return Ok(None) };
    let cpus = statistics()?;
    let sum = |name: &str| cpus.iter().filter_map(|cpu| cpu.counters.get(name)).sum();
    Ok(Some(Conntrack {
        entries,
        limit,
        found: sum("found"),
        invalid: sum("invalid"),
        insert_failed: sum("insert_failed"),
        drop: sum("drop"),
        early_drop: sum("early_drop"),
        search_restart: sum("search_restart"),
        clash_resolve: sum("clash_resolve"),
        chain_too_long: sum("chaintoolong"),
        settings: settings(proc)?,
        cpus,
        // What is followed over time is added by who follows it.
        window_s: 0.0,
        failures: BTreeMap::new(),
    }))
}

/// Whether this kernel tracks connections. Asking ctnetlink would load it.
pub(crate) fn is_there(proc: &Path) -> Result<bool, ReadError> {
    Ok(file::text_if_there(&proc.join(SYSCTLS).join("nf_conntrack_count"), NUMBER_BYTES)?.is_some())
}

/// Entries of the calling thread's namespace, and the limit for each. None when this kernel does no connection tracking.
pub(crate) fn usage(proc: &Path) -> Result<Option<(u64, u64)>, ReadError> {
    if !is_there(proc)? {
        return Ok(None);
    }
    let mut netlink = Netlink::open(SockProtocol::NetlinkNetFilter)?;
    let (entries, limit) =
        netlink.get(GET_STATS, &ANY, STEP, |payload| Some(parse_global(payload)))?.unwrap_or_default();
    let limit = match limit {
        Some(limit) => limit,
        // The kernel tells the limit by netlink since 4.18.
        None => read_number(&proc.join(SYSCTLS).join("nf_conntrack_max"))?,
    };
    Ok(Some((entries, limit)))
}

/// Counters of each CPU for the calling thread's namespace.
pub(crate) fn statistics() -> Result<Vec<ConntrackCpu>, ReadError> {
    Netlink::open(SockProtocol::NetlinkNetFilter)?.dump(GET_STATS_PER_CPU, &ANY, STEP, parse_cpu)
}

/// Whether a counter grows when something goes wrong. One without a name may: it is newer than this table.
pub(crate) fn is_failure(counter: &str) -> bool {
    !HARMLESS.contains(&counter)
}

/// The sysctls `nf_conntrack_*` of the calling thread's namespace, whatever this kernel has.
pub(crate) fn settings(proc: &Path) -> Result<BTreeMap<String, String>, ReadError> {
    let folder = proc.join(SYSCTLS);
    let mut found = BTreeMap::new();
    for name in file::names(&folder, MAX_SETTINGS)? {
        // Entries are no setting.
        if !name.starts_with("nf_conntrack_") || name == "nf_conntrack_count" {
            continue;
        }
        if let Some(text) = file::text_if_there(&folder.join(&name), SETTING_BYTES)? {
            found.insert(name, text.trim().to_owned());
        }
    }
    Ok(found)
}

/// One message per CPU, whose number is in `struct nfgenmsg` (`ctnetlink_ct_stat_cpu_fill_info`).
fn parse_cpu(payload: &[u8]) -> Option<ConntrackCpu> {
    let cpu = u16::from_be_bytes(payload.get(2..4)?.try_into().ok()?);
    let counters = numbers(payload).filter(|(_, value)| *value != 0).map(|(kind, value)| {
        let known = usize::from(kind).checked_sub(1).and_then(|at| COUNTERS.get(at));
        (known.map_or_else(|| format!("attribute_{kind}"), |name| (*name).to_owned()), value)
    });
    Some(ConntrackCpu { cpu, counters: counters.collect() })
}

/// Entries, and the limit when this kernel tells it.
fn parse_global(payload: &[u8]) -> (u64, Option<u64>) {
    let find = |wanted| numbers(payload).find(|(kind, _)| *kind == wanted).map(|(_, value)| value);
    (find(ENTRIES).unwrap_or(0), find(MAX_ENTRIES))
}

/// Attributes behind `struct nfgenmsg`, each a number in network byte order.
fn numbers(payload: &[u8]) -> impl Iterator<Item = (u16, u64)> {
    attributes(payload.get(4..).unwrap_or_default())
        .filter_map(|(kind, value)| Some((kind, u64::from(u32::from_be_bytes(value.try_into().ok()?)))))
}

fn read_number(path: &Path) -> Result<u64, ReadError> {
    let text = file::text(path, NUMBER_BYTES)?;
    text.trim().parse().map_err(|_| ReadError::File {
        path: path.to_owned(),
        source: io::Error::new(io::ErrorKind::InvalidData, format!("expected a number, found {:?}", text.trim())),
    })
}

/// Datagrams of Linux 6.18, from a namespace with a Service at 10.96.0.50:80 and flows of TCP, UDP and ICMP.
#[cfg(test)]
pub(crate) mod recorded {
    use crate::host::netlink::messages;

    /// Payloads of the entries of one dump.
    pub(crate) fn dump() -> Vec<Vec<u8>> {
        payloads(include_bytes!("../../../tests/fixtures/conntrack/dump.netlink"))
    }

    /// Payloads of the statistics of two CPUs.
    pub(crate) fn statistics() -> Vec<Vec<u8>> {
        payloads(include_bytes!("../../../tests/fixtures/conntrack/statistics.netlink"))
    }

    pub(crate) fn announcements() -> Vec<Vec<u8>> {
        datagrams(include_bytes!("../../../tests/fixtures/conntrack/events.netlink"))
    }

    /// Datagrams of the dump as the kernel sent them.
    pub(crate) fn dump_datagrams() -> Vec<Vec<u8>> {
        datagrams(include_bytes!("../../../tests/fixtures/conntrack/dump.netlink"))
    }

    fn payloads(bytes: &[u8]) -> Vec<Vec<u8>> {
        let done = u16::try_from(libc::NLMSG_DONE).unwrap();
        let all = datagrams(bytes);
        let messages = all.iter().flat_map(|datagram| messages(datagram).filter(|(kind, _)| *kind != done));
        messages.map(|(_, payload)| payload.to_vec()).collect()
    }

    /// Each is behind its length in 32 bits, little-endian.
    fn datagrams(mut bytes: &[u8]) -> Vec<Vec<u8>> {
        let mut found = Vec::new();
        while let Some((length, rest)) = bytes.split_first_chunk::<4>() {
            let (datagram, rest) = rest.split_at(u32::from_le_bytes(*length) as usize);
            found.push(datagram.to_vec());
            bytes = rest;
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::netlink::attribute;

    fn message(list: &[(u16, u32)]) -> Vec<u8> {
        let attributes = list.iter().flat_map(|(kind, value)| attribute(*kind, &value.to_be_bytes()));
        [0, 0, 0, 3].into_iter().chain(attributes).collect()
    }

    #[test]
    fn unknown_counters_are_kept_under_their_number() {
        let found = parse_cpu(&message(&[(10, 3), (9, 0), (99, 7)])).unwrap();
        assert_eq!(found.cpu, 3);
        assert_eq!(found.counters, [("attribute_99".to_owned(), 7), ("drop".to_owned(), 3)].into());
        assert!(is_failure("drop") && is_failure("attribute_99") && !is_failure("found"));
    }

    #[test]
    fn recorded_statistics_name_their_cpus() {
        let found: Vec<ConntrackCpu> = recorded::statistics().iter().filter_map(|payload| parse_cpu(payload)).collect();
        assert_eq!(found.iter().map(|cpu| cpu.cpu).collect::<Vec<_>>(), [0, 1]);
        assert_eq!(found[0].counters, [("error".to_owned(), 1)].into());
    }

    #[test]
    fn limit_is_optional_on_old_kernels() {
        assert_eq!(parse_global(&message(&[(ENTRIES, 5)])), (5, None));
        assert_eq!(parse_global(&message(&[(ENTRIES, 5), (MAX_ENTRIES, 262_144)])), (5, Some(262_144)));
    }

    #[test]
    fn this_machine_has_a_limit_and_timeouts_when_it_tracks() {
        if let Some(found) = read(Path::new("/proc")).unwrap() {
            assert!(found.limit > 0);
            assert!(found.settings["nf_conntrack_udp_timeout"].parse::<u32>().unwrap() > 0);
        }
    }
}
