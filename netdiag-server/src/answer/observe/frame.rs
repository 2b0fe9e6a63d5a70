//! One look as text: what fits a screen, or everything.

use jiff::Timestamp;

use super::super::page::{Page, Paint};
use super::{AgentEntry, NotSeen, Observe, table};
use crate::observed::{Row, Section, age};

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
    name: &'static str,
    title: String,
    columns: &'static [crate::observed::Column],
    rows: Vec<Vec<String>>,
    more: usize,
    note: String,
    /// Every node told.
    is_told: bool,
}

impl Observe {
    pub fn text(&self, paint: Paint, size: Size) -> String {
        let blocks = self.blocks();
        let (blocks, silent): (Vec<Block>, Vec<Block>) = blocks.into_iter().partition(Block::says_something);
        let mut notes = Page::within(paint, size.width);
        if !silent.is_empty() {
            let names: Vec<&str> = silent.iter().map(|block| block.name).collect();
            notes.line("none", &names.join(", "));
        }
        self.notes(&mut notes);
        let notes = notes.finish();
        let mut page = Page::within(paint, size.width);
        page.line_with_right("observe", &self.heading(), &format!("cluster {}", self.cluster));
        // The page's heading, a blank line before the notes, and what each block has besides its rows.
        let fixed = page.lines() + 1 + notes.lines().count() + blocks.iter().map(Block::fixed_lines).sum::<usize>();
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
            self.dns_search.as_ref().map(|section| self.block("dns search lists", section)),
            self.flow_tables.as_ref().map(|section| self.block("conntrack tables", section)),
            self.flows.as_ref().map(|section| self.block("conntrack mappings", section)),
            self.devices.as_ref().map(|section| self.block("devices", section)),
            self.neighbours.as_ref().map(|section| self.block("unresolved neighbours", section)),
            self.sockets.as_ref().map(|section| self.block("sockets", section)),
            self.counters.as_ref().map(|section| self.block("counters", section)),
            self.limits.as_ref().map(|section| self.block("limits nearly reached", section)),
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

    fn block<R: Row>(&self, name: &'static str, section: &Section<R>) -> Block {
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
            name,
            title,
            is_told: section.told_by == self.nodes.len(),
            columns: R::COLUMNS,
            rows: section.rows.iter().map(|row| row.cells(self.at)).collect(),
            more: section.more,
            note,
        }
    }

    fn notes(&self, page: &mut Page) {
        let losses = self.losses.iter().map(|loss| format!("node {}: {} {}", loss.node, loss.count, loss.what));
        let gaps = self.not_seen.iter().chain(self.untold.iter().filter(|_| self.is_of_one_subject())).map(gap);
        let young = self.agents.iter().filter(|agent| agent.younger_than_window);
        let young = young.filter_map(|agent| agent.words(self.at));
        for (label, lines) in
            [("counted", young.collect()), ("lost", losses.collect::<Vec<_>>()), ("not seen", gaps.collect())]
        {
            for (index, line) in lines.iter().take(MAX_NOTES).enumerate() {
                page.line(if index == 0 { label } else { "" }, line);
            }
            if lines.len() > MAX_NOTES {
                page.line("", &format!("and {} more (-o json)", lines.len() - MAX_NOTES));
            }
        }
        if !self.untold.is_empty() && !self.is_of_one_subject() {
            let words = match self.untold.len() {
                1 => "1 kind of event that no kernel of these nodes tells: name the subject to read it".to_owned(),
                kinds => format!(
                    "{kinds} kinds of events that no kernel of these nodes tells: name the subject to read them"
                ),
            };
            page.line("never seen", &words);
        }
    }

    /// The overview has rejects and TCP.
    fn is_of_one_subject(&self) -> bool {
        self.rejects.is_none() || self.tcp.is_none()
    }
}

/// `node n1: dropped packets: why; remedy`.
fn gap(gap: &NotSeen) -> String {
    let NotSeen { what, node, why, remedy } = gap;
    let is_named = node.is_empty() || what.contains(node.as_str()) || why.contains(node.as_str());
    let node = if is_named { String::new() } else { format!("node {node}: ") };
    format!("{node}{what}: {why}; {remedy}")
}

impl AgentEntry {
    /// `node n1: the last 42 s only; its agent started anew, and what it had counted before is gone`.
    fn words(&self, now: Timestamp) -> Option<String> {
        let since = age(self.counts_since?, now);
        let why = match self.restarts {
            0 => "its agent is not older".to_owned(),
            1 => "its agent started anew, and what it had counted before is gone".to_owned(),
            times => format!("its agent started anew, {times} times so far, and what it had counted before is gone"),
        };
        Some(format!("node {}: the last {since} only; {why}", self.node))
    }
}

impl Block {
    /// Else its name in a list of such is enough.
    fn says_something(&self) -> bool {
        !self.rows.is_empty() || !self.note.is_empty() || !self.is_told
    }

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
