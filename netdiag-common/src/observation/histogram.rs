//! Times counted by powers of two, as the kernel programs count them.

use serde::{Deserialize, Serialize};

/// Only buckets that hold something are listed, shortest times first.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Histogram {
    pub count: u64,
    /// All of them together, in microseconds.
    pub sum_us: u64,
    pub buckets: Vec<Bucket>,
}

/// Times of at least half of `below_us` and less than it; the first bucket also has 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bucket {
    pub below_us: u64,
    pub count: u64,
}

impl Histogram {
    /// The power of two below which `share` (0 to 1) of the times lie. None when there are none.
    pub fn below_us(&self, share: f64) -> Option<u64> {
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_precision_loss,
            clippy::cast_sign_loss,
            reason = "a rank among counts that are far below 2^53"
        )]
        let wanted = (self.count as f64 * share.clamp(0.0, 1.0)).ceil() as u64;
        let mut seen = 0;
        let reached = self.buckets.iter().find(|bucket| {
            seen += bucket.count;
            seen >= wanted
        });
        reached.or(self.buckets.last()).map(|bucket| bucket.below_us)
    }

    /// Counts `count` times of together `sum_us` in the bucket that ends at `below_us`.
    pub fn add(&mut self, below_us: u64, count: u64, sum_us: u64) {
        self.count += count;
        self.sum_us += sum_us;
        match self.buckets.binary_search_by_key(&below_us, |bucket| bucket.below_us) {
            Ok(at) => self.buckets[at].count += count,
            Err(at) => self.buckets.insert(at, Bucket { below_us, count }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_read_from_the_buckets() {
        let mut times = Histogram::default();
        assert_eq!(times.below_us(0.5), None);
        times.add(1024, 9, 9 * 700);
        times.add(1 << 20, 1, 900_000);
        times.add(1024, 90, 90 * 700);
        assert_eq!((times.count, times.sum_us, times.buckets.len()), (100, 99 * 700 + 900_000, 2));
        assert_eq!(times.below_us(0.5), Some(1024));
        assert_eq!(times.below_us(0.99), Some(1024));
        assert_eq!(times.below_us(1.0), Some(1 << 20));
    }
}
