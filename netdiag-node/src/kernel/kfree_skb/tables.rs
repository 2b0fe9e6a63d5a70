//! The tables of the `kfree_skb` program: their sizes, what its globals say, and how it is attached.

use aya::maps::{MapData, RingBuf};
use netdiag_common::record::kfree_skb::{Counters, CpuState, SHOWN, SlotV4, SlotV6, TranslatedV4, TranslatedV6, WAYS};

use super::Planned;
use crate::kernel::LoadError;
use crate::kernel::btf::Btf;
use crate::kernel::layout;
use crate::kernel::object::{Attached, Object, Running, Way};
use crate::kernel::plan::{Plan, cpus, cpus_u32, tick_ns};
use crate::kernel::table::Table;

/// Linux 5.17 passes the reason; before it, and for the classic tracepoint, see `layout`. Where none of them works, the
/// namespaces' own counters (topic `counters`) are all there is.
pub(super) const WAYS_TO_ATTACH: [Way; 3] = [
    Way::TpBtf { program: "netdiag_kfree_skb", tracepoint: "kfree_skb" },
    Way::RawTracepoint { program: "netdiag_kfree_raw", tracepoint: "kfree_skb" },
    Way::Tracepoint { program: "netdiag_kfree_perf", category: "skb", tracepoint: "kfree_skb" },
];

/// One more exemplar per CPU every 100 ms, up to 32 saved: a reader's handful, and 40 µs a second (4 µs each, with stack).
const TOKEN_NS: u64 = 100_000_000;
const BURST: u64 = 32;

/// How many sets of four keys each CPU has per epoch. Powers of two.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TableSize {
    pub ipv4: u32,
    pub ipv6: u32,
    pub coarse: u32,
}

impl TableSize {
    /// As [`TableSize::within`], in 24 MiB.
    pub fn for_cpus(cpus: usize) -> Self {
        Self::within(cpus, 24 << 20)
    }

    /// 16 384 IPv4 and 4096 IPv6 keys per CPU (3.7 MiB with both epochs), less where that does not fit: a node's agent must stay
    /// small on 128 CPUs too, and there each CPU sees fewer flows.
    pub fn within(cpus: usize, budget_bytes: usize) -> Self {
        let mut size = Self { ipv4: 4096, ipv6: 1024, coarse: 64 };
        while size.bytes(cpus) > budget_bytes && size.ipv6 > 16 {
            size = Self { ipv4: size.ipv4 / 2, ipv6: size.ipv6 / 2, coarse: size.coarse.max(16) / 2 };
        }
        size
    }

    fn bytes(self, cpus: usize) -> usize {
        let v4 = self.ipv4 as usize * WAYS * (size_of::<SlotV4>() + size_of::<TranslatedV4>());
        let v6 = self.ipv6 as usize * WAYS * (size_of::<SlotV6>() + size_of::<TranslatedV6>());
        let coarse = 2 * self.coarse as usize * WAYS * size_of::<SlotV4>();
        2 * cpus * (v4 + v6 + coarse + size_of::<Counters>())
    }
}

/// The program in the kernel, with its tables in our memory. Dropping it removes both.
pub(super) struct Tables {
    pub(super) cpus: usize,
    pub(super) size: TableSize,
    pub(super) states: Table<CpuState>,
    pub(super) counters: Table<Counters>,
    pub(super) ipv4: Table<SlotV4>,
    pub(super) ipv6: Table<SlotV6>,
    pub(super) coarse: Table<SlotV4>,
    pub(super) frames: Table<SlotV4>,
    /// A row for each set.
    pub(super) dnat4: Table<[TranslatedV4; WAYS]>,
    pub(super) dnat6: Table<[TranslatedV6; WAYS]>,
    pub(super) has_conntrack: bool,
    pub(super) exemplars: RingBuf<MapData>,
    pub(super) program: Attached,
    #[cfg_attr(not(feature = "debug"), expect(dead_code, reason = "what it is for is to be kept"))]
    pub(super) running: Running,
}

/// The program's part of the plan.
pub(super) fn plan(btf: &Btf<'_>, size: TableSize, plan: &mut Plan) -> Result<(), LoadError> {
    layout::packet(btf, plan)?;
    layout::kfree_skb(btf, plan);
    layout::conntrack(btf, plan);
    layout::kfree_skb_event(plan);
    let rows = 2 * cpus_u32();
    plan.set("MASK_IPV4", size.ipv4 - 1);
    plan.set("MASK_IPV6", size.ipv6 - 1);
    plan.set("MASK_COARSE", size.coarse - 1);
    plan.set("TOKEN_TICKS", (TOKEN_NS / tick_ns()).max(1));
    plan.set("BURST", BURST);
    plan.size("KFREE_CPUS", cpus_u32());
    plan.size("KFREE_COUNTERS", rows);
    plan.size("KFREE_IPV4", rows * size.ipv4);
    plan.size("KFREE_IPV6", rows * size.ipv6);
    plan.size("KFREE_COARSE", rows * size.coarse);
    plan.size("KFREE_FRAMES", rows * size.coarse);
    plan.size("KFREE_DNAT4", rows * size.ipv4);
    plan.size("KFREE_DNAT6", rows * size.ipv6);
    plan.size("KFREE_SHOWN", cpus_u32() * SHOWN);
    plan.size("KFREE_EXEMPLARS", ring_bytes(cpus()));
    Ok(())
}

pub(super) fn open(object: &Object, planned: &Planned, ways: &[Way]) -> Result<Tables, LoadError> {
    let (cpus, size) = (cpus(), planned.size);
    let sets = |sets: u32| 2 * cpus * sets as usize * WAYS;
    Ok(Tables {
        cpus,
        size,
        states: object.table("KFREE_CPUS", cpus)?,
        counters: object.table("KFREE_COUNTERS", 2 * cpus)?,
        ipv4: object.table("KFREE_IPV4", sets(size.ipv4))?,
        ipv6: object.table("KFREE_IPV6", sets(size.ipv6))?,
        coarse: object.table("KFREE_COARSE", sets(size.coarse))?,
        frames: object.table("KFREE_FRAMES", sets(size.coarse))?,
        dnat4: object.table("KFREE_DNAT4", sets(size.ipv4) / WAYS)?,
        dnat6: object.table("KFREE_DNAT6", sets(size.ipv6) / WAYS)?,
        has_conntrack: planned.has_conntrack,
        exemplars: object.ring("KFREE_EXEMPLARS")?,
        program: object.attach("tracepoint kfree_skb", ways)?,
        running: object.running(),
    })
}

/// Room for 10 s of exemplars of all CPUs (132 each of 256 bytes), between 64 KiB and 1 MiB.
fn ring_bytes(cpus: usize) -> u32 {
    let bytes = (cpus * (32 << 10)).next_power_of_two().clamp(64 << 10, 1 << 20);
    u32::try_from(bytes).expect("clamped to 1 MiB")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::btf;
    use crate::kernel::layout::Reasons;

    #[test]
    fn tables_stay_small_on_many_cpus() {
        assert_eq!(TableSize::for_cpus(2), TableSize { ipv4: 4096, ipv6: 1024, coarse: 64 });
        for cpus in [1, 2, 8, 16, 64, 128, 512] {
            let size = TableSize::for_cpus(cpus);
            assert!(size.ipv4.is_power_of_two() && size.ipv6.is_power_of_two() && size.coarse.is_power_of_two());
            assert!(size.bytes(cpus) <= 40 << 20, "{} bytes on {cpus} CPUs", size.bytes(cpus));
        }
    }

    /// Loads with this kernel's layout after `change`; none, said loudly, where that is not possible.
    fn loaded(test: &str, change: impl FnOnce(&mut Plan, &Btf<'_>), ways: &[Way]) -> Option<Tables> {
        let bytes = crate::host::kernel::btf().map_err(|error| eprintln!("netdiag-skip: {test}: {error}")).ok()?;
        let btf = btf::parse(&bytes).unwrap();
        let size = TableSize::for_cpus(2);
        let mut planned = Plan::for_this_machine();
        plan(&btf, size, &mut planned).unwrap();
        change(&mut planned, &btf);
        let described = Planned { size, reasons: Reasons::default(), has_conntrack: false, event_has_reason: false };
        match Object::create(&planned).and_then(|object| open(&object, &described, ways)) {
            Ok(tables) => Some(tables),
            Err(error @ (LoadError::NotBuilt | LoadError::NotPermitted { .. })) => {
                eprintln!("netdiag-skip: {test}: {error}");
                None
            }
            Err(error) => panic!("{error}"),
        }
    }

    /// Drops ten packets and says how many were counted with a full key.
    fn attributed(tables: &Tables) -> u64 {
        let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        for _ in 0..10 {
            socket.send_to(b"dropped", "127.0.0.1:9").unwrap();
        }
        (0..tables.cpus).map(|row| tables.counters.read(row).attributed).sum()
    }

    #[test]
    fn the_raw_tracepoint_counts_as_well() {
        let Some(tables) = loaded("the_raw_tracepoint_counts_as_well", |_, _| (), &WAYS_TO_ATTACH[1..]) else { return };
        assert_eq!(tables.program.tier, "raw_tracepoint");
        assert!(attributed(&tables) >= 10);
    }

    /// With the event's fields where this kernel's tracefs says; without it, there is nothing to try.
    #[test]
    fn the_classic_tracepoint_counts_as_well() {
        let test = "the_classic_tracepoint_counts_as_well";
        if crate::host::kernel::event_format("skb/kfree_skb").is_err() {
            return eprintln!("netdiag-skip: {test}: tracefs is not mounted");
        }
        let Some(tables) = loaded(test, |_, _| (), &WAYS_TO_ATTACH[2..]) else { return };
        assert_eq!(tables.program.tier, "tracepoint");
        assert!(attributed(&tables) >= 10);
    }

    /// As before Linux 5.17, which passes no reason, and before 5.12, which has no cookies.
    #[test]
    fn kernels_without_reason_and_cookie_count_as_well() {
        let as_old = |plan: &mut Plan, btf: &Btf<'_>| {
            plan.set("HAS_REASON", 0_u32);
            plan.set("NETNS_IS_COOKIE", 0_u32);
            plan.set("O_NET_ID", btf.member("net", "ns.inum").unwrap().offset);
        };
        let test = "kernels_without_reason_and_cookie_count_as_well";
        let Some(tables) = loaded(test, as_old, &WAYS_TO_ATTACH) else { return };
        assert!(attributed(&tables) >= 10);
    }
}
