//! The registers of nf_tables: 64 bytes that expressions load into and read from, each known, unknown or never written.
//!
//! Registers 1 to 4 are 16 bytes wide, registers 8 to 23 are the same memory in words of 4 (`enum nft_registers`).
//! Register 0 is the verdict and is no memory here: expressions return it.

use std::ops::Range;

const WIDE: usize = 16;
const WORD: usize = 4;
const BYTES: usize = 64;

/// Why a byte is not known: an index into the run's list of reasons, or [`KNOWN`].
pub(super) type Reason = u16;
pub(super) const KNOWN: Reason = 0;

/// No expression of this rule wrote the byte. Kernels since 6.0 refuse rules that read such bytes.
pub(super) const UNWRITTEN: Reason = 1;

/// The verdict's register.
pub(super) const VERDICT: u32 = 0;

#[derive(Debug, Clone)]
pub(super) struct Registers {
    bytes: [u8; BYTES],
    reasons: [Reason; BYTES],
}

impl Default for Registers {
    fn default() -> Self {
        Self { bytes: [0; BYTES], reasons: [UNWRITTEN; BYTES] }
    }
}

/// Bytes read from registers.
#[derive(Debug, Clone, Copy)]
pub(super) struct Loaded<'a> {
    pub bytes: &'a [u8],
    pub reasons: &'a [Reason],
}

impl<'a> Loaded<'a> {
    /// The bytes, or why the first unknown one of them is not known.
    pub(super) fn known(self) -> Result<&'a [u8], Reason> {
        match self.reasons.iter().find(|reason| **reason != KNOWN) {
            None => Ok(self.bytes),
            Some(reason) => Err(*reason),
        }
    }
}

/// Registers that do not exist, and ends behind the last one, are cut off: nothing the kernel accepts has them.
fn range(register: u32, bytes: usize) -> Range<usize> {
    let start = match register {
        0..=7 => (register.saturating_sub(1) as usize).saturating_mul(WIDE),
        register => (register as usize - 8).saturating_mul(WORD),
    };
    let start = start.min(BYTES);
    start..start.saturating_add(bytes).min(BYTES)
}

impl Registers {
    pub(super) fn load(&self, register: u32, bytes: usize) -> Loaded<'_> {
        let range = range(register, bytes);
        Loaded { bytes: &self.bytes[range.clone()], reasons: &self.reasons[range] }
    }

    /// Writes `value` and zeroes the rest of its last word, as `nft_data_copy` and `nft_reg_store8` do.
    pub(super) fn store(&mut self, register: u32, value: &[u8]) {
        let padded = range(register, value.len().next_multiple_of(WORD));
        self.bytes[padded.clone()].fill(0);
        self.reasons[padded].fill(KNOWN);
        self.store_exactly(register, value);
    }

    /// Writes `value` and leaves the rest of its last word alone, as `nft_byteorder` does.
    pub(super) fn store_exactly(&mut self, register: u32, value: &[u8]) {
        let range = range(register, value.len());
        self.bytes[range.clone()].copy_from_slice(&value[..range.len()]);
        self.reasons[range].fill(KNOWN);
    }

    /// Writes bytes of which some may be unknown.
    pub(super) fn store_partly(&mut self, register: u32, bytes: &[u8], reasons: &[Reason]) {
        self.store(register, bytes);
        let range = range(register, reasons.len());
        self.reasons[range.clone()].copy_from_slice(&reasons[..range.len()]);
    }

    pub(super) fn store_unknown(&mut self, register: u32, bytes: usize, reason: Reason) {
        let range = range(register, bytes.next_multiple_of(WORD));
        self.bytes[range.clone()].fill(0);
        self.reasons[range].fill(reason);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wide_and_narrow_registers_are_the_same_memory() {
        let mut registers = Registers::default();
        registers.store(1, &[1, 2, 3, 4, 5, 6, 7, 8]);
        assert_eq!(registers.load(9, 4).known(), Ok(&[5, 6, 7, 8][..]));
        registers.store(23, &[9]);
        assert_eq!(registers.load(4, 16).known(), Err(UNWRITTEN));
        assert_eq!(registers.load(23, 4).known(), Ok(&[9, 0, 0, 0][..]));
    }

    #[test]
    fn a_short_value_clears_its_word_and_no_more() {
        let mut registers = Registers::default();
        registers.store(1, &[0xff; 16]);
        registers.store(1, &[1, 2]);
        assert_eq!(registers.load(1, 8).known(), Ok(&[1, 2, 0, 0, 0xff, 0xff, 0xff, 0xff][..]));
        registers.store_exactly(9, &[3, 4]);
        assert_eq!(registers.load(9, 4).known(), Ok(&[3, 4, 0xff, 0xff][..]));
    }

    #[test]
    fn registers_that_do_not_exist_hold_nothing() {
        let mut registers = Registers::default();
        registers.store(200, &[1]);
        assert_eq!(registers.load(200, 4).bytes.len(), 0);
        assert_eq!(registers.load(23, 16).bytes.len(), 4);
    }
}
