//! Tracepoint `sock:inet_sk_error_report`: a socket's application is told of an error.
//!
//! `sk_error_report()` in net/core/sock.c, since Linux 5.14. TCP's errors are seen by its states; this is for the others,
//! whose errors come by ICMP. Only a connected UDP socket is told. Where the tracepoint is absent, the namespace's counters
//! `IcmpIn*` remain. <https://github.com/torvalds/linux/blob/v6.18/include/trace/events/sock.h#L211>

use aya_ebpf::macros::{btf_tracepoint, raw_tracepoint};
use aya_ebpf::programs::{BtfTracePointContext, RawTracePointContext};
use netdiag_common::record::reject::ERROR;

use super::tcp_reset::told;
use crate::event::{Reject, run};
use crate::read::{Load, Probed, Typed};
use crate::socket::{error, protocol};

const IPPROTO_TCP: u16 = 6;
/// `IPPROTO_MPTCP`: its subflows are TCP's.
const IPPROTO_MPTCP: u16 = 262;

#[btf_tracepoint(function = "inet_sk_error_report")]
pub fn netdiag_sock_error(ctx: BtfTracePointContext) -> i32 {
    unsafe { on_error::<Typed>(ctx.arg(0)) };
    0
}

#[raw_tracepoint(tracepoint = "inet_sk_error_report")]
pub fn netdiag_sock_error_raw(ctx: RawTracePointContext) -> i32 {
    unsafe { on_error::<Probed>(ctx.arg(0)) };
    0
}

#[inline(always)]
unsafe fn on_error<L: Load>(sock: *const u8) {
    unsafe {
        let protocol = protocol::<L>(sock);
        let errno = error::<L>(sock);
        if errno == 0 || protocol == IPPROTO_TCP || protocol == IPPROTO_MPTCP {
            return;
        }
        run::<Reject>(|run| told::<L>(run, sock, ERROR, errno, protocol as u8));
    }
}
