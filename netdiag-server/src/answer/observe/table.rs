//! Rows under a heading, as wide as the terminal: text is shortened where it must be, numbers never.

use crate::answer::escape::plain;
use crate::observed::Column;

/// Columns between two cells.
const GAP: usize = 2;
/// Below this a name says nothing any more.
const NARROWEST: usize = 6;
/// Numbers that are extra go before texts become shorter than this.
const READABLE: usize = 18;

/// The heading and one line per row.
pub(super) fn lines(columns: &[Column], rows: &[Vec<String>], width: usize) -> Vec<String> {
    let heading: Vec<String> = columns.iter().map(|column| column.title().to_uppercase()).collect();
    let rows = rows.iter().map(|row| row.iter().map(|cell| plain(cell)).collect());
    let mut columns = columns.to_vec();
    let mut lines: Vec<Vec<String>> = std::iter::once(heading).chain(rows).collect();
    while let Some(extra) = columns.iter().rposition(|column| matches!(column, Column::Extra(_)))
        && !fits(&columns, &lines, width)
    {
        columns.remove(extra);
        for cells in &mut lines {
            cells.remove(extra);
        }
    }
    let widths = widths(&columns, &lines, width);
    lines.iter().map(|cells| line(&columns, cells, &widths, width)).collect()
}

/// Without a text shorter than is readable.
fn fits(columns: &[Column], lines: &[Vec<String>], width: usize) -> bool {
    let wide = natural(columns, lines).into_iter().zip(columns).map(|(wide, column)| match column {
        Column::Text(_) => wide.min(READABLE),
        Column::Number(_) | Column::Extra(_) => wide,
    });
    wide.sum::<usize>() + GAP * columns.len().saturating_sub(1) <= width
}

/// What the widest cell of each column asks for.
fn natural(columns: &[Column], lines: &[Vec<String>]) -> Vec<usize> {
    let widest = |index: usize| lines.iter().map(|cells: &Vec<String>| cells[index].chars().count()).max().unwrap_or(0);
    (0..columns.len()).map(widest).collect()
}

/// What the cells ask for, the widest text shortened until the line fits.
fn widths(columns: &[Column], lines: &[Vec<String>], width: usize) -> Vec<usize> {
    let mut widths = natural(columns, lines);
    let gaps = GAP * columns.len().saturating_sub(1);
    while widths.iter().sum::<usize>() + gaps > width {
        let texts = widths.iter_mut().zip(columns).filter(|(_, column)| matches!(column, Column::Text(_)));
        match texts.map(|(wide, _)| wide).max() {
            Some(widest) if *widest > NARROWEST => *widest -= 1,
            // Narrower than this the line is cut at its end.
            _ => break,
        }
    }
    widths
}

fn line(columns: &[Column], cells: &[String], widths: &[usize], width: usize) -> String {
    let padded = columns.iter().zip(cells).zip(widths).map(|((column, cell), wide)| match column {
        Column::Text(_) => format!("{:<wide$}", shortened(cell, *wide)),
        Column::Number(_) | Column::Extra(_) => format!("{cell:>wide$}"),
    });
    let line = padded.collect::<Vec<_>>().join(&" ".repeat(GAP));
    line.chars().take(width).collect::<String>().trim_end().to_owned()
}

/// The end goes: what tells names apart in Kubernetes is at their end as often as at their start, but paths begin with the
/// namespace.
fn shortened(text: &str, wide: usize) -> String {
    if text.chars().count() <= wide {
        return text.to_owned();
    }
    let mut short: String = text.chars().take(wide.saturating_sub(1)).collect();
    short.push('…');
    short
}

impl Column {
    fn title(self) -> &'static str {
        match self {
            Self::Text(title) | Self::Number(title) | Self::Extra(title) => title,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn extra_numbers_go_before_names_become_unreadable() {
        let columns = [Column::Text("where"), Column::Extra("round trip p99"), Column::Number("failed")];
        let rows = [vec!["kube-system/coredns-1".to_owned(), "< 256 µs".to_owned(), "7".to_owned()]];
        let heading = |width| lines(&columns, &rows, width).swap_remove(0);
        assert!(heading(60).contains("ROUND TRIP P99"));
        assert!(!heading(40).contains("ROUND TRIP"), "{}", heading(40));
        assert!(lines(&columns, &rows, 40)[1].starts_with("kube-system/coredns-1  "));
    }

    const COLUMNS: [Column; 3] = [Column::Text("where"), Column::Text("reason"), Column::Number("packets")];

    fn row(cells: [&str; 3]) -> Vec<String> {
        cells.map(str::to_owned).to_vec()
    }

    #[test]
    fn text_gives_way_and_numbers_do_not() {
        let rows = [row(["shop/web-7d9f4c5b8-x2x4f", "NETFILTER_DROP", "1234567"]), row(["host", "NO_SOCKET", "3"])];
        let table = lines(&COLUMNS, &rows, 36);
        assert_eq!(
            table,
            [
                "WHERE          REASON        PACKETS",
                "shop/web-7d9…  NETFILTER_D…  1234567",
                "host           NO_SOCKET           3",
            ]
        );
    }

    #[test]
    fn no_line_is_wider_than_the_terminal() {
        for width in 1..60 {
            let table = lines(&COLUMNS, &[row(["a\u{1b}[2Jb", "\u{202e}long reason of the kernel", "99"])], width);
            assert!(table.iter().all(|line| line.chars().count() <= width), "{width}: {table:?}");
            assert!(!table.concat().contains('\u{1b}'));
        }
    }
}
