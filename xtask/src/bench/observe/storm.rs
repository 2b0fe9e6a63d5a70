//! What the agent costs while packets are dropped as fast as one processor can send them.
//!
//! Two paths: a closed UDP port on loopback, and a rule that drops in prerouting behind a veth. Before and after each run
//! with a program there is one without: the ratio is the mean of those two over the one between, so that a machine that
//! grows slower in the meantime costs nobody anything. Programs are loaded anew in each round: where the kernel happens to
//! place their code moves them by some nanoseconds.

use std::net::Ipv4Addr;
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::bpf::{self, EMPTY, Program};
use super::flood::{PAYLOAD_BYTES, SLICE, Space, flood, pin};
use super::table::{Row, Target};
use crate::command;

const RUN: Duration = Duration::from_millis(150);
/// Names of the agent's programs at the tracepoint begin so.
const AGENT: &str = "netdiag_kfree";
/// Runs that another agent on this machine spoilt, before we give up.
const MAX_SPOILT: usize = 200;

/// A path on which every packet is dropped, with a number of flows, and what must be left of its rate.
struct Load {
    path: &'static str,
    to: Ipv4Addr,
    flows: u16,
    ratio: f64,
    /// Nanoseconds per drop beyond those of an empty program; measured on loopback only.
    ns: Option<f64>,
}

const LOOPBACK: Ipv4Addr = Ipv4Addr::LOCALHOST;
const BEHIND_VETH: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 2);
const LOADS: [Load; 6] = [
    Load { path: "loopback", to: LOOPBACK, flows: 1, ratio: 0.93, ns: Some(50.0) },
    Load { path: "loopback", to: LOOPBACK, flows: 64, ratio: 0.93, ns: Some(50.0) },
    Load { path: "loopback", to: LOOPBACK, flows: 4096, ratio: 0.92, ns: Some(65.0) },
    Load { path: "nft prerouting", to: BEHIND_VETH, flows: 1, ratio: 0.91, ns: None },
    Load { path: "nft prerouting", to: BEHIND_VETH, flows: 64, ratio: 0.91, ns: None },
    Load { path: "nft prerouting", to: BEHIND_VETH, flows: 4096, ratio: 0.89, ns: None },
];
/// By how much more must be left than bpftrace leaves that only counts.
const ABOVE_BPFTRACE: f64 = 0.04;

/// bpftrace looks tracepoints up in tracefs, which not every machine has mounted. Seen by bpftrace alone.
const WITH_TRACEFS: &str = "mount -t tracefs tracefs /sys/kernel/tracing; mount -t debugfs debugfs /sys/kernel/debug";

/// What is attached while packets are dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Variant {
    Nothing,
    Empty,
    Agent,
    Bpftrace,
}

/// What was measured of one variant under one load, a value a round.
#[derive(Default)]
struct Measured {
    ratios: Vec<f64>,
    added_ns: Vec<f64>,
    run_ns: Vec<f64>,
}

pub(super) struct Storm {
    agent: PathBuf,
    certificates: tempfile::TempDir,
    sender: Space,
    _receiver: Space,
    bpftrace: Option<PathBuf>,
}

impl Storm {
    pub(super) fn new(agent: &Path) -> Result<Self> {
        let (sender, receiver) = (Space::new()?, Space::new()?);
        sender.sh(&format!("ip link set lo up; ip link add out type veth peer name in netns {}", receiver.path()))?;
        sender.sh("ip addr add 10.77.0.1/24 dev out; ip link set out up")?;
        receiver.sh("ip addr add 10.77.0.2/24 dev in; ip link set in up
             nft 'table ip storm {
               chain pre { type filter hook prerouting priority -300; udp dport 10000-20000 counter drop; }
             }'")?;
        let bpftrace = command::find("bpftrace");
        Ok(Self { agent: agent.to_owned(), certificates: certificates()?, sender, _receiver: receiver, bpftrace })
    }

    pub(super) fn measure(&self, rounds: usize) -> Result<Vec<Row>> {
        println!(
            "drop storm: {PAYLOAD_BYTES} bytes of payload from processor 0, {rounds} rounds of {} ms per load and program, \
             the agent and bpftrace on processor 1; medians of slices of {} ms, then of rounds",
            RUN.as_millis(),
            SLICE.as_millis()
        );
        let mut variants = vec![Variant::Empty, Variant::Agent];
        match &self.bpftrace {
            Some(_) => variants.push(Variant::Bpftrace),
            None => println!("bpftrace is not installed: its rows are missing (apt-get install bpftrace)"),
        }
        let mut measured: Vec<Vec<Measured>> =
            variants.iter().map(|_| LOADS.iter().map(|_| Measured::default()).collect()).collect();
        for _ in 0..rounds {
            let mut before = self.run(Variant::Nothing)?.0;
            for (variant, measured) in variants.iter().zip(&mut measured) {
                let (with, run_ns) = self.run(*variant)?;
                let after = self.run(Variant::Nothing)?.0;
                for (n, measured) in measured.iter_mut().enumerate() {
                    let without = f64::midpoint(before[n], after[n]);
                    measured.ratios.push(without / with[n]);
                    measured.added_ns.push(with[n] - without);
                    measured.run_ns.extend(run_ns.get(n));
                }
                before = after;
            }
        }
        Ok(rows(&variants, &measured))
    }

    /// Nanoseconds per packet of each load, and what the kernel says each run of the program took.
    fn run(&self, variant: Variant) -> Result<(Vec<f64>, Vec<f64>)> {
        for _ in 0..MAX_SPOILT {
            let running = self.start(variant)?;
            let expected = usize::from(variant == Variant::Agent);
            let per_packet = self.per_packet()?;
            let per_run = variant.program().map_or_else(|| Ok(Vec::new()), |name| self.per_run(name));
            let spoilt = agents() != expected;
            drop(running);
            if !spoilt {
                return Ok((per_packet, per_run?));
            }
            std::thread::sleep(RUN);
        }
        bail!("other agents at tracepoint kfree_skb on this machine: stop them, or measure elsewhere")
    }

    fn per_packet(&self) -> Result<Vec<f64>> {
        LOADS.iter().map(|load| Ok(median(&flood(&self.sender, load.to, load.flows, RUN)?))).collect()
    }

    fn per_run(&self, name: &str) -> Result<Vec<f64>> {
        let _stats = bpf::enable_stats()?;
        let mut before = one_program(name)?;
        let mut measured = Vec::new();
        for load in &LOADS {
            let mut slices = Vec::new();
            for _ in 0..RUN.as_millis() / SLICE.as_millis() {
                flood(&self.sender, load.to, load.flows, SLICE)?;
                let after = bpf::program(before.id)?;
                slices.extend(after.ns_per_run(&before));
                before = after;
            }
            measured.push(median(&slices));
        }
        Ok(measured)
    }

    fn start(&self, variant: Variant) -> Result<Running> {
        let deadline = Instant::now() + Duration::from_mins(2);
        while agents() != 0 {
            if Instant::now() > deadline {
                bail!("an agent on this machine is at tracepoint kfree_skb already: stop it first");
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        let before = bpf::programs().len();
        let running = match variant {
            Variant::Nothing => Running::default(),
            Variant::Empty => Running { descriptors: bpf::empty_program(c"kfree_skb")?, child: None },
            Variant::Agent => Running::child(
                Command::new(&self.agent)
                    .args(["--node-name", "bench", "--listen", "127.0.0.1:0", "--tls-dir"])
                    .arg(self.certificates.path())
                    .env("RUST_LOG", "error"),
            )?,
            Variant::Bpftrace => {
                let program = self.bpftrace.as_ref().context("bpftrace is not installed")?;
                let script = format!(
                    "{WITH_TRACEFS}; exec {} -e 'tracepoint:skb:kfree_skb {{ @ = count(); }}'",
                    program.display()
                );
                Running::child(command::tool("unshare").args(["-m", "sh", "-c", &script]))?
            }
        };
        let attached = || match variant {
            Variant::Nothing | Variant::Empty => true,
            Variant::Agent => agents() > 0,
            Variant::Bpftrace => bpf::programs().len() > before,
        };
        while !attached() {
            if Instant::now() > deadline {
                bail!("{variant:?} did not attach a program within two minutes");
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        if running.child.is_some() {
            // Loaded is not yet attached, and whoever starts is busy for a while.
            std::thread::sleep(Duration::from_millis(700));
        }
        Ok(running)
    }
}

impl Variant {
    fn name(self) -> &'static str {
        match self {
            Self::Nothing => "nothing",
            Self::Empty => "an empty program",
            Self::Agent => "netdiag",
            Self::Bpftrace => "bpftrace count()",
        }
    }

    /// The program whose runs the kernel shall measure.
    fn program(self) -> Option<&'static str> {
        match self {
            Self::Nothing | Self::Bpftrace => None,
            Self::Empty => Some(EMPTY),
            Self::Agent => Some(AGENT),
        }
    }
}

fn rows(variants: &[Variant], measured: &[Vec<Measured>]) -> Vec<Row> {
    let of = |variant: Variant| variants.iter().position(|found| *found == variant).map(|n| &measured[n]);
    let (Some(empty), Some(agent)) = (of(Variant::Empty), of(Variant::Agent)) else { return Vec::new() };
    let mut rows = Vec::new();
    for (n, load) in LOADS.iter().enumerate() {
        let name = format!("{}, {} flows", load.path, load.flows);
        let ratio = median(&agent[n].ratios);
        rows.push(Row::new(format!("{name}: packets/s with netdiag ÷ without"), ratio, Target::AtLeast(load.ratio)));
        for (variant, measured) in variants.iter().zip(measured) {
            if *variant != Variant::Agent {
                rows.push(Row::beside(format!("    with {} ÷ without", variant.name()), median(&measured[n].ratios)));
            }
        }
        if let Some(bpftrace) = of(Variant::Bpftrace) {
            let above = ratio - median(&bpftrace[n].ratios);
            rows.push(Row::new("    netdiag above bpftrace's bare count", above, Target::AtLeast(ABOVE_BPFTRACE)));
        }
        rows.push(Row::beside("    ns per packet that netdiag adds", median(&agent[n].added_ns)));
        let over = median(&agent[n].run_ns) - median(&empty[n].run_ns);
        rows.push(match load.ns {
            Some(most) => Row::new("    ns per drop in the kernel over the empty program", over, Target::AtMost(most)),
            None => Row::beside("    ns per drop in the kernel over the empty program", over),
        });
    }
    rows
}

/// NaN when nothing was measured: no target is met by it.
pub(super) fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    match sorted.len() {
        0 => f64::NAN,
        length if length.is_multiple_of(2) => f64::midpoint(sorted[length / 2 - 1], sorted[length / 2]),
        length => sorted[length / 2],
    }
}

/// Agents' programs at the tracepoint, whoever's they are.
fn agents() -> usize {
    bpf::programs().iter().filter(|program| program.name.starts_with(AGENT)).count()
}

fn one_program(name: &str) -> Result<Program> {
    let all = bpf::programs();
    all.into_iter()
        .find(|program| program.name.starts_with(name))
        .with_context(|| format!("no program {name} is loaded"))
}

/// A program in the kernel, for as long as this lives.
#[derive(Default)]
pub(super) struct Running {
    descriptors: Vec<OwnedFd>,
    child: Option<Child>,
}

impl Running {
    pub(super) fn child(command: &mut Command) -> Result<Self> {
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        // SAFETY: between fork and exec only a system call is made.
        unsafe { command.pre_exec(|| pin(1).map_err(std::io::Error::other)) };
        let child = command.spawn().with_context(|| format!("cannot start {}", command.get_program().display()))?;
        Ok(Self { descriptors: Vec::new(), child: Some(child) })
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

/// What an agent needs to start; nobody asks it anything.
pub(super) fn certificates() -> Result<tempfile::TempDir> {
    let folder = tempfile::tempdir().context("cannot create a folder for certificates")?;
    let made =
        rcgen::generate_simple_self_signed(vec!["netdiag-node".to_owned()]).context("cannot make a certificate")?;
    for (name, text) in
        [("ca.crt", made.cert.pem()), ("node.crt", made.cert.pem()), ("node.key", made.signing_key.serialize_pem())]
    {
        std::fs::write(folder.path().join(name), text).with_context(|| format!("cannot write {name}"))?;
    }
    Ok(folder)
}
