//! A few whole queries of each kind of failure, newest first, in bounded memory.

use netdiag_common::record::dns::Open;

use super::Answer;
use super::message::Question;
use crate::kernel::newest::Newest;

/// Queries kept of one kind: enough to see a pattern in names.
const PER_KIND: usize = 4;
/// Bytes kept of a name.
const NAME_BYTES: usize = 255;

const TC: u16 = 0x0200;

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Exemplar {
    pub(super) first_ns: u64,
    pub(super) netns: u64,
    pub(super) server: [u64; 2],
    pub(super) service: u64,
    pub(super) name: String,
    pub(super) kind: u16,
    pub(super) tries: u32,
    /// Flags and nanoseconds since the first try.
    pub(super) answer: Option<(u16, u64)>,
}

/// Namespace and how it ended: no answer, its code, or what else was not ordinary.
type Kind = (u64, Ended);

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Ended {
    Unanswered,
    Code(u16),
    Truncated,
    Repeated,
}

impl Exemplar {
    pub(super) fn new(open: &Open, answer: Option<Answer>, question: Option<&Question>) -> Self {
        let name = question.map_or(String::new(), |question| question.name.chars().take(NAME_BYTES).collect());
        Self {
            first_ns: open.first_ns,
            netns: open.netns,
            server: open.server,
            service: open.service,
            name,
            kind: question.map_or(0, |question| question.kind),
            tries: open.tries,
            answer: answer.map(|answer| (answer.flags, answer.at_ns.saturating_sub(open.first_ns))),
        }
    }

    /// None for an ordinary answer to the first try.
    fn ended(&self) -> Option<Ended> {
        match self.answer {
            None => Some(Ended::Unanswered),
            Some((flags, _)) if flags & 0xf != 0 => Some(Ended::Code(flags & 0xf)),
            Some((flags, _)) if flags & TC != 0 => Some(Ended::Truncated),
            Some(_) if self.tries > 1 => Some(Ended::Repeated),
            Some(_) => None,
        }
    }
}

#[derive(Debug)]
pub(super) struct Exemplars(Newest<Kind, Exemplar>);

impl Default for Exemplars {
    fn default() -> Self {
        Self(Newest::new(PER_KIND, |exemplar| exemplar.first_ns))
    }
}

impl Exemplars {
    /// Keeps it unless it is ordinary.
    pub(super) fn add(&mut self, exemplar: Exemplar) {
        if let Some(ended) = exemplar.ended() {
            self.0.add((exemplar.netns, ended), exemplar);
        }
    }

    pub(super) fn forget_before(&mut self, ns: u64) {
        self.0.forget_before(ns);
    }

    pub(super) fn since(&self, ns: u64) -> impl Iterator<Item = &Exemplar> {
        self.0.kinds().flat_map(|(_, of)| of).filter(move |exemplar| exemplar.first_ns >= ns)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::newest::KINDS;

    fn exemplar(netns: u64, first_ns: u64, answer: Option<(u16, u64)>) -> Exemplar {
        Exemplar { first_ns, netns, server: [0; 2], service: 0, name: String::new(), kind: 1, tries: 1, answer }
    }

    #[test]
    fn kinds_are_bounded_and_ordinary_answers_are_none() {
        let mut exemplars = Exemplars::default();
        exemplars.add(exemplar(1, 1, Some((0x8180, 10))));
        assert_eq!(exemplars.since(0).count(), 0);
        for n in 0..1000 {
            exemplars.add(exemplar(n, n, None));
            exemplars.add(exemplar(9999, 5000 + n, Some((0x8183, 10))));
        }
        assert_eq!(exemplars.0.kinds().count(), KINDS);
        assert_eq!(exemplars.since(5000).count(), PER_KIND);
        exemplars.forget_before(5000);
        assert_eq!(exemplars.since(0).count(), PER_KIND);
    }
}
