//! How many file descriptors processes have open, of how many they may (`RLIMIT_NOFILE`).
//!
//! The kernel counts nothing when a process meets the limit: accept and socket just fail. So it is looked at.

use std::cmp::Reverse;
use std::os::linux::fs::MetadataExt as _;
use std::path::Path;

use netdiag_common::observation::listener::Process;
use netdiag_common::observation::socket::{DescriptorUse, Files};

use crate::host::{ReadError, file, process};

/// Processes told.
const MAX_TOLD: usize = 16;
/// Processes looked at.
const MAX_PROCESSES: usize = 8_192;
/// Descriptors counted one by one, on kernels that do not tell the number.
const MAX_COUNTED: usize = 1_048_576;
const LIMITS_BYTES: u64 = 16 * 1024;
const FILE_NR_BYTES: u64 = 256;

/// The processes that use most of their limit.
pub(super) fn read(proc: &Path, pids: &[u32], left_out: &mut Vec<String>) -> Vec<DescriptorUse> {
    if pids.len() > MAX_PROCESSES {
        left_out.push(format!("descriptors of {} of {} processes", pids.len() - MAX_PROCESSES, pids.len()));
    }
    let mut used: Vec<(u32, u64, Option<u64>)> =
        pids.iter().take(MAX_PROCESSES).filter_map(|pid| one(proc, *pid)).collect();
    used.sort_by_key(|(pid, open, limit)| {
        let share = limit.map_or(0, |limit| open.saturating_mul(1_000_000) / limit.max(1));
        (Reverse(share), Reverse(*open), *pid)
    });
    let told = used.into_iter().take(MAX_TOLD).filter_map(|(pid, open, limit)| {
        let name = process::name(proc, pid)?;
        let container_id = process::pod(proc, pid).and_then(|pod| pod.container_id);
        Some(DescriptorUse { process: Process { pid, name, container_id }, open, limit })
    });
    told.collect()
}

/// Of the whole machine: handles in use, free ones (always 0 since Linux 2.6), limit.
pub(super) fn files(proc: &Path) -> Result<Option<Files>, ReadError> {
    let text = file::text_if_there(&proc.join("sys/fs/file-nr"), FILE_NR_BYTES)?;
    Ok(text.and_then(|text| {
        let mut numbers = text.split_ascii_whitespace().map_while(|word| word.parse().ok());
        Some(Files { open: numbers.next()?, limit: numbers.nth(1)? })
    }))
}

/// None for a process that ended, and for one that may not be looked at.
fn one(proc: &Path, pid: u32) -> Option<(u32, u64, Option<u64>)> {
    let folder = proc.join(format!("{pid}/fd"));
    // The number of open descriptors since Linux 6.2 (`proc_readfd_count`), before that always 0.
    let open = match std::fs::metadata(&folder).ok()?.st_size() {
        0 => std::fs::read_dir(&folder).ok()?.take(MAX_COUNTED).count() as u64,
        open => open,
    };
    let limits = file::text(&proc.join(format!("{pid}/limits")), LIMITS_BYTES).ok()?;
    Some((pid, open, soft_limit(&limits)))
}

/// From `/proc/PID/limits`: `Max open files  SOFT  HARD  files`. None for `unlimited`.
fn soft_limit(text: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix("Max open files"))?;
    line.split_ascii_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: &str = "Limit                     Soft Limit           Hard Limit           Units     \n\
                          Max processes             96365                96365                processes \n\
                          Max open files            20000                30000                files     \n";

    #[test]
    fn soft_limit_counts() {
        assert_eq!(soft_limit(LIMITS), Some(20_000));
        assert_eq!(soft_limit(&LIMITS.replace("20000", "unlimited")), None);
        assert_eq!(soft_limit("Max open files\n"), None);
    }

    #[test]
    fn this_process_has_some_open() {
        let own = std::process::id();
        let found = read(Path::new("/proc"), &[own, u32::MAX], &mut Vec::new());
        assert_eq!(found.len(), 1);
        assert!(found[0].process.pid == own && found[0].open >= 3 && found[0].limit.is_some(), "{found:?}");
        assert!(files(Path::new("/proc")).unwrap().unwrap().open > 0);
    }

    #[test]
    fn kernels_that_do_not_tell_the_number_are_counted() {
        let folder = tempfile::tempdir().unwrap();
        let process = folder.path().join("7");
        std::fs::create_dir_all(process.join("fd")).unwrap();
        std::fs::write(process.join("limits"), LIMITS).unwrap();
        // A folder's size is 0 on no ordinary file system, so only the limit can be read back here.
        assert_eq!(one(folder.path(), 7).map(|(pid, _, limit)| (pid, limit)), Some((7, Some(20_000))));
    }
}
