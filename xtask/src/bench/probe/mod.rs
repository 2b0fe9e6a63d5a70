//! `cargo xtask bench probe`: what the probe engine adds to a round trip, how many probes it sustains, and what they cost.
//!
//! A pod and its node are namespaces joined by a veth pair; an agent of the node probes from the pod's. Beside it, in the same
//! namespace and one after the other, run the tools that people use instead.

mod peer;
mod round_trip;
mod server;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};

use super::observe::process::{Agent, certificates, median};
use super::observe::world::{Pod, World};
use super::table::{Row, Table, Target};
use crate::netdiag_image::{self, Build};
use server::Servers;

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// The agent to measure; built from this checkout when none is given
    #[arg(long)]
    agent: Option<PathBuf>,
    /// Probes of each kind whose round trips are compared
    #[arg(long, default_value_t = 500, value_parser = clap::value_parser!(u32).range(50..=5_000))]
    probes: u32,
}

/// The node's address that the pod probes.
const NODE_ADDRESS: &str = "10.76.255.1";
/// Probes each second that an agent must sustain on two cores.
const RATE: f64 = 20_000.0;
const MEMORY_MIB: f64 = 40.0;
const ENTER_US: f64 = 200.0;
/// Targets of one request each: several, so that ports do not run out.
const TARGETS: u16 = 4;
/// Of each target.
const RATE_PROBES: u32 = 40_000;
const CONCURRENT: u32 = 1_000;
const ENTRIES: usize = 50;

/// An agent, the pod that it probes from, and what is probed.
struct Lab<'a> {
    agent: &'a Agent<'a>,
    pod: &'a Pod,
    servers: &'a Servers,
}

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    if !nix::unistd::geteuid().is_root() {
        bail!("network namespaces need root");
    }
    let program = match &arguments.agent {
        Some(agent) => agent.clone(),
        None => netdiag_image::compile(Build::Release)?.agent,
    };
    let world = World::new(1)?;
    let pod = &world.pods[0];
    world.node.sh(&format!("ip addr add {NODE_ADDRESS}/32 dev lo"))?;
    pod.space.sh("echo '1024 65535' > /proc/sys/net/ipv4/ip_local_port_range")?;
    let servers = Servers::start(&world.node)?;
    let certificates = certificates()?;
    let node = world.node.path();
    let options = ["--host-netns", node.as_str(), "--cgroup-root", world.root.as_str()];
    let agent = Agent::start(&program, certificates.path(), &options)?;
    agent.on_every_processor()?;
    let lab = Lab { agent: &agent, pod, servers: &servers };
    let mut missing = Vec::new();
    let mut rows = round_trip::measure(&lab, arguments.probes, &mut missing)?;
    rows.push(enter(&lab)?);
    let (speed, of_rate) = rate(&lab)?;
    rows.extend(of_rate);
    rows.extend(peer::rates(&lab, speed, &mut missing));
    rows.push(memory(&lab)?);
    let how = format!(
        "from a pod's namespace to its node's over a veth pair, the agent with all its kernel programs; round trips: {} of each, one \
         every {} ms, beside the other tool's in the same namespace; HTTP by curl's phases: the first byte counts from when the \
         request was sent, where curl takes time_pretransfer, and closing is in no total; making the socket is in curl's connect and \
         not in ours, and in both totals; entering ends when the first socket is made; Linux {}",
        arguments.probes,
        round_trip::INTERVAL.as_millis(),
        super::kernel()
    );
    let table = Table { title: "What probes add and cost", how, missing, rows };
    table.print();
    if table.missed() > 0 {
        bail!("{} targets were not met", table.missed());
    }
    Ok(())
}

impl Lab<'_> {
    /// The results of series that run at the same time, in the order of the requests.
    fn series(&self, requests: &[Value]) -> Result<Vec<Value>> {
        let needs: Vec<Value> = requests.iter().map(|request| self.pod.need_of(json!({ "series": request }))).collect();
        let readings = self.agent.ask(&needs)?;
        let results = readings.into_iter().map(|mut reading| {
            let result = reading["reading"]["value"]["value"].take();
            for (what, whole, parts) in
                [("asked", "asked", ["made", "untried"]), ("made", "made", ["succeeded", "failed"])]
            {
                let count =
                    |name: &str| result[name].as_u64().with_context(|| format!("the result has no {name}: {result}"));
                ensure!(
                    count(whole)? == count(parts[0])? + count(parts[1])?,
                    "{what} is not {parts:?} together: {result}"
                );
            }
            Ok(result)
        });
        results.collect()
    }

    fn one(&self, request: Value) -> Result<Value> {
        self.series(&[request])?.pop().context("the agent gave no result")
    }
}

/// A request with the usual limits.
fn request(probe: &Value, count: u32, interval: Duration, parallel: u32) -> Value {
    json!({
        "probe": probe, "count": count, "interval_us": interval.as_micros(), "timeout_ms": 5_000, "parallel": parallel,
        "asked_by": "bench",
    })
}

fn tcp(port: u16, close: &str) -> Value {
    json!({ "kind": "tcp", "to": format!("{NODE_ADDRESS}:{port}"), "close": close })
}

/// From the request to the first packet.
fn enter(lab: &Lab<'_>) -> Result<Row> {
    let mut times = Vec::with_capacity(ENTRIES);
    for _ in 0..ENTRIES {
        let result = lab.one(request(&tcp(lab.servers.tcp[0], "reset"), 1, Duration::ZERO, 1))?;
        times.push(result["entered_us"].as_f64().with_context(|| format!("no time of entry: {result}"))?);
    }
    Ok(Row::new("enter a namespace and send the first packet, µs", median(&times), Target::AtMost(ENTER_US)))
}

/// Probes without a pause between them.
#[derive(Clone, Copy)]
struct Speed {
    per_s: f64,
    /// For 1 000 of them. On a machine with other work this says more than how many there were.
    cpu_ms: f64,
}

/// As fast as it can, to several targets at one time; every probe is accounted for.
fn rate(lab: &Lab<'_>) -> Result<(Speed, Vec<Row>)> {
    let ports = lab.servers.tcp.iter().take(TARGETS.into());
    let requests: Vec<Value> =
        ports.map(|port| request(&tcp(*port, "reset"), RATE_PROBES, Duration::ZERO, 64)).collect();
    let (cpu, started) = (lab.agent.cpu()?, Instant::now());
    let results = lab.series(&requests)?;
    let (elapsed, used) = (started.elapsed().as_secs_f64(), lab.agent.cpu()?.saturating_sub(cpu).as_secs_f64());
    let sum = |name: &str| results.iter().filter_map(|result| result[name].as_f64()).sum::<f64>();
    let (succeeded, made) = (sum("succeeded"), sum("made"));
    ensure!(succeeded > 0.0, "no probe succeeded: {}", results[0]);
    let speed = Speed { per_s: succeeded / elapsed, cpu_ms: used / made * 1e6 };
    let rows = vec![
        Row::new("TCP probes each second (closed by RST, 4 targets)", speed.per_s, Target::AtLeast(RATE)),
        Row::beside("    CPU of the agent for 1 000 of them, ms", speed.cpu_ms),
        Row::beside("    of them failed or were not tried", sum("failed") + sum("untried")),
    ];
    Ok((speed, rows))
}

/// Requests that nobody answers, all at one time.
fn memory(lab: &Lab<'_>) -> Result<Row> {
    let probe = json!({
        "kind": "http", "url": format!("http://{NODE_ADDRESS}:{}/", lab.servers.silent), "version": "any", "method": "GET",
        "redirects": 0, "body_bytes": 1024,
    });
    let before = lab.agent.resident()?.now;
    lab.agent.forget_peak()?;
    let result = lab.one(request(&probe, CONCURRENT, Duration::ZERO, CONCURRENT))?;
    ensure!(result["made"] == CONCURRENT, "not all probes were made: {result}");
    let more = lab.agent.resident()?.peak - before;
    Ok(Row::new("memory of 1 000 HTTP probes that nobody answers, over idle, MiB", more, Target::AtMost(MEMORY_MIB)))
}
