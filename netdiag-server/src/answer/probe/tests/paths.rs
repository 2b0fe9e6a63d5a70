//! Hops, and whether as many lead back.

use netdiag_common::observation::series::PathReport;
use netdiag_common::observation::series::path::Hop;

use super::*;
use crate::probe::tally::AttemptEntry;

fn way(last: u8, back_hops: Option<u8>, reached: bool) -> String {
    let hop = |ttl| Hop { ttl, addresses: Vec::new(), sent: 1, answered: 1, rtt_us: None, said: None };
    let report = PathReport { hops: (1..=last).map(hop).collect(), reached, back_hops };
    let attempt = AttemptEntry {
        number: 0,
        at_us: 0,
        elapsed_us: 900,
        source: String::new(),
        to: "10.244.2.5".to_owned(),
        endpoint: String::new(),
        failure: None,
        report: serde_json::to_value(ProbeReport::Path(report)).expect("JSON"),
    };
    let tally = Tally { asked: 1, made: 1, succeeded: 1, attempts: vec![attempt], ..Tally::default() };
    words::details(&tally, &world()).swap_remove(0).text
}

#[test]
fn a_way_back_of_another_length_is_told() {
    assert_eq!(way(3, Some(3), true), "the target answers, 3 hops away, and as many back by its answer's TTL");
    assert!(way(3, Some(5), true).contains("3 hops away, and 5 back by its answer's TTL: the ways differ"));
    assert_eq!(way(2, None, true), "the target answers, 2 hops away");
    assert_eq!(way(4, None, false), "the target does not answer");
}
