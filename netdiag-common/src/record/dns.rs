//! DNS messages of sockets: open queries, counts by server, and samples of queries that were answered.
//!
//! SPDX-License-Identifier: MIT OR GPL-2.0-only

/// Bytes kept of a query from its header on, in words: 12 of header, the rest holds all but absurdly long names.
pub const MESSAGE_WORDS: usize = 20;
pub const MESSAGE_BYTES: usize = 8 * MESSAGE_WORDS;

/// RFC 1035 §4.1.1.
pub const HEADER_BYTES: usize = 12;

/// Rows of [`Group::rcodes`]: 0 (NOERROR) to 5 (REFUSED) are their own, the last is for all others.
pub const RCODES: usize = 8;
pub const RCODE_OTHER: usize = 7;

/// Types of questions with a counter of their own; [`TYPE_OTHER`] is for the rest.
pub const TYPES: [u16; 7] = [1, 28, 12, 33, 16, 65, 15];
pub const TYPE_ROWS: usize = 8;
pub const TYPE_OTHER: usize = 7;

/// Row `n` of a histogram of times: less than 2^n microseconds, and not in a row before.
pub const TIMES: usize = 32;

/// Set in [`service_word`] for messages that a server received or answered.
pub const SIDE_SERVER: u8 = 1;

/// The socket, by its cookie, and the query's id: NAT changes addresses on the way, but not these.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct OpenKey {
    pub socket: u64,
    pub id: u64,
}
const _: () = assert!(size_of::<OpenKey>() == 16);

/// A query that waits for its answer.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Open {
    /// Monotonic clock of the first and of the last try.
    pub first_ns: u64,
    pub last_ns: u64,
    /// `net->net_cookie`, or the namespace's inode on kernels before 5.12.
    pub netns: u64,
    /// As in the packet; IPv4 is the low half of the first word.
    pub server: [u64; 2],
    /// [`service_word`].
    pub service: u64,
    pub tries: u32,
    /// Bytes of the message in `message`.
    pub length: u32,
    pub message: [u64; MESSAGE_WORDS],
}
const _: () = assert!(size_of::<Open>() == 56 + MESSAGE_BYTES);

/// One query that was answered, with its answer's header.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Sample {
    pub open: Open,
    /// Monotonic clock of the answer.
    pub answered_ns: u64,
    /// Second 16 bits of the answer's header, host order: QR, opcode, AA, TC, RD, RA, Z, rcode.
    pub flags: u16,
    /// Records in the answer section.
    pub records: u16,
    pub pad: u32,
}
const _: () = assert!(size_of::<Sample>() == size_of::<Open>() + 16);

/// What one CPU counted in one epoch, in messages unless said otherwise.
#[repr(C)]
#[derive(Clone, Copy, Default)]
pub struct Counters {
    pub queries: u64,
    /// Queries put into the table of open ones.
    pub opened: u64,
    /// Open queries whose answer came.
    pub answered: u64,
    pub unparsed: u64,
    pub shed: u64,
    pub retries: u64,
    pub unmatched: u64,
    /// TCP segments.
    pub tcp_rest: u64,
    pub ungrouped: u64,
    pub served_queries: u64,
    pub served_answers: u64,
    pub names_sent: u64,
    pub names_suppressed: u64,
    pub names_lost: u64,
    pub pad: [u64; 2],
}
const _: () = assert!(size_of::<Counters>() == 128);

/// Namespace, server address (2) and [`service_word`].
pub type GroupKey = [u64; 4];

/// What one namespace exchanged with one server, or one server with all its clients, in one epoch.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Group {
    pub first_ns: u64,
    pub last_ns: u64,
    /// Server side only: a client's are the sum of how they ended.
    pub queries: u64,
    pub answers: u64,
    pub shed: u64,
    pub retries: u64,
    pub retries_after_5s: u64,
    pub truncated: u64,
    pub empty: u64,
    pub time_us: u64,
    pub rcodes: [u64; RCODES],
    pub types: [u64; TYPE_ROWS],
    pub times: [u64; TIMES],
}
const _: () = assert!(size_of::<Group>() == 8 * (10 + RCODES + TYPE_ROWS + TIMES));

/// Key word: server port, protocol, IP version, side and epoch.
pub const fn service_word(port: u16, protocol: u8, version: u8, side: u8) -> u64 {
    (port as u64) << 32 | (protocol as u64) << 24 | (version as u64) << 16 | (side as u64) << 8
}

/// `(server port, protocol, IP version, side)` of a [`service_word`], with or without its epoch.
#[expect(clippy::cast_possible_truncation, reason = "a word is taken apart by cutting it")]
pub const fn split_service(word: u64) -> (u16, u8, u8, u8) {
    ((word >> 32) as u16, (word >> 24) as u8, (word >> 16) as u8, (word >> 8) as u8)
}

/// Row of [`Group::rcodes`].
pub const fn rcode_row(flags: u16) -> usize {
    match flags & 0xf {
        code @ 0..=5 => code as usize,
        _ => RCODE_OTHER,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn service_words_come_apart_as_they_were_put_together() {
        let word = service_word(u16::MAX, 17, 6, SIDE_SERVER);
        assert_eq!(split_service(word), (u16::MAX, 17, 6, SIDE_SERVER));
        assert_eq!(split_service(word | 1), (u16::MAX, 17, 6, SIDE_SERVER), "the epoch is the lowest byte");
        assert_eq!(split_service(service_word(53, 6, 4, 0)), (53, 6, 4, 0));
    }

    #[test]
    fn codes_without_a_row_share_the_last() {
        assert_eq!((0..16).map(rcode_row).collect::<Vec<_>>(), [0, 1, 2, 3, 4, 5, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7]);
        assert_eq!(rcode_row(0x8583), 3, "only the lowest four bits are the code");
    }
}
