//! `cargo xtask demo`: three faults on a small topology of network namespaces, named by real agents that look at real rules,
//! sockets and dropped packets. Only the Kubernetes API is a recording. Without root or BTF a recorded run is replayed.

mod fault;
mod serve;
mod topology;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result, bail};

use crate::setup::Purpose;
use crate::{command, ebpf, place, setup};
use fault::{FAULTS, Fault};
use topology::Topology;

pub(crate) use serve::{Arguments as ServeArguments, run as serve};

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Keep what each answer was judged on in this folder, as bundles
    #[arg(long)]
    record: Option<PathBuf>,
    /// Replay the recorded run, although this machine could do it for real
    #[arg(long)]
    replay: bool,
}

/// The programs of this checkout.
struct Programs {
    server: PathBuf,
    agent: PathBuf,
}

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let programs = build(arguments)?;
    let started = Instant::now();
    let right = match cannot_run().filter(|_| !arguments.replay) {
        None if !arguments.replay => live(&programs, arguments)?,
        reason => {
            let reason = reason.unwrap_or_else(|| "--replay was given".to_owned());
            println!("replaying a recorded run: {reason}\n");
            replay(&programs)?
        }
    };
    println!("{right} of {} causes named in {:.0} s", FAULTS.len(), started.elapsed().as_secs_f64());
    if right != FAULTS.len() {
        bail!("{} causes were not named as they should", FAULTS.len() - right);
    }
    Ok(())
}

/// Why this machine can only replay.
fn cannot_run() -> Option<String> {
    if !nix::unistd::geteuid().is_root() {
        return Some("network namespaces and kernel programs need root".to_owned());
    }
    if !Path::new("/sys/kernel/btf/vmlinux").exists() {
        return Some("this kernel has no BTF (/sys/kernel/btf/vmlinux)".to_owned());
    }
    None
}

fn build(arguments: &Arguments) -> Result<Programs> {
    let mut cargo = command::tool(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.current_dir(place::workspace()).args(["build", "--locked", "--package", "netdiag-server"]);
    if cannot_run().is_none() && !arguments.replay {
        setup::prepare(Purpose::Demo)?;
        setup::prepare(Purpose::Ebpf)?;
        cargo.env("NETDIAG_EBPF_OBJECT", ebpf::build(false)?).args(["--package", "netdiag-node"]);
    }
    command::run(&mut cargo)?;
    let folder = place::target().join("debug");
    Ok(Programs { server: folder.join("netdiag"), agent: folder.join("netdiag-node") })
}

fn live(programs: &Programs, arguments: &Arguments) -> Result<usize> {
    let topology = Topology::up(&programs.agent, &programs.server)?;
    let mut right = 0;
    for fault in &FAULTS {
        fault.announce();
        topology.run(fault.inject)?;
        println!("  the client in pod shop/client: {}\n", Topology::connect());
        let mut ask = topology.netdiag();
        ask.arg("--tls-dir").arg(topology.certificates()).arg("--bundle").arg(objects());
        if let Some(folder) = &arguments.record {
            ask.arg("--record").arg(folder.join(fault.code));
        }
        right += usize::from(answer(&mut ask, fault)?);
        topology.run(fault.restore)?;
    }
    Ok(right)
}

fn replay(programs: &Programs) -> Result<usize> {
    let mut right = 0;
    for fault in &FAULTS {
        fault.announce();
        let mut ask = Command::new(&programs.server);
        ask.args(topology::QUESTION).arg("--bundle").arg(source("recorded").join(fault.code));
        right += usize::from(answer(&mut ask, fault)?);
    }
    Ok(right)
}

/// Shows the answer; whether its first line of cause names the fault.
fn answer(ask: &mut Command, fault: &Fault) -> Result<bool> {
    let output = ask.output().with_context(|| format!("cannot start {}", ask.get_program().display()))?;
    let text = String::from_utf8_lossy(&output.stdout);
    if text.is_empty() {
        bail!("netdiag gave no answer: {}", String::from_utf8_lossy(&output.stderr));
    }
    for line in text.lines() {
        println!("  {line}");
    }
    println!();
    Ok(text.lines().any(|line| line.starts_with("cause") && line.contains(fault.code)))
}

fn objects() -> PathBuf {
    source("world")
}

fn source(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src/demo").join(name)
}
