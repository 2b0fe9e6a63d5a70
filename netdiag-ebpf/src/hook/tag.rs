//! Tagged packets, at tracepoints `net:netif_receive_skb`, `net:net_dev_queue`, `skb:kfree_skb` and `sock:inet_sock_set_state`:
//! every device that a packet of one connection passes, where it is dropped, and whether a listener got it.
//!
//! `__netif_receive_skb_core()` and `__dev_queue_xmit()` in net/core/dev.c, since Linux 2.6.37; see the other two in their own
//! files. <https://github.com/torvalds/linux/blob/v6.18/include/trace/events/net.h#L138>
//!
//! Attached only while a tag is armed: the first two see every packet of the machine. One that has neither a tagged port nor a
//! conntrack entry costs two looks into a table of bits.
//!
//! A packet is known by its own tuple, by the original tuple of its connection (whatever was translated since), or, where
//! neither can be known before it is sent, as the first packet to a destination: then its sequence number tells whose it is.

use core::arch::asm;
use core::ptr::addr_of_mut;

use aya_ebpf::EbpfContext;
use aya_ebpf::Global;
use aya_ebpf::bindings::BPF_RB_NO_WAKEUP;
use aya_ebpf::helpers::generated::{bpf_get_stack, bpf_jiffies64};
use aya_ebpf::macros::{btf_tracepoint, map, raw_tracepoint};
use aya_ebpf::maps::{Array, HashMap, RingBuf};
use aya_ebpf::programs::{BtfTracePointContext, RawTracePointContext};
use netdiag_common::record::tag::{
    ANSWERS, CONNECTED, Counts, DELIVERED, DROPPED, Event, MAX_EVENTS, PORT_WORDS, RECEIVED, SENT, STACK_DEPTH, TAGS,
    TupleKey,
};
use netdiag_common::record::tcp::{ESTABLISHED, SYN_RECV, SYN_SENT};

use super::kfree_skb::HAS_REASON;
use crate::conntrack;
use crate::event::now;
use crate::packet::{Packet, Parsed, arriving, packet};
use crate::read::{Load, Probed, Typed, place};
use crate::socket::{Ends, ends, protocol, sock_netns};

/// The ports that any tag has, one bit for each.
#[map]
static TAG_PORTS: Array<u64> = Array::with_max_entries(PORT_WORDS, 0);
/// The number of the tag plus one, and `ANSWERS`.
#[map]
static TAG_TUPLES: HashMap<TupleKey, u32> = HashMap::with_max_entries(1, 0);
#[map]
static TAG_COUNTS: Array<Counts> = Array::with_max_entries(TAGS, 0);
#[map]
static TAG_EVENTS: RingBuf = RingBuf::with_byte_size(4096, 0);

/// Of `struct tcp_sock`, which begins with its `struct sock`.
#[unsafe(no_mangle)]
static O_TCP_RECEIVED: Global<u32> = Global::new(0);

const ICMP: u8 = 1;
const TCP: u8 = 6;
const UDP: u8 = 17;
const ICMPV6: u8 = 58;
const DNS: u16 = 53;

/// RFC 9293, 3.1: in byte 13 of the header.
const SYN: u8 = 0x02;
const ACK: u8 = 0x10;

#[btf_tracepoint(function = "netif_receive_skb")]
pub fn netdiag_tag_in(ctx: BtfTracePointContext) -> i32 {
    unsafe { on_packet::<Typed, _>(&ctx, ctx.arg(0), RECEIVED, 0, 0) };
    0
}

#[raw_tracepoint(tracepoint = "netif_receive_skb")]
pub fn netdiag_tag_in_raw(ctx: RawTracePointContext) -> i32 {
    unsafe { on_packet::<Probed, _>(&ctx, ctx.arg(0), RECEIVED, 0, 0) };
    0
}

#[btf_tracepoint(function = "net_dev_queue")]
pub fn netdiag_tag_out(ctx: BtfTracePointContext) -> i32 {
    unsafe { on_packet::<Typed, _>(&ctx, ctx.arg(0), SENT, 0, 0) };
    0
}

#[raw_tracepoint(tracepoint = "net_dev_queue")]
pub fn netdiag_tag_out_raw(ctx: RawTracePointContext) -> i32 {
    unsafe { on_packet::<Probed, _>(&ctx, ctx.arg(0), SENT, 0, 0) };
    0
}

#[btf_tracepoint(function = "kfree_skb")]
pub fn netdiag_tag_drop(ctx: BtfTracePointContext) -> i32 {
    let reason = if HAS_REASON.load() == 1 { ctx.arg::<u32>(2) } else { 0 };
    unsafe { on_packet::<Typed, _>(&ctx, ctx.arg(0), DROPPED, ctx.arg(1), reason) };
    0
}

#[raw_tracepoint(tracepoint = "kfree_skb")]
pub fn netdiag_tag_drop_raw(ctx: RawTracePointContext) -> i32 {
    let reason = if HAS_REASON.load() == 1 { ctx.arg::<u32>(2) } else { 0 };
    unsafe { on_packet::<Probed, _>(&ctx, ctx.arg(0), DROPPED, ctx.arg(1), reason) };
    0
}

#[btf_tracepoint(function = "inet_sock_set_state")]
pub fn netdiag_tag_state(ctx: BtfTracePointContext) -> i32 {
    unsafe { on_state::<Typed>(ctx.arg(0), ctx.arg(1), ctx.arg(2)) };
    0
}

#[raw_tracepoint(tracepoint = "inet_sock_set_state")]
pub fn netdiag_tag_state_raw(ctx: RawTracePointContext) -> i32 {
    unsafe { on_state::<Probed>(ctx.arg(0), ctx.arg(1), ctx.arg(2)) };
    0
}

#[inline(always)]
unsafe fn on_packet<L: Load, C: EbpfContext>(ctx: &C, skb: *const u8, point: u8, location: u64, reason: u32) {
    unsafe {
        let parsed = if point == RECEIVED { arriving::<L>(skb) } else { packet::<L>(skb) };
        let Parsed::Ip(packet) = parsed else { return };
        let mut packet = packet.forgotten(bpf_jiffies64());
        if packet.protocol == ICMP || packet.protocol == ICMPV6 {
            packet.source_port = echo(&packet);
        }
        let mut found = by_headers(&packet);
        if found == 0 {
            found = by_connection::<L>(skb, packet.version);
        }
        if found == 0 {
            return;
        }
        tell(found, |record| {
            let place = place::<L>(skb);
            let (ttl_at, length_at, header) = if packet.version == 4 { (8, 2, 0) } else { (7, 4, 40) };
            addr_of_mut!((*record).netns).write(place.netns);
            addr_of_mut!((*record).ifindex).write(place.ifindex);
            addr_of_mut!((*record).location).write(location);
            addr_of_mut!((*record).reason).write(reason);
            addr_of_mut!((*record).source).write(packet.source);
            addr_of_mut!((*record).destination).write(packet.destination);
            addr_of_mut!((*record).source_port).write(packet.source_port);
            addr_of_mut!((*record).destination_port).write(packet.destination_port);
            addr_of_mut!((*record).point).write(point);
            addr_of_mut!((*record).protocol).write(packet.protocol);
            addr_of_mut!((*record).version).write(packet.version);
            addr_of_mut!((*record).ttl).write(Probed::load::<u8>(packet.header, ttl_at));
            let length = u32::from(u16::from_be(Probed::load::<u16>(packet.header, length_at)));
            addr_of_mut!((*record).length).write(length + header);
            addr_of_mut!((*record).tcp_flags).write(tcp_flags(&packet));
            addr_of_mut!((*record).sequence).write(sequence(&packet));
            let mut frames = 0;
            if point == DROPPED {
                let stack = addr_of_mut!((*record).stack);
                let bytes = bpf_get_stack(ctx.as_ptr(), stack.cast(), (8 * STACK_DEPTH) as u32, 0);
                frames = if bytes > 0 { (bytes / 8) as i32 } else { 0 };
            }
            addr_of_mut!((*record).frames).write(frames);
        });
    }
}

/// A connection is there: with its first packet for who listens, with its answer for who asked.
#[inline(always)]
unsafe fn on_state<L: Load>(sock: *const u8, old: u32, new: u32) {
    if new != ESTABLISHED || !(old == SYN_RECV || old == SYN_SENT) {
        return;
    }
    unsafe {
        if protocol::<L>(sock) != u16::from(TCP) {
            return;
        }
        let Ends { version, local, peer } = ends::<L>(sock);
        if !(is_tagged(local.port) || is_tagged(peer.port)) {
            return;
        }
        let is_listener = old == SYN_RECV;
        let (from, to) = if is_listener { (peer, local) } else { (local, peer) };
        let mut key = TupleKey {
            source: from.address,
            destination: to.address,
            source_port: from.port,
            destination_port: to.port,
            protocol: TCP,
            version,
            pad: 0,
        };
        let mut found = look(&key);
        if found == 0 && is_listener {
            key.source = [0, 0];
            key.source_port = 0;
            found = look(&key);
        }
        if found == 0 {
            return;
        }
        // What was received so far is the SYN, which counts for one.
        let received = Probed::load::<u32>(sock, O_TCP_RECEIVED.load());
        let sequence = if is_listener { received.wrapping_sub(1) } else { 0 };
        let netns = sock_netns::<L>(sock);
        tell(found, |record| {
            addr_of_mut!((*record).netns).write(netns);
            addr_of_mut!((*record).ifindex).write(0);
            addr_of_mut!((*record).location).write(0);
            addr_of_mut!((*record).reason).write(0);
            addr_of_mut!((*record).source).write(from.address);
            addr_of_mut!((*record).destination).write(to.address);
            addr_of_mut!((*record).source_port).write(from.port);
            addr_of_mut!((*record).destination_port).write(to.port);
            addr_of_mut!((*record).point).write(if is_listener { DELIVERED } else { CONNECTED });
            addr_of_mut!((*record).protocol).write(TCP);
            addr_of_mut!((*record).version).write(version);
            addr_of_mut!((*record).ttl).write(0);
            addr_of_mut!((*record).length).write(0);
            addr_of_mut!((*record).tcp_flags).write(0);
            addr_of_mut!((*record).sequence).write(sequence);
            addr_of_mut!((*record).frames).write(0);
        });
    }
}

/// The tag that knows the packet's own tuple, or waits for the first packet to its destination; 0 for none.
#[inline(always)]
unsafe fn by_headers(packet: &Packet) -> u32 {
    if !(is_tagged(packet.source_port) || is_tagged(packet.destination_port)) {
        return 0;
    }
    let mut key = TupleKey {
        source: packet.source,
        destination: packet.destination,
        source_port: packet.source_port,
        destination_port: packet.destination_port,
        protocol: packet.protocol,
        version: packet.version,
        pad: 0,
    };
    let found = look(&key);
    if found != 0 {
        return found;
    }
    let flags = unsafe { tcp_flags(packet) };
    let is_first = packet.protocol == UDP || packet.protocol == TCP && flags & (SYN | ACK) == SYN;
    if !is_first {
        return 0;
    }
    key.source = [0, 0];
    key.source_port = 0;
    look(&key)
}

/// The tag that knows the packet's connection by the tuple of its first packet; 0 for none. An ICMP error belongs to the
/// connection of the packet that it quotes.
#[inline(always)]
unsafe fn by_connection<L: Load>(skb: *const u8, version: u8) -> u32 {
    let Some((mut key, is_answer)) = (unsafe { conntrack::original::<L>(skb, version) }) else { return 0 };
    if key.protocol == ICMP || key.protocol == ICMPV6 {
        // Type and code.
        key.destination_port = 0;
    }
    if !is_tagged(key.source_port) {
        return 0;
    }
    match look(&key) {
        0 => 0,
        found if is_answer => found | ANSWERS,
        found => found,
    }
}

#[inline(always)]
fn is_tagged(port: u16) -> bool {
    match TAG_PORTS.get(u32::from(port >> 6)) {
        Some(word) => *word >> (port & 63) & 1 != 0,
        None => false,
    }
}

#[inline(always)]
fn look(key: &TupleKey) -> u32 {
    match TAG_TUPLES.get_ptr(key) {
        // SAFETY: a value of the map.
        Some(found) => unsafe { *found },
        None => 0,
    }
}

/// The identifier of an echo or its reply (RFC 792, RFC 4443), 0 of other messages.
#[inline(always)]
unsafe fn echo(packet: &Packet) -> u16 {
    if packet.transport == 0 || packet.available < packet.transport + 8 {
        return 0;
    }
    let kind = unsafe { Probed::load::<u8>(packet.header, packet.transport) };
    let is_echo = if packet.version == 4 { kind == 8 || kind == 0 } else { kind == 128 || kind == 129 };
    if !is_echo {
        return 0;
    }
    u16::from_be(unsafe { Probed::load::<u16>(packet.header, packet.transport + 4) })
}

#[inline(always)]
unsafe fn tcp_flags(packet: &Packet) -> u8 {
    let at = packet.transport + 13;
    if packet.protocol != TCP || packet.transport == 0 || packet.available <= at {
        return 0;
    }
    unsafe { Probed::load::<u8>(packet.header, at) }
}

/// Of TCP; of DNS its identifier (RFC 1035, 4.1.1).
#[inline(always)]
unsafe fn sequence(packet: &Packet) -> u32 {
    let at = packet.transport;
    if packet.transport == 0 || packet.available < at + 10 {
        return 0;
    }
    let is_dns = packet.destination_port == DNS || packet.source_port == DNS;
    unsafe {
        match packet.protocol {
            TCP => u32::from_be(Probed::load::<u32>(packet.header, at + 4)),
            UDP if is_dns => u32::from(u16::from_be(Probed::load::<u16>(packet.header, at + 8))),
            _ => 0,
        }
    }
}

/// Sends one event of the tag `found`. `fill` writes what is not common to all.
#[inline(always)]
unsafe fn tell(found: u32, fill: impl FnOnce(*mut Event)) {
    let tag = (found & 0xff).wrapping_sub(1);
    let Some(counts) = TAG_COUNTS.get_ptr_mut(tag) else { return };
    unsafe {
        add(addr_of_mut!((*counts).seen));
        if addr_of_mut!((*counts).kept).read_volatile() >= MAX_EVENTS {
            add(addr_of_mut!((*counts).beyond_limit));
            return;
        }
        let Some(mut entry) = TAG_EVENTS.reserve::<Event>(0) else {
            add(addr_of_mut!((*counts).ring_full));
            return;
        };
        let record = entry.as_mut_ptr();
        addr_of_mut!((*record).at_ns).write(now());
        addr_of_mut!((*record).tag).write(tag as u8);
        addr_of_mut!((*record).is_answer).write((found & ANSWERS != 0) as u8);
        addr_of_mut!((*record).pad).write(0);
        fill(record);
        // The agent looks by itself.
        entry.submit(u64::from(BPF_RB_NO_WAKEUP));
        add(addr_of_mut!((*counts).kept));
    }
}

/// Any CPU may be here at the same time, and `core` has no atomics for this target.
#[inline(always)]
unsafe fn add(counter: *mut u64) {
    // SAFETY: adds to eight bytes of the map.
    unsafe { asm!("lock *(u64 *)({0} + 0) += {1}", in(reg) counter, in(reg) 1_u64, options(nostack)) };
}
