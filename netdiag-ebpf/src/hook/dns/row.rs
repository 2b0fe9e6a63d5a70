//! In which row of a table a message counts. Without loops over bytes: the verifier follows each step.

use netdiag_common::record::dns::{MESSAGE_WORDS, TIMES, TYPE_OTHER, TYPE_ROWS, TYPES};

/// The first 52 bytes of the question: a socket that uses an id twice asks for another name.
#[inline(always)]
pub(super) fn same_question(one: &[u64; MESSAGE_WORDS], other: &[u64; MESSAGE_WORDS]) -> bool {
    // The upper half of word 1 is where the question begins.
    let mut differ = (one[1] ^ other[1]) >> 32;
    let mut word = 2;
    while word < 8 {
        differ |= one[word] ^ other[word];
        word += 1;
    }
    differ == 0
}

/// Row of `Group::types`. The type follows the first zero byte of the question: a name's end, unless somebody puts zeroes
/// into labels, which the agent's parser would tell.
#[inline(always)]
pub(super) fn type_row(message: &[u64; MESSAGE_WORDS]) -> usize {
    let mut word = 1;
    // The header's last bytes are zero too.
    let mut here = message[1] | 0xffff_ffff;
    while word < MESSAGE_WORDS - 1 {
        // The lowest byte that is zero has its high bit set here (Hacker's Delight §6-1).
        let zeroes = here.wrapping_sub(0x0101_0101_0101_0101) & !here & 0x8080_8080_8080_8080;
        if zeroes != 0 {
            let next = message[word + 1];
            // Shifts the two bytes behind the zero to the bottom.
            let lowest = zeroes & zeroes.wrapping_neg();
            let kind = two_behind(message[word], next, lowest);
            return row_of(u16::from_be(kind));
        }
        word += 1;
        here = message[word];
    }
    TYPE_OTHER
}

/// The 16 bits behind the byte whose high bit is `mark`, of two words that follow each other.
#[inline(always)]
pub(super) fn two_behind(word: u64, next: u64, mark: u64) -> u16 {
    let mut shift = 8;
    let mut mark = mark >> 7;
    // The index of the only bit, in steps of a byte.
    if mark & 0xffff_ffff == 0 {
        mark >>= 32;
        shift += 32;
    }
    if mark & 0xffff == 0 {
        mark >>= 16;
        shift += 16;
    }
    if mark & 0xff == 0 {
        shift += 8;
    }
    match shift {
        64 => next as u16,
        _ => ((word >> shift) | (next << (64 - shift))) as u16,
    }
}

#[inline(always)]
pub(super) fn row_of(kind: u16) -> usize {
    let mut row = 0;
    while row < TYPES.len() {
        if TYPES[row] == kind {
            return row;
        }
        row += 1;
    }
    TYPE_OTHER & (TYPE_ROWS - 1)
}

/// The number of bits of a time: it is below this power of two.
#[inline(always)]
pub(super) fn time_row(time_us: u64) -> usize {
    let (mut rest, mut bits) = (time_us, 0);
    if rest >> 16 != 0 {
        rest >>= 16;
        bits += 16;
    }
    if rest >> 8 != 0 {
        rest >>= 8;
        bits += 8;
    }
    if rest >> 4 != 0 {
        rest >>= 4;
        bits += 4;
    }
    if rest >> 2 != 0 {
        rest >>= 2;
        bits += 2;
    }
    if rest >> 1 != 0 {
        rest >>= 1;
        bits += 1;
    }
    (bits + rest as usize) & (TIMES - 1)
}

const _: () = assert!(TYPE_OTHER < TYPE_ROWS);
