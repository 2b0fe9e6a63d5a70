//! The conntrack entry of a packet: `struct nf_conn` behind `skb->_nfct`, in the kernel's types since Linux 2.6.
//!
//! Reading it costs one load of the entry for tracked packets, and two more only where the caller asks for the translation.

use aya_ebpf::Global;
use netdiag_common::record::kfree_skb::{FLAG_TRACKED, FLAG_TRANSLATED, Translated};
use netdiag_common::record::tag::TupleKey;

use crate::read::{Load, Probed};

/// 0 on kernels without connection tracking, and where its types were not known when the programs were loaded.
#[unsafe(no_mangle)]
static HAS_CONNTRACK: Global<u32> = Global::new(0);
#[unsafe(no_mangle)]
static O_SKB_NFCT: Global<u32> = Global::new(0);
#[unsafe(no_mangle)]
static O_CT_STATUS: Global<u32> = Global::new(0);
/// Address and, behind 16 bytes, port: the destination of the original direction, and the source of the reply's.
#[unsafe(no_mangle)]
static O_CT_BEFORE: Global<u32> = Global::new(0);
#[unsafe(no_mangle)]
static O_CT_AFTER: Global<u32> = Global::new(0);
/// Of the original direction's tuple: the source like the destination, and the protocol's number.
#[unsafe(no_mangle)]
static O_CT_SOURCE: Global<u32> = Global::new(0);
#[unsafe(no_mangle)]
static O_CT_PROTOCOL: Global<u32> = Global::new(0);

/// `IP_CT_IS_REPLY` of the same file: states from it on are those of answers.
const IS_REPLY: u64 = 3;
/// `IP_CT_UNTRACKED`.
const UNTRACKED: u64 = 7;

/// `IPS_DST_NAT` of include/uapi/linux/netfilter/nf_conntrack_common.h.
const DST_NAT: u64 = 1 << 5;

/// `union nf_inet_addr`: ports lie behind it for either family.
const ADDRESS_BYTES: u32 = 16;

/// The packet's entry, null when it has none, and what it means for the key's flags.
///
/// # Safety
/// `skb` must be a `struct sk_buff`.
#[inline(always)]
pub unsafe fn entry<L: Load>(skb: *const u8) -> (*const u8, u8) {
    if HAS_CONNTRACK.load() == 0 {
        return (core::ptr::null(), 0);
    }
    // The lowest three bits are the packet's place in the connection; alone they mean that nobody tracks it.
    let entry = (unsafe { L::load::<u64>(skb, O_SKB_NFCT.load()) } & !7) as *const u8;
    if entry.is_null() {
        return (entry, 0);
    }
    let status = unsafe { Probed::load::<u64>(entry, O_CT_STATUS.load()) };
    (entry, if status & DST_NAT == 0 { FLAG_TRACKED } else { FLAG_TRACKED | FLAG_TRANSLATED })
}

/// The tuple that the packet's connection had when it began, and whether the packet is an answer of it.
///
/// # Safety
/// `skb` must be a `struct sk_buff`.
#[inline(always)]
pub unsafe fn original<L: Load>(skb: *const u8, version: u8) -> Option<(TupleKey, bool)> {
    if HAS_CONNTRACK.load() == 0 {
        return None;
    }
    let word = unsafe { L::load::<u64>(skb, O_SKB_NFCT.load()) };
    let (entry, state) = ((word & !7) as *const u8, word & 7);
    if entry.is_null() || state == UNTRACKED {
        return None;
    }
    unsafe {
        let key = TupleKey {
            source: Probed::load::<[u64; 2]>(entry, O_CT_SOURCE.load()),
            destination: Probed::load::<[u64; 2]>(entry, O_CT_BEFORE.load()),
            source_port: u16::from_be(Probed::load::<u16>(entry, O_CT_SOURCE.load() + ADDRESS_BYTES)),
            destination_port: u16::from_be(Probed::load::<u16>(entry, O_CT_BEFORE.load() + ADDRESS_BYTES)),
            protocol: Probed::load::<u8>(entry, O_CT_PROTOCOL.load()),
            version,
            pad: 0,
        };
        Some((key, state >= IS_REPLY))
    }
}

/// What DNAT made of the connection's destination.
///
/// # Safety
/// `entry` must be a `struct nf_conn`.
#[inline(always)]
pub unsafe fn translate<const WORDS: usize>(entry: *const u8, into: &mut Translated<WORDS>) {
    unsafe {
        let mut word = 0;
        while word < WORDS {
            into.before[word] = Probed::load::<u32>(entry, O_CT_BEFORE.load() + 4 * word as u32);
            into.after[word] = Probed::load::<u32>(entry, O_CT_AFTER.load() + 4 * word as u32);
            word += 1;
        }
        into.before_port = Probed::load::<u16>(entry, O_CT_BEFORE.load() + ADDRESS_BYTES);
        into.after_port = Probed::load::<u16>(entry, O_CT_AFTER.load() + ADDRESS_BYTES);
    }
}
