//! Tracepoints `tcp:tcp_retransmit_skb` and `tcp:tcp_retransmit_synack`: a segment, or a listener's SYN-ACK, is sent again.
//!
//! `__tcp_retransmit_skb()` in net/ipv4/tcp_output.c and `tcp_rtx_synack()`, both since Linux 4.15; since 6.17 the first
//! one is also called for what could not be sent, with the error behind. Where they are absent, the namespace's counters
//! `TcpRetransSegs` and `TcpExtTCPSynRetrans` remain.
//! <https://github.com/torvalds/linux/blob/v6.18/include/trace/events/tcp.h#L97>

use aya_ebpf::Global;
use aya_ebpf::macros::{btf_tracepoint, raw_tracepoint};
use aya_ebpf::programs::{BtfTracePointContext, RawTracePointContext};
use netdiag_common::record::event::NO_MEASURE;
use netdiag_common::record::tcp::{FLAG_CLIENT, RETRANSMIT, SYN_RETRANSMIT, SYN_SENT, SYNACK_RETRANSMIT};

use super::inet_sock_set_state::{event, service};
use crate::event::{Tcp, now, run};
use crate::read::{Load, Probed, Typed};
use crate::socket::{Ends, ends, sock_netns, state};

/// 1 when the first tracepoint's third argument is an error.
#[unsafe(no_mangle)]
static HAS_RETRANSMIT_ERROR: Global<u32> = Global::new(0);

#[btf_tracepoint(function = "tcp_retransmit_skb")]
pub fn netdiag_tcp_resend(ctx: BtfTracePointContext) -> i32 {
    let error = if HAS_RETRANSMIT_ERROR.load() == 1 { ctx.arg::<i32>(2) } else { 0 };
    unsafe { on_segment::<Typed>(ctx.arg(0), error) };
    0
}

#[raw_tracepoint(tracepoint = "tcp_retransmit_skb")]
pub fn netdiag_tcp_resend_raw(ctx: RawTracePointContext) -> i32 {
    let error = if HAS_RETRANSMIT_ERROR.load() == 1 { ctx.arg::<i32>(2) } else { 0 };
    unsafe { on_segment::<Probed>(ctx.arg(0), error) };
    0
}

#[btf_tracepoint(function = "tcp_retransmit_synack")]
pub fn netdiag_tcp_synack(ctx: BtfTracePointContext) -> i32 {
    unsafe { on_synack::<Typed>(ctx.arg(0), ctx.arg(1)) };
    0
}

#[raw_tracepoint(tracepoint = "tcp_retransmit_synack")]
pub fn netdiag_tcp_synack_raw(ctx: RawTracePointContext) -> i32 {
    unsafe { on_synack::<Probed>(ctx.arg(0), ctx.arg(1)) };
    0
}

#[inline(always)]
unsafe fn on_segment<L: Load>(sock: *const u8, error: i32) {
    if error != 0 {
        return;
    }
    unsafe {
        run::<Tcp>(|run| {
            let Ends { version, local, peer } = ends::<L>(sock);
            let (kind, service, flags) = if u32::from(state::<L>(sock)) == SYN_SENT {
                (SYN_RETRANSMIT, peer, FLAG_CLIENT)
            } else {
                let (service, flags) = service(local, peer);
                (RETRANSMIT, service, flags)
            };
            let netns = sock_netns::<L>(sock);
            run.count::<Tcp>(&event(kind, 0, NO_MEASURE, 0, netns, version, service, flags), now());
        });
    }
}

/// The ends are the request's: the listener has no peer, and often no address.
#[inline(always)]
unsafe fn on_synack<L: Load>(listener: *const u8, request: *const u8) {
    unsafe {
        run::<Tcp>(|run| {
            let Ends { version, local, .. } = ends::<L>(request);
            let netns = sock_netns::<L>(listener);
            run.count::<Tcp>(&event(SYNACK_RETRANSMIT, 0, NO_MEASURE, 0, netns, version, local, 0), now());
        });
    }
}
