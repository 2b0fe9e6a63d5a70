//! Writes rules with the tools people use, in a network namespace of its own, and compares what the agent reads.
#![expect(clippy::unwrap_used, reason = "a test ends at the first thing that is not as expected")]

#[path = "rules/sandbox.rs"]
mod sandbox;

#[path = "rules/iptables.rs"]
mod iptables;
#[path = "rules/nftables.rs"]
mod nftables;
