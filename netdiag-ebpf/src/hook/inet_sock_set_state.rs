//! Tracepoint `sock:inet_sock_set_state`: a TCP socket changes its state.
//!
//! `inet_sk_set_state()` and `inet_sk_state_store()` in net/ipv4/af_inet.c, since Linux 4.16; nothing replaces it where it
//! is absent. <https://github.com/torvalds/linux/blob/v6.18/include/trace/events/sock.h#L141>
//!
//! The error number is already in the socket when its state becomes CLOSE: `tcp_reset()`, `tcp_write_err()`, `tcp_v4_err()`
//! set it first. An attempt ends exactly once, so what goes into the table of attempts comes out of it; an end that was
//! missed is found when the same address begins again, or by the agent when the entry is too old.

use aya_ebpf::bindings::{BPF_ANY, BPF_NOEXIST};
use aya_ebpf::macros::{btf_tracepoint, raw_tracepoint};
use aya_ebpf::programs::{BtfTracePointContext, RawTracePointContext};
use netdiag_common::record::event::{NO_MEASURE, measure};
use netdiag_common::record::tcp::{
    ACCEPTED, Attempt, BEGUN, BROKEN, CLOSE, ESTABLISHED, FAILED, FLAG_CLIENT, NO_PORT, RELEASED, REPLACED, ROUND_TRIP,
    SUCCEEDED, SYN_RECV, SYN_SENT, TRACKED, UNMATCHED, UNTRACKED,
};

use crate::event::{Event, Run, TCP_ATTEMPTS, Tcp, now, run};
use crate::read::{Load, Probed, Typed};
use crate::socket::{End, Ends, ends, error, protocol, round_trip_us, sock_netns, source_port};

const IPPROTO_TCP: u16 = 6;
const EEXIST: i32 = -17;
/// Where clients' ports begin, unless `net.ipv4.ip_local_port_range` says otherwise.
const EPHEMERAL: u16 = 32768;

#[btf_tracepoint(function = "inet_sock_set_state")]
pub fn netdiag_tcp_state(ctx: BtfTracePointContext) -> i32 {
    unsafe { on_state::<Typed>(ctx.arg(0), ctx.arg(1), ctx.arg(2)) };
    0
}

#[raw_tracepoint(tracepoint = "inet_sock_set_state")]
pub fn netdiag_tcp_state_raw(ctx: RawTracePointContext) -> i32 {
    unsafe { on_state::<Probed>(ctx.arg(0), ctx.arg(1), ctx.arg(2)) };
    0
}

#[inline(always)]
unsafe fn on_state<L: Load>(sock: *const u8, old: u32, new: u32) {
    let begins = new == SYN_SENT;
    let ends_attempt = old == SYN_SENT && new != SYN_RECV;
    // A listener's new connection, or an attempt that met one of the other side.
    let arrives = old == SYN_RECV && (new == ESTABLISHED || new == CLOSE);
    let leaves = old == ESTABLISHED || new == CLOSE;
    if !(begins || ends_attempt || leaves || arrives) {
        return;
    }
    unsafe {
        // Other protocols have their states in the same place.
        if protocol::<L>(sock) != IPPROTO_TCP {
            return;
        }
        if begins {
            run::<Tcp>(|run| begin::<L>(run, sock));
        } else if ends_attempt || arrives {
            run::<Tcp>(|run| end::<L>(run, sock, old, new));
        } else {
            let broken = if new == CLOSE { error::<L>(sock) } else { 0 };
            let measured = if old == ESTABLISHED { round_trip_us(sock) } else { 0 };
            if broken != 0 || measured != 0 {
                run::<Tcp>(|run| leave::<L>(run, sock, broken, measured));
            }
        }
    }
}

/// Remembers an attempt's start.
#[inline(always)]
unsafe fn begin<L: Load>(run: &Run, sock: *const u8) {
    unsafe {
        let Ends { version, peer, .. } = ends::<L>(sock);
        let (netns, now_ns) = (sock_netns::<L>(sock), now());
        let attempt = Attempt { start_ns: now_ns, netns, address: peer.address, port: peer.port, version, pad: [0; 5] };
        match TCP_ATTEMPTS.insert(sock as u64, attempt, u64::from(BPF_NOEXIST)) {
            Ok(()) => run.tick(TRACKED),
            Err(EEXIST) => {
                // The kernel uses a socket's memory again only after its end, which we must have missed.
                let _ = TCP_ATTEMPTS.insert(sock as u64, attempt, u64::from(BPF_ANY));
                run.tick(REPLACED);
            }
            Err(_) => run.tick(UNTRACKED),
        }
        run.count::<Tcp>(&event(BEGUN, 0, NO_MEASURE, 0, netns, version, peer, FLAG_CLIENT), now_ns);
    }
}

/// An attempt's result; or a listener's new connection, which has no attempt.
#[inline(always)]
unsafe fn end<L: Load>(run: &Run, sock: *const u8, old: u32, new: u32) {
    unsafe {
        let now_ns = now();
        // Copied before it is removed; removing decides whose it was, since the agent removes what is too old.
        let attempt = TCP_ATTEMPTS.get_ptr(sock as u64).map(|attempt| *attempt);
        let attempt = attempt.filter(|_| TCP_ATTEMPTS.remove(sock as u64).is_ok());
        let (kind, errno) = if new == ESTABLISHED {
            (SUCCEEDED, 0)
        } else {
            let no_port = source_port(sock) == 0;
            (FAILED, if no_port { NO_PORT } else { error::<L>(sock) })
        };
        let counted = match attempt {
            Some(Attempt { start_ns, netns, address, port, version, .. }) => {
                run.tick(RELEASED);
                let time_us = now_ns.wrapping_sub(start_ns) / 1000;
                event(kind, errno, measure(time_us), time_us, netns, version, End { address, port }, FLAG_CLIENT)
            }
            None => {
                let Ends { version, local, peer } = ends::<L>(sock);
                let netns = sock_netns::<L>(sock);
                if old == SYN_SENT {
                    run.tick(UNMATCHED);
                    event(kind, errno, NO_MEASURE, 0, netns, version, peer, FLAG_CLIENT)
                } else if new == ESTABLISHED {
                    event(ACCEPTED, 0, NO_MEASURE, 0, netns, version, local, 0)
                } else {
                    return;
                }
            }
        };
        if counted.kind == FAILED {
            run.errno(errno);
        }
        run.count::<Tcp>(&counted, now_ns);
    }
}

/// A connection that was established begins to close, or ends with an error.
#[inline(always)]
unsafe fn leave<L: Load>(run: &Run, sock: *const u8, broken: u32, measured_us: u32) {
    unsafe {
        let (netns, now_ns) = (sock_netns::<L>(sock), now());
        let Ends { version, local, peer } = ends::<L>(sock);
        let (service, flags) = service(local, peer);
        if measured_us != 0 {
            let us = u64::from(measured_us);
            run.count::<Tcp>(&event(ROUND_TRIP, 0, measure(us), us, netns, version, service, flags), now_ns);
        }
        if broken != 0 {
            run.count::<Tcp>(&event(BROKEN, broken, NO_MEASURE, 0, netns, version, service, flags), now_ns);
        }
    }
}

/// Which end is the service: the one with the lower port. When clients could have either, there would be a key for each
/// connection: then it is the peer, without its port.
#[inline(always)]
pub fn service(local: End, peer: End) -> (End, u8) {
    if local.port >= EPHEMERAL && peer.port >= EPHEMERAL {
        return (End { port: 0, ..peer }, FLAG_CLIENT);
    }
    if peer.port < local.port { (peer, FLAG_CLIENT) } else { (local, 0) }
}

#[inline(always)]
#[expect(clippy::too_many_arguments, reason = "the words of a key, in their order")]
pub fn event(
    kind: u8,
    detail: u32,
    measure: u8,
    amount: u64,
    netns: u64,
    version: u8,
    service: End,
    flags: u8,
) -> Event {
    Event {
        kind,
        detail,
        measure,
        amount,
        netns,
        version,
        source: [0, 0],
        destination: service.address,
        port: service.port,
        protocol: IPPROTO_TCP as u8,
        flags,
    }
}
