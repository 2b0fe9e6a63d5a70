//! Processes whose cost is measured, and the agent among them: started on a processor of its own, asked, and ended.

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::sched::{CpuSet, sched_setaffinity};
use nix::time::{clock_getcpuclockid, clock_gettime};
use nix::unistd::Pid;
use serde_json::{Value, json};

use super::bpf;
use super::flood::pin;
use crate::command;

pub(super) const NODE: &str = "bench";
/// Names of the agent's programs at tracepoint kfree_skb begin so.
pub(super) const DROPS: &str = "netdiag_kfree";
/// Loaded is not yet attached, and whoever starts is busy for a while.
pub(super) const SETTLES_IN: Duration = Duration::from_millis(700);
/// Loading all programs takes less than a second; a machine that does other things takes longer.
const STARTS_WITHIN: Duration = Duration::from_mins(1);
/// The longest that the agent lets a question take.
const ANSWERS_WITHIN_MS: u64 = 30_000;

/// A process or its programs in the kernel, for as long as this lives.
#[derive(Default)]
pub(super) struct Running {
    descriptors: Vec<OwnedFd>,
    child: Option<Child>,
}

impl Running {
    /// On processor 1, in silence.
    pub(super) fn child(command: &mut Command) -> Result<Self> {
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        // SAFETY: between fork and exec only a system call is made.
        unsafe { command.pre_exec(|| pin(1).map_err(std::io::Error::other)) };
        let child = command.spawn().with_context(|| format!("cannot start {}", command.get_program().display()))?;
        Ok(Self { descriptors: Vec::new(), child: Some(child) })
    }

    pub(super) fn descriptors(descriptors: Vec<OwnedFd>) -> Self {
        Self { descriptors, child: None }
    }

    /// Whether the process ended by itself.
    pub(super) fn has_ended(&mut self) -> bool {
        self.child.as_mut().is_some_and(|child| !matches!(child.try_wait(), Ok(None)))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.descriptors.clear();
        if let Some(child) = &mut self.child {
            // Whatever becomes of them: the kernel removes their programs with them.
            let _ = child.kill();
            let _ = child.wait();
        }
        // Programs are freed after a grace period.
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// An agent that answers and serves its metrics on loopback.
pub(in crate::bench) struct Agent<'a> {
    pub(super) started: Instant,
    running: Running,
    certificates: &'a Path,
    port: u16,
    metrics_port: u16,
}

/// Resident memory of a process, in MiB.
pub(in crate::bench) struct Resident {
    pub(in crate::bench) now: f64,
    /// Since [`Agent::forget_peak`].
    pub(in crate::bench) peak: f64,
}

impl<'a> Agent<'a> {
    /// Returns as soon as it is started, which is before it answers. `certificates` is a folder made by [`certificates`].
    pub(super) fn spawn(program: &Path, certificates: &'a Path, arguments: &[&str]) -> Result<Self> {
        alone()?;
        let (port, metrics_port) = (free_port()?, free_port()?);
        let started = Instant::now();
        let running = Running::child(
            Command::new(program)
                .args(["--node-name", NODE, "--listen", &format!("127.0.0.1:{port}")])
                .args(["--metrics-listen", &format!("127.0.0.1:{metrics_port}"), "--tls-dir"])
                .arg(certificates)
                .args(arguments)
                .env("RUST_LOG", "error"),
        )?;
        Ok(Self { started, running, certificates, port, metrics_port })
    }

    /// Returns when it has answered.
    pub(in crate::bench) fn start(program: &Path, certificates: &'a Path, arguments: &[&str]) -> Result<Self> {
        let mut agent = Self::spawn(program, certificates, arguments)?;
        agent.first_metrics()?;
        Ok(agent)
    }

    /// The first metrics that it serves: a connection made before that waits.
    pub(super) fn first_metrics(&mut self) -> Result<Metrics> {
        let deadline = Instant::now() + STARTS_WITHIN;
        loop {
            if let Ok(metrics) = self.metrics() {
                return Ok(metrics);
            }
            if Instant::now() > deadline || self.running.has_ended() {
                bail!("the agent did not start within {} s", STARTS_WITHIN.as_secs());
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// At most a second old: the agent looks at its node no more often.
    pub(super) fn metrics(&self) -> Result<Metrics> {
        let mut stream =
            TcpStream::connect((Ipv4Addr::LOCALHOST, self.metrics_port)).context("cannot reach the agent's metrics")?;
        stream.set_read_timeout(Some(Duration::from_secs(10)))?;
        stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")?;
        let mut text = String::new();
        stream.read_to_string(&mut text).context("cannot read the agent's metrics")?;
        ensure!(text.starts_with("HTTP/1.1 200"), "the agent serves no metrics: {}", command::tail(&text, 1));
        Ok(Metrics { text })
    }

    /// CPU time of the process, user and system. The kernel charges its programs to whomever they interrupt.
    pub(in crate::bench) fn cpu(&self) -> Result<Duration> {
        let clock = clock_getcpuclockid(Pid::from_raw(self.pid()?.cast_signed()));
        let time = clock.and_then(clock_gettime).context("cannot read the agent's CPU time")?;
        Ok(time.into())
    }

    pub(in crate::bench) fn resident(&self) -> Result<Resident> {
        let path = format!("/proc/{}/status", self.pid()?);
        let text = std::fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
        let mebibytes = |name: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default();
            let kibibytes: Option<f64> = line.split_whitespace().next().and_then(|word| word.parse().ok());
            kibibytes.map(|kibibytes| kibibytes / 1024.0).with_context(|| format!("{path} has no line {name}"))
        };
        Ok(Resident { now: mebibytes("VmRSS:")?, peak: mebibytes("VmHWM:")? })
    }

    pub(in crate::bench) fn forget_peak(&self) -> Result<()> {
        // proc_pid_clear_refs(5): 5 sets the peak to what is resident now (Linux 4.0).
        let path = format!("/proc/{}/clear_refs", self.pid()?);
        std::fs::write(&path, "5").with_context(|| format!("cannot write {path}"))
    }

    /// The reading of each need; all of them must have been read.
    pub(in crate::bench) fn ask(&self, needs: &[Value]) -> Result<Vec<Value>> {
        let body = json!({ "wire": 1, "needs": needs, "budget_ms": ANSWERS_WITHIN_MS }).to_string();
        let file = |name: &str| self.certificates.join(name);
        let mut curl = command::tool("curl");
        curl.args(["--silent", "--show-error", "--data", "@-", "--resolve"])
            .arg(format!("netdiag-node:{}:127.0.0.1", self.port))
            .arg("--cacert")
            .arg(file("ca.crt"))
            .arg("--cert")
            .arg(file("node.crt"))
            .arg("--key")
            .arg(file("node.key"))
            .arg(format!("https://netdiag-node:{}/v1/readings", self.port));
        let text = command::output_with_input(&mut curl, &body)?;
        let mut report: Value = serde_json::from_str(&text)
            .with_context(|| format!("the agent answered no JSON: {}", command::tail(&text, 1)))?;
        let Value::Array(readings) = report["readings"].take() else { bail!("the agent refused: {report}") };
        if let Some(gap) = readings.iter().find(|reading| reading["reading"]["state"] == "unavailable") {
            bail!("the agent could not read {}: {}", gap["need"], gap["reading"]["gap"]["why"]);
        }
        Ok(readings)
    }

    /// Lets it use all of them, with the threads that it has and will have.
    pub(in crate::bench) fn on_every_processor(&self) -> Result<()> {
        let tasks = format!("/proc/{}/task", self.pid()?);
        let all = std::thread::available_parallelism().context("cannot count the processors")?.get();
        let mut set = CpuSet::new();
        (0..all).try_for_each(|processor| set.set(processor)).context("too many processors")?;
        for task in std::fs::read_dir(&tasks).with_context(|| format!("cannot list {tasks}"))? {
            let id =
                task.context("cannot list threads")?.file_name().to_string_lossy().parse().context("a thread's id")?;
            sched_setaffinity(Pid::from_raw(id), &set).context("cannot move the agent's threads")?;
        }
        Ok(())
    }

    fn pid(&self) -> Result<u32> {
        Ok(self.running.child.as_ref().context("the agent is a process")?.id())
    }
}

/// One page of metrics.
pub(super) struct Metrics {
    text: String,
}

impl Metrics {
    /// Over all series of a metric that have the label, written `name="value"`; over all with an empty one.
    pub(super) fn sum(&self, metric: &str, label: &str) -> f64 {
        let series = self.text.lines().filter(|line| {
            let rest = line.strip_prefix(metric).unwrap_or("x");
            rest.starts_with([' ', '{']) && rest.contains(label)
        });
        series.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum()
    }

    pub(super) fn has(&self, metric: &str) -> bool {
        self.text.lines().any(|line| line.strip_prefix(metric).is_some_and(|rest| rest.starts_with([' ', '{'])))
    }
}

/// Waits until no agent is on this machine: two share what the kernel does for them.
pub(super) fn alone() -> Result<()> {
    let deadline = Instant::now() + Duration::from_mins(2);
    while agents() != 0 {
        if Instant::now() > deadline {
            bail!("an agent on this machine is at tracepoint kfree_skb already: stop it first");
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    Ok(())
}

/// Agents' programs at the tracepoint, whoever's they are.
pub(super) fn agents() -> usize {
    bpf::programs().iter().filter(|program| program.name.starts_with(DROPS)).count()
}

/// One certificate for both sides of the agent's TLS.
pub(in crate::bench) fn certificates() -> Result<tempfile::TempDir> {
    let folder = tempfile::tempdir().context("cannot create a folder for certificates")?;
    let names = ["netdiag-node", "netdiag-server"].map(str::to_owned);
    let made = rcgen::generate_simple_self_signed(names).context("cannot make a certificate")?;
    for (name, text) in
        [("ca.crt", made.cert.pem()), ("node.crt", made.cert.pem()), ("node.key", made.signing_key.serialize_pem())]
    {
        std::fs::write(folder.path().join(name), text).with_context(|| format!("cannot write {name}"))?;
    }
    Ok(folder)
}

/// A port that was free a moment ago.
fn free_port() -> Result<u16> {
    let listener = TcpListener::bind("127.0.0.1:0").context("cannot listen on loopback")?;
    Ok(listener.local_addr().map(|address: SocketAddr| address.port())?)
}

/// NaN when nothing was measured: no target is met by it.
pub(in crate::bench) fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    match sorted.len() {
        0 => f64::NAN,
        length if length.is_multiple_of(2) => f64::midpoint(sorted[length / 2 - 1], sorted[length / 2]),
        length => sorted[length / 2],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn series_of_a_metric_are_summed_by_label() {
        let text = "HTTP/1.1 200 OK\r\n\r\n# HELP a_total x\na_total{end=\"shed\"} 2\na_total{end=\"answered\"} 40\nab_total 7\na 1\n";
        let metrics = Metrics { text: text.to_owned() };
        assert_eq!((metrics.sum("a_total", ""), metrics.sum("a_total", "end=\"shed\"")), (42.0, 2.0));
        assert_eq!((metrics.sum("a", ""), metrics.sum("b", "")), (1.0, 0.0));
        assert!(metrics.has("ab_total") && !metrics.has("b_total"));
    }
}
