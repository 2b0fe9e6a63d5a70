//! Programs of type cgroup_skb at the group of all pods: the packets of their sockets, to find DNS messages among them.
//!
//! Called from `ip_finish_output()` and `ip6_finish_output()` (egress) and `sk_filter_trim_cap()` (ingress), in
//! `__cgroup_bpf_run_filter_skb()` since Linux 4.10; attached by links (5.7), which neither replace nor forbid other programs.
//! <https://github.com/torvalds/linux/blob/v6.18/kernel/bpf/cgroup.c#L1558>
//!
//! Of all places this one sees each message exactly once where its socket is, in every namespace from the first packet of a
//! new pod on, and knows the socket: its cookie and the query's id match an answer whatever NAT did to the addresses. A
//! packet socket would clone every packet that leaves; programs on devices would have to follow pods and see a message on
//! each hop. The price is paid by pods' packets that are no DNS: a look at their ports. What the node forwards, answers by
//! itself or sends from its own processes pays nothing, and the names that these processes ask for are not seen. Only where
//! the kubelet keeps no groups in the cgroup v2 tree are the programs at its root.
//!
//! Measured on Linux 6.18 with retpolines, on two busy processors, as CPU time of the sending thread, so differences below some
//! 20 ns say nothing. A datagram on loopback to a closed port takes 1.4 to 1.5 µs; to it
//! - an empty program on egress adds 50 to 90 ns, ours 70 to 110: nearly all of it is the kernel's way to any such program;
//! - a packet socket with a filter for port 53 adds 150 ns when it ignores what leaves, 330 to 400 when it does not;
//! - an empty tp_btf program at `net_dev_queue` adds 25 to 45, one that looks at the ports of unconnected sockets 90 to 140, and it
//!   runs for forwarded packets and on each device too.
//!
//! A DNS query and its answer, seen at both ends, cost 0.7 µs together (0.9 µs before Linux 6.15).
//!
//! Every program returns 1: the packet passes. Programs may be interrupted by others on the same CPU, so counters are
//! added to atomically. Each query ends in one of opened, unparsed, shed; each opened one in answered or stays until
//! the agent takes it out.

mod count;
mod packet;
mod row;

use core::ptr::addr_of_mut;

use aya_ebpf::EbpfContext;
use aya_ebpf::bindings::BPF_NOEXIST;
use aya_ebpf::helpers::generated::{bpf_get_netns_cookie, bpf_get_socket_cookie, bpf_ktime_get_ns, bpf_skb_load_bytes};
use aya_ebpf::macros::cgroup_skb;
use aya_ebpf::programs::SkBuffContext;
use netdiag_common::record::dns::{
    HEADER_BYTES, MESSAGE_BYTES, MESSAGE_WORDS, Open, OpenKey, SIDE_SERVER, service_word,
};

use crate::map::DNS_OPEN;
use crate::read;
use count::{Place, add, answered, coarse_ns, count, group, sample};
use packet::{Header, Packet, Side, UDP, address, dns, is_dns, messages};
use row::{same_question, time_row, type_row};

const PASS: i32 = 1;

/// 4.5 to 5.5 s: the default timeout of glibc and musl.
const ABOUT_5S_NS: core::ops::Range<u64> = 4_500_000_000..5_500_000_000;

#[cgroup_skb(egress)]
pub fn netdiag_dns_egress(ctx: SkBuffContext) -> i32 {
    if let Some(packet) = dns(&ctx) {
        unsafe { on_egress::<Told>(&ctx, &packet) };
    }
    PASS
}

#[cgroup_skb(ingress)]
pub fn netdiag_dns_ingress(ctx: SkBuffContext) -> i32 {
    if let Some(packet) = dns(&ctx) {
        unsafe { on_ingress::<Told>(&ctx, &packet) };
    }
    PASS
}

#[cgroup_skb(egress)]
pub fn netdiag_dns_egress_old(ctx: SkBuffContext) -> i32 {
    if let Some(packet) = dns(&ctx) {
        unsafe { on_egress::<Read>(&ctx, &packet) };
    }
    PASS
}

#[cgroup_skb(ingress)]
pub fn netdiag_dns_ingress_old(ctx: SkBuffContext) -> i32 {
    if let Some(packet) = dns(&ctx) {
        unsafe { on_ingress::<Read>(&ctx, &packet) };
    }
    PASS
}

/// A way to learn the namespace of a packet's socket.
trait Netns {
    unsafe fn of(ctx: &SkBuffContext) -> u64;
}

/// The helper, which cgroup_skb programs may call since Linux 6.15.
struct Told;

impl Netns for Told {
    #[inline(always)]
    unsafe fn of(ctx: &SkBuffContext) -> u64 {
        unsafe { bpf_get_netns_cookie(ctx.as_ptr()) }
    }
}

/// Three reads of kernel memory.
struct Read;

impl Netns for Read {
    #[inline(always)]
    unsafe fn of(ctx: &SkBuffContext) -> u64 {
        unsafe { read::socket_netns(ctx.as_ptr().cast()) }
    }
}

#[inline(always)]
unsafe fn on_egress<N: Netns>(ctx: &SkBuffContext, packet: &Packet) {
    let to_server = is_dns(packet.destination_port);
    messages(ctx, packet, |place, header, at, length| unsafe {
        if to_server && header.is_query() {
            query::<N>(ctx, packet, place, header, at, length);
            return true;
        }
        if is_dns(packet.source_port) && header.is_answer() {
            count!(place, served_answers);
            served::<N>(ctx, packet, place, header, Side::Source);
            return true;
        }
        if to_server && packet.protocol == UDP {
            count!(place, queries);
            count!(place, unparsed);
        }
        false
    });
}

#[inline(always)]
unsafe fn on_ingress<N: Netns>(ctx: &SkBuffContext, packet: &Packet) {
    let from_server = is_dns(packet.source_port);
    messages(ctx, packet, |place, header, _, _| unsafe {
        if from_server && header.is_answer() {
            return answer(ctx, packet, place, header);
        }
        if is_dns(packet.destination_port) && header.is_query() {
            count!(place, served_queries);
            served::<N>(ctx, packet, place, header, Side::Destination);
            return true;
        }
        false
    });
}

/// A client asks. Repeats of an open question count with it; a full table sheds.
#[inline(always)]
unsafe fn query<N: Netns>(
    ctx: &SkBuffContext,
    packet: &Packet,
    place: &Place,
    header: Header,
    at: u32,
    available: u32,
) {
    let mut open = Open {
        first_ns: unsafe { bpf_ktime_get_ns() },
        last_ns: 0,
        netns: unsafe { N::of(ctx) },
        server: address(ctx, packet, Side::Destination),
        service: service_word(u16::from_be(packet.destination_port), packet.protocol, packet.version, 0),
        tries: 1,
        length: 0,
        message: [0; MESSAGE_WORDS],
    };
    open.last_ns = open.first_ns;
    let length = available.min(MESSAGE_BYTES as u32);
    // Says the bounds once more where the verifier sees them: the helper takes no length of 0.
    let skb = ctx.skb.skb;
    if length < HEADER_BYTES as u32
        || length > MESSAGE_BYTES as u32
        || unsafe { bpf_skb_load_bytes(skb.cast(), at, addr_of_mut!(open.message).cast(), length) } != 0
    {
        unsafe {
            count!(place, queries);
            count!(place, unparsed);
        }
        return;
    }
    open.length = length;
    let key = OpenKey { socket: unsafe { bpf_get_socket_cookie(skb.cast()) }, id: u64::from(header.id) };
    if DNS_OPEN.insert(&key, &open, u64::from(BPF_NOEXIST)).is_ok() {
        unsafe {
            count!(place, queries);
            count!(place, opened);
        }
        return;
    }
    // Open already, or the table is full.
    if let Some(known) = DNS_OPEN.get_ptr_mut(&key) {
        let known = unsafe { &mut *known };
        if same_question(&known.message, &open.message) {
            let waited_ns = open.first_ns.wrapping_sub(known.last_ns);
            known.last_ns = open.first_ns;
            known.tries += 1;
            unsafe { again(place, &open, waited_ns) };
            return;
        }
    }
    unsafe {
        count!(place, queries);
        count!(place, shed);
        if let Some(group) = group(place, open.netns, open.server, open.service, open.first_ns) {
            add(addr_of_mut!((*group).shed), 1);
            add(addr_of_mut!((*group).types).cast::<u64>().add(type_row(&open.message)), 1);
        }
    }
}

/// The query is no new one.
#[inline(always)]
unsafe fn again(place: &Place, open: &Open, waited_ns: u64) {
    unsafe {
        count!(place, retries);
        if let Some(group) = group(place, open.netns, open.server, open.service, open.first_ns) {
            add(addr_of_mut!((*group).retries), 1);
            if ABOUT_5S_NS.contains(&waited_ns) {
                add(addr_of_mut!((*group).retries_after_5s), 1);
            }
        }
    }
}

/// An answer reached the client's socket. False when it belongs to no open query and may be something else.
#[inline(always)]
unsafe fn answer(ctx: &SkBuffContext, packet: &Packet, place: &Place, header: Header) -> bool {
    let key = OpenKey { socket: unsafe { bpf_get_socket_cookie(ctx.skb.skb.cast()) }, id: u64::from(header.id) };
    let Some(open) = DNS_OPEN.get_ptr_mut(&key) else {
        if packet.protocol == UDP {
            unsafe { count!(place, unmatched) };
        }
        return false;
    };
    let now_ns = unsafe { bpf_ktime_get_ns() };
    // A copy: as soon as the entry is taken out, another query may get its place.
    let open = &unsafe { *open };
    if DNS_OPEN.remove(&key).is_err() {
        // Another CPU was faster with a double of this answer.
        unsafe { count!(place, unmatched) };
        return true;
    }
    unsafe {
        count!(place, answered);
        let time_us = now_ns.wrapping_sub(open.first_ns) / 1000;
        if let Some(group) = group(place, open.netns, open.server, open.service, now_ns) {
            answered(group, header);
            add(addr_of_mut!((*group).types).cast::<u64>().add(type_row(&open.message)), 1);
            add(addr_of_mut!((*group).time_us), time_us);
            add(addr_of_mut!((*group).times).cast::<u64>().add(time_row(time_us)), 1);
        }
        sample(place, open, header, now_ns);
    }
    true
}

/// A server received a query, which came to it, or sent an answer, which comes from it.
#[inline(always)]
unsafe fn served<N: Netns>(ctx: &SkBuffContext, packet: &Packet, place: &Place, header: Header, side: Side) {
    let port = if side == Side::Source { packet.source_port } else { packet.destination_port };
    let service = service_word(u16::from_be(port), packet.protocol, packet.version, SIDE_SERVER);
    unsafe {
        let netns = N::of(ctx);
        let now_ns = coarse_ns(place);
        let Some(group) = group(place, netns, address(ctx, packet, side), service, now_ns) else { return };
        if side == Side::Source {
            answered(group, header);
        } else {
            add(addr_of_mut!((*group).queries), 1);
        }
    }
}
