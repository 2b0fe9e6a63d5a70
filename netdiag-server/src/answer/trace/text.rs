//! The way on a terminal: what was predicted, and beside it what the kernel traced.

use super::{AgreementName, FamilyEntry, LegEntry, TraceAnswer, WayEntry};
use crate::answer::page::{Page, Paint, Tone};

/// In the column of the trace: in both, predicted only, traced only, not traced by any kernel.
const MARKS: [&str; 4] = ["=", "-", "+", " "];

impl TraceAnswer {
    pub fn text(&self, paint: Paint) -> String {
        let mut page = Page::new(paint);
        page.line("from", &self.from);
        page.line("to", &self.to);
        for family in &self.families {
            family.lines(&mut page);
        }
        for (index, gap) in self.not_seen.iter().enumerate() {
            if index == 0 {
                page.row("");
            }
            let node = if gap.node.is_empty() { String::new() } else { format!(" on {}", gap.node) };
            let words = format!("{}{node}: {}; {}", gap.what, gap.why, gap.remedy);
            page.line(if index == 0 { "not seen" } else { "" }, &words);
        }
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
            AgreementName::Same => page.toned("trace", "agrees with what was predicted", Tone::Good),
            AgreementName::Differs => page.toned("trace", "differs from what was predicted", Tone::Bad),
            AgreementName::NotTraced => page.line("trace", "none: this is read from the rules and routes alone"),
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
        page.row("");
        page.row(&format!("{}, {}: {reply}{where_from}: {}", self.node, self.place, self.packet));
        for decision in &self.decisions {
            let [both, predicted, traced, none] = MARKS;
            let mark = match (decision.predicted, decision.traced) {
                (true, Some(true)) => both,
                (true, Some(false)) => predicted,
                (false, _) => traced,
                (true, None) => none,
            };
            let counted = decision.packets.map(|packets| format!(" ({packets} packets before)")).unwrap_or_default();
            let whose = match (decision.owner.as_str(), decision.object.as_str()) {
                ("", _) | ("Kubernetes", "") => String::new(),
                ("Kubernetes", object) => format!(" [{object}]"),
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
