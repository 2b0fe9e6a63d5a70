//! What the TCP hooks count, and the attempts they follow.
//!
//! SPDX-License-Identifier: MIT OR GPL-2.0-only

/// `enum` of include/net/tcp_states.h, the same since Linux 2.6; part of the user interface by `inet_diag`.
pub const ESTABLISHED: u32 = 1;
pub const SYN_SENT: u32 = 2;
pub const SYN_RECV: u32 = 3;
pub const CLOSE: u32 = 7;

/// Kinds with a key, in [`super::event::what_word`]. An attempt was begun.
pub const BEGUN: u8 = 0;
/// It succeeded; measured from its start, in microseconds.
pub const SUCCEEDED: u8 = 1;
/// It failed; the detail is the error number, 0 when the application gave up, [`NO_PORT`].
pub const FAILED: u8 = 2;
/// A listener completed a connection.
pub const ACCEPTED: u8 = 3;
/// An established connection ended with the error number of the detail.
pub const BROKEN: u8 = 4;
pub const SYN_RETRANSMIT: u8 = 5;
pub const SYNACK_RETRANSMIT: u8 = 6;
pub const RETRANSMIT: u8 = 7;
/// The smoothed round trip when a connection began to close, in microseconds.
pub const ROUND_TRIP: u8 = 8;

/// Kinds that are only counted. An attempt went into the table of attempts, or out of it.
pub const TRACKED: u8 = 9;
pub const RELEASED: u8 = 10;
/// The table was full.
pub const UNTRACKED: u8 = 11;
/// An older attempt of the same socket was in the table: its end was missed.
pub const REPLACED: u8 = 12;
/// An end without a beginning.
pub const UNMATCHED: u8 = 13;

/// `EADDRNOTAVAIL`: the attempt ended before it had a local port.
pub const NO_PORT: u32 = 99;

/// Set in the service word's flags when the service is the socket's peer.
pub const FLAG_CLIENT: u8 = 2;

/// An attempt under way, by the address of its `struct sock`.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct Attempt {
    /// Monotonic clock of its start.
    pub start_ns: u64,
    /// `net->net_cookie`, or the namespace's inode on kernels before 5.12.
    pub netns: u64,
    /// The peer's bytes as they lie in memory; IPv4 is the low half of the first word.
    pub address: [u64; 2],
    pub port: u16,
    /// 4 or 6.
    pub version: u8,
    pub pad: [u8; 5],
}
const _: () = assert!(size_of::<Attempt>() == 40);
