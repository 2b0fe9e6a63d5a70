//! One packet dropped by the kernel: keys, counts and exemplars of tracepoint `skb:kfree_skb`.
//!
//! Three levels: [`Counters`] (exact totals), [`Slot`]s in sets (counts by key), [`Exemplar`]s (a few whole packets). The
//! first two are kept in the tables of [`super::table`].
//!
//! SPDX-License-Identifier: MIT OR GPL-2.0-only
#![expect(
    clippy::cast_possible_truncation,
    reason = "key words are taken apart by cutting them; tests put them together"
)]

pub use super::table::{CpuState, Slot, SlotV4, SlotV6, WAYS, WORDS_V4, WORDS_V6};

/// Rows of [`Counters::by_reason`]. Core reasons take the first half; 6.18 has 128 of them.
pub const REASONS: usize = 512;

/// Return addresses kept of one exemplar's kernel stack. Netfilter drops need 8 to show the hook.
pub const STACK_DEPTH: usize = 16;

/// Keys per CPU remembered as having had an exemplar. A power of two.
pub const SHOWN: u32 = 256;

/// Flags of a [`service_word`]. The port is the destination's.
pub const FLAG_DESTINATION: u8 = 1;
/// The packet had a conntrack entry.
pub const FLAG_TRACKED: u8 = 2;
/// Its connection went through DNAT: the slot has a [`Translated`].
pub const FLAG_TRANSLATED: u8 = 4;
/// It had a route.
pub const FLAG_ROUTED: u8 = 8;
/// It was received by an interface of this namespace.
pub const FLAG_RECEIVED: u8 = 16;
/// It was received by another interface than the one it had when it was dropped.
pub const FLAG_CROSSED: u8 = 32;
/// Those that say which way the packet went: all that coarse keys keep.
pub const DIRECTION: u8 = FLAG_RECEIVED | FLAG_CROSSED;

/// Level 1: exact totals of one CPU in one epoch, in packets.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Counters {
    pub total: u64,
    pub attributed: u64,
    pub coarse: u64,
    pub reason_only: u64,
    /// No network packet: unix, vsock, netlink.
    pub foreign: u64,
    /// IP without a readable header, counted with a frame key.
    pub unparsed: u64,
    pub exemplars_sent: u64,
    pub exemplars_suppressed: u64,
    pub exemplars_lost: u64,
    /// Not IP, counted with a frame key.
    pub link: u64,
    /// Of `link` and `unparsed`: those whose frame key found its set full.
    pub unplaced: u64,
    pub pad: [u64; 5],
    /// By [`reason_row`], the events that no slot holds: foreign, unplaced, reason_only. A slot's key has its reason.
    pub by_reason: [u64; REASONS],
}
const _: () = assert!(size_of::<Counters>() == 128 + 8 * REASONS);

/// Beside each [`Slot`], in a table of the same shape: the destination before and after DNAT of the connection whose packet
/// took the slot. Meaningless unless the key has [`FLAG_TRANSLATED`]. Network order.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct Translated<const WORDS: usize> {
    pub before: [u32; WORDS],
    pub after: [u32; WORDS],
    pub before_port: u16,
    pub after_port: u16,
}

pub type TranslatedV4 = Translated<1>;
pub type TranslatedV6 = Translated<4>;
const _: () = assert!(size_of::<TranslatedV4>() == 12);
const _: () = assert!(size_of::<TranslatedV6>() == 36);

/// Level 3: one whole packet.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct Exemplar {
    /// Monotonic clock, nanoseconds since boot.
    pub at_ns: u64,
    /// `net->net_cookie`, or the namespace's inode on kernels before 5.12; 0 when the packet led to none.
    pub netns: u64,
    /// Address after the call that freed the packet.
    pub location: u64,
    /// Raw `enum skb_drop_reason`; its values differ between kernels. 0 on kernels without reasons.
    pub reason: u32,
    pub ifindex: u32,
    /// Network order; IPv4 in the first four bytes.
    pub source: [u8; 16],
    pub destination: [u8; 16],
    pub source_port: u16,
    pub destination_port: u16,
    /// Last header's IP protocol number.
    pub protocol: u8,
    /// TCP flags byte, 0 for others.
    pub tcp_flags: u8,
    /// 4 or 6.
    pub version: u8,
    /// As in the key's [`service_word`], [`FLAG_DESTINATION`] included.
    pub flags: u8,
    /// `skb->len`.
    pub length: u32,
    /// As [`Translated`]; zeroes without [`FLAG_TRANSLATED`].
    pub translated: TranslatedV6,
    /// Return addresses in `stack`; 0 or negative when the kernel gave none.
    pub frames: i32,
    pub pad: u32,
    pub stack: [u64; STACK_DEPTH],
}
const _: () = assert!(size_of::<Exemplar>() == 116 + 4 + 8 * STACK_DEPTH);

/// Key word: low half of the location (the agent completes it from the symbol table) and the reason.
pub const fn place_word(location: u64, reason: u32) -> u64 {
    (location << 32) | reason as u64
}

/// `(low half of the location, reason)` of a [`place_word`].
pub const fn split_place(word: u64) -> (u32, u32) {
    ((word >> 32) as u32, word as u32)
}

/// Key word: interface, service port, protocol and flags.
pub const fn service_word(ifindex: u32, port: u16, protocol: u8, flags: u8) -> u64 {
    (ifindex as u64) << 32 | (port as u64) << 16 | (protocol as u64) << 8 | flags as u64
}

/// `(interface, service port, protocol, flags)` of a [`service_word`].
pub const fn split_service(word: u64) -> (u32, u16, u8, u8) {
    ((word >> 32) as u32, (word >> 16) as u16, (word >> 8) as u8, word as u8)
}

/// Row of [`Counters::by_reason`]: core reasons (subsystem 0) in the first 255 rows, then 64 rows for each of the
/// subsystems 1 to 4. What fits nowhere shares row 255.
pub const fn reason_row(reason: u32) -> usize {
    let (subsystem, number) = ((reason >> 16) as usize, (reason & 0xffff) as usize);
    match subsystem {
        0 if number < 255 => number,
        1..=4 if number < 64 => 192 + subsystem * 64 + number,
        _ => 255,
    }
}

/// The reason that [`reason_row`] put into `row`; none for the shared row.
pub const fn row_reason(row: usize) -> Option<u32> {
    match row {
        255 => None,
        0..255 => Some(row as u32),
        _ => {
            let above = row - 256;
            Some((((above / 64 + 1) as u32) << 16) | (above % 64) as u32)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_that_has_a_row_of_its_own_comes_back() {
        for row in (0..REASONS).filter(|row| *row != 255) {
            assert_eq!(reason_row(row_reason(row).unwrap()), row);
        }
        assert_eq!(reason_row(255), 255);
        assert_eq!(reason_row(0x1_0000 | 64), 255);
        assert_eq!(reason_row(u32::MAX), 255);
    }

    #[test]
    fn key_words_come_apart_as_they_were_put_together() {
        assert_eq!(split_place(place_word(0xffff_ffff_8123_4567, 0x2_0003)), (0x8123_4567, 0x2_0003));
        assert_eq!(split_service(service_word(7, 8080, 6, FLAG_DESTINATION)), (7, 8080, 6, FLAG_DESTINATION));
        assert_eq!(split_service(service_word(u32::MAX, u16::MAX, 255, 255)), (u32::MAX, u16::MAX, 255, 255));
    }
}
