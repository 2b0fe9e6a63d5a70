//! The tables of the `dns` programs: their sizes, what their globals say, and how they are attached.

use aya::Pod;
use aya::maps::{HashMap, MapData, RingBuf};
use aya::programs::CgroupSkbAttachType::{Egress, Ingress};
use netdiag_common::record::dns::{Counters, Group, GroupKey, Open, OpenKey, Sample};
use netdiag_common::record::table::CpuState;

use crate::kernel::LoadError;
use crate::kernel::btf::Btf;
use crate::kernel::failure::failed;
use crate::kernel::layout;
use crate::kernel::object::{Attached, Object, Running, Way};
use crate::kernel::plan::{Plan, cpus, cpus_u32};
use crate::kernel::table::Table;

/// Linux 6.15 has a helper for the namespace; before it, three reads of kernel memory. Answers first: a query that is seen while
/// nobody looks at answers would stay open.
pub(super) const WAYS_TO_ATTACH: [[Way; 2]; 2] = [
    [
        Way::CgroupSkb { program: "netdiag_dns_ingress", direction: Ingress },
        Way::CgroupSkb { program: "netdiag_dns_ingress_old", direction: Ingress },
    ],
    [
        Way::CgroupSkb { program: "netdiag_dns_egress", direction: Egress },
        Way::CgroupSkb { program: "netdiag_dns_egress_old", direction: Egress },
    ],
];

/// Which ports carry DNS, and how much is kept of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DnsSize {
    /// Where DNS servers listen; at most four differ.
    pub ports: [u16; 4],
    /// Queries that can wait for their answers at one time.
    pub open: u32,
    /// Pairs of namespace and server in one epoch.
    pub groups: u32,
    /// Answered queries a second whose names are read, of all CPUs together.
    pub names_per_second: u32,
    /// After the last try; longer than resolvers wait before they repeat.
    pub patience_ms: u64,
}

impl Default for DnsSize {
    /// 8 MiB, whatever the number of CPUs. The programs may send all names of a busy node (Inspektor Gadget loses events from
    /// 8192 queries a second on); parsing 4000 names takes some 8 ms.
    fn default() -> Self {
        Self { ports: [53; 4], open: 16_384, groups: 1024, names_per_second: 4000, patience_ms: 6000 }
    }
}

impl DnsSize {
    /// As usual, less of everything where that does not fit.
    pub(in crate::kernel) fn within(budget_bytes: usize) -> Self {
        /// Fewer would not be worth their programs.
        const LEAST_OPEN: u32 = 64;
        let mut size = Self::default();
        while size.bytes() > budget_bytes && size.open > LEAST_OPEN {
            size = Self {
                open: size.open / 2,
                groups: size.groups / 2,
                names_per_second: size.names_per_second / 2,
                ..size
            };
        }
        size
    }

    /// With the kernel's own part of an entry (`struct htab_elem`, and its share of buckets).
    fn bytes(&self) -> usize {
        const OWN: usize = 72;
        let open = self.open as usize * (size_of::<OpenKey>() + size_of::<Open>() + OWN);
        let groups = 2 * self.groups as usize * (size_of::<GroupKey>() + size_of::<Group>() + OWN);
        open + groups + ring_bytes(*self) as usize
    }

    /// With the first four of these ports; port 53 when there is none.
    #[must_use]
    pub fn with_ports(self, ports: &[u16]) -> Self {
        let first = ports.first().copied().unwrap_or(53);
        Self { ports: std::array::from_fn(|n| ports.get(n).copied().unwrap_or(first)), ..self }
    }

    fn different_ports(&self) -> u32 {
        let others = self.ports.iter().any(|port| *port != self.ports[0]);
        if others { 4 } else { 1 }
    }

    fn packed_ports(&self) -> u64 {
        self.ports.iter().rev().fold(0, |packed, port| packed << 16 | u64::from(port.to_be()))
    }
}

/// Samples of one second, and as many again for a late reader.
fn ring_bytes(size: DnsSize) -> u32 {
    let entry = u32::try_from(size_of::<Sample>() + 8).expect("a few hundred bytes");
    (size.names_per_second.saturating_mul(2).saturating_mul(entry)).next_power_of_two().clamp(64 << 10, 4 << 20)
}

/// A record of integers, as aya wants them.
#[repr(transparent)]
#[derive(Clone, Copy)]
pub(super) struct Raw<T>(pub(super) T);

// SAFETY: the types below are `repr(C)` with integers only, without padding, so any bytes are one of them.
unsafe impl Pod for Raw<OpenKey> {}
// SAFETY: as above.
unsafe impl Pod for Raw<Open> {}
// SAFETY: as above.
unsafe impl Pod for Raw<Group> {}

/// The programs in the kernel, with their tables. Dropping it removes both.
pub(super) struct Tables {
    pub(super) cpus: usize,
    pub(super) size: DnsSize,
    pub(super) states: Table<CpuState>,
    pub(super) counters: Table<Counters>,
    pub(super) open: HashMap<MapData, Raw<OpenKey>, Raw<Open>>,
    pub(super) groups: HashMap<MapData, GroupKey, Raw<Group>>,
    pub(super) samples: RingBuf<MapData>,
    pub(super) programs: [Attached; 2],
    #[expect(dead_code, reason = "what it is for is to be kept")]
    running: Running,
}

/// The programs' part of the plan.
pub(super) fn plan(btf: &Btf<'_>, size: DnsSize, plan: &mut Plan) -> Result<(), LoadError> {
    layout::packet(btf, plan)?;
    plan.set("DNS_PORTS", size.packed_ports());
    plan.set("DNS_PORT_COUNT", size.different_ports());
    plan.set("DNS_SAMPLES_PER_SPAN", u64::from(size.names_per_second.div_ceil(4).div_ceil(cpus_u32())));
    plan.size("DNS_CPUS", cpus_u32());
    plan.size("DNS_COUNTERS", 2 * cpus_u32());
    plan.size("DNS_OPEN", size.open);
    plan.size("DNS_GROUPS", 2 * size.groups);
    plan.size("DNS_SAMPLES", ring_bytes(size));
    Ok(())
}

pub(super) fn open(object: &Object, size: DnsSize, [answers, queries]: [&[Way]; 2]) -> Result<Tables, LoadError> {
    let cpus = cpus();
    let map = |name| object.take(name);
    let root = "the root of the cgroup v2 tree";
    Ok(Tables {
        cpus,
        size,
        states: object.table("DNS_CPUS", cpus)?,
        counters: object.table("DNS_COUNTERS", 2 * cpus)?,
        open: HashMap::try_from(map("DNS_OPEN")?).map_err(|error| failed("open table DNS_OPEN", &error))?,
        groups: HashMap::try_from(map("DNS_GROUPS")?).map_err(|error| failed("open table DNS_GROUPS", &error))?,
        samples: object.ring("DNS_SAMPLES")?,
        // Answers first: a query that is seen while nobody looks at answers would stay open.
        programs: [object.attach(root, answers)?, object.attach(root, queries)?],
        running: object.running(),
    })
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;

    use super::*;
    use crate::kernel::btf;

    #[test]
    fn ports_are_packed_as_packets_have_them() {
        let size = DnsSize::default().with_ports(&[53, 5353]);
        assert_eq!(DnsSize::default().with_ports(&[]), DnsSize::default());
        assert_eq!(size.packed_ports().to_ne_bytes(), [0, 53, 20, 233, 0, 53, 0, 53]);
        assert_eq!((size.different_ports(), DnsSize::default().different_ports()), (4, 1));
        assert!(ring_bytes(size).is_power_of_two());
    }

    /// As before Linux 6.15, which has no helper for the namespace, and before 5.12, which has no cookies.
    #[test]
    fn kernels_without_the_helper_count_as_well() {
        let test = "kernels_without_the_helper_count_as_well";
        let bytes = match crate::host::kernel::btf() {
            Ok(bytes) => bytes,
            Err(error) => return eprintln!("netdiag-skip: {test}: {error}"),
        };
        let types = btf::parse(&bytes).unwrap();
        let size = DnsSize::default();
        let mut planned = Plan::for_this_machine();
        plan(&types, size, &mut planned).unwrap();
        planned.set("NETNS_IS_COOKIE", 0_u32);
        planned.set("O_NET_ID", types.member("net", "ns.inum").unwrap().offset);
        let ways = [&WAYS_TO_ATTACH[0][1..], &WAYS_TO_ATTACH[1][1..]];
        let tables = match Object::create(&planned).and_then(|object| open(&object, size, ways)) {
            Ok(tables) => tables,
            Err(error @ (LoadError::NotBuilt | LoadError::NotPermitted { .. })) => {
                return eprintln!("netdiag-skip: {test}: {error}");
            }
            Err(error) => panic!("{error}"),
        };
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        socket.send_to(&[7, 7, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 1, b'x', 0, 0, 1, 0, 1], "127.0.0.93:53").unwrap();
        let inode = std::fs::metadata("/proc/self/ns/net").map(|found| std::os::linux::fs::MetadataExt::st_ino(&found));
        let open: Vec<Open> = tables.open.iter().flatten().map(|(_, Raw(open))| open).collect();
        let server = u64::from(u32::from_ne_bytes([127, 0, 0, 93]));
        let ours = open.iter().find(|open| open.server[0] == server).unwrap();
        assert_eq!(ours.netns, inode.unwrap());
    }
}
