//! What was measured beside what it must be.

/// What a measured value must be.
#[derive(Clone, Copy, Debug)]
pub(super) enum Target {
    AtLeast(f64),
    AtMost(f64),
}

/// One line of the table.
#[derive(Debug)]
pub(super) struct Row {
    pub(super) what: String,
    pub(super) measured: f64,
    /// None for a value that is only there to compare with.
    pub(super) target: Option<Target>,
}

impl Row {
    pub(super) fn new(what: impl Into<String>, measured: f64, target: Target) -> Self {
        Self { what: what.into(), measured, target: Some(target) }
    }

    pub(super) fn beside(what: impl Into<String>, measured: f64) -> Self {
        Self { what: what.into(), measured, target: None }
    }

    fn is_met(&self) -> bool {
        // As printed: nobody shall read 0.93 beside a target of 0.93 that is not met.
        let shown = self.shown().parse().unwrap_or(self.measured);
        match self.target {
            None => true,
            Some(Target::AtLeast(least)) => shown >= least,
            Some(Target::AtMost(most)) => shown <= most,
        }
    }

    /// Ratios need their digits, nanoseconds do not.
    fn shown(&self) -> String {
        if self.measured.abs() < 10.0 { format!("{:.3}", self.measured) } else { format!("{:.1}", self.measured) }
    }
}

/// Prints the rows; how many targets were not met.
pub(super) fn print(rows: &[Row]) -> usize {
    println!("{:<64} {:>10}  {:<10}", "what", "measured", "target");
    for row in rows {
        let target = match row.target {
            None => String::new(),
            Some(Target::AtLeast(least)) => format!(">= {least:<6}"),
            Some(Target::AtMost(most)) => format!("<= {most:<6}"),
        };
        let verdict = match row.target {
            None => "",
            Some(_) if row.is_met() => "met",
            Some(_) => "not met",
        };
        println!("{}", format!("{:<64} {:>10}  {target:<10} {verdict}", row.what, row.shown()).trim_end());
    }
    rows.iter().filter(|row| !row.is_met()).count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_is_met_by_what_is_printed() {
        assert!(Row::new("ratio", 0.929_96, Target::AtLeast(0.93)).is_met());
        assert!(!Row::new("ratio", 0.929_4, Target::AtLeast(0.93)).is_met());
        assert!(Row::new("ns", 50.04, Target::AtMost(50.0)).is_met());
        assert!(!Row::new("ns", 50.06, Target::AtMost(50.0)).is_met());
        assert!(Row::beside("empty", 0.1).is_met());
        assert_eq!(print(&[Row::new("a", 2.0, Target::AtMost(1.0)), Row::beside("b", 1.0)]), 1);
    }
}
