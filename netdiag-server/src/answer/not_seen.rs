//! What an answer could not see: gaps of the path, kinds of the API that were not readable, and what was sampled away.

use std::collections::BTreeMap;

use netdiag_common::{Gap, Tier};

use super::NotSeen;
use crate::correlate::Judged;
use crate::evidence::Evidence;
use crate::path::{MAX_BACKEND_PROBES, MAX_CLIENT_PROBES};

/// Things named in one entry; the rest is counted.
const MAX_NAMED: usize = 4;

/// Deduplicated: things that one node could not show for one reason are one entry.
pub fn not_seen(judged: &Judged, evidence: &Evidence) -> Vec<NotSeen> {
    let mut gaps: Vec<Gap> = judged.gaps.clone();
    gaps.extend(evidence.kind_gaps().into_iter().map(|(_, gap)| gap.clone()));
    let mut entries = grouped(&gaps);
    entries.extend(sampled_away(judged));
    entries
}

/// Gaps as entries, in the order they were met.
pub fn grouped<'g>(gaps: impl IntoIterator<Item = &'g Gap>) -> Vec<NotSeen> {
    let mut order: BTreeMap<(&str, &str, &str), usize> = BTreeMap::new();
    let mut groups: Vec<(&Gap, Vec<&str>)> = Vec::new();
    for gap in gaps {
        let key = (gap.node.as_deref().unwrap_or_default(), gap.why.as_str(), gap.remedy.as_str());
        let index = *order.entry(key).or_insert(groups.len());
        if index == groups.len() {
            groups.push((gap, Vec::new()));
        }
        let whats = &mut groups[index].1;
        if !whats.contains(&gap.what.as_str()) {
            whats.push(&gap.what);
        }
    }
    let entry = |(gap, whats): (&Gap, Vec<&str>)| NotSeen {
        what: named(&whats),
        node: gap.node.clone().unwrap_or_default(),
        why: gap.why.clone(),
        remedy: gap.remedy.clone(),
    };
    groups.into_iter().map(entry).collect()
}

fn named(whats: &[&str]) -> String {
    let shown = whats.iter().take(MAX_NAMED).copied().collect::<Vec<_>>().join(", ");
    match whats.len().saturating_sub(MAX_NAMED) {
        0 => shown,
        more => format!("{shown} and {more} more"),
    }
}

/// Probes that were not sent because a path has more ends than one question probes.
fn sampled_away(judged: &Judged) -> Vec<NotSeen> {
    let path = &judged.path;
    if path.question.tier < Tier::Probe || judged.symptom.probes.is_empty() {
        return Vec::new();
    }
    let mut entries = Vec::new();
    if let Some(more) = path.clients.len().checked_sub(MAX_CLIENT_PROBES).filter(|more| *more > 0) {
        entries.push(NotSeen {
            what: format!("probes from {more} of {} nodes", path.clients.len()),
            node: String::new(),
            why: format!("one question probes from at most {MAX_CLIENT_PROBES} hosts"),
            remedy: "ask from the node or pod that has the problem: --from node/NAME or --from pod/NAMESPACE/NAME"
                .to_owned(),
        });
    }
    let ready = path.ready_backends().count();
    if let Some(more) = ready.checked_sub(MAX_BACKEND_PROBES).filter(|more| *more > 0) {
        entries.push(NotSeen {
            what: format!("probes to {more} of {ready} endpoints"),
            node: String::new(),
            why: format!("one question probes at most {MAX_BACKEND_PROBES} endpoints one by one"),
            remedy: "ask about a single endpoint: --to pod/NAMESPACE/NAME:PORT".to_owned(),
        });
    }
    entries
}
