//! Four answers to "what is there?": seen, absent, could not look, nobody looked. Not seen is never zero.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::Need;

/// What is known about one thing at one moment.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum Reading<T> {
    Seen {
        value: T,
        at: Timestamp,
    },
    /// We looked, and there is nothing.
    Absent {
        at: Timestamp,
    },
    /// We could not look.
    Unavailable {
        gap: Gap,
    },
    /// Nobody has looked yet.
    NotAsked {
        need: Need,
    },
}

impl<T> Reading<T> {
    pub fn map<U>(self, f: impl FnOnce(T) -> U) -> Reading<U> {
        match self {
            Self::Seen { value, at } => Reading::Seen { value: f(value), at },
            Self::Absent { at } => Reading::Absent { at },
            Self::Unavailable { gap } => Reading::Unavailable { gap },
            Self::NotAsked { need } => Reading::NotAsked { need },
        }
    }

    pub fn as_ref(&self) -> Reading<&T> {
        match self {
            Self::Seen { value, at } => Reading::Seen { value, at: *at },
            Self::Absent { at } => Reading::Absent { at: *at },
            Self::Unavailable { gap } => Reading::Unavailable { gap: gap.clone() },
            Self::NotAsked { need } => Reading::NotAsked { need: need.clone() },
        }
    }
}

/// Something that could not be seen, why, and what would make it visible.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Gap {
    /// What we wanted to see, as a reader would say it: `listening sockets of pod shop/web-1`.
    pub what: String,
    /// Node that would have known; none for the Kubernetes API.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
    pub reason: GapReason,
    /// One sentence: the concrete error, with names.
    pub why: String,
    /// What to do so that it can be seen next time.
    pub remedy: String,
}

/// The class of a gap. Stable: agents branch on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum GapReason {
    /// No agent is installed on that node, or its pod is not ready.
    NoAgent,
    /// The agent did not answer in time, or refused the connection.
    AgentUnreachable,
    /// Agent and server speak wire versions that do not overlap.
    WireVersion,
    /// A capability or an RBAC verb is missing.
    Rights,
    /// This kernel cannot do it.
    Kernel,
    /// The thing asked about is gone (pod deleted, namespace closed).
    Gone,
    /// Not recorded in the bundle.
    NotRecorded,
    /// The user or the budget forbade it (`--no-probe`, `--timeout`).
    NotAllowed,
    /// The source answered something we cannot read.
    Malformed,
    /// Anything else that failed while reading.
    Failed,
}
