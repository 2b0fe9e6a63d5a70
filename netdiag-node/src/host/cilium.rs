//! Cilium's policy maps: what its programs would do with one packet of a pod, looked up as they look it up
//! (`__policy_can_access` of bpf/lib/policy.h, Cilium 1.20).
//!
//! The maps are found by their pins in the node's BPF file system, as a process of the node sees it, and the kernel finds the longest
//! match in them. Nothing is changed. Layouts of other versions have other sizes, which is an error, or other names.

use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use aya::maps::lpm_trie::Key;
use aya::maps::{HashMap, LpmTrie, Map, MapData, MapError};
use netdiag_common::observation::policy_map::{MapRoom, PolicyEntry, PolicyQuery, PolicyVerdict};

use super::{ReadError, process};

/// Where Cilium pins its maps.
const PINS: &str = "sys/fs/bpf/tc/globals";
/// Whose file systems have the pins: Cilium's agent mounts the node's, and the kubelet has them where the agent has ended.
const SEES_PINS: [&str; 2] = ["cilium-agent", "kubelet"];
const ENDPOINTS: &str = "cilium_lxc";
const IDENTITIES: &str = "cilium_ipcache_v2";

/// `struct endpoint_key`, `struct endpoint_info` (bpf/lib/eps.h).
type Endpoints = HashMap<MapData, [u8; 20], [u8; 48]>;
/// `struct ipcache_key` without its prefix length, `struct remote_endpoint_info` (bpf/lib/eps.h).
type Identities = LpmTrie<MapData, [u8; 20], [u8; 24]>;
/// `struct policy_key` without its prefix length, `struct policy_entry` (bpf/lib/policy.h).
type Policies = LpmTrie<MapData, [u8; 8], Entry>;
type Entry = [u8; 12];

/// `ENDPOINT_KEY_IPV4`, `ENDPOINT_KEY_IPV6`.
const FAMILY_V4: u8 = 1;
const FAMILY_V6: u8 = 2;
/// Bits of `ipcache_key` before the address.
const IPCACHE_STATIC_PREFIX: u32 = 32;
const POLICY_FULL_PREFIX: u32 = 64;
/// Counting takes a system call for each entry. Cilium makes policy maps of 16 384 entries, and of 65 536 at most
/// (`bpf-policy-map-max`).
const MAX_COUNTED: u32 = 65_536;

/// How wildcards of identities are looked up, by the maps' names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wildcard {
    /// `cilium_policy_v2_` (1.17): 0 alone.
    Zero,
    /// `cilium_policy_v3_` (1.20): the identity's aggregate, then 0.
    Aggregate,
}

const POLICIES: [(&str, Wildcard); 2] =
    [("cilium_policy_v3_", Wildcard::Aggregate), ("cilium_policy_v2_", Wildcard::Zero)];

/// Of the node whose network namespace has the inode `netns`. None where Cilium has no endpoints.
pub fn read(proc: &Path, netns: u64, query: &PolicyQuery) -> Result<Option<PolicyVerdict>, ReadError> {
    process::sees_whole_node(proc)?;
    let Some((pins, endpoints)) = find(proc, netns)? else { return Ok(None) };
    let endpoints = Endpoints::try_from(endpoints).map_err(|error| other_layout(ENDPOINTS, &error))?;
    let found = known(endpoints.get(&endpoint_key(query.pod), 0), ENDPOINTS)?;
    let Some(info) = found else {
        return Err(ReadError::Gone { what: format!("Cilium's endpoint with address {}", query.pod) });
    };
    let endpoint = u16::from_ne_bytes([info[6], info[7]]);

    let Some(identities) = open(&pins.join(IDENTITIES))? else {
        let why = format!("{IDENTITIES} is not there: Cilium is of another version");
        return Err(ReadError::Malformed { what: "Cilium's maps".to_owned(), why });
    };
    let identities = Identities::try_from(identities).map_err(|error| other_layout(IDENTITIES, &error))?;
    let found = known(identities.get(&identity_key(query.peer), 0), IDENTITIES)?;
    let Some(info) = found else {
        return Err(ReadError::Gone { what: format!("Cilium's identity of {}", query.peer) });
    };
    let identity = u32::from_ne_bytes([info[0], info[1], info[2], info[3]]);

    let PolicyMap { name: map, wildcard, entries: policies, limit } = policies(&pins, endpoint)?;
    let look_up = |label: u32| known(policies.get(&policy_key(label, query), 0), &map);
    let entry = decide(identity, wildcard, look_up)?;
    let room = if entry == PolicyEntry::Missing { room(&policies, limit, &map)? } else { None };
    Ok(Some(PolicyVerdict { engine: "Cilium".to_owned(), endpoint: endpoint.into(), identity, map, entry, room }))
}

/// The folder of pins, and the map of endpoints in it.
fn find(proc: &Path, netns: u64) -> Result<Option<(PathBuf, Map)>, ReadError> {
    let mut roots = Vec::new();
    for pid in process::pids(proc)? {
        let rank = process::name(proc, pid).and_then(|name| SEES_PINS.iter().position(|known| *known == name));
        if let Some(rank) = rank
            && process::is_in_netns(proc, pid, netns)?
        {
            roots.push((rank, pid));
        }
    }
    roots.sort_unstable();
    for (_, pid) in roots {
        let pins = proc.join(format!("{pid}/root")).join(PINS);
        if let Some(endpoints) = open(&pins.join(ENDPOINTS))? {
            return Ok(Some((pins, endpoints)));
        }
    }
    Ok(None)
}

/// None without such a pin.
fn open(path: &Path) -> Result<Option<Map>, ReadError> {
    let failed = |source: io::Error| ReadError::File { path: path.to_owned(), source };
    match MapData::from_pin(path) {
        Ok(data) => Map::from_map_data(data).map(Some).map_err(|error| failed(io::Error::other(error))),
        Err(MapError::SyscallError(error)) if error.io_error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(MapError::SyscallError(error)) => Err(failed(error.io_error)),
        Err(error) => Err(failed(io::Error::other(error))),
    }
}

/// An endpoint's policies.
struct PolicyMap {
    name: String,
    wildcard: Wildcard,
    entries: Policies,
    /// `max_entries`
    limit: u32,
}

/// The endpoint's own map, of whichever version.
fn policies(pins: &Path, endpoint: u16) -> Result<PolicyMap, ReadError> {
    for (prefix, wildcard) in POLICIES {
        // `PolicyMap` of pkg/bpf: five digits.
        let name = format!("{prefix}{endpoint:05}");
        if let Some(map) = open(&pins.join(&name))? {
            let Map::LpmTrie(data) = &map else {
                let why = "it is no trie of prefixes: it is of another version".to_owned();
                return Err(ReadError::Malformed { what: format!("Cilium's map {name}"), why });
            };
            let limit = data.info().map_err(|error| failed("describe", &name, error))?.max_entries();
            let entries = Policies::try_from(map).map_err(|error| other_layout(&name, &error))?;
            return Ok(PolicyMap { name, wildcard, entries, limit });
        }
    }
    let why = format!("endpoint {endpoint} has none under the names that we know: Cilium is of another version");
    Err(ReadError::Malformed { what: "Cilium's policy maps".to_owned(), why })
}

/// Counts the entries; none where they cannot be counted: the map is larger than Cilium makes them, or changes all the time.
fn room(policies: &Policies, limit: u32, map: &str) -> Result<Option<MapRoom>, ReadError> {
    if limit > MAX_COUNTED {
        return Ok(None);
    }
    let (mut first, mut entries, mut steps) = (None, 0, 0);
    for key in policies.keys() {
        let key = key.map_err(|error| failed("count the entries of", map, error))?;
        let key = (key.prefix_len(), key.data());
        // What follows an entry that was deleted meanwhile is the beginning (`trie_get_next_key` of kernel/bpf/lpm_trie.c).
        if *first.get_or_insert(key) == key {
            entries = 0;
        }
        entries += 1;
        steps += 1;
        if steps > 2 * limit {
            return Ok(None);
        }
    }
    // Some were counted twice: the first one was deleted meanwhile.
    Ok((entries <= limit).then_some(MapRoom { entries, limit }))
}

fn failed(step: &str, map: &str, error: MapError) -> ReadError {
    ReadError::Call { step: format!("{step} map {map}"), source: io::Error::other(error) }
}

fn other_layout(map: &str, error: &MapError) -> ReadError {
    ReadError::Malformed { what: format!("Cilium's map {map}"), why: format!("{error}: it is of another version") }
}

fn known<V>(found: Result<V, MapError>, map: &str) -> Result<Option<V>, ReadError> {
    match found {
        Ok(value) => Ok(Some(value)),
        Err(MapError::KeyNotFound) => Ok(None),
        Err(error) => Err(failed("look up in", map, error)),
    }
}

fn endpoint_key(address: IpAddr) -> [u8; 20] {
    let mut key = [0; 20];
    key[16] = put(&mut key[..16], address);
    key
}

fn identity_key(address: IpAddr) -> Key<[u8; 20]> {
    let mut data = [0; 20];
    data[3] = put(&mut data[4..], address);
    Key::new(IPCACHE_STATIC_PREFIX + if address.is_ipv4() { 32 } else { 128 }, data)
}

/// The family.
fn put(bytes: &mut [u8], address: IpAddr) -> u8 {
    match address {
        IpAddr::V4(address) => {
            bytes[..4].copy_from_slice(&address.octets());
            FAMILY_V4
        }
        IpAddr::V6(address) => {
            bytes[..16].copy_from_slice(&address.octets());
            FAMILY_V6
        }
    }
}

fn policy_key(label: u32, query: &PolicyQuery) -> Key<[u8; 8]> {
    let [a, b, c, d] = label.to_ne_bytes();
    let [high, low] = query.port.to_be_bytes();
    Key::new(POLICY_FULL_PREFIX, [a, b, c, d, u8::from(!query.ingress), query.protocol.number(), high, low])
}

/// The entry for the identity or that for its wildcard, whichever goes before.
fn decide(
    identity: u32,
    wildcard: Wildcard,
    look_up: impl Fn(u32) -> Result<Option<Entry>, ReadError>,
) -> Result<PolicyEntry, ReadError> {
    let own = look_up(identity)?;
    let aggregate = match wildcard {
        Wildcard::Zero => 0,
        Wildcard::Aggregate => aggregate(identity)?,
    };
    let mut general = if aggregate == identity { None } else { look_up(aggregate)? };
    if own.is_none() && general.is_none() && aggregate != 0 {
        general = look_up(0)?;
    }
    let Some(chosen) = chosen(own, general) else { return Ok(PolicyEntry::Missing) };
    Ok(match chosen {
        entry if entry[2] & DENY != 0 => PolicyEntry::Denies,
        entry if entry[3] & AUTH_TYPE != 0 => PolicyEntry::WantsAuthentication,
        [0, 0, ..] => PolicyEntry::Allows,
        [high, low, ..] => PolicyEntry::Redirects { port: u16::from_be_bytes([high, low]) },
    })
}

const DENY: u8 = 1;
const AUTH_TYPE: u8 = 0x7f;

/// Precedence first, then the longer match, then the one for the identity itself.
fn chosen(own: Option<Entry>, general: Option<Entry>) -> Option<Entry> {
    let rank = |entry: &Entry| {
        let prefix_bits = entry[2] >> 3;
        (u32::from_ne_bytes([entry[4], entry[5], entry[6], entry[7]]), prefix_bits)
    };
    match (own, general) {
        (Some(own), Some(general)) if rank(&general) > rank(&own) => Some(general),
        (own, general) => own.or(general),
    }
}

/// `aggregate_for_identity` of bpf/lib/identity.h.
fn aggregate(identity: u32) -> Result<u32, ReadError> {
    const CLUSTER: u32 = 11;
    const WORLD: u32 = 13;
    const REMOTE_NODE: u32 = 14;
    const SCOPE_CIDR: u32 = 1;
    const SCOPE_REMOTE_NODE: u32 = 2;
    /// Reserved identities.
    const FIRST_OF_ENDPOINTS: u32 = 100;
    match (identity, identity >> 24) {
        (CLUSTER..=REMOTE_NODE, _) => Ok(identity),
        (0..FIRST_OF_ENDPOINTS, _) => Ok(0),
        (_, SCOPE_REMOTE_NODE) => Ok(REMOTE_NODE),
        (_, SCOPE_CIDR) => Ok(WORLD),
        _ if identity >> 16 == 0 => Ok(CLUSTER),
        // Which cluster is the node's own is compiled into its programs.
        _ => Err(ReadError::Malformed {
            what: format!("Cilium's identity {identity}"),
            why: "it names a cluster of a mesh, and which of them is the node's is not in the maps".to_owned(),
        }),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn entry(precedence: u32, prefix_bits: u8, deny: bool, proxy: u16) -> Entry {
        let mut entry = [0; 12];
        entry[..2].copy_from_slice(&proxy.to_be_bytes());
        entry[2] = prefix_bits << 3 | u8::from(deny);
        entry[4..8].copy_from_slice(&precedence.to_ne_bytes());
        entry
    }

    fn decided(entries: &[(u32, Entry)]) -> PolicyEntry {
        let look_up = |label: u32| Ok(entries.iter().find(|(own, _)| *own == label).map(|(_, entry)| *entry));
        decide(4_711, Wildcard::Aggregate, look_up).unwrap()
    }

    #[test]
    fn the_entry_that_goes_before_decides() {
        assert_eq!(decided(&[]), PolicyEntry::Missing);
        assert_eq!(decided(&[(4_711, entry(1, 24, false, 0))]), PolicyEntry::Allows);
        assert_eq!(decided(&[(4_711, entry(1, 24, false, 15_001))]), PolicyEntry::Redirects { port: 15_001 });
        // 11 is the wildcard of all endpoints of the cluster, 0 that of everybody.
        assert_eq!(decided(&[(11, entry(1, 0, false, 0))]), PolicyEntry::Allows);
        assert_eq!(decided(&[(0, entry(1, 0, false, 0))]), PolicyEntry::Allows);
        let allows = (4_711, entry(1, 24, false, 0));
        assert_eq!(decided(&[allows, (11, entry(9, 0, true, 0))]), PolicyEntry::Denies);
        assert_eq!(decided(&[allows, (11, entry(1, 8, true, 0))]), PolicyEntry::Allows);
        assert_eq!(decided(&[(4_711, entry(1, 8, false, 0)), (11, entry(1, 24, true, 0))]), PolicyEntry::Denies);
        // 0 is asked for only when neither of the others is there.
        assert_eq!(decided(&[allows, (0, entry(9, 24, true, 0))]), PolicyEntry::Allows);
    }

    #[test]
    fn authentication_is_no_permission() {
        let mut wants = entry(1, 24, false, 0);
        wants[3] = 1;
        assert_eq!(decided(&[(4_711, wants)]), PolicyEntry::WantsAuthentication);
        wants[3] = 0x80;
        assert_eq!(decided(&[(4_711, wants)]), PolicyEntry::Allows, "explicitly none");
    }

    #[test]
    fn identities_have_their_wildcards() {
        for (identity, wildcard) in
            [(2, 0), (11, 11), (14, 14), (100, 11), (65_535, 11), (0x0100_0001, 13), (0x0200_0007, 14)]
        {
            assert_eq!(aggregate(identity).unwrap(), wildcard, "{identity}");
        }
        assert!(aggregate(0x0003_0001).is_err(), "another cluster's, or this one's with a number");
    }

    #[test]
    fn keys_have_the_layout_of_the_programs() {
        let query = PolicyQuery {
            pod: [10, 244, 1, 2].into(),
            peer: [10, 244, 2, 3].into(),
            ingress: false,
            protocol: netdiag_common::observation::Protocol::Tcp,
            port: 0x1f90,
        };
        let key = policy_key(7, &query).data();
        assert_eq!(key[..4], 7_u32.to_ne_bytes());
        assert_eq!(key[4..], [1, 6, 0x1f, 0x90]);
        assert_eq!(endpoint_key(query.pod)[..4], [10, 244, 1, 2]);
        assert_eq!(endpoint_key(query.pod)[16..], [1, 0, 0, 0]);
        let identity = identity_key(query.peer);
        assert_eq!(identity.prefix_len(), 64);
        assert_eq!(identity.data()[..8], [0, 0, 0, 1, 10, 244, 2, 3]);
    }

    #[test]
    fn a_node_without_cilium_has_none() {
        // No process is in a namespace with this inode.
        assert!(find(Path::new("/proc"), 0).unwrap().is_none());
    }

    proptest! {
        #[test]
        fn any_entries_decide(
            identity in prop_oneof![0_u32..200, any::<u32>()],
            own in any::<Option<Entry>>(),
            other in any::<Option<Entry>>(),
        ) {
            let look_up = |label: u32| Ok(if label == identity { own } else { other });
            let is_missing = own.is_none() && (identity == 0 || other.is_none());
            let by_zero = decide(identity, Wildcard::Zero, look_up).unwrap();
            prop_assert_eq!(by_zero == PolicyEntry::Missing, is_missing);
            match decide(identity, Wildcard::Aggregate, look_up) {
                Ok(found) => prop_assert_eq!(found == PolicyEntry::Missing, is_missing),
                // Of a cluster of a mesh.
                Err(error) => prop_assert!(identity >> 16 != 0, "{identity}: {error}"),
            }
        }
    }
}
