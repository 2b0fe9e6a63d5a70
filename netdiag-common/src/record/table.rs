//! Tables that several hooks count in: per CPU, in two epochs, of four-way sets.
//!
//! Everything the programs count exists twice, once per epoch, and once per CPU: row `epoch * cpus + cpu`. The agent
//! flips the epoch, waits until no program still writes the old half, sums that half and clears it, so one reading is
//! exact while packets keep coming.
//!
//! SPDX-License-Identifier: MIT OR GPL-2.0-only

/// Slots in one set: a key lives in one of four places, so a lookup touches at most four cache lines.
pub const WAYS: usize = 4;

/// Groups of devices that do not take each other's budget.
pub const SHARES: usize = 8;

/// What one CPU writes without epochs. The agent writes `epoch` and nothing else here.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct CpuState {
    /// 0 or 1: the half that this CPU's programs write.
    pub epoch: u32,
    /// 1 while a program runs on this CPU. Kernels before 6.1 let an interrupt start a second one.
    pub busy: u32,
    /// Events that met `busy` and were not counted elsewhere.
    pub nested: u64,
    /// Exemplars that may still be sent.
    pub tokens: u64,
    /// Jiffies and monotonic clock of the token bucket's last refill.
    pub refilled_ticks: u64,
    pub refilled_ns: u64,
    /// What may still be taken apart of the packets of each group of devices.
    pub shares: [u16; SHARES],
    pub pad: u64,
}
const _: () = assert!(size_of::<CpuState>() == 64);

/// One key and its count. Empty while `packets` is 0.
///
/// Aligned to a cache line: the seven-word slot has a tail of 40 bytes that nobody reads.
#[repr(C, align(64))]
#[derive(Clone, Copy)]
pub struct Slot<const WORDS: usize> {
    pub key: [u64; WORDS],
    pub packets: u64,
    /// Summed over the packets: their `skb->len`, or what else the hook measures.
    pub bytes: u64,
    /// Monotonic clock of the first and the last packet in this epoch, to one jiffy.
    pub first_ns: u64,
    pub last_ns: u64,
}

/// IPv4 and coarse keys: namespace, addresses (source in the high half), place, service.
pub const WORDS_V4: usize = 4;
/// IPv6 keys: namespace, source (2), destination (2), place, service.
pub const WORDS_V6: usize = 7;

pub type SlotV4 = Slot<WORDS_V4>;
pub type SlotV6 = Slot<WORDS_V6>;
const _: () = assert!(size_of::<SlotV4>() == 64);
const _: () = assert!(size_of::<SlotV6>() == 128);
