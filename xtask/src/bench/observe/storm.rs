//! What the agent costs while packets are dropped as fast as one processor can send them.
//!
//! Two paths: a closed UDP port on loopback, and a rule that drops in prerouting behind a veth. Before and after each run
//! with a program there is one without: the ratio is the mean of those two over the one between, so that a machine that
//! grows slower in the meantime costs nobody anything. The sender is a process of the node and in no pod, as what storms
//! come from in general: packets of pods pass the programs for DNS besides, which is measured with connections and queries. Programs are loaded anew in each round: where the kernel happens to
//! place their code moves them by some nanoseconds.

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::bpf::{self, Program};
use super::empty;
use super::flood::{LOOPBACK, PAYLOAD_BYTES, SLICE, flood};
use super::peer::{self, Kind, Peer};
use super::pods::Pods;
use super::process::{DROPS, NODE, Running, SETTLES_IN, agents, alone, certificates, median};
use crate::bench::space::Space;
use crate::bench::table::{Row, Table, Target};

pub(super) const TITLE: &str = "Drop storm";

const RUN: Duration = Duration::from_millis(150);
/// Runs that another agent on this machine spoilt, before we give up.
const MAX_SPOILT: usize = 200;

/// A path on which every packet is dropped, with a number of flows, and what must be left of its rate.
struct Load {
    path: &'static str,
    to: Ipv4Addr,
    flows: u16,
    ratio: Goal,
    /// Nanoseconds per drop beyond those of an empty program; measured on loopback only.
    ns: Option<Goal>,
}

/// What must be, and what would be better.
struct Goal {
    must: f64,
    aim: f64,
}

const BEHIND_VETH: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 2);
const LOADS: [Load; 6] = [
    Load::loopback(1, Goal { must: 0.93, aim: 0.95 }, Goal { must: 50.0, aim: 30.0 }),
    Load::loopback(64, Goal { must: 0.93, aim: 0.95 }, Goal { must: 50.0, aim: 30.0 }),
    Load::loopback(4096, Goal { must: 0.92, aim: 0.94 }, Goal { must: 65.0, aim: 45.0 }),
    Load::prerouting(1, Goal { must: 0.91, aim: 0.93 }),
    Load::prerouting(64, Goal { must: 0.91, aim: 0.93 }),
    Load::prerouting(4096, Goal { must: 0.89, aim: 0.92 }),
];
/// By how much more must be left than bpftrace leaves that only counts.
const ABOVE_BPFTRACE: f64 = 0.04;

/// What is attached while packets are dropped. The agent cannot be told to look at drops alone: all of it is on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Variant {
    Nothing,
    /// A program that does nothing at the tracepoint of dropped packets.
    Empty,
    /// Such programs in all places where the agent has its own: no agent that looks there can cost less.
    Empties,
    Agent,
    Peer(&'static Peer),
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
    pods: Pods,
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
        Ok(Self {
            agent: agent.to_owned(),
            certificates: certificates()?,
            sender,
            _receiver: receiver,
            pods: Pods::new()?,
        })
    }

    pub(super) fn measure(&self, rounds: usize) -> Result<Table> {
        let how = format!(
            "datagrams with {PAYLOAD_BYTES} bytes from processor 0, {rounds} rounds of {} ms per load and program, the agent \
             and all others on processor 1; medians of slices of {} ms, then of rounds",
            RUN.as_millis(),
            SLICE.as_millis()
        );
        let (peers, missing) = peer::find(&self.sender);
        let mut variants = vec![Variant::Empty, Variant::Empties, Variant::Agent];
        variants.extend(peers.into_iter().map(Variant::Peer));
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
        Ok(Table { title: TITLE, how, missing, rows: rows(&variants, &measured) })
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
        alone()?;
        match variant {
            Variant::Nothing => Ok(Running::default()),
            Variant::Empty => Ok(Running::descriptors(empty::at_drops()?)),
            Variant::Empties => Ok(Running::descriptors(empty::everywhere(&self.pods.group())?)),
            Variant::Agent => self.start_agent(),
            Variant::Peer(peer) => peer.start(),
        }
    }

    /// Without metrics: nobody asks it anything.
    fn start_agent(&self) -> Result<Running> {
        let mut running = Running::child(
            Command::new(&self.agent)
                .args(["--node-name", NODE, "--listen", "127.0.0.1:0", "--cgroup-root", &self.pods.root, "--tls-dir"])
                .arg(self.certificates.path())
                .env("RUST_LOG", "error"),
        )?;
        let deadline = Instant::now() + Duration::from_mins(2);
        while agents() == 0 {
            if Instant::now() > deadline || running.has_ended() {
                bail!("the agent did not attach a program to kfree_skb within two minutes");
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        std::thread::sleep(SETTLES_IN);
        Ok(running)
    }
}

impl Load {
    const fn loopback(flows: u16, ratio: Goal, ns: Goal) -> Self {
        Self { path: "loopback", to: LOOPBACK, flows, ratio, ns: Some(ns) }
    }

    const fn prerouting(flows: u16, ratio: Goal) -> Self {
        Self { path: "nft prerouting", to: BEHIND_VETH, flows, ratio, ns: None }
    }
}

impl Variant {
    fn name(self) -> &'static str {
        match self {
            Self::Nothing => "nothing",
            Self::Empty => "an empty program",
            Self::Empties => "empty programs wherever netdiag looks",
            Self::Agent => "netdiag",
            Self::Peer(peer) => peer.name,
        }
    }

    /// The program whose runs the kernel shall measure.
    fn program(self) -> Option<&'static str> {
        match self {
            Self::Nothing | Self::Empties | Self::Peer(_) => None,
            Self::Empty => Some(empty::NAME),
            Self::Agent => Some(DROPS),
        }
    }
}

fn rows(variants: &[Variant], measured: &[Vec<Measured>]) -> Vec<Row> {
    let of = |wanted: &dyn Fn(&Variant) -> bool| variants.iter().position(wanted).map(|n| &measured[n]);
    let empty = of(&|variant| *variant == Variant::Empty);
    let agent = of(&|variant| *variant == Variant::Agent);
    let (Some(empty), Some(agent)) = (empty, agent) else { return Vec::new() };
    let count = of(&|variant| matches!(variant, Variant::Peer(peer) if peer.kind == Kind::Count));
    let mut rows = Vec::new();
    for (n, load) in LOADS.iter().enumerate() {
        let what = format!("{}, {} flows: packets/s with netdiag ÷ without", load.path, load.flows);
        let ratio = median(&agent[n].ratios);
        rows.push(Row::new(what, ratio, Target::AtLeast(load.ratio.must)).aiming(Target::AtLeast(load.ratio.aim)));
        for (variant, measured) in variants.iter().zip(measured) {
            if *variant != Variant::Agent {
                rows.push(Row::beside(format!("    with {} ÷ without", variant.name()), median(&measured[n].ratios)));
            }
        }
        if let Some(count) = count {
            let above = ratio - median(&count[n].ratios);
            rows.push(Row::new("    netdiag above bpftrace's bare count", above, Target::AtLeast(ABOVE_BPFTRACE)));
        }
        rows.push(Row::beside("    ns per packet that netdiag adds", median(&agent[n].added_ns)));
        let over = median(&agent[n].run_ns) - median(&empty[n].run_ns);
        let what = "    ns per drop in the kernel over the empty program";
        rows.push(match &load.ns {
            Some(ns) => Row::new(what, over, Target::AtMost(ns.must)).aiming(Target::AtMost(ns.aim)),
            None => Row::beside(what, over),
        });
    }
    rows
}

fn one_program(name: &str) -> Result<Program> {
    let all = bpf::programs();
    all.into_iter()
        .find(|program| program.name.starts_with(name))
        .with_context(|| format!("no program {name} is loaded"))
}
