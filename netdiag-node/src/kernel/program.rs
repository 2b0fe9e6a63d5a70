//! Loads and attaches the programs, and asks the kernel what it did with them.

use std::io;
use std::mem::offset_of;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use aya::maps::{Map, MapData, RingBuf};
use aya::programs::{BtfTracePoint, ProgramError, RawTracePoint};
use aya::{Ebpf, EbpfLoader};
use netdiag_common::record::kfree_skb::{Counters, CpuState, SHOWN, SlotV4, SlotV6, WAYS};

use super::LoadError;
use super::failure::{errno, failed, shortened};
use super::layout::Globals;
use super::table::Table;

/// The object file, empty when the agent was built without it (see `build.rs`).
static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/netdiag-ebpf"));

/// One more exemplar per CPU every 100 ms, up to 32 saved: a reader's handful, and 40 µs a second (4 µs each, with stack).
const TOKEN_NS: u64 = 100_000_000;
const BURST: u64 = 32;

/// How many sets of four keys each CPU has per epoch. Powers of two.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TableSize {
    pub ipv4: u32,
    pub ipv6: u32,
    pub coarse: u32,
}

impl TableSize {
    /// 16 384 IPv4 and 4096 IPv6 keys per CPU (3 MiB with both epochs), less on machines with many CPUs.
    pub fn for_cpus(cpus: usize) -> Self {
        /// All CPUs together: a node's agent must stay small on 128 CPUs too, and there each CPU sees fewer flows.
        const BUDGET_BYTES: usize = 24 << 20;
        let mut size = Self { ipv4: 4096, ipv6: 1024, coarse: 64 };
        while size.bytes(cpus) > BUDGET_BYTES && size.ipv6 > 16 {
            size = Self { ipv4: size.ipv4 / 2, ipv6: size.ipv6 / 2, coarse: size.coarse.max(32) / 2 };
        }
        size
    }

    fn bytes(self, cpus: usize) -> usize {
        let v4 = (self.ipv4 + self.coarse) as usize * WAYS * size_of::<SlotV4>();
        let v6 = self.ipv6 as usize * WAYS * size_of::<SlotV6>();
        2 * cpus * (v4 + v6 + size_of::<Counters>())
    }
}

/// The programs in the kernel, with their tables in our memory. Dropping it removes all of it.
pub(super) struct Loaded {
    pub attach: &'static str,
    pub cpus: usize,
    pub size: TableSize,
    pub states: Table<CpuState>,
    pub counters: Table<Counters>,
    pub ipv4: Table<SlotV4>,
    pub ipv6: Table<SlotV6>,
    pub coarse: Table<SlotV4>,
    pub exemplars: RingBuf<MapData>,
    program: OwnedFd,
    #[cfg(feature = "debug")]
    log: DebugLog,
    _programs: Ebpf,
}

/// None when the programs were built without their feature `debug`.
#[cfg(feature = "debug")]
type DebugLog = Option<aya_log::EbpfLogger<&'static dyn log::Log>>;

type Attached = (&'static str, OwnedFd);

pub(super) fn load(globals: &Globals, size: TableSize) -> Result<Loaded, LoadError> {
    load_by(globals, size, attach)
}

fn load_by(
    globals: &Globals,
    size: TableSize,
    attach: impl FnOnce(&mut Ebpf, &aya::Btf) -> Result<Attached, LoadError>,
) -> Result<Loaded, LoadError> {
    if OBJECT.is_empty() {
        return Err(LoadError::NotBuilt);
    }
    lift_memory_limit();
    let cpus = aya::util::nr_cpus()
        .map_err(|(path, error)| LoadError::Failed { step: format!("count CPUs in {path}"), why: error.to_string() })?;
    let cpus_u32 = u32::try_from(cpus).expect("a kernel has fewer than 2^32 CPUs");
    // aya needs the kernel's types itself, to find the tracepoint's. Parsed once, dropped at the end of this function.
    let types = aya::Btf::from_sys_fs().map_err(|error| LoadError::Failed {
        step: "read /sys/kernel/btf/vmlinux".to_owned(),
        why: error.to_string(),
    })?;
    let tick_ns = tick_ns();
    let token_ticks = (TOKEN_NS / tick_ns).max(1);
    let (masks, seed) = ([size.ipv4 - 1, size.ipv6 - 1, size.coarse - 1], random());
    let mut loader = EbpfLoader::new();
    loader
        .btf(Some(&types))
        .override_global("CPUS", &cpus_u32, true)
        .override_global("MASK_IPV4", &masks[0], true)
        .override_global("MASK_IPV6", &masks[1], true)
        .override_global("MASK_COARSE", &masks[2], true)
        .override_global("SEED", &seed, true)
        .override_global("TICK_NS", &tick_ns, true)
        .override_global("TOKEN_TICKS", &token_ticks, true)
        .override_global("BURST", &BURST, true)
        .map_max_entries("KFREE_CPUS", cpus_u32)
        .map_max_entries("KFREE_COUNTERS", 2 * cpus_u32)
        .map_max_entries("KFREE_IPV4", 2 * cpus_u32 * size.ipv4)
        .map_max_entries("KFREE_IPV6", 2 * cpus_u32 * size.ipv6)
        .map_max_entries("KFREE_COARSE", 2 * cpus_u32 * size.coarse)
        .map_max_entries("KFREE_SHOWN", cpus_u32 * SHOWN)
        .map_max_entries("KFREE_EXEMPLARS", ring_bytes(cpus));
    for (name, value) in globals {
        loader.override_global(name, value, true);
    }
    let mut programs = loader.load(OBJECT).map_err(|error| failed("create the kernel programs' tables", &error))?;
    let (attach, program) = attach(&mut programs, &types)?;
    let sets = |sets: u32| 2 * cpus * sets as usize * WAYS;
    Ok(Loaded {
        attach,
        cpus,
        size,
        states: table(&mut programs, "KFREE_CPUS", cpus)?,
        counters: table(&mut programs, "KFREE_COUNTERS", 2 * cpus)?,
        ipv4: table(&mut programs, "KFREE_IPV4", sets(size.ipv4))?,
        ipv6: table(&mut programs, "KFREE_IPV6", sets(size.ipv6))?,
        coarse: table(&mut programs, "KFREE_COARSE", sets(size.coarse))?,
        exemplars: ring(&mut programs)?,
        program,
        #[cfg(feature = "debug")]
        log: aya_log::EbpfLogger::init(&mut programs).ok(),
        _programs: programs,
    })
}

impl Loaded {
    /// Passes on what the programs logged since the last call.
    #[cfg(feature = "debug")]
    pub(super) fn print_log(&mut self) {
        if let Some(log) = &mut self.log {
            log.flush();
        }
    }

    /// Runs that the kernel skipped since the program was loaded because it was already running on that CPU
    /// (`bpf_prog_info.recursion_misses`, Linux 5.12). 0 on kernels that do not say; there `CpuState::nested` counts.
    pub(super) fn recursion_misses(&self) -> u64 {
        program_info(self.program.as_fd()).map_or(0, |info| info.recursion_misses)
    }
}

/// tp_btf first: it loads kernel fields directly. A raw tracepoint reads each by a helper, but asks less of the kernel.
fn attach(programs: &mut Ebpf, types: &aya::Btf) -> Result<Attached, LoadError> {
    let by_types = attach_tp_btf(programs, types);
    let error = match by_types {
        Ok(program) => return Ok(("tp_btf", program)),
        Err(error) => error,
    };
    match attach_raw_tracepoint(programs) {
        Ok(program) => Ok(("raw_tracepoint", program)),
        Err(raw) if errno(&raw) == Some(libc::EPERM) => {
            Err(LoadError::NotPermitted { step: "attach to tracepoint kfree_skb".to_owned() })
        }
        Err(raw) => Err(LoadError::Failed {
            step: "attach to tracepoint kfree_skb".to_owned(),
            why: format!("tp_btf: {}; raw_tracepoint: {}", shortened(&error), shortened(&raw)),
        }),
    }
}

fn attach_tp_btf(programs: &mut Ebpf, types: &aya::Btf) -> Result<OwnedFd, ProgramError> {
    let program: &mut BtfTracePoint =
        programs.program_mut("netdiag_kfree_skb").ok_or(ProgramError::NotLoaded)?.try_into()?;
    program.load("kfree_skb", types)?;
    program.attach()?;
    owned(program.fd()?.as_fd())
}

fn attach_raw_tracepoint(programs: &mut Ebpf) -> Result<OwnedFd, ProgramError> {
    let program: &mut RawTracePoint =
        programs.program_mut("netdiag_kfree_raw").ok_or(ProgramError::NotLoaded)?.try_into()?;
    program.load()?;
    program.attach("kfree_skb")?;
    owned(program.fd()?.as_fd())
}

fn owned(program: BorrowedFd<'_>) -> Result<OwnedFd, ProgramError> {
    program.try_clone_to_owned().map_err(ProgramError::IOError)
}

fn table<T: Copy>(programs: &mut Ebpf, name: &'static str, rows: usize) -> Result<Table<T>, LoadError> {
    let step = || format!("map table {name} into memory");
    let Some(Map::Array(map)) = programs.map(name) else {
        return Err(LoadError::Failed { step: step(), why: "the object has no such array".to_owned() });
    };
    Table::map(map.fd().as_fd(), rows).map_err(|error| LoadError::Failed { step: step(), why: error.to_string() })
}

fn ring(programs: &mut Ebpf) -> Result<RingBuf<MapData>, LoadError> {
    let step = "open the ring of exemplars";
    let map = programs
        .take_map("KFREE_EXEMPLARS")
        .ok_or_else(|| LoadError::Failed { step: step.to_owned(), why: "the object has no such map".to_owned() })?;
    RingBuf::try_from(map).map_err(|error| failed(step, &error))
}

/// Room for 10 s of exemplars of all CPUs (132 each of 216 bytes), between 64 KiB and 1 MiB.
fn ring_bytes(cpus: usize) -> u32 {
    let bytes = (cpus * (32 << 10)).next_power_of_two().clamp(64 << 10, 1 << 20);
    u32::try_from(bytes).expect("clamped to 1 MiB")
}

/// Before Linux 5.11 maps count against `RLIMIT_MEMLOCK`. When it cannot be lifted, loading says so.
fn lift_memory_limit() {
    let limit = libc::rlimit { rlim_cur: libc::RLIM_INFINITY, rlim_max: libc::RLIM_INFINITY };
    // SAFETY: passes a valid structure, changes only this process's limit.
    unsafe { libc::setrlimit(libc::RLIMIT_MEMLOCK, &raw const limit) };
}

/// Length of a jiffy: the resolution of the clock that only moves with them.
fn tick_ns() -> u64 {
    /// `CONFIG_HZ=250`, the most common.
    const COMMON: u64 = 4_000_000;
    nix::time::clock_getres(nix::time::ClockId::CLOCK_MONOTONIC_COARSE)
        .ok()
        .and_then(|tick| u64::try_from(tick.tv_nsec()).ok())
        .filter(|tick| *tick > 0)
        .unwrap_or(COMMON)
}

fn random() -> u64 {
    let mut seed = [0_u8; 8];
    // SAFETY: the buffer has the length that is passed. Without entropy the seed stays 0, and only the hash is guessable.
    unsafe { libc::getrandom(seed.as_mut_ptr().cast(), seed.len(), 0) };
    u64::from_ne_bytes(seed)
}

/// `struct bpf_prog_info` up to what we read (include/uapi/linux/bpf.h, Linux 6.18). Unread fields are words.
#[repr(C)]
#[derive(Clone, Copy)]
struct ProgramInfo {
    _unread: [u64; 26],
    recursion_misses: u64,
    /// In its low half, since Linux 5.16. Only the tests look: it shows that the fields lie where we think.
    verified_instructions: u64,
}
const _: () = assert!(offset_of!(ProgramInfo, recursion_misses) == 208);

/// `union bpf_attr`, the `info` member.
#[repr(C)]
struct InfoRequest {
    fd: u32,
    length: u32,
    info: u64,
}

fn program_info(program: BorrowedFd<'_>) -> io::Result<ProgramInfo> {
    const BPF_OBJ_GET_INFO_BY_FD: libc::c_int = 15;
    let mut info = ProgramInfo { _unread: [0; 26], recursion_misses: 0, verified_instructions: 0 };
    let request = InfoRequest {
        fd: program.as_raw_fd().cast_unsigned(),
        length: u32::try_from(size_of::<ProgramInfo>()).expect("224 bytes"),
        info: (&raw mut info).expose_provenance() as u64,
    };
    // SAFETY: the kernel writes at most `length` bytes to `info`, and reads `request` of the given size. All pointers in
    // `info` are 0 with counts of 0, so it follows none.
    let result =
        unsafe { libc::syscall(libc::SYS_bpf, BPF_OBJ_GET_INFO_BY_FD, &raw const request, size_of::<InfoRequest>()) };
    if result == 0 { Ok(info) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::{btf, layout};

    #[test]
    fn program_info_lies_where_the_kernel_writes_it() {
        let test = "program_info_lies_where_the_kernel_writes_it";
        let Some(loaded) = loaded(test, |_, _| (), attach) else { return };
        let info = program_info(loaded.program.as_fd()).unwrap();
        let path = format!("/proc/self/fdinfo/{}", loaded.program.as_raw_fd());
        #[expect(clippy::disallowed_methods, reason = "the kernel's own text, to compare with")]
        let text = std::fs::read_to_string(path).unwrap();
        let number = |name: &str| {
            let line = text.lines().find(|line| line.starts_with(name))?;
            line.split_whitespace().nth(1)?.parse::<u64>().ok()
        };
        assert_eq!(number("recursion_misses:"), Some(info.recursion_misses));
        assert_eq!(number("verified_insns:"), Some(info.verified_instructions & 0xffff_ffff));
        assert!(info.verified_instructions > 100);
    }

    #[test]
    fn tables_stay_small_on_many_cpus() {
        assert_eq!(TableSize::for_cpus(2), TableSize { ipv4: 4096, ipv6: 1024, coarse: 64 });
        for cpus in [1, 2, 8, 16, 64, 128, 512] {
            let size = TableSize::for_cpus(cpus);
            assert!(size.ipv4.is_power_of_two() && size.ipv6.is_power_of_two() && size.coarse.is_power_of_two());
            assert!(size.bytes(cpus) <= 40 << 20, "{} bytes on {cpus} CPUs", size.bytes(cpus));
        }
    }

    /// Loads with this kernel's layout after `change`; none, said loudly, where that is not possible.
    fn loaded(
        test: &str,
        change: impl FnOnce(&mut Globals, &btf::Btf<'_>),
        attach: impl FnOnce(&mut Ebpf, &aya::Btf) -> Result<Attached, LoadError>,
    ) -> Option<Loaded> {
        let bytes = crate::host::kernel::btf().map_err(|error| eprintln!("netdiag-skip: {test}: {error}")).ok()?;
        let btf = btf::parse(&bytes).unwrap();
        let mut globals = layout::globals(&btf).unwrap();
        change(&mut globals, &btf);
        match load_by(&globals, TableSize::for_cpus(2), attach) {
            Ok(loaded) => Some(loaded),
            Err(error @ (LoadError::NotBuilt | LoadError::NotPermitted { .. })) => {
                eprintln!("netdiag-skip: {test}: {error}");
                None
            }
            Err(error) => panic!("{error}"),
        }
    }

    /// Drops ten packets and says how many were counted with a full key.
    fn attributed(loaded: &Loaded) -> u64 {
        let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        for _ in 0..10 {
            socket.send_to(b"dropped", "127.0.0.1:9").unwrap();
        }
        (0..loaded.cpus).map(|row| loaded.counters.read(row).attributed).sum()
    }

    #[test]
    fn the_raw_tracepoint_counts_as_well() {
        let attach = |programs: &mut Ebpf, _: &aya::Btf| {
            attach_raw_tracepoint(programs)
                .map(|program| ("raw_tracepoint", program))
                .map_err(|error| failed("attach", &error))
        };
        let Some(loaded) = loaded("the_raw_tracepoint_counts_as_well", |_, _| (), attach) else { return };
        assert_eq!(loaded.attach, "raw_tracepoint");
        assert!(attributed(&loaded) >= 10);
    }

    /// As before Linux 5.17, which passes no reason, and before 5.12, which has no cookies.
    #[test]
    fn kernels_without_reason_and_cookie_count_as_well() {
        let as_old = |globals: &mut Globals, btf: &btf::Btf<'_>| {
            globals.retain(|(name, _)| !["HAS_REASON", "NETNS_IS_COOKIE", "O_NET_ID"].contains(name));
            let inode = btf.member("net", "ns.inum").unwrap().offset;
            globals.extend([("HAS_REASON", 0), ("NETNS_IS_COOKIE", 0), ("O_NET_ID", inode)]);
        };
        let test = "kernels_without_reason_and_cookie_count_as_well";
        let Some(loaded) = loaded(test, as_old, attach) else { return };
        assert!(attributed(&loaded) >= 10);
    }
}
