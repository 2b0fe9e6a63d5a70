//! Active probes: what is sent from which namespace to which address, and what came of it, counted exactly.
//!
//! [`plan()`] is pure; [`run()`] asks the agents, which send: see `observation::series` for their words and limits. What is to be
//! followed is sent attempt by attempt, by [`crate::followed`].

mod back;
pub mod conclude;
mod corefile;
pub mod endpoints;
mod entrance;
mod follow;
mod kind;
pub mod ladder;
pub mod matrix;
mod outside;
pub(crate) mod plan;
pub mod rights;
mod run;
mod rungs;
pub mod secret;
mod servers;
mod shots;
pub mod stats;
pub mod tally;
mod words;

pub use back::Back;
pub use follow::MAX_FOLLOWED;
pub use kind::Kind;
pub use plan::{Aim, Goal, MAX_REQUEST_MS, Plan, PlanError, Shot, namespace_of, plan, words_of};
pub use rights::{Denied, Rights};
pub use run::{Probed, RunError, Sender, Series, run};
pub use tally::Tally;
pub use words::{Family, Options, ProbeRequest, Segment, Transport};
