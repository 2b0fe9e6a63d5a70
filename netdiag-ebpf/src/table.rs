//! Counting by key in the tables of `netdiag_common::record::table`.

use core::hint::black_box;

use aya_ebpf::Global;
use netdiag_common::record::table::{Slot, WAYS};

/// Possible CPUs: the rows of one epoch.
#[unsafe(no_mangle)]
pub static CPUS: Global<u32> = Global::new(1);
/// Nanoseconds of one jiffy.
#[unsafe(no_mangle)]
pub static TICK_NS: Global<u64> = Global::new(0);
/// Random per load: who sends packets chooses the keys, and must not be able to choose the set.
#[unsafe(no_mangle)]
pub static SEED: Global<u64> = Global::new(0);

/// Multiply-mix over the key's words.
#[inline(always)]
pub fn mix<const WORDS: usize>(key: &[u64; WORDS]) -> u64 {
    let mut hash = SEED.load();
    let mut i = 0;
    while i < WORDS {
        hash = (hash ^ key[i]).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        hash ^= hash >> 32;
        i += 1;
    }
    hash
}

/// The set where a key is counted.
#[inline(always)]
pub fn set(row: u32, mask: u32, hash: u64) -> u32 {
    row * (mask + 1) + (hash as u32 & mask)
}

/// What became of an event in a set.
#[derive(Clone, Copy)]
pub enum Added {
    Known,
    /// Into an empty slot, this one.
    Fresh(usize),
    /// The set has four other keys.
    Full,
}

/// Adds one event to its key's slot. `amount` is summed: bytes, or microseconds.
///
/// Where in the set the search begins is the hash's choice: as long as a table is not full, most keys lie where they are
/// looked for first, so the branch is predicted and one cache line is enough.
///
/// # Safety
/// No other program writes this set at the same time.
#[inline(always)]
pub unsafe fn put<const WORDS: usize>(
    set: Option<*mut [Slot<WORDS>; WAYS]>,
    hash: u64,
    key: &[u64; WORDS],
    amount: u64,
    now_ns: u64,
) -> Added {
    let Some(set) = set else { return Added::Full };
    let set = set.cast::<Slot<WORDS>>();
    let mut step = 0;
    let way = loop {
        if step == WAYS {
            return Added::Full;
        }
        // Below `WAYS`, which the verifier must see.
        let way = ((hash >> 32) as usize).wrapping_add(step) & (WAYS - 1);
        let slot = unsafe { &*set.add(way) };
        if same(&slot.key, key) || slot.packets == 0 {
            break way;
        }
        step += 1;
    };
    // One end for all ways: the verifier need not follow what comes behind once for each.
    let slot = unsafe { &mut *set.add(black_box(way) & (WAYS - 1)) };
    if slot.packets == 0 {
        slot.key = *key;
        slot.bytes = amount;
        slot.first_ns = now_ns;
        slot.last_ns = now_ns;
        slot.packets = 1;
        return Added::Fresh(way);
    }
    slot.packets += 1;
    slot.bytes += amount;
    slot.last_ns = now_ns;
    Added::Known
}

/// Word by word (`==` on arrays becomes a call to memcmp, byte by byte), and with one branch: the verifier follows each.
#[inline(always)]
fn same<const WORDS: usize>(one: &[u64; WORDS], other: &[u64; WORDS]) -> bool {
    let mut differ = 0;
    let mut i = 0;
    while i < WORDS {
        differ |= one[i] ^ other[i];
        i += 1;
    }
    differ == 0
}
