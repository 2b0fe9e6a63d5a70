use netdiag_common::observation::series::{ProbeFailure, ProbeReport};

use super::*;

fn attempt(number: u32, endpoint: &str, fails: bool) -> SeriesAttempt {
    let failure = ProbeFailure {
        stage: ProbeStage::Connect,
        class: FailureClass::Refused,
        errno: Some("ECONNREFUSED".to_owned()),
        said_by: Some([10, 244, 2, 5].into()),
        icmp: None,
        why: "refused by a reset".to_owned(),
    };
    SeriesAttempt {
        number,
        at_us: 0,
        elapsed_us: 100 + u64::from(number),
        source: None,
        to: Some(([10, 96, 0, 80], 80).into()),
        endpoint: Some(endpoint.parse().expect("an endpoint")),
        failure: fails.then_some(failure),
        report: ProbeReport::Nothing,
    }
}

fn histogram(values: &[u64]) -> Histogram<u64> {
    let mut histogram = Histogram::new_with_bounds(1, 60_000_000, 3).expect("bounds");
    for value in values {
        histogram.record(*value).expect("within bounds");
    }
    histogram
}

fn result(values: &[u64], failed: u32) -> SeriesResult {
    let succeeded = u32::try_from(values.len()).expect("few");
    let good = (0..succeeded).map(|number| attempt(number, "10.244.1.4:8080", false));
    let bad = (succeeded..succeeded + failed).map(|number| attempt(number, "10.244.2.5:8080", true));
    let spread = histogram(values);
    SeriesResult {
        asked: succeeded + failed,
        made: succeeded + failed,
        succeeded,
        failed,
        untried: 0,
        untried_because: None,
        late: 0,
        attempts: good.chain(bad).collect(),
        not_kept: 0,
        times: vec![PhaseTimes {
            phase: "connect".to_owned(),
            count: u64::from(succeeded),
            min_us: spread.min(),
            p50_us: spread.value_at_quantile(0.5),
            p90_us: spread.value_at_quantile(0.9),
            p99_us: spread.value_at_quantile(0.99),
            max_us: spread.max(),
            histogram: encoded(&spread).expect("a histogram"),
        }],
        entered_us: Some(100),
        unseen: Vec::new(),
    }
}

fn tally(values: &[u64], failed: u32) -> Tally {
    Tally::of(&result(values, failed), |_| String::new())
}

#[test]
fn two_parts_are_what_one_series_would_have_been() {
    let mut joined = tally(&[100, 200, 300], 2);
    joined.join(tally(&[400, 50_000], 1), 7_000);
    let whole = tally(&[100, 200, 300, 400, 50_000], 3);
    let (of_joined, of_whole) = (&joined.times[0], &whole.times[0]);
    assert_eq!(decoded(&of_joined.histogram).expect("decodes"), decoded(&of_whole.histogram).expect("decodes"));
    assert_eq!(
        (of_joined.count, of_joined.p50_us, of_joined.p99_us),
        (of_whole.count, of_whole.p50_us, of_whole.p99_us)
    );
    assert_eq!((joined.asked, joined.made, joined.succeeded, joined.failed), (8, 8, 5, 3));
    assert_eq!(joined.failures.len(), 1, "{:?}", joined.failures);
    assert_eq!((joined.failures[0].count, joined.failures[0].errno.as_str()), (3, "ECONNREFUSED"));
    assert_eq!(joined.endpoints.iter().map(|e| (e.made, e.failed)).collect::<Vec<_>>(), [(5, 0), (3, 3)]);
    assert_eq!(joined.attempts.last().map(|last| (last.number, last.at_us)), Some((7, 7_000)));
}

#[test]
fn failed_attempts_are_kept_before_others() {
    let values = vec![100; 900];
    let mut joined = tally(&values, 3);
    joined.join(tally(&values, 3), 1);
    assert_eq!(joined.attempts.len(), MAX_KEPT);
    assert_eq!(joined.made, joined.attempts.len() as u64 + joined.not_kept);
    assert_eq!(joined.attempts.iter().filter(|attempt| attempt.failure.is_some()).count(), 6);
}

#[test]
fn a_histogram_that_cannot_be_read_is_said_and_changes_nothing() {
    let mut joined = tally(&[100], 0);
    let mut strange = tally(&[200], 0);
    strange.times[0].histogram = "%".to_owned();
    joined.join(strange, 1);
    assert_eq!((joined.times[0].count, joined.succeeded), (1, 2));
    assert!(joined.unseen[0].contains("times of phase connect"), "{:?}", joined.unseen);
}

#[test]
fn what_was_not_tried_says_why() {
    let mut joined = tally(&[100], 0);
    joined.join(Tally::none(5, "the agent is at its limit"), 1);
    assert_eq!((joined.asked, joined.untried, joined.untried_because.as_str()), (6, 5, "the agent is at its limit"));
    assert!(!joined.is_well());
}
