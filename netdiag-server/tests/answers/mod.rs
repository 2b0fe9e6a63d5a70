//! What every story ends in, as people and agents read it: valid against its schema, within a page, nothing unsaid.

use crate::story::{Story, stories};
use netdiag_server::answer::{self, Answer, Paint, StatusName, markdown, schema, text};
use netdiag_server::ask::{self, Inquiry, Step};

fn answered(story: &Story) -> Answer {
    let ending = story.run();
    let (judged, _) = ask::judge(&ending.question, &ending.evidence).expect("it was judged before");
    let steps: Vec<Step> =
        ending.evidence.readings().map(|(need, reading)| Step::new(1, need, reading, &ending.evidence)).collect();
    answer::build(&Inquiry { judged, evidence: ending.evidence, steps: steps.into() })
}

#[test]
fn answers_scans_and_statuses_hold_to_their_schemas() {
    let schemas = schema::all().map(|(name, schema)| (name, jsonschema::validator_for(&schema).expect("a schema")));
    let of = |name: &str| &schemas.iter().find(|(known, _)| *known == name).expect("a schema of this name").1;
    let (of_answer, of_scan, of_status) = (of("answer.v1.json"), of("scan.v1.json"), of("status.v1.json"));
    for story in stories() {
        let answer = serde_json::to_value(answered(&story)).expect("an answer is JSON");
        let wrong: Vec<String> = of_answer.iter_errors(&answer).map(|error| error.to_string()).collect();
        assert!(wrong.is_empty(), "{} / {}: {wrong:?}", story.fixture, story.title);

        let ending = story.run();
        let (judged, _) = ask::judge(&ending.question, &ending.evidence).expect("it was judged before");
        let now = ending.evidence.now;
        let inquiry = Inquiry { judged, evidence: ending.evidence, steps: Vec::new().into() };
        let scanned = ask::Scanned { inquiries: vec![inquiry], left_out: 1, unexplained: Vec::new(), gaps: Vec::new() };
        let scan = answer::scan::build_scan(&scanned, "", now, "story");
        let scan = serde_json::to_value(scan).expect("a scan is JSON");
        assert!(of_scan.is_valid(&scan), "{} / {}: {scan}", story.fixture, story.title);
    }
    let at = "2026-01-01T12:00:00Z".parse().expect("a time");
    let status = answer::status::Status::new("story", at, vec![answer::status::NodeStatus::default()], Vec::new());
    assert!(of_status.is_valid(&serde_json::to_value(status).expect("a status is JSON")));
}

#[test]
fn every_field_that_agents_rely_on_is_required() {
    let [(_, schema), ..] = schema::all();
    let required = |pointer: &str| -> Vec<String> {
        serde_json::from_value(schema.pointer(pointer).expect(pointer).clone()).expect("a list of names")
    };
    let top = required("/required");
    for field in [
        "schema",
        "asked",
        "cluster",
        "at",
        "window_s",
        "status",
        "confidence",
        "completeness",
        "causes",
        "consequences",
        "excluded",
        "not_seen",
        "steps",
        "path",
    ] {
        assert!(top.iter().any(|name| name == field), "{field} is not required");
    }
    let cause = required("/properties/causes/items/required");
    for field in ["code", "title", "severity", "confidence", "subjects", "since", "claim", "proof", "fix"] {
        assert!(cause.iter().any(|name| name == field), "causes[].{field} is not required: {cause:?}");
    }
}

#[test]
fn claims_and_fixes_follow_the_grammar() {
    for story in stories() {
        let answer = answered(&story);
        let place = format!("{} / {}", story.fixture, story.title);
        for cause in answer.causes.iter().chain(&answer.consequences) {
            assert!(!cause.claim.ends_with('.'), "{place}: the claim ends with a full stop: {}", cause.claim);
            assert!(!cause.proof.is_empty(), "{place}: {} has no proof", cause.code);
            assert!(cause.fix.verify.starts_with("netdiag "), "{place}: no way to verify: {:?}", cause.fix.verify);
            assert!(!cause.subjects.is_empty(), "{place}: {} blames nothing", cause.code);
            assert!(cause.subjects.iter().all(|subject| !subject.cluster.is_empty()), "{place}: no cluster");
        }
        for excluded in &answer.excluded {
            assert!(!excluded.because.is_empty() && !excluded.because.ends_with('.'), "{place}: {excluded:?}");
        }
    }
}

#[test]
fn texts_stay_within_the_page_and_paths_mark_what_is_broken() {
    for story in stories() {
        let answer = answered(&story);
        let place = format!("{} / {}", story.fixture, story.title);
        let commands: Vec<&String> =
            answer.causes.iter().flat_map(|cause| cause.fix.commands.iter().chain([&cause.fix.verify])).collect();
        for line in text::render(&answer, Paint::Plain).lines() {
            let is_command = commands.iter().any(|command| line.ends_with(command.as_str()));
            assert!(line.chars().count() <= 100 || is_command, "{place}: {line}");
        }
        let chart = markdown::render(&answer);
        if answer.status == StatusName::Broken {
            assert!(chart.contains(":::broken"), "{place}: nothing is marked broken\n{chart}");
        }
        if answer.status == StatusName::Unknown {
            let text = text::render(&answer, Paint::Plain);
            let said = text.contains("could not") || text.contains("symptom");
            assert!(said, "{place}: unknown without saying what is missing\n{text}");
        }
    }
}
