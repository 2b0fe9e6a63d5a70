//! Choices that are not the packet's: where a run could go on in several ways, it asks here, and is run again for each.
//!
//! Running again costs more than copying the state of a run at each choice would, and keeps everything else free of
//! branches: a run is an ordinary function of the state, the packet and this script.

/// The script of one run.
#[derive(Debug, Clone, Default)]
pub(super) struct Choices {
    /// What was taken at each choice, and of how many.
    taken: Vec<(u32, u32)>,
    next: usize,
}

impl Choices {
    /// Which of `alternatives` this run takes. The first run takes the first of all.
    pub(super) fn choose(&mut self, alternatives: u32) -> u32 {
        if self.next == self.taken.len() {
            self.taken.push((0, alternatives.max(1)));
        }
        let (taken, _) = self.taken[self.next];
        self.next += 1;
        taken
    }

    /// The script of the next run; none after the last.
    pub(super) fn following(mut self) -> Option<Self> {
        self.taken.truncate(self.next);
        self.next = 0;
        while let Some((taken, of)) = self.taken.pop() {
            if taken + 1 < of {
                self.taken.push((taken + 1, of));
                return Some(self);
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_ways_are_taken_once() {
        let mut ways = Vec::new();
        let mut script = Some(Choices::default());
        while let Some(mut choices) = script {
            let first = choices.choose(2);
            // The second choice exists on one way only.
            ways.push((first, (first == 0).then(|| choices.choose(3))));
            script = choices.following();
        }
        assert_eq!(ways, [(0, Some(0)), (0, Some(1)), (0, Some(2)), (1, None)]);
    }
}
