//! What the agent itself uses: CPU time, memory, descriptors, threads, and its programs in the kernel.

use std::path::Path;
use std::time::Duration;

use nix::time::{ClockId, clock_gettime};

use super::{ReadError, file};

/// Of the agent's process. CPU time is without the kernel programs, which run on whichever process they interrupt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Usage {
    pub cpu: Duration,
    pub resident_bytes: u64,
    pub descriptors: u64,
    pub threads: u64,
}

/// A program or map that the agent holds, as `/proc/self/fdinfo` shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum InKernel {
    Program {
        id: u32,
        memory_bytes: u64,
        /// 0 while the sysctl `kernel.bpf_stats_enabled` is 0.
        runs: u64,
        run_ns: u64,
    },
    Map {
        memory_bytes: u64,
    },
}

/// An agent has a few dozen descriptors; each probe two more.
const MAX_DESCRIPTORS: usize = 4_096;
/// Rows are short, but programs may list many of them.
const FDINFO_BYTES: u64 = 16 * 1024;
const STATUS_BYTES: u64 = 64 * 1024;

pub(crate) fn usage(proc: &Path) -> Result<Usage, ReadError> {
    let own = proc.join("self");
    let status = file::text(&own.join("status"), STATUS_BYTES)?;
    let number = |name: &str| number_of(&status, name).unwrap_or(0);
    Ok(Usage {
        cpu: cpu_time(),
        resident_bytes: number("VmRSS:") * 1024,
        descriptors: file::names(&own.join("fd"), MAX_DESCRIPTORS)?.len() as u64,
        threads: number("Threads:"),
    })
}

/// User and system time of all threads so far.
pub(crate) fn cpu_time() -> Duration {
    clock_gettime(ClockId::CLOCK_PROCESS_CPUTIME_ID).map_or(Duration::ZERO, Duration::from)
}

/// Every program and map that a descriptor of the agent holds.
pub(crate) fn in_kernel(proc: &Path) -> Result<Vec<InKernel>, ReadError> {
    let folder = proc.join("self/fdinfo");
    let names = file::names(&folder, MAX_DESCRIPTORS)?;
    // A descriptor may be closed meanwhile.
    let texts = names.iter().filter_map(|name| file::text(&folder.join(name), FDINFO_BYTES).ok());
    let mut found: Vec<InKernel> = texts.filter_map(|text| parse(&text)).collect();
    // Several descriptors may name one program.
    found.sort_by_key(|found| match found {
        InKernel::Program { id, .. } => Some(*id),
        InKernel::Map { .. } => None,
    });
    found.dedup_by(
        |a, b| matches!((a, b), (InKernel::Program { id: a, .. }, InKernel::Program { id: b, .. }) if a == b),
    );
    Ok(found)
}

/// Fields of `bpf_prog_show_fdinfo` and `bpf_map_show_fdinfo` (kernel/bpf/syscall.c, Linux 6.18).
fn parse(text: &str) -> Option<InKernel> {
    let number = |name: &str| number_of(text, name);
    let memory_bytes = number("memlock:")?;
    match number("prog_id:") {
        // Links show the program too, but no memory.
        Some(id) => Some(InKernel::Program {
            id: u32::try_from(id).ok()?,
            memory_bytes,
            runs: number("run_cnt:").unwrap_or(0),
            run_ns: number("run_time_ns:").unwrap_or(0),
        }),
        None => number("map_id:").map(|_| InKernel::Map { memory_bytes }),
    }
}

fn number_of(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    line.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_uses_something() {
        let usage = usage(Path::new("/proc")).unwrap();
        assert!(usage.resident_bytes > 100_000 && usage.descriptors > 2 && usage.threads > 0, "{usage:?}");
        let started = cpu_time();
        while cpu_time() == started {
            std::hint::spin_loop();
        }
    }

    /// Taken on Linux 6.18.
    #[test]
    fn descriptors_of_the_kernel_are_told_apart() {
        let program = "pos:\t0\nflags:\t02000000\nmnt_id:\t16\nino:\t1028\nprog_type:\t26\nprog_jited:\t1\n\
            prog_tag:\t77ed6ee5d4f0e6c8\nmemlock:\t12288\nprog_id:\t49\nrun_time_ns:\t812\nrun_cnt:\t7\n\
            recursion_misses:\t0\nverified_insns:\t2341\n";
        assert_eq!(parse(program), Some(InKernel::Program { id: 49, memory_bytes: 12_288, runs: 7, run_ns: 812 }));
        let map = "pos:\t0\nflags:\t02000002\nmnt_id:\t16\nino:\t1028\nmap_type:\t2\nkey_size:\t4\nvalue_size:\t64\n\
            max_entries:\t2\nmap_flags:\t0x400\nmap_extra:\t0x0\nmemlock:\t4424\nmap_id:\t11\nfrozen:\t0\n";
        assert_eq!(parse(map), Some(InKernel::Map { memory_bytes: 4_424 }));
        let link = "pos:\t0\nflags:\t02000000\nlink_type:\ttracing\nlink_id:\t3\nprog_tag:\t77ed\nprog_id:\t49\n";
        assert_eq!(parse(link), None);
        assert_eq!(parse("pos:\t0\nflags:\t02\n"), None);
    }
}
