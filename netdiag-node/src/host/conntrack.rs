//! Connection tracking of one network namespace, by ctnetlink (`net/netfilter/nf_conntrack_netlink.c`).

use std::io;
use std::path::Path;

use netdiag_common::observation::conntrack::Conntrack;
use nix::sys::socket::SockProtocol;

use super::netlink::{Netlink, attributes};
use super::{ReadError, file};

/// `NFNL_SUBSYS_CTNETLINK << 8`, and the two messages of linux/netfilter/nfnetlink_conntrack.h.
const GET_STATS_PER_CPU: u16 = 1 << 8 | 4;
const GET_STATS: u16 = 1 << 8 | 5;

// `CTA_STATS_*`, one set per CPU.
const FOUND: u16 = 2;
const INVALID: u16 = 4;
const INSERT_FAILED: u16 = 9;
const DROP: u16 = 10;
const EARLY_DROP: u16 = 11;
const SEARCH_RESTART: u16 = 13;
const CLASH_RESOLVE: u16 = 14;
const CHAIN_TOO_LONG: u16 = 15;
// `CTA_STATS_GLOBAL_*`
const ENTRIES: u16 = 1;
const MAX_ENTRIES: u16 = 2;

const NUMBER_BYTES: u64 = 32;

/// The calling thread's namespace. None when this kernel does no connection tracking.
pub(crate) fn read(proc: &Path) -> Result<Option<Conntrack>, ReadError> {
    if file::text_if_there(&proc.join("sys/net/netfilter/nf_conntrack_count"), NUMBER_BYTES)?.is_none() {
        return Ok(None);
    }
    let mut netlink = Netlink::open(SockProtocol::NetlinkNetFilter)?;
    // `struct nfgenmsg`: family unspecified, version 0, resource 0.
    let request = [0u8; 4];
    let step = "read conntrack statistics";
    let mut sums = Conntrack::default();
    for per_cpu in netlink.dump(GET_STATS_PER_CPU, &request, step, |payload| Some(payload.to_vec()))? {
        add_cpu(&mut sums, &per_cpu);
    }
    let global = netlink.get(GET_STATS, &request, step, |payload| Some(parse_global(payload)))?;
    let (entries, limit) = global.unwrap_or_default();
    sums.entries = entries;
    sums.limit = match limit {
        Some(limit) => limit,
        // The kernel tells the limit by netlink since 4.18.
        None => read_number(&proc.join("sys/net/netfilter/nf_conntrack_max"))?,
    };
    Ok(Some(sums))
}

fn add_cpu(sums: &mut Conntrack, payload: &[u8]) {
    for (kind, value) in numbers(payload) {
        let sum = match kind {
            FOUND => &mut sums.found,
            INVALID => &mut sums.invalid,
            INSERT_FAILED => &mut sums.insert_failed,
            DROP => &mut sums.drop,
            EARLY_DROP => &mut sums.early_drop,
            SEARCH_RESTART => &mut sums.search_restart,
            CLASH_RESOLVE => &mut sums.clash_resolve,
            CHAIN_TOO_LONG => &mut sums.chain_too_long,
            _ => continue,
        };
        *sum += value;
    }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::netlink::attribute;

    fn message(list: &[(u16, u32)]) -> Vec<u8> {
        let attributes = list.iter().flat_map(|(kind, value)| attribute(*kind, &value.to_be_bytes()));
        [0; 4].into_iter().chain(attributes).collect()
    }

    #[test]
    fn counters_of_all_cpus_are_added() {
        let mut sums = Conntrack::default();
        add_cpu(&mut sums, &message(&[(DROP, 3), (INSERT_FAILED, 1), (99, 7)]));
        add_cpu(&mut sums, &message(&[(DROP, 4)]));
        assert_eq!((sums.drop, sums.insert_failed), (7, 1));
    }

    #[test]
    fn limit_is_optional_on_old_kernels() {
        assert_eq!(parse_global(&message(&[(ENTRIES, 5)])), (5, None));
        assert_eq!(parse_global(&message(&[(ENTRIES, 5), (MAX_ENTRIES, 262_144)])), (5, Some(262_144)));
    }

    #[test]
    fn this_machine_has_a_limit_when_it_tracks() {
        if let Some(found) = read(Path::new("/proc")).unwrap() {
            assert!(found.limit > 0);
        }
    }
}
