//! Exact statements about few attempts: the interval of a share, and whether one share differs from another.
//!
//! Nothing here is an approximation for large numbers: series are short, and "4 of 4" is what people have to judge by.

/// Coefficients of Lanczos' approximation with g = 7 (Numerical Recipes, 3rd edition, 6.1; 15 digits).
const LANCZOS: [f64; 9] = [
    0.999_999_999_999_809_9,
    676.520_368_121_885_1,
    -1_259.139_216_722_402_8,
    771.323_428_777_653_1,
    -176.615_029_162_140_6,
    12.507_343_278_686_905,
    -0.138_571_095_265_720_12,
    9.984_369_578_019_572e-6,
    1.505_632_735_149_311_6e-7,
];

/// Steps of the continued fraction: it has converged long before for any count of attempts that fits into a series.
const MAX_STEPS: u32 = 10_000;
/// Halvings of an interval of length one: beyond them it is as narrow as the numbers are exact.
const HALVINGS: u32 = 60;

/// The exact interval of Clopper and Pearson (1934) for the share of `hits` among `tries`, at this confidence (0.95).
/// Without tries every share is possible.
pub fn binomial_interval(hits: u64, tries: u64, confidence: f64) -> (f64, f64) {
    let tail = (1.0 - confidence) / 2.0;
    let (k, n) = (hits.min(tries), tries);
    let low = if k == 0 { 0.0 } else { beta_quantile(tail, float(k), float(n - k) + 1.0) };
    let high = if k == n { 1.0 } else { beta_quantile(1.0 - tail, float(k) + 1.0, float(n - k)) };
    (low, high)
}

/// Fisher's exact test, both sides: how likely a table at least as uneven is when both groups fail with the same chance.
/// `(failed, made)` of the one and of the others.
pub fn fisher(one: (u64, u64), others: (u64, u64)) -> f64 {
    let (failed, made) = (one.0.min(one.1), one.1);
    let all_failed = failed + others.0.min(others.1);
    let all_made = made + others.1;
    let lowest = all_failed.saturating_sub(others.1);
    let highest = all_failed.min(made);
    let chance =
        |k: u64| (ln_choose(made, k) + ln_choose(others.1, all_failed - k) - ln_choose(all_made, all_failed)).exp();
    // Equal chances must count as equal although they are computed in another order.
    let seen = chance(failed) * (1.0 + 1e-7);
    (lowest..=highest).map(chance).filter(|chance| *chance <= seen).sum::<f64>().min(1.0)
}

#[expect(clippy::cast_precision_loss, reason = "counts of attempts are far below 2^52")]
fn float(count: u64) -> f64 {
    count as f64
}

fn ln_choose(n: u64, k: u64) -> f64 {
    ln_gamma(float(n) + 1.0) - ln_gamma(float(k) + 1.0) - ln_gamma(float(n - k) + 1.0)
}

/// For arguments of at least one.
fn ln_gamma(x: f64) -> f64 {
    let x = x - 1.0;
    let (first, rest) = (LANCZOS[0], &LANCZOS[1..]);
    let sum =
        rest.iter().zip(1_u32..).fold(first, |sum, (coefficient, index)| sum + coefficient / (x + f64::from(index)));
    let t = x + 7.5;
    0.5 * (2.0 * std::f64::consts::PI).ln() + (x + 0.5) * t.ln() - t + sum.ln()
}

/// The share below which the beta distribution has this much of its mass, by bisection: its integral grows with the share.
fn beta_quantile(mass: f64, a: f64, b: f64) -> f64 {
    let (mut low, mut high) = (0.0, 1.0);
    for _ in 0..HALVINGS {
        let middle = f64::midpoint(low, high);
        if beta_integral(middle, a, b) < mass {
            low = middle;
        } else {
            high = middle;
        }
    }
    f64::midpoint(low, high)
}

/// The regularized incomplete beta function by its continued fraction (Numerical Recipes, 3rd edition, 6.4).
fn beta_integral(x: f64, a: f64, b: f64) -> f64 {
    if x <= 0.0 {
        return 0.0;
    }
    if x >= 1.0 {
        return 1.0;
    }
    let front = (ln_gamma(a + b) - ln_gamma(a) - ln_gamma(b) + a * x.ln() + b * (1.0 - x).ln()).exp();
    // The fraction converges quickly on this side; the other side is its mirror.
    if x < (a + 1.0) / (a + b + 2.0) {
        front * beta_fraction(x, a, b) / a
    } else {
        1.0 - front * beta_fraction(1.0 - x, b, a) / b
    }
}

/// Lentz's method.
#[expect(clippy::many_single_char_names, reason = "as the book names them")]
fn beta_fraction(x: f64, a: f64, b: f64) -> f64 {
    const TINY: f64 = 1e-300;
    let not_zero = |value: f64| if value.abs() < TINY { TINY } else { value };
    let mut c = 1.0;
    let mut d = 1.0 / not_zero(1.0 - (a + b) * x / (a + 1.0));
    let mut value = d;
    for step in 1..=MAX_STEPS {
        let m = f64::from(step);
        let even = m * (b - m) * x / ((a + 2.0 * m - 1.0) * (a + 2.0 * m));
        d = 1.0 / not_zero(1.0 + even * d);
        c = not_zero(1.0 + even / c);
        value *= d * c;
        let odd = -(a + m) * (a + b + m) * x / ((a + 2.0 * m) * (a + 2.0 * m + 1.0));
        d = 1.0 / not_zero(1.0 + odd * d);
        c = not_zero(1.0 + odd / c);
        value *= d * c;
        if (d * c - 1.0).abs() < 1e-15 {
            break;
        }
    }
    value
}

#[cfg(test)]
mod tests {
    use super::*;

    fn near(left: f64, right: f64) -> bool {
        (left - right).abs() < 5e-5
    }

    #[test]
    fn intervals_are_those_of_the_tables() {
        // The ends that have a closed form: 0 of n has the upper end 1 - (tail)^(1/n), and n of n its mirror. The rest as R's
        // binom.test prints it.
        for (hits, tries, low, high) in [
            (0, 10, 0.0, 1.0 - 0.025_f64.powf(0.1)),
            (10, 10, 0.025_f64.powf(0.1), 1.0),
            (1, 1, 0.025, 1.0),
            (5, 10, 0.187_09, 0.812_91),
            (1, 10, 0.002_53, 0.445_02),
            (0, 0, 0.0, 1.0),
        ] {
            let (found_low, found_high) = binomial_interval(hits, tries, 0.95);
            assert!(near(found_low, low) && near(found_high, high), "{hits} of {tries}: {found_low} to {found_high}");
        }
    }

    #[test]
    fn an_interval_holds_the_share_also_for_long_series() {
        let (low, high) = binomial_interval(500, 100_000, 0.95);
        assert!(low < 0.005 && high > 0.005 && high - low < 0.001, "{low} to {high}");
    }

    #[test]
    fn fishers_tea_and_other_tables() {
        // The lady tasting tea (Fisher 1935): 3 of 4 against 1 of 4 is 34/70.
        assert!(near(fisher((3, 4), (1, 4)), 34.0 / 70.0));
        // All of 4 against none of 8: one table in 495.
        assert!(near(fisher((4, 4), (0, 8)), 1.0 / 495.0));
        assert!(near(fisher((2, 4), (4, 8)), 1.0));
        assert!(near(fisher((0, 0), (3, 9)), 1.0));
    }
}
