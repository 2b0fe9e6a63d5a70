//! Probes on a terminal: the verdict, then what each target, rung or way came to.

use super::words::{ms, of_failure, telling};
use super::{ProbeAnswer, ProbeStatus, SeriesEntry, histogram};
use crate::answer::page::{Page, Paint, Tone};
use crate::probe::conclude::in_words;
use crate::probe::endpoints::CONFIDENCE;
use crate::probe::ladder::{Climbed, Ladder, Role, Rung};
use crate::probe::matrix::{COLUMNS, Column, Matrix, Row, ZONE_COLUMNS};
use crate::probe::tally::EndpointCount;

/// Columns of a matrix's first column, and of each other one.
const FROM: usize = 34;
const CELL: usize = 11;

impl ProbeAnswer {
    pub fn text(&self, paint: Paint) -> String {
        let mut page = Page::new(paint);
        page.line_with_right(
            "probe",
            &format!("{} from {} to {}", self.kind, self.from, self.to),
            &format!("cluster {}", self.cluster),
        );
        page.toned("verdict", self.status.word(), self.status.tone());
        page.line("", &self.verdict);
        for series in &self.series {
            series.lines(&mut page);
        }
        for ladder in &self.ladders {
            ladder.lines(&mut page);
        }
        if let Some(matrix) = &self.matrix {
            matrix.lines(&mut page);
        }
        page.not_seen(&self.not_seen);
        page.finish()
    }
}

impl ProbeStatus {
    fn word(self) -> &'static str {
        match self {
            Self::Well => "well",
            Self::Failed => "failed",
            Self::Unknown => "unknown",
        }
    }

    fn tone(self) -> Tone {
        match self {
            Self::Well => Tone::Good,
            Self::Failed => Tone::Bad,
            Self::Unknown => Tone::Doubtful,
        }
    }
}

impl SeriesEntry {
    fn lines(&self, page: &mut Page) {
        page.heading(&self.to);
        let tally = &self.tally;
        let late = if tally.late > 0 { format!(", {} begun late", tally.late) } else { String::new() };
        let untried = if tally.untried > 0 { format!(", {} not tried", tally.untried) } else { String::new() };
        let counts = format!("{} of {} got through{untried}{late}", tally.succeeded, tally.asked);
        let tone = self.status.tone();
        page.toned("result", &format!("{}: {counts}", self.status.word()), tone);
        for failure in &tally.failures {
            page.line("failed", &format!("{} {}", failure.count, of_failure(failure)));
        }
        for times in &tally.times {
            let words = format!(
                "least {}, p50 {}, p90 {}, p99 {}, most {}",
                ms(times.min_us),
                ms(times.p50_us),
                ms(times.p90_us),
                ms(times.p99_us),
                ms(times.max_us)
            );
            page.column("time", &times.phase, &words);
        }
        for (index, line) in telling(tally).map(histogram::lines).unwrap_or_default().iter().enumerate() {
            page.verbatim(if index == 0 { "histogram" } else { "" }, line);
        }
        if !self.endpoints.is_empty() {
            page.line("endpoints", &self.endpoints);
        }
        for endpoint in &tally.endpoints {
            page.line("endpoint", &of_endpoint(endpoint));
        }
        for detail in &self.details {
            page.line(&detail.label, &detail.text);
        }
        if let Some(mtu) = &self.mtu {
            page.line("advice", &mtu.words);
        }
        if let Some(compared) = &self.secret {
            page.line("secret", &compared.words);
        }
        if let Some(followed) = &self.followed {
            page.line("way", &followed.way);
            for step in &followed.steps {
                let interface = if step.interface.is_empty() { String::new() } else { format!(" {}", step.interface) };
                page.column("", &step.node, &format!("{}{interface}: {}", step.place, step.what));
            }
        }
        if tally.untried > 0 && !tally.untried_because.is_empty() {
            page.line("not tried", &tally.untried_because);
        }
        for why in &tally.unseen {
            page.line("not seen", why);
        }
    }
}

/// `10.244.1.4:8080 (pod shop/web-1 on n1): 0 of 4 failed, so 0 to 60 % do (95 %); p = 0.0020 against the others`.
fn of_endpoint(endpoint: &EndpointCount) -> String {
    let object = if endpoint.object.is_empty() { String::new() } else { format!(" ({})", endpoint.object) };
    let classes: Vec<&str> = endpoint.failures.keys().map(String::as_str).collect();
    let classes = if classes.is_empty() { String::new() } else { format!(" ({})", classes.join(", ")) };
    let p = endpoint.p.map(|p| format!("; p = {p:.4} against the others")).unwrap_or_default();
    format!(
        "{}{object}: {} of {} failed{classes}, so {:.0} to {:.0} % do (exact {:.0} % interval){p}",
        endpoint.endpoint,
        endpoint.failed,
        endpoint.made,
        endpoint.low * 100.0,
        endpoint.high * 100.0,
        CONFIDENCE * 100.0
    )
}

impl Ladder {
    fn lines(&self, page: &mut Page) {
        page.heading(&format!("ladder, {}", self.family));
        for climber in &self.climbers {
            let who = if climber.who.is_empty() { "nobody" } else { &climber.who };
            let node = if climber.node.is_empty() { String::new() } else { format!(" on {}", climber.node) };
            let why = if climber.why_not.is_empty() { String::new() } else { format!(": {}", climber.why_not) };
            page.line(climber.role.word(), &format!("{who}{node}{why}"));
        }
        for rung in &self.rungs {
            rung.lines(page);
        }
    }
}

impl Rung {
    fn lines(&self, page: &mut Page) {
        page.row("");
        let name = in_words(self);
        if !self.not_tried.is_empty() {
            page.row(&format!("– {name}: not tried: {}", self.not_tried));
            return;
        }
        let mark = match self.holds(self.main_role()) {
            Some(true) => "✓",
            Some(false) => "✗",
            None => "–",
        };
        page.row(&format!("{mark} {name}"));
        for climbed in &self.attempts {
            page.column("", climbed.role.word(), &climbed.words());
        }
    }
}

impl Climbed {
    fn words(&self) -> String {
        let object = if self.object.is_empty() { String::new() } else { format!(" ({})", self.object) };
        let tally = &self.tally;
        let said = match (tally.failures.first(), tally.made) {
            (_, 0) => format!("not tried: {}", tally.untried_because),
            (Some(failure), made) => format!("{} of {made} failed: {}", tally.failed, of_failure(failure)),
            (None, made) => format!("{made} of {made} got through"),
        };
        let whose = if self.role == Role::Server { format!("{} to ", self.who) } else { String::new() };
        let excuse = if self.excuse.is_empty() { String::new() } else { format!("; {}", self.excuse) };
        let secret = self.secret.as_ref().map(|compared| format!("; {}", compared.words)).unwrap_or_default();
        format!("{whose}{}{object}: {said}{excuse}{secret}", self.to)
    }
}

impl Role {
    fn word(self) -> &'static str {
        match self {
            Self::Client => "client",
            Self::Twin => "twin",
            Self::Node => "node",
            Self::Server => "itself",
        }
    }
}

impl Matrix {
    fn lines(&self, page: &mut Page) {
        for rows in self.rows.chunk_by(|one, next| one.family == next.family) {
            let family = &rows[0].family;
            table(page, &format!("matrix, {family}"), &COLUMNS, rows);
            if !self.zones.is_empty() {
                let title = format!("other nodes by zone ({}), {family}", self.zones.join(", "));
                table(page, &title, &ZONE_COLUMNS, rows);
            }
        }
        page.row("");
        page.row("✓ works   ✗r refused   ✗t no answer   ✗n unreachable   ✗ failed otherwise   – nothing to try");
        for row in self.rows.iter().filter(|row| row.from != "signature") {
            // What fails by zone is among these already.
            let own = row.cells.iter().filter(|cell| !ZONE_COLUMNS.contains(&cell.column));
            for cell in own.filter(|cell| cell.failed > 0) {
                let title = cell.column.words();
                page.line(
                    "failed",
                    &format!("{} {}, {title}: {} of {}: {}", row.family, row.from, cell.failed, cell.made, cell.why),
                );
            }
        }
        for who in &self.without_zone {
            page.line("no zone", who);
        }
    }
}

fn table(page: &mut Page, title: &str, columns: &[Column], rows: &[Row]) {
    page.heading(title);
    for line in [0, 1] {
        let titles = columns.iter().map(|column| padded(column.title()[line], CELL));
        page.row(format!("{}{}", " ".repeat(FROM), titles.collect::<String>()).trim_end());
    }
    for row in rows {
        row.line(page, columns);
    }
}

impl Row {
    fn line(&self, page: &mut Page, columns: &[Column]) {
        let own = self.cells.iter().filter(|cell| columns.contains(&cell.column));
        let cells = own.map(|cell| padded(&cell.mark, CELL));
        // A longer name moves its own row only.
        let from = padded(&format!("{} ", self.from), FROM);
        page.row(format!("{from}{}", cells.collect::<String>()).trim_end());
    }
}

fn padded(text: &str, width: usize) -> String {
    format!("{text:<width$}")
}
