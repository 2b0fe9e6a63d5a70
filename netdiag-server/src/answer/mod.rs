//! The answer as a value: what the CLI prints, what the tools return, what is stored. Text, JSON and Markdown are renderings.

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::ask::Step;
use crate::evidence::ObjectRef;
use crate::finding::{Fix, Proof};

mod build;
pub(crate) mod escape;
mod hops;
mod not_seen;
mod page;
#[cfg(test)]
mod sample;

pub mod compact;
pub mod drift;
pub mod explain;
pub mod followed;
pub mod markdown;
pub mod mesh;
pub mod observe;
pub mod probe;
pub mod scan;
pub mod schema;
pub mod status;
pub mod text;
pub mod trace;

pub use build::build;
pub use page::Paint;

pub const ANSWER_SCHEMA: &str = "netdiag.answer/v1";

/// One question's answer, schema `netdiag.answer/v1`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Answer {
    /// Always `netdiag.answer/v1`.
    pub schema: String,
    pub asked: Asked,
    pub cluster: String,
    /// When the evidence was complete, RFC 3339.
    #[schemars(with = "String")]
    pub at: Timestamp,
    /// Seconds of observation that the answer rests on.
    pub window_s: u64,
    pub status: StatusName,
    /// 0–1: how sure the first cause is, or that there is none.
    pub confidence: f64,
    /// 0–1: the share of what had to be looked at that was seen.
    pub completeness: f64,
    /// What probes from the client experience.
    pub symptom: SymptomEntry,
    /// The first is the answer; more only for independent faults.
    pub causes: Vec<CauseEntry>,
    /// Found as well, but explained by a cause.
    pub consequences: Vec<CauseEntry>,
    /// What it is not.
    pub excluded: Vec<Excluded>,
    /// Codes that could not be judged, because of `not_seen`.
    pub undecided: Vec<String>,
    /// What could not be looked at.
    pub not_seen: Vec<NotSeen>,
    /// What was asked in which order.
    pub steps: Vec<Step>,
    /// The hops from the client to the endpoints.
    pub path: Vec<Hop>,
    /// What was left out to keep the answer short, and how to get it; empty when nothing was.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub truncated: String,
    /// What `get_evidence` takes to show the readings behind this answer; empty where no server keeps them.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub handle: String,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Asked {
    pub from: String,
    pub to: String,
    pub port: String,
    pub protocol: String,
    /// The DNS name, when one was asked.
    pub name: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(inline)]
pub enum StatusName {
    Broken,
    Degraded,
    Healthy,
    Unknown,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct SymptomEntry {
    pub state: SymptomName,
    /// One sentence per probe, failures first.
    pub probes: Vec<String>,
    /// One sentence per kind of failure that the path's own traffic met in the window; it may be over.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub traffic: Vec<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(inline)]
pub enum SymptomName {
    /// Every probe got through.
    Works,
    /// Some did.
    Partial,
    /// None did.
    Fails,
    /// Nothing was probed, or no probe came back.
    Unknown,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct CauseEntry {
    /// Stable: agents branch on it.
    pub code: String,
    pub title: String,
    pub severity: String,
    pub confidence: f64,
    pub subjects: Vec<ObjectRef>,
    /// RFC 3339; empty when the evidence does not say.
    pub since: String,
    pub claim: String,
    pub proof: Vec<Proof>,
    pub fix: Fix,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Excluded {
    pub code: String,
    pub because: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct NotSeen {
    pub what: String,
    /// Empty for the Kubernetes API.
    pub node: String,
    pub why: String,
    pub remedy: String,
}

/// One hop of the path.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Hop {
    pub cluster: String,
    /// `client`, `name`, `service`, `node`, `policy`, `endpoint`. Neighbours of one kind are parallel.
    pub kind: String,
    pub label: String,
    pub node: String,
    pub state: HopState,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(inline)]
pub enum HopState {
    Ok,
    Broken,
    Degraded,
    Unknown,
}
