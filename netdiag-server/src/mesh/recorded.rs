//! Times of one link: the values of an HDR histogram that were recorded, with their counts.
//!
//! A link has some hundred answers at most, and a cluster has hundreds of thousands of links. A histogram takes 16 KiB for
//! each of them however little is in it; this takes eight bytes for each value, is as exact, and adds as exactly.

use hdrhistogram::Histogram;

/// In the order of the times. Microseconds are those of the histogram's own buckets: the highest of what it takes for equal.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Recorded {
    /// Below 2^26 µs, the longest time that is told apart.
    values: Vec<(u32, u32)>,
}

impl Recorded {
    /// Of the 3 digits and the range that reports have; counts above 2^32 stop there.
    pub fn of(histogram: &Histogram<u64>) -> Self {
        let narrow = |wide: u64| u32::try_from(wide).unwrap_or(u32::MAX);
        let values = histogram.iter_recorded();
        Self { values: values.map(|at| (narrow(at.value_iterated_to()), narrow(at.count_at_value()))).collect() }
    }

    /// Times in microseconds and how often they were recorded.
    pub fn iter(&self) -> impl Iterator<Item = (u64, u64)> {
        self.values.iter().map(|(us, count)| (u64::from(*us), u64::from(*count)))
    }

    pub fn len(&self) -> u64 {
        self.iter().map(|(_, count)| count).sum()
    }

    pub fn is_empty(&self) -> bool {
        self.values.is_empty()
    }

    /// The longest one, in microseconds.
    pub fn max_us(&self) -> Option<u64> {
        self.values.last().map(|(us, _)| u64::from(*us))
    }

    /// What this share of all took at most, in microseconds, as [`Histogram::value_at_quantile`] counts.
    #[expect(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "counts are far below 2^53, and a share of one is no larger and not negative"
    )]
    pub fn at_quantile(&self, share: f64) -> Option<u64> {
        let wanted = ((share.clamp(0.0, 1.0) * self.len() as f64).ceil() as u64).max(1);
        let mut seen = 0;
        let found = self.iter().find(|(_, count)| {
            seen += count;
            seen >= wanted
        });
        found.map(|(us, _)| us)
    }

    /// How many took longer.
    pub fn above(&self, us: u64) -> u64 {
        self.iter().filter(|(time, _)| *time > us).map(|(_, count)| count).sum()
    }

    pub fn add(&mut self, other: &Self) {
        for (us, count) in &other.values {
            match self.values.binary_search_by_key(us, |(known, _)| *known) {
                Ok(at) => self.values[at].1 = self.values[at].1.saturating_add(*count),
                Err(at) => self.values.insert(at, (*us, *count)),
            }
        }
    }

    /// What came to an earlier state of the same times; none when something went.
    pub fn since(&self, earlier: &Self) -> Option<Self> {
        let mut grown = self.clone();
        for (us, count) in &earlier.values {
            let at = grown.values.binary_search_by_key(us, |(known, _)| *known).ok()?;
            grown.values[at].1 = grown.values[at].1.checked_sub(*count)?;
        }
        grown.values.retain(|(_, count)| *count > 0);
        Some(grown)
    }
}

#[cfg(test)]
mod tests {
    use netdiag_common::observation::mesh::{LONGEST_US, empty};
    use proptest::prelude::*;

    use super::*;

    fn histogram(times_us: &[u64]) -> Histogram<u64> {
        let mut histogram = empty();
        for us in times_us {
            histogram.record(*us).unwrap();
        }
        histogram
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn it_says_what_the_histogram_says(
            one in prop::collection::vec(0..=LONGEST_US, 1..60),
            other in prop::collection::vec(0..5_000_u64, 0..60),
            share in 0.001..=1.0_f64,
        ) {
            let both: Vec<u64> = one.iter().chain(&other).copied().collect();
            let whole = histogram(&both);
            let mut sum = Recorded::of(&histogram(&one));
            sum.add(&Recorded::of(&histogram(&other)));
            prop_assert_eq!(&sum, &Recorded::of(&whole));
            prop_assert_eq!((sum.len(), sum.max_us()), (whole.len(), Some(whole.max())));
            prop_assert_eq!(sum.at_quantile(share), Some(whole.value_at_quantile(share)));
            prop_assert_eq!(sum.since(&Recorded::of(&histogram(&one))), Some(Recorded::of(&histogram(&other))));
            let again = sum.iter().fold(empty::<u64>(), |mut all, (us, count)| {
                all.record_n(us, count).unwrap();
                all
            });
            prop_assert_eq!(Recorded::of(&again), sum, "recorded again it falls into the same buckets");
        }
    }

    #[test]
    fn what_is_gone_is_not_taken_for_growth() {
        let (few, more) = (Recorded::of(&histogram(&[90])), Recorded::of(&histogram(&[90, 90, 400])));
        assert_eq!(more.since(&few).unwrap().len(), 2);
        assert_eq!(few.since(&more), None);
        assert_eq!(few.since(&Recorded::of(&histogram(&[95]))), None);
        assert_eq!((Recorded::default().at_quantile(0.5), Recorded::default().max_us()), (None, None));
        assert_eq!([89, 90, 399, 400].map(|us| more.above(us)), [3, 1, 1, 0]);
    }
}
