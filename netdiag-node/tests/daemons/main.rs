//! What the agent reads of a node's daemons, found through their processes: as their own mounts show them their files.

#![expect(clippy::unwrap_used, reason = "the helpers of these tests too")]

mod cni;
mod fake;
mod kubelet;
#[path = "../lab/mod.rs"]
mod lab;
mod networkd;
