//! `cargo xtask bench programmed`: one packet against the rules of very many Services, in namespaces of its own.

mod ruleset;

use std::collections::HashMap;
use std::path::PathBuf;
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use super::space::Space;
use super::table::{Row, Table, Target};
use crate::{command, place};

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Services, each with three endpoints
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    services: u32,
    /// Readings of each kind of rules
    #[arg(long, default_value_t = 15)]
    rounds: usize,
}

/// A kind of rules: how they are loaded, what reads them all, and what netdiag's way may cost.
struct Kind {
    name: &'static str,
    rules: fn(u32) -> String,
    load: &'static [&'static str],
    /// The tools that a person would take for the same answer.
    beside: &'static [&'static str],
    loaded_us: f64,
    read_ms: f64,
    /// None where it is a part of the whole table.
    memory_mib: Option<f64>,
}

const KINDS: [Kind; 3] = [
    Kind {
        name: "nftables",
        rules: ruleset::nftables,
        load: &["nft", "-f", "-"],
        beside: &["nft", "-j", "list", "ruleset"],
        loaded_us: 20.0,
        read_ms: 15.0,
        memory_mib: Some(30.0),
    },
    Kind {
        name: "iptables-nft",
        rules: ruleset::iptables,
        load: &["iptables-nft-restore"],
        beside: &["iptables-nft-save"],
        loaded_us: 200.0,
        read_ms: 30.0,
        memory_mib: Some(30.0),
    },
    Kind {
        name: "iptables-legacy",
        rules: ruleset::iptables,
        load: &["iptables-legacy-restore"],
        beside: &["iptables-legacy-save"],
        loaded_us: 200.0,
        read_ms: 600.0,
        memory_mib: None,
    },
];

/// A router between pods and the rest.
const NAMESPACE: &str = "
ip link set lo up
ip link add pod0 type veth peer name eth0
ip link add out0 type veth peer name out1
for link in pod0 eth0 out0 out1; do ip link set $link up; done
ip addr add 10.129.0.1/16 dev pod0
ip addr add 10.200.0.1/24 dev out0
ip route add 10.130.0.0/15 via 10.200.0.2
echo 1 > /proc/sys/net/ipv4/ip_forward
";

const MIB: f64 = 1024.0;

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    if !nix::unistd::geteuid().is_root() {
        bail!("network namespaces need root");
    }
    let program = compile()?;
    let mut rows = Vec::new();
    let mut missing = Vec::new();
    for kind in &KINDS {
        match measure(kind, arguments, &program) {
            Ok(found) => rows.extend(found),
            Err(error) => missing.push(format!("{}: not measured: {error:#}", kind.name)),
        }
    }
    let how = format!(
        "one TCP SYN from a pod to the last of {} Services with {} endpoints each, as kube-proxy writes them; the middle of {} \
         readings; Linux {}",
        arguments.services,
        ruleset::ENDPOINTS,
        arguments.rounds,
        super::kernel()
    );
    let failed = missing.len();
    let table = Table { title: "What a node will do with one packet", how, missing, rows };
    table.print();
    if table.missed() + failed > 0 {
        bail!("{} targets were not met, {failed} kinds of rules could not be measured", table.missed());
    }
    Ok(())
}

fn measure(kind: &Kind, arguments: &Arguments, program: &PathBuf) -> Result<Vec<Row>> {
    let space = Space::new()?;
    space.sh(NAMESPACE)?;
    let rules = (kind.rules)(arguments.services);
    space.run(|| command::output_with_input(&mut command::words(kind.load), &rules))?;
    let target = format!("{}:80", ruleset::cluster_ip(arguments.services - 1));
    let rounds = arguments.rounds.to_string();
    let said = space.run(|| {
        let mut bench = Command::new(program);
        command::output(bench.args(["pod0", "10.129.0.7:40000", &target, &rounds]))
    })?;
    let values: HashMap<&str, &str> = said.lines().filter_map(|line| line.split_once(' ')).collect();
    let value = |name: &str| -> Result<f64> {
        let text = values.get(name).with_context(|| format!("the measurement does not say {name}: {said}"))?;
        text.parse().with_context(|| format!("{name} is {text:?}"))
    };
    let right = format!("{0} of which sent {0} with gaps 0", ruleset::ENDPOINTS);
    if values.get("paths") != Some(&right.as_str()) {
        bail!("wrong answer: {said}");
    }
    let (name, read_ms) = (kind.name, value("read_us")? / 1000.0);
    let memory_mib = value("memory_kib")? / MIB;
    let memory = format!("{name}: memory for it, MiB");
    let mut rows = vec![
        Row::new(
            format!("{name}: evaluate with what was read, µs"),
            value("loaded_us")?,
            Target::AtMost(kind.loaded_us),
        ),
        Row::new(format!("{name}: read from the kernel and evaluate, ms"), read_ms, Target::AtMost(kind.read_ms)),
        match kind.memory_mib {
            Some(most) => Row::new(memory, memory_mib, Target::AtMost(most)),
            None => Row::beside(memory, memory_mib),
        },
    ];
    let listing_ms = space.run(|| {
        let started = Instant::now();
        command::output(&mut command::words(kind.beside))?;
        Ok(started.elapsed().as_secs_f64() * 1000.0)
    })?;
    rows.push(Row::beside(format!("    {}, times as long", kind.beside.join(" ")), listing_ms / read_ms));
    Ok(rows)
}

/// The program that measures, where cargo says it is.
fn compile() -> Result<PathBuf> {
    let mut cargo = command::tool(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.current_dir(place::workspace()).args(["bench", "--package", "netdiag-node", "--bench", "programmed"]);
    cargo.args(["--no-run", "--message-format=json-render-diagnostics"]);
    let said = command::output(&mut cargo)?;
    let messages = said.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let program = messages
        .filter(|message| message["target"]["name"] == "programmed")
        .find_map(|message| message["executable"].as_str().map(PathBuf::from));
    program.context("cargo does not say where the measurement is")
}
