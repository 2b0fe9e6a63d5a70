//! What the hooks of neighbours count.
//!
//! SPDX-License-Identifier: MIT OR GPL-2.0-only

/// Kinds, in [`super::event::what_word`]. Detail: the device's index. The kernel gave up asking for a host.
pub const FAILED: u8 = 0;
/// There was no room, or no memory, for one more entry. Detail as above.
pub const REFUSED: u8 = 1;
