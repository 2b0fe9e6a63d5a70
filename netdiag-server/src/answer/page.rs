//! Text in two columns: a label, and prose wrapped at the width that terminals and mails agree on.

use super::NotSeen;
use super::escape::plain;

/// Columns of a page at most.
const WIDTH: usize = 100;
/// Columns of the label, with the gap behind it.
const LABEL: usize = 12;

/// Whether the reader is a terminal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Paint {
    Plain,
    Ansi,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tone {
    Good,
    Doubtful,
    Bad,
}

/// Everything put on a page is escaped; nothing but the page's own colours reaches the terminal as control.
pub struct Page {
    out: String,
    paint: Paint,
    width: usize,
}

impl Page {
    pub fn new(paint: Paint) -> Self {
        Self::within(paint, WIDTH)
    }

    /// For a terminal that may be narrower.
    pub fn within(paint: Paint, width: usize) -> Self {
        Self { out: String::new(), paint, width: width.clamp(3 * LABEL, WIDTH) }
    }

    pub fn finish(self) -> String {
        self.out
    }

    /// So far.
    pub fn lines(&self) -> usize {
        self.out.lines().count()
    }

    pub fn line(&mut self, label: &str, prose: &str) {
        self.wrapped(label, "", prose);
    }

    /// Prose with a word before it that has its own column.
    pub fn column(&mut self, label: &str, word: &str, prose: &str) {
        self.wrapped(label, word, prose);
    }

    /// Prose whose first word carries a colour.
    pub fn toned(&mut self, label: &str, prose: &str, tone: Tone) {
        let prose = plain(prose);
        let word = prose.split([',', ' ']).next().unwrap_or_default().to_owned();
        let code = match tone {
            Tone::Good => "32",
            Tone::Doubtful => "33",
            Tone::Bad => "31",
        };
        self.label(label);
        let painted = self.painted(&word, code);
        self.out.push_str(&painted);
        self.out.push_str(&prose[word.len()..]);
        self.out.push('\n');
    }

    /// Prose with a remark at the right margin, on its own line when both do not fit.
    pub fn line_with_right(&mut self, label: &str, prose: &str, right: &str) {
        let (prose, right) = (plain(prose), plain(right));
        let used = LABEL + prose.chars().count() + 2 + right.chars().count();
        if used > self.width {
            self.line(label, &prose);
            self.line("", &right);
            return;
        }
        self.label(label);
        self.out.push_str(&prose);
        self.out.push_str(&" ".repeat(self.width + 2 - used));
        self.out.push_str(&right);
        self.out.push('\n');
    }

    /// A line over a table, apart from what is above it.
    pub fn heading(&mut self, text: &str) {
        self.out.push('\n');
        let painted = self.painted(&plain(text), "1");
        self.out.push_str(&painted);
        self.out.push('\n');
    }

    /// A line of a table, laid out already.
    pub fn row(&mut self, line: &str) {
        self.out.push_str(&plain(line));
        self.out.push('\n');
    }

    /// What an answer that is a table could not see, below it.
    pub fn not_seen(&mut self, gaps: &[NotSeen]) {
        for (index, gap) in gaps.iter().enumerate() {
            if index == 0 {
                self.row("");
            }
            let node = if gap.node.is_empty() { String::new() } else { format!(" on {}", gap.node) };
            let words = format!("{}{node}: {}; {}", gap.what, gap.why, gap.remedy);
            self.line(if index == 0 { "not seen" } else { "" }, &words);
        }
    }

    /// A command: never wrapped, because it is copied.
    pub fn command(&mut self, command: &str) {
        self.verbatim("", command);
    }

    pub fn verbatim(&mut self, label: &str, text: &str) {
        self.label(label);
        self.out.push_str(&plain(text));
        self.out.push('\n');
    }

    fn wrapped(&mut self, label: &str, word: &str, prose: &str) {
        let indent = if word.is_empty() { LABEL } else { 2 * LABEL };
        for (index, line) in wrap(&plain(prose), self.width - indent).iter().enumerate() {
            if index == 0 {
                self.label(label);
                self.out.push_str(&padded(word, indent - LABEL));
            } else {
                self.out.push_str(&" ".repeat(indent));
            }
            self.out.push_str(line);
            self.out.push('\n');
        }
    }

    fn label(&mut self, label: &str) {
        let painted = self.painted(&padded(label, LABEL), "1");
        self.out.push_str(&painted);
    }

    fn painted(&self, text: &str, code: &str) -> String {
        match self.paint {
            Paint::Ansi if !text.trim().is_empty() => format!("\u{1b}[{code}m{text}\u{1b}[0m"),
            _ => text.to_owned(),
        }
    }
}

fn padded(text: &str, width: usize) -> String {
    format!("{text:<width$}")
}

/// Lines of at most `width` characters, broken at spaces; a longer word is broken where it must be. At least one line.
fn wrap(text: &str, width: usize) -> Vec<String> {
    let mut lines = Vec::new();
    let mut line = String::new();
    let mut used = 0;
    for word in text.split(' ').filter(|word| !word.is_empty()) {
        let mut rest: Vec<char> = word.chars().collect();
        if used > 0 && used + 1 + rest.len() > width {
            lines.push(std::mem::take(&mut line));
            used = 0;
        }
        if used > 0 {
            line.push(' ');
            used += 1;
        }
        while rest.len() > width {
            let tail = rest.split_off(width);
            lines.push(rest.into_iter().collect());
            rest = tail;
        }
        used += rest.len();
        line.extend(rest);
    }
    lines.push(line);
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_line_is_wider_than_the_page() {
        let mut page = Page::new(Paint::Plain);
        page.column("proof", "intended", &format!("short words and {} then more words", "x".repeat(300)));
        let text = page.finish();
        assert!(text.lines().all(|line| line.chars().count() <= WIDTH), "{text}");
        assert_eq!(text.matches('x').count(), 300);
    }

    #[test]
    fn hostile_text_cannot_paint() {
        let mut page = Page::new(Paint::Plain);
        page.line("cause", "a\u{1b}[31mb\nfake        line");
        assert!(!page.finish().contains('\u{1b}'));
    }
}
