//! The heat map as SVG: one file without scripts, fonts or references, whose names are text and nothing else.

use std::fmt::Write as _;

use super::MeshAnswer;
use super::map::{LEGEND, Map, lost, short_name, short_share, short_time, symbol};
use crate::answer::escape::plain;
use crate::mesh::Kind;
use crate::mesh::judge::State;

/// Nodes that are shown one by one; a browser draws 40 000 cells, and nobody reads more.
const MAX_NODES: usize = 200;
/// Of a cell with its two numbers, and of one that only has its colour and symbol, in pixels.
const WIDE: usize = 52;
const NARROW: usize = 12;
/// Up to so many rows there is room for numbers.
const MAX_NUMBERED: usize = 40;
/// Characters of a name on an axis.
const MAX_NAME: usize = 24;
/// Room for them, and for what is above and below, in pixels.
const NAMES: usize = 170;
const TOP: usize = 64;
const BELOW: usize = 40;

impl MeshAnswer {
    /// `kind` is what the heat map shows.
    pub fn svg(&self, kind: Kind) -> String {
        let map = Map::new(self, kind, MAX_NODES);
        let count = map.axis.len();
        let is_numbered = count <= MAX_NUMBERED;
        let cell = if is_numbered { WIDE } else { NARROW };
        let row = if is_numbered { WIDE / 2 } else { NARROW };
        let (left, top) = (NAMES, TOP + NAMES);
        // The legend needs its room in small maps.
        let (width, height) = ((left + count * cell + 10).max(760), top + count * row + BELOW);
        let mut out = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" viewBox=\"0 0 {width} {height}\" \
             font-family=\"sans-serif\" font-size=\"11\">\n<rect width=\"{width}\" height=\"{height}\" fill=\"#ffffff\"/>\n"
        );
        let title = format!("mesh of cluster {} by {}, {}s: rows probe columns", self.cluster, kind.name(), map.of);
        let below = format!("share lost now, and p99 in ms of the last {} s, at {}", self.window_s, self.at);
        text(&mut out, 10, 24, "font-size=\"16\"", &title);
        text(&mut out, 10, 44, "fill=\"#555555\"", &below);
        for (number, (name, _)) in map.axis.iter().enumerate() {
            let (x, y) = (left + number * cell + cell / 2 + 4, top + number * row + row / 2 + 4);
            text(&mut out, left - 6, y, "text-anchor=\"end\"", &short_name(name, MAX_NAME));
            let turned = format!("transform=\"rotate(-60 {x} {})\"", top - 6);
            text(&mut out, x, top - 6, &turned, &short_name(name, MAX_NAME));
        }
        for (at_row, (from, _)) in map.axis.iter().enumerate() {
            for (at_column, (to, _)) in map.axis.iter().enumerate() {
                let (x, y) = (left + at_column * cell, top + at_row * row);
                let found = map.cell(from, to);
                let fill = found.map_or("#f0f0f0", |link| colour(link.state, lost(link)));
                let (wide, high) = (cell - 1, row - 1);
                let _ = write!(out, "<rect x=\"{x}\" y=\"{y}\" width=\"{wide}\" height=\"{high}\" fill=\"{fill}\">");
                let share = found.and_then(lost).map_or_else(|| "not known".to_owned(), short_share);
                let p99 = found.and_then(|link| link.p99_us).map_or_else(|| "-".to_owned(), short_time);
                let words = match found {
                    None if from == to && map.of == "node" => (*from).to_owned(),
                    _ => format!("{from} to {to}: lost {share}, p99 {p99}"),
                };
                let _ = writeln!(out, "<title>{}</title></rect>", escape(&words));
                let Some(link) = found else { continue };
                if is_numbered {
                    let numbers = format!("{} {share} {p99}", symbol(link));
                    text(&mut out, x + 3, y + row / 2 + 4, "font-size=\"9\"", &numbers);
                } else if link.state != State::Good {
                    text(&mut out, x + 2, y + row - 2, "font-size=\"9\"", &symbol(link).to_string());
                }
            }
        }
        text(&mut out, 10, height - 14, "fill=\"#555555\"", LEGEND);
        out.push_str("</svg>\n");
        out
    }
}

fn text(out: &mut String, x: usize, y: usize, attributes: &str, words: &str) {
    let _ = writeln!(out, "<text x=\"{x}\" y=\"{y}\" {attributes}>{}</text>", escape(words));
}

/// Told apart also by eyes that do not see red and green: from light blue to dark orange.
fn colour(state: State, loss: Option<f64>) -> &'static str {
    match (state, loss) {
        (State::Good, _) => "#cfe8f7",
        (State::Slow, _) => "#ffe08a",
        (State::Loses, Some(loss)) if loss >= 1.0 => "#d1495b",
        (State::Loses, Some(loss)) if loss >= 0.1 => "#ee8434",
        (State::Loses, _) => "#f6b26b",
        (State::Unknown, _) => "#d9d9d9",
    }
}

/// XML 1.0 §2.4, for text and quoted attributes; control characters, which XML forbids, are spelled out.
fn escape(words: &str) -> String {
    let mut out = String::with_capacity(words.len());
    for character in plain(words).chars() {
        match character {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&apos;"),
            '\u{fffe}' | '\u{ffff}' => out.extend(character.escape_unicode()),
            other => out.push(other),
        }
    }
    out
}
