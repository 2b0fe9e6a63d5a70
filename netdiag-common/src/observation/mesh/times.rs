//! Times as an HDR histogram, in the V2 serialization of HdrHistogram: exact to add, three digits exact to read.
//!
//! <https://github.com/HdrHistogram/HdrHistogram>, class `EncodableHistogram`, and <https://docs.rs/hdrhistogram>,
//! `serialization::V2Serializer`: 40 bytes of head, then counts as ZigZag LEB128.

use data_encoding::BASE64;
use hdrhistogram::serialization::{Deserializer, Serializer as _, V2Serializer};
use hdrhistogram::{Counter, Histogram};
use serde::{Deserialize, Serialize};

/// Decimal digits to which a time is exact.
pub const SIGNIFICANT_DIGITS: u8 = 3;
/// Times are told apart up to this, in microseconds (67 s); longer ones count as this. With three digits a histogram has
/// 2 048 << 15 values below it, in 17 halves of 2 048 counts.
pub const LONGEST_US: u64 = (1 << 26) - 1;

/// `V2EncodingCookieBase | 0x10`. The compressed form has another one: nobody needs it, and it could be a bomb.
const COOKIE: [u8; 4] = 0x1c84_9313_u32.to_be_bytes();
const HEAD_BYTES: usize = 40;
/// All counts, each in its longest form, are less.
const MAX_TEXT_BYTES: usize = 256 * 1024;
/// A varint of 8 bytes with its continuation bit each has a count of at least 2^55, which no honest agent reaches.
const MAX_CONTINUED: usize = 7;

/// The serialized histogram in base64; empty for one without times.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Times(String);

/// Why bytes are no histogram of times.
#[derive(Debug, thiserror::Error)]
pub enum TimesError {
    #[error("a histogram has {0} characters, {MAX_TEXT_BYTES} are the limit")]
    Long(usize),
    #[error("a histogram is not base64: {0}")]
    Base64(data_encoding::DecodeError),
    #[error("a histogram's head is not one of {SIGNIFICANT_DIGITS} digits from 1 to {LONGEST_US} µs in V2 form")]
    Head,
    #[error("a histogram's counts cannot be read: {0}")]
    Counts(String),
}

/// A histogram that takes times in microseconds up to [`LONGEST_US`] and grows with the longest one: 8 KiB times the counter's
/// bytes for each half of 2 048 counts.
pub fn empty<T: Counter>() -> Histogram<T> {
    Histogram::new(SIGNIFICANT_DIGITS).expect("3 digits are at most 5")
}

impl Times {
    pub fn of<T: Counter>(histogram: &Histogram<T>) -> Self {
        if histogram.is_empty() {
            return Self::default();
        }
        let mut bytes = Vec::new();
        // Into memory, and no counter of ours is above i64::MAX.
        match V2Serializer::new().serialize(histogram, &mut bytes) {
            Ok(_) => Self(BASE64.encode(&bytes)),
            Err(_) => Self::default(),
        }
    }

    /// What was serialized, checked before anything is allocated for it.
    pub fn read(&self) -> Result<Histogram<u64>, TimesError> {
        if self.0.is_empty() {
            return Ok(empty());
        }
        if self.0.len() > MAX_TEXT_BYTES {
            return Err(TimesError::Long(self.0.len()));
        }
        let bytes = BASE64.decode(self.0.as_bytes()).map_err(TimesError::Base64)?;
        let (Some(head), Some(counts)) = (bytes.get(..HEAD_BYTES), bytes.get(HEAD_BYTES..)) else {
            return Err(TimesError::Head);
        };
        if !is_ours(head, counts.len()) {
            return Err(TimesError::Head);
        }
        if counts.split(|byte| byte & 0x80 == 0).any(|continued| continued.len() > MAX_CONTINUED) {
            return Err(TimesError::Counts("a count is above 2^55".to_owned()));
        }
        let read = Deserializer::new().deserialize(&mut bytes.as_slice());
        read.map_err(|error| TimesError::Counts(error.to_string()))
    }
}

/// Whether a head announces these counts, in our range.
fn is_ours(head: &[u8], counts_bytes: usize) -> bool {
    let u32_at = |at: usize| head[at..at + 4].iter().fold(0, |value: u64, byte| (value << 8) | u64::from(*byte));
    let u64_at = |at: usize| (u32_at(at) << 32) | u32_at(at + 4);
    head.starts_with(&COOKIE)
        && u32_at(4) == counts_bytes as u64
        && u32_at(12) == u64::from(SIGNIFICANT_DIGITS)
        && u64_at(16) == 1
        && (2..=LONGEST_US).contains(&u64_at(24))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(values: &[u64]) -> Histogram<u32> {
        let mut histogram = empty();
        for value in values {
            histogram.record(*value).unwrap();
        }
        histogram
    }

    fn pairs(histogram: &Histogram<u64>) -> Vec<(u64, u64)> {
        histogram.iter_recorded().map(|step| (step.value_iterated_to(), step.count_at_value())).collect()
    }

    #[test]
    fn what_is_written_is_read() {
        for values in [&[][..], &[0], &[1, 1, 2_047, 2_048, 700_000], &[LONGEST_US; 3]] {
            let written = of(values);
            let read = Times::of(&written).read().unwrap();
            assert_eq!(read.len(), values.len() as u64);
            let expected: Vec<(u64, u64)> = written
                .iter_recorded()
                .map(|step| (step.value_iterated_to(), u64::from(step.count_at_value())))
                .collect();
            assert_eq!(pairs(&read), expected);
        }
    }

    #[test]
    fn merging_is_as_exact_as_recording_in_one() {
        let (mut one, two) = (Times::of(&of(&[90, 91, 5_000])).read().unwrap(), Times::of(&of(&[91, 66_000_000])));
        // What is read does not grow by itself, so the longer one takes the shorter one.
        let mut sum = empty::<u64>();
        sum.add(&one).unwrap();
        sum.add(two.read().unwrap()).unwrap();
        // The range that each has grown to may differ.
        let at_once = Times::of(&of(&[90, 91, 91, 5_000, 66_000_000])).read().unwrap();
        assert_eq!(pairs(&sum), pairs(&at_once));
        one.reset();
        assert_eq!(Times::of(&one), Times::default());
    }

    #[test]
    fn hostile_bytes_are_refused_before_they_cost_anything() {
        let good = BASE64.decode(Times::of(&of(&[7, 9])).0.as_bytes()).unwrap();
        let read = |edit: &dyn Fn(&mut Vec<u8>)| {
            let mut bytes = good.clone();
            edit(&mut bytes);
            Times(BASE64.encode(&bytes)).read()
        };
        assert!(read(&|_| {}).is_ok());
        for (what, edit) in [
            ("another cookie", &(|b: &mut Vec<u8>| b[3] = 0x14) as &dyn Fn(&mut Vec<u8>)),
            ("4 GiB announced", &|b| b[4..8].fill(0xff)),
            ("five digits", &|b| b[15] = 5),
            ("a range of hours", &|b| b[24..32].fill(0x3f)),
            ("cut off", &|b| b.truncate(39)),
            ("cut off in its counts", &|b| b.truncate(41)),
            ("a count of 2^63", &|b| {
                b.truncate(HEAD_BYTES);
                b.extend([0xff; 9]);
                b[7] = 9;
            }),
        ] {
            assert!(read(edit).is_err(), "{what}");
        }
        assert!(matches!(Times("no base64!".to_owned()).read(), Err(TimesError::Base64(_))));
        assert!(matches!(Times("A".repeat(MAX_TEXT_BYTES + 1)).read(), Err(TimesError::Long(_))));
    }
}
