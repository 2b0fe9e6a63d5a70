//! The tables. The agent sets how many rows each has when it loads them, and reads them by mmap.

use aya_ebpf::bindings::BPF_F_MMAPABLE;
use aya_ebpf::macros::map;
use aya_ebpf::maps::{Array, HashMap, RingBuf};
use netdiag_common::record::dns;
use netdiag_common::record::kfree_skb::{Counters, CpuState, SlotV4, SlotV6, TranslatedV4, TranslatedV6, WAYS};

/// By CPU.
#[map]
pub static KFREE_CPUS: Array<CpuState> = Array::with_max_entries(1, BPF_F_MMAPABLE);

/// By epoch, CPU.
#[map]
pub static KFREE_COUNTERS: Array<Counters> = Array::with_max_entries(2, BPF_F_MMAPABLE);

/// By epoch, CPU, hash of the key.
#[map]
pub static KFREE_IPV4: Array<[SlotV4; WAYS]> = Array::with_max_entries(2, BPF_F_MMAPABLE);
#[map]
pub static KFREE_IPV6: Array<[SlotV6; WAYS]> = Array::with_max_entries(2, BPF_F_MMAPABLE);
/// Beside the two above, row by row.
#[map]
pub static KFREE_DNAT4: Array<[TranslatedV4; WAYS]> = Array::with_max_entries(2, BPF_F_MMAPABLE);
#[map]
pub static KFREE_DNAT6: Array<[TranslatedV6; WAYS]> = Array::with_max_entries(2, BPF_F_MMAPABLE);
/// Sets of their own: among full keys a coarse key would find no room just when it is needed.
#[map]
pub static KFREE_COARSE: Array<[SlotV4; WAYS]> = Array::with_max_entries(2, BPF_F_MMAPABLE);
/// Of their own too: who sends frames chooses their EtherType, and must not crowd out coarse keys.
#[map]
pub static KFREE_FRAMES: Array<[SlotV4; WAYS]> = Array::with_max_entries(2, BPF_F_MMAPABLE);

/// By CPU, hash of the key: keys that had an exemplar lately.
#[map]
pub static KFREE_SHOWN: Array<u64> = Array::with_max_entries(1, 0);

#[map]
pub static KFREE_EXEMPLARS: RingBuf = RingBuf::with_byte_size(65536, 0);

/// By CPU.
#[map]
pub static DNS_CPUS: Array<CpuState> = Array::with_max_entries(1, BPF_F_MMAPABLE);

/// By epoch, CPU.
#[map]
pub static DNS_COUNTERS: Array<dns::Counters> = Array::with_max_entries(2, BPF_F_MMAPABLE);

#[map]
pub static DNS_OPEN: HashMap<dns::OpenKey, dns::Open> = HashMap::with_max_entries(1, 0);

#[map]
pub static DNS_GROUPS: HashMap<dns::GroupKey, dns::Group> = HashMap::with_max_entries(1, 0);
/// What a new group begins with: too large for a program's stack.
#[map]
pub static DNS_ZERO: Array<dns::Group> = Array::with_max_entries(1, 0);

#[map]
pub static DNS_SAMPLES: RingBuf = RingBuf::with_byte_size(65536, 0);
