//! How likely a count is while the target is kept: the exact binomial tail, so that two losses of ten are told from two of ten
//! thousand.

/// The chance below which a count speaks against its target.
pub(super) const SIGNIFICANT: f64 = 0.001;

/// The chance of `at_least` or more of `trials`, each with chance `each`.
#[expect(clippy::cast_precision_loss, reason = "counts of some minutes are far below 2^53")]
pub(super) fn tail(at_least: u64, trials: u64, each: f64) -> f64 {
    if at_least == 0 {
        return 1.0;
    }
    if at_least > trials || each <= 0.0 {
        return 0.0;
    }
    if each >= 1.0 {
        return 1.0;
    }
    // What is far above the mean is so unlikely that its exact chance says nothing more; below it the sum is short enough.
    let (trials_f, odds) = (trials as f64, (each / (1.0 - each)).ln());
    let mut term = trials_f * (1.0 - each).ln();
    let mut below = term.exp();
    for count in 0..at_least - 1 {
        term += ((trials_f - count as f64) / (count as f64 + 1.0)).ln() + odds;
        below += term.exp();
        if count as f64 > trials_f * each && term < -40.0 {
            break;
        }
    }
    (1.0 - below).clamp(0.0, 1.0)
}

/// Whether so many are too many for the target.
pub(super) fn is_too_many(count: u64, trials: u64, allowed: f64) -> bool {
    // A chance of just that is not below it, however it was rounded: one of one, at one in a thousand.
    tail(count, trials, allowed) < SIGNIFICANT * (1.0 - 1e-9)
}

/// Whether so many answers in a row say that what failed before does so no more: they would come by chance less often than
/// once in a thousand while `failures` of `told` went on. One is added to those told, so that what failed always is not over
/// with a single answer.
#[expect(clippy::cast_precision_loss, reason = "counts of some minutes are far below 2^53")]
pub(super) fn has_passed(failures: u64, told: u64, answered_since: u64) -> bool {
    let each = failures as f64 / (told as f64 + 1.0);
    answered_since as f64 * (1.0 - each).ln() < SIGNIFICANT.ln()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tails_are_those_of_the_textbook() {
        for (at_least, trials, each, expected) in [
            (1, 1, 0.25, 0.25),
            (1, 10, 0.001, 1.0 - 0.999_f64.powi(10)),
            (2, 2, 0.5, 0.25),
            (2, 3, 0.5, 0.5),
            (0, 5, 0.1, 1.0),
            (6, 5, 0.1, 0.0),
        ] {
            let found = tail(at_least, trials, each);
            assert!((found - expected).abs() < 1e-12, "{at_least} of {trials} at {each}: {found}");
        }
        // The median of a million.
        assert!((tail(10_000, 1_000_000, 0.01) - 0.5).abs() < 0.01);
    }

    #[test]
    fn one_loss_of_ten_may_be_chance_and_two_are_not() {
        assert!(!is_too_many(1, 10, 0.001));
        assert!(is_too_many(2, 10, 0.001));
        assert!(!is_too_many(12, 10_000, 0.001));
        assert!(is_too_many(30, 10_000, 0.001));
        assert!(!is_too_many(0, 0, 0.001));
        assert!(is_too_many(1, 10, 0.0), "nothing may be lost");
        assert!(!is_too_many(1, 1, 0.001), "the first attempt of all");
    }

    #[test]
    fn what_failed_always_is_over_soon_and_what_failed_rarely_is_not() {
        assert!(!has_passed(20, 20, 0));
        assert!(!has_passed(20, 20, 2));
        assert!(has_passed(20, 20, 3));
        assert!(!has_passed(3, 300, 500), "one in a hundred");
        assert!(has_passed(3, 300, 800));
        assert!(!has_passed(0, 10, 10_000), "what never failed has nothing to be over");
    }
}
