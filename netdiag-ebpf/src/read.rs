//! Reading kernel memory: where the fields are on this kernel, two ways to load them, and the IP header of a packet.
//!
//! The agent takes the offsets from the running kernel's BTF and writes them into these globals before the programs are
//! loaded. They are frozen, so that the verifier sees constants and removes the branches that this kernel does not need.

use core::arch::asm;
use core::mem::MaybeUninit;

use aya_ebpf::Global;
use aya_ebpf::helpers::generated::bpf_probe_read_kernel;
use netdiag_common::record::kfree_skb::{FLAG_CROSSED, FLAG_DESTINATION, FLAG_RECEIVED, FLAG_ROUTED};

/// Offsets in bytes.
#[unsafe(no_mangle)]
pub static O_SKB_SK: Global<u32> = Global::new(0);
#[unsafe(no_mangle)]
pub static O_SKB_DEV: Global<u32> = Global::new(0);
#[unsafe(no_mangle)]
pub static O_SKB_DST: Global<u32> = Global::new(0);
#[unsafe(no_mangle)]
pub static O_SKB_IIF: Global<u32> = Global::new(0);
#[unsafe(no_mangle)]
pub static O_SKB_LEN: Global<u32> = Global::new(0);
#[unsafe(no_mangle)]
pub static O_SKB_PROTOCOL: Global<u32> = Global::new(0);
#[unsafe(no_mangle)]
pub static O_SKB_NETWORK: Global<u32> = Global::new(0);
#[unsafe(no_mangle)]
pub static O_SKB_TAIL: Global<u32> = Global::new(0);
#[unsafe(no_mangle)]
pub static O_SKB_HEAD: Global<u32> = Global::new(0);
#[unsafe(no_mangle)]
pub static O_SKB_DATA: Global<u32> = Global::new(0);
#[unsafe(no_mangle)]
pub static O_DEV_NET: Global<u32> = Global::new(0);
#[unsafe(no_mangle)]
pub static O_DEV_IFINDEX: Global<u32> = Global::new(0);
#[unsafe(no_mangle)]
pub static O_SOCK_NET: Global<u32> = Global::new(0);
#[unsafe(no_mangle)]
pub static O_DST_DEV: Global<u32> = Global::new(0);
/// `net_cookie` (8 bytes, Linux 5.12) when `NETNS_IS_COOKIE` is 1, else `ns.inum` (4 bytes).
#[unsafe(no_mangle)]
pub static O_NET_ID: Global<u32> = Global::new(0);
#[unsafe(no_mangle)]
pub static NETNS_IS_COOKIE: Global<u32> = Global::new(0);

/// A way to load a field of a kernel object.
pub trait Load {
    /// # Safety
    /// `base + offset` must be a `T` in the kernel's layout. A bad address reads as zeroes.
    unsafe fn load<T: Copy>(base: *const u8, offset: u32) -> T;
}

/// Plain loads. The verifier knows the type of the tracepoint's arguments (tp_btf), and the kernel catches a fault.
pub struct Typed;

impl Load for Typed {
    #[inline(always)]
    unsafe fn load<T: Copy>(base: *const u8, offset: u32) -> T {
        // Volatile: a merged or widened load would cross members, which the verifier refuses.
        unsafe { base.add(offset as usize).cast::<T>().read_volatile() }
    }
}

/// Loads by helper, for raw tracepoints whose arguments are numbers to the verifier.
pub struct Probed;

impl Load for Probed {
    #[inline(always)]
    unsafe fn load<T: Copy>(base: *const u8, offset: u32) -> T {
        let mut value = MaybeUninit::<T>::uninit();
        // The helper clears the buffer when it fails, so the value is initialised either way.
        unsafe {
            bpf_probe_read_kernel(
                value.as_mut_ptr().cast(),
                size_of::<T>() as u32,
                base.wrapping_add(offset as usize).cast(),
            );
            value.assume_init()
        }
    }
}

const ETH_P_IP: u16 = 0x0800;
const ETH_P_IPV6: u16 = 0x86dd;

/// Bytes read at once: an IPv6 header and the ports behind it.
const HEAD: usize = 48;

/// IPv6 extension headers we step over. More than any honest packet has; each costs one read.
const EXTENSIONS: usize = 4;

/// What the key and the exemplar need of a packet.
pub struct Packet {
    /// First byte of the IP header.
    pub header: *const u8,
    /// Bytes of linear data from there.
    pub available: u32,
    /// Offset of the layer 4 header, 0 when this fragment has none.
    pub transport: u32,
    /// The header's bytes as they lie in memory; IPv4 is the low half of the first word.
    pub source: [u64; 2],
    pub destination: [u64; 2],
    pub source_port: u16,
    pub destination_port: u16,
    pub protocol: u8,
    pub version: u8,
}

impl Packet {
    /// The same, of which the verifier knows nothing: see [`forgotten`].
    #[inline(always)]
    pub fn forgotten(self, any: u64) -> Self {
        Self {
            header: self.header,
            available: self.available,
            transport: forgotten(u64::from(self.transport), any) as u32,
            source: [self.source[0], forgotten(self.source[1], any)],
            destination: [self.destination[0], forgotten(self.destination[1], any)],
            source_port: forgotten(u64::from(self.source_port), any) as u16,
            destination_port: forgotten(u64::from(self.destination_port), any) as u16,
            protocol: forgotten(u64::from(self.protocol), any) as u8,
            version: forgotten(u64::from(self.version), any) as u8,
        }
    }

    /// `FLAG_DESTINATION` when the service side, which is the lower port, is the destination.
    #[inline(always)]
    pub fn side(&self) -> u8 {
        if self.destination_port <= self.source_port { FLAG_DESTINATION } else { 0 }
    }
}

/// `value`, which the verifier takes for any number when it knows nothing of `any`.
///
/// It walks through what follows once for each constant that a branch has left in a register: the ways to read a packet times
/// the ways to find its place times the ways to count it, which was more than the million instructions that it walks. Two
/// cycles make all ways one.
#[inline(always)]
pub fn forgotten(value: u64, any: u64) -> u64 {
    let mut hidden = value;
    // SAFETY: changes one register, twice by the same bits.
    unsafe { asm!("{0} ^= {1}", "{0} ^= {1}", inout(reg) hidden, in(reg) any, options(pure, nomem, nostack)) };
    hidden
}

pub enum Parsed {
    Ip(Packet),
    /// Not IP, or says so, but its header is not there: its EtherType.
    Frame(u16),
    /// No network packet.
    Foreign,
}

pub fn is_ip(ether_type: u16) -> bool {
    matches!(ether_type, ETH_P_IP | ETH_P_IPV6)
}

/// Reads addresses, protocol and ports. Never trusts a length: a field counts only when it ends before `skb->tail`.
///
/// # Safety
/// `skb` must be a `struct sk_buff`.
#[inline(always)]
pub unsafe fn packet<L: Load>(skb: *const u8) -> Parsed {
    let protocol = u16::from_be(unsafe { L::load::<u16>(skb, O_SKB_PROTOCOL.load()) });
    if !is_ip(protocol) {
        return if protocol == 0 { Parsed::Foreign } else { Parsed::Frame(protocol) };
    }
    unsafe {
        at::<L>(
            skb,
            protocol,
            L::load::<u64>(skb, O_SKB_HEAD.load()),
            u32::from(L::load::<u16>(skb, O_SKB_NETWORK.load())),
        )
    }
}

/// The same of a packet that a device hands over: its data begins with the IP header, which nobody has looked for yet.
///
/// # Safety
/// `skb` must be a `struct sk_buff`.
#[inline(always)]
pub unsafe fn arriving<L: Load>(skb: *const u8) -> Parsed {
    let protocol = u16::from_be(unsafe { L::load::<u16>(skb, O_SKB_PROTOCOL.load()) });
    if !is_ip(protocol) {
        return if protocol == 0 { Parsed::Foreign } else { Parsed::Frame(protocol) };
    }
    unsafe {
        let head = L::load::<u64>(skb, O_SKB_HEAD.load());
        at::<L>(skb, protocol, head, L::load::<u64>(skb, O_SKB_DATA.load()).wrapping_sub(head) as u32)
    }
}

/// The packet whose IP header lies `network` bytes behind `head`.
#[inline(always)]
unsafe fn at<L: Load>(skb: *const u8, protocol: u16, head: u64, network: u32) -> Parsed {
    let tail = unsafe { L::load::<u32>(skb, O_SKB_TAIL.load()) };
    // 20 is the least either version needs; an unset network header is 0xffff or 0.
    if head == 0 || network == 0 || tail < network || tail - network < 20 {
        return Parsed::Frame(protocol);
    }
    let available = tail - network;
    let header = (head + u64::from(network)) as *const u8;
    // May read past the tail, but not past the buffer: `skb_shared_info` follows it. The bytes there are not used.
    let mut words = MaybeUninit::<[u64; HEAD / 8]>::uninit();
    if unsafe { bpf_probe_read_kernel(words.as_mut_ptr().cast(), HEAD as u32, header.cast()) } != 0 {
        return Parsed::Frame(protocol);
    }
    let words = unsafe { words.assume_init() };
    if protocol == ETH_P_IP { ipv4(header, available, &words) } else { ipv6(header, available, &words) }
}

/// Byte `n` of the header. The programs are built for little-endian kernels only.
#[inline(always)]
fn byte(words: &[u64; HEAD / 8], n: usize) -> u8 {
    (words[n / 8] >> (8 * (n % 8))) as u8
}

/// The 16-bit number at even byte `n`.
#[inline(always)]
fn number(words: &[u64; HEAD / 8], n: usize) -> u16 {
    (u16::from(byte(words, n)) << 8) | u16::from(byte(words, n + 1))
}

/// RFC 791.
#[inline(always)]
fn ipv4(header: *const u8, available: u32, words: &[u64; HEAD / 8]) -> Parsed {
    let first = byte(words, 0);
    let length = u32::from(first & 0xf) * 4;
    if first >> 4 != 4 || length < 20 || available < length {
        return Parsed::Frame(ETH_P_IP);
    }
    let protocol = byte(words, 9);
    // Only the first fragment (offset 0) has a layer 4 header.
    let transport = if number(words, 6) & 0x1fff == 0 { length } else { 0 };
    let mut ports = (0, 0);
    if has_ports(protocol) && transport != 0 && available >= transport + 4 {
        ports = if transport == 20 { (number(words, 20), number(words, 22)) } else { ports_at(header, transport) };
    }
    // Bytes 12..16 are the high half of word 1, bytes 16..20 the low half of word 2 (little endian).
    Parsed::Ip(Packet {
        header,
        available,
        transport,
        source: [words[1] >> 32, 0],
        destination: [words[2] & 0xffff_ffff, 0],
        source_port: ports.0,
        destination_port: ports.1,
        protocol,
        version: 4,
    })
}

/// RFC 8200, with its extension headers and RFC 4302's.
#[inline(always)]
fn ipv6(header: *const u8, available: u32, words: &[u64; HEAD / 8]) -> Parsed {
    if byte(words, 0) >> 4 != 6 || available < 40 {
        return Parsed::Frame(ETH_P_IPV6);
    }
    let mut protocol = byte(words, 6);
    let mut transport = 40;
    let mut fragment = false;
    for _ in 0..EXTENSIONS {
        // Hop-by-hop, routing, fragment, authentication, destination options.
        if !matches!(protocol, 0 | 43 | 44 | 51 | 60) || fragment || available < transport + 8 {
            break;
        }
        // Next header, length, and for fragments their offset in units of 8 bytes above three flag bits.
        let words = unsafe { Probed::load::<u32>(header, transport) };
        let length = (words >> 8) & 0xff;
        match protocol {
            44 => {
                fragment = ((words >> 16) as u16).swap_bytes() & 0xfff8 != 0;
                transport += 8;
            }
            51 => transport += (length + 2) * 4,
            _ => transport += (length + 1) * 8,
        }
        protocol = words as u8;
    }
    let mut ports = (0, 0);
    if has_ports(protocol) && !fragment && available >= transport + 4 {
        ports = if transport == 40 { (number(words, 40), number(words, 42)) } else { ports_at(header, transport) };
    }
    Parsed::Ip(Packet {
        header,
        available,
        transport: if fragment { 0 } else { transport },
        source: [words[1], words[2]],
        destination: [words[3], words[4]],
        source_port: ports.0,
        destination_port: ports.1,
        protocol,
        version: 6,
    })
}

/// TCP, UDP, DCCP, SCTP, UDP-Lite: two port numbers come first.
#[inline(always)]
fn has_ports(protocol: u8) -> bool {
    matches!(protocol, 6 | 17 | 33 | 132 | 136)
}

#[inline(always)]
fn ports_at(header: *const u8, transport: u32) -> (u16, u16) {
    let both = u32::from_be(unsafe { Probed::load::<u32>(header, transport) });
    ((both >> 16) as u16, both as u16)
}

/// Where a packet is: on which side of which interface of which namespace.
pub struct Place {
    /// 0 when the packet leads to no namespace.
    pub netns: u64,
    /// 0 when the packet has neither device nor route.
    pub ifindex: u32,
    /// `FLAG_RECEIVED`, `FLAG_CROSSED`, `FLAG_ROUTED`.
    pub flags: u8,
}

impl Place {
    /// The same, of which the verifier knows nothing: see [`forgotten`].
    #[inline(always)]
    pub fn forgotten(self, any: u64) -> Self {
        Self {
            netns: forgotten(self.netns, any),
            ifindex: forgotten(u64::from(self.ifindex), any) as u32,
            flags: forgotten(u64::from(self.flags), any) as u8,
        }
    }
}

/// The namespace and interface of a packet: its device's, else its socket's, else its route's.
///
/// `skb->dev` shares its place with `dev_scratch`, which UDP uses for lengths while a packet is queued on a socket; such
/// a number is no kernel address, reads as zeroes, and the socket decides.
///
/// # Safety
/// `skb` must be a `struct sk_buff`.
#[inline(always)]
pub unsafe fn place<L: Load>(skb: *const u8) -> Place {
    unsafe {
        let received_by = L::load::<u32>(skb, O_SKB_IIF.load());
        // `_skb_refdst` is a number to the verifier: a pointer with a flag in its lowest bit (SKB_DST_NOREF).
        let route = (L::load::<u64>(skb, O_SKB_DST.load()) & !1) as *const u8;
        let mut flags = if received_by == 0 { 0 } else { FLAG_RECEIVED };
        if !route.is_null() {
            flags |= FLAG_ROUTED;
        }
        let device = L::load::<*const u8>(skb, O_SKB_DEV.load());
        if !device.is_null() {
            let netns = net_id::<L>(L::load::<*const u8>(device, O_DEV_NET.load()));
            if netns != 0 {
                let ifindex = L::load::<u32>(device, O_DEV_IFINDEX.load());
                if received_by != 0 && received_by != ifindex {
                    flags |= FLAG_CROSSED;
                }
                return Place { netns, ifindex, flags };
            }
        }
        let socket = L::load::<*const u8>(skb, O_SKB_SK.load());
        if !socket.is_null() {
            let netns = net_id::<L>(L::load::<*const u8>(socket, O_SOCK_NET.load()));
            if netns != 0 {
                return Place { netns, ifindex: 0, flags };
            }
        }
        if route.is_null() {
            return Place { netns: 0, ifindex: 0, flags };
        }
        let device = Probed::load::<*const u8>(route, O_DST_DEV.load());
        let netns = net_id::<Probed>(Probed::load::<*const u8>(device, O_DEV_NET.load()));
        Place { netns, ifindex: Probed::load::<u32>(device, O_DEV_IFINDEX.load()), flags }
    }
}

/// The namespace of a packet's socket; 0 when it has none.
///
/// # Safety
/// `skb` must be a `struct sk_buff`.
#[inline(always)]
pub unsafe fn socket_netns(skb: *const u8) -> u64 {
    unsafe {
        let socket = Probed::load::<*const u8>(skb, O_SKB_SK.load());
        net_id::<Probed>(Probed::load::<*const u8>(socket, O_SOCK_NET.load()))
    }
}

/// The namespace's number, 0 for none.
///
/// # Safety
/// `net` must be a `struct net`, or null.
#[inline(always)]
pub unsafe fn net_id<L: Load>(net: *const u8) -> u64 {
    if net.is_null() {
        return 0;
    }
    if NETNS_IS_COOKIE.load() == 1 {
        unsafe { L::load::<u64>(net, O_NET_ID.load()) }
    } else {
        u64::from(unsafe { L::load::<u32>(net, O_NET_ID.load()) })
    }
}
