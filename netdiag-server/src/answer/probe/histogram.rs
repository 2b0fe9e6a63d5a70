//! How the times of a series are spread: a histogram drawn with characters.

use crate::probe::tally::{PhaseEntry, decoded};

/// With fewer attempts it says no more than the percentiles.
const LEAST: u64 = 20;
/// Columns of the longest bar. With the bounds and the count before it a line fits a terminal of 80 columns.
const BAR: usize = 40;
/// Above that the bounds are powers of ten.
const MAX_BUCKETS: usize = 12;
/// Eighths of a column.
const EIGHTHS: [&str; 8] = ["", "▏", "▎", "▍", "▌", "▋", "▊", "▉"];

/// The phase's name, then a line for each range of times. Empty where there are too few.
pub(super) fn lines(times: &PhaseEntry) -> Vec<String> {
    if times.count < LEAST {
        return Vec::new();
    }
    let histogram = match decoded(&times.histogram) {
        Ok(histogram) => histogram,
        Err(why) => return vec![format!("{}: cannot be drawn: {why}", times.phase)],
    };
    let bounds = bounds(times.min_us, times.max_us);
    let mut counts = vec![0_u64; bounds.len() - 1];
    for value in histogram.iter_recorded() {
        // The histogram has three digits of each time; its range begins at the lowest that it stands for.
        let lowest_us = histogram.lowest_equivalent(value.value_iterated_to());
        let bucket = bounds.partition_point(|bound| *bound <= lowest_us).clamp(1, counts.len()) - 1;
        counts[bucket] += value.count_at_value();
    }
    let most = counts.iter().copied().max().unwrap_or(1).max(1);
    let ranges = bounds.windows(2).zip(&counts).map(|(range, count)| {
        let (from, to) = (short(range[0]), short(range[1]));
        format!("{from:>8} to {to:<8} {count:>6} {}", bar(*count, most)).trim_end().to_owned()
    });
    std::iter::once(format!("{} of {} attempts", times.phase, times.count)).chain(ranges).collect()
}

/// Bounds of the ranges, microseconds, rising: equally wide where the longest time is no five times the shortest, else each two
/// or two and a half times the one before.
fn bounds(min_us: u64, max_us: u64) -> Vec<u64> {
    let is_narrow = max_us / 5 < min_us;
    if is_narrow {
        let ranges = |step: u64| max_us / step - min_us / step + 1;
        let step = steps().find(|step| ranges(*step) <= MAX_BUCKETS as u64).unwrap_or(u64::MAX);
        let first = min_us / step;
        return (0..=ranges(step)).map(|number| (first + number).saturating_mul(step)).collect();
    }
    let between = |bounds: Vec<u64>| {
        let first = bounds.partition_point(|bound| *bound <= min_us).saturating_sub(1);
        let last = bounds.partition_point(|bound| *bound <= max_us).min(bounds.len() - 1);
        bounds[first..=last].to_vec()
    };
    let fine = between(std::iter::once(0).chain(steps()).collect());
    if fine.len() <= MAX_BUCKETS + 1 { fine } else { between(std::iter::once(0).chain(steps().step_by(3)).collect()) }
}

/// 1, 2, 5, 10, 20, 50 and so on, to more than any attempt may take.
fn steps() -> impl Iterator<Item = u64> {
    (0..10).flat_map(|exponent| [1, 2, 5].map(|digit| digit * 10_u64.pow(exponent)))
}

/// Something is drawn of everything that is there.
fn bar(count: u64, most: u64) -> String {
    let eighths =
        usize::try_from(count.saturating_mul(8 * BAR as u64) / most).unwrap_or(8 * BAR).max(usize::from(count > 0));
    format!("{}{}", "█".repeat(eighths / 8), EIGHTHS[eighths % 8])
}

/// `500 µs`, `1.25 ms`, `2 s`.
fn short(us: u64) -> String {
    let (unit, name) = match us {
        0..1_000 => return format!("{us} µs"),
        1_000..1_000_000 => (1_000, "ms"),
        _ => (1_000_000, "s"),
    };
    let digits = if unit == 1_000 { 3 } else { 6 };
    let fraction = format!("{:0digits$}", us % unit);
    let fraction = fraction.trim_end_matches('0');
    let point = if fraction.is_empty() { "" } else { "." };
    format!("{}{point}{fraction} {name}", us / unit)
}

#[cfg(test)]
mod tests {
    use hdrhistogram::Histogram;

    use super::*;
    use crate::probe::tally::encoded;

    fn times(values_us: impl IntoIterator<Item = u64>) -> PhaseEntry {
        let mut histogram = Histogram::<u64>::new(3).expect("three digits");
        let values: Vec<u64> = values_us.into_iter().collect();
        for value in &values {
            histogram.record(*value).expect("a time");
        }
        PhaseEntry {
            phase: "connect".to_owned(),
            count: values.len() as u64,
            min_us: values.iter().copied().min().unwrap_or(0),
            max_us: values.iter().copied().max().unwrap_or(0),
            p50_us: 0,
            p90_us: 0,
            p99_us: 0,
            histogram: encoded(&histogram).expect("a histogram"),
        }
    }

    fn counted(lines: &[String]) -> u64 {
        lines
            .iter()
            .skip(1)
            .map(|line| line.split_whitespace().nth(5).expect("a count").parse::<u64>().expect("a number"))
            .sum()
    }

    #[test]
    fn a_retransmission_stands_apart_from_the_rest() {
        let drawn = lines(&times((0..90).map(|number| 200 + number * 3).chain([1_020_000; 10])));
        assert_eq!(drawn[0], "connect of 100 attempts");
        assert_eq!(drawn[1], "  200 µs to 500 µs       90 ████████████████████████████████████████");
        assert_eq!(drawn.last().map(String::as_str), Some("     1 s to 2 s          10 ████▍"));
        assert_eq!(counted(&drawn), 100);
    }

    #[test]
    fn narrow_times_have_ranges_of_one_width() {
        let drawn = lines(&times((0..40).map(|number| 1_200 + number * 10)));
        assert_eq!(drawn[1], "  1.2 ms to 1.25 ms       5 ████████████████████████████████████████");
        assert_eq!((drawn.len(), counted(&drawn)), (9, 40), "{drawn:#?}");
    }

    #[test]
    fn no_line_is_wider_than_a_terminal_and_no_attempt_is_lost() {
        let wide = (0..29).map(|power| 1_u64 << power).chain([0, 100_000_000]);
        for values in [wide.collect(), vec![7; 20], vec![0; 25], (0..100).collect::<Vec<u64>>()] {
            let drawn = lines(&times(values.clone()));
            assert_eq!(counted(&drawn), values.len() as u64, "{drawn:#?}");
            assert!(drawn.len() <= MAX_BUCKETS + 1, "{drawn:#?}");
            assert!(drawn.iter().all(|line| line.chars().count() <= 68), "{drawn:#?}");
        }
    }

    #[test]
    fn few_attempts_are_not_drawn_and_what_cannot_be_read_is_said() {
        assert!(lines(&times([5; 19])).is_empty());
        let strange = PhaseEntry { histogram: "?".to_owned(), ..times([5; 20]) };
        assert!(lines(&strange)[0].starts_with("connect: cannot be drawn: its histogram is no base64"));
    }
}
