//! Which files' functions are probed: the libraries that pods' processes have mapped, found again at each harvest.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use netdiag_common::observation::library::{Libraries, ProbedFile};
use netdiag_common::observation::preflight::Check;
use netdiag_common::{GapReason, Window};

use crate::attribution::Attribution;
use crate::clock;
use crate::gap::{Failure, OtherFailure};
use crate::host::library::{self, Library, Mapped};
use crate::kernel::LoadError;
use crate::kernel::library::{KernelLibraries, Probed, Uprobes};
use crate::owners::Owners;

/// Files probed at one time. A node's pods share most of theirs: a layer of an image is one file.
const MAX_FILES: usize = 64;
/// Processes looked at in one round, at some 50 µs each.
const MAX_PROCESSES: usize = 2_048;

pub struct LibraryWatch {
    owners: Arc<Owners>,
    attribution: Arc<Attribution>,
    proc: PathBuf,
    wanted: Uprobes,
    state: Mutex<Result<Option<State>, LoadError>>,
}

struct State {
    kernel: KernelLibraries,
    files: BTreeMap<FileId, File>,
    omitted_files: u64,
}

/// Device and inode.
type FileId = (String, u64);

struct File {
    path: PathBuf,
    /// The error is kept, so that a file that cannot be probed is not tried in every round.
    probed: Result<Probed, LoadError>,
}

impl LibraryWatch {
    pub fn new(
        owners: Arc<Owners>,
        attribution: Arc<Attribution>,
        proc: PathBuf,
        wanted: Uprobes,
        kernel: Result<Option<KernelLibraries>, LoadError>,
    ) -> Self {
        let state = |kernel| State { kernel, files: BTreeMap::new(), omitted_files: 0 };
        Self { owners, attribution, proc, wanted, state: Mutex::new(kernel.map(|kernel| kernel.map(state))) }
    }

    /// The preflight's line, when uprobes were asked for.
    pub fn check(&self) -> Option<Check> {
        let name = "program uprobes".to_owned();
        match &*self.lock() {
            Ok(None) => None,
            Ok(Some(_)) => Some(Check { name, ok: true, detail: "uprobe".to_owned(), ..Check::default() }),
            Err(_) if self.wanted == Uprobes::default() => None,
            Err(error) => Some(Check {
                name,
                ok: false,
                detail: error.to_string(),
                lost: "names that programs look up, and TLS handshakes of clients".to_owned(),
                remedy: error.remedy().to_owned(),
            }),
        }
    }

    /// To be called every second.
    pub fn tick(&self) {
        if let Ok(Some(state)) = self.lock().as_mut() {
            state.kernel.tick();
        }
    }

    /// Reads what was told, and looks for new files. Does nothing unless somebody asked for uprobes.
    pub fn harvest(&self) {
        let mut state = self.lock();
        let Ok(Some(state)) = state.as_mut() else { return };
        state.kernel.harvest();
        let found = self.mapped();
        state.files.retain(|id, _| found.contains_key(id));
        state.omitted_files = 0;
        for (id, (mapped, pid)) in found {
            if state.files.contains_key(&id) {
                continue;
            }
            if state.files.len() >= MAX_FILES {
                state.omitted_files += 1;
                continue;
            }
            // The kernel opens the file by this path while the process is there, and then keeps it by its inode.
            let inside = mapped.path.strip_prefix("/").unwrap_or(&mapped.path);
            let probed = state.kernel.probe(mapped.library, &self.proc.join(format!("{pid}/root")).join(inside));
            if let Err(error) = &probed {
                tracing::warn!(path = %mapped.path.display(), %error, "library not probed");
            }
            state.files.insert(id, File { path: mapped.path, probed });
        }
    }

    /// What was told in the window, up to now.
    pub fn observe(&self, window: Window) -> Result<Libraries, Failure> {
        self.owners.refresh()?;
        let mut state = self.lock();
        let Some(state) = state.as_mut().map_err(|error| Failure::from(&*error))? else {
            return Err(Failure::Other(OtherFailure {
                reason: GapReason::NotAllowed,
                why: "uprobes are off, because each call of a probed function costs a trap".to_owned(),
                remedy: "start the agent with --uprobes getaddrinfo,tls".to_owned(),
            }));
        };
        state.kernel.harvest();
        let mut found = state.kernel.observe(clock::now(), window, &|id| self.owners.of(id));
        let file = |((device, inode), file): (&FileId, &File)| ProbedFile {
            path: file.path.display().to_string(),
            device: device.clone(),
            inode: *inode,
            why_not: file.probed.as_ref().err().map(ToString::to_string).unwrap_or_default(),
        };
        found.files = state.files.iter().map(file).collect();
        found.omitted_files = state.omitted_files;
        Ok(found)
    }

    /// Libraries of pods' processes, each with one process that has it.
    fn mapped(&self) -> BTreeMap<FileId, (Mapped, u32)> {
        let mut found = BTreeMap::new();
        let Ok(pods) = self.attribution.pods() else { return found };
        for pid in pods.pods.iter().flat_map(|pod| &pod.pids).take(MAX_PROCESSES) {
            // One that has ended meanwhile has no mappings any more.
            for mapped in library::read(&self.proc, *pid).unwrap_or_default() {
                let is_wanted = match mapped.library {
                    Library::Libc => self.wanted.getaddrinfo,
                    Library::Ssl => self.wanted.tls,
                };
                if is_wanted {
                    found.entry((mapped.device.clone(), mapped.inode)).or_insert((mapped, *pid));
                }
            }
        }
        found
    }

    fn lock(&self) -> MutexGuard<'_, Result<Option<State>, LoadError>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
