//! `cargo xtask bench programmed`: one packet against the rules of very many Services, and all these rules against the objects, in
//! namespaces of its own.

mod ruleset;

use std::path::{Path, PathBuf};
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
    /// Readings of each kind of rules, of which criterion takes the middle
    #[arg(long, default_value_t = 15, value_parser = clap::value_parser!(u32).range(10..=1_000))]
    samples: u32,
}

/// A kind of rules: how they are loaded, what reads them all, and what netdiag's way may cost.
struct Kind {
    name: &'static str,
    rules: fn(u32) -> String,
    load: &'static [&'static str],
    /// What lists all rules, where a script looks for a Service.
    listing: &'static [&'static str],
    /// What a person types beside `kubectl get service` to see where the Service's address is translated to: `$1` is the address. It
    /// prints each endpoint's translation.
    script: &'static str,
    loaded_us: f64,
    read_ms: f64,
    memory: Memory,
}

/// What reading for one packet may take.
enum Memory {
    Mib(f64),
    /// Times the kernel's table nat, all of which has to be read.
    Tables(f64),
}

const KINDS: [Kind; 3] = [
    Kind {
        name: "nftables",
        rules: ruleset::nftables,
        load: &["nft", "-f", "-"],
        listing: &["nft", "-j", "list", "ruleset"],
        script: "chain=$(nft list map ip kube-proxy service-ips | grep -o \"$1 . tcp . 80 : goto [^ ,]*\" | sed 's/.*goto //')
            nft list chain ip kube-proxy \"$chain\" | grep -o '[0-9.]* . 8080'",
        loaded_us: 20.0,
        read_ms: 15.0,
        memory: Memory::Mib(30.0),
    },
    Kind {
        name: "iptables-nft",
        rules: ruleset::iptables,
        load: &["iptables-nft-restore"],
        listing: &["iptables-nft-save"],
        script: "service=$(iptables-nft -t nat -S KUBE-SERVICES | grep -- \"-d $1/32 .*--dport 80 \" | sed 's/.*-j //')
            for endpoint in $(iptables-nft -t nat -S \"$service\" | grep -o 'KUBE-SEP-.*'); do
                iptables-nft -t nat -S \"$endpoint\" | grep -o 'to-destination .*'
            done",
        loaded_us: 200.0,
        read_ms: 30.0,
        memory: Memory::Mib(30.0),
    },
    Kind {
        name: "iptables-legacy",
        rules: ruleset::iptables,
        load: &["iptables-legacy-restore"],
        listing: &["iptables-legacy-save"],
        script: "service=$(iptables-legacy -t nat -S KUBE-SERVICES | grep -- \"-d $1/32 .*--dport 80 \" | sed 's/.*-j //')
            for endpoint in $(iptables-legacy -t nat -S \"$service\" | grep -o 'KUBE-SEP-.*'); do
                iptables-legacy -t nat -S \"$endpoint\" | grep -o 'to-destination .*'
            done",
        loaded_us: 200.0,
        read_ms: 600.0,
        memory: Memory::Tables(2.0),
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
        "one TCP SYN from a pod to the last of {} Services with {} endpoints each, as kube-proxy writes them; by criterion, the middle \
         of {} readings; Linux {}",
        arguments.services,
        ruleset::ENDPOINTS,
        arguments.samples,
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

fn measure(kind: &Kind, arguments: &Arguments, program: &Path, compares: &Path) -> Result<Vec<Row>> {
    let space = Space::new()?;
    space.sh(NAMESPACE)?;
    let rules = (kind.rules)(arguments.services);
    space.run(|| command::output_with_input(&mut command::words(kind.load), &rules))?;
    let address = ruleset::cluster_ip(arguments.services - 1);
    let target = format!("{address}:80");
    let samples = arguments.samples.to_string();
    let said =
        space.run(|| command::output(bench(program, kind).args(["pod0", "10.129.0.7:40000", &target, &samples])))?;
    let right = format!("{0} of which sent {0} with gaps 0", ruleset::ENDPOINTS);
    let said = Said(said);
    if said.text("paths")? != right {
        bail!("wrong answer: {}", said.0);
    }
    let (name, read_ms) = (kind.name, middle_us(kind, "packet/read")? / 1000.0);
    let mut rows = vec![
        Row::new(
            format!("{name}: evaluate with what was read, µs"),
            middle_us(kind, "packet/loaded")?,
            Target::AtMost(kind.loaded_us),
        ),
        Row::new(format!("{name}: read from the kernel and evaluate, ms"), read_ms, Target::AtMost(kind.read_ms)),
        memory(kind, &said)?,
    ];
    let found = |text: &str| u32::try_from(text.lines().count()).is_ok_and(|lines| lines == ruleset::ENDPOINTS);
    let (script_ms, text) = timed(&space, Command::new("sh").args(["-c", kind.script, "sh", &address.to_string()]))?;
    if !found(&text) {
        bail!("the script beside netdiag found other endpoints: {text}");
    }
    rows.push(Row::beside("    a script for the same Service, times as long", script_ms / read_ms));
    let (listing_ms, _) = timed(&space, &mut command::words(kind.listing))?;
    rows.push(Row::beside(format!("    {}, times as long", kind.listing.join(" ")), listing_ms / read_ms));
    rows.extend(drift(kind, arguments, &space, program, compares)?);
    Ok(rows)
}

fn memory(kind: &Kind, said: &Said) -> Result<Row> {
    let (name, kib) = (kind.name, said.value("memory_kib")?);
    Ok(match kind.memory {
        Memory::Mib(most) => Row::new(format!("{name}: memory for it, MiB"), kib / MIB, Target::AtMost(most)),
        Memory::Tables(most) => {
            let times = kib * 1024.0 / said.value("table_bytes")?;
            Row::new(format!("{name}: memory for it, times the table"), times, Target::AtMost(most))
        }
    })
}

/// Milliseconds of a command in a namespace, and what it printed.
fn timed(space: &Space, command: &mut Command) -> Result<(f64, String)> {
    space.run(|| {
        let started = Instant::now();
        let text = command::output(command)?;
        Ok((started.elapsed().as_secs_f64() * 1000.0, text))
    })
}

/// A drift check of the whole node: what the agent reads and sends, and what the server makes of it.
fn drift(kind: &Kind, arguments: &Arguments, space: &Space, program: &Path, compares: &Path) -> Result<[Row; 2]> {
    let folder = std::env::temp_dir().join(format!("netdiag-programmed-{}", std::process::id()));
    std::fs::create_dir_all(&folder)?;
    let (objects, answer) = (folder.join("objects"), folder.join("answer"));
    std::fs::write(&objects, ruleset::objects(arguments.services))?;
    let samples = arguments.samples.to_string();
    let read = space.run(|| command::output(bench(program, kind).args(["rules", &samples]).arg(&answer)));
    let compared = read.and_then(|read| {
        let said = command::output(bench(compares, kind).args([&objects, &answer]).arg(&samples))?;
        Ok((Said(read), Said(said)))
    });
    std::fs::remove_dir_all(&folder)?;
    let (read, compared) = compared?;
    let right = format!("{} with differences 0", arguments.services);
    if compared.text("compared")? != right {
        bail!("wrong answer: {}", compared.0);
    }
    let ms = (middle_us(kind, "drift/read")? + middle_us(kind, "drift/compare")?) / 1000.0;
    let memory = read.value("memory_kib")?.max(compared.value("memory_kib")?) / MIB;
    let name = kind.name;
    Ok([
        Row::new(format!("{name}: drift of the whole node, ms"), ms, Target::AtMost(DRIFT_MS)),
        Row::new(format!("{name}: memory for it on the node or in the server, MiB"), memory, Target::AtMost(DRIFT_MIB)),
    ])
}

/// Where criterion keeps what it measured, from one run to the next.
fn home(kind: &Kind) -> PathBuf {
    place::target().join("criterion").join(kind.name)
}

fn bench(program: &Path, kind: &Kind) -> Command {
    let mut command = Command::new(program);
    command.env("CRITERION_HOME", home(kind));
    command
}

/// Microseconds, as criterion has just estimated the middle of a benchmark's samples.
fn middle_us(kind: &Kind, benchmark: &str) -> Result<f64> {
    let file = home(kind).join(benchmark).join("new/estimates.json");
    let text = std::fs::read(&file).with_context(|| format!("criterion left no {}", file.display()))?;
    let estimates: Value = serde_json::from_slice(&text)?;
    let ns = estimates["median"]["point_estimate"].as_f64();
    Ok(ns.with_context(|| format!("there is no median in {}", file.display()))? / 1000.0)
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
