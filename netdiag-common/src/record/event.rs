//! Counted events of one subject (TCP, rejects, UDP): totals, and keys of what happened where.
//!
//! Rows of all tables are by lane and not by CPU: a CPU has [`LANES`] of them, since a program may be interrupted by another
//! one of the same subject. Row `epoch * lanes + cpu * LANES + level`.
//!
//! SPDX-License-Identifier: MIT OR GPL-2.0-only
#![expect(
    clippy::cast_possible_truncation,
    reason = "key words are taken apart by cutting them; tests put them together"
)]

/// Lanes per CPU: what a system call does may be interrupted by what a packet does, and that by nothing of ours.
pub const LANES: usize = 2;

/// Kinds of events that a subject can have.
pub const KINDS: usize = 16;

/// Rows of [`Totals::by_errno`]; Linux has no number above 133.
pub const ERRNOS: usize = 256;

/// Sets of the coarse table, for each lane and epoch.
pub const COARSE_SETS: u32 = 64;

/// Exact totals of one lane in one epoch, in events.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Totals {
    /// Events that have a key, or would have one.
    pub total: u64,
    /// In the slot of their full key.
    pub attributed: u64,
    /// In the slot of their coarse key.
    pub coarse: u64,
    /// In no slot.
    pub total_only: u64,
    /// Without a key, because the packet's header could not be read.
    pub unparsed: u64,
    /// Counted by kind alone, because too many came at once.
    pub shed: u64,
    pub pad: [u64; 2],
    /// By kind, also those that never have a key.
    pub by_kind: [u64; KINDS],
    /// Failed attempts by error number.
    pub by_errno: [u64; ERRNOS],
}
const _: () = assert!(size_of::<Totals>() == 64 + 8 * KINDS + 8 * ERRNOS);

/// [`what_word`]'s measure when there was none, and at the coarse level.
pub const NO_MEASURE: u8 = 0xff;

/// Key word: the kind of event, its detail (error number, ICMP type and code, reason, state) and the power of two of what
/// was measured.
pub const fn what_word(kind: u8, detail: u32, measure: u8) -> u64 {
    (kind as u64) << 40 | (measure as u64) << 32 | detail as u64
}

/// `(kind, detail, measure)` of a [`what_word`].
pub const fn split_what(word: u64) -> (u8, u32, u8) {
    ((word >> 40) as u8, word as u32, (word >> 32) as u8)
}

/// Bits that `value` needs: it is less than two to the power of the result.
pub const fn measure(value: u64) -> u8 {
    (u64::BITS - value.leading_zeros()) as u8
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn key_words_come_apart_as_they_were_put_together() {
        assert_eq!(split_what(what_word(3, 0x0303, 17)), (3, 0x0303, 17));
        assert_eq!(split_what(what_word(u8::MAX, u32::MAX, NO_MEASURE)), (u8::MAX, u32::MAX, NO_MEASURE));
    }

    #[test]
    fn measures_are_the_next_power_of_two() {
        for (value, bits) in [(0, 0), (1, 1), (2, 2), (3, 2), (1023, 10), (1024, 11), (u64::MAX, 64)] {
            assert_eq!(measure(value), bits);
            assert!(bits == 64 || value < 1 << bits);
        }
    }
}
