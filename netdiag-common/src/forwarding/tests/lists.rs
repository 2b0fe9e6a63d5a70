//! Matches of iptables that decide by lists of addresses, and by the extension headers of IPv6.

use super::*;
use crate::forwarding::conntrack::TrackingSettings;
use crate::forwarding::packet::UDP;
use crate::forwarding::recent::RecentEntry;

const SET: u8 = 2;
const CHECK: u8 = 1;
const UPDATE: u8 = 4;
const REMOVE: u8 = 8;
const REAP: u8 = 32;

fn recent(flags: u8, seconds: u32, hits: u32) -> Expression {
    let mut info = vec![0; 228];
    info[..4].copy_from_slice(&seconds.to_ne_bytes());
    info[4..8].copy_from_slice(&hits.to_ne_bytes());
    info[8] = flags;
    info[10..14].copy_from_slice(b"seen");
    info[212..].fill(0xff);
    Expression::XtMatch { name: Arc::from("recent"), revision: 1, info }
}

/// Rules of which the last one drops, and a list with the packet's source and these ages.
fn listed(matches: Vec<Expression>, list: Fact<Option<Vec<u64>>>) -> RuleState {
    let last = matches.len();
    let rules = matches.into_iter().enumerate().map(|(at, found)| {
        let then = if at + 1 == last { Verdict::Drop } else { Verdict::Continue };
        rule(at as u64 + 1, vec![found, verdict(then)])
    });
    let mut state = state(rules.collect(), Vec::new());
    let address = "10.0.0.1".parse().unwrap();
    let entries = list.map(|ages| ages.map(|ages_ms| RecentEntry { address, hops: 64, ages_ms }).into_iter().collect());
    state.recent.0.insert("seen".to_owned(), entries);
    state
}

fn ends(state: &RuleState, packet: &Packet) -> Vec<End> {
    done(state, packet).paths.into_iter().map(|path| path.end).collect()
}

/// Whether the last rule is met, on every path in turn.
fn met(matches: Vec<Expression>, list: Fact<Option<Vec<u64>>>) -> Vec<bool> {
    let ends = ends(&listed(matches, list), &packet());
    ends.iter().map(|end| matches!(end, End::Dropped { .. })).collect()
}

#[test]
fn a_list_is_asked_for_when_a_rule_asks_for_it() {
    let mut state = listed(vec![recent(CHECK, 60, 0)], Fact::Known(None));
    state.recent.0.clear();
    assert_eq!(missing(&state, &packet()), [Key::Recent { list: "seen".to_owned() }]);
}

#[test]
fn an_address_is_on_a_list_as_often_and_as_late_as_a_rule_wants() {
    let ages = |ages: &[u64]| Fact::Known(Some(ages.to_vec()));
    assert_eq!(met(vec![recent(CHECK, 0, 0)], ages(&[900_000])), [true]);
    assert_eq!(met(vec![recent(CHECK, 0, 0)], Fact::Known(None)), [false]);
    assert_eq!(met(vec![recent(CHECK, 60, 0)], ages(&[900_000])), [false]);
    assert_eq!(met(vec![recent(CHECK, 60, 2)], ages(&[900_000, 5_000])), [false]);
    assert_eq!(met(vec![recent(CHECK, 60, 2)], ages(&[5_000, 6_000])), [true]);
    // As long ago as the rule's time, give or take what the clocks differ by.
    assert_eq!(met(vec![recent(CHECK, 60, 0)], ages(&[60_500])), [true, false]);
}

#[test]
fn a_packet_sees_what_it_has_changed_itself() {
    let ages = |ages: &[u64]| Fact::Known(Some(ages.to_vec()));
    assert_eq!(met(vec![recent(SET, 0, 0), recent(CHECK, 1, 0)], Fact::Known(None)), [true]);
    assert_eq!(met(vec![recent(SET, 0, 0), recent(UPDATE, 60, 3)], ages(&[5_000])), [false]);
    assert_eq!(met(vec![recent(SET, 0, 0), recent(UPDATE, 60, 3)], ages(&[5_000, 6_000])), [true]);
    assert_eq!(met(vec![recent(REMOVE, 0, 0), recent(CHECK, 0, 0)], ages(&[5_000])), [false]);
    // What is older than its rule's time may be removed by --reap, all else is not.
    assert_eq!(met(vec![recent(CHECK | REAP, 60, 0), recent(CHECK, 0, 0)], ages(&[5_000])), [true]);
    assert_eq!(met(vec![recent(CHECK | REAP, 60, 0), recent(CHECK, 0, 0)], ages(&[900_000])), [true, false]);
}

#[test]
fn a_list_that_cannot_be_read_leaves_both_ways_with_the_reason() {
    let state = listed(vec![recent(CHECK, 60, 0)], Fact::Unknown("list seen could not be read".into()));
    let paths = done(&state, &packet()).paths;
    assert_eq!(paths.len(), 2, "{paths:?}");
    let Assumption::Unknown { what, .. } = &paths[0].assumptions[0] else { panic!("{paths:?}") };
    assert_eq!(what, "list seen of match recent has 10.0.0.1 in the last 60 s, although list seen could not be read");
}

#[test]
fn synproxy_of_nft_answers_whatever_has_syn_and_that_of_iptables_what_begins_a_connection() {
    let native = vec![Expression::Synproxy];
    let target = vec![Expression::XtTarget { name: Arc::from("SYNPROXY"), revision: 0, info: vec![0; 4] }];
    let ends = |expressions: &[Expression], flags: u8| {
        let mut state = state(vec![rule(1, expressions.to_vec())], Vec::new());
        state.tracking_settings = Some(TrackingSettings { tcp_loose: Some(true), tcp_be_liberal: Some(false) });
        let mut packet = packet();
        packet.bytes[33] = flags;
        ends(&state, &packet)
    };
    for rules in [&native, &target] {
        assert!(matches!(ends(rules, 2)[..], [End::Taken { .. }]));
        assert!(matches!(ends(rules, 16)[..], [End::Taken { .. }, End::Dropped { .. }]));
        assert!(matches!(ends(rules, 4)[..], [End::Sent { .. }]));
    }
    // SYN and ACK at once.
    assert!(matches!(ends(&native, 18)[..], [End::Taken { .. }]));
    assert!(matches!(ends(&target, 18)[..], [End::Sent { .. }]));
}

/// A packet of IPv6 with these headers behind the first.
fn v6(next: u8, rest: &[u8]) -> Packet {
    let ends = ("fd01::2".parse().unwrap(), "fd02::2".parse().unwrap());
    Packet::between(Origin::Received { interface: 2 }, ends.0, ends.1, next, rest).unwrap()
}

/// Whether a match holds of a packet of IPv6, on every path in turn; none where it is dropped for its headers.
fn of_ipv6(name: &str, info: &[u8], packet: &Packet) -> Vec<Verdict> {
    let without = Without::new();
    let state = RuleState::default();
    let mut verdicts = Vec::new();
    let mut script = Some(Choices::default());
    while let Some(choices) = script {
        let mut run = Run::new(&state, &without, packet.clone(), Hook::Prerouting, choices);
        let expression = Expression::XtMatch { name: Arc::from(name), revision: 0, info: info.to_vec() };
        let Expression::XtMatch { name, revision, info } = &expression else { panic!("{expression:?}") };
        let Ok(verdict) = run.xt_match(name, *revision, info) else { panic!("{name} needs what was not read") };
        verdicts.push(verdict);
        script = run.choices.following();
    }
    verdicts
}

#[test]
fn a_packet_without_the_header_is_matched_by_no_rule_about_it() {
    let plain = v6(TCP, &tcp(1, 80, 2));
    // All bits of all options, and all of them negated.
    for info in [[0; 280], [0xff; 280]] {
        for name in ["rt", "frag", "hbh", "dst", "ah", "srh", "mh"] {
            assert_eq!(of_ipv6(name, &info, &plain), [Verdict::Break], "{name}");
        }
    }
    let mut routed = vec![TCP, 0, 0, 0, 0, 0, 0, 0];
    routed.extend(tcp(1, 80, 2));
    assert_eq!(of_ipv6("rt", &[0; 280], &v6(43, &routed)), [Verdict::Continue, Verdict::Break]);
    assert_eq!(of_ipv6("frag", &[0; 280], &v6(43, &routed)), [Verdict::Break]);
    let mut cut = v6(43, &routed);
    cut.bytes.truncate(41);
    assert_eq!(of_ipv6("frag", &[0; 280], &cut), [Verdict::Drop]);
}

#[test]
fn headers_are_those_wanted_or_among_others() {
    const PROTOCOL: u8 = 1;
    const HOP_BY_HOP: u8 = 128;
    let plain = v6(UDP, &[0; 8]);
    let behind = v6(0, &[UDP, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    let holds = |info: [u8; 3], packet: &Packet| of_ipv6("ipv6header", &info, packet) == [Verdict::Continue];
    assert!(holds([PROTOCOL, 0, 0], &plain) && !holds([PROTOCOL, 0, 0], &behind));
    assert!(holds([PROTOCOL, 0, 1], &behind) && holds([HOP_BY_HOP, 0, 1], &behind));
    assert!(holds([HOP_BY_HOP, 0xff, 0], &plain) && !holds([HOP_BY_HOP | PROTOCOL, 0xff, 0], &behind));
    assert!(!holds([HOP_BY_HOP, 0, 1], &plain) && holds([HOP_BY_HOP, HOP_BY_HOP, 1], &plain));
}

#[test]
fn a_source_is_made_of_the_hardware_address_that_the_packet_has() {
    let mut packet = v6(TCP, &tcp(1, 80, 2));
    assert_eq!(of_ipv6("eui64", &[0; 4], &packet), [Verdict::Continue, Verdict::Break]);
    packet.link = vec![0, 0, 0, 0, 0, 1, 0x52, 0x54, 0, 1, 2, 3, 0x86, 0xdd];
    assert_eq!(of_ipv6("eui64", &[0; 4], &packet), [Verdict::Break]);
    packet.bytes[16..24].copy_from_slice(&[0x50, 0x54, 0, 0xff, 0xfe, 1, 2, 3]);
    assert_eq!(of_ipv6("eui64", &[0; 4], &packet), [Verdict::Continue]);
}
