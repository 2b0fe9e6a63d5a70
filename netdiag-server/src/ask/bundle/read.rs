//! The files of a bundle. One that cannot be read or understood is named with its line, and the others are used.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use netdiag_common::wire::NodeReading;
use netdiag_common::{Gap, GapReason};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{kind_not_recorded, yaml};
use crate::ask::SourceError;
use crate::evidence::{Cluster, KindName, parse};
use crate::nodes::report::{RawReading, RawReport};

/// Files beyond this size are not read; the objects of 5 000 pods are about 50 MiB of YAML.
const MAX_FILE_BYTES: u64 = 1 << 30;

/// `bundle.json`, schema `netdiag.bundle/v1`: optional, since a bundle can be made by hand.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    pub schema: String,
    pub cluster: String,
    pub at: Timestamp,
    /// Version of the netdiag that wrote it.
    #[serde(default)]
    pub netdiag: String,
}

pub const MANIFEST_SCHEMA: &str = "netdiag.bundle/v1";

pub(super) struct Contents {
    pub cluster: Cluster,
    pub readings: Vec<NodeReading>,
    pub now: Timestamp,
    pub broken: Vec<Broken>,
}

/// A file, or a part of one, that could not be understood.
pub(super) struct Broken {
    pub path: PathBuf,
    /// From 1; none when the file could not be opened.
    pub line: Option<usize>,
    pub why: String,
}

impl Broken {
    pub fn gap(&self) -> Gap {
        Gap {
            what: format!("the bundle's file {}", self.path.display()),
            node: None,
            reason: GapReason::Malformed,
            why: self.sentence(),
            remedy: "correct the file or record the bundle again; everything else was used".to_owned(),
        }
    }

    fn sentence(&self) -> String {
        match self.line {
            Some(line) => format!("line {line} of {}: {}", self.path.display(), self.why),
            None => format!("{}: {}", self.path.display(), self.why),
        }
    }
}

pub(super) fn directory(directory: &Path) -> Result<Contents, SourceError> {
    let shown = directory.display();
    if !directory.is_dir() {
        let message = format!("{shown} is not a directory; a bundle is one with objects/*.yaml and nodes/NODE.json");
        return Err(SourceError { message });
    }
    let mut reader = Reader::default();
    let manifest = reader.manifest(&directory.join("bundle.json"));
    for path in reader.files(&directory.join("objects"), &["yaml", "yml", "json"]) {
        reader.objects(&path);
    }
    for path in reader.files(&directory.join("nodes"), &["json"]) {
        reader.report(&path);
    }
    for path in reader.files(&directory.join("readings"), &["json"]) {
        reader.extra_readings(&path);
    }
    if reader.kinds.is_empty() {
        let message = match reader.broken.first() {
            Some(broken) => format!("nothing of the bundle {shown} could be read: {}", broken.sentence()),
            None => format!(
                "{shown} holds no objects; put what `kubectl get pods,services,… -A -o yaml` writes into objects/"
            ),
        };
        return Err(SourceError { message });
    }
    let own_name = || directory.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    reader.cluster.name = manifest.as_ref().map_or_else(own_name, |manifest| manifest.cluster.clone());
    reader.mark_kinds_not_recorded();
    let now = reader.reported_at.or(manifest.map(|m| m.at)).or_else(|| newest_change(&reader.cluster));
    Ok(Contents {
        now: now.unwrap_or(Timestamp::UNIX_EPOCH),
        cluster: reader.cluster,
        readings: reader.readings,
        broken: reader.broken,
    })
}

#[derive(Default)]
struct Reader {
    cluster: Cluster,
    /// Kinds of which at least one object, or an empty list, was found.
    kinds: BTreeSet<KindName>,
    readings: Vec<NodeReading>,
    /// `at` of the newest report.
    reported_at: Option<Timestamp>,
    broken: Vec<Broken>,
}

impl Reader {
    fn fail(&mut self, path: &Path, line: Option<usize>, why: impl Into<String>) {
        self.broken.push(Broken { path: path.to_owned(), line, why: why.into() });
    }

    /// The files of a directory with one of these endings, by name; none when there is no such directory.
    fn files(&mut self, directory: &Path, endings: &[&str]) -> Vec<PathBuf> {
        if !directory.exists() {
            return Vec::new();
        }
        let entries = match std::fs::read_dir(directory) {
            Ok(entries) => entries,
            Err(error) => {
                self.fail(directory, None, format!("cannot list it: {error}"));
                return Vec::new();
            }
        };
        let named = |path: &PathBuf| path.extension().is_some_and(|end| endings.iter().any(|known| end == *known));
        let mut files: Vec<PathBuf> = entries.filter_map(|entry| Some(entry.ok()?.path())).filter(named).collect();
        files.sort();
        files
    }

    #[expect(clippy::disallowed_methods, reason = "a bundle is files; this is the source that opens them")]
    fn text(&mut self, path: &Path) -> Option<String> {
        match std::fs::metadata(path) {
            Ok(metadata) if metadata.len() > MAX_FILE_BYTES => {
                let why = format!("{} bytes, more than the limit of {MAX_FILE_BYTES}", metadata.len());
                self.fail(path, None, why);
                return None;
            }
            _ => {}
        }
        std::fs::read_to_string(path).map_err(|error| self.fail(path, None, format!("cannot read it: {error}"))).ok()
    }

    fn json(&mut self, path: &Path) -> Option<Value> {
        let text = self.text(path)?;
        serde_json::from_str(&text).map_err(|error| self.fail(path, Some(error.line()), error.to_string())).ok()
    }

    fn manifest(&mut self, path: &Path) -> Option<Manifest> {
        if !path.exists() {
            return None;
        }
        let value = self.json(path)?;
        serde_json::from_value(value).map_err(|error| self.fail(path, Some(1), error.to_string())).ok()
    }

    fn objects(&mut self, path: &Path) {
        if let Some(kind) = path.file_stem().and_then(|stem| kind_of_resource(&stem.to_string_lossy())) {
            self.kinds.insert(kind);
        }
        let objects = if path.extension().is_some_and(|end| end == "json") {
            let Some(value) = self.json(path) else { return self.forget_stem(path) };
            let mut objects = yaml::Objects::default();
            objects.add(value, 1, &[]);
            objects
        } else {
            let Some(text) = self.text(path) else { return self.forget_stem(path) };
            yaml::objects(&text)
        };
        if objects.items.is_empty() && !objects.broken.is_empty() {
            self.forget_stem(path);
        }
        self.kinds.extend(objects.listed.iter().filter_map(|kind| KindName::of_object(kind)));
        for part in objects.broken {
            self.fail(path, Some(part.line), part.why);
        }
        for item in objects.items {
            self.kinds.extend(item.value.get("kind").and_then(Value::as_str).and_then(KindName::of_object));
            if let Err(error) = parse::add_object(&mut self.cluster, item.value) {
                self.fail(path, Some(item.line), error.to_string());
            }
        }
    }

    /// A file that could not be understood at all does not speak for the kind in its name.
    fn forget_stem(&mut self, path: &Path) {
        let stem = path.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default();
        if let Some(kind) = kind_of_resource(&stem) {
            self.kinds.remove(&kind);
        }
    }

    fn report(&mut self, path: &Path) {
        let Some(value) = self.json(path) else { return };
        let report: RawReport = match serde_json::from_value(value) {
            Ok(report) => report,
            Err(error) => return self.fail(path, None, format!("it is not a node's report: {error}")),
        };
        self.reported_at = self.reported_at.max(Some(report.at));
        for reading in report.readings {
            self.reading(path, reading);
        }
    }

    fn extra_readings(&mut self, path: &Path) {
        let Some(value) = self.json(path) else { return };
        let list = if let Value::Array(list) = value { list } else { vec![value] };
        for entry in list {
            match serde_json::from_value(entry) {
                Ok(reading) => self.reading(path, reading),
                Err(error) => self.fail(path, None, format!("it is not a list of readings: {error}")),
            }
        }
    }

    fn reading(&mut self, path: &Path, reading: RawReading) {
        match reading.decode() {
            Ok(reading) => self.readings.push(reading),
            Err(undecoded) => self.fail(path, None, undecoded.why),
        }
    }

    fn mark_kinds_not_recorded(&mut self) {
        for kind in KindName::ALL.into_iter().filter(|kind| !self.kinds.contains(kind)) {
            let broken = self.broken.iter().find(|broken| {
                broken.path.file_stem().and_then(|stem| kind_of_resource(&stem.to_string_lossy())) == Some(kind)
            });
            let why = broken.map_or_else(|| "the bundle holds none, and no empty list".to_owned(), Broken::sentence);
            kind.set_gap(&mut self.cluster, Some(kind_not_recorded(kind.name(), why)));
        }
    }
}

/// The kind that a file's name promises: `pods`, `networkpolicies`, `deployments`.
fn kind_of_resource(stem: &str) -> Option<KindName> {
    if matches!(stem, "deployments" | "replicasets" | "daemonsets" | "statefulsets") {
        return Some(KindName::Workloads);
    }
    KindName::ALL.into_iter().find(|kind| kind.name() == stem)
}

/// The clock of a bundle without reports and manifest: nothing in it is younger.
fn newest_change(cluster: &Cluster) -> Option<Timestamp> {
    let pods = cluster.pods.iter().filter_map(|pod| pod.metadata.changed_at);
    let services = cluster.services.iter().filter_map(|service| service.metadata.changed_at);
    let slices = cluster.endpoint_slices.iter().filter_map(|slice| slice.metadata.changed_at);
    let policies = cluster.network_policies.iter().filter_map(|policy| policy.metadata.changed_at);
    pods.chain(services).chain(slices).chain(policies).max()
}
