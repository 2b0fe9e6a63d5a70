//! Hosts on the link that do not answer (`RTM_GETNEIGH`), and how full the kernel's neighbour tables are
//! (`RTM_GETNEIGHTBL`, `net/core/neighbour.c`).

use std::collections::BTreeMap;

use netdiag_common::observation::counter::Counter;
use netdiag_common::observation::neighbour::{NeighbourTable, Neighbours, Unresolved};
use nix::sys::socket::SockProtocol;

use super::ReadError;
use super::netlink::{Netlink, address, attributes, int, long, short, string};
use super::network::{links, neighbour_state};
use crate::history::{Seen, object};

/// Neighbours told: the default limit of the table is 1 024 a family.
const MAX_UNRESOLVED: usize = 1_024;

/// Attributes of an entry that libc does not name.
const NDA_CACHEINFO: u16 = 3;
const NDA_PROBES: u16 = 4;
/// Times in `struct nda_cacheinfo` are in `USER_HZ`, 100 a second on every architecture that Linux still has.
const TICK_MS: u64 = 10;

// `NDTA_*` of linux/neighbour.h.
const NDTA_NAME: u16 = 1;
const NDTA_THRESH1: u16 = 2;
const NDTA_THRESH2: u16 = 3;
const NDTA_THRESH3: u16 = 4;
const NDTA_CONFIG: u16 = 5;
const NDTA_STATS: u16 = 7;

/// `struct ndt_stats`, in its order. `table_fulls` came with Linux 4.3.
const STATISTICS: [&str; 11] = [
    "allocs",
    "destroys",
    "hash_grows",
    "res_failed",
    "lookups",
    "hits",
    "rcv_probes_mcast",
    "rcv_probes_ucast",
    "periodic_gc_runs",
    "forced_gc_runs",
    "table_fulls",
];

/// The calling thread's namespace; the tables are the whole kernel's.
pub(crate) fn read() -> Result<Neighbours, ReadError> {
    let mut netlink = Netlink::open(SockProtocol::NetlinkRoute)?;
    let mut found = Neighbours::default();
    let mut omitted = 0;
    let tried = netlink.dump(libc::RTM_GETNEIGH, &[0; 12], "list neighbours", parse)?;
    for entry in tried {
        *found.states.entry(entry.state.to_owned()).or_default() += 1;
        match entry.unresolved {
            Some(_) if found.unresolved.len() >= MAX_UNRESOLVED => omitted += 1,
            Some(unresolved) => found.unresolved.push(unresolved),
            None => {}
        }
    }
    if omitted > 0 {
        found.left_out.push(format!("{omitted} neighbours without an answer, after the first {MAX_UNRESOLVED}"));
    }
    if !found.unresolved.is_empty() {
        let names = names(&mut netlink)?;
        for unresolved in &mut found.unresolved {
            unresolved.device = names.get(&unresolved.link_index).cloned().unwrap_or_default();
        }
    }
    found.tables = netlink.dump(libc::RTM_GETNEIGHTBL, &[0; 4], "list neighbour tables", parse_table)?;
    Ok(found)
}

/// Names of the devices of the calling thread's namespace, by their indices.
pub(crate) fn devices() -> Result<BTreeMap<u32, String>, ReadError> {
    names(&mut Netlink::open(SockProtocol::NetlinkRoute)?)
}

fn names(netlink: &mut Netlink) -> Result<BTreeMap<u32, String>, ReadError> {
    Ok(links(netlink)?.into_iter().map(|found| (found.link.index, found.link.name)).collect())
}

/// How often the whole kernel gave up asking for a neighbour since it started, of both families (`res_failed`).
pub(crate) fn failures() -> Result<u64, ReadError> {
    let mut netlink = Netlink::open(SockProtocol::NetlinkRoute)?;
    let tables = netlink.dump(libc::RTM_GETNEIGHTBL, &[0; 4], "list neighbour tables", parse_table)?;
    let failed = |table: &NeighbourTable| table.statistics.get("res_failed").map_or(0, |counter| counter.value);
    Ok(tables.iter().map(failed).sum())
}

/// Every counter, for [`Series::look`](crate::history::Series::look).
pub(crate) fn counters(found: &mut Neighbours) -> Vec<Seen<'_>> {
    let mut all = Vec::new();
    for table in &mut found.tables {
        let object = object("neighbour table", table.name.as_bytes());
        all.extend(table.statistics.iter_mut().map(|(name, counter)| Seen { object, name, counter }));
    }
    all
}

/// One entry, whatever its state.
#[derive(Debug)]
struct Entry {
    state: &'static str,
    unresolved: Option<Unresolved>,
}

/// `struct ndmsg` and its attributes. None for entries that stand for no host (see [`neighbour_state`]) and for bridges.
fn parse(payload: &[u8]) -> Option<Entry> {
    let state = neighbour_state(payload)?;
    if !matches!(state, "failed" | "incomplete") {
        return Some(Entry { state, unresolved: None });
    }
    let mut host = None;
    let (mut changed_ms, mut used_ms, mut probes) = (None, None, None);
    for (kind, value) in attributes(payload.get(12..)?) {
        match kind {
            libc::NDA_DST => host = address(value),
            // `struct nda_cacheinfo`: confirmed, used, updated, references.
            NDA_CACHEINFO => {
                used_ms = int(value, 4).map(|ticks| u64::from(ticks) * TICK_MS);
                changed_ms = int(value, 8).map(|ticks| u64::from(ticks) * TICK_MS);
            }
            NDA_PROBES => probes = int(value, 0),
            _ => {}
        }
    }
    let unresolved = Unresolved {
        address: host?,
        link_index: int(payload, 4)?,
        device: String::new(),
        state: state.to_owned(),
        changed_ms,
        used_ms,
        probes,
        first_at: None,
    };
    Some(Entry { state, unresolved: Some(unresolved) })
}

/// None for the messages with a device's parameters, which follow each table's own.
fn parse_table(payload: &[u8]) -> Option<NeighbourTable> {
    let mut table = NeighbourTable::default();
    let mut is_whole = false;
    for (kind, value) in attributes(payload.get(4..)?) {
        match kind {
            NDTA_NAME => table.name = string(value),
            NDTA_THRESH1 => table.gc_thresh1 = int(value, 0)?,
            NDTA_THRESH2 => table.gc_thresh2 = int(value, 0)?,
            NDTA_THRESH3 => table.gc_thresh3 = int(value, 0)?,
            // `struct ndt_config`: key length, entry size, entries, …
            NDTA_CONFIG => {
                short(value, 0)?;
                table.entries = int(value, 4)?;
                is_whole = true;
            }
            NDTA_STATS => {
                let numbers = (0..STATISTICS.len()).map_while(|position| long(value, position * 8));
                let named = STATISTICS.iter().zip(numbers);
                table.statistics =
                    named.map(|(name, value)| ((*name).to_owned(), Counter { value, ..Counter::default() })).collect();
            }
            _ => {}
        }
    }
    is_whole.then_some(table)
}

#[cfg(test)]
mod tests {
    use super::*;

    // As Linux 6.18 wrote them, without the netlink header.
    const FAILED: &[u8] = include_bytes!("../../tests/fixtures/host/newneigh-failed");
    const ARP: &[u8] = include_bytes!("../../tests/fixtures/host/newneightbl-arp");
    const PARAMETERS: &[u8] = include_bytes!("../../tests/fixtures/host/newneightbl-parms");

    #[test]
    fn failed_entry_of_linux_6_18() {
        let entry = parse(FAILED).unwrap();
        let unresolved = entry.unresolved.unwrap();
        assert_eq!((entry.state, unresolved.address.to_string().as_str()), ("failed", "10.9.0.99"));
        assert_eq!((unresolved.link_index, unresolved.probes), (2, Some(6)));
        // The queue was asked about 3 s after the packet.
        assert!(unresolved.used_ms.is_some_and(|ms| (2_000..5_000).contains(&ms)), "{unresolved:?}");
        assert!(unresolved.changed_ms.is_some_and(|ms| ms < 2_000), "{unresolved:?}");
    }

    #[test]
    fn table_of_linux_6_18() {
        let table = parse_table(ARP).unwrap();
        assert_eq!((table.name.as_str(), table.gc_thresh1, table.gc_thresh3), ("arp_cache", 128, 1024));
        assert!(table.entries > 0 && table.statistics["res_failed"].value > 0, "{table:?}");
        assert_eq!(table.statistics.len(), STATISTICS.len());
        assert!(parse_table(PARAMETERS).is_none(), "parameters of a device are no table");
    }

    #[test]
    fn this_machine_has_a_table_per_family() {
        let mut found = read().unwrap();
        assert!(found.tables.iter().any(|table| table.name == "arp_cache" && table.gc_thresh3 > 0), "{found:?}");
        assert!(counters(&mut found).iter().any(|seen| seen.name == "table_fulls"));
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_end(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..200)) {
            let _ = (parse(&bytes), parse_table(&bytes));
        }
    }
}
