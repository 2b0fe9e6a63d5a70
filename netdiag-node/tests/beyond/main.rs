//! What no evaluator follows is named where it is on a packet's way, and nowhere else.
#![expect(clippy::unwrap_used, reason = "the helpers of these tests too")]

mod attach;
mod bridges;
#[path = "../lab/mod.rs"]
mod lab;
mod neighbours;
mod policies;
mod programs;
mod sizes;
mod sockets;
mod way;
