//! `cargo xtask bench programmed`: one packet against the rules of very many Services, and all these rules against the objects, in
//! namespaces of its own.

mod ruleset;

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

/// What a drift check of a node may cost.
const DRIFT_MS: f64 = 3000.0;
const DRIFT_MIB: f64 = 120.0;

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    if !nix::unistd::geteuid().is_root() {
        bail!("network namespaces need root");
    }
    let program = compile("netdiag-node", "programmed")?;
    let compares = compile("netdiag-server", "drift")?;
    let mut rows = Vec::new();
    let mut missing = Vec::new();
    for kind in &KINDS {
        match measure(kind, arguments, &program, &compares) {
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

fn measure(kind: &Kind, arguments: &Arguments, program: &PathBuf, compares: &PathBuf) -> Result<Vec<Row>> {
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
    let right = format!("{0} of which sent {0} with gaps 0", ruleset::ENDPOINTS);
    let said = Said(said);
    if said.text("paths")? != right {
        bail!("wrong answer: {}", said.0);
    }
    let (name, read_ms) = (kind.name, said.value("read_us")? / 1000.0);
    let memory_mib = said.value("memory_kib")? / MIB;
    let memory = format!("{name}: memory for it, MiB");
    let mut rows = vec![
        Row::new(
            format!("{name}: evaluate with what was read, µs"),
            said.value("loaded_us")?,
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
    rows.extend(drift(kind, arguments, &space, program, compares)?);
    Ok(rows)
}

/// A drift check of the whole node: what the agent reads and sends, and what the server makes of it.
fn drift(kind: &Kind, arguments: &Arguments, space: &Space, program: &PathBuf, compares: &PathBuf) -> Result<[Row; 2]> {
    let folder = std::env::temp_dir().join(format!("netdiag-programmed-{}", std::process::id()));
    std::fs::create_dir_all(&folder)?;
    let (objects, answer) = (folder.join("objects"), folder.join("answer"));
    std::fs::write(&objects, ruleset::objects(arguments.services))?;
    let rounds = arguments.rounds.to_string();
    let read = space.run(|| {
        let mut bench = Command::new(program);
        command::output(bench.args(["rules", &rounds]).arg(&answer))
    });
    let compared = read.and_then(|read| {
        let said = command::output(Command::new(compares).args([&objects, &answer]).arg(&rounds))?;
        Ok((Said(read), Said(said)))
    });
    std::fs::remove_dir_all(&folder)?;
    let (read, compared) = compared?;
    let right = format!("{} with differences 0", arguments.services);
    if compared.text("compared")? != right {
        bail!("wrong answer: {}", compared.0);
    }
    let ms = (read.value("read_us")? + compared.value("compare_us")?) / 1000.0;
    let memory = read.value("memory_kib")?.max(compared.value("memory_kib")?) / MIB;
    let name = kind.name;
    Ok([
        Row::new(format!("{name}: drift of the whole node, ms"), ms, Target::AtMost(DRIFT_MS)),
        Row::new(format!("{name}: memory for it on the node or in the server, MiB"), memory, Target::AtMost(DRIFT_MIB)),
    ])
}

/// What a program printed: a name and a value on each line.
struct Said(String);

impl Said {
    fn text(&self, name: &str) -> Result<&str> {
        let line = self.0.lines().find_map(|line| line.split_once(' ').filter(|(own, _)| *own == name));
        line.map(|(_, text)| text).with_context(|| format!("the measurement does not say {name}: {}", self.0))
    }

    fn value(&self, name: &str) -> Result<f64> {
        let text = self.text(name)?;
        text.parse().with_context(|| format!("{name} is {text:?}"))
    }
}

/// A program that measures, where cargo says it is.
fn compile(package: &str, name: &str) -> Result<PathBuf> {
    let mut cargo = command::tool(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.current_dir(place::workspace()).args(["bench", "--package", package, "--bench", name]);
    cargo.args(["--no-run", "--message-format=json-render-diagnostics"]);
    let said = command::output(&mut cargo)?;
    let messages = said.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let program = messages
        .filter(|message| message["target"]["name"] == name)
        .find_map(|message| message["executable"].as_str().map(PathBuf::from));
    program.context("cargo does not say where the measurement is")
}
