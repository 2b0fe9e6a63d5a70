//! What clients see (the catalogue's client symptoms): each is made in the world, and a probe must tell its class, errno, stage
//! and time. One row each in `symptoms.yaml`.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde::Deserialize;
use serde_json::Value;

use super::case::Step;
use super::fault::{Fault, usual_client};
use super::{client, probed};
use crate::cluster::Cluster;
use crate::install::Installed;

/// A fault must show within this: kube-proxy and CoreDNS have had their time.
const SHOWS_WITHIN: Duration = Duration::from_secs(40);
const POLL: Duration = Duration::from_millis(500);

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct Symptom {
    /// The row of the catalogue.
    sees: String,
    /// It is another branch of the row before it.
    #[serde(default)]
    #[cfg_attr(not(test), expect(dead_code, reason = "a test counts the others"))]
    also: bool,
    inject: Vec<Step>,
    restore: Vec<Step>,
    /// `netdiag probe`'s words without source and target.
    probe: Vec<String>,
    #[serde(default = "usual_client")]
    from: String,
    to: String,
    /// Of the target's addresses, each of which must show it: `ipv4`, `ipv6`. Empty where no family is asked for.
    #[serde(default)]
    families: Vec<String>,
    expect: Expect,
}

/// What one kind of failure of some series must be. What is not named may be anything.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct Expect {
    class: String,
    /// Empty where the kernel names none.
    #[serde(default)]
    errno: Option<String>,
    stage: String,
    /// Of one attempt, milliseconds.
    at_least_ms: u64,
    at_most_ms: u64,
    /// Some attempts get through.
    #[serde(default)]
    some: bool,
    /// Words that the answer must hold.
    #[serde(default)]
    says: Vec<String>,
}

fn load() -> Result<Vec<Symptom>> {
    serde_saphyr::from_str(include_str!("symptoms.yaml")).context("in symptoms.yaml")
}

/// What is wrong; empty when nothing is. Each begins and ends with a world that is well.
pub(super) fn run(cluster: &Cluster, installed: &Installed) -> Result<Vec<String>> {
    let mut wrong = Vec::new();
    for symptom in load()? {
        let fault = Fault { name: &symptom.sees, inject: &symptom.inject, restore: &symptom.restore };
        wrong.extend(fault.under(cluster, || shows(cluster, installed, &symptom))?);
    }
    client::is_well(cluster).context("after the last symptom")?;
    Ok(wrong)
}

/// In each family.
fn shows(cluster: &Cluster, installed: &Installed, symptom: &Symptom) -> Result<Option<String>> {
    let words: Vec<&str> = symptom.probe.iter().map(String::as_str).collect();
    if symptom.families.is_empty() {
        return shows_by(cluster, installed, symptom, &words);
    }
    for family in &symptom.families {
        let words = [&words[..], &["--family", family.as_str()]].concat();
        if let Some(wrong) = shows_by(cluster, installed, symptom, &words)? {
            return Ok(Some(format!("{family}: {wrong}")));
        }
    }
    Ok(None)
}

/// Asks until the fault shows as it must; else says what was told last.
fn shows_by(cluster: &Cluster, installed: &Installed, symptom: &Symptom, words: &[&str]) -> Result<Option<String>> {
    let started = Instant::now();
    loop {
        let answer = probed::probe(cluster, installed, words, &symptom.from, &symptom.to)?;
        if is_told(&answer, &symptom.expect) {
            return Ok(None);
        }
        if started.elapsed() > SHOWS_WITHIN {
            return Ok(Some(format!("instead of {:?}: {}: {answer}", symptom.expect, answer["verdict"])));
        }
        std::thread::sleep(POLL);
    }
}

fn is_told(answer: &Value, expect: &Expect) -> bool {
    let series = answer["series"].as_array().map_or(&[][..], Vec::as_slice);
    let is_it = |failure: &Value| {
        let ms = |key: &str| failure[key].as_u64().unwrap_or(u64::MAX) / 1_000;
        failure["class"] == expect.class.as_str()
            && failure["stage"] == expect.stage.as_str()
            && expect.errno.as_ref().is_none_or(|errno| failure["errno"] == errno.as_str())
            && ms("min_us") >= expect.at_least_ms
            && ms("max_us") <= expect.at_most_ms
    };
    let shown = series.iter().any(|series| {
        let tally = &series["tally"];
        let failures = tally["failures"].as_array().map_or(&[][..], Vec::as_slice);
        let some = tally["succeeded"].as_u64().unwrap_or_default() > 0;
        failures.iter().any(is_it) && some == expect.some
    });
    let text = answer.to_string();
    shown && expect.says.iter().all(|words| text.contains(words.as_str()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_of_the_catalogue_is_there_and_put_back() {
        let all = load().unwrap();
        assert_eq!(all.iter().filter(|symptom| !symptom.also).count(), 15);
        for symptom in &all {
            let has_known = symptom.families.iter().all(|family| ["ipv4", "ipv6"].contains(&family.as_str()));
            assert!(has_known && !symptom.probe.iter().any(|word| word == "--family"), "{}", symptom.sees);
            assert!(symptom.inject.is_empty() || !symptom.restore.is_empty(), "{}", symptom.sees);
            assert!(symptom.expect.at_least_ms < symptom.expect.at_most_ms, "{}", symptom.sees);
        }
    }

    #[test]
    fn an_answer_is_compared_in_every_word() {
        let expect: Expect = serde_saphyr::from_str(
            "{class: refused, errno: ECONNREFUSED, stage: connect, at_least_ms: 0, at_most_ms: 5}",
        )
        .unwrap();
        let answer = |class: &str, max_us: u64, succeeded: u64| {
            serde_json::json!({"series": [{"tally": {"succeeded": succeeded, "failures": [
                {"class": class, "errno": "ECONNREFUSED", "stage": "connect", "min_us": 100, "max_us": max_us}]}}]})
        };
        assert!(is_told(&answer("refused", 900, 0), &expect));
        for other in [answer("silence", 900, 0), answer("refused", 90_000, 0), answer("refused", 900, 3)] {
            assert!(!is_told(&other, &expect), "{other}");
        }
    }
}
