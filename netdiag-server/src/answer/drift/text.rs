//! Drift on a terminal: node by node, what differs.

use super::{DifferenceEntry, DriftAnswer, DriftStatus, NodeEntry};
use crate::answer::page::{Page, Paint, Tone};

/// Shown of each node; JSON has more.
const MAX_SHOWN: usize = 20;

impl DriftAnswer {
    pub fn text(&self, paint: Paint) -> String {
        let mut page = Page::new(paint);
        page.line_with_right("drift", &self.summary(), &format!("cluster {}", self.cluster));
        for node in &self.nodes {
            node.lines(&mut page);
        }
        page.not_seen(&self.not_seen);
        page.finish()
    }

    fn summary(&self) -> String {
        let drifted = self.nodes.iter().filter(|node| node.status == DriftStatus::Drift).count();
        let differences: usize = self.nodes.iter().map(|node| node.differences.len() + node.left_out).sum();
        match self.status {
            DriftStatus::Same => format!("none on {} nodes", self.nodes.len()),
            DriftStatus::Drift => format!("{differences} differences on {drifted} of {} nodes", self.nodes.len()),
            DriftStatus::Unknown => "none in what was compared, and not everything was".to_owned(),
        }
    }
}

impl NodeEntry {
    fn lines(&self, page: &mut Page) {
        let proxier = if self.proxier.is_empty() { "not read" } else { &self.proxier };
        let mut words = format!("{} addresses and node ports compared, rules: {proxier}", self.compared);
        if self.settling > 0 {
            words.push_str(&format!(", {} changed a moment ago", self.settling));
        }
        if self.policed > 0 {
            words.push_str(&format!(", {} packets under NetworkPolicies followed", self.policed));
        }
        page.heading(&self.node);
        match self.status {
            DriftStatus::Same => page.toned("node", &format!("same: {words}"), Tone::Good),
            DriftStatus::Unknown => page.toned("node", &format!("unknown: {words}"), Tone::Doubtful),
            DriftStatus::Drift => page.toned("node", &format!("drift: {words}"), Tone::Bad),
        }
        for difference in self.differences.iter().take(MAX_SHOWN) {
            difference.lines(page);
        }
        let more = (self.differences.len() + self.left_out).saturating_sub(MAX_SHOWN);
        if more > 0 {
            page.line("", &format!("and {more} more (-o json)"));
        }
    }
}

impl DifferenceEntry {
    fn lines(&self, page: &mut Page) {
        let whose = [self.service.as_str(), self.entrance.as_str()];
        let whose: Vec<&str> = whose.into_iter().filter(|words| !words.is_empty()).collect();
        page.line(&self.kind, &whose.join(" "));
        page.column("", "expected", &self.expected);
        page.column("", "found", &self.found);
        if !self.rule.is_empty() {
            page.column("", "in", &self.rule);
        }
    }
}
