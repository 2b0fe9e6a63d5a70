//! What is served beside the Secret that it should come from: the API server's own certificate, then another one.

use anyhow::Result;
use serde_json::Value;

use super::super::world::CLIENT;
use super::{READY_WITHIN, probe};
use crate::cluster::Cluster;
use crate::install::{self, Installed};

/// The Secret that `optional/certificates.yaml` names.
const SECRET: &str = "web-tls";

pub(super) fn compared(cluster: &Cluster, installed: &Installed) -> Result<Vec<String>> {
    let mut wrong = Vec::new();
    keep(cluster, "apiserver")?;
    let before = ask(cluster, installed)?;
    if before["series"][0]["secret"]["outcome"] != "unknown" || before["not_seen"] == Value::Array(Vec::new()) {
        wrong.push(format!("a Secret that the server may not get: {before}"));
    }
    cluster.apply(&install::optional("certificates.yaml")?)?;
    let mut answer = Value::Null;
    // RBAC's rules are watched: what was just written holds a moment later.
    let mut came = |outcome: &str| {
        cluster.wait_until(&format!("certificate that is {outcome}"), READY_WITHIN, || {
            answer = ask(cluster, installed).unwrap_or_default();
            answer["series"][0]["secret"]["outcome"] == outcome
        })
    };
    let same = came("same");
    cluster.kubectl(&["delete", "secret", SECRET])?;
    let missing = came("missing");
    keep(cluster, "kubelet-client")?;
    let different = came("different");
    let results = [same, missing, different];
    wrong.extend(results.into_iter().filter_map(Result::err).map(|error| format!("{error:#}; told last: {answer}")));
    cluster.kubectl(&["delete", "secret", SECRET])?;
    Ok(wrong)
}

/// Keeps one of the cluster's own certificates in the Secret.
fn keep(cluster: &Cluster, name: &str) -> Result<()> {
    let folder = cluster.scratch("pki")?;
    let file = |option: &str, end: &str| format!("--{option}={}", folder.join(format!("{name}.{end}")).display());
    cluster.kubectl(&["create", "secret", "tls", SECRET, &file("cert", "crt"), &file("key", "key")])?;
    Ok(())
}

fn ask(cluster: &Cluster, installed: &Installed) -> Result<Value> {
    let words = ["tls", "--family", "ipv4", "--secret", "default/web-tls"];
    probe(cluster, installed, &words, CLIENT, "service/default/kubernetes:443")
}
