//! Counting DNS messages: totals of a CPU, groups by namespace and server, samples of whole questions.

use core::arch::asm;
use core::ptr::{addr_of, addr_of_mut};

use aya_ebpf::Global;
use aya_ebpf::bindings::{BPF_NOEXIST, BPF_RB_NO_WAKEUP};
use aya_ebpf::helpers::generated::{bpf_get_smp_processor_id, bpf_jiffies64, bpf_ktime_get_ns};
use netdiag_common::record::dns::{Counters, Group, GroupKey, Open, RCODE_OTHER, RCODES, Sample, rcode_row};
use netdiag_common::record::table::CpuState;

use super::packet::{Header, TC};
use crate::map::{DNS_COUNTERS, DNS_CPUS, DNS_GROUPS, DNS_SAMPLES, DNS_ZERO};
use crate::table::{CPUS, TICK_NS};

/// Samples that one CPU may send in each stretch of time; failures may use all, the rest three quarters.
#[unsafe(no_mangle)]
pub(super) static DNS_SAMPLES_PER_SPAN: Global<u64> = Global::new(0);

/// A quarter of a second: the agent empties the ring four times less often.
pub(super) const SPAN_NS: u64 = 250_000_000;

/// Where messages are counted in this run.
pub(super) struct Place {
    pub(super) counters: *mut Counters,
    pub(super) epoch: u64,
    pub(super) cpu: u32,
}

#[inline(always)]
pub(super) fn place() -> Option<Place> {
    let cpu = unsafe { bpf_get_smp_processor_id() };
    let state = DNS_CPUS.get_ptr_mut(cpu)?;
    let epoch = unsafe { addr_of!((*state).epoch).read_volatile() } & 1;
    let counters = DNS_COUNTERS.get_ptr_mut(epoch * CPUS.load() + cpu)?;
    Some(Place { counters, epoch: u64::from(epoch), cpu })
}

/// One more, also when another program on this CPU interrupts.
#[inline(always)]
pub(super) unsafe fn add(counter: *mut u64, amount: u64) {
    // The bpf target has no `AtomicU64::fetch_add`: only kernels since 5.12 could give back the old value.
    unsafe { asm!("lock *(u64 *)({0} + 0) += {1}", in(reg) counter, in(reg) amount, options(nostack)) };
}

macro_rules! count {
    ($place:expr, $counter:ident) => {
        add(core::ptr::addr_of_mut!((*$place.counters).$counter), 1)
    };
}
pub(super) use count;

/// What time it is, to some milliseconds: reading jiffies costs a tenth of the exact clock, which is read every quarter of a
/// second and carried on from there.
#[inline(always)]
pub(super) unsafe fn coarse_ns(place: &Place) -> u64 {
    let Some(state) = DNS_CPUS.get_ptr_mut(place.cpu) else { return 0 };
    let state = unsafe { &mut *state };
    let passed_ns = unsafe { bpf_jiffies64() }.wrapping_sub(state.refilled_ticks) * TICK_NS.load();
    if passed_ns > SPAN_NS {
        refill(state, unsafe { bpf_ktime_get_ns() });
        return state.refilled_ns;
    }
    state.refilled_ns + passed_ns
}

#[inline(always)]
pub(super) fn refill(state: &mut CpuState, now_ns: u64) {
    state.refilled_ns = now_ns;
    state.refilled_ticks = unsafe { bpf_jiffies64() };
    state.tokens = DNS_SAMPLES_PER_SPAN.load();
}

#[inline(always)]
pub(super) unsafe fn answered(group: *mut Group, header: Header) {
    unsafe {
        add(addr_of_mut!((*group).answers), 1);
        // The mask keeps the verifier's bound where the compiler drops the one of `rcode_row`.
        let row = rcode_row(header.flags) & (RCODES - 1);
        add(addr_of_mut!((*group).rcodes).cast::<u64>().add(row), 1);
        if header.flags & TC != 0 {
            add(addr_of_mut!((*group).truncated), 1);
        } else if row == 0 && header.answers == 0 {
            add(addr_of_mut!((*group).empty), 1);
        }
    }
}

/// The counts of a namespace and server in this epoch; none, counted, when the table is full.
#[inline(always)]
pub(super) unsafe fn group(
    place: &Place,
    netns: u64,
    server: [u64; 2],
    service: u64,
    now_ns: u64,
) -> Option<*mut Group> {
    let key: GroupKey = [netns, server[0], server[1], service | place.epoch];
    let mut known = DNS_GROUPS.get_ptr_mut(&key);
    if known.is_none() {
        let zero = DNS_ZERO.get_ptr(0)?;
        // Fails when another CPU was faster, too.
        let _ = DNS_GROUPS.insert(&key, unsafe { &*zero }, u64::from(BPF_NOEXIST));
        known = DNS_GROUPS.get_ptr_mut(&key);
    }
    let Some(group) = known else {
        unsafe { count!(place, ungrouped) };
        return None;
    };
    unsafe {
        if (*group).first_ns == 0 {
            (*group).first_ns = now_ns;
        }
        (*group).last_ns = now_ns;
    }
    Some(group)
}

/// Sends the query with its answer when this CPU's share of the ring allows.
#[inline(always)]
pub(super) unsafe fn sample(place: &Place, open: &Open, header: Header, now_ns: u64) {
    let Some(state) = DNS_CPUS.get_ptr_mut(place.cpu) else { return };
    let state = unsafe { &mut *state };
    if now_ns.wrapping_sub(state.refilled_ns) > SPAN_NS {
        refill(state, now_ns);
    }
    let ordinary = header.flags & (TC | 0xf) == 0 && open.tries == 1;
    let reserve = if ordinary { DNS_SAMPLES_PER_SPAN.load() / 4 } else { 0 };
    if state.tokens <= reserve {
        return unsafe { count!(place, names_suppressed) };
    }
    state.tokens -= 1;
    let Some(mut entry) = DNS_SAMPLES.reserve::<Sample>(0) else {
        return unsafe { count!(place, names_lost) };
    };
    let record = entry.as_mut_ptr();
    unsafe {
        addr_of_mut!((*record).open).write(*open);
        addr_of_mut!((*record).answered_ns).write(now_ns);
        addr_of_mut!((*record).flags).write(header.flags);
        addr_of_mut!((*record).records).write(header.answers);
        addr_of_mut!((*record).pad).write(0);
        entry.submit(u64::from(BPF_RB_NO_WAKEUP));
        count!(place, names_sent);
    }
}

const _: () = assert!(RCODE_OTHER < RCODES);
