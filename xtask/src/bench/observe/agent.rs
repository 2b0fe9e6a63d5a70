//! What the agent needs for itself: CPU time at idle and in a storm, memory beside many pods and full tables, time to start.
//!
//! Its CPU time and memory are read from outside: asking it would cost what is measured.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};
use serde_json::json;

use super::flood::{LOOPBACK, flood};
use super::process::{Agent, NODE, certificates, median};
use super::world::{Pod, World};
use crate::bench::table::{Row, Table, Target};
use crate::command;

pub(super) const TITLE: &str = "The agent itself";

/// Nodes of the two sizes and what the agent may keep resident, in MiB.
const NODES: [(u16, f64); 2] = [(100, 60.0), (250, 100.0)];
/// Looks at all pods, some harvests: after this there is nothing new.
const SETTLES_IN: Duration = Duration::from_secs(15);
/// Six harvests, and as many looks around.
const IDLE: Duration = Duration::from_mins(1);
/// Three harvests.
const STORM: Duration = Duration::from_secs(30);
const STORM_FLOWS: u16 = 4096;
/// In each of two pods; the limit is 262 144 by default, in each namespace.
const TRACKED: u32 = 250_000;
/// The kernel's dump of one such table is 48 MiB: who held it in any form would need more than this.
const GROWTH_MIB: f64 = 10.0;
/// What a scan asks of each pod.
const OF_POD: [&str; 10] = [
    "network",
    "sysctls",
    "listeners",
    "conntrack",
    "resolver",
    "rules",
    "devices",
    "neighbours",
    "sockets",
    "counters",
];
const OF_NODE: [&str; 12] = [
    "pods",
    "network",
    "sysctls",
    "listeners",
    "conntrack",
    "rules",
    "drops",
    "dns",
    "rejects",
    "tcp",
    "udp",
    "counters",
];
/// Needs in one request, as the agent allows them.
const NEEDS: usize = 250;
const STARTS_WITHIN: Duration = Duration::from_secs(30);

pub(super) fn measure(program: &Path, rounds: usize) -> Result<Table> {
    let how = format!(
        "pods that sleep, each with a namespace and a veth pair; the agent on processor 1. Start: median of {rounds}, from the \
         start of the process to metrics that hold a dropped packet. Idle: {} s. Storm: {STORM_FLOWS} flows for {} s. Memory \
         is resident memory of the process. Everything asked: {} topics of each pod and {} of the node",
        IDLE.as_secs(),
        STORM.as_secs(),
        OF_POD.len(),
        OF_NODE.len()
    );
    let certificates = certificates()?;
    let mut missing = Vec::new();
    let asks = command::find("curl").is_some();
    if !asks {
        missing.push("memory while everything is asked: curl is not installed".to_owned());
    }
    let mut rows = Vec::new();
    for (n, (pods, mebibytes)) in NODES.into_iter().enumerate() {
        let world = World::new(pods)?;
        let node = world.node.path();
        let arguments = ["--host-netns", node.as_str(), "--cgroup-root", world.root.as_str()];
        let start = || Agent::start(program, certificates.path(), &arguments);
        if n == 0 {
            rows.push(start_row(program, certificates.path(), &arguments, &world, rounds)?);
        }
        let agent = start()?;
        std::thread::sleep(SETTLES_IN);
        let found = agent.metrics()?.sum("netdiag_pods", "");
        ensure!(found >= f64::from(pods), "the agent found {found} of {pods} pods");
        if n == 0 {
            rows.push(idle_row(&agent, pods)?);
            rows.extend(storm_rows(&agent, &world.pods[0])?);
        }
        let at_most = |what: String, measured| Row::new(what, measured, Target::AtMost(mebibytes));
        rows.push(at_most(format!("memory with {pods} pods, MiB"), agent.resident()?.now));
        rows.push(Row::beside("    kernel memory of its programs and tables, MiB", kernel_mebibytes(&agent)?));
        if asks {
            rows.push(at_most("    most while everything is asked".to_owned(), asked(&agent, &world)?));
            let (most, growth) = tracked(&agent, &world.pods[1..3])?;
            rows.push(at_most(format!("    most while 2 × {TRACKED} tracked flows are read"), most));
            rows.push(Row::new("    of which this reading needed", growth, Target::AtMost(GROWTH_MIB)));
        }
    }
    Ok(Table { title: TITLE, how, missing, rows })
}

/// From the start of the process until it tells of a dropped packet.
fn start_row(program: &Path, certificates: &Path, arguments: &[&str], world: &World, rounds: usize) -> Result<Row> {
    let mut seconds = Vec::new();
    for _ in 0..rounds {
        let mut agent = Agent::spawn(program, certificates, arguments)?;
        // Something to see at any time, from before the programs are attached.
        let first = std::thread::scope(|scope| {
            let seen = scope.spawn(move || {
                while agent.started.elapsed() < STARTS_WITHIN {
                    if agent.first_metrics()?.sum("netdiag_drops_total", "") > 0.0 {
                        return Ok(agent.started.elapsed());
                    }
                    std::thread::sleep(Duration::from_millis(2));
                }
                bail!("the agent saw no dropped packet within {} s", STARTS_WITHIN.as_secs())
            });
            while !seen.is_finished() {
                flood(&world.pods[0].space, LOOPBACK, 1, Duration::from_micros(100))?;
                std::thread::sleep(Duration::from_millis(5));
            }
            seen.join().unwrap_or_else(|_| bail!("waiting for the agent panicked"))
        })?;
        seconds.push(first.as_secs_f64());
    }
    Ok(Row::new("start to first observation, s", median(&seconds), Target::AtMost(1.0)))
}

fn idle_row(agent: &Agent<'_>, pods: u16) -> Result<Row> {
    let (before, since) = (agent.cpu()?, Instant::now());
    std::thread::sleep(IDLE);
    let percent = percent(agent.cpu()?.saturating_sub(before), since.elapsed());
    Ok(Row::new(format!("CPU time at idle with {pods} pods, % of a core"), percent, Target::AtMost(0.5)))
}

fn storm_rows(agent: &Agent<'_>, pod: &Pod) -> Result<[Row; 2]> {
    let (before, since) = (agent.cpu()?, Instant::now());
    let slices = flood(&pod.space, LOOPBACK, STORM_FLOWS, STORM)?;
    let percent = percent(agent.cpu()?.saturating_sub(before), since.elapsed());
    Ok([
        Row::new("CPU time in a storm, % of a core beyond its programs", percent, Target::AtMost(5.0)),
        Row::beside("    drops/s", 1e9 / median(&slices)),
    ])
}

fn percent(used: Duration, elapsed: Duration) -> f64 {
    used.as_secs_f64() / elapsed.as_secs_f64() * 100.0
}

fn kernel_mebibytes(agent: &Agent<'_>) -> Result<f64> {
    Ok(agent.metrics()?.sum("netdiag_ebpf_memory_bytes", "") / f64::from(1 << 20))
}

/// The most that the agent keeps resident while it answers a scan, in MiB.
fn asked(agent: &Agent<'_>, world: &World) -> Result<f64> {
    agent.forget_peak()?;
    let of_node = OF_NODE.iter().map(|topic| json!({ "node": NODE, "netns": "host", "topic": topic }));
    let of_pods = world.pods.iter().flat_map(|pod| OF_POD.iter().map(|topic| pod.need(topic)));
    let needs: Vec<_> = of_node.chain(of_pods).collect();
    for needs in needs.chunks(NEEDS) {
        agent.ask(needs)?;
    }
    Ok(agent.resident()?.peak)
}

/// The most that the agent keeps resident while it reads full tables, and by how much that is more than before, in MiB.
fn tracked(agent: &Agent<'_>, pods: &[Pod]) -> Result<(f64, f64)> {
    for pod in pods {
        pod.track(TRACKED)?;
    }
    let before = agent.resident()?.now;
    agent.forget_peak()?;
    let needs: Vec<_> = pods.iter().map(|pod| pod.need("flows")).collect();
    for reading in agent.ask(&needs)? {
        let entries = reading["reading"]["value"]["value"]["snapshot"]["entries"].as_u64();
        ensure!(
            entries.is_some_and(|entries| entries >= u64::from(TRACKED)),
            "the agent read {entries:?} of {TRACKED} flows"
        );
    }
    let peak = agent.resident()?.peak;
    Ok((peak, peak - before))
}
