//! The netdiag agent: sees one node and its pods, says what it saw, where, when and how it knows, and never judges.

pub mod agent;
pub mod api;
pub mod attribution;
pub mod clock;
pub mod config;
pub mod dns;
pub mod drops;
pub mod first_seen;
pub mod gap;
pub mod history;
pub mod host;
pub mod kernel;
pub mod memory;
pub mod metrics;
pub mod netns;
pub mod owners;
pub mod preflight;
pub mod probe;
pub mod readings;
pub mod report;
pub mod samples;
mod serve;
pub mod shed;
mod subject;
pub mod tls;
pub mod watch;
pub mod window;
