//! netdiag's server: joins what nodes see with what Kubernetes intends, judges, and answers.
//!
//! Pure layers, each using only those before it: [`question`] → [`evidence`] → [`path`] → [`observed`] → [`condition`] →
//! [`correlate`] → [`answer`]. I/O and `async` live in [`ask`], in [`trace`], which asks node after node, in [`followed`], which
//! sends what it asks about, in [`drift`], which looks twice, in [`probe`], which sends, in [`mesh::rounds`], which goes on, and in
//! the sources and front ends built on them, and nowhere else.

pub mod answer;
pub mod ask;
pub mod cli;
pub mod condition;
pub mod correlate;
pub mod drift;
pub mod evidence;
pub mod finding;
pub mod followed;
pub mod harmless;
pub mod kube;
mod listing;
pub mod mcp;
pub mod mesh;
pub mod nodes;
pub mod observed;
pub mod path;
pub mod probe;
pub mod question;
pub mod trace;
