//! An answer as Markdown for tickets and chats: the cause first, its path as a Mermaid flowchart with the broken hop marked.

use std::fmt::Write as _;

use super::escape::{code_span, markdown, mermaid};
use super::text::{no_cause, proof_place, subject, verdict};
use super::{Answer, CauseEntry, Hop, HopState};

pub fn render(answer: &Answer) -> String {
    let mut out = String::new();
    line(&mut out, &format!("## {}", markdown(&subject(answer))));
    line(
        &mut out,
        &format!("**{}** in cluster {}, {}", markdown(&verdict(answer)), markdown(&answer.cluster), answer.at),
    );
    for cause in &answer.causes {
        cause_section(&mut out, cause);
    }
    if answer.causes.is_empty() {
        line(&mut out, &markdown(&no_cause(answer)));
        list(&mut out, "Symptom", answer.symptom.probes.iter().map(|probe| markdown(probe)));
    }
    path(&mut out, &answer.path);
    let consequence = |c: &CauseEntry| format!("`{}`: {}", c.code, markdown(&c.claim));
    list(&mut out, "So also", answer.consequences.iter().map(consequence));
    list(&mut out, "Excluded", answer.excluded.iter().map(|e| format!("`{}`: {}", e.code, markdown(&e.because))));
    let gaps = answer
        .not_seen
        .iter()
        .map(|gap| format!("{}: {}; {}", markdown(&gap.what), markdown(&gap.why), markdown(&gap.remedy)));
    list(&mut out, "Not seen", gaps);
    if !answer.truncated.is_empty() {
        line(&mut out, &markdown(&answer.truncated));
    }
    out.truncate(out.trim_end().len());
    out.push('\n');
    out
}

fn line(out: &mut String, text: &str) {
    out.push_str(text);
    out.push_str("\n\n");
}

fn list(out: &mut String, title: &str, entries: impl Iterator<Item = String>) {
    let lines: Vec<String> = entries.map(|entry| format!("- {entry}")).collect();
    if !lines.is_empty() {
        line(out, &format!("### {title}"));
        line(out, &lines.join("\n"));
    }
}

fn cause_section(out: &mut String, cause: &CauseEntry) {
    line(out, &format!("### Cause: `{}`", cause.code));
    let since = if cause.since.is_empty() { String::new() } else { format!(" (since {})", cause.since) };
    line(out, &format!("{}{since}", markdown(&cause.claim)));
    let mut table = String::from("| view | where | read | what |\n|---|---|---|---|\n");
    for proof in &cause.proof {
        let (place, read) = (markdown(&proof_place(proof)), proof.at.strftime("%H:%M:%S"));
        table.push_str(&format!("| {} | {place} | {read} | {} |\n", proof.view.word(), markdown(&proof.text)));
    }
    line(out, table.trim_end());
    line(out, &format!("**Fix:** {}", markdown(&cause.fix.text)));
    if !cause.fix.commands.is_empty() {
        let commands: Vec<String> =
            cause.fix.commands.iter().map(|command| format!("- {}", code_span(command))).collect();
        line(out, &commands.join("\n"));
    }
    if !cause.fix.verify.is_empty() {
        line(out, &format!("**Verify:** {}", code_span(&cause.fix.verify)));
    }
}

/// Stage after stage; parallel hops share their neighbours. A broken hop is marked by colour, sign and edge.
fn path(out: &mut String, hops: &[Hop]) {
    if hops.is_empty() {
        return;
    }
    let mut chart = String::from("```mermaid\nflowchart LR\n");
    for (index, hop) in hops.iter().enumerate() {
        let node = match hop.kind.as_str() {
            "endpoint" | "client" if !hop.node.is_empty() && !hop.label.starts_with("Node ") => {
                format!("<br/>on {}", mermaid(&hop.node))
            }
            _ => String::new(),
        };
        let (sign, class) = mark(hop.state);
        let _ = writeln!(chart, "  h{index}[\"{sign}{}{node}\"]:::{class}", mermaid(&hop.label));
    }
    let stages = stages(hops);
    for (left, right) in stages.iter().zip(stages.iter().skip(1)) {
        // With several hops on both sides every pair would be drawn; the first of the left stands for them.
        let sources = if right.len() > 1 { &left[..1] } else { &left[..] };
        for (from, to) in sources.iter().flat_map(|from| right.iter().map(move |to| (from, to))) {
            let edge = if hops[*to].state == HopState::Broken { "-. ✗ .->" } else { "-->" };
            let _ = writeln!(chart, "  h{from} {edge} h{to}");
        }
    }
    chart.push_str("  classDef ok stroke:#2e7d32\n  classDef broken stroke:#c62828,stroke-width:3px\n");
    chart.push_str("  classDef degraded stroke:#ef6c00,stroke-width:3px\n  classDef unknown stroke-dasharray:4\n```");
    line(out, "### Path");
    line(out, &chart);
}

/// Indices of the hops of each stage.
fn stages(hops: &[Hop]) -> Vec<Vec<usize>> {
    let mut stages: Vec<Vec<usize>> = Vec::new();
    for (index, hop) in hops.iter().enumerate() {
        match stages.last_mut() {
            Some(stage) if hops[stage[0]].kind == hop.kind => stage.push(index),
            _ => stages.push(vec![index]),
        }
    }
    stages
}

fn mark(state: HopState) -> (&'static str, &'static str) {
    match state {
        HopState::Ok => ("", "ok"),
        HopState::Broken => ("✗ ", "broken"),
        HopState::Degraded => ("! ", "degraded"),
        HopState::Unknown => ("? ", "unknown"),
    }
}
