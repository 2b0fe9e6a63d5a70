//! Uprobes on libc's `getaddrinfo` and OpenSSL's `SSL_ctrl`, `SSL_do_handshake` and `SSL_free`: which name a program looked up
//! and what became of it; which TLS server a client asked for, and whether the handshake ended well.
//!
//! Off unless asked for: each call of a probed function costs a trap. Uprobes exist since Linux 3.5. There is no replacement:
//! the DNS programs see queries but not the library's verdict, and TLS 1.3 hides everything behind its first message.
//!
//! A handshake may return without success and go on: a socket that does not block makes it wait. So a client's handshake failed
//! only when its `SSL` is freed after a step and without success. Clients are those that set a server's name (`SSL_ctrl` with
//! `SSL_CTRL_SET_TLSEXT_HOSTNAME`); handshakes within `SSL_read` and `SSL_write` take no step that could be seen.

use core::arch::asm;

use aya_ebpf::Global;
use aya_ebpf::bindings::{BPF_ANY, BPF_RB_NO_WAKEUP};
use aya_ebpf::helpers::generated::{bpf_get_current_pid_tgid, bpf_get_current_task, bpf_probe_read_user_str};
use aya_ebpf::macros::{map, uprobe, uretprobe};
use aya_ebpf::maps::{Array, HashMap, RingBuf};
use aya_ebpf::programs::{ProbeContext, RetProbeContext};
use netdiag_common::record::library::{Call, Ended, HANDSHAKE, LOOKUP, LOSSES, NAME_BYTES, NAMELESS, NO_ROOM, RING_FULL};

use crate::event::now;
use crate::read::{Load, Probed, net_id};

/// By thread.
#[map]
static LIBRARY_LOOKUPS: HashMap<u64, Call> = HashMap::with_max_entries(1, 0);
/// By process and address of its `SSL`.
#[map]
static LIBRARY_HANDSHAKES: HashMap<[u64; 2], Call> = HashMap::with_max_entries(1, 0);
/// By thread: the `SSL` whose handshake it is in.
#[map]
static LIBRARY_STEPS: HashMap<u64, u64> = HashMap::with_max_entries(1, 0);
#[map]
static LIBRARY_ENDED: RingBuf = RingBuf::with_byte_size(4096, 0);
#[map]
static LIBRARY_LOST: Array<u64> = Array::with_max_entries(LOSSES, aya_ebpf::bindings::BPF_F_MMAPABLE);

/// Offsets in bytes, of `struct task_struct` and `struct nsproxy`.
#[unsafe(no_mangle)]
static O_TASK_NSPROXY: Global<u32> = Global::new(0);
#[unsafe(no_mangle)]
static O_NSPROXY_NET: Global<u32> = Global::new(0);

/// openssl/tls1.h.
const SSL_CTRL_SET_TLSEXT_HOSTNAME: i32 = 55;

#[uprobe]
pub fn netdiag_lookup(ctx: ProbeContext) -> u32 {
    // Without a name it is asked for the addresses to listen on.
    if let Some(name) = ctx.arg::<u64>(0).filter(|name| *name != 0) {
        let now_ns = now();
        unsafe { open(&LIBRARY_LOOKUPS, &thread(), name, now_ns, now_ns) };
    }
    0
}

#[uretprobe]
pub fn netdiag_looked_up(ctx: RetProbeContext) -> u32 {
    let key = thread();
    if let Some(call) = LIBRARY_LOOKUPS.get_ptr(&key) {
        unsafe { end(call, LOOKUP, ctx.ret::<i32>()) };
        let _ = LIBRARY_LOOKUPS.remove(&key);
    }
    0
}

#[uprobe]
pub fn netdiag_tls_name(ctx: ProbeContext) -> u32 {
    let (Some(ssl), Some(command), Some(name)) = (ctx.arg::<u64>(0), ctx.arg::<i32>(1), ctx.arg::<u64>(3)) else {
        return 0;
    };
    if command == SSL_CTRL_SET_TLSEXT_HOSTNAME && name != 0 {
        unsafe { open(&LIBRARY_HANDSHAKES, &[process(), ssl], name, 0, now()) };
    }
    0
}

#[uprobe]
pub fn netdiag_tls_step(ctx: ProbeContext) -> u32 {
    let Some(ssl) = ctx.arg::<u64>(0) else { return 0 };
    let Some(call) = LIBRARY_HANDSHAKES.get_ptr_mut(&[process(), ssl]) else { return 0 };
    if LIBRARY_STEPS.insert(&thread(), &ssl, u64::from(BPF_ANY)).is_err() {
        lose(NO_ROOM);
        return 0;
    }
    let call = unsafe { &mut *call };
    call.last_ns = now();
    if call.started_ns == 0 {
        call.started_ns = call.last_ns;
    }
    0
}

#[uretprobe]
pub fn netdiag_tls_stepped(ctx: RetProbeContext) -> u32 {
    let thread = thread();
    let Some(ssl) = LIBRARY_STEPS.get_ptr(&thread) else { return 0 };
    let key = [process(), unsafe { *ssl }];
    let _ = LIBRARY_STEPS.remove(&thread);
    let Some(call) = LIBRARY_HANDSHAKES.get_ptr_mut(&key) else { return 0 };
    let result = ctx.ret::<i32>();
    if result == 1 {
        unsafe { end(call, HANDSHAKE, result) };
        let _ = LIBRARY_HANDSHAKES.remove(&key);
    } else {
        unsafe { (*call).result = result };
    }
    0
}

#[uprobe]
pub fn netdiag_tls_free(ctx: ProbeContext) -> u32 {
    let Some(ssl) = ctx.arg::<u64>(0) else { return 0 };
    let key = [process(), ssl];
    let Some(call) = LIBRARY_HANDSHAKES.get_ptr(&key) else { return 0 };
    unsafe {
        // A client that never began has not failed.
        if (*call).started_ns != 0 {
            end(call, HANDSHAKE, (*call).result);
        }
    }
    let _ = LIBRARY_HANDSHAKES.remove(&key);
    0
}

#[inline(always)]
fn thread() -> u64 {
    unsafe { bpf_get_current_pid_tgid() }
}

#[inline(always)]
fn process() -> u64 {
    thread() >> 32
}

/// `name` is an address in the program's memory.
#[inline(always)]
unsafe fn open<K>(calls: &HashMap<K, Call>, key: &K, name: u64, started_ns: u64, last_ns: u64) {
    let mut call = Call { started_ns, last_ns, result: 0, pad: 0, name: [0; NAME_BYTES] };
    let read =
        unsafe { bpf_probe_read_user_str(call.name.as_mut_ptr().cast(), NAME_BYTES as u32, name as *const _) };
    if read < 0 {
        // Its page is not in memory: a program may not wait for it.
        lose(NAMELESS);
    }
    if calls.insert(key, &call, u64::from(BPF_ANY)).is_err() {
        lose(NO_ROOM);
    }
}

#[inline(always)]
unsafe fn end(call: *const Call, kind: u32, result: i32) {
    let Some(mut entry) = LIBRARY_ENDED.reserve::<Ended>(0) else {
        lose(RING_FULL);
        return;
    };
    let at_ns = now();
    unsafe {
        let call = &*call;
        entry.write(Ended {
            at_ns,
            netns: netns(),
            duration_ns: at_ns.wrapping_sub(call.started_ns),
            result,
            kind,
            name: call.name,
        });
    }
    entry.submit(u64::from(BPF_RB_NO_WAKEUP));
}

/// The namespace of the running thread.
#[inline(always)]
unsafe fn netns() -> u64 {
    unsafe {
        let task = bpf_get_current_task() as *const u8;
        let proxy = Probed::load::<*const u8>(task, O_TASK_NSPROXY.load());
        net_id::<Probed>(Probed::load::<*const u8>(proxy, O_NSPROXY_NET.load()))
    }
}

#[inline(always)]
fn lose(what: u32) {
    if let Some(count) = LIBRARY_LOST.get_ptr_mut(what) {
        // Any CPU may be here at the same time, and `core` has no atomics for this target.
        // SAFETY: adds to eight bytes of the map.
        unsafe { asm!("lock *(u64 *)({0} + 0) += {1}", in(reg) count, in(reg) 1_u64, options(nostack)) };
    }
}
