//! Comparisons and arithmetic on registers.

use super::Run;
use crate::forwarding::expression::{Bitwise, Operator, Verdict};
use crate::forwarding::register::{KNOWN, Loaded, Reason};

/// Registers are at most 64 bytes.
type Buffer = ([u8; 64], [Reason; 64], usize);

impl Run<'_> {
    /// `nft_cmp_eval`: bytes as a number in network byte order.
    pub(super) fn compare(&mut self, from: u32, operator: Operator, value: &[u8]) -> Verdict {
        let loaded = self.registers.load(from, value.len());
        let holds = match order(loaded, value) {
            Some(order) => operator.holds(order),
            None if certainly_differs(loaded, value) && operator == Operator::Equal => false,
            None if certainly_differs(loaded, value) && operator == Operator::NotEqual => true,
            None => {
                let question = format!("{} {} {}", self.why(loaded), operator.words(), hex(value));
                self.decide(&question)
            }
        };
        if holds { Verdict::Continue } else { Verdict::Break }
    }

    /// `nft_range_eval`
    pub(super) fn range(&mut self, from: u32, negated: bool, first: &[u8], last: &[u8]) -> Verdict {
        let loaded = self.registers.load(from, first.len());
        let inside = match (order(loaded, first), order(loaded, last)) {
            (Some(above), Some(below)) => above.is_ge() && below.is_le(),
            (Some(above), _) if above.is_lt() => false,
            (_, Some(below)) if below.is_gt() => false,
            _ => {
                let question = format!("{} within {}-{}", self.why(loaded), hex(first), hex(last));
                self.decide(&question)
            }
        };
        if inside == negated { Verdict::Break } else { Verdict::Continue }
    }

    /// `nft_bitwise_eval`: whole words, also where the value is shorter.
    pub(super) fn bitwise(&mut self, from: u32, to: u32, bytes: u32, operation: &Bitwise) -> Verdict {
        let length = (bytes as usize).min(64).next_multiple_of(4);
        let (mut value, mut reasons, length) = self.copy(from, length);
        match operation {
            Bitwise::MaskXor { mask, xor } => {
                for at in 0..length {
                    let mask = mask.get(at).copied().unwrap_or(0);
                    let xor = xor.get(at).copied().unwrap_or(0);
                    value[at] = (value[at] & mask) ^ xor;
                    if mask == 0 {
                        reasons[at] = KNOWN;
                    }
                }
                self.derive(&mut reasons[..length], || format!("& {} ^ {}", hex(mask), hex(xor)));
            }
            Bitwise::ShiftLeft { bits } | Bitwise::ShiftRight { bits } => {
                let left = matches!(operation, Bitwise::ShiftLeft { .. });
                shift(&mut value[..length], *bits, left);
                // A bit may come from any byte.
                if let Some(reason) = reasons[..length].iter().copied().find(|reason| *reason != KNOWN) {
                    reasons[..length].fill(reason);
                }
                self.derive(&mut reasons[..length], || format!("{} {bits}", if left { "<<" } else { ">>" }));
            }
            Bitwise::And { with } | Bitwise::Or { with } | Bitwise::Xor { with } => {
                let (other, other_reasons, _) = self.copy(*with, length);
                for at in 0..length {
                    value[at] = match operation {
                        Bitwise::And { .. } => value[at] & other[at],
                        Bitwise::Or { .. } => value[at] | other[at],
                        _ => value[at] ^ other[at],
                    };
                    if reasons[at] == KNOWN {
                        reasons[at] = other_reasons[at];
                    }
                }
                self.derive(&mut reasons[..length], || "combined with another value".into());
            }
        }
        self.registers.store_partly(to, &value[..length], &reasons[..length]);
        Verdict::Continue
    }

    /// `nft_byteorder_eval`. On a big-endian machine the kernel's conversions do nothing.
    pub(super) fn byteorder(&mut self, from: u32, to: u32, bytes: u32, size: u32) -> Verdict {
        let (mut value, mut reasons, length) = self.copy(from, (bytes as usize).min(64));
        if cfg!(target_endian = "little") && size > 0 {
            for unit in value[..length].chunks_exact_mut(size as usize) {
                unit.reverse();
            }
            for unit in reasons[..length].chunks_exact_mut(size as usize) {
                unit.reverse();
            }
        }
        if reasons[..length].iter().all(|reason| *reason == KNOWN) {
            self.registers.store_exactly(to, &value[..length]);
        } else {
            self.registers.store_partly(to, &value[..length], &reasons[..length]);
        }
        Verdict::Continue
    }

    fn copy(&self, from: u32, bytes: usize) -> Buffer {
        let loaded = self.registers.load(from, bytes);
        let (mut value, mut reasons) = ([0; 64], [KNOWN; 64]);
        let length = loaded.bytes.len();
        value[..length].copy_from_slice(loaded.bytes);
        reasons[..length].copy_from_slice(loaded.reasons);
        (value, reasons, length)
    }

    /// Unknown bytes that were computed with are others than before.
    fn derive(&mut self, reasons: &mut [Reason], how: impl Fn() -> String) {
        let mut derived: Vec<(Reason, Reason)> = Vec::new();
        for reason in reasons.iter_mut().filter(|reason| **reason != KNOWN) {
            let known = derived.iter().find(|(old, _)| old == reason).map(|(_, new)| *new);
            *reason = known.unwrap_or_else(|| {
                let words = format!("{} {}", self.words(*reason), how());
                let new = self.reason(&words);
                derived.push((*reason, new));
                new
            });
        }
    }
}

/// Shifts words of the host, the first of which is the highest (`nft_bitwise_eval_lshift`, `nft_bitwise_eval_rshift`).
fn shift(value: &mut [u8], bits: u32, left: bool) {
    if bits == 0 || bits >= 32 {
        return;
    }
    let mut words: Vec<u32> =
        value.chunks_exact(4).map(|word| u32::from_ne_bytes([word[0], word[1], word[2], word[3]])).collect();
    let mut carry = 0;
    if left {
        for word in words.iter_mut().rev() {
            (*word, carry) = ((*word << bits) | carry, *word >> (32 - bits));
        }
    } else {
        for word in &mut words {
            (*word, carry) = ((*word >> bits) | carry, *word << (32 - bits));
        }
    }
    for (bytes, word) in value.chunks_exact_mut(4).zip(words) {
        bytes.copy_from_slice(&word.to_ne_bytes());
    }
}

/// As `memcmp`; none when unknown bytes decide.
fn order(loaded: Loaded<'_>, value: &[u8]) -> Option<std::cmp::Ordering> {
    for (at, wanted) in value.iter().enumerate() {
        if *loaded.reasons.get(at)? != KNOWN {
            return None;
        }
        match loaded.bytes[at].cmp(wanted) {
            std::cmp::Ordering::Equal => {}
            order => return Some(order),
        }
    }
    Some(std::cmp::Ordering::Equal)
}

/// Some known byte differs.
fn certainly_differs(loaded: Loaded<'_>, value: &[u8]) -> bool {
    loaded
        .bytes
        .iter()
        .zip(loaded.reasons)
        .zip(value)
        .any(|((byte, reason), wanted)| *reason == KNOWN && byte != wanted)
}

pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::from("0x"), |text, byte| text + &format!("{byte:02x}"))
}

impl Operator {
    fn holds(self, order: std::cmp::Ordering) -> bool {
        match self {
            Self::Equal => order.is_eq(),
            Self::NotEqual => order.is_ne(),
            Self::Less => order.is_lt(),
            Self::LessOrEqual => order.is_le(),
            Self::Greater => order.is_gt(),
            Self::GreaterOrEqual => order.is_ge(),
        }
    }

    fn words(self) -> &'static str {
        match self {
            Self::Equal => "==",
            Self::NotEqual => "!=",
            Self::Less => "<",
            Self::LessOrEqual => "<=",
            Self::Greater => ">",
            Self::GreaterOrEqual => ">=",
        }
    }
}
