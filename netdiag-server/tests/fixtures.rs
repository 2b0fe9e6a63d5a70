//! All conditions run on all stories: what a story does not expect must not be found.

mod answers;
mod story;

use std::collections::BTreeSet;

use netdiag_server::ask;
use netdiag_server::condition::{self, Read};
use netdiag_server::correlate::{Cause, Status};
use netdiag_server::evidence::View;
use netdiag_server::path;
use story::{Expected, Story, stories};

#[test]
fn every_story_ends_as_it_says() {
    let mut wrong = Vec::new();
    let stories = stories();
    assert!(!stories.is_empty(), "there are no stories");
    for story in &stories {
        let differences = differences(story);
        if !differences.is_empty() {
            wrong.push(format!("{} / {}\n  {}", story.fixture, story.title, differences.join("\n  ")));
        }
    }
    assert!(wrong.is_empty(), "{} of {} stories end otherwise:\n{}", wrong.len(), stories.len(), wrong.join("\n"));
}

#[test]
fn conditions_and_the_symptom_read_what_they_declare_and_nothing_else() {
    let mut actual: Vec<(&str, BTreeSet<String>)> = condition::ALL.iter().map(|c| (c.code, BTreeSet::new())).collect();
    let mut of_symptom = BTreeSet::new();
    for story in stories() {
        let ending = story.run();
        let (judged, _) = ask::judge(&ending.question, &ending.evidence).expect("it was judged before");
        for (condition, (_, reads)) in condition::ALL.iter().zip(&mut actual) {
            let mut view = View::new(&ending.evidence);
            (condition.judge)(&judged.path, &mut view);
            reads.extend(view.kinds_read().iter().map(|kind| kind.name().to_owned()));
            reads.extend(view.topics_read().iter().map(|need| need.topic.name().to_owned()));
        }
        let mut view = View::new(&ending.evidence);
        path::symptom(&judged.path, &mut view);
        of_symptom.extend(view.topics_read().iter().map(|need| need.topic.name()));
    }
    assert_eq!(of_symptom, BTreeSet::from(path::SYMPTOM_READS), "the symptom: read on the left, declared on the right");
    for (condition, (_, reads)) in condition::ALL.iter().zip(actual) {
        let declared: BTreeSet<String> = condition
            .reads
            .iter()
            .map(|read| match read {
                Read::Kind(kind) => kind.name().to_owned(),
                Read::Topic(topic) => (*topic).to_owned(),
            })
            .collect();
        assert_eq!(declared, reads, "{}: declared on the left, read in the stories on the right", condition.code);
    }
}

fn differences(story: &Story) -> Vec<String> {
    let ending = story.run();
    let mut differences = Vec::new();
    let status = match ending.correlated.status {
        Status::Broken => "broken",
        Status::Degraded => "degraded",
        Status::Healthy => "healthy",
        Status::Unknown => "unknown",
    };
    if status != story.expect.status {
        differences.push(format!("status is {status}, not {}", story.expect.status));
    }
    compare("cause", &story.expect.causes, &ending.correlated.causes, &mut differences);
    compare("consequence", &story.expect.consequences, &ending.correlated.consequences, &mut differences);
    for code in story.expect.unknown.iter().filter(|code| !ending.unknown.contains(&code.as_str())) {
        differences.push(format!("{code} is not among those that cannot tell: {:?}", ending.unknown));
    }
    for code in &story.expect.not_excluded {
        let excluded = ending.correlated.excluded.iter().filter(|(excluded, _)| excluded == code);
        differences.extend(excluded.map(|(code, because)| format!("{code} is excluded: {because}")));
    }
    if story.expect.confidence_at_most.is_some_and(|most| ending.correlated.confidence > most) {
        differences.push(format!("the answer's confidence is {}", ending.correlated.confidence));
    }
    differences
}

fn compare(word: &str, expected: &[Expected], found: &[Cause], differences: &mut Vec<String>) {
    for cause in found.iter().filter(|cause| !expected.iter().any(|e| e.code == cause.condition.code)) {
        differences.push(format!("unexpected {word} {}: {}", cause.condition.code, cause.finding.claim));
    }
    for expected in expected {
        let Some(cause) = found.iter().find(|cause| cause.condition.code == expected.code) else {
            differences.push(format!("{word} {} was not found", expected.code));
            continue;
        };
        let subjects: Vec<String> = cause.finding.subjects.iter().map(ToString::to_string).collect();
        if subjects != expected.subjects {
            differences.push(format!("{}: subjects are {subjects:?}, not {:?}", expected.code, expected.subjects));
        }
        for words in expected.says.iter().filter(|words| !cause.finding.claim.contains(words.as_str())) {
            differences.push(format!("{}: the claim does not say {words:?}: {}", expected.code, cause.finding.claim));
        }
        let proofs: Vec<&str> = cause.finding.proofs.iter().map(|proof| proof.text.as_str()).collect();
        for words in expected.proves.iter().filter(|words| !proofs.iter().any(|proof| proof.contains(words.as_str()))) {
            differences.push(format!("{}: no proof says {words:?}: {proofs:?}", expected.code));
        }
        if expected.confidence_at_least.is_some_and(|least| cause.confidence < least)
            || expected.confidence_at_most.is_some_and(|most| cause.confidence > most)
        {
            differences.push(format!("{}: confidence is {}", expected.code, cause.confidence));
        }
    }
}
