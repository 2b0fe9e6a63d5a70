//! The Kubernetes API: how it is reached, what is listed and watched there, and who may ask us what.

mod connect;
mod error;
mod list;
mod resource;

pub use connect::{Access, AccessOptions, connect};
pub use list::snapshot;
