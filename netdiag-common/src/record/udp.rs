//! What the UDP hook counts.
//!
//! SPDX-License-Identifier: MIT OR GPL-2.0-only

/// The kind, in [`super::event::what_word`]: a datagram was not queued. Detail: the error number.
pub const NOT_QUEUED: u8 = 0;
