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

use core::arch::asm;
use core::ptr::{addr_of, addr_of_mut};

use aya_ebpf::EbpfContext;
use aya_ebpf::Global;
use aya_ebpf::bindings::{BPF_NOEXIST, BPF_RB_NO_WAKEUP};
use aya_ebpf::helpers::generated::{
    bpf_get_netns_cookie, bpf_get_smp_processor_id, bpf_get_socket_cookie, bpf_jiffies64, bpf_ktime_get_ns,
    bpf_skb_load_bytes,
};
use aya_ebpf::macros::cgroup_skb;
use aya_ebpf::programs::SkBuffContext;
use netdiag_common::record::dns::{
    Counters, Group, GroupKey, HEADER_BYTES, MESSAGE_BYTES, MESSAGE_WORDS, Open, OpenKey, RCODE_OTHER, RCODES,
    SIDE_SERVER, Sample, TIMES, TYPE_OTHER, TYPE_ROWS, TYPES, rcode_row, service_word,
};
use netdiag_common::record::table::CpuState;

use crate::map::{DNS_COUNTERS, DNS_CPUS, DNS_GROUPS, DNS_OPEN, DNS_SAMPLES, DNS_ZERO};
use crate::read;
use crate::table::{CPUS, TICK_NS};

/// Four ports that DNS servers listen on, each in the byte order of packets, and how many of them differ.
#[unsafe(no_mangle)]
static DNS_PORTS: Global<u64> = Global::new(0);
#[unsafe(no_mangle)]
static DNS_PORT_COUNT: Global<u32> = Global::new(1);
/// Samples that one CPU may send in each stretch of time; failures may use all, the rest three quarters.
#[unsafe(no_mangle)]
static DNS_SAMPLES_PER_SPAN: Global<u64> = Global::new(0);

/// A quarter of a second: the agent empties the ring four times less often.
const SPAN_NS: u64 = 250_000_000;

/// Messages looked for in one TCP segment: glibc sends its A and AAAA queries in one.
const MESSAGES: usize = 4;

const UDP: u8 = 17;
const TCP: u8 = 6;

const PASS: i32 = 1;

/// Flags of the header (RFC 1035 §4.1.1).
const QR: u16 = 0x8000;
const OPCODE: u16 = 0x7800;
const TC: u16 = 0x0200;

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

/// What the ports say, before anything else is looked at.
struct Packet {
    /// Offset of the layer 4 header.
    transport: u32,
    protocol: u8,
    version: u8,
    /// In the byte order of packets.
    source_port: u16,
    destination_port: u16,
}

/// None for what has no DNS port. IPv6 packets with extension headers are not looked at: sockets of resolvers send none.
#[inline(always)]
fn dns(ctx: &SkBuffContext) -> Option<Packet> {
    let skb = ctx.skb.skb;
    let (data, end) = unsafe { ((*skb).data as usize, (*skb).data_end as usize) };
    // An IPv4 header without options and two ports.
    if data + 24 > end {
        return None;
    }
    let first = unsafe { *(data as *const u8) };
    // Each place is read where its bound was checked: behind a branch the verifier knows no bound of a merged pointer.
    let (version, transport, protocol, ports);
    if first == 0x45 {
        (version, transport) = (4, 20);
        protocol = unsafe { ((data + 9) as *const u8).read_volatile() };
        ports = unsafe { ((data + 20) as *const u32).read_volatile() };
    } else if first >> 4 == 6 {
        if data + 44 > end {
            return None;
        }
        (version, transport) = (6, 40);
        protocol = unsafe { ((data + 6) as *const u8).read_volatile() };
        ports = unsafe { ((data + 40) as *const u32).read_volatile() };
    } else {
        // With options: rare enough for a helper.
        (version, transport) = (4, u32::from(first & 0xf) * 4);
        protocol = unsafe { ((data + 9) as *const u8).read_volatile() };
        ports = ctx.load::<u32>(transport as usize).ok()?;
    }
    if protocol != UDP && protocol != TCP {
        return None;
    }
    let (source_port, destination_port) = (ports as u16, (ports >> 16) as u16);
    if !is_dns(source_port) && !is_dns(destination_port) {
        return None;
    }
    Some(Packet { transport, protocol, version, source_port, destination_port })
}

#[inline(always)]
fn is_dns(port: u16) -> bool {
    let ports = DNS_PORTS.load();
    if port == ports as u16 {
        return true;
    }
    DNS_PORT_COUNT.load() > 1
        && (port == (ports >> 16) as u16 || port == (ports >> 32) as u16 || port == (ports >> 48) as u16)
}

/// Where messages are counted in this run.
struct Place {
    counters: *mut Counters,
    epoch: u64,
    cpu: u32,
}

#[inline(always)]
fn place() -> Option<Place> {
    let cpu = unsafe { bpf_get_smp_processor_id() };
    let state = DNS_CPUS.get_ptr_mut(cpu)?;
    let epoch = unsafe { addr_of!((*state).epoch).read_volatile() } & 1;
    let counters = DNS_COUNTERS.get_ptr_mut(epoch * CPUS.load() + cpu)?;
    Some(Place { counters, epoch: u64::from(epoch), cpu })
}

/// One more, also when another program on this CPU interrupts.
#[inline(always)]
unsafe fn add(counter: *mut u64, amount: u64) {
    // The bpf target has no `AtomicU64::fetch_add`: only kernels since 5.12 could give back the old value.
    unsafe { asm!("lock *(u64 *)({0} + 0) += {1}", in(reg) counter, in(reg) amount, options(nostack)) };
}

macro_rules! count {
    ($place:expr, $counter:ident) => {
        add(addr_of_mut!((*$place.counters).$counter), 1)
    };
}

/// Id, flags and counts.
#[derive(Clone, Copy)]
struct Header {
    id: u16,
    flags: u16,
    questions: u16,
    answers: u16,
}

/// When the packet ends before it: neither a query nor an answer. No `Option`, whose empty fields the verifier would not let
/// be copied.
const NO_HEADER: Header = Header { id: 0, flags: u16::MAX, questions: 0, answers: 0 };

#[inline(always)]
fn header(ctx: &SkBuffContext, at: u32, available: u32) -> Header {
    if available < HEADER_BYTES as u32 {
        return NO_HEADER;
    }
    let Ok(words) = ctx.load::<u64>(at as usize) else { return NO_HEADER };
    let field = |n: u32| u16::from_be((words >> (16 * n)) as u16);
    Header { id: field(0), flags: field(1), questions: field(2), answers: field(3) }
}

impl Header {
    /// An ordinary query: one question, no answers.
    #[inline(always)]
    fn is_query(self) -> bool {
        self.flags & (QR | OPCODE) == 0 && self.questions == 1 && self.answers == 0
    }

    /// An answer to an ordinary query. A server that cannot read the question answers without one.
    #[inline(always)]
    fn is_answer(self) -> bool {
        self.flags & (QR | OPCODE) == QR && self.questions <= 1
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

/// Calls `found` with the header of each message, its offset and the bytes from there to the end of the packet. `found` says
/// whether it knew what to do with it; what it did not know in TCP is the rest of a message that began before.
#[inline(always)]
fn messages(ctx: &SkBuffContext, packet: &Packet, found: impl Fn(&Place, Header, u32, u32) -> bool) {
    let total = ctx.len();
    if packet.protocol == UDP {
        let at = packet.transport + 8;
        let Some(place) = place() else { return };
        let available = total.saturating_sub(at);
        found(&place, header(ctx, at, available), at, available);
        return;
    }
    let Ok(offset) = ctx.load::<u8>(packet.transport as usize + 12) else { return };
    let mut at = packet.transport + u32::from(offset >> 4) * 4;
    // Without payload: the connection's own segments.
    if at >= total {
        return;
    }
    let Some(place) = place() else { return };
    for _ in 0..MESSAGES {
        // RFC 1035 §4.2.2: two bytes of length. They may have come in a segment of their own.
        let length = ctx.load::<u16>(at as usize).map_or(0, u16::from_be);
        let behind = at + 2;
        if length as usize >= HEADER_BYTES
            && behind < total
            && found(&place, header(ctx, behind, total - behind), behind, (total - behind).min(u32::from(length)))
        {
            at = behind + u32::from(length);
            if at == total {
                return;
            }
            // The message goes on in the next segment.
            if at > total {
                break;
            }
            continue;
        }
        if found(&place, header(ctx, at, total - at), at, total - at) {
            return;
        }
        break;
    }
    unsafe { count!(place, tcp_rest) };
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

/// What time it is, to some milliseconds: reading jiffies costs a tenth of the exact clock, which is read every quarter of a
/// second and carried on from there.
#[inline(always)]
unsafe fn coarse_ns(place: &Place) -> u64 {
    let Some(state) = DNS_CPUS.get_ptr_mut(place.cpu) else { return 0 };
    let state = unsafe { &mut *state };
    let passed_ns = unsafe { bpf_jiffies64() }.wrapping_sub(state.refilled_ticks) * TICK_NS.load();
    if passed_ns > SPAN_NS {
        refill(state, unsafe { bpf_ktime_get_ns() });
        return state.refilled_ns;
    }
    state.refilled_ns + passed_ns
}

#[inline(always)]
fn refill(state: &mut CpuState, now_ns: u64) {
    state.refilled_ns = now_ns;
    state.refilled_ticks = unsafe { bpf_jiffies64() };
    state.tokens = DNS_SAMPLES_PER_SPAN.load();
}

#[inline(always)]
unsafe fn answered(group: *mut Group, header: Header) {
    unsafe {
        add(addr_of_mut!((*group).answers), 1);
        // The mask keeps the verifier's bound where the compiler drops the one of `rcode_row`.
        let row = rcode_row(header.flags) & (RCODES - 1);
        add(addr_of_mut!((*group).rcodes).cast::<u64>().add(row), 1);
        if header.flags & TC != 0 {
            add(addr_of_mut!((*group).truncated), 1);
        } else if row == 0 && header.answers == 0 {
            add(addr_of_mut!((*group).empty), 1);
        }
    }
}

/// The counts of a namespace and server in this epoch; none, counted, when the table is full.
#[inline(always)]
unsafe fn group(place: &Place, netns: u64, server: [u64; 2], service: u64, now_ns: u64) -> Option<*mut Group> {
    let key: GroupKey = [netns, server[0], server[1], service | place.epoch];
    let mut known = DNS_GROUPS.get_ptr_mut(&key);
    if known.is_none() {
        let zero = DNS_ZERO.get_ptr(0)?;
        // Fails when another CPU was faster, too.
        let _ = DNS_GROUPS.insert(&key, unsafe { &*zero }, u64::from(BPF_NOEXIST));
        known = DNS_GROUPS.get_ptr_mut(&key);
    }
    let Some(group) = known else {
        unsafe { count!(place, ungrouped) };
        return None;
    };
    unsafe {
        if (*group).first_ns == 0 {
            (*group).first_ns = now_ns;
        }
        (*group).last_ns = now_ns;
    }
    Some(group)
}

/// Sends the query with its answer when this CPU's share of the ring allows.
#[inline(always)]
unsafe fn sample(place: &Place, open: &Open, header: Header, now_ns: u64) {
    let Some(state) = DNS_CPUS.get_ptr_mut(place.cpu) else { return };
    let state = unsafe { &mut *state };
    if now_ns.wrapping_sub(state.refilled_ns) > SPAN_NS {
        refill(state, now_ns);
    }
    let ordinary = header.flags & (TC | 0xf) == 0 && open.tries == 1;
    let reserve = if ordinary { DNS_SAMPLES_PER_SPAN.load() / 4 } else { 0 };
    if state.tokens <= reserve {
        return unsafe { count!(place, names_suppressed) };
    }
    state.tokens -= 1;
    let Some(mut entry) = DNS_SAMPLES.reserve::<Sample>(0) else {
        return unsafe { count!(place, names_lost) };
    };
    let record = entry.as_mut_ptr();
    unsafe {
        addr_of_mut!((*record).open).write(*open);
        addr_of_mut!((*record).answered_ns).write(now_ns);
        addr_of_mut!((*record).flags).write(header.flags);
        addr_of_mut!((*record).records).write(header.answers);
        addr_of_mut!((*record).pad).write(0);
        entry.submit(u64::from(BPF_RB_NO_WAKEUP));
        count!(place, names_sent);
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Side {
    Source,
    Destination,
}

/// An address of the packet, as it lies there.
#[inline(always)]
fn address(ctx: &SkBuffContext, packet: &Packet, side: Side) -> [u64; 2] {
    if packet.version == 4 {
        let at = if side == Side::Source { 12 } else { 16 };
        [u64::from(ctx.load::<u32>(at).unwrap_or(0)), 0]
    } else {
        let at = if side == Side::Source { 8 } else { 24 };
        ctx.load(at).unwrap_or([0; 2])
    }
}

/// The first 52 bytes of the question: a socket that uses an id twice asks for another name.
#[inline(always)]
fn same_question(one: &[u64; MESSAGE_WORDS], other: &[u64; MESSAGE_WORDS]) -> bool {
    // The upper half of word 1 is where the question begins.
    let mut differ = (one[1] ^ other[1]) >> 32;
    let mut word = 2;
    while word < 8 {
        differ |= one[word] ^ other[word];
        word += 1;
    }
    differ == 0
}

/// Row of [`Group::types`]. The type follows the first zero byte of the question: a name's end, unless somebody puts zeroes
/// into labels, which the agent's parser would tell.
#[inline(always)]
fn type_row(message: &[u64; MESSAGE_WORDS]) -> usize {
    let mut word = 1;
    // The header's last bytes are zero too.
    let mut here = message[1] | 0xffff_ffff;
    while word < MESSAGE_WORDS - 1 {
        // The lowest byte that is zero has its high bit set here (Hacker's Delight §6-1).
        let zeroes = here.wrapping_sub(0x0101_0101_0101_0101) & !here & 0x8080_8080_8080_8080;
        if zeroes != 0 {
            let next = message[word + 1];
            // Shifts the two bytes behind the zero to the bottom.
            let lowest = zeroes & zeroes.wrapping_neg();
            let kind = two_behind(message[word], next, lowest);
            return row_of(u16::from_be(kind));
        }
        word += 1;
        here = message[word];
    }
    TYPE_OTHER
}

/// The 16 bits behind the byte whose high bit is `mark`, of two words that follow each other.
#[inline(always)]
fn two_behind(word: u64, next: u64, mark: u64) -> u16 {
    let mut shift = 8;
    let mut mark = mark >> 7;
    // The index of the only bit, in steps of a byte.
    if mark & 0xffff_ffff == 0 {
        mark >>= 32;
        shift += 32;
    }
    if mark & 0xffff == 0 {
        mark >>= 16;
        shift += 16;
    }
    if mark & 0xff == 0 {
        shift += 8;
    }
    match shift {
        64 => next as u16,
        _ => ((word >> shift) | (next << (64 - shift))) as u16,
    }
}

#[inline(always)]
fn row_of(kind: u16) -> usize {
    let mut row = 0;
    while row < TYPES.len() {
        if TYPES[row] == kind {
            return row;
        }
        row += 1;
    }
    TYPE_OTHER & (TYPE_ROWS - 1)
}

/// The number of bits of a time: it is below this power of two.
#[inline(always)]
fn time_row(time_us: u64) -> usize {
    let (mut rest, mut bits) = (time_us, 0);
    if rest >> 16 != 0 {
        rest >>= 16;
        bits += 16;
    }
    if rest >> 8 != 0 {
        rest >>= 8;
        bits += 8;
    }
    if rest >> 4 != 0 {
        rest >>= 4;
        bits += 4;
    }
    if rest >> 2 != 0 {
        rest >>= 2;
        bits += 2;
    }
    if rest >> 1 != 0 {
        rest >>= 1;
        bits += 1;
    }
    (bits + rest as usize) & (TIMES - 1)
}

const _: () = assert!(RCODE_OTHER < RCODES && TYPE_OTHER < TYPE_ROWS);
