//! The case `observed`: events of every kind that the nodes' kernels tell, made from pods, and `netdiag observe` must name each
//! with its pod, Service and node, counted exactly. Then an agent is killed, and the server must say that it counts anew.

mod events;
mod look;
mod space;
mod told;

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use super::asker::Asker;
use crate::cluster::Cluster;
use crate::command;
use events::Events;
pub(super) use events::query;
use look::{Observer, rows};
pub(super) use space::{Space, group_of};

pub(super) const NAME: &str = "observed";
pub(super) const ABOUT: &str = "events of every kind, made from pods, are told with pod, Service, node and count";

/// The shortest window must be free of what came before; then it is 20 s long at most.
const QUIET_WITHIN: Duration = Duration::from_secs(45);
/// kube-proxy programs a new Service within a second or two.
const READY_WITHIN: Duration = Duration::from_secs(20);
/// The kubelet starts a killed container again at once, and the agent attaches in a second.
const BACK_WITHIN: Duration = Duration::from_secs(30);
const POLL: Duration = Duration::from_millis(500);

/// What is wrong; empty when nothing is.
pub(super) fn run(cluster: &Cluster, asker: &Asker) -> Result<Vec<String>> {
    let observer = Observer { cluster, asker };
    cluster.apply(include_str!("service.yaml"))?;
    cluster.wait_until("answer of Service pay/observed", READY_WITHIN, || events::is_ready(cluster))?;
    let outcome = healthy(&observer).and_then(|()| eventful(&observer)).and_then(|mut wrong| {
        wrong.extend(restarted(&observer)?);
        Ok(wrong)
    });
    cluster.kubectl(&["-n", "pay", "delete", "service", "observed", "--wait=false"])?;
    outcome
}

/// Nothing is told of a healthy cluster in use, but drops that have a harmless name.
fn healthy(observer: &Observer) -> Result<()> {
    let started = Instant::now();
    loop {
        events::everyday(observer.cluster)?;
        let look = observer.look(&["--window", "10s"])?;
        let told: Vec<&Value> = ["drops", "rejects", "tcp", "udp", "dns", "dns_names"]
            .iter()
            .flat_map(|section| rows(&look, section))
            .chain(look["losses"].as_array().into_iter().flatten())
            .chain(look["not_seen"].as_array().into_iter().flatten())
            .collect();
        let harmless = look["drops"]["harmless_packets"].as_u64().unwrap_or_default();
        if told.is_empty() && harmless > 0 {
            return Ok(());
        }
        if started.elapsed() > QUIET_WITHIN {
            bail!(
                "of a healthy cluster is told: {}",
                told.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
            );
        }
        std::thread::sleep(POLL);
    }
}

fn eventful(observer: &Observer) -> Result<Vec<String>> {
    let events = Events::make(observer)?;
    let wrong = events.missed(observer);
    events.end(observer.cluster)?;
    wrong
}

/// SIGKILL to the agent of n1: its new start is told as such, and that its counts are young.
fn restarted(observer: &Observer) -> Result<Vec<String>> {
    let before = agent(&observer.look(&["tcp", "--node", "n1"])?)?;
    let cluster = observer.cluster;
    let select = ["-l", "app.kubernetes.io/name=netdiag-node", "--field-selector", "spec.nodeName=n1"];
    let name = ["-o", "jsonpath={.items[0].metadata.name}"];
    let pod = cluster.kubectl(&[&["-n", "netdiag-system", "get", "pods"], &select[..], &name[..]].concat())?;
    let pid = cluster.pod_pid("netdiag-system", pod.trim())?;
    command::run(command::tool("kill").args(["-KILL", &pid]))?;
    let started = Instant::now();
    loop {
        std::thread::sleep(POLL);
        // While it is away, the look is of nobody: that is a gap, and no answer about restarts.
        let after = observer.look(&["tcp", "--node", "n1", "--window", "1h"]).and_then(|look| agent(&look));
        if let Ok(after) = after
            && after["instance"] != before["instance"]
        {
            let counted = after["restarts"].as_u64() > before["restarts"].as_u64();
            let wrong = (!counted).then(|| format!("a killed agent is not counted as started anew: {after}"));
            let young = after["younger_than_window"] == true;
            return Ok(wrong
                .into_iter()
                .chain((!young).then(|| format!("its counts are not told as young: {after}")))
                .collect());
        }
        if started.elapsed() > BACK_WITHIN {
            bail!("the agent of n1 is not back {} s after SIGKILL", BACK_WITHIN.as_secs());
        }
    }
}

fn agent(look: &Value) -> Result<Value> {
    look["agents"].get(0).cloned().context("no agent answered")
}
