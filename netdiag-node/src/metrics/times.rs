//! Times as metrics: a histogram whose bounds are powers of two, as the kernel programs measure.

/// The shortest bound is 128 µs, below which there are few handshakes between two hosts; the longest 134 s, above the 127 s
/// after which the kernel gives up.
const SHORTEST_BITS: u8 = 7;
const BOUNDS: usize = 21;

/// Counts by bound, and the sum of what was counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Times {
    sum_us: u64,
    /// One for each bound, then those above the last.
    counts: [u64; BOUNDS + 1],
}

impl Times {
    /// Counts `count` times of less than 2^`bits` microseconds, together `sum_us`.
    pub fn add(&mut self, bits: u8, count: u64, sum_us: u64) {
        self.sum_us += sum_us;
        self.counts[usize::from(bits.saturating_sub(SHORTEST_BITS)).min(BOUNDS)] += count;
    }

    #[expect(clippy::cast_precision_loss, reason = "2^53 microseconds are 285 years")]
    pub fn sum_s(&self) -> f64 {
        self.sum_us as f64 / 1e6
    }

    pub fn count(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// Upper bounds in seconds, each with the count of its own bucket; the last one is infinite.
    pub fn buckets(&self) -> [(f64, u64); BOUNDS + 1] {
        let mut bound_s = f64::from(1_u32 << SHORTEST_BITS) / 1e6;
        let mut buckets = self.counts.map(|count| {
            let bucket = (bound_s, count);
            bound_s *= 2.0;
            bucket
        });
        buckets[BOUNDS].0 = f64::INFINITY;
        buckets
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_lie_below_the_bound_of_their_bucket() {
        let mut times = Times::default();
        times.add(0, 1, 0);
        times.add(7, 2, 200);
        times.add(8, 3, 600);
        times.add(27, 4, 400_000_000);
        times.add(40, 5, 1_000_000_000);
        let buckets = times.buckets();
        assert_eq!((buckets[0], buckets[1]), ((0.000_128, 3), (0.000_256, 3)));
        assert_eq!((buckets[BOUNDS - 1], buckets[BOUNDS]), ((134.217_728, 4), (f64::INFINITY, 5)));
        assert_eq!(times.count(), 15);
        assert!((times.sum_s() - 1400.0008).abs() < 1e-9, "{}", times.sum_s());
    }
}
