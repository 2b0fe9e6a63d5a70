//! Tracepoint `icmp:icmp_send`: the kernel answers a packet with an ICMP error.
//!
//! `__icmp_send()` in net/ipv4/icmp.c, behind all rate limits, since Linux 6.11 (backported by some); ICMPv6 has none. Where
//! it is absent, the namespace's counters `IcmpOut*` remain.
//! <https://github.com/torvalds/linux/blob/v6.18/include/trace/events/icmp.h>

use aya_ebpf::macros::{btf_tracepoint, raw_tracepoint};
use aya_ebpf::programs::{BtfTracePointContext, RawTracePointContext};
use netdiag_common::record::reject::ICMP_SENT;

use super::tcp_reset::answered;
use crate::event::{Reject, run};
use crate::read::{Load, Probed, Typed};

#[btf_tracepoint(function = "icmp_send")]
pub fn netdiag_icmp_send(ctx: BtfTracePointContext) -> i32 {
    unsafe { on_icmp::<Typed>(ctx.arg(0), ctx.arg(1), ctx.arg(2)) };
    0
}

#[raw_tracepoint(tracepoint = "icmp_send")]
pub fn netdiag_icmp_send_raw(ctx: RawTracePointContext) -> i32 {
    unsafe { on_icmp::<Probed>(ctx.arg(0), ctx.arg(1), ctx.arg(2)) };
    0
}

#[inline(always)]
unsafe fn on_icmp<L: Load>(packet: *const u8, icmp_type: u32, code: u32) {
    let detail = (icmp_type & 0xff) << 8 | code & 0xff;
    unsafe { run::<Reject>(|run| answered::<L>(run, packet, ICMP_SENT, detail)) };
}
