//! What a heat map shows: who probes whom, one cell each. In large clusters zones take the place of nodes.

use std::collections::BTreeMap;

use super::{MeshAnswer, MeshLink, TargetName};
use crate::mesh::Kind;
use crate::mesh::judge::State;

/// Rows and columns, and what is known of each pair.
pub(super) struct Map<'a> {
    /// Names, and what each belongs to.
    pub axis: Vec<(&'a str, &'a str)>,
    /// `node` or `zone`.
    pub of: &'static str,
    cells: BTreeMap<(&'a str, &'a str), &'a MeshLink>,
}

impl<'a> Map<'a> {
    /// Of nodes when there are at most `most`, and none was left out; else of zones.
    pub fn new(answer: &'a MeshAnswer, kind: Kind, most: usize) -> Self {
        if answer.nodes.len() <= most && answer.links_left_out == 0 {
            let axis = answer.nodes.iter().map(|node| (node.node.as_str(), node.zone.as_str())).collect();
            return Self { axis, of: "node", cells: cells(&answer.links, kind) };
        }
        let mut zones: Vec<(&str, &str)> = answer.nodes.iter().map(|node| (node.zone.as_str(), "")).collect();
        zones.dedup();
        Self { axis: zones, of: "zone", cells: cells(&answer.zones, kind) }
    }

    pub fn cell(&self, from: &str, to: &str) -> Option<&'a MeshLink> {
        self.cells.get(&(from, to)).copied()
    }

    pub fn is_empty(&self) -> bool {
        self.cells.is_empty()
    }
}

fn cells(links: &[MeshLink], kind: Kind) -> BTreeMap<(&str, &str), &MeshLink> {
    let of_kind = links.iter().filter(|link| link.kind.of_any_family() == kind && link.target == TargetName::Peer);
    let mut cells: BTreeMap<(&str, &str), &MeshLink> = BTreeMap::new();
    for link in of_kind {
        let cell = cells.entry((link.from.as_str(), link.to.as_str())).or_insert(link);
        // Of two families the worse one.
        if badness(link) > badness(cell) {
            *cell = link;
        }
    }
    cells
}

/// How bad it is, and then how much it loses, in millionths.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a share is 0 to 1")]
fn badness(link: &MeshLink) -> (State, u64) {
    (link.state, (lost(link).unwrap_or_default() * 1e6) as u64)
}

/// The share that a cell shows: how it is now, or, where a link breaks its target, the worse of now and the whole window.
pub(super) fn lost(link: &MeshLink) -> Option<f64> {
    match (link.state, link.loss, link.loss_lately) {
        (State::Loses, Some(whole), Some(lately)) => Some(whole.max(lately)),
        (_, whole, lately) => lately.or(whole),
    }
}

/// How a cell looks without colour.
pub(super) fn symbol(link: &MeshLink) -> char {
    match (link.state, lost(link)) {
        (State::Unknown, _) => '?',
        (State::Good, _) => '·',
        (State::Slow, _) => '~',
        (State::Loses, Some(loss)) if loss >= 1.0 => 'X',
        (State::Loses, Some(loss)) if loss >= 0.1 => '#',
        (State::Loses, _) => '!',
    }
}

/// Name of the zone of nodes that say none.
const NO_ZONE: &str = "(no zone)";
/// What the symbols mean, in one line.
pub(super) const LEGEND: &str =
    "· keeps its target   ~ too slow   ! loses too many   # loses a tenth or more   X loses all   ? not known";

/// In at most `most` columns. The end stays: it is what tells nodes of one pool apart.
pub(super) fn short_name(name: &str, most: usize) -> String {
    let name = if name.is_empty() { NO_ZONE } else { name };
    let length = name.chars().count();
    if length <= most {
        return name.to_owned();
    }
    let tail: String = name.chars().skip(length - (most - 1)).collect();
    format!("…{tail}")
}

/// `0.21`, `12`, `1.5s`: at most four columns.
pub(super) fn short_time(us: u64) -> String {
    match us {
        0..=9_999 => format!("{}.{:02}", us / 1_000, us % 1_000 / 10),
        10_000..=999_999 => format!("{}", us / 1_000),
        _ => format!("{}.{}s", us / 1_000_000, us % 1_000_000 / 100_000),
    }
}

/// `0`, `.3%`, `12%`, `100%`.
pub(super) fn short_share(share: f64) -> String {
    let percent = share * 100.0;
    match () {
        () if share <= 0.0 => "0".to_owned(),
        () if percent < 0.1 => "<.1%".to_owned(),
        () if percent < 1.0 => format!("{percent:.1}%").trim_start_matches('0').to_owned(),
        () => format!("{percent:.0}%"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_and_shares_fit_into_a_cell() {
        assert_eq!(
            [7, 214, 9_999, 12_345, 999_999, 1_500_000].map(short_time),
            ["0.00", "0.21", "9.99", "12", "999", "1.5s"]
        );
        assert_eq!([0.0, 0.000_2, 0.003, 0.117, 1.0].map(short_share), ["0", "<.1%", ".3%", "12%", "100%"]);
    }
}
