//! Reading kernel memory: where the fields are on this kernel, two ways to load them, and whose a packet is.
//!
//! The agent takes the offsets from the running kernel's BTF and writes them into these globals before the programs are
//! loaded. They are frozen, so that the verifier sees constants and removes the branches that this kernel does not need.

use core::arch::asm;
use core::mem::MaybeUninit;

use aya_ebpf::Global;
use aya_ebpf::helpers::generated::bpf_probe_read_kernel;
use netdiag_common::record::kfree_skb::{FLAG_CROSSED, FLAG_RECEIVED, FLAG_ROUTED};

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
