//! Segments of TCP outside of the window of their connection. Where that window is, the kernel does not show; to rules such a
//! segment is invalid, unless `nf_conntrack_tcp_be_liberal` is on (`tcp_in_window` and `nf_tcp_log_invalid`,
//! net/netfilter/nf_conntrack_proto_tcp.c, Linux 6.18).

use crate::forwarding::expression::{Bitwise, Expression};
use crate::forwarding::machine::{Result, Run, Tracking};
use crate::forwarding::packet::{TCP, flag};
use crate::forwarding::xt;

/// `NFT_CT_STATE`
const STATE: u32 = 0;

/// `NF_CT_STATE_INVALID_BIT`
const INVALID: u32 = 1;

/// Names the window where the next expressions of a rule ask for invalid packets, and this one may lie outside.
pub(super) fn ask(run: &mut Run<'_>, rest: &[Expression]) -> Result<()> {
    if !asks_for_invalid(rest) || !may_lie_outside(run) {
        return Ok(());
    }
    let since = match run.state.tracking_settings()?.tcp_be_liberal {
        Some(true) => return Ok(()),
        Some(false) => "since net.netfilter.nf_conntrack_tcp_be_liberal is 0",
        None => "unless net.netfilter.nf_conntrack_tcp_be_liberal is on",
    };
    run.add_gap(format!(
        "whether the segment lies in the window of its connection is not evaluated: outside it is invalid to rules, {since}"
    ));
    Ok(())
}

/// Of all states at once, rules of nf_tables ask by a map.
fn asks_for_invalid(rest: &[Expression]) -> bool {
    match rest {
        [
            Expression::Ct { key: STATE, .. },
            Expression::Bitwise { operation: Bitwise::MaskXor { mask, .. }, .. },
            ..,
        ] => {
            let mask = mask.get(..4).and_then(|mask| mask.try_into().ok()).map(u32::from_ne_bytes);
            mask.is_none_or(|mask| mask & INVALID != 0)
        }
        [Expression::Ct { key: STATE, .. }, ..] => true,
        [Expression::XtMatch { name, revision, info }, ..] => xt::asks_for_invalid(name, *revision, info),
        _ => false,
    }
}

/// A connection that begins with the packet has its window from it, and the answer to its first segment sets that of the other end.
fn may_lie_outside(run: &Run<'_>) -> bool {
    let is_known = matches!(&run.tracking, Tracking::Tracked(tracked) if !tracked.new);
    let segment = run.packet.transport().filter(|transport| is_known && transport.protocol == TCP);
    let flags = segment.and_then(|segment| run.packet.bytes.get(segment.offset + 13));
    flags.is_some_and(|flags| flags & flag::SYN == 0)
}
