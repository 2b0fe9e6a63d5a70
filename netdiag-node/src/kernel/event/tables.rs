//! The tables of one subject: their names and sizes, and what a harvest takes out of them.

use std::collections::HashMap;

use netdiag_common::record::event::{COARSE_SETS, ERRNOS, KINDS, LANES, Totals};
use netdiag_common::record::table::{CpuState, Slot, SlotV4, SlotV6, WAYS};

use super::key::{Key, coarse_key, ipv4_key, ipv6_key};
use crate::kernel::LoadError;
use crate::kernel::object::Object;
use crate::kernel::plan::{Plan, cpus, cpus_u32};
use crate::kernel::table::{Table, flip};
use crate::window::Count;

/// What the object calls a subject's maps, and the globals that say how many sets they have.
pub(in crate::kernel) struct Names {
    pub(in crate::kernel) lanes: &'static str,
    pub(in crate::kernel) totals: &'static str,
    pub(in crate::kernel) ipv4: &'static str,
    pub(in crate::kernel) ipv6: &'static str,
    pub(in crate::kernel) coarse: &'static str,
    pub(in crate::kernel) mask_ipv4: &'static str,
    pub(in crate::kernel) mask_ipv6: &'static str,
}

/// [`Names`] of the subject whose maps begin with this prefix.
macro_rules! names {
    ($subject:literal) => {
        Names {
            lanes: concat!($subject, "_LANES"),
            totals: concat!($subject, "_TOTALS"),
            ipv4: concat!($subject, "_IPV4"),
            ipv6: concat!($subject, "_IPV6"),
            coarse: concat!($subject, "_COARSE"),
            mask_ipv4: concat!("MASK_", $subject, "_IPV4"),
            mask_ipv6: concat!("MASK_", $subject, "_IPV6"),
        }
    };
}
pub(in crate::kernel) use names;

/// How many sets of four keys each lane has per epoch. Powers of two.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EventSize {
    pub ipv4: u32,
    pub ipv6: u32,
}

impl EventSize {
    /// `ipv4` sets and a quarter of that for IPv6, less where that does not fit: 512 are 1.8 MiB on two CPUs. Where there are
    /// many, each sees fewer keys.
    pub(in crate::kernel) fn within(ipv4: u32, cpus: usize, budget_bytes: usize) -> Self {
        let mut size = Self { ipv4, ipv6: (ipv4 / 4).max(4) };
        while size.bytes(cpus) > budget_bytes && size.ipv6 > 1 {
            size = Self { ipv4: size.ipv4 / 2, ipv6: size.ipv6 / 2 };
        }
        size
    }

    fn bytes(self, cpus: usize) -> usize {
        let slots = self.ipv4 as usize * WAYS * size_of::<SlotV4>() + self.ipv6 as usize * WAYS * size_of::<SlotV6>();
        2 * LANES * cpus * slots
    }
}

/// A subject's tables in this process's memory.
pub(super) struct Tables {
    lanes: usize,
    size: EventSize,
    states: Table<CpuState>,
    totals: Table<Totals>,
    ipv4: Table<SlotV4>,
    ipv6: Table<SlotV6>,
    coarse: Table<SlotV4>,
}

/// [`Totals`] of all lanes.
#[derive(Debug, Clone)]
pub(in crate::kernel) struct Sum {
    pub(in crate::kernel) total: u64,
    pub(in crate::kernel) attributed: u64,
    pub(in crate::kernel) coarse: u64,
    pub(in crate::kernel) total_only: u64,
    pub(in crate::kernel) unparsed: u64,
    pub(in crate::kernel) shed: u64,
    pub(in crate::kernel) by_kind: [u64; KINDS],
    /// Error number and count, of those that occurred.
    pub(in crate::kernel) by_errno: Vec<(u32, u64)>,
}

impl Default for Sum {
    fn default() -> Self {
        Self {
            total: 0,
            attributed: 0,
            coarse: 0,
            total_only: 0,
            unparsed: 0,
            shed: 0,
            by_kind: [0; KINDS],
            by_errno: Vec::new(),
        }
    }
}

impl Sum {
    pub(in crate::kernel) fn of(&self, kind: u8) -> u64 {
        self.by_kind[usize::from(kind)]
    }

    pub(super) fn add(&mut self, other: &Self) {
        self.total += other.total;
        self.attributed += other.attributed;
        self.coarse += other.coarse;
        self.total_only += other.total_only;
        self.unparsed += other.unparsed;
        self.shed += other.shed;
        self.by_kind.iter_mut().zip(other.by_kind).for_each(|(sum, count)| *sum += count);
        for (errno, count) in &other.by_errno {
            self.add_errno(*errno, *count);
        }
    }

    fn add_errno(&mut self, errno: u32, count: u64) {
        match self.by_errno.binary_search_by_key(&errno, |(errno, _)| *errno) {
            Ok(at) => self.by_errno[at].1 += count,
            Err(at) => self.by_errno.insert(at, (errno, count)),
        }
    }
}

/// The tables' part of the plan.
pub(super) fn plan(names: &Names, size: EventSize, plan: &mut Plan) {
    let lanes = lanes_u32();
    plan.set("LANE_ROWS", lanes);
    plan.set(names.mask_ipv4, size.ipv4 - 1);
    plan.set(names.mask_ipv6, size.ipv6 - 1);
    plan.size(names.lanes, lanes);
    plan.size(names.totals, 2 * lanes);
    plan.size(names.ipv4, 2 * lanes * size.ipv4);
    plan.size(names.ipv6, 2 * lanes * size.ipv6);
    plan.size(names.coarse, 2 * lanes * COARSE_SETS);
}

fn lanes_u32() -> u32 {
    cpus_u32() * u32::try_from(LANES).expect("a handful")
}

impl Tables {
    pub(super) fn open(object: &Object, names: &Names, size: EventSize) -> Result<Self, LoadError> {
        let lanes = cpus() * LANES;
        let slots = |sets: u32| 2 * lanes * sets as usize * WAYS;
        Ok(Self {
            lanes,
            size,
            states: object.table(names.lanes, lanes)?,
            totals: object.table(names.totals, 2 * lanes)?,
            ipv4: object.table(names.ipv4, slots(size.ipv4))?,
            ipv6: object.table(names.ipv6, slots(size.ipv6))?,
            coarse: object.table(names.coarse, slots(COARSE_SETS))?,
        })
    }

    /// Moves the programs to the other half, and takes what the half that they left has counted.
    pub(super) fn take(&mut self) -> (Sum, Vec<(Key, Count)>) {
        let left = flip(&self.states, self.lanes) as usize;
        let mut keys: HashMap<Key, Count> = HashMap::new();
        let mut add = |key: Key, count: Count| keys.entry(key).or_default().add(count);
        let rows = |sets: u32| self.lanes * sets as usize * WAYS;
        take(&self.ipv4, left, rows(self.size.ipv4), |slot: &SlotV4| add(ipv4_key(&slot.key), count_of(slot)));
        take(&self.ipv6, left, rows(self.size.ipv6), |slot: &SlotV6| add(ipv6_key(&slot.key), count_of(slot)));
        take(&self.coarse, left, rows(COARSE_SETS), |slot: &SlotV4| add(coarse_key(&slot.key), count_of(slot)));
        (self.take_totals(left), keys.into_iter().collect())
    }

    /// Events that found no free lane.
    pub(super) fn nested(&self) -> u64 {
        (0..self.lanes).map(|lane| self.states.read(lane).nested).sum()
    }

    fn take_totals(&self, left: usize) -> Sum {
        let mut sum = Sum::default();
        let mut by_errno = [0; ERRNOS];
        for lane in 0..self.lanes {
            let row = left * self.lanes + lane;
            let totals = self.totals.read(row);
            sum.total += totals.total;
            sum.attributed += totals.attributed;
            sum.coarse += totals.coarse;
            sum.total_only += totals.total_only;
            sum.unparsed += totals.unparsed;
            sum.shed += totals.shed;
            sum.by_kind.iter_mut().zip(totals.by_kind).for_each(|(sum, count)| *sum += count);
            by_errno.iter_mut().zip(totals.by_errno).for_each(|(sum, count)| *sum += count);
            // SAFETY: a row of the mapping that no program writes; zeroes are valid totals.
            unsafe { self.totals.row(row).write_bytes(0, 1) };
        }
        sum.by_errno = (0..).zip(by_errno).filter(|(_, count)| *count > 0).collect();
        sum
    }
}

/// Calls `with` for each used slot of the half `left`, and empties it.
fn take<const WORDS: usize>(table: &Table<Slot<WORDS>>, left: usize, half: usize, mut with: impl FnMut(&Slot<WORDS>)) {
    for row in left * half..(left + 1) * half {
        let slot = table.row(row);
        // SAFETY: a row of the mapping that no program writes now. Clearing `packets` is what makes a slot empty.
        unsafe {
            if (*slot).packets != 0 {
                with(&*slot);
                (*slot).packets = 0;
            }
        }
    }
}

fn count_of<const WORDS: usize>(slot: &Slot<WORDS>) -> Count {
    Count { packets: slot.packets, bytes: slot.bytes, first_ns: slot.first_ns, last_ns: slot.last_ns }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_stay_small_on_many_cpus() {
        const BUDGET_BYTES: usize = 4 << 20;
        assert_eq!(EventSize::within(512, 2, BUDGET_BYTES), EventSize { ipv4: 512, ipv6: 128 });
        for cpus in [1, 2, 8, 64, 128, 512] {
            let size = EventSize::within(512, cpus, BUDGET_BYTES);
            assert!(size.ipv4.is_power_of_two() && size.ipv6.is_power_of_two());
            assert!(size.bytes(cpus) <= 7 << 20, "{} bytes on {cpus} CPUs", size.bytes(cpus));
        }
    }

    #[test]
    fn sums_keep_errors_in_order() {
        let mut sum = Sum { by_errno: vec![(0, 1), (111, 2)], total: 3, ..Sum::default() };
        sum.add(&Sum { by_errno: vec![(110, 5), (111, 1)], total: 6, ..Sum::default() });
        assert_eq!((sum.total, sum.by_errno), (9, vec![(0, 1), (110, 5), (111, 3)]));
    }
}
