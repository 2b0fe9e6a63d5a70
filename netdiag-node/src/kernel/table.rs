//! Tables shared with the kernel programs: array maps in this process's memory, and how to wait until a half is idle.

use std::io;
use std::marker::PhantomData;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr::{NonNull, addr_of_mut};
use std::sync::atomic::{AtomicU32, Ordering, fence};
use std::thread;
use std::time::{Duration, Instant};

use netdiag_common::record::kfree_skb::CpuState;

/// An array map created with `BPF_F_MMAPABLE` (Linux 5.5), mapped for reading and writing.
pub(super) struct Table<T> {
    start: NonNull<T>,
    rows: usize,
    bytes: usize,
    _rows: PhantomData<T>,
}

// SAFETY: the mapping is plain memory that belongs to this value alone; the kernel's writes do not care which thread reads.
unsafe impl<T: Send> Send for Table<T> {}

impl<T: Copy> Table<T> {
    /// Maps the first `rows` rows; the map must have at least that many, of `T`'s size.
    pub(super) fn map(map: BorrowedFd<'_>, rows: usize) -> io::Result<Self> {
        assert!(size_of::<T>().is_multiple_of(8), "the kernel keeps rows at multiples of 8 bytes");
        let bytes = rows * size_of::<T>();
        // SAFETY: a new shared mapping, no existing memory is touched; the result is checked.
        let start = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                bytes,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                map.as_raw_fd(),
                0,
            )
        };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let start = NonNull::new(start.cast()).ok_or_else(|| io::Error::from_raw_os_error(libc::ENOMEM))?;
        Ok(Self { start, rows, bytes, _rows: PhantomData })
    }

    /// Address of a row, for reading and writing single fields while programs may do the same.
    pub(super) fn row(&self, row: usize) -> *mut T {
        assert!(row < self.rows, "row {row} of {}", self.rows);
        // SAFETY: within the mapping, checked above.
        unsafe { self.start.as_ptr().add(row) }
    }

    /// A copy of a row that no program writes.
    pub(super) fn read(&self, row: usize) -> T {
        // SAFETY: `row` is within the mapping; the kernel's rows hold integers only, so any bytes are a `T`.
        unsafe { self.row(row).read_volatile() }
    }
}

impl<T> Drop for Table<T> {
    fn drop(&mut self) {
        // SAFETY: start and length are those of the mapping made in `map`.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.bytes) };
    }
}

/// Moves all CPUs to the other epoch and returns the one they left, once no program writes it any more.
pub(super) fn flip(cpus: &Table<CpuState>, count: usize) -> u32 {
    let left = epoch(cpus, 0).load(Ordering::Relaxed) & 1;
    for cpu in 0..count {
        // Release: what we cleared in the other half is seen before the programs are sent there.
        epoch(cpus, cpu).store(1 - left, Ordering::Release);
    }
    fence(Ordering::SeqCst);
    if !wait_for_rcu() {
        wait_for_idle(cpus, count);
    }
    left
}

fn epoch(cpus: &Table<CpuState>, cpu: usize) -> &AtomicU32 {
    // SAFETY: an aligned u32 inside the mapping, which outlives the borrow of `cpus`.
    unsafe { AtomicU32::from_ptr(addr_of_mut!((*cpus.row(cpu)).epoch)) }
}

fn busy(cpus: &Table<CpuState>, cpu: usize) -> &AtomicU32 {
    // SAFETY: as for `epoch`.
    unsafe { AtomicU32::from_ptr(addr_of_mut!((*cpus.row(cpu)).busy)) }
}

/// `MEMBARRIER_CMD_GLOBAL` is `synchronize_rcu()` (kernel/sched/membarrier.c, Linux 6.18), and tracing programs run inside
/// an RCU read section. Takes 10 to 20 ms. False where the kernel refuses it: `nohz_full`, or a seccomp filter.
fn wait_for_rcu() -> bool {
    const MEMBARRIER_CMD_GLOBAL: libc::c_int = 1;
    // SAFETY: takes three integers and touches no memory.
    unsafe { libc::syscall(libc::SYS_membarrier, MEMBARRIER_CMD_GLOBAL, 0, 0) == 0 }
}

/// The second choice: a program that read the old epoch has set `busy` before, so every CPU seen idle once has left it.
fn wait_for_idle(cpus: &Table<CpuState>, count: usize) {
    /// A program sets `busy` by a plain store; by now it has left the CPU's store buffer.
    const SETTLE: Duration = Duration::from_millis(2);
    /// A program runs for microseconds; one that never looks idle is a CPU in a storm that we keep missing.
    const LIMIT: Duration = Duration::from_millis(200);
    thread::sleep(SETTLE);
    let started = Instant::now();
    for cpu in 0..count {
        while busy(cpus, cpu).load(Ordering::Acquire) != 0 && started.elapsed() < LIMIT {
            std::hint::spin_loop();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::{AsFd, FromRawFd, OwnedFd};

    fn states(count: usize) -> Table<CpuState> {
        // SAFETY: a fresh anonymous file, whose descriptor we own from here.
        let file = unsafe { OwnedFd::from_raw_fd(libc::memfd_create(c"cpus".as_ptr(), 0)) };
        let bytes = i64::try_from(count * size_of::<CpuState>()).unwrap();
        // SAFETY: a valid descriptor and a length.
        assert_eq!(unsafe { libc::ftruncate(file.as_raw_fd(), bytes) }, 0);
        Table::map(file.as_fd(), count).unwrap()
    }

    #[test]
    fn all_cpus_move_together_and_back() {
        let cpus = states(3);
        assert_eq!(flip(&cpus, 3), 0);
        assert!((0..3).all(|cpu| cpus.read(cpu).epoch == 1));
        assert_eq!(flip(&cpus, 3), 1);
        assert!((0..3).all(|cpu| cpus.read(cpu).epoch == 0));
    }

    #[test]
    fn a_cpu_that_stays_busy_does_not_block_for_ever() {
        let cpus = states(2);
        busy(&cpus, 1).store(1, Ordering::Relaxed);
        let started = Instant::now();
        wait_for_idle(&cpus, 2);
        assert!(started.elapsed() < Duration::from_secs(2));
    }
}
