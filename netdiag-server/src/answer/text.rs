//! An answer as text for people: a label column, prose wrapped at 100 columns, commands on one line so that they can be copied.

use jiff::Timestamp;

use super::page::{Page, Paint, Tone};
use super::{Answer, CauseEntry, StatusName, SymptomName};
use crate::finding::{Proof, ViewKind};

/// Shown of each list; JSON has all.
const MAX_EXCLUDED: usize = 6;
const MAX_NOT_SEEN: usize = 5;
const MAX_PROBES: usize = 4;

pub fn render(answer: &Answer, paint: Paint) -> String {
    let mut page = Page::new(paint);
    head(&mut page, answer);
    for (number, cause) in answer.causes.iter().enumerate() {
        cause_lines(&mut page, cause, number, answer.at);
    }
    if answer.causes.is_empty() {
        without_cause(&mut page, answer);
    }
    for consequence in &answer.consequences {
        page.line("so also", &format!("{}: {}", consequence.code, consequence.claim));
    }
    excluded(&mut page, answer);
    not_seen(&mut page, answer);
    for (number, cause) in answer.causes.iter().enumerate() {
        fix(&mut page, cause, number);
    }
    if !answer.truncated.is_empty() {
        page.line("left out", &answer.truncated);
    }
    page.finish()
}

/// The answer in one paragraph: what tools return next to the structured content.
pub fn summary(answer: &Answer) -> String {
    let mut text = format!("{}: {}", subject(answer), verdict(answer));
    match answer.causes.first() {
        Some(cause) => {
            text.push_str(&format!(". {}: {}. Fix: {}", cause.code, cause.claim, cause.fix.text));
            if let Some(command) = cause.fix.commands.first() {
                text.push_str(&format!(" ({command})"));
            }
            text.push_str(&format!(". Verify: {}", cause.fix.verify));
        }
        None => text.push_str(&format!(". {}", no_cause(answer))),
    }
    if let Some(gap) = answer.not_seen.first() {
        text.push_str(&format!(". Not seen: {} ({}; {})", gap.what, gap.why, gap.remedy));
        if answer.not_seen.len() > 1 {
            text.push_str(&format!(" and {} more", answer.not_seen.len() - 1));
        }
    }
    super::escape::plain(&text)
}

/// `14 min ago`; `in 3 h` for what lies ahead.
pub(super) fn ago(then: Timestamp, now: Timestamp) -> String {
    let seconds = now.duration_since(then).as_secs();
    let span = match seconds.unsigned_abs() {
        s @ 0..120 => format!("{s} s"),
        s @ 120..7_200 => format!("{} min", s / 60),
        s @ 7_200..172_800 => format!("{} h", s / 3_600),
        s => format!("{} days", s / 86_400),
    };
    if seconds < 0 { format!("in {span}") } else { format!("{span} ago") }
}

pub(super) fn verdict(answer: &Answer) -> String {
    match answer.status {
        // The number says how sure the answer is; there is none.
        StatusName::Unknown => format!("unknown, completeness {:.2}", answer.completeness),
        status => {
            format!("{}, confidence {:.2}, completeness {:.2}", status.word(), answer.confidence, answer.completeness)
        }
    }
}

pub(super) fn subject(answer: &Answer) -> String {
    format!("{} from {} ({})", answer.asked.to, answer.asked.from, answer.asked.protocol)
}

/// One sentence for an answer without a cause.
pub(super) fn no_cause(answer: &Answer) -> String {
    let undecided = match answer.undecided.as_slice() {
        [] => "every condition was judged and none of them fits".to_owned(),
        codes => format!("could not judge {}", codes.join(", ")),
    };
    match (answer.status, answer.symptom.state) {
        (StatusName::Healthy, SymptomName::Works) => "no fault: every probe got through".to_owned(),
        (StatusName::Healthy, _) => "no fault found; not probed, so this rests on what is configured".to_owned(),
        (_, SymptomName::Fails) => format!("the connection fails, and no cause was found: {undecided}"),
        (_, SymptomName::Partial) => format!("some connections fail, and no cause was found: {undecided}"),
        (_, SymptomName::Works) => format!("every probe got through, but not everything was judged: {undecided}"),
        (_, SymptomName::Unknown) => format!("could not tell: {undecided}"),
    }
}

pub(super) fn proof_place(proof: &Proof) -> String {
    let node = if proof.node.is_empty() { String::new() } else { format!("{} ", proof.node) };
    format!("{node}{}", proof.source)
}

impl ViewKind {
    pub(super) fn word(self) -> &'static str {
        match self {
            Self::Intended => "intended",
            Self::Programmed => "programmed",
            Self::Observed => "observed",
            Self::Probe => "probe",
        }
    }
}

impl StatusName {
    pub fn word(self) -> &'static str {
        match self {
            Self::Broken => "broken",
            Self::Degraded => "degraded",
            Self::Healthy => "healthy",
            Self::Unknown => "unknown",
        }
    }

    fn tone(self) -> Tone {
        match self {
            Self::Broken => Tone::Bad,
            Self::Degraded | Self::Unknown => Tone::Doubtful,
            Self::Healthy => Tone::Good,
        }
    }
}

fn head(page: &mut Page, answer: &Answer) {
    let window = match answer.window_s {
        0 => String::new(),
        s @ 1..120 => format!(", window {s} s"),
        s => format!(", window {} min", s / 60),
    };
    page.line_with_right("subject", &subject(answer), &format!("cluster {}{window}", answer.cluster));
    page.toned("verdict", &verdict(answer), answer.status.tone());
}

fn cause_lines(page: &mut Page, cause: &CauseEntry, number: usize, now: Timestamp) {
    let label = if number == 0 { "cause" } else { "cause too" };
    page.line(label, &format!("{}: {}", cause.code, cause.claim));
    if let Ok(since) = cause.since.parse::<Timestamp>() {
        page.line("since", &format!("{} ({since})", ago(since, now)));
    }
    for (index, proof) in cause.proof.iter().enumerate() {
        let label = if index == 0 { "proof" } else { "" };
        let read = proof.at.strftime("%H:%M:%S");
        page.column(label, proof.view.word(), &format!("{}: {} (read {read})", proof_place(proof), proof.text));
    }
}

fn without_cause(page: &mut Page, answer: &Answer) {
    page.line("cause", &no_cause(answer));
    if answer.symptom.state == SymptomName::Works {
        return;
    }
    for (index, probe) in answer.symptom.probes.iter().take(MAX_PROBES).enumerate() {
        page.line(if index == 0 { "symptom" } else { "" }, probe);
    }
    if answer.symptom.probes.len() > MAX_PROBES {
        page.line("", &format!("and {} more (-o json)", answer.symptom.probes.len() - MAX_PROBES));
    }
    for (index, sentence) in answer.symptom.traffic.iter().enumerate() {
        page.line(if index == 0 { "traffic" } else { "" }, sentence);
    }
}

fn excluded(page: &mut Page, answer: &Answer) {
    for (index, excluded) in answer.excluded.iter().take(MAX_EXCLUDED).enumerate() {
        let label = if index == 0 { "excluded" } else { "" };
        page.line(label, &format!("{}: {}", excluded.code, excluded.because));
    }
    if answer.excluded.len() > MAX_EXCLUDED {
        let rest: Vec<&str> = answer.excluded[MAX_EXCLUDED..].iter().map(|excluded| excluded.code.as_str()).collect();
        page.line("", &format!("also {}", rest.join(", ")));
    }
}

fn not_seen(page: &mut Page, answer: &Answer) {
    for (index, gap) in answer.not_seen.iter().take(MAX_NOT_SEEN).enumerate() {
        let label = if index == 0 { "not seen" } else { "" };
        page.line(label, &format!("{}: {}; {}", gap.what, gap.why, gap.remedy));
    }
    if answer.not_seen.len() > MAX_NOT_SEEN {
        page.line("", &format!("and {} more (-o json)", answer.not_seen.len() - MAX_NOT_SEEN));
    }
}

fn fix(page: &mut Page, cause: &CauseEntry, number: usize) {
    page.line(if number == 0 { "fix" } else { "fix too" }, &cause.fix.text);
    for command in &cause.fix.commands {
        page.command(command);
    }
    if !cause.fix.verify.is_empty() {
        page.verbatim("verify", &cause.fix.verify);
    }
}

#[cfg(test)]
mod tests {
    use netdiag_common::observation::probe::Outcome;

    use super::super::sample::{Shop, no_answer, refused};
    use super::*;

    const CLIENT: &str = "pod/shop/client";
    const WEB: &str = "service/shop/web:80";

    #[test]
    fn a_cause_reads_from_subject_to_fix() {
        let answer = Shop::new("web-typo").probes_end(refused()).ask(CLIENT, WEB);
        insta::assert_snapshot!("cause", render(&answer, Paint::Plain));
        insta::assert_snapshot!("cause_markdown", super::super::markdown::render(&answer));
    }

    #[test]
    fn health_says_what_it_rests_on() {
        let probed = Shop::new("web").probes_end(Outcome::Connected).ask(CLIENT, WEB);
        assert!(render(&probed, Paint::Plain).contains("no fault: every probe got through"));
    }

    #[test]
    fn a_symptom_without_cause_is_said_with_what_is_missing() {
        let text = render(&Shop::new("web").probes_end(no_answer()).ask(CLIENT, WEB), Paint::Plain);
        assert!(text.contains("the connection fails, and no cause was found"), "{text}");
        assert!(text.contains("symptom     3 of 3 probes to 10.96.0.7:80 from Pod shop/client: no answer"), "{text}");
    }

    #[test]
    fn nothing_seen_is_not_called_healthy_or_broken() {
        let mut shop = Shop::new("web");
        let why = "the API server answered 403: pods is forbidden".to_owned();
        let gap = crate::evidence::Cluster::forbidden("endpointslices", why);
        shop.cluster.endpoint_slices = crate::evidence::Kind::unavailable(gap);
        let text = render(&shop.ask(CLIENT, WEB), Paint::Plain);
        assert!(text.contains("verdict     unknown"), "{text}");
        assert!(text.contains("could not tell: could not judge "), "{text}");
        assert!(text.contains("service_selects_no_pods"), "{text}");
        assert!(text.contains("not seen    endpointslices of the cluster: the API server answered 403"), "{text}");
    }

    #[test]
    fn hostile_names_reach_no_terminal_and_no_markup() {
        let mut answer = Shop::new("web-typo").probes_end(refused()).ask(CLIENT, WEB);
        let hostile = "x\u{1b}[2J\u{202e}<script>`|\"]\n# owned";
        hostile.clone_into(&mut answer.causes[0].claim);
        hostile.clone_into(&mut answer.path[0].label);
        hostile.clone_into(&mut answer.causes[0].proof[0].text);
        hostile.clone_into(&mut answer.asked.to);
        answer.causes[0].fix.commands = vec![hostile.to_owned()];
        for text in [render(&answer, Paint::Plain), summary(&answer), super::super::markdown::render(&answer)] {
            assert!(!text.contains(['\u{1b}', '\u{202e}']), "{text}");
            assert!(!text.contains("\n# owned") && !text.contains("\n owned"), "{text}");
        }
        let markdown = super::super::markdown::render(&answer);
        let in_code = |line: &&str| line.starts_with("- ``");
        assert!(markdown.lines().filter(|line| !in_code(line)).all(|line| !line.contains("<script>")), "{markdown}");
        let chart = markdown.split("```mermaid").nth(1).expect("a chart").split("```").next().expect("its end");
        assert!(
            chart.lines().filter(|line| line.contains("[\"")).all(|line| line.matches('"').count() == 2),
            "{chart}"
        );
    }

    #[test]
    fn every_line_of_prose_fits_and_colour_is_optional() {
        let answer = Shop::new("web-typo").probes_end(refused()).ask("", WEB);
        let command = |line: &str| line.contains("kubectl") || line.contains("netdiag diagnose");
        for line in render(&answer, Paint::Plain).lines().filter(|line| !command(line)) {
            assert!(line.chars().count() <= 100, "{line}");
        }
        let painted = render(&answer, Paint::Ansi);
        assert!(painted.contains("\u{1b}[31mbroken\u{1b}[0m"), "{painted}");
    }
}
