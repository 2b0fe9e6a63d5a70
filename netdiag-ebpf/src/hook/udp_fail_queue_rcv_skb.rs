//! Tracepoint `udp:udp_fail_queue_rcv_skb`: a datagram found no room in its socket.
//!
//! `__udp_queue_rcv_skb()` in net/ipv4/udp.c and its IPv6 twin, since Linux 3.1; the packet behind the socket since 6.10.
//! Where it is absent, the namespace's counters `UdpRcvbufErrors` and `UdpMemErrors` remain.
//! <https://github.com/torvalds/linux/blob/v6.18/include/trace/events/udp.h>

use aya_ebpf::macros::{btf_tracepoint, raw_tracepoint};
use aya_ebpf::programs::{BtfTracePointContext, RawTracePointContext};
use netdiag_common::record::event::NO_MEASURE;
use netdiag_common::record::udp::NOT_QUEUED;

use crate::event::{Event, Udp, now, run};
use crate::read::{Load, Probed, Typed};
use crate::socket::{local_port, sock_netns};

const IPPROTO_UDP: u8 = 17;

#[btf_tracepoint(function = "udp_fail_queue_rcv_skb")]
pub fn netdiag_udp_full(ctx: BtfTracePointContext) -> i32 {
    unsafe { on_full::<Typed>(ctx.arg(0), ctx.arg(1)) };
    0
}

#[raw_tracepoint(tracepoint = "udp_fail_queue_rcv_skb")]
pub fn netdiag_udp_full_raw(ctx: RawTracePointContext) -> i32 {
    unsafe { on_full::<Probed>(ctx.arg(0), ctx.arg(1)) };
    0
}

#[inline(always)]
unsafe fn on_full<L: Load>(result: i32, sock: *const u8) {
    unsafe {
        run::<Udp>(|run| {
            let event = Event {
                kind: NOT_QUEUED,
                detail: result.unsigned_abs(),
                measure: NO_MEASURE,
                amount: 0,
                netns: sock_netns::<L>(sock),
                // One socket may receive both: the key has no address.
                version: 4,
                source: [0, 0],
                destination: [0, 0],
                port: local_port::<L>(sock),
                protocol: IPPROTO_UDP,
                flags: 0,
            };
            run.count::<Udp>(&event, now());
        });
    }
}
