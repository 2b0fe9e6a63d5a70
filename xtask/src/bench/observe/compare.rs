//! A rate with something running beside the same rate without, measured before and after it: a machine that grows slower in
//! the meantime costs nobody anything.

use anyhow::Result;

use super::process::median;

pub(super) struct Compared {
    /// With ÷ without.
    pub(super) ratio: f64,
    pub(super) with: f64,
    pub(super) without: f64,
}

/// Medians of `rounds`. What `start` returns runs until it is dropped.
pub(super) fn compare<T>(
    rounds: usize,
    start: impl Fn() -> Result<T>,
    rate: impl Fn() -> Result<f64>,
) -> Result<Compared> {
    let (mut ratios, mut with_rates, mut without_rates) = (Vec::new(), Vec::new(), Vec::new());
    // Not measured: neighbours are looked up, and pages are touched for the first time.
    rate()?;
    let mut before = rate()?;
    for _ in 0..rounds {
        let with = {
            let _running = start()?;
            rate()?
        };
        let after = rate()?;
        let without = f64::midpoint(before, after);
        ratios.push(with / without);
        with_rates.push(with);
        without_rates.push(without);
        before = after;
    }
    Ok(Compared { ratio: median(&ratios), with: median(&with_rates), without: median(&without_rates) })
}
