//! Tracepoint `skb:kfree_skb`: a packet is freed because it was dropped.
//!
//! `kfree_skb()` in net/core/skbuff.c; the reason argument since Linux 5.17 (backported by some), `rx_sk` behind it since
//! 6.11. <https://github.com/torvalds/linux/blob/v6.18/include/trace/events/skb.h#L26>
//!
//! Each event ends in exactly one of attributed, coarse, reason_only, link, foreign, unparsed. A key that finds its set full is
//! counted with less detail; nothing is ever evicted. A nested run on the same CPU is skipped and counted as nested
//! (before 6.1; later kernels skip and count it themselves), so plain loads and stores are enough.

use core::hint::black_box;
use core::ptr::addr_of_mut;

use aya_ebpf::EbpfContext;
use aya_ebpf::Global;
use aya_ebpf::bindings::BPF_RB_NO_WAKEUP;
use aya_ebpf::helpers::generated::{bpf_get_smp_processor_id, bpf_get_stack, bpf_jiffies64, bpf_ktime_get_ns};
use aya_ebpf::macros::{btf_tracepoint, raw_tracepoint, tracepoint};
use aya_ebpf::maps::Array;
use aya_ebpf::programs::{BtfTracePointContext, RawTracePointContext, TracePointContext};
use netdiag_common::record::kfree_skb::{
    Counters, CpuState, DIRECTION, Exemplar, FLAG_DESTINATION, FLAG_TRANSLATED, REASONS, SHOWN, STACK_DEPTH,
    Translated, place_word, reason_row, service_word,
};
use netdiag_common::record::table::{SlotV4, WAYS};

use crate::conntrack;
use crate::map::{
    KFREE_COARSE, KFREE_COUNTERS, KFREE_CPUS, KFREE_DNAT4, KFREE_DNAT6, KFREE_EXEMPLARS, KFREE_FRAMES, KFREE_IPV4,
    KFREE_IPV6, KFREE_SHOWN,
};
use crate::packet::{Packet, Parsed, is_ip, packet};
use crate::read::{Load, O_SKB_LEN, Place, Probed, Typed, forgotten, place};
use crate::table::{Added, CPUS, TICK_NS, mix, put, set};

/// 1 when the tracepoint's third argument is the reason.
#[unsafe(no_mangle)]
pub static HAS_REASON: Global<u32> = Global::new(0);
/// The classic tracepoint's event: offsets of its fields, and whether it has a reason.
#[unsafe(no_mangle)]
static O_EVENT_SKB: Global<u32> = Global::new(8);
#[unsafe(no_mangle)]
static O_EVENT_LOCATION: Global<u32> = Global::new(16);
#[unsafe(no_mangle)]
static O_EVENT_REASON: Global<u32> = Global::new(0);
#[unsafe(no_mangle)]
static HAS_EVENT_REASON: Global<u32> = Global::new(0);
/// Sets per CPU and epoch, each a power of two, minus one.
#[unsafe(no_mangle)]
static MASK_IPV4: Global<u32> = Global::new(0);
#[unsafe(no_mangle)]
static MASK_IPV6: Global<u32> = Global::new(0);
#[unsafe(no_mangle)]
static MASK_COARSE: Global<u32> = Global::new(0);
/// Jiffies for one more exemplar per CPU, and how many may be saved up.
#[unsafe(no_mangle)]
static TOKEN_TICKS: Global<u64> = Global::new(1);
#[unsafe(no_mangle)]
static BURST: Global<u64> = Global::new(0);

/// How long a key that had an exemplar counts as shown, in units of 2^30 ns: a harvest's interval.
const SHOWN_FOR: u64 = 10;

#[btf_tracepoint(function = "kfree_skb")]
pub fn netdiag_kfree_skb(ctx: BtfTracePointContext) -> i32 {
    let reason = if HAS_REASON.load() == 1 { ctx.arg::<u32>(2) } else { 0 };
    unsafe { on_drop::<Typed, _>(&ctx, ctx.arg(0), ctx.arg(1), reason) };
    0
}

#[raw_tracepoint(tracepoint = "kfree_skb")]
pub fn netdiag_kfree_raw(ctx: RawTracePointContext) -> i32 {
    let reason = if HAS_REASON.load() == 1 { ctx.arg::<u32>(2) } else { 0 };
    unsafe { on_drop::<Probed, _>(&ctx, ctx.arg(0), ctx.arg(1), reason) };
    0
}

#[tracepoint(category = "skb", name = "kfree_skb")]
pub fn netdiag_kfree_perf(ctx: TracePointContext) -> u32 {
    let event = ctx.as_ptr().cast::<u8>();
    unsafe {
        let reason = if HAS_EVENT_REASON.load() == 1 { Probed::load(event, O_EVENT_REASON.load()) } else { 0 };
        let location = Probed::load(event, O_EVENT_LOCATION.load());
        on_drop::<Probed, _>(&ctx, Probed::load(event, O_EVENT_SKB.load()), location, reason);
    }
    0
}

#[inline(always)]
unsafe fn on_drop<L: Load, C: EbpfContext>(ctx: &C, skb: *const u8, location: u64, reason: u32) {
    let cpu = unsafe { bpf_get_smp_processor_id() };
    let Some(state) = KFREE_CPUS.get_ptr_mut(cpu) else { return };
    unsafe {
        if addr_of_mut!((*state).busy).read_volatile() != 0 {
            (*state).nested += 1;
            return;
        }
        addr_of_mut!((*state).busy).write_volatile(1);
        let epoch = addr_of_mut!((*state).epoch).read_volatile() & 1;
        let row = epoch * CPUS.load() + cpu;
        if let Some(counters) = KFREE_COUNTERS.get_ptr_mut(row) {
            (*counters).total += 1;
            let any = addr_of_mut!((*state).refilled_ns).read_volatile();
            match packet::<L>(skb) {
                Parsed::Foreign => {
                    (*counters).foreign += 1;
                    count_reason(counters, reason);
                }
                Parsed::Frame(kind) => {
                    let counted_as = if is_ip(kind) { &mut (*counters).unparsed } else { &mut (*counters).link };
                    *counted_as += 1;
                    let place = place::<L>(skb).forgotten(any);
                    let event = Event::new::<L>(row, skb, location, reason, &place, place.flags, clock(state));
                    if matches!(count_coarsely(&event, kind, &KFREE_FRAMES).0, Added::Full) {
                        (*counters).unplaced += 1;
                        count_reason(counters, reason);
                    }
                }
                Parsed::Ip(packet) => {
                    let packet = packet.forgotten(any);
                    let place = place::<L>(skb).forgotten(any);
                    let (entry, tracked) = conntrack::entry::<L>(skb);
                    let flags = forgotten(u64::from(place.flags | tracked | packet.side()), any) as u8;
                    let mut event = Event::new::<L>(row, skb, location, reason, &place, flags, clock(state));
                    event.entry = entry;
                    let fresh = count(counters, &event, &packet);
                    exemplar(ctx, cpu, state, counters, &event, &packet, fresh);
                }
            }
        }
        addr_of_mut!((*state).busy).write_volatile(0);
    }
}

struct Event {
    row: u32,
    netns: u64,
    ifindex: u32,
    location: u64,
    reason: u32,
    length: u32,
    /// Of the key's service word.
    flags: u8,
    /// The packet's conntrack entry when the flags say that it was translated.
    entry: *const u8,
    now_ns: u64,
}

impl Event {
    #[inline(always)]
    unsafe fn new<L: Load>(
        row: u32,
        skb: *const u8,
        location: u64,
        reason: u32,
        place: &Place,
        flags: u8,
        now_ns: u64,
    ) -> Self {
        let length = unsafe { L::load::<u32>(skb, O_SKB_LEN.load()) };
        let entry = core::ptr::null();
        Self { row, netns: place.netns, ifindex: place.ifindex, location, reason, length, flags, entry, now_ns }
    }

    #[inline(always)]
    fn is_translated(&self) -> bool {
        self.flags & FLAG_TRANSLATED != 0
    }
}

/// Refills the token bucket and says what time it is, to one jiffy: reading jiffies costs a tenth of the exact clock, which
/// is read with each refill and carried on from there. (`bpf_ktime_get_coarse_ns` is not for tracing programs.)
#[inline(always)]
unsafe fn clock(state: *mut CpuState) -> u64 {
    let state = unsafe { &mut *state };
    let ticks = unsafe { bpf_jiffies64() };
    let waited = ticks.wrapping_sub(state.refilled_ticks);
    if waited >= TOKEN_TICKS.load() {
        state.tokens = (state.tokens + waited / TOKEN_TICKS.load()).min(BURST.load());
        state.refilled_ticks = ticks;
        state.refilled_ns = unsafe { bpf_ktime_get_ns() };
        return state.refilled_ns;
    }
    state.refilled_ns + waited * TICK_NS.load()
}

/// Counts the packet with the finest key that finds room. The key's hash when it is new in this epoch, else 0.
#[inline(always)]
unsafe fn count(counters: *mut Counters, event: &Event, packet: &Packet) -> u64 {
    let place = place_word(event.location, event.reason);
    let port = if event.flags & FLAG_DESTINATION != 0 { packet.destination_port } else { packet.source_port };
    let service = service_word(event.ifindex, port, packet.protocol, event.flags);
    let bytes = u64::from(event.length);
    let (added, hash) = unsafe {
        if packet.version == 4 {
            let key = [event.netns, (packet.source[0] << 32) | packet.destination[0], place, service];
            let hash = mix(&key);
            let set = set(event.row, MASK_IPV4.load(), hash);
            let added = put(KFREE_IPV4.get_ptr_mut(set), hash, &key, bytes, event.now_ns);
            if event.is_translated() {
                translate(event, added, KFREE_DNAT4.get_ptr_mut(set));
            }
            (added, hash)
        } else {
            let ([s0, s1], [d0, d1]) = (packet.source, packet.destination);
            let key = [event.netns, s0, s1, d0, d1, place, service];
            let hash = mix(&key);
            let set = set(event.row, MASK_IPV6.load(), hash);
            let added = put(KFREE_IPV6.get_ptr_mut(set), hash, &key, bytes, event.now_ns);
            if event.is_translated() {
                translate(event, added, KFREE_DNAT6.get_ptr_mut(set));
            }
            (added, hash)
        }
    };
    match added {
        Added::Known => {
            unsafe { (*counters).attributed += 1 };
            return 0;
        }
        Added::Fresh(_) => {
            unsafe { (*counters).attributed += 1 };
            return hash;
        }
        Added::Full => {}
    }
    let (added, hash) = unsafe { count_coarsely(event, 0, &KFREE_COARSE) };
    match added {
        Added::Known => unsafe { (*counters).coarse += 1 },
        Added::Fresh(_) => {
            unsafe { (*counters).coarse += 1 };
            return hash;
        }
        Added::Full => unsafe {
            (*counters).reason_only += 1;
            count_reason(counters, event.reason);
        },
    }
    0
}

/// Counts by reason what found no slot: the agent adds what the slots' keys say.
#[inline(always)]
unsafe fn count_reason(counters: *mut Counters, reason: u32) {
    // `reason_row` stays below the mask, so the compiler would drop it; the verifier sees a bound in nothing else.
    let row = black_box(reason_row(reason)) & (REASONS - 1);
    unsafe { *addr_of_mut!((*counters).by_reason).cast::<u64>().add(row) += 1 };
}

/// Counts by namespace, interface, reason and place alone.
#[inline(always)]
unsafe fn count_coarsely(event: &Event, kind: u16, table: &Array<[SlotV4; WAYS]>) -> (Added, u64) {
    let place = place_word(event.location, event.reason);
    let key = [event.netns, u64::from(kind), place, service_word(event.ifindex, 0, 0, event.flags & DIRECTION)];
    let hash = mix(&key);
    let set = set(event.row, MASK_COARSE.load(), hash);
    let added = unsafe { put(table.get_ptr_mut(set), hash, &key, u64::from(event.length), event.now_ns) };
    (added, hash)
}

/// Writes what DNAT made of the destination beside a slot that the packet just took.
#[inline(always)]
unsafe fn translate<const WORDS: usize>(event: &Event, added: Added, set: Option<*mut [Translated<WORDS>; WAYS]>) {
    if let (Added::Fresh(way), Some(set)) = (added, set) {
        // `way` is below `WAYS`; the verifier wants to see it.
        let row = unsafe { &mut *set.cast::<Translated<WORDS>>().add(black_box(way) & (WAYS - 1)) };
        unsafe { conntrack::translate(event.entry, row) };
    }
}

/// Sends the whole packet when this CPU's token bucket allows. A key that had no exemplar for a while may take the last
/// token; others only the upper half, so that a storm leaves room for what is rare. `fresh` is the hash of a key that is
/// new in this epoch: only those are looked up, so the lookup costs a storm nothing.
#[inline(always)]
unsafe fn exemplar<C: EbpfContext>(
    ctx: &C,
    cpu: u32,
    state: *mut CpuState,
    counters: *mut Counters,
    event: &Event,
    packet: &Packet,
    fresh: u64,
) {
    let (state, counters) = unsafe { (&mut *state, &mut *counters) };
    let shown = if fresh == 0 { None } else { KFREE_SHOWN.get_ptr_mut(cpu * SHOWN + (fresh as u32 & (SHOWN - 1))) };
    // The hash's upper half, and a clock of about seconds.
    let mark = (fresh & 0xffff_ffff_0000_0000) | (event.now_ns >> 30);
    let rare = match shown {
        Some(last) => mark.wrapping_sub(unsafe { *last }) > SHOWN_FOR,
        None => false,
    };
    let reserve = if rare { 0 } else { BURST.load() / 2 };
    if state.tokens <= reserve {
        counters.exemplars_suppressed += 1;
        return;
    }
    if let Some(last) = shown {
        unsafe { *last = mark };
    }
    state.tokens -= 1;
    let Some(mut entry) = KFREE_EXEMPLARS.reserve::<Exemplar>(0) else {
        counters.exemplars_lost += 1;
        return;
    };
    let record = entry.as_mut_ptr();
    let flags_at = packet.transport + 13;
    let has_flags = packet.protocol == 6 && packet.transport != 0 && packet.available > flags_at;
    unsafe {
        addr_of_mut!((*record).at_ns).write(event.now_ns);
        addr_of_mut!((*record).netns).write(event.netns);
        addr_of_mut!((*record).location).write(event.location);
        addr_of_mut!((*record).reason).write(event.reason);
        addr_of_mut!((*record).ifindex).write(event.ifindex);
        addr_of_mut!((*record).source).cast::<[u64; 2]>().write(packet.source);
        addr_of_mut!((*record).destination).cast::<[u64; 2]>().write(packet.destination);
        addr_of_mut!((*record).source_port).write(packet.source_port);
        addr_of_mut!((*record).destination_port).write(packet.destination_port);
        addr_of_mut!((*record).protocol).write(packet.protocol);
        let flags = if has_flags { Probed::load::<u8>(packet.header, flags_at) } else { 0 };
        addr_of_mut!((*record).tcp_flags).write(flags);
        addr_of_mut!((*record).version).write(packet.version);
        addr_of_mut!((*record).flags).write(event.flags);
        addr_of_mut!((*record).length).write(event.length);
        addr_of_mut!((*record).pad).write(0);
        let translated = addr_of_mut!((*record).translated);
        if event.is_translated() {
            conntrack::translate(event.entry, &mut *translated);
        } else {
            translated.write_bytes(0, 1);
        }
        let stack = addr_of_mut!((*record).stack);
        let bytes = bpf_get_stack(ctx.as_ptr(), stack.cast(), (8 * STACK_DEPTH) as u32, 0);
        addr_of_mut!((*record).frames).write(if bytes > 0 { (bytes / 8) as i32 } else { 0 });
    }
    // The agent looks by itself; waking it would cost more than the count.
    entry.submit(u64::from(BPF_RB_NO_WAKEUP));
    counters.exemplars_sent += 1;
    #[cfg(feature = "debug")]
    aya_log_ebpf::info!(
        ctx,
        "kfree_skb netns {} if {} reason {} ports {} {}",
        event.netns,
        event.ifindex,
        event.reason,
        packet.source_port,
        packet.destination_port
    );
}
