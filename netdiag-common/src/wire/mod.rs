//! The agent's HTTP interface: `POST /v1/readings` takes an [`Ask`] and returns a [`Report`]. JSON over mTLS.
//!
//! Old and new talk to each other: unknown fields are ignored, unknown topics come back as a gap, an unknown step of a packet's path
//! becomes a gap of that path, and each side says which versions it speaks ([`WIRE_MIN`]..=[`WIRE_MAX`]).

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::observation::Observation;
use crate::{Need, Reading};

/// Oldest wire version this build understands.
pub const WIRE_MIN: u32 = 1;
/// Wire version this build speaks.
pub const WIRE_MAX: u32 = 1;
/// The agent's default port on the node's address.
pub const AGENT_PORT: u16 = 9443;
/// Name in the agents' certificate, verified by the server.
pub const AGENT_TLS_NAME: &str = "netdiag-node";
/// Name in the server's certificate, the only client that agents accept.
pub const SERVER_TLS_NAME: &str = "netdiag-server";
/// Needs in one request. Bounds the agent's work; the server splits larger questions.
pub const MAX_NEEDS: usize = 256;

/// What the server wants to know from one node. `needs` stay raw JSON on the agent's side until each is decoded by
/// itself, so that one topic from a newer server costs one gap and not the whole request.
///
/// The agent reads `Ask<serde_json::Value>` and echoes each need as it came, in the same order.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Ask<N = Need> {
    pub wire: u32,
    pub needs: Vec<N>,
    /// Time the server will wait, in milliseconds. Probes still running then come back as gaps.
    pub budget_ms: u64,
}

/// One node's answer, also to `GET /v1/status` (then with the preflight as its only reading).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Report<N = Need> {
    pub wire: u32,
    /// Version of netdiag-node.
    pub agent: String,
    pub node: String,
    /// `/proc/sys/kernel/random/boot_id`: counters from different boots never mix.
    pub boot_id: String,
    /// Random for each start of the agent: another one has begun to count anew. Empty from agents that do not say.
    #[serde(default)]
    pub instance: String,
    /// Wall clock of the node when the report was finished.
    pub at: Timestamp,
    /// `CLOCK_BOOTTIME` of the node at the same moment, nanoseconds.
    pub boottime_ns: u64,
    /// Grows by one with each report of this agent process.
    pub sequence: u64,
    pub readings: Vec<NodeReading<N>>,
}

/// One need and what came of it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct NodeReading<N = Need> {
    pub need: N,
    pub reading: Reading<Observation>,
}

/// The body of every answer of the agent that is not a 200: what was wrong with the request, or that the agent is busy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refusal {
    /// One sentence with the limit or the version that was violated.
    pub error: String,
    /// Wire versions that the agent speaks.
    pub wire_min: u32,
    pub wire_max: u32,
}
