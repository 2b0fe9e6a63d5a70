use super::*;

#[test]
fn counts_add_up_or_are_told_apart() {
    let mut counts = Counts { scheduled: 10, answered: 6, untried: 1, open: 1, ..Counts::default() };
    counts.failed.insert(FailureClass::NoAnswer, 2);
    assert!(counts.is_balanced());
    assert_eq!((counts.failures(), counts.told()), (2, 8));
    let mut twice = counts.clone();
    twice.add(&counts);
    assert!(twice.is_balanced());
    assert_eq!((twice.scheduled, twice.failed[&FailureClass::NoAnswer]), (20, 4));
    twice.answered = u64::MAX;
    assert!(!twice.is_balanced(), "also when the terms overflow");
}

#[test]
fn a_request_reads_as_it_was_written() {
    let probe = TargetProbe::Dns {
        server: IpAddr::from([10, 96, 0, 10]),
        port: 53,
        name: "kubernetes.default.svc.cluster.local".to_owned(),
        record: DnsRecord::A,
    };
    let request = MeshRequest::Assign(Assignment {
        asker: "a".to_owned(),
        generation: 3,
        interval_ms: 2_000,
        timeout_ms: 1_000,
        lease_ms: 60_000,
        targets: vec![Target::new("dns/10.96.0.10:53/dns".to_owned(), probe)],
    });
    let text = serde_json::to_string(&request).unwrap();
    assert!(text.starts_with(r#"{"action":"assign","asker":"a","#), "{text}");
    assert!(!text.contains("every"), "an agent of before reads it: {text}");
    assert_eq!(serde_json::from_str::<MeshRequest>(&text).unwrap(), request);
    let probe = TargetProbe::Http {
        url: "http://web.shop.svc.cluster.local/".to_owned(),
        dns: Some(IpAddr::from([10, 96, 0, 10])),
        expect: vec![200],
        authorities: None,
    };
    let target = Target { every: 5, timeout_ms: Some(3_000), ..Target::new("user/web/http".to_owned(), probe) };
    let text = serde_json::to_string(&target).unwrap();
    assert_eq!(serde_json::from_str::<Target>(&text).unwrap(), target, "{text}");
}

#[test]
fn what_is_probed_less_often_costs_less() {
    let probe = TargetProbe::Icmp { address: IpAddr::from([10, 0, 0, 1]) };
    let often = Target::new("a".to_owned(), probe.clone());
    let seldom = Target { every: 10, ..Target::new("b".to_owned(), probe) };
    let assignment = Assignment {
        asker: "a".to_owned(),
        generation: 0,
        interval_ms: 2_000,
        timeout_ms: 1_000,
        lease_ms: 1,
        targets: vec![often, seldom],
    };
    assert_eq!(assignment.attempts_per_1000s(), 500 + 50);
}

#[test]
fn the_whole_attempt_is_told_apart_from_its_parts() {
    let report = |phases: &[Phase]| TargetReport {
        name: String::new(),
        counts: Counts::default(),
        phases: phases.iter().map(|phase| (*phase, Times::default())).collect(),
    };
    for (phases, whole) in [
        (&[Phase::Echo][..], Some(Phase::Echo)),
        (&[Phase::Connect, Phase::Tls, Phase::Total], Some(Phase::Total)),
        (&[], None),
    ] {
        assert_eq!(report(phases).whole().map(|(phase, _)| phase), whole);
    }
    let all = [Phase::Lookup, Phase::Connect, Phase::Echo, Phase::Answer, Phase::Tls, Phase::FirstByte, Phase::Total];
    for phase in all {
        assert_eq!(serde_json::to_value(phase).unwrap(), phase.name());
    }
}

#[test]
fn names_of_failures_are_those_of_the_wire() {
    for class in [
        FailureClass::Refused,
        FailureClass::Unreachable,
        FailureClass::NoAnswer,
        FailureClass::BadAnswer,
        FailureClass::NotSent,
    ] {
        assert_eq!(serde_json::to_value(class).unwrap(), class.name());
    }
}

#[test]
fn what_many_or_nobody_would_answer_is_no_host() {
    for text in ["0.0.0.0", "::", "224.0.0.1", "ff02::1", "255.255.255.255", "fe80::1"] {
        assert!(not_a_host(text.parse().unwrap()).is_some(), "{text}");
    }
    for text in ["10.0.0.255", "127.0.0.1", "fd00::1", "2001:db8::1"] {
        assert_eq!(not_a_host(text.parse().unwrap()), None, "{text}");
    }
}
