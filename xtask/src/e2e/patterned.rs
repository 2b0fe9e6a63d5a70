//! The case `patterned`: what the matrix of probes looks like under faults (the catalogue's signatures), each made in a cluster
//! whose pods hang at bridges. One row each in `patterns.yaml`.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde::Deserialize;
use serde_json::Value;

use super::case::Step;
use super::fault::{Fault, usual_client};
use super::{Subject, client, probed};
use crate::cluster::{Cluster, Cni, Options, ProxyMode};
use crate::install::Installed;

pub(super) const SUBJECT: Subject = Subject {
    name: "patterned",
    about: "the matrix of probes shows each fault's own pattern",
    // The catalogue's signatures are those of this mode.
    home: Some(ProxyMode::Iptables),
    run,
};

/// A fault must show within this: a kubelet's readiness probe and kube-proxy have had their time.
const SHOWS_WITHIN: Duration = Duration::from_mins(1);

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct Pattern {
    /// The row of the catalogue.
    fault: String,
    inject: Vec<Step>,
    restore: Vec<Step>,
    #[serde(default = "usual_client")]
    from: String,
    #[serde(default = "usual_service")]
    to: String,
    /// One word for each column: a mark of the matrix, `some ` and a mark where only some attempts fail, marks of equal right
    /// with `|` between them, or `any` with the reason above the row.
    signature: Vec<String>,
}

fn usual_service() -> String {
    "service/shop/web:80".to_owned()
}

fn load() -> Result<Vec<Pattern>> {
    serde_saphyr::from_str(include_str!("patterns.yaml")).context("in patterns.yaml")
}

/// Runs in a cluster of its own.
fn run(prefix: &str, mode: ProxyMode, keep: bool) -> Result<Vec<String>> {
    let name = format!("{prefix}m{}", &mode.name()[..3]);
    let options = Options { name, mode, cni: Cni::Bridge, ..Options::default() };
    super::in_own_cluster(&options, keep, in_cluster)
}

fn in_cluster(cluster: &Cluster) -> Result<Vec<String>> {
    super::deploy_world(cluster)?;
    let installed = super::install_on_n1(cluster)?;
    let mut wrong = Vec::new();
    for pattern in load()? {
        let fault = Fault { name: &pattern.fault, inject: &pattern.inject, restore: &pattern.restore };
        wrong.extend(fault.under(cluster, || shows(cluster, &installed, &pattern))?);
    }
    client::is_well(cluster).context("after the last fault")?;
    Ok(wrong)
}

/// Asks until the matrix has the fault's pattern; else says what it had last.
fn shows(cluster: &Cluster, installed: &Installed, pattern: &Pattern) -> Result<Option<String>> {
    let started = Instant::now();
    loop {
        let words = ["matrix", "--family", "ipv4"];
        let answer = probed::probe(cluster, installed, &words, &pattern.from, &pattern.to)?;
        let marks = signature(&answer);
        if matches(&pattern.signature, &marks) {
            return Ok(None);
        }
        if started.elapsed() > SHOWS_WITHIN {
            let not_seen = &answer["not_seen"];
            return Ok(Some(format!("{marks:?} instead of {:?}: {}, {not_seen}", pattern.signature, answer["matrix"])));
        }
    }
}

/// The marks of the last row, which is that of the signature.
fn signature(answer: &Value) -> Vec<String> {
    let rows = answer["matrix"]["rows"].as_array().map_or(&[][..], Vec::as_slice);
    let row = rows.iter().find(|row| row["from"] == "signature");
    let cells = row.and_then(|row| row["cells"].as_array()).map_or(&[][..], Vec::as_slice);
    cells.iter().map(|cell| cell["mark"].as_str().unwrap_or_default().to_owned()).collect()
}

fn matches(wanted: &[String], marks: &[String]) -> bool {
    let is_one_of = |wanted: &str, mark: &str| {
        wanted == "any"
            || wanted.split('|').any(|one| match (one.strip_prefix("some "), mark.split_once(' ')) {
                (Some(kind), Some((_, failed))) => kind == failed,
                (None, None) => one == mark,
                _ => false,
            })
    };
    wanted.len() == marks.len() && wanted.iter().zip(marks).all(|(wanted, mark)| is_one_of(wanted, mark))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Columns of the matrix.
    const COLUMNS: usize = 8;

    #[test]
    fn each_pattern_has_all_columns_is_put_back_and_is_no_other() {
        let all = load().unwrap();
        for pattern in &all {
            assert_eq!(pattern.signature.len(), COLUMNS, "{}", pattern.fault);
            assert!(pattern.inject.is_empty() || !pattern.restore.is_empty(), "{}", pattern.fault);
            let same: Vec<&str> = all
                .iter()
                .filter(|other| other.signature == pattern.signature)
                .map(|other| other.fault.as_str())
                .collect();
            assert_eq!(same, [pattern.fault.as_str()]);
        }
    }

    #[test]
    fn marks_are_compared_by_kind_and_by_how_many() {
        let wanted: Vec<String> = ["✓", "some ✗t|some ✗n", "any"].map(str::to_owned).to_vec();
        let is_it = |marks: [&str; 3]| matches(&wanted, &marks.map(str::to_owned));
        assert!(is_it(["✓", "3/9 ✗n", "–"]));
        for other in [["✗t", "3/9 ✗t", "–"], ["✓", "✗t", "–"], ["✓", "3/9 ✗r", "–"]] {
            assert!(!is_it(other), "{other:?}");
        }
        assert!(!matches(&wanted, &["✓".to_owned()]), "a matrix with fewer columns");
    }
}
