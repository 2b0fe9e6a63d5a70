//! The cluster's processes: each has a log and a pid file, and lives on when we end.

use std::fs::OpenOptions;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::Cluster;
use crate::command;

/// Enough to see a component's last error; Go's panics are longer but start with the cause.
const LOG_TAIL_LINES: usize = 20;

/// The kubelet and kube-proxy end within a second when asked to.
const STOP_LIMIT: Duration = Duration::from_secs(5);

impl Cluster {
    /// Starts `program` of the cluster through `entry`, a command that enters the right namespaces.
    pub(super) fn spawn(&self, component: &str, entry: &Command, program: &str, arguments: &[String]) -> Result<()> {
        let path = self.log_path(component);
        let log = OpenOptions::new()
            .create(true)
            .append(true)
            .open(&path)
            .with_context(|| format!("cannot open {}", path.display()))?;
        let errors = log.try_clone().with_context(|| format!("cannot use {} twice", path.display()))?;
        // In a session of its own, so that no terminal's end takes it along. setsid, nsenter and unshare replace themselves
        // by the program they start: the pid stays.
        let child = command::tool("setsid")
            .arg(entry.get_program())
            .args(entry.get_args())
            .arg(self.program(program))
            .args(arguments)
            .env("PATH", self.search_path())
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(log)
            .stderr(errors)
            .spawn()
            .with_context(|| format!("cannot start {component}"))?;
        self.write(&format!("pid/{component}"), &child.id().to_string())
    }

    /// The component's process, while it runs.
    pub(super) fn pid_of(&self, component: &str) -> Option<Pid> {
        let text = std::fs::read_to_string(self.folder.join("pid").join(component)).ok()?;
        let pid: i32 = text.trim().parse().ok()?;
        // Every component is started by its path in our folder, also while setsid and nsenter are still on their way to it;
        // a stranger who got the same number has another command line.
        let words = std::fs::read(format!("/proc/{pid}/cmdline")).ok()?;
        let ours = self.folder.to_string_lossy().into_owned();
        // In the middle of execve() the command line is empty, as a zombie's is; but only a zombie has no program.
        let starts = words.is_empty() && std::fs::read_link(format!("/proc/{pid}/exe")).is_ok();
        (starts || String::from_utf8_lossy(&words).contains(&ours)).then(|| Pid::from_raw(pid))
    }

    /// Ends a component: asked first, killed after [`STOP_LIMIT`].
    pub(super) fn stop(&self, component: &str) -> Result<()> {
        let Some(pid) = self.pid_of(component) else { return Ok(()) };
        for signal in [Signal::SIGTERM, Signal::SIGKILL] {
            // It may have ended by itself in the meantime.
            let _ = kill(pid, signal);
            let started = Instant::now();
            while started.elapsed() < STOP_LIMIT {
                if self.pid_of(component).is_none() {
                    return Ok(());
                }
                std::thread::sleep(Duration::from_millis(20));
            }
        }
        bail!("{component} (pid {pid}) does not end, not even by SIGKILL");
    }

    pub(super) fn log_path(&self, component: &str) -> PathBuf {
        self.folder.join("log").join(format!("{component}.log"))
    }

    pub(super) fn log_tail(&self, component: &str) -> String {
        let text = std::fs::read(self.log_path(component)).unwrap_or_default();
        command::tail(&String::from_utf8_lossy(&text), LOG_TAIL_LINES)
    }
}
