//! What the hooks of refusals count.
//!
//! SPDX-License-Identifier: MIT OR GPL-2.0-only

/// Kinds, in [`super::event::what_word`]. Detail: type in the second byte, code in the first.
pub const ICMP_SENT: u8 = 0;
/// A RST answered a packet. Detail: `enum sk_rst_reason`; its values differ between kernels.
pub const RESET_SENT: u8 = 1;
/// A RST of our own decision. Detail as above.
pub const ABORTED: u8 = 2;
/// A RST for a socket. Detail: the socket's state.
pub const RESET_RECEIVED: u8 = 3;
/// A socket that is not TCP's was told of an error. Detail: the error number.
pub const ERROR: u8 = 4;
