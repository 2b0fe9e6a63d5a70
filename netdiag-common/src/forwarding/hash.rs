//! Hash functions of the kernel whose results decide where packets go (`include/linux/jhash.h`, Linux 6.18).

/// `JHASH_INITVAL`
const START: u32 = 0xdead_beef;

/// `jhash`: of bytes.
pub(super) fn jhash(key: &[u8], seed: u32) -> u32 {
    let length = u32::try_from(key.len()).unwrap_or(u32::MAX);
    let start = START.wrapping_add(length).wrapping_add(seed);
    let mut state = [start; 3];
    let mut rest = key;
    while rest.len() > 12 {
        add(&mut state, &rest[..12]);
        mix(&mut state);
        rest = &rest[12..];
    }
    if !rest.is_empty() {
        // Bytes past the end count as zeros.
        add(&mut state, rest);
        finish(&mut state);
    }
    state[2]
}

/// `jhash2`: of words. The same as [`jhash`] of their bytes, with the machine's byte order.
pub(super) fn jhash2(words: &[u32], seed: u32) -> u32 {
    let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
    jhash(&bytes, seed)
}

/// `reciprocal_scale`: a 32-bit hash to `0..range`.
pub(super) fn scale(hash: u32, range: u32) -> u32 {
    u32::try_from((u64::from(hash) * u64::from(range)) >> 32).unwrap_or(0)
}

fn add(state: &mut [u32; 3], bytes: &[u8]) {
    for (word, chunk) in state.iter_mut().zip(bytes.chunks(4)) {
        let mut padded = [0; 4];
        padded[..chunk.len()].copy_from_slice(chunk);
        *word = word.wrapping_add(u32::from_ne_bytes(padded));
    }
}

/// `__jhash_mix`
fn mix([a, b, c]: &mut [u32; 3]) {
    for (shift_first, shift_second, shift_third) in [(4, 6, 8), (16, 19, 4)] {
        *a = a.wrapping_sub(*c) ^ c.rotate_left(shift_first);
        *c = c.wrapping_add(*b);
        *b = b.wrapping_sub(*a) ^ a.rotate_left(shift_second);
        *a = a.wrapping_add(*c);
        *c = c.wrapping_sub(*b) ^ b.rotate_left(shift_third);
        *b = b.wrapping_add(*a);
    }
}

/// `__jhash_final`
fn finish([a, b, c]: &mut [u32; 3]) {
    *c = (*c ^ *b).wrapping_sub(b.rotate_left(14));
    *a = (*a ^ *c).wrapping_sub(c.rotate_left(11));
    *b = (*b ^ *a).wrapping_sub(a.rotate_left(25));
    *c = (*c ^ *b).wrapping_sub(b.rotate_left(16));
    *a = (*a ^ *c).wrapping_sub(c.rotate_left(4));
    *b = (*b ^ *a).wrapping_sub(a.rotate_left(14));
    *c = (*c ^ *b).wrapping_sub(b.rotate_left(24));
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Values that `lookup3.c` (Bob Jenkins, public domain) prints for its own check, with its start value shifted.
    #[test]
    fn results_are_those_of_lookup3() {
        assert_eq!(jhash(b"", 0), 0xdead_beef);
        assert_eq!(jhash(b"Four score and seven years ago", 0), 0x1777_0551);
        assert_eq!(jhash(b"Four score and seven years ago", 1), 0xcd62_8161);
    }

    #[test]
    fn words_and_bytes_agree() {
        let words = [0x0102_0304_u32, 5, 6, 7];
        let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
        assert_eq!(jhash2(&words, 9), jhash(&bytes, 9));
    }

    #[test]
    fn scaling_keeps_within_the_range() {
        assert_eq!((scale(0, 3), scale(u32::MAX, 3)), (0, 2));
    }
}
