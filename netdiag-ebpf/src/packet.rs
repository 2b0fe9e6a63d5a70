//! Reading the IP header of a packet: its addresses, its protocol and its ports.

use core::mem::MaybeUninit;

use aya_ebpf::Global;
use aya_ebpf::helpers::generated::bpf_probe_read_kernel;
use netdiag_common::record::kfree_skb::FLAG_DESTINATION;

use crate::read::{Load, Probed, forgotten};

/// Offsets in bytes.
#[unsafe(no_mangle)]
static O_SKB_PROTOCOL: Global<u32> = Global::new(0);
#[unsafe(no_mangle)]
static O_SKB_NETWORK: Global<u32> = Global::new(0);
#[unsafe(no_mangle)]
static O_SKB_TAIL: Global<u32> = Global::new(0);
#[unsafe(no_mangle)]
static O_SKB_HEAD: Global<u32> = Global::new(0);
#[unsafe(no_mangle)]
static O_SKB_DATA: Global<u32> = Global::new(0);

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
