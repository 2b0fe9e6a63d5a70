//! The Kubernetes API: how it is reached, what is listed and watched there, who asks us, and what they may ask.

mod connect;
mod error;
pub mod forward;
mod list;
pub mod proof;
mod resource;
pub mod review;
mod secret;
pub mod sought;
mod watch;

pub use connect::{Access, AccessOptions, connect};
pub(crate) use error::{RequestError, bounded};
pub use list::{RawList, raw_lists, snapshot};
pub use secret::{Kept, certificate};
pub use watch::Warm;
