//! What programs ask of their libraries: one record when a call has ended.
//!
//! SPDX-License-Identifier: MIT OR GPL-2.0-only

/// Bytes kept of a name, its closing zero among them; longer ones are cut.
pub const NAME_BYTES: usize = 128;

/// Kinds of calls. `getaddrinfo`: the result is its `EAI_*`, 0 when it found something.
pub const LOOKUP: u32 = 0;
/// A TLS client's handshake: the result is 1, or the last one of `SSL_do_handshake` before the client gave up.
pub const HANDSHAKE: u32 = 1;

/// Rows of the table of what was lost: the table of calls under way was full, the ring was full, no name could be read.
pub const NO_ROOM: u32 = 0;
pub const RING_FULL: u32 = 1;
pub const NAMELESS: u32 = 2;
pub const LOSSES: u32 = 3;

/// A call under way.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Call {
    /// Monotonic clock; of a handshake its first step, 0 before.
    pub started_ns: u64,
    /// The last step: whoever was last here long ago has forgotten it.
    pub last_ns: u64,
    pub result: i32,
    pub pad: u32,
    pub name: [u8; NAME_BYTES],
}
const _: () = assert!(size_of::<Call>() == 24 + NAME_BYTES);

/// A call that has ended.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Ended {
    /// Monotonic clock.
    pub at_ns: u64,
    pub netns: u64,
    pub duration_ns: u64,
    pub result: i32,
    pub kind: u32,
    pub name: [u8; NAME_BYTES],
}
const _: () = assert!(size_of::<Ended>() == 32 + NAME_BYTES);
