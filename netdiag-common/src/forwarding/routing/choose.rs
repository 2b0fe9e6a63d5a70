//! What decides between several answers to one question.

use serde::{Deserialize, Serialize};

use super::super::choice::Choices;

/// What an answer rests on besides the state.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Assumed {
    /// The kernel's hash chose this one, as it does for this share of all flows.
    Chance { what: String, value: u32, chance: f64 },
    /// It is not known whether this holds.
    Unknown { what: String, holds: bool },
}

/// The script of one evaluation, and what it took.
pub(super) struct Chooser {
    choices: Choices,
    assumptions: Vec<Assumed>,
}

impl Chooser {
    pub(super) fn new(choices: Choices) -> Self {
        Self { choices, assumptions: Vec::new() }
    }

    /// Whether something unknown holds. The same question has the same answer throughout an evaluation.
    pub(super) fn holds(&mut self, question: &str) -> bool {
        let before = self.assumptions.iter().find_map(|assumption| match assumption {
            Assumed::Unknown { what, holds } if what == question => Some(*holds),
            _ => None,
        });
        before.unwrap_or_else(|| {
            let holds = self.choices.choose(2) == 0;
            self.assumptions.push(Assumed::Unknown { what: question.into(), holds });
            holds
        })
    }

    /// One of several, each as likely as its weight says.
    pub(super) fn weighted(&mut self, what: &str, weights: &[u32]) -> usize {
        let taken = self.one_of(weights.len());
        if weights.len() > 1 {
            let total: f64 = weights.iter().copied().map(f64::from).sum();
            let chance = f64::from(weights[taken]) / total;
            let value = u32::try_from(taken).unwrap_or(u32::MAX);
            self.assumptions.push(Assumed::Chance { what: what.into(), value, chance });
        }
        taken
    }

    /// One of several, of which nobody knows how likely it is. `what` names one by its position.
    pub(super) fn unweighted(&mut self, count: usize, what: impl Fn(usize) -> String) -> usize {
        let taken = self.one_of(count);
        if count > 1 {
            self.assumptions.push(Assumed::Unknown { what: what(taken), holds: true });
        }
        taken
    }

    fn one_of(&mut self, count: usize) -> usize {
        let Ok(alternatives @ 2..) = u32::try_from(count) else { return 0 };
        self.choices.choose(alternatives) as usize
    }

    pub(super) fn end(self) -> (Choices, Vec<Assumed>) {
        (self.choices, self.assumptions)
    }
}
