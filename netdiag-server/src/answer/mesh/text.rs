//! The mesh on a terminal: findings first, then the heat map, then the targets that are no nodes.

use super::map::{LEGEND, Map, lost, short_name, short_share, short_time, symbol};
use super::{MeshAnswer, MeshLink, MeshStatus, TargetName};
use crate::answer::escape::plain;
use crate::answer::page::{Page, Paint, Tone};
use crate::mesh::Kind;
use crate::mesh::judge::{State, milliseconds, percent};

/// Nodes that are shown one by one: as many columns as a wide terminal has. SVG shows more.
const MAX_NODES: usize = 21;
/// Columns of a cell: symbol with the share, p99, and two to the next one.
const CELL: usize = 12;
/// Of the name before a row.
const NAME: usize = 20;
/// Targets that are no nodes, named one by one; the worst first.
const MAX_TARGETS: usize = 20;

impl MeshAnswer {
    /// `kind` is what the heat map shows.
    pub fn text(&self, paint: Paint, kind: Kind) -> String {
        let mut page = Page::new(paint);
        page.line_with_right("mesh", &self.summary(), &format!("cluster {}, {} s", self.cluster, self.window_s));
        for finding in &self.findings {
            page.toned("breaks", &finding.claim, Tone::Bad);
            page.column(
                "",
                "code",
                &format!("{}, burns its target {:.0} times as fast as allowed", finding.code, finding.burn),
            );
            for proof in &finding.proof {
                page.column("", "proof", proof);
            }
            page.column("", "next", &finding.next);
        }
        if self.findings_left_out > 0 {
            page.line("", &format!("and {} more", self.findings_left_out));
        }
        let mut out = page.finish();
        self.map(&mut out, paint, kind);
        let mut page = Page::new(paint);
        self.targets(&mut page);
        page.not_seen(&self.not_seen);
        out.push_str(&page.finish());
        out
    }

    fn summary(&self) -> String {
        let links = self.links.len() + self.links_left_out;
        let slo = format!(
            "loss at most {}, p99 at most {}",
            if self.slo.loss > 0.0 { percent(self.slo.loss) } else { "none".to_owned() },
            milliseconds(self.slo.p99_us)
        );
        match self.status {
            MeshStatus::Good => format!("{links} links keep their target ({slo})"),
            MeshStatus::Breaks => format!("{} of what is probed breaks its target ({slo})", self.findings.len()),
            MeshStatus::Unknown if links == 0 => "nothing was probed".to_owned(),
            MeshStatus::Unknown => format!("{links} links keep their target ({slo}), and not everything was probed"),
        }
    }

    /// Rows probe columns.
    fn map(&self, out: &mut String, paint: Paint, kind: Kind) {
        let map = Map::new(self, kind, MAX_NODES);
        if map.is_empty() {
            return;
        }
        let of = map.of;
        out.push_str(&format!("\n{} by {of}: rows probe columns; share lost now, then p99 in ms\n\n", kind.name()));
        out.push_str(&" ".repeat(NAME + 4));
        for number in 1..=map.axis.len() {
            out.push_str(&format!("{number:>CELL$}"));
        }
        out.push('\n');
        let mut zone = "";
        for (number, (from, of_zone)) in map.axis.iter().enumerate() {
            if *of_zone != zone {
                zone = of_zone;
                out.push_str(&format!("zone {}\n", plain(zone)));
            }
            out.push_str(&format!("{:>3} {:<NAME$}", number + 1, short_name(&plain(from), NAME - 1)));
            for (to, _) in &map.axis {
                let cell = match map.cell(from, to) {
                    Some(link) => painted(&cell(link), link.state, paint),
                    None if from == to && of == "node" => format!("{:>CELL$}", "\\"),
                    None => format!("{:>CELL$}", ""),
                };
                out.push_str(&cell);
            }
            while out.ends_with(' ') {
                out.pop();
            }
            out.push('\n');
        }
        out.push_str(&format!("\n{LEGEND}\n"));
    }

    fn targets(&self, page: &mut Page) {
        let mut links: Vec<&MeshLink> = self.links.iter().filter(|link| link.target != TargetName::Peer).collect();
        if links.is_empty() {
            return;
        }
        links.sort_by_key(|link| std::cmp::Reverse(link.state));
        page.heading("other targets");
        for link in links.iter().take(MAX_TARGETS) {
            let name = match link.target {
                TargetName::Dns => format!("DNS {}", link.to),
                TargetName::Api => "Service default/kubernetes".to_owned(),
                TargetName::User | TargetName::Peer => link.to.clone(),
            };
            let share = lost(link).map_or_else(|| "not known".to_owned(), |loss| format!("{} lost", short_share(loss)));
            let p99 = link.p99_us.map_or_else(|| "no answer".to_owned(), |us| format!("p99 {}", milliseconds(us)));
            page.row(&format!(
                "  {} {:<NAME$} {name}: {share}, {p99}",
                symbol(link),
                short_name(&plain(&link.from), NAME - 1)
            ));
        }
        if links.len() > MAX_TARGETS {
            page.row(&format!("  and {} more (-o json)", links.len() - MAX_TARGETS));
        }
    }
}

fn cell(link: &MeshLink) -> String {
    let share = lost(link).map(short_share).unwrap_or_default();
    let p99 = link.p99_us.map_or_else(|| "-".to_owned(), short_time);
    format!("{}{share:>4} {p99:>4}", symbol(link)).chars().take(CELL).collect()
}

/// Right-aligned; only the cell itself is coloured.
fn painted(cell: &str, state: State, paint: Paint) -> String {
    let pad = " ".repeat(CELL.saturating_sub(cell.chars().count()));
    let code = match state {
        State::Good => "32",
        State::Slow | State::Unknown => "33",
        State::Loses => "31",
    };
    match paint {
        Paint::Plain => format!("{pad}{cell}"),
        Paint::Ansi => format!("{pad}\u{1b}[{code}m{cell}\u{1b}[0m"),
    }
}
