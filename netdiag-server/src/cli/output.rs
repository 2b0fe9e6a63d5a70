//! How results reach the reader: text, JSON or Markdown; colour and progress only on a terminal.

use std::io::{IsTerminal, Write};

use serde::Serialize;

use super::Failure;
use crate::answer::{Answer, Paint, escape, markdown, text};

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum Format {
    Text,
    Json,
    Markdown,
}

/// For results without a Markdown page.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum ShortFormat {
    Text,
    Json,
}

pub(super) fn answer(answer: &Answer, format: Format) -> Result<(), Failure> {
    let page = match format {
        Format::Text => text::render(answer, paint()),
        Format::Markdown => markdown::render(answer),
        Format::Json => json(answer)?,
    };
    print(&page)
}

pub(super) fn json(value: &impl Serialize) -> Result<String, Failure> {
    let text = serde_json::to_string_pretty(value);
    text.map(|text| escape::json(&text)).map_err(|error| Failure(format!("cannot write the answer as JSON: {error}")))
}

/// On one line.
pub(super) fn json_line(value: &impl Serialize) -> Result<String, Failure> {
    let text = serde_json::to_string(value);
    text.map(|text| escape::json(&text)).map_err(|error| Failure(format!("cannot write the answer as JSON: {error}")))
}

/// Writes a page to standard output. A reader that left early (`| head`) is no failure.
pub(super) fn print(page: &str) -> Result<(), Failure> {
    print_to_reader(page).map(|_| ())
}

/// Whether somebody still reads what is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reader {
    There,
    Gone,
}

/// The same for what would be written for ever.
pub(super) fn print_to_reader(page: &str) -> Result<Reader, Failure> {
    let mut out = std::io::stdout().lock();
    let end = if page.ends_with('\n') { "" } else { "\n" };
    match write!(out, "{page}{end}").and_then(|()| out.flush()) {
        Ok(()) => Ok(Reader::There),
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(Reader::Gone),
        Err(error) => Err(Failure(format!("cannot write the answer: {error}"))),
    }
}

/// <https://no-color.org>: any value that is not empty turns colour off.
pub(super) fn paint() -> Paint {
    let off = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    if std::io::stdout().is_terminal() && !off { Paint::Ansi } else { Paint::Plain }
}

/// One line on a terminal while we wait, gone when there is something to read.
pub(super) struct Progress {
    shown: bool,
}

impl Progress {
    pub fn start(what: &str) -> Self {
        let shown = std::io::stderr().is_terminal();
        if shown {
            eprint!("{what} …");
        }
        Self { shown }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if self.shown {
            // Back to the line's start, and clear it (ECMA-48 EL).
            eprint!("\r\x1b[K");
        }
    }
}
