//! The programs' object file in the kernel: its tables are created once, each hook is attached by the first way that works.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use aya::maps::{Map, MapData, RingBuf};
use aya::programs::uprobe::{UProbeLink, UProbeScope};
use aya::programs::{
    BtfTracePoint, CgroupAttachMode, CgroupSkb, CgroupSkbAttachType, ProgramError, RawTracePoint, TracePoint, UProbe,
};
use aya::{Btf, Ebpf, EbpfLoader, VerifierLogLevel};

use super::LoadError;
use super::failure::{errno, failed, shortened};
use super::plan::Plan;
use super::program_info::program_info;
use super::table::Table;
use crate::host::cgroup;

/// The object file, empty when the agent was built without it (see `build.rs`).
static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/netdiag-ebpf"));

/// How a program can be attached, best first in a list of them.
#[derive(Debug, Clone, Copy)]
pub(super) enum Way {
    /// Loads kernel fields directly. Linux 5.5, with BTF.
    TpBtf { program: &'static str, tracepoint: &'static str },
    /// Reads each field by a helper, but asks less of the kernel. Linux 4.17.
    RawTracepoint { program: &'static str, tracepoint: &'static str },
    /// A perf event: what is left where raw tracepoints are forbidden or gone. Needs tracefs to be mounted. Linux 4.7.
    Tracepoint { program: &'static str, category: &'static str, tracepoint: &'static str },
    /// At the group of all pods, by a link: beside whatever else is attached there. Linux 5.7.
    CgroupSkb { program: &'static str, direction: CgroupSkbAttachType },
}

impl Way {
    /// The tier's name in preflight reports.
    fn tier(self) -> &'static str {
        match self {
            Self::TpBtf { .. } => "tp_btf",
            Self::RawTracepoint { .. } => "raw_tracepoint",
            Self::Tracepoint { .. } => "tracepoint",
            Self::CgroupSkb { .. } => "cgroup_skb",
        }
    }
}

/// A program that runs.
#[derive(Debug)]
pub(super) struct Attached {
    pub(super) tier: &'static str,
    program: OwnedFd,
}

impl Attached {
    /// Runs that the kernel skipped since the program was loaded because it was already running on that CPU
    /// (`bpf_prog_info.recursion_misses`, Linux 5.12). 0 on kernels that do not say.
    pub(super) fn recursion_misses(&self) -> u64 {
        program_info(self.program.as_fd()).map_or(0, |info| info.recursion_misses)
    }

    #[cfg(test)]
    pub(super) fn info(&self) -> io::Result<super::program_info::ProgramInfo> {
        program_info(self.program.as_fd())
    }
}

/// A program that can be attached and detached at will.
#[derive(Debug)]
pub(super) struct Loaded {
    way: Way,
    program: OwnedFd,
}

impl Loaded {
    /// As [`Attached::recursion_misses`].
    pub(super) fn recursion_misses(&self) -> u64 {
        program_info(self.program.as_fd()).map_or(0, |info| info.recursion_misses)
    }
}

/// A loaded program runs until this is dropped.
pub(super) struct Link {
    _held: Box<dyn Send>,
}

/// The object while hooks are being attached.
pub(super) struct Object {
    running: Running,
    /// aya needs the kernel's types itself, to find tracepoints. Tens of MiB: dropped with this value.
    types: Btf,
    /// The cgroup root of the kubelet whose pods are watched.
    kubelet_root: String,
}

impl Object {
    /// Creates all tables. No program runs yet.
    pub(super) fn create(plan: &Plan) -> Result<Self, LoadError> {
        if OBJECT.is_empty() {
            return Err(LoadError::NotBuilt);
        }
        lift_memory_limit();
        let types = Btf::from_sys_fs().map_err(|error| LoadError::Failed {
            step: "read /sys/kernel/btf/vmlinux".to_owned(),
            why: error.to_string(),
        })?;
        let mut loader = EbpfLoader::new();
        loader.btf(Some(&types));
        // Its last word and no more: a trace of all that it walked through takes minutes to write on a slow machine.
        loader.verifier_log_level(VerifierLogLevel::STATS);
        plan.apply(&mut loader);
        #[cfg_attr(not(feature = "debug"), expect(unused_mut, reason = "only the log changes it"))]
        let mut programs = loader.load(OBJECT).map_err(|error| failed("create the kernel programs' tables", &error))?;
        #[cfg(feature = "debug")]
        let log = aya_log::EbpfLogger::init(&mut programs).ok();
        let running = Running {
            #[cfg(feature = "debug")]
            log: Arc::new(Mutex::new(log)),
            programs: Arc::new(Mutex::new(programs)),
        };
        Ok(Self { running, types, kubelet_root: String::new() })
    }

    /// The same for pods below this cgroup root, instead of a kubelet's without one.
    pub(super) fn below(self, kubelet_root: String) -> Self {
        Self { kubelet_root, ..self }
    }

    /// Attaches a hook by the first of `ways` that the kernel accepts.
    pub(super) fn attach(&self, hook: &str, ways: &[Way]) -> Result<Attached, LoadError> {
        first_of(ways, &format!("attach to {hook}"), |way| {
            let (program, tier) = self.attach_by(way)?;
            Ok(Attached { tier, program })
        })
    }

    /// Loads a tracepoint's program by the first of `ways` that the kernel accepts. [`Running::start`] attaches it.
    pub(super) fn load(&self, hook: &str, ways: &[Way]) -> Result<Loaded, LoadError> {
        first_of(ways, &format!("load the program for {hook}"), |way| {
            let mut programs = self.running.lock();
            let program = match way {
                Way::TpBtf { program, tracepoint } => {
                    let program: &mut BtfTracePoint = find(&mut programs, program)?.try_into()?;
                    program.load(tracepoint, &self.types)?;
                    owned(program.fd()?.as_fd())
                }
                Way::RawTracepoint { program, .. } => {
                    let program: &mut RawTracePoint = find(&mut programs, program)?.try_into()?;
                    program.load()?;
                    owned(program.fd()?.as_fd())
                }
                Way::Tracepoint { .. } | Way::CgroupSkb { .. } => Err(ProgramError::UnexpectedProgramType),
            }?;
            Ok(Loaded { way, program })
        })
    }

    fn attach_by(&self, way: Way) -> Result<(OwnedFd, &'static str), ProgramError> {
        let mut programs = self.running.lock();
        let mut tier = way.tier();
        let program = match way {
            Way::TpBtf { program, tracepoint } => {
                let program: &mut BtfTracePoint = find(&mut programs, program)?.try_into()?;
                program.load(tracepoint, &self.types)?;
                program.attach()?;
                owned(program.fd()?.as_fd())
            }
            Way::RawTracepoint { program, tracepoint } => {
                let program: &mut RawTracePoint = find(&mut programs, program)?.try_into()?;
                program.load()?;
                program.attach(tracepoint)?;
                owned(program.fd()?.as_fd())
            }
            Way::Tracepoint { program, category, tracepoint } => {
                let program: &mut TracePoint = find(&mut programs, program)?.try_into()?;
                program.load()?;
                program.attach(category, tracepoint)?;
                owned(program.fd()?.as_fd())
            }
            Way::CgroupSkb { program, direction } => {
                let program: &mut CgroupSkb = find(&mut programs, program)?.try_into()?;
                program.load()?;
                let pods = cgroup::pods(&self.kubelet_root);
                let pods = pods.map_err(|error| ProgramError::IOError(io::Error::other(error)))?;
                // Links of cgroups have no flags: they all may be several (`cgroup_bpf_link_attach()`).
                program.attach(pods.group, direction, CgroupAttachMode::Single)?;
                if pods.is_pods {
                    tier = "cgroup_skb of pods";
                }
                owned(program.fd()?.as_fd())
            }
        }?;
        Ok((program, tier))
    }

    /// An array that was declared mmapable, in this process's memory.
    pub(super) fn table<T: Copy>(&self, name: &'static str, rows: usize) -> Result<Table<T>, LoadError> {
        let step = || format!("map table {name} into memory");
        let programs = self.running.lock();
        let Some(Map::Array(map)) = programs.map(name) else {
            return Err(LoadError::Failed { step: step(), why: "the object has no such array".to_owned() });
        };
        Table::map(map.fd().as_fd(), rows).map_err(|error| LoadError::Failed { step: step(), why: error.to_string() })
    }

    /// Takes any other map out of the object.
    pub(super) fn take(&self, name: &'static str) -> Result<Map, LoadError> {
        self.running.lock().take_map(name).ok_or_else(|| LoadError::Failed {
            step: format!("open table {name}"),
            why: "the object has no such map".to_owned(),
        })
    }

    pub(super) fn ring(&self, name: &'static str) -> Result<RingBuf<MapData>, LoadError> {
        RingBuf::try_from(self.take(name)?).map_err(|error| failed(&format!("open ring {name}"), &error))
    }

    /// What keeps the attached programs running.
    pub(super) fn running(&self) -> Running {
        self.running.clone()
    }
}

/// The programs in the kernel. When the last owner drops it, the kernel removes them.
#[derive(Clone)]
pub(super) struct Running {
    #[cfg(feature = "debug")]
    log: Arc<Mutex<DebugLog>>,
    programs: Arc<Mutex<Ebpf>>,
}

/// None when the programs were built without their feature `debug`.
#[cfg(feature = "debug")]
type DebugLog = Option<aya_log::EbpfLogger<&'static dyn log::Log>>;

impl Running {
    fn lock(&self) -> MutexGuard<'_, Ebpf> {
        self.programs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Loads a uprobe, which does not run yet.
    pub(super) fn load_probe(&self, program: &str) -> Result<(), ProgramError> {
        let mut programs = self.lock();
        let program: &mut UProbe = find(&mut programs, program)?.try_into()?;
        program.load()
    }

    /// Attaches a loaded uprobe to a function of a file, for every process that uses it, until the link is dropped.
    pub(super) fn probe(&self, program: &str, function: &str, file: &Path) -> Result<UProbeLink, ProgramError> {
        let mut programs = self.lock();
        let program: &mut UProbe = find(&mut programs, program)?.try_into()?;
        let id = program.attach(function, file, UProbeScope::AllProcesses)?;
        program.take_link(id)
    }

    /// Attaches a loaded program until the link is dropped.
    pub(super) fn start(&self, loaded: &Loaded) -> Result<Link, ProgramError> {
        let mut programs = self.lock();
        let held: Box<dyn Send> = match loaded.way {
            Way::TpBtf { program, .. } => {
                let program: &mut BtfTracePoint = find(&mut programs, program)?.try_into()?;
                let id = program.attach()?;
                Box::new(program.take_link(id)?)
            }
            Way::RawTracepoint { program, tracepoint } => {
                let program: &mut RawTracePoint = find(&mut programs, program)?.try_into()?;
                let id = program.attach(tracepoint)?;
                Box::new(program.take_link(id)?)
            }
            Way::Tracepoint { .. } | Way::CgroupSkb { .. } => return Err(ProgramError::UnexpectedProgramType),
        };
        Ok(Link { _held: held })
    }

    /// Names of the programs that run, by the kernel's ids. The kernel itself keeps 15 characters of a name.
    pub(super) fn names(&self) -> BTreeMap<u32, String> {
        let programs = self.lock();
        programs.programs().filter_map(|(name, program)| Some((program.info().ok()?.id(), name.to_owned()))).collect()
    }

    /// Passes on what the programs logged since the last call.
    #[cfg(feature = "debug")]
    pub(super) fn print_log(&self) {
        let mut log = self.log.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(log) = log.as_mut() {
            log.flush();
        }
    }
}

/// What the first of `ways` makes that the kernel accepts.
fn first_of<T>(ways: &[Way], step: &str, attempt: impl Fn(Way) -> Result<T, ProgramError>) -> Result<T, LoadError> {
    let mut refused = Vec::new();
    for way in ways {
        match attempt(*way) {
            Ok(made) => return Ok(made),
            Err(error) => refused.push((way.tier(), error)),
        }
    }
    // The last way asks least: when it lacks the right, so do all.
    if refused.last().is_some_and(|(_, error)| errno(error) == Some(libc::EPERM)) {
        return Err(LoadError::NotPermitted { step: step.to_owned() });
    }
    let why: Vec<String> = refused.iter().map(|(tier, error)| format!("{tier}: {}", shortened(error))).collect();
    Err(LoadError::Failed { step: step.to_owned(), why: why.join("; ") })
}

fn find<'a>(programs: &'a mut Ebpf, name: &str) -> Result<&'a mut aya::programs::Program, ProgramError> {
    programs.program_mut(name).ok_or(ProgramError::NotLoaded)
}

fn owned(program: BorrowedFd<'_>) -> Result<OwnedFd, ProgramError> {
    program.try_clone_to_owned().map_err(ProgramError::IOError)
}

/// Before Linux 5.11 maps count against `RLIMIT_MEMLOCK`. When it cannot be lifted, loading says so.
fn lift_memory_limit() {
    let limit = libc::rlimit { rlim_cur: libc::RLIM_INFINITY, rlim_max: libc::RLIM_INFINITY };
    // SAFETY: passes a valid structure, changes only this process's limit.
    unsafe { libc::setrlimit(libc::RLIMIT_MEMLOCK, &raw const limit) };
}
