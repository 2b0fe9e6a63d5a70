//! What the stages of netdiag say to each other: records (kernel → agent) and, with feature `wire`, observations,
//! readings and needs (agent ↔ server), and the evaluator of packet filters, which both walk.
//!
//! Data moves one way: `Record → Observation → Report → Reading`. What travels back is a [`Need`].
#![cfg_attr(not(feature = "wire"), no_std)]

pub mod record;

#[cfg(feature = "wire")]
pub mod escape;
#[cfg(feature = "wire")]
pub mod forwarding;
#[cfg(feature = "wire")]
mod need;
#[cfg(feature = "wire")]
pub mod observation;
#[cfg(feature = "wire")]
mod reading;
#[cfg(feature = "wire")]
pub mod wire;

#[cfg(feature = "wire")]
pub use need::{Need, Netns, Tier, Topic, Window};
#[cfg(feature = "wire")]
pub use reading::{Gap, GapReason, Reading};
