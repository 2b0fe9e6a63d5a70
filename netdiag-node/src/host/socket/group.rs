//! What control groups did to a pod's processes, from `cpu.stat` and `memory.events` (cgroup v2), or their like on v1.
//!
//! A throttled or swapping process looks like a slow network from outside.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use netdiag_common::observation::counter::Counter;
use netdiag_common::observation::socket::{ControlGroup, CpuGroup, MemoryGroup};

use crate::history::{Seen, object};
use crate::host::{ReadError, cgroup, file};

/// Containers of one pod.
const MAX_CONTAINERS: usize = 64;
/// Processes looked at to find them.
const MAX_PROCESSES: usize = 1_024;
const CGROUP_TEXT_BYTES: u64 = 64 * 1024;
const FILE_BYTES: u64 = 64 * 1024;
/// On cgroup v1, more than this is how the kernel writes "no limit" (`PAGE_COUNTER_MAX` in bytes, rounded).
const NO_LIMIT_V1: u64 = 1 << 62;

/// The folder of the hierarchies, and the groups of a pod's processes in it.
///
/// The calling thread must be in the node's cgroup namespace, or paths are relative to another one's.
pub(crate) fn read(proc: &Path, hierarchies: &Path, pids: &[u32]) -> Result<Vec<ControlGroup>, ReadError> {
    // Container (none: the pod's own), then the folders of its controllers.
    let mut groups: BTreeMap<Option<String>, Folders> = BTreeMap::new();
    for pid in pids.iter().take(MAX_PROCESSES) {
        let Ok(text) = file::text(&proc.join(format!("{pid}/cgroup")), CGROUP_TEXT_BYTES) else { continue };
        for controller in [Controller::Cpu, Controller::Memory] {
            let Some((group, hierarchy)) = cgroup::group(&text, controller.name()) else { continue };
            let mut note = |container: Option<String>, path: &str| {
                if groups.len() <= MAX_CONTAINERS || groups.contains_key(&container) {
                    let folder = Folder::new(hierarchies, hierarchy.as_deref(), path);
                    groups.entry(container).or_default().set(controller, folder);
                }
            };
            note(None, &group.pod);
            if let Some((id, path)) = group.container {
                note(Some(id), &path);
            }
        }
    }
    groups.into_iter().map(|(container_id, folders)| one(container_id, &folders)).collect()
}

/// Every counter, for [`Series::look`](crate::history::Series::look).
pub(crate) fn counters(groups: &mut [ControlGroup]) -> Vec<Seen<'_>> {
    let mut all = Vec::new();
    for group in groups {
        let object = object("group", group.container_id.as_deref().unwrap_or_default().as_bytes());
        let mut add = |name, counter| all.push(Seen { object, name, counter });
        if let Some(cpu) = &mut group.cpu {
            add("cpu.periods", &mut cpu.periods);
            add("cpu.throttled_periods", &mut cpu.throttled_periods);
            add("cpu.throttled_us", &mut cpu.throttled_us);
        }
        if let Some(memory) = &mut group.memory {
            add("memory.limit_hits", &mut memory.limit_hits);
            add("memory.oom_kills", &mut memory.oom_kills);
            if let Some(high) = &mut memory.high {
                add("memory.high", high);
            }
        }
    }
    all
}

#[derive(Clone, Copy)]
enum Controller {
    Cpu,
    Memory,
}

impl Controller {
    fn name(self) -> &'static str {
        match self {
            Self::Cpu => "cpu",
            Self::Memory => "memory",
        }
    }
}

#[derive(Default)]
struct Folders {
    cpu: Option<Folder>,
    memory: Option<Folder>,
}

impl Folders {
    fn set(&mut self, controller: Controller, folder: Folder) {
        match controller {
            Controller::Cpu => self.cpu = Some(folder),
            Controller::Memory => self.memory = Some(folder),
        }
    }
}

struct Folder {
    path: PathBuf,
    is_v1: bool,
}

impl Folder {
    /// v1: `/sys/fs/cgroup/cpu,cpuacct/PATH`. v2: `/sys/fs/cgroup/PATH`, or `unified/PATH` beside v1.
    fn new(hierarchies: &Path, v1: Option<&str>, path: &str) -> Self {
        let base = match v1 {
            Some(name) => hierarchies.join(name),
            None if hierarchies.join("cgroup.controllers").exists() => hierarchies.to_owned(),
            None => hierarchies.join("unified"),
        };
        Self { path: base.join(path.trim_start_matches('/')), is_v1: v1.is_some() }
    }

    /// None when the group or the controller is not there.
    fn text(&self, name: &str) -> Result<Option<String>, ReadError> {
        file::text_if_there(&self.path.join(name), FILE_BYTES)
    }

    fn number(&self, name: &str) -> Result<Option<u64>, ReadError> {
        Ok(self.text(name)?.and_then(|text| text.trim().parse().ok()))
    }
}

fn one(container_id: Option<String>, folders: &Folders) -> Result<ControlGroup, ReadError> {
    Ok(ControlGroup {
        container_id,
        cpu: folders.cpu.as_ref().map(cpu).transpose()?.flatten(),
        memory: folders.memory.as_ref().map(memory).transpose()?.flatten(),
    })
}

fn cpu(folder: &Folder) -> Result<Option<CpuGroup>, ReadError> {
    let Some(statistics) = folder.text("cpu.stat")? else { return Ok(None) };
    let numbers = numbers(&statistics);
    // v2 prints these three only where the controller is enabled.
    let Some(periods) = numbers.get("nr_periods") else { return Ok(None) };
    let throttled_us = match numbers.get("throttled_usec") {
        Some(microseconds) => *microseconds,
        None => numbers.get("throttled_time").copied().unwrap_or(0) / 1_000,
    };
    let (quota_us, period_us) = if folder.is_v1 {
        // -1 is no limit, and no number here.
        (folder.number("cpu.cfs_quota_us")?, folder.number("cpu.cfs_period_us")?)
    } else {
        quota(&folder.text("cpu.max")?.unwrap_or_default())
    };
    let throttled_periods = numbers.get("nr_throttled").copied().unwrap_or(0);
    Ok(Some(CpuGroup {
        quota_us,
        period_us,
        periods: counter(*periods),
        throttled_periods: counter(throttled_periods),
        throttled_us: counter(throttled_us),
    }))
}

/// `cpu.max`: `max 100000` or `50000 100000`.
fn quota(text: &str) -> (Option<u64>, Option<u64>) {
    let mut words = text.split_ascii_whitespace();
    let quota = words.next().and_then(|word| word.parse().ok());
    (quota, words.next().and_then(|word| word.parse().ok()))
}

fn memory(folder: &Folder) -> Result<Option<MemoryGroup>, ReadError> {
    if folder.is_v1 {
        let Some(used_bytes) = folder.number("memory.usage_in_bytes")? else { return Ok(None) };
        let control = folder.text("memory.oom_control")?.unwrap_or_default();
        return Ok(Some(MemoryGroup {
            used_bytes,
            limit_bytes: folder.number("memory.limit_in_bytes")?.filter(|limit| *limit < NO_LIMIT_V1),
            high: None,
            limit_hits: counter(folder.number("memory.failcnt")?.unwrap_or(0)),
            // Since Linux 4.13.
            oom_kills: counter(numbers(&control).get("oom_kill").copied().unwrap_or(0)),
        }));
    }
    let Some(events) = folder.text("memory.events")? else { return Ok(None) };
    let events = numbers(&events);
    let event = |name: &str| counter(events.get(name).copied().unwrap_or(0));
    Ok(Some(MemoryGroup {
        used_bytes: folder.number("memory.current")?.unwrap_or(0),
        limit_bytes: folder.number("memory.max")?,
        high: Some(event("high")),
        limit_hits: event("max"),
        oom_kills: event("oom_kill"),
    }))
}

fn counter(value: u64) -> Counter {
    Counter { value, ..Counter::default() }
}

/// One name and number a line.
fn numbers(text: &str) -> BTreeMap<&str, u64> {
    let pairs = text.lines().filter_map(|line| line.split_once(' '));
    pairs.filter_map(|(name, number)| Some((name, number.trim().parse().ok()?))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const UID: &str = "0f6d6c5e-2a5f-4f43-9b0c-1b2f4a1d9e77";
    const ID: &str = "3f1c0d9e8b7a695847362514039281706f5e4d3c2b1a09f8e7d6c5b4a3928170";

    /// Folders as the kernel would show them, and a /proc with one process of the pod.
    fn lab(cgroup: &str, files: &[(&str, &str)]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        let write = |path: &str, text: &str| {
            let path = folder.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        };
        write("proc/7/cgroup", cgroup);
        for (path, text) in files {
            write(path, text);
        }
        folder
    }

    #[test]
    fn throttled_container_on_version_2() {
        let container = format!("cgroup/kubepods/pod{UID}/{ID}");
        let folder = lab(
            &format!("0::/kubepods/pod{UID}/{ID}\n"),
            &[
                ("cgroup/cgroup.controllers", "cpu memory"),
                (
                    &format!("{container}/cpu.stat"),
                    "usage_usec 9\nnr_periods 100\nnr_throttled 40\nthrottled_usec 1234\nnr_bursts 0\n",
                ),
                (&format!("{container}/cpu.max"), "50000 100000\n"),
                (&format!("{container}/memory.events"), "low 0\nhigh 3\nmax 17\noom 2\noom_kill 1\n"),
                (&format!("{container}/memory.current"), "4096\n"),
                (&format!("{container}/memory.max"), "max\n"),
            ],
        );
        let groups = read(&folder.path().join("proc"), &folder.path().join("cgroup"), &[7, 8]).unwrap();
        assert_eq!(groups.len(), 2, "{groups:?}");
        assert_eq!((groups[0].container_id.as_deref(), &groups[0].cpu), (None, &None), "the pod's files are not there");
        assert_eq!(groups[1].container_id.as_deref(), Some(ID));
        let cpu = groups[1].cpu.as_ref().unwrap();
        assert_eq!((cpu.quota_us, cpu.period_us), (Some(50_000), Some(100_000)));
        assert_eq!((cpu.periods.value, cpu.throttled_periods.value, cpu.throttled_us.value), (100, 40, 1_234));
        let memory = groups[1].memory.as_ref().unwrap();
        assert_eq!((memory.used_bytes, memory.limit_bytes), (4_096, None));
        assert_eq!((memory.high.unwrap().value, memory.limit_hits.value, memory.oom_kills.value), (3, 17, 1));
    }

    #[test]
    fn throttled_container_on_version_1() {
        let path = format!("kubepods/pod{UID}/{ID}");
        let folder = lab(
            &format!("5:cpu,cpuacct:/{path}\n4:memory:/{path}\n0::/\n"),
            &[
                (
                    &format!("cgroup/cpu,cpuacct/{path}/cpu.stat"),
                    "nr_periods 10\nnr_throttled 4\nthrottled_time 5000000\n",
                ),
                (&format!("cgroup/cpu,cpuacct/{path}/cpu.cfs_quota_us"), "-1\n"),
                (&format!("cgroup/cpu,cpuacct/{path}/cpu.cfs_period_us"), "100000\n"),
                (&format!("cgroup/memory/{path}/memory.usage_in_bytes"), "8192\n"),
                (&format!("cgroup/memory/{path}/memory.limit_in_bytes"), "9223372036854771712\n"),
                (&format!("cgroup/memory/{path}/memory.failcnt"), "6\n"),
                (&format!("cgroup/memory/{path}/memory.oom_control"), "oom_kill_disable 0\nunder_oom 0\noom_kill 2\n"),
            ],
        );
        let mut groups = read(&folder.path().join("proc"), &folder.path().join("cgroup"), &[7]).unwrap();
        let own = groups.last_mut().unwrap();
        let cpu = own.cpu.as_ref().unwrap();
        assert_eq!((cpu.quota_us, cpu.throttled_periods.value, cpu.throttled_us.value), (None, 4, 5_000));
        let memory = own.memory.as_ref().unwrap();
        assert_eq!((memory.used_bytes, memory.limit_bytes, memory.high), (8_192, None, None));
        assert_eq!((memory.limit_hits.value, memory.oom_kills.value), (6, 2));
        assert_eq!(counters(&mut groups).len(), 5);
    }

    #[test]
    fn process_that_ended_has_no_group() {
        assert_eq!(read(Path::new("/proc"), Path::new("/sys/fs/cgroup"), &[u32::MAX]).unwrap(), []);
    }

    proptest::proptest! {
        #[test]
        fn any_text_ends(text in ".{0,400}") {
            let _ = (numbers(&text), quota(&text), cgroup::group(&text, "cpu"));
        }
    }
}
