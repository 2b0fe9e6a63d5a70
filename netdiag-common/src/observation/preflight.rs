//! What this kernel and these rights allow the agent to see, and the remedy for what they do not.

use serde::{Deserialize, Serialize};

#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Preflight {
    /// `uname -r`.
    pub kernel: String,
    pub checks: Vec<Check>,
    /// Bytes resident now, from `/proc/self/statm`.
    #[serde(default)]
    pub resident_bytes: u64,
    /// Requests answered with 503 because the agent was at its limit.
    #[serde(default)]
    pub shed_requests: u64,
    /// End of validity of the agent's certificate, RFC 3339.
    #[serde(default)]
    pub certificate_expires: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Check {
    /// `btf`, `program kfree_skb`, `capability SYS_ADMIN`, …
    pub name: String,
    pub ok: bool,
    /// What was found: `tp_btf`, `raw_tracepoint`, or the error.
    pub detail: String,
    /// What cannot be seen without it. Empty when ok.
    #[serde(default)]
    pub lost: String,
    /// How to get it. Empty when ok.
    #[serde(default)]
    pub remedy: String,
}
