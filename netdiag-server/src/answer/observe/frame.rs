//! One look as text: what fits a screen, or everything.

use super::super::page::{Page, Paint};
use super::{Observe, table};
use crate::observed::{Row, Section};

/// The terminal's, in characters. Without a height, everything is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Size {
    pub width: usize,
    pub height: Option<usize>,
}

/// Lines of gaps and losses in one frame; JSON has all.
const MAX_NOTES: usize = 6;
/// Rows that each subject keeps, however low the terminal is.
const FEWEST_ROWS: usize = 3;

/// One subject, before it is known how many of its rows fit.
struct Block {
    title: String,
    columns: &'static [crate::observed::Column],
    rows: Vec<Vec<String>>,
    more: usize,
    note: String,
}

impl Observe {
    pub fn text(&self, paint: Paint, size: Size) -> String {
        let blocks = self.blocks();
        let mut notes = Page::new(paint);
        self.notes(&mut notes);
        let notes = notes.finish();
        let mut page = Page::new(paint);
        page.line_with_right("observe", &self.heading(), &format!("cluster {}", self.cluster));
        // The page's heading, a blank line before the notes, and what each block has besides its rows.
        let fixed = 2 + notes.lines().count() + blocks.iter().map(Block::fixed_lines).sum::<usize>();
        let mut room = size.height.map(|height| height.saturating_sub(fixed));
        for (index, block) in blocks.iter().enumerate() {
            let left = blocks.len() - index;
            let fits = room.map_or(usize::MAX, |room| (room / left).max(FEWEST_ROWS));
            let shown = block.rows.len().min(fits);
            room = room.map(|room| room.saturating_sub(shown));
            block.lines(&mut page, shown, size.width);
        }
        if !notes.is_empty() {
            page.row("");
        }
        page.finish() + &notes
    }

    fn blocks(&self) -> Vec<Block> {
        let blocks = [
            self.drops.as_ref().map(|section| self.block("dropped packets", section)),
            self.rejects.as_ref().map(|section| self.block("refusals", section)),
            self.tcp.as_ref().map(|section| self.block("tcp services", section)),
            self.udp.as_ref().map(|section| self.block("full udp sockets", section)),
            self.dns.as_ref().map(|section| self.block("dns clients", section)),
            self.dns_names.as_ref().map(|section| self.block("dns names", section)),
            self.flow_tables.as_ref().map(|section| self.block("conntrack tables", section)),
            self.flows.as_ref().map(|section| self.block("conntrack mappings", section)),
            self.devices.as_ref().map(|section| self.block("devices", section)),
            self.neighbours.as_ref().map(|section| self.block("unresolved neighbours", section)),
            self.sockets.as_ref().map(|section| self.block("sockets", section)),
            self.counters.as_ref().map(|section| self.block("counters", section)),
        ];
        blocks.into_iter().flatten().collect()
    }

    fn heading(&self) -> String {
        let nodes = match self.nodes.as_slice() {
            [] => "no node".to_owned(),
            [node] => format!("node {node}"),
            nodes => format!("{} nodes", nodes.len()),
        };
        let span = match self.window_s {
            s @ 0..120 => format!("{s} s"),
            s @ 120..7_200 => format!("{} min", s / 60),
            s => format!("{} h", s / 3_600),
        };
        format!("{nodes}, last {span}, {}", self.at.strftime("%H:%M:%SZ"))
    }

    fn block<R: Row>(&self, name: &str, section: &Section<R>) -> Block {
        let all = section.rows.len() + section.more;
        let told = if section.told_by < self.nodes.len() {
            format!(" (by {} of {} nodes)", section.told_by, self.nodes.len())
        } else {
            String::new()
        };
        let title = match (section.told_by, all) {
            (0, _) => format!("{name}: not seen"),
            (_, 0) => format!("{name}: none{told}"),
            (_, all) => format!("{name}: {all}{told}"),
        };
        let note = match section.harmless_rows {
            0 => String::new(),
            rows => format!("{} harmless packets of {rows} kinds hidden, --all shows them", section.harmless_packets),
        };
        Block {
            title,
            columns: R::COLUMNS,
            rows: section.rows.iter().map(|row| row.cells(self.at)).collect(),
            more: section.more,
            note,
        }
    }

    fn notes(&self, page: &mut Page) {
        let losses = self.losses.iter().map(|loss| format!("node {}: {} {}", loss.node, loss.count, loss.what));
        let gaps = self.not_seen.iter().map(|gap| format!("{}: {}; {}", gap.what, gap.why, gap.remedy));
        for (label, lines) in [("lost", losses.collect::<Vec<_>>()), ("not seen", gaps.collect())] {
            for (index, line) in lines.iter().take(MAX_NOTES).enumerate() {
                page.line(if index == 0 { label } else { "" }, line);
            }
            if lines.len() > MAX_NOTES {
                page.line("", &format!("and {} more (-o json)", lines.len() - MAX_NOTES));
            }
        }
    }
}

impl Block {
    /// A blank line, the title, the table's heading, how many rows are left out, and the note.
    fn fixed_lines(&self) -> usize {
        let table = if self.rows.is_empty() { 0 } else { 2 };
        2 + table + usize::from(!self.note.is_empty())
    }

    fn lines(&self, page: &mut Page, shown: usize, width: usize) {
        page.heading(&self.title);
        if !self.rows.is_empty() {
            for line in table::lines(self.columns, &self.rows[..shown], width) {
                page.row(&line);
            }
        }
        let more = self.more + self.rows.len() - shown;
        if more > 0 {
            page.row(&format!("and {more} more (-o json)"));
        }
        if !self.note.is_empty() {
            page.row(&self.note);
        }
    }
}
