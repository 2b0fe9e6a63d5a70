//! Where a program of a pod's control group drops what its sockets send, probes from that group meet it: the agent joins the group
//! from the DaemonSet's container.

use std::fs::File;
use std::os::fd::AsRawFd;

use anyhow::{Context, Result};
use serde_json::Value;

use super::super::attach::drop_all;
use super::super::observed::group_of;
use super::super::world::CLIENT;
use super::probe;
use crate::cluster::Cluster;
use crate::install::Installed;

const WORDS: [&str; 7] = ["tcp", "-c", "1", "--timeout", "1s", "--family", "ipv4"];
const TO: &str = "pod/shop/web-2:8080";

pub(super) fn joined(cluster: &Cluster, installed: &Installed) -> Result<Option<String>> {
    let path = group_of(&cluster.pod_pid("shop", "client")?)?;
    let group = File::open(&path).with_context(|| format!("cannot open {}", path.display()))?;
    let dropping = drop_all("cgroup-egress", group.as_raw_fd().cast_unsigned())
        .with_context(|| format!("cannot attach a program to {}", path.display()))?;
    let under = probe(cluster, installed, &WORDS, CLIENT, TO)?;
    drop(dropping);
    let after = probe(cluster, installed, &WORDS, CLIENT, TO)?;
    let is_seen = |answer: &Value| answer["not_seen"] == Value::Array(Vec::new());
    let is_right = is_seen(&under) && under["status"] == "failed" && is_seen(&after) && after["status"] == "well";
    Ok((!is_right).then(|| format!("a program that drops in the client's control group: {under}; without it: {after}")))
}
