//! Tracepoints `neigh:neigh_timer_handler` and `neigh:neigh_create`: a host on the link did not answer; no entry could be made
//! for one.
//!
//! Both in net/core/neighbour.c, since Linux 5.1 and 5.2. Where they are absent, the list of neighbours tells who does not
//! answer at this moment, and the table's counters `res_failed` and `table_fulls` how often somebody did not. Entries that
//! somebody removed (`neigh_update`) failed nobody, and packets for those (`neigh_event_send_dead`) are among the drops.
//! <https://github.com/torvalds/linux/blob/v6.18/include/trace/events/neigh.h>

use aya_ebpf::macros::{btf_tracepoint, raw_tracepoint};
use aya_ebpf::programs::{BtfTracePointContext, RawTracePointContext};
use aya_ebpf::{EbpfContext as _, Global};
use netdiag_common::record::event::NO_MEASURE;
use netdiag_common::record::neighbour::{FAILED, REFUSED};

use crate::event::{Event, Neighbour, now, run};
use crate::read::{Load, O_DEV_IFINDEX, O_DEV_NET, Probed, Typed, net_id};

/// Offsets in bytes, of `struct neighbour`.
#[unsafe(no_mangle)]
static O_NEIGH_TABLE: Global<u32> = Global::new(0);
#[unsafe(no_mangle)]
static O_NEIGH_PARAMETERS: Global<u32> = Global::new(0);
#[unsafe(no_mangle)]
static O_NEIGH_PROBES: Global<u32> = Global::new(0);
#[unsafe(no_mangle)]
static O_NEIGH_STATE: Global<u32> = Global::new(0);
/// 0 where the flags have one byte (before Linux 5.16), and nobody is `NTF_MANAGED`.
#[unsafe(no_mangle)]
static O_NEIGH_FLAGS: Global<u32> = Global::new(0);
#[unsafe(no_mangle)]
static O_NEIGH_DEV: Global<u32> = Global::new(0);
#[unsafe(no_mangle)]
static O_NEIGH_ADDRESS: Global<u32> = Global::new(0);
/// Of `struct neigh_table`.
#[unsafe(no_mangle)]
static O_TABLE_FAMILY: Global<u32> = Global::new(0);
/// Of `struct neigh_parms`: how many questions are asked of one host.
#[unsafe(no_mangle)]
static O_PARAMETERS_UNICAST: Global<u32> = Global::new(0);

/// include/net/neighbour.h and linux/neighbour.h.
const NUD_INCOMPLETE: u8 = 0x01;
const NUD_FAILED: u8 = 0x20;
const NTF_MANAGED: u32 = 1 << 8;

const AF_INET: u32 = 2;
const AF_INET6: u32 = 10;

#[btf_tracepoint(function = "neigh_timer_handler")]
pub fn netdiag_neigh_timer(ctx: BtfTracePointContext) -> i32 {
    unsafe { on_timer::<Typed>(ctx.arg(0)) };
    0
}

#[raw_tracepoint(tracepoint = "neigh_timer_handler")]
pub fn netdiag_neigh_timer_raw(ctx: RawTracePointContext) -> i32 {
    unsafe { on_timer::<Probed>(ctx.arg(0)) };
    0
}

#[btf_tracepoint(function = "neigh_create")]
pub fn netdiag_neigh_create(ctx: BtfTracePointContext) -> i32 {
    // The third and fourth argument as plain numbers: kernels before 6.13 do not know what `const void *` is, and believe that a
    // typed pointer is never null, so that they remove what would be done then.
    let [address, entry] = unsafe { Probed::load::<[u64; 2]>(ctx.as_ptr().cast(), 16) };
    unsafe { on_create::<Typed>(ctx.arg(0), ctx.arg(1), address as *const u8, entry) };
    0
}

#[raw_tracepoint(tracepoint = "neigh_create")]
pub fn netdiag_neigh_create_raw(ctx: RawTracePointContext) -> i32 {
    unsafe { on_create::<Probed>(ctx.arg(0), ctx.arg(1), ctx.arg(2), ctx.arg(3)) };
    0
}

#[inline(always)]
unsafe fn on_timer<L: Load>(entry: *const u8) {
    unsafe {
        if has_failed::<L>(entry) {
            let table = L::load::<*const u8>(entry, O_NEIGH_TABLE.load());
            let device = L::load::<*const u8>(entry, O_NEIGH_DEV.load());
            count::<L>(FAILED, table, device, entry.add(O_NEIGH_ADDRESS.load() as usize));
        }
    }
}

/// Whether this run of the timer gave up. The lock is free by now, and who waits for the host may have asked again, which
/// begins with `ucast_solicit` questions on the counter and sends one at once. A run that only asks leaves more there: it has
/// sent at least a second one; but not of an entry that the kernel itself keeps asking for, whose first question is a run's.
#[inline(always)]
unsafe fn has_failed<L: Load>(entry: *const u8) -> bool {
    unsafe {
        let state = L::load::<u8>(entry, O_NEIGH_STATE.load());
        if state & NUD_FAILED != 0 {
            return true;
        }
        if state & NUD_INCOMPLETE == 0 {
            return false;
        }
        if O_NEIGH_FLAGS.load() != 0 && L::load::<u32>(entry, O_NEIGH_FLAGS.load()) & NTF_MANAGED != 0 {
            return false;
        }
        let parameters = L::load::<*const u8>(entry, O_NEIGH_PARAMETERS.load());
        let unicast = L::load::<u32>(parameters, O_PARAMETERS_UNICAST.load());
        L::load::<u32>(entry, O_NEIGH_PROBES.load()) <= unicast + 1
    }
}

#[inline(always)]
unsafe fn on_create<L: Load>(table: *const u8, device: *const u8, address: *const u8, entry: u64) {
    if entry == 0 {
        unsafe { count::<L>(REFUSED, table, device, address) };
    }
}

/// `address` is read by helper: an entry's lies behind its structure's end, where the verifier allows no plain load.
#[inline(always)]
unsafe fn count<L: Load>(kind: u8, table: *const u8, device: *const u8, address: *const u8) {
    unsafe {
        let (version, destination) = match L::load::<u32>(table, O_TABLE_FAMILY.load()) {
            AF_INET => (4, [u64::from(Probed::load::<u32>(address, 0)), 0]),
            AF_INET6 => (6, Probed::load::<[u64; 2]>(address, 0)),
            // DECnet had neighbours too, until Linux 6.1.
            _ => return,
        };
        run::<Neighbour>(|run| {
            let event = Event {
                kind,
                detail: L::load::<u32>(device, O_DEV_IFINDEX.load()),
                measure: NO_MEASURE,
                amount: 0,
                netns: net_id::<L>(L::load::<*const u8>(device, O_DEV_NET.load())),
                version,
                source: [0, 0],
                destination,
                port: 0,
                protocol: 0,
                flags: 0,
            };
            run.count::<Neighbour>(&event, now());
        });
    }
}
