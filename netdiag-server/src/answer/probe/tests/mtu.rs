//! The path MTU there and back, and what to set.

use netdiag_common::observation::series::{PathMtuProbe, PathMtuReport};

use super::*;

/// 1500 bytes everywhere; a way that fails as too big has a black hole behind node n2, one that is unreachable a router that says so.
pub(super) fn searched(number: u32, probe: &PathMtuProbe, class: Option<FailureClass>) -> SeriesAttempt {
    let address = |text: &str| Some(text.parse().expect("an address"));
    let whole = PathMtuReport { path_mtu: Some(1_500), device_mtu: Some(1_500), ..PathMtuReport::default() };
    let said = IcmpError { kind: 3, code: 4, words: "fragmentation needed".to_owned(), mtu: Some(1_400) };
    let report = match class {
        Some(FailureClass::TooBig) => {
            PathMtuReport { path_mtu: Some(1_450), black_hole: true, last_hop: address("172.30.0.12"), ..whole }
        }
        Some(_) => PathMtuReport { path_mtu: Some(1_400), said_by: address("172.30.0.1"), said: Some(said), ..whole },
        None => whole,
    };
    let failure = report.black_hole.then(|| ProbeFailure {
        stage: ProbeStage::Answer,
        class: FailureClass::TooBig,
        errno: None,
        said_by: None,
        icmp: None,
        why: "packets above 1450 bytes vanish".to_owned(),
    });
    SeriesAttempt {
        number,
        at_us: 0,
        elapsed_us: 900,
        source: None,
        to: Some(probe.to),
        endpoint: None,
        failure,
        report: ProbeReport::PathMtu(report),
    }
}

async fn asked_mtu(to: &str, broken: &[((&'static str, &'static str), FailureClass)]) -> ProbeAnswer {
    asked_for(&ProbeRequest::new(Kind::Mtu, "pod/shop/client", to), broken).await
}

#[tokio::test]
async fn each_way_has_its_own_value_and_what_to_set() {
    let broken =
        [(("client", "10.244.2.5:0"), FailureClass::TooBig), (("web-2", "10.244.1.2:0"), FailureClass::Unreachable)];
    let answer = asked_mtu("pod/shop/web-2", &broken).await;
    assert_eq!(answer.status, ProbeStatus::Failed);
    let of = |index: usize| answer.series[index].mtu.clone().expect("a value");
    let (there, back) = (of(0), of(1));
    assert_eq!(
        (there.path_mtu, there.set_mtu, there.set_mss, there.back_of.as_str()),
        (1_450, Some(1_450), Some(1_410), "")
    );
    assert_eq!((back.path_mtu, back.set_mtu, back.set_mss), (1_400, Some(1_400), Some(1_360)));
    assert_eq!((back.from.as_str(), &back.back_of), ("pod/shop/web-2 on n2", &answer.series[0].to));
    assert!(
        there.words.starts_with(
            "set the MTU of the pods' interfaces on node n1 (the CNI plugin's setting) to 1450 instead of 1500"
        ),
        "{}",
        there.words
    );
    assert!(
        there.words.ends_with("larger packets vanish behind 172.30.0.12 (node n2) and nobody says so"),
        "{}",
        there.words
    );
    assert!(
        answer.verdict.ends_with(
            "1450 bytes there and 1400 bytes back: the two ways differ, so keep to the smaller one, 1400, on both"
        ),
        "{}",
        answer.verdict
    );
    let text = answer.text(Paint::Plain);
    assert!(text.contains("\n10.244.1.2, back from pod/shop/web-2\n"), "{text}");
    assert!(text.contains("\nadvice      set the MTU of the pods' interfaces on node n1"), "{text}");
    let value: Value = serde_json::to_value(&answer).expect("JSON");
    jsonschema::validate(&crate::answer::schema::of::<ProbeAnswer>(PROBE_SCHEMA), &value).expect("as the schema says");
}

#[tokio::test]
async fn nothing_is_to_be_set_where_whole_packets_get_through() {
    let answer = asked_mtu("pod/shop/web-2", &[]).await;
    assert_eq!(
        (answer.status, answer.verdict.as_str()),
        (ProbeStatus::Well, "path MTU to 10.244.2.5: 1500 bytes there and back")
    );
    let there = answer.series[0].mtu.clone().expect("a value");
    assert_eq!((there.set_mtu, there.set_mss), (None, None));
    assert!(there.words.starts_with("nothing to set"), "{}", there.words);
}

#[tokio::test]
async fn a_search_that_is_followed_tells_of_the_way_back_that_nobody_searched_it() {
    for (to, told) in [("pod/shop/web-2", 1), ("172.30.0.12", 0)] {
        let mut request = ProbeRequest::new(Kind::Mtu, "pod/shop/client", to);
        request.follow = true;
        let answer = asked_for(&request, &[]).await;
        assert_eq!(answer.series.len(), 1, "{:?}", answer.series);
        let unseen = &answer.series[0].tally.unseen;
        let of_way_back = unseen.iter().filter(|why| why.starts_with("the path MTU of the way back: ")).count();
        assert_eq!((of_way_back, unseen.len()), (told, told), "{to}: {unseen:?}");
    }
}

#[tokio::test]
async fn a_target_that_is_no_pod_is_measured_one_way() {
    let answer = asked_mtu("172.30.0.12", &[]).await;
    assert_eq!(answer.series.len(), 1, "{:?}", answer.series);
}
