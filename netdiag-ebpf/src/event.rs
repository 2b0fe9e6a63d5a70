//! Counting events by key: one set of tables per subject, one lane for each program that can run on a CPU at a time.
//!
//! Each event with a key ends in exactly one of attributed, coarse, total_only, shed. A program that is interrupted by another of
//! its subject leaves it the second lane; one that is interrupted by itself is skipped and counted by the kernel
//! (`recursion_misses`), and what finds no free lane is counted as nested.

use core::hint::black_box;
use core::ptr::addr_of_mut;

use aya_ebpf::Global;
use aya_ebpf::bindings::BPF_F_MMAPABLE;
use aya_ebpf::helpers::generated::{bpf_get_smp_processor_id, bpf_jiffies64, bpf_ktime_get_ns};
use aya_ebpf::macros::map;
use aya_ebpf::maps::{Array, HashMap};
use netdiag_common::record::event::{COARSE_SETS, ERRNOS, KINDS, LANES, NO_MEASURE, Totals, what_word};
use netdiag_common::record::kfree_skb::service_word;
use netdiag_common::record::table::{CpuState, SHARES, SlotV4, SlotV6, WAYS};
use netdiag_common::record::tcp::Attempt;

use crate::table::{Added, TICK_NS, mix, put, set};

/// What a lane takes apart of the packets of one device that the kernel answers, in each stretch of time: 8000 a second. A
/// flood to closed ports makes as many answers as packets, and each would cost as much as its drop.
const TAKEN_APART: u16 = 2000;
const SPAN_NS: u64 = 250_000_000;

/// Lanes of all CPUs: the rows of one epoch.
#[unsafe(no_mangle)]
static LANE_ROWS: Global<u32> = Global::new(2);

/// The tables of one subject. Rows as in `netdiag_common::record::event`.
pub trait Subject {
    fn state(lane: u32) -> Option<*mut CpuState>;
    fn totals(row: u32) -> Option<*mut Totals>;
    fn ipv4(set: u32) -> Option<*mut [SlotV4; WAYS]>;
    fn ipv6(set: u32) -> Option<*mut [SlotV6; WAYS]>;
    fn coarse(set: u32) -> Option<*mut [SlotV4; WAYS]>;
    /// Sets for each lane and epoch, a power of two, minus one: IPv4, IPv6.
    fn masks() -> (u32, u32);
}

/// The agent sizes the tables when it loads them, and reads them by mmap.
macro_rules! subject {
    ($subject:ident, $lanes:ident, $totals:ident, $ipv4:ident, $ipv6:ident, $coarse:ident, $mask4:ident, $mask6:ident) => {
        pub struct $subject;

        #[map]
        static $lanes: Array<CpuState> = Array::with_max_entries(2, BPF_F_MMAPABLE);
        #[map]
        static $totals: Array<Totals> = Array::with_max_entries(4, BPF_F_MMAPABLE);
        #[map]
        static $ipv4: Array<[SlotV4; WAYS]> = Array::with_max_entries(4, BPF_F_MMAPABLE);
        #[map]
        static $ipv6: Array<[SlotV6; WAYS]> = Array::with_max_entries(4, BPF_F_MMAPABLE);
        #[map]
        static $coarse: Array<[SlotV4; WAYS]> = Array::with_max_entries(4, BPF_F_MMAPABLE);
        #[unsafe(no_mangle)]
        static $mask4: Global<u32> = Global::new(0);
        #[unsafe(no_mangle)]
        static $mask6: Global<u32> = Global::new(0);

        impl Subject for $subject {
            #[inline(always)]
            fn state(lane: u32) -> Option<*mut CpuState> {
                $lanes.get_ptr_mut(lane)
            }

            #[inline(always)]
            fn totals(row: u32) -> Option<*mut Totals> {
                $totals.get_ptr_mut(row)
            }

            #[inline(always)]
            fn ipv4(set: u32) -> Option<*mut [SlotV4; WAYS]> {
                $ipv4.get_ptr_mut(set)
            }

            #[inline(always)]
            fn ipv6(set: u32) -> Option<*mut [SlotV6; WAYS]> {
                $ipv6.get_ptr_mut(set)
            }

            #[inline(always)]
            fn coarse(set: u32) -> Option<*mut [SlotV4; WAYS]> {
                $coarse.get_ptr_mut(set)
            }

            #[inline(always)]
            fn masks() -> (u32, u32) {
                ($mask4.load(), $mask6.load())
            }
        }
    };
}

subject!(Tcp, TCP_LANES, TCP_TOTALS, TCP_IPV4, TCP_IPV6, TCP_COARSE, MASK_TCP_IPV4, MASK_TCP_IPV6);
subject!(
    Reject,
    REJECT_LANES,
    REJECT_TOTALS,
    REJECT_IPV4,
    REJECT_IPV6,
    REJECT_COARSE,
    MASK_REJECT_IPV4,
    MASK_REJECT_IPV6
);
subject!(Udp, UDP_LANES, UDP_TOTALS, UDP_IPV4, UDP_IPV6, UDP_COARSE, MASK_UDP_IPV4, MASK_UDP_IPV6);
subject!(
    Neighbour,
    NEIGH_LANES,
    NEIGH_TOTALS,
    NEIGH_IPV4,
    NEIGH_IPV6,
    NEIGH_COARSE,
    MASK_NEIGH_IPV4,
    MASK_NEIGH_IPV6
);

/// Attempts under way, by the address of their `struct sock`.
#[map]
pub static TCP_ATTEMPTS: HashMap<u64, Attempt> = HashMap::with_max_entries(1, 0);

/// What happened where. `address` is one or two addresses as they lie in memory; a missing one is 0.
pub struct Event {
    pub kind: u8,
    pub detail: u32,
    pub measure: u8,
    /// What the measure was made of; summed.
    pub amount: u64,
    pub netns: u64,
    pub version: u8,
    pub source: [u64; 2],
    pub destination: [u64; 2],
    pub port: u16,
    pub protocol: u8,
    pub flags: u8,
}

/// The lane of a running program.
pub struct Run {
    state: *mut CpuState,
    totals: *mut Totals,
    row: u32,
}

/// Runs `work` in a free lane of this CPU.
///
/// # Safety
/// Must be the whole of a program: `work` may not be left but by its end.
#[inline(always)]
pub unsafe fn run<S: Subject>(work: impl FnOnce(&Run)) {
    let first = unsafe { bpf_get_smp_processor_id() } * LANES as u32;
    let Some(outer) = S::state(first) else { return };
    let Some(inner) = S::state(first + 1) else { return };
    unsafe {
        let (state, lane) = if !is_busy(outer) {
            (outer, first)
        } else if !is_busy(inner) {
            (inner, first + 1)
        } else {
            (*inner).nested += 1;
            return;
        };
        addr_of_mut!((*state).busy).write_volatile(1);
        let epoch = addr_of_mut!((*state).epoch).read_volatile() & 1;
        let row = epoch * LANE_ROWS.load() + lane;
        if let Some(totals) = S::totals(row) {
            work(&Run { state, totals, row });
        }
        addr_of_mut!((*state).busy).write_volatile(0);
    }
}

#[inline(always)]
unsafe fn is_busy(state: *mut CpuState) -> bool {
    unsafe { addr_of_mut!((*state).busy).read_volatile() != 0 }
}

impl Run {
    /// Counts an event that has no key.
    #[inline(always)]
    pub unsafe fn tick(&self, kind: u8) {
        unsafe { *addr_of_mut!((*self.totals).by_kind).cast::<u64>().add(usize::from(kind) & (KINDS - 1)) += 1 };
    }

    /// Counts an event that would have had a key, but for a header that cannot be read.
    #[inline(always)]
    pub unsafe fn unparsed(&self, kind: u8) {
        unsafe {
            self.tick(kind);
            (*self.totals).unparsed += 1;
        }
    }

    /// Whether this packet of `device`, any number that tells it from others, is to be taken apart. If not, the event was
    /// counted by its kind.
    #[inline(always)]
    pub unsafe fn takes_apart(&self, kind: u8, device: u64) -> bool {
        let state = unsafe { &mut *self.state };
        let ticks = unsafe { bpf_jiffies64() };
        if ticks.wrapping_sub(state.refilled_ticks) * TICK_NS.load() >= SPAN_NS {
            state.refilled_ticks = ticks;
            state.shares = [TAKEN_APART; SHARES];
        }
        // The upper bits, as in any multiplicative hash; the verifier wants the bound.
        let share = black_box(device.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32) as usize & (SHARES - 1);
        let left = unsafe { &mut *addr_of_mut!(state.shares).cast::<u16>().add(share) };
        if *left == 0 {
            unsafe {
                self.tick(kind);
                (*self.totals).total += 1;
                (*self.totals).shed += 1;
            }
            return false;
        }
        *left -= 1;
        true
    }

    /// Counts a failure by its error number.
    #[inline(always)]
    pub unsafe fn errno(&self, errno: u32) {
        let row = (errno as usize).min(ERRNOS - 1);
        unsafe { *addr_of_mut!((*self.totals).by_errno).cast::<u64>().add(row & (ERRNOS - 1)) += 1 };
    }

    /// Counts the event with the finest key that finds room.
    #[inline(always)]
    pub unsafe fn count<S: Subject>(&self, event: &Event, now_ns: u64) {
        let what = what_word(event.kind, event.detail, event.measure);
        let service = service_word(0, event.port, event.protocol, event.flags);
        let (mask4, mask6) = S::masks();
        unsafe {
            self.tick(event.kind);
            (*self.totals).total += 1;
            let added = if event.version == 4 {
                let key = [event.netns, (event.source[0] << 32) | event.destination[0], what, service];
                let hash = mix(&key);
                put(S::ipv4(set(self.row, mask4, hash)), hash, &key, event.amount, now_ns)
            } else {
                let ([s0, s1], [d0, d1]) = (event.source, event.destination);
                let key = [event.netns, s0, s1, d0, d1, what, service];
                let hash = mix(&key);
                put(S::ipv6(set(self.row, mask6, hash)), hash, &key, event.amount, now_ns)
            };
            if !matches!(added, Added::Full) {
                (*self.totals).attributed += 1;
                return;
            }
            let what = what_word(event.kind, event.detail, NO_MEASURE);
            let key = [event.netns, 0, what, service_word(0, 0, 0, event.flags)];
            let hash = mix(&key);
            let added = put(S::coarse(set(self.row, COARSE_SETS - 1, hash)), hash, &key, event.amount, now_ns);
            if matches!(added, Added::Full) {
                (*self.totals).total_only += 1;
            } else {
                (*self.totals).coarse += 1;
            }
        }
    }
}

/// Monotonic clock, nanoseconds.
#[inline(always)]
pub fn now() -> u64 {
    unsafe { bpf_ktime_get_ns() }
}
