//! What was measured beside what it must be.

use std::fmt;

/// What a measured value must be.
#[derive(Clone, Copy, Debug)]
pub(in crate::bench) enum Target {
    AtLeast(f64),
    AtMost(f64),
}

/// One line of a table.
#[derive(Debug)]
pub(in crate::bench) struct Row {
    pub(in crate::bench) what: String,
    pub(in crate::bench) measured: f64,
    /// None for a value that is only there to compare with.
    pub(in crate::bench) target: Option<Target>,
    /// What would be better than the target.
    aim: Option<Target>,
}

/// One subject: how it was measured, what could not be, and the values.
#[derive(Debug)]
pub(in crate::bench) struct Table {
    pub(in crate::bench) title: &'static str,
    pub(in crate::bench) how: String,
    pub(in crate::bench) missing: Vec<String>,
    pub(in crate::bench) rows: Vec<Row>,
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AtLeast(least) => write!(f, ">= {least}"),
            Self::AtMost(most) => write!(f, "<= {most}"),
        }
    }
}

impl Row {
    pub(in crate::bench) fn new(what: impl Into<String>, measured: f64, target: Target) -> Self {
        Self { what: what.into(), measured, target: Some(target), aim: None }
    }

    pub(in crate::bench) fn beside(what: impl Into<String>, measured: f64) -> Self {
        Self { what: what.into(), measured, target: None, aim: None }
    }

    pub(in crate::bench) fn aiming(self, aim: Target) -> Self {
        Self { aim: Some(aim), ..self }
    }

    fn is_met(&self) -> bool {
        self.target.is_none_or(|target| self.reaches(target))
    }

    fn reaches(&self, target: Target) -> bool {
        // As printed: nobody shall read 0.93 beside a target of 0.93 that is not met.
        let shown = self.shown().parse().unwrap_or(self.measured);
        match target {
            Target::AtLeast(least) => shown >= least,
            Target::AtMost(most) => shown <= most,
        }
    }

    /// Ratios need their digits, nanoseconds do not.
    fn shown(&self) -> String {
        if self.measured.abs() < 10.0 { format!("{:.3}", self.measured) } else { format!("{:.1}", self.measured) }
    }

    fn target(&self) -> String {
        self.target.map_or_else(String::new, |target| target.to_string())
    }

    fn verdict(&self) -> String {
        let word = match self.target {
            None => "",
            Some(_) if self.is_met() => "met",
            Some(_) => "not met",
        };
        match self.aim {
            None => word.to_owned(),
            Some(aim) => format!("{word}; aim {aim} {}", if self.reaches(aim) { "reached" } else { "not reached" }),
        }
    }
}

impl Table {
    /// How many targets were not met.
    pub(in crate::bench) fn missed(&self) -> usize {
        self.rows.iter().filter(|row| !row.is_met()).count()
    }

    pub(in crate::bench) fn print(&self) {
        println!("\n{}: {}", self.title, self.how);
        self.missing.iter().for_each(|line| println!("{line}"));
        println!("{:<68} {:>10}  {:<10}", "what", "measured", "target");
        for row in &self.rows {
            let line = format!("{:<68} {:>10}  {:<10} {}", row.what, row.shown(), row.target(), row.verdict());
            println!("{}", line.trim_end());
        }
    }

    /// A section of a page of Markdown.
    pub(in crate::bench) fn section(&self) -> String {
        let mut text = format!("\n## {}\n\n{}\n\n", self.title, self.how);
        self.missing.iter().for_each(|line| text += &format!("- {line}\n"));
        if self.rows.is_empty() {
            return text;
        }
        if !self.missing.is_empty() {
            text.push('\n');
        }
        text += "| what | measured | target | |\n|---|---:|---|---|\n";
        for row in &self.rows {
            // What is indented belongs to the row above.
            let what = row.what.strip_prefix("    ").map_or_else(|| row.what.clone(), |what| format!("– {what}"));
            text += &format!("| {what} | {} | {} | {} |\n", row.shown(), row.target(), row.verdict());
        }
        text
    }
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
        assert!(!Row::new("nothing measured", f64::NAN, Target::AtMost(1.0)).is_met());
        assert!(Row::beside("empty", 0.1).is_met());
    }

    #[test]
    fn an_aim_is_told_apart_from_its_target() {
        let row = Row::new("ratio", 0.94, Target::AtLeast(0.93)).aiming(Target::AtLeast(0.95));
        assert_eq!(row.verdict(), "met; aim >= 0.95 not reached");
        let rows = vec![row, Row::new("    ns", 2.0, Target::AtMost(1.0)), Row::beside("b", 1.0)];
        let table = Table { title: "storm", how: "once".to_owned(), missing: vec!["no perf".to_owned()], rows };
        assert_eq!(table.missed(), 1);
        let section = table.section();
        assert!(section.contains("once\n\n- no perf\n\n| what |"), "{section}");
        assert!(section.contains("| – ns | 2.000 | <= 1 | not met |\n"), "{section}");
    }
}
