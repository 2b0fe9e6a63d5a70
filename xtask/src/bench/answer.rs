//! Latency of an answer: server and agents warm, the CLI started anew for each question as users do.

use std::collections::BTreeSet;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use hdrhistogram::Histogram;
use serde_json::Value;

use crate::cluster::{Cluster, Options};
use crate::e2e;
use crate::install::{self, Installed};
use crate::netdiag_image::Build;

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Questions of each kind
    #[arg(long, default_value_t = 50)]
    runs: u32,
}

/// One kind of question and the 95th percentile it must stay below, in milliseconds.
struct Kind {
    name: &'static str,
    arguments: &'static [&'static str],
    expected_status: &'static str,
    limit_ms: u64,
}

const TO_WEB: [&str; 4] = ["--from", "pod/shop/client", "--to", "service/shop/web:80"];
const KINDS: [Kind; 3] = [
    Kind {
        name: "healthy, no probe",
        arguments: &[TO_WEB[0], TO_WEB[1], TO_WEB[2], TO_WEB[3], "--no-probe"],
        expected_status: "healthy",
        limit_ms: 300,
    },
    Kind { name: "healthy, with probes", arguments: &TO_WEB, expected_status: "healthy", limit_ms: 2_000 },
    Kind {
        name: "broken, with probes",
        arguments: &[TO_WEB[0], TO_WEB[1], TO_WEB[2], "service/shop/broken:80"],
        expected_status: "broken",
        limit_ms: 5_000,
    },
];

/// What an agent may keep resident on the lab, in MiB.
const RESIDENT_LIMIT_MIB: u64 = 60;

/// A Service whose pods listen elsewhere: its clients are refused. Nothing else of the world changes.
const BROKEN: &str = "
apiVersion: v1
kind: Service
metadata: {name: broken, namespace: shop}
spec: {selector: {app: web}, ports: [{port: 80, targetPort: 9999}]}
";

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let options = Options { name: "bench".to_owned(), ..Options::default() };
    if let Ok(left) = Cluster::attach(&options.name) {
        left.down()?;
    }
    let cluster = Cluster::up(&options)?;
    let result = measure(&cluster, arguments.runs);
    cluster.down()?;
    result
}

fn measure(cluster: &Cluster, runs: u32) -> Result<()> {
    e2e::deploy_world(cluster)?;
    let installed = install::install(cluster, Build::Release)?;
    cluster.apply(BROKEN)?;
    let mut late = Vec::new();
    println!("{:<22} {:>8} {:>8} {:>8}  requests to agents", "question", "p50 ms", "p95 ms", "limit ms");
    for kind in &KINDS {
        // Not measured: the first answer makes the connections, and a new Service must have reached the nodes.
        wait_for_status(cluster, &installed, kind)?;
        let mut times = Histogram::<u64>::new(3).context("a histogram of three digits")?;
        let mut requests = 0;
        for _ in 0..runs {
            let started = Instant::now();
            let answer = ask(cluster, &installed, kind)?;
            times.record(u64::try_from(started.elapsed().as_micros()).unwrap_or(u64::MAX))?;
            if answer["status"] != kind.expected_status {
                bail!("{} was answered with {}: {answer}", kind.name, answer["status"]);
            }
            requests += requests_of(&answer);
        }
        let milliseconds = |quantile| times.value_at_quantile(quantile) / 1000;
        println!(
            "{:<22} {:>8} {:>8} {:>8}  {:.1}",
            kind.name,
            milliseconds(0.5),
            milliseconds(0.95),
            kind.limit_ms,
            f64::from(requests) / f64::from(runs)
        );
        if milliseconds(0.95) > kind.limit_ms {
            late.push(kind.name);
        }
    }
    let heavy = resident(cluster, &installed)?;
    if !late.is_empty() || heavy {
        bail!("above the limit: {}{}", late.join(", "), if heavy { " and the agents' memory" } else { "" });
    }
    Ok(())
}

fn wait_for_status(cluster: &Cluster, installed: &Installed, kind: &Kind) -> Result<()> {
    for _ in 0..20 {
        if ask(cluster, installed, kind)?["status"] == kind.expected_status {
            return Ok(());
        }
    }
    bail!("{} does not become {}", kind.name, kind.expected_status)
}

fn ask(cluster: &Cluster, installed: &Installed, kind: &Kind) -> Result<Value> {
    install::ask(&installed.server, cluster, &[&["diagnose"], kind.arguments].concat())
}

/// Needs of one round go to one node in one request.
fn requests_of(answer: &Value) -> u32 {
    let steps = answer["steps"].as_array().map(Vec::as_slice).unwrap_or_default();
    let requests: BTreeSet<String> = steps.iter().map(|step| format!("{} {}", step["round"], step["node"])).collect();
    u32::try_from(requests.len()).unwrap_or(u32::MAX)
}

/// Prints each agent's resident memory; whether one is above the limit.
fn resident(cluster: &Cluster, installed: &Installed) -> Result<bool> {
    let status = install::ask(&installed.server, cluster, &["status"])?;
    let nodes = status["nodes"].as_array().context("netdiag status names no nodes")?;
    let mut heavy = false;
    for node in nodes {
        let bytes = node["resident_bytes"].as_u64().with_context(|| format!("no memory in {node}"))?;
        let mebibytes = bytes / (1024 * 1024);
        println!(
            "agent on {}: {mebibytes} MiB resident, limit {RESIDENT_LIMIT_MIB}",
            node["node"].as_str().unwrap_or("?")
        );
        heavy |= mebibytes > RESIDENT_LIMIT_MIB;
    }
    Ok(heavy)
}
