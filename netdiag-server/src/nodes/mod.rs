//! Asking the agents: one request per node over mTLS, bounded in time and number. A node that does not answer is a gap.

pub(crate) mod agents;
pub(crate) mod failure;
pub(crate) mod instance;
pub(crate) mod report;
pub(crate) mod tls;

pub use agents::Agents;
