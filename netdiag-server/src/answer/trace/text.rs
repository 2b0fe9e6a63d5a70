//! The way on a terminal: what was predicted, and beside it what the kernel traced.

use super::{AgreementName, CountersEntry, DecisionEntry, FamilyEntry, LegEntry, TraceAnswer, WayEntry};
use crate::answer::page::{Page, Paint, Tone};
use crate::trace::is_certain;

/// In the column of the trace: in both, predicted only, traced only, not traced by any kernel.
const MARKS: [&str; 4] = ["=", "-", "+", " "];

impl TraceAnswer {
    pub fn text(&self, paint: Paint) -> String {
        let mut page = Page::new(paint);
        page.line("from", &self.from);
        page.line("to", &self.to);
        if let Some(what_if) = &self.what_if {
            what_if.lines(&mut page);
        }
        for family in &self.families {
            family.lines(&mut page);
        }
        page.not_seen(&self.not_seen);
        page.finish()
    }
}

impl FamilyEntry {
    fn lines(&self, page: &mut Page) {
        page.heading(&self.destination);
        if !self.sent.is_empty() {
            page.line("sent", &self.sent);
        }
        match self.agreement {
            AgreementName::NotTraced if self.counters.is_some() => {}
            AgreementName::Same => page.toned("trace", "agrees with what was predicted", Tone::Good),
            AgreementName::Differs => page.toned("trace", "differs from what was predicted", Tone::Bad),
            AgreementName::NotTraced => page.line("trace", "none: this is read from the rules and routes alone"),
        }
        if let Some(counters) = &self.counters {
            counters.line(page);
        }
        if self.ways.is_empty() {
            page.line("way", "none could be followed");
        }
        let shown = self.ways.iter().position(|way| way.taken).unwrap_or(0);
        for (number, way) in self.ways.iter().enumerate() {
            let tone = if way.answered { Tone::Good } else { Tone::Bad };
            page.toned(&format!("way {}", number + 1), &way.words(), tone);
        }
        if self.cut {
            page.line("", "and more, which were not followed");
        }
        if let Some(way) = self.ways.get(shown) {
            page.heading(&format!("way {}", shown + 1));
            if way.taken {
                let [both, predicted, traced, _] = MARKS;
                page.row(&format!("{both} predicted and traced   {predicted} predicted only   {traced} traced only"));
            }
            way.legs.iter().for_each(|leg| leg.lines(page));
        }
    }
}

impl CountersEntry {
    fn line(&self, page: &mut Page) {
        match (self.rules, self.fewer) {
            (0, _) => page.line("counters", "no rule on these ways has one: nothing can be compared"),
            (rules, 0) => {
                let words = format!("none of {rules} rules counted less than was predicted");
                page.toned("counters", &words, Tone::Good);
            }
            (rules, fewer) => {
                page.toned("counters", &format!("{fewer} of {rules} rules counted less than was predicted"), Tone::Bad);
            }
        }
    }
}

impl DecisionEntry {
    /// What its counter says.
    fn counts(&self) -> String {
        match (self.counted, self.expected, self.packets) {
            (Some(counted), Some(expected), _) => {
                let how = if is_certain(expected) { "at least" } else { "about" };
                format!(" (counted {counted} packets, {how} {expected:.0} predicted)")
            }
            (Some(counted), None, _) => format!(" (counted {counted} packets)"),
            (None, _, Some(packets)) => format!(" ({packets} packets before)"),
            (None, _, None) => String::new(),
        }
    }
}

impl WayEntry {
    fn words(&self) -> String {
        let mut words = self.end.clone();
        // A way that is certain has no chance worth telling.
        match self.chance {
            Some(chance) if chance < 0.9995 => words.push_str(&format!(", {:.1} % of packets", chance * 100.0)),
            Some(_) => {}
            None => words.push_str(", if what is not known is so"),
        }
        if self.taken {
            words.push_str(", the one that was taken");
        }
        let last = self.legs.iter().rfind(|leg| !leg.reply);
        if let (true, Some(last)) = (self.answered, last) {
            words.push_str(&format!(": by {} on {}", last.place, last.node));
        }
        words
    }
}

impl LegEntry {
    fn lines(&self, page: &mut Page) {
        let where_from =
            if self.interface.is_empty() { "sent".to_owned() } else { format!("in by {}", self.interface) };
        let reply = if self.reply { "answer, " } else { "" };
        let tunnel = self.tunnel.as_ref().map(|tunnel| format!("{tunnel}: ")).unwrap_or_default();
        page.row("");
        page.row(&format!("{}, {}: {reply}{where_from}: {tunnel}{}", self.node, self.place, self.packet));
        for decision in &self.decisions {
            let [both, predicted, traced, none] = MARKS;
            let mark = match (decision.predicted, decision.traced) {
                (true, Some(true)) => both,
                (true, Some(false)) => predicted,
                (false, _) => traced,
                (true, None) => none,
            };
            let counted = decision.counts();
            let whose = match (decision.owner.as_str(), decision.object.as_str()) {
                ("", _) | ("Kubernetes" | "kube-proxy", "") => String::new(),
                ("Kubernetes" | "kube-proxy", object) => format!(" [{object}]"),
                (owner, "") => format!(" [{owner}]"),
                (owner, object) => format!(" [{owner}, {object}]"),
            };
            page.row(&format!("  {mark} {}{whose}{counted}", decision.what));
        }
        for assumption in &self.assumptions {
            page.row(&format!("    assumed: {assumption}"));
        }
        for gap in &self.gaps {
            page.row(&format!("    not evaluated: {gap}"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(what: &str, packets: Option<u64>, counted: Option<u64>, expected: Option<f64>) -> DecisionEntry {
        let (what, owner, object) = (what.to_owned(), String::new(), String::new());
        DecisionEntry { what, predicted: true, traced: None, owner, object, packets, counted, expected }
    }

    fn family(counters: Option<CountersEntry>, decisions: Vec<DecisionEntry>) -> String {
        let leg = LegEntry {
            reply: false,
            node: "n1".to_owned(),
            place: "node".to_owned(),
            tunnel: None,
            packet: "tcp 10.244.1.2:50000 → 10.96.0.7:80".to_owned(),
            interface: "veth-a".to_owned(),
            agreement: AgreementName::NotTraced,
            decisions,
            assumptions: Vec::new(),
            gaps: Vec::new(),
        };
        let (end, legs) = ("answered".to_owned(), vec![leg]);
        let way = WayEntry { chance: Some(1.0), taken: false, end, answered: true, stopped: false, legs };
        let family = FamilyEntry {
            destination: "tcp 10.96.0.7:80".to_owned(),
            sent: "12 of 12 attempts connected".to_owned(),
            agreement: AgreementName::NotTraced,
            counters,
            ways: vec![way],
            cut: false,
        };
        let mut page = Page::new(Paint::Plain);
        family.lines(&mut page);
        page.finish()
    }

    #[test]
    fn counters_stand_beside_what_was_predicted() {
        let text = family(
            Some(CountersEntry { rules: 3, fewer: 1 }),
            vec![
                rule("nat KUBE-SERVICES rule 3", Some(900), Some(12), Some(12.0)),
                rule("nat KUBE-SVC-A rule 7", Some(40), Some(5), Some(6.0)),
                rule("filter fw rule 1", Some(0), Some(2), None),
                rule("filter fw rule 2", None, None, Some(12.0)),
            ],
        );
        for wanted in [
            "sent",
            "12 of 12 attempts connected",
            "1 of 3 rules counted less than was predicted",
            "nat KUBE-SERVICES rule 3 (counted 12 packets, at least 12 predicted)",
            "nat KUBE-SVC-A rule 7 (counted 5 packets, about 6 predicted)",
            "filter fw rule 1 (counted 2 packets)",
        ] {
            assert!(text.contains(wanted), "{wanted:?} is not in:\n{text}");
        }
        assert!(!text.contains("read from the rules and routes alone"), "{text}");
    }

    #[test]
    fn without_attempts_counters_are_what_was_before() {
        let text = family(None, vec![rule("nat KUBE-SERVICES rule 3", Some(900), None, None)]);
        assert!(text.contains("rule 3 (900 packets before)") && !text.contains("counters"), "{text}");
    }
}
