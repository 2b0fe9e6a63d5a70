//! Tracepoints `tcp:tcp_send_reset` and `tcp:tcp_receive_reset`: a RST goes out, or comes for a socket.
//!
//! `tcp_v4_send_reset()`, `tcp_v6_send_reset()`, `tcp_send_active_reset()` and `tcp_reset()` in net/ipv4, since Linux 4.15;
//! before 6.10 there is no reason, and answers to packets without a socket are not traced. Where they are absent, the
//! namespace's counters `TcpOutRsts` and `TcpEstabResets` remain. A packet filter's own RST (`nf_send_reset()`) passes here
//! on no kernel. <https://github.com/torvalds/linux/blob/v6.18/include/trace/events/tcp.h#L190>

use aya_ebpf::Global;
use aya_ebpf::macros::{btf_tracepoint, raw_tracepoint};
use aya_ebpf::programs::{BtfTracePointContext, RawTracePointContext};
use netdiag_common::record::event::NO_MEASURE;
use netdiag_common::record::kfree_skb::FLAG_DESTINATION;
use netdiag_common::record::reject::{ABORTED, RESET_RECEIVED, RESET_SENT};

use crate::event::{Event, Reject, Run, now, run};
use crate::packet::{Parsed, packet};
use crate::read::{Load, O_DEV_IFINDEX, O_DEV_NET, O_SKB_DEV, Probed, Typed, net_id, place};
use crate::socket::{Ends, ends, sock_netns, state};

const IPPROTO_TCP: u8 = 6;

/// 1 when the first tracepoint's third argument is the reason.
#[unsafe(no_mangle)]
static HAS_RESET_REASON: Global<u32> = Global::new(0);

#[btf_tracepoint(function = "tcp_send_reset")]
pub fn netdiag_tcp_reset(ctx: BtfTracePointContext) -> i32 {
    let reason = if HAS_RESET_REASON.load() == 1 { ctx.arg::<u32>(2) } else { 0 };
    unsafe { on_send::<Typed>(ctx.arg(0), ctx.arg(1), reason) };
    0
}

#[raw_tracepoint(tracepoint = "tcp_send_reset")]
pub fn netdiag_tcp_reset_raw(ctx: RawTracePointContext) -> i32 {
    let reason = if HAS_RESET_REASON.load() == 1 { ctx.arg::<u32>(2) } else { 0 };
    unsafe { on_send::<Probed>(ctx.arg(0), ctx.arg(1), reason) };
    0
}

#[btf_tracepoint(function = "tcp_receive_reset")]
pub fn netdiag_tcp_got_reset(ctx: BtfTracePointContext) -> i32 {
    unsafe { on_receive::<Typed>(ctx.arg(0)) };
    0
}

#[raw_tracepoint(tracepoint = "tcp_receive_reset")]
pub fn netdiag_tcp_got_reset_raw(ctx: RawTracePointContext) -> i32 {
    unsafe { on_receive::<Probed>(ctx.arg(0)) };
    0
}

/// Either may be missing: the socket when nobody listens, the packet when the RST is our own decision.
#[inline(always)]
unsafe fn on_send<L: Load>(sock: *const u8, skb: *const u8, reason: u32) {
    unsafe {
        run::<Reject>(|run| {
            if !skb.is_null() {
                answered::<L>(run, skb, RESET_SENT, reason);
            } else if !sock.is_null() {
                told::<L>(run, sock, ABORTED, reason, IPPROTO_TCP);
            }
        });
    }
}

#[inline(always)]
unsafe fn on_receive<L: Load>(sock: *const u8) {
    unsafe { run::<Reject>(|run| told::<L>(run, sock, RESET_RECEIVED, u32::from(state::<L>(sock)), IPPROTO_TCP)) };
}

/// Counts a refusal by the packet that it answers; in a flood of them by its kind.
#[inline(always)]
pub unsafe fn answered<L: Load>(run: &Run, skb: *const u8, kind: u8, detail: u32) {
    unsafe {
        if !run.takes_apart(kind, device::<L>(skb)) {
            return;
        }
        let Parsed::Ip(packet) = packet::<L>(skb) else {
            run.unparsed(kind);
            return;
        };
        let netns = place::<L>(skb).netns;
        let ports = (packet.source_port, packet.destination_port);
        let event = tuple(kind, detail, netns, packet.version, packet.source, packet.destination, ports);
        run.count::<Reject>(&Event { protocol: packet.protocol, ..event }, now());
    }
}

/// Tells the packet's device from others. Its address would, but tp_btf programs may not calculate with a pointer.
#[inline(always)]
unsafe fn device<L: Load>(skb: *const u8) -> u64 {
    unsafe {
        let device = L::load::<*const u8>(skb, O_SKB_DEV.load());
        if device.is_null() {
            return 0;
        }
        let netns = net_id::<L>(L::load::<*const u8>(device, O_DEV_NET.load()));
        netns ^ (u64::from(L::load::<u32>(device, O_DEV_IFINDEX.load())) << 32)
    }
}

/// Counts what a socket was told, by the packets that it sends.
#[inline(always)]
pub unsafe fn told<L: Load>(run: &Run, sock: *const u8, kind: u8, detail: u32, protocol: u8) {
    unsafe {
        let Ends { version, local, peer } = ends::<L>(sock);
        let ports = (local.port, peer.port);
        let event = tuple(kind, detail, sock_netns::<L>(sock), version, local.address, peer.address, ports);
        run.count::<Reject>(&Event { protocol, ..event }, now());
    }
}

/// As the drop hook keeps packets: the lower port alone, so that both find the same key.
#[inline(always)]
fn tuple(
    kind: u8,
    detail: u32,
    netns: u64,
    version: u8,
    source: [u64; 2],
    destination: [u64; 2],
    (source_port, destination_port): (u16, u16),
) -> Event {
    let to_destination = destination_port <= source_port;
    Event {
        kind,
        detail,
        measure: NO_MEASURE,
        amount: 0,
        netns,
        version,
        source,
        destination,
        port: if to_destination { destination_port } else { source_port },
        protocol: 0,
        flags: if to_destination { FLAG_DESTINATION } else { 0 },
    }
}
