//! Counting what tests say.

/// Passed, failed and skipped checks.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Tally {
    pub(crate) passed: usize,
    /// Each with what is wrong, as far as one line can say it.
    pub(crate) failures: Vec<String>,
    /// Each with its reason.
    pub(crate) skips: Vec<String>,
    /// Those that passed only when they ran once more, without others beside them.
    pub(crate) unsteady: Vec<String>,
}

impl Tally {
    pub(crate) fn passed() -> Self {
        Self { passed: 1, ..Self::default() }
    }

    pub(crate) fn failed(what: impl Into<String>) -> Self {
        Self { failures: vec![what.into()], ..Self::default() }
    }

    pub(crate) fn has_failed(&self) -> bool {
        !self.failures.is_empty()
    }

    /// What failed passes when it does so in the output of another run.
    pub(crate) fn forgive(&mut self, again: &str) {
        let has_passed = |name: &String| again.lines().any(|line| line == format!("test {name} ... ok"));
        let (passed, failed): (Vec<String>, Vec<String>) =
            std::mem::take(&mut self.failures).into_iter().partition(has_passed);
        self.passed += passed.len();
        self.unsteady.extend(passed);
        self.failures = failed;
    }

    pub(crate) fn add(&mut self, other: &Self) {
        self.passed += other.passed;
        self.failures.extend(other.failures.iter().cloned());
        self.skips.extend(other.skips.iter().cloned());
        self.unsteady.extend(other.unsteady.iter().cloned());
    }
}

impl std::fmt::Display for Tally {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} passed, {} failed, {} skipped", self.passed, self.failures.len(), self.skips.len())
    }
}

/// What a test prints that could not run, `netdiag-skip: NAME: REASON`, before it returns; cargo counts it as passed.
const SKIP: &str = "netdiag-skip: ";

/// The output without the part that repeats what passing tests printed.
pub(crate) fn without_successes(text: &str) -> String {
    let mut shown = true;
    let mut kept = String::new();
    for line in text.lines() {
        match line {
            "successes:" => shown = false,
            "failures:" => shown = true,
            _ if line.starts_with("test result:") => shown = true,
            _ => {}
        }
        if shown {
            kept.push_str(line);
            kept.push('\n');
        }
    }
    kept
}

/// Sums the `test result:` lines of cargo. Ignored tests are skips: they did not run.
pub(crate) fn of_cargo(text: &str) -> Tally {
    let mut tally = Tally::default();
    let mut failed = 0;
    for line in text.lines().filter(|line| line.starts_with("test result:")) {
        let count = |word: &str| -> usize {
            let before = line.split(word).next().unwrap_or_default();
            before.split_whitespace().next_back().and_then(|number| number.parse().ok()).unwrap_or_default()
        };
        tally.passed += count(" passed");
        failed += count(" failed");
    }
    let named = text.lines().filter_map(|line| line.strip_prefix("test ")?.strip_suffix(" ... FAILED"));
    tally.failures.extend(named.map(str::to_owned));
    // A test whose output went between its name and its outcome.
    let unnamed = failed.saturating_sub(tally.failures.len());
    tally.failures.extend(std::iter::repeat_n("a test whose name is above".to_owned(), unnamed));
    let ignored = text.lines().filter(|line| line.starts_with("test ") && line.contains("... ignored"));
    tally.skips.extend(ignored.map(|line| line.trim_start_matches("test ").to_owned()));
    let skipped = skips(text);
    tally.passed = tally.passed.saturating_sub(skipped.len());
    tally.skips.extend(skipped.into_iter().map(str::to_owned));
    tally
}

/// What tests said that did not run, `NAME: REASON`.
pub(crate) fn skips(text: &str) -> Vec<&str> {
    text.lines().filter_map(|line| line.strip_prefix(SKIP)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_result_lines_are_summed_and_ignored_tests_are_skips() {
        let text = "\
test a ... ok
test b ... ignored, needs a printer
test c ... FAILED
test result: ok. 3 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.00s
test result: FAILED. 10 passed; 2 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.00s
";
        let tally = of_cargo(text);
        assert_eq!(tally.failures, ["c", "a test whose name is above"]);
        assert_eq!(tally.to_string(), "13 passed, 2 failed, 1 skipped");
    }

    #[test]
    fn a_test_that_skipped_itself_is_not_a_passed_one() {
        let text = "netdiag-skip: kernel_kfree_skb: not root\ntest result: ok. 4 passed; 0 failed; 0 ignored\n";
        let tally = of_cargo(text);
        assert_eq!((tally.passed, tally.skips.as_slice()), (3, &["kernel_kfree_skb: not root".to_owned()][..]));
    }

    #[test]
    fn what_passes_the_second_time_is_told_apart() {
        let mut tally = of_cargo("test a ... FAILED\ntest b ... FAILED\ntest result: FAILED. 5 passed; 2 failed;\n");
        tally.forgive("test a ... ok\ntest b ... FAILED\n");
        assert_eq!(
            (tally.passed, &*tally.failures, &*tally.unsteady),
            (6, &["b".to_owned()][..], &["a".to_owned()][..])
        );
    }

    #[test]
    fn what_passing_tests_printed_is_not_repeated() {
        let text = "test a ... ok\n\nsuccesses:\nnoise\n\ntest result: ok. 1 passed; 0 failed; 0 ignored\n";
        assert_eq!(without_successes(text), "test a ... ok\n\ntest result: ok. 1 passed; 0 failed; 0 ignored\n");
    }
}
