//! Many paths in one value, schema `netdiag.scan/v1`: each fault once, with the paths it touches.

use jiff::Timestamp;
use netdiag_common::Gap;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::page::{Page, Paint};
use super::{CauseEntry, NotSeen, StatusName, build, not_seen, text};
use crate::ask::{MAX_SCAN_PATHS, Scanned};
use crate::correlate::{Status, correlate};
use crate::observed::Failing;

pub const SCAN_SCHEMA: &str = "netdiag.scan/v1";
/// Paths named with one finding; the rest is counted.
const MAX_NAMED_PATHS: usize = 5;

/// What a scan found.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Scan {
    /// Always `netdiag.scan/v1`.
    pub schema: String,
    pub cluster: String,
    /// The namespace that was scanned; empty for all.
    pub namespace: String,
    /// When the evidence was complete, RFC 3339.
    #[schemars(with = "String")]
    pub at: Timestamp,
    /// Seconds of observation that the scan rests on.
    pub window_s: u64,
    /// The worst of all paths.
    pub status: StatusName,
    pub paths: PathCounts,
    /// One per fault; the one that touches most paths first.
    pub findings: Vec<ScanFinding>,
    /// Paths with a symptom or a gap and no cause.
    pub unknown: Vec<String>,
    /// Traffic of the last minute that fails by itself, and no cause was found; most failures first.
    #[serde(default)]
    pub unexplained: Vec<Unexplained>,
    pub not_seen: Vec<NotSeen>,
    /// What was left out to keep the answer short, and how to get it; empty when nothing was.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub truncated: String,
}

/// How the paths ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub struct PathCounts {
    pub asked: usize,
    pub healthy: usize,
    pub degraded: usize,
    pub broken: usize,
    pub unknown: usize,
}

/// Seen, not explained.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Unexplained {
    #[serde(flatten)]
    pub failing: Failing,
    /// The command that asks about it alone.
    pub ask: String,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ScanFinding {
    /// As found on the first of its paths.
    pub cause: CauseEntry,
    /// Paths that it touches.
    pub paths: usize,
    /// The first of them, as targets to ask `diagnose` about.
    pub named: Vec<String>,
}

/// `at`: when nothing was asked, because there is nothing to ask about.
pub fn build_scan(scanned: &Scanned, namespace: &str, at: Timestamp, cluster: &str) -> Scan {
    let Scanned { inquiries, left_out, unexplained, gaps: of_traffic } = scanned;
    let mut scan = Scan {
        schema: SCAN_SCHEMA.to_owned(),
        cluster: cluster.to_owned(),
        namespace: namespace.to_owned(),
        at: inquiries.first().map_or(at, |inquiry| inquiry.evidence.now),
        window_s: inquiries.first().map_or(0, |inquiry| build::window_s(&inquiry.evidence)),
        status: StatusName::Healthy,
        paths: PathCounts { asked: inquiries.len(), ..PathCounts::default() },
        findings: Vec::new(),
        unknown: Vec::new(),
        unexplained: unexplained
            .iter()
            .map(|failing| Unexplained { failing: failing.clone(), ask: failing.ask() })
            .collect(),
        not_seen: Vec::new(),
        truncated: String::new(),
    };
    let mut gaps: Vec<&Gap> = Vec::new();
    for inquiry in inquiries {
        let correlated = correlate(&inquiry.judged);
        let target = inquiry.judged.path.question.to.to_string();
        let counter = match correlated.status {
            Status::Healthy => &mut scan.paths.healthy,
            Status::Degraded => &mut scan.paths.degraded,
            Status::Broken => &mut scan.paths.broken,
            Status::Unknown => &mut scan.paths.unknown,
        };
        *counter += 1;
        if correlated.status == Status::Unknown {
            scan.unknown.push(target.clone());
        }
        for cause in &correlated.causes {
            note(&mut scan.findings, build::entry(cause, cluster), &target);
        }
        gaps.extend(&inquiry.judged.gaps);
    }
    if let Some(first) = inquiries.first() {
        gaps.extend(first.evidence.kind_gaps().into_iter().map(|(_, gap)| gap));
    }
    gaps.extend(of_traffic);
    scan.findings.sort_by_key(|finding| std::cmp::Reverse(finding.paths));
    scan.not_seen = not_seen::grouped(gaps);
    if *left_out > 0 {
        scan.not_seen.push(NotSeen {
            what: format!("{left_out} more paths"),
            node: String::new(),
            why: format!("one scan asks about at most {MAX_SCAN_PATHS} paths"),
            remedy: "scan one namespace at a time".to_owned(),
        });
    }
    scan.status = match worst(scan.paths) {
        // Something fails, and nobody can say why.
        StatusName::Healthy if !scan.unexplained.is_empty() => StatusName::Unknown,
        worst => worst,
    };
    scan
}

/// The same code about the same objects is one fault.
fn note(findings: &mut Vec<ScanFinding>, cause: CauseEntry, target: &str) {
    let same = |finding: &&mut ScanFinding| {
        finding.cause.code == cause.code && finding.cause.subjects.first() == cause.subjects.first()
    };
    match findings.iter_mut().find(same) {
        Some(finding) => {
            finding.paths += 1;
            if finding.named.len() < MAX_NAMED_PATHS {
                finding.named.push(target.to_owned());
            }
        }
        None => findings.push(ScanFinding { cause, paths: 1, named: vec![target.to_owned()] }),
    }
}

fn worst(paths: PathCounts) -> StatusName {
    match paths {
        PathCounts { broken: 1.., .. } => StatusName::Broken,
        PathCounts { degraded: 1.., .. } => StatusName::Degraded,
        PathCounts { unknown: 1.., .. } => StatusName::Unknown,
        _ => StatusName::Healthy,
    }
}

/// Shown of each list; JSON has all.
const MAX_SHOWN: usize = 20;
const MAX_GAPS: usize = 8;

impl Scan {
    /// One line: the counts.
    pub fn summary(&self) -> String {
        let PathCounts { asked, healthy, degraded, broken, unknown } = self.paths;
        let scope = if self.namespace.is_empty() {
            "all namespaces".to_owned()
        } else {
            format!("namespace {}", self.namespace)
        };
        format!("{asked} paths of {scope}: {healthy} healthy, {broken} broken, {degraded} degraded, {unknown} unknown")
    }

    pub fn text(&self, paint: Paint) -> String {
        let mut page = Page::new(paint);
        page.line_with_right("scan", &self.summary(), &format!("cluster {}", self.cluster));
        for finding in self.findings.iter().take(MAX_SHOWN) {
            let cause = &finding.cause;
            page.line("finding", &format!("{}: {}", cause.code, cause.claim));
            if let Ok(since) = cause.since.parse::<Timestamp>() {
                page.line("since", &format!("{} ({since})", text::ago(since, self.at)));
            }
            let more = finding.paths - finding.named.len();
            let more = if more > 0 { format!(" and {more} more") } else { String::new() };
            page.line("paths", &format!("{}{more}", finding.named.join(", ")));
            page.line("fix", &cause.fix.text);
            for command in &cause.fix.commands {
                page.command(command);
            }
        }
        if self.findings.len() > MAX_SHOWN {
            page.line("", &format!("and {} more findings (-o json)", self.findings.len() - MAX_SHOWN));
        }
        for (index, unexplained) in self.unexplained.iter().take(MAX_SHOWN).enumerate() {
            page.line(if index == 0 { "unexplained" } else { "" }, &unexplained.failing.words());
            page.command(&unexplained.ask);
        }
        if !self.unknown.is_empty() {
            let shown = self.unknown.iter().take(MAX_SHOWN).cloned().collect::<Vec<_>>().join(", ");
            page.line("unknown", &format!("{shown}: ask netdiag diagnose about each"));
        }
        for (index, gap) in self.not_seen.iter().take(MAX_GAPS).enumerate() {
            page.line(if index == 0 { "not seen" } else { "" }, &format!("{}: {}; {}", gap.what, gap.why, gap.remedy));
        }
        if self.not_seen.len() > MAX_GAPS {
            page.line("", &format!("and {} more (-o json)", self.not_seen.len() - MAX_GAPS));
        }
        page.finish()
    }

    pub fn markdown(&self) -> String {
        use super::escape::{code_span, markdown};
        let mut out = format!("## {}\n\ncluster {}, {}\n", markdown(&self.summary()), markdown(&self.cluster), self.at);
        for finding in &self.findings {
            let cause = &finding.cause;
            out.push_str(&format!("\n### `{}`\n\n{}\n\n", cause.code, markdown(&cause.claim)));
            out.push_str(&format!("- {} paths, among them {}\n", finding.paths, markdown(&finding.named.join(", "))));
            out.push_str(&format!("- **Fix:** {}\n", markdown(&cause.fix.text)));
            out.extend(cause.fix.commands.iter().map(|command| format!("- {}\n", code_span(command))));
        }
        if !self.unexplained.is_empty() {
            out.push_str("\n### Seen, not explained\n\n");
            let lines = self.unexplained.iter();
            out.extend(lines.map(|one| format!("- {}: {}\n", markdown(&one.failing.words()), code_span(&one.ask))));
        }
        if !self.not_seen.is_empty() {
            out.push_str("\n### Not seen\n\n");
            let gaps = self.not_seen.iter().map(|gap| format!("{}: {}; {}", gap.what, gap.why, gap.remedy));
            out.extend(gaps.map(|gap| format!("- {}\n", markdown(&gap))));
        }
        out
    }
}
