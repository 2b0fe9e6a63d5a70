//! A living cluster as a bundle that [`BundleSource`](super::BundleSource) reads again.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use futures::stream::{self, StreamExt};
use jiff::Timestamp;
use netdiag_common::observation::Observation;
use netdiag_common::wire::{NodeReading, Report};
use netdiag_common::{Gap, Need, Netns, Reading, Topic, Window};
use serde::Serialize;
use serde_json::{Value, json};

use super::read::{MANIFEST_SCHEMA, Manifest};
use super::redact::redact;
use crate::ask::{Inquiry, LiveSource, Source, SourceError};
use crate::evidence::Cluster;
use crate::kube::{self, Access};
use crate::nodes::failure::Failure;

/// Nodes recorded at the same time: each holds its whole report.
const IN_FLIGHT: usize = 16;
/// A node with 110 pods takes about 30 requests.
const NODE_LIMIT: Duration = Duration::from_mins(1);

/// What was written, and what could not be.
pub struct Recorded {
    pub objects: usize,
    pub nodes: usize,
    pub gaps: Vec<Gap>,
}

/// Records what is judged: objects without Secrets and values, and what each agent sees passively. Sends no probes.
pub async fn record(source: &LiveSource, access: &Access, directory: &Path) -> Result<Recorded, SourceError> {
    let cluster = source.cluster().await?;
    let (objects, gaps) = listed_objects(access, directory).await?;
    let mut recorded = Recorded { objects, nodes: 0, gaps };
    let names: Vec<String> = cluster.nodes.iter().map(|node| node.metadata.name.clone()).collect();
    let mut reports = stream::iter(names)
        .map(|node| {
            let cluster = &cluster;
            async move { (report(source, cluster, &node).await, node) }
        })
        .buffer_unordered(IN_FLIGHT);
    while let Some((report, node)) = reports.next().await {
        match report {
            Ok(report) => {
                json_file(&directory.join("nodes").join(format!("{node}.json")), &report)?;
                recorded.nodes += 1;
            }
            Err(gap) => recorded.gaps.push(gap),
        }
    }
    manifest(&cluster.name, source.now(), directory)?;
    Ok(recorded)
}

/// Where the objects of an inquiry can be had once more, whole.
pub enum Objects<'a> {
    /// The bundle that was asked.
    Of(&'a Path),
    Api(&'a Access),
}

/// Records what one answer was judged on, probes included, so that the bundle answers the same question the same way.
pub async fn record_inquiry(inquiry: &Inquiry, objects: Objects<'_>, directory: &Path) -> Result<(), SourceError> {
    match objects {
        Objects::Api(access) => {
            listed_objects(access, directory).await?;
        }
        Objects::Of(bundle) => copy_objects(&bundle.join("objects"), &directory.join("objects"))?,
    }
    let evidence = &inquiry.evidence;
    let reading =
        |(need, reading): (&Need, &Reading<Observation>)| NodeReading { need: need.clone(), reading: reading.clone() };
    let readings: Vec<NodeReading> = evidence.readings().map(reading).collect();
    json_file(&directory.join("readings/answer.json"), &readings)?;
    manifest(&evidence.cluster.name, evidence.now, directory)
}

/// Writes each resource as `kubectl get -o yaml` does; returns how many objects, and which resources could not be listed.
async fn listed_objects(access: &Access, directory: &Path) -> Result<(usize, Vec<Gap>), SourceError> {
    let (mut objects, mut gaps) = (0, Vec::new());
    for list in kube::raw_lists(access).await? {
        match list.items {
            Err(gap) => gaps.push(gap),
            Ok(items) => {
                objects += items.len();
                let items: Vec<Value> =
                    items.into_iter().map(|item| whole(item, list.kind, &list.api_version)).collect();
                let list_of =
                    json!({"apiVersion": "v1", "items": items, "kind": "List", "metadata": {"resourceVersion": ""}});
                yaml(&directory.join("objects").join(format!("{}.yaml", list.name)), &list_of)?;
            }
        }
    }
    Ok((objects, gaps))
}

fn copy_objects(from: &Path, to: &Path) -> Result<(), SourceError> {
    let entries = std::fs::read_dir(from).map_err(|error| failed(from, &error))?;
    std::fs::create_dir_all(to).map_err(|error| failed(to, &error))?;
    for path in entries.filter_map(|entry| Some(entry.ok()?.path())).filter(|path| path.is_file()) {
        let target = to.join(path.file_name().unwrap_or_default());
        std::fs::copy(&path, &target).map_err(|error| failed(&target, &error))?;
    }
    Ok(())
}

fn manifest(cluster: &str, at: Timestamp, directory: &Path) -> Result<(), SourceError> {
    let manifest = Manifest {
        schema: MANIFEST_SCHEMA.to_owned(),
        cluster: cluster.to_owned(),
        at,
        netdiag: env!("CARGO_PKG_VERSION").to_owned(),
    };
    json_file(&directory.join("bundle.json"), &manifest)
}

/// As `kubectl get -o yaml` shows it: with its kind, which items of a list do not carry.
fn whole(mut item: Value, kind: &str, api_version: &str) -> Value {
    if let Some(object) = item.as_object_mut() {
        object.insert("kind".to_owned(), Value::from(kind));
        object.insert("apiVersion".to_owned(), Value::from(api_version));
    }
    redact(&mut item);
    item
}

async fn report(source: &LiveSource, cluster: &Cluster, node: &str) -> Result<Report, Gap> {
    let needs = passive_needs(cluster, node);
    let failed = |failure: Failure| failure.gap(&Need::host(node, Topic::Preflight));
    let agents = source.agents().ok_or(Failure::NotAsked).map_err(failed)?;
    agents.report(node, source.dial(cluster, node), needs, Instant::now() + NODE_LIMIT).await.map_err(failed)
}

/// Everything that can be read on a node without sending a packet.
fn passive_needs(cluster: &Cluster, node: &str) -> Vec<Need> {
    let host_only = [
        Topic::Preflight,
        Topic::Pods,
        Topic::ServiceRules,
        Topic::KubeProxy,
        Topic::Kubelet,
        Topic::Cni,
        Topic::Networkd,
        Topic::Drops,
        Topic::Dns,
        Topic::Flows,
    ]
    .map(|t| Need::host(node, t));
    let everywhere = [
        Topic::Network,
        Topic::Sysctls,
        Topic::Listeners,
        Topic::Conntrack,
        Topic::Resolver,
        Topic::Rules,
        Topic::Devices,
        Topic::Neighbours,
        Topic::Sockets,
        Topic::Counters,
    ];
    let pods =
        cluster.pods.iter().filter(|pod| pod.spec.node_name == node && !pod.is_finished() && !pod.spec.host_network);
    let namespaces = std::iter::once(Netns::Host).chain(pods.map(|pod| Netns::Pod(pod.metadata.uid.clone())));
    let each = namespaces.flat_map(|netns| {
        everywhere.clone().map(|topic| Need {
            node: node.to_owned(),
            netns: netns.clone(),
            topic,
            window: Window::default(),
        })
    });
    host_only.into_iter().chain(each).collect()
}

fn yaml(path: &Path, value: &Value) -> Result<(), SourceError> {
    let text = serde_saphyr::to_string(value).map_err(|error| failed(path, &error))?;
    write(path, &text)
}

fn json_file(path: &Path, value: &impl Serialize) -> Result<(), SourceError> {
    let text = serde_json::to_string_pretty(value).map_err(|error| failed(path, &error))?;
    write(path, &text)
}

fn write(path: &Path, text: &str) -> Result<(), SourceError> {
    let parent: PathBuf = path.parent().unwrap_or(path).to_owned();
    std::fs::create_dir_all(&parent).map_err(|error| failed(&parent, &error))?;
    std::fs::write(path, text).map_err(|error| failed(path, &error))
}

fn failed(path: &Path, error: &impl ToString) -> SourceError {
    SourceError { message: format!("cannot write {}: {}", path.display(), error.to_string()) }
}
