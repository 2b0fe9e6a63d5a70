//! Which answers of agents are believed, and what comes back of a packet.

use jiff::Timestamp;
use netdiag_common::forwarding::RuleKey;
use netdiag_common::forwarding::packet::Origin;
use netdiag_common::forwarding::state::Hook;
use netdiag_common::observation::fate::{FateTransport, LeftOut, LeftOutRole};

use super::*;
use crate::trace::example;

/// The packet is stopped at its first hop.
fn fate(request: &FateRequest, left_out: Vec<LeftOut>) -> Fate {
    let packet = request.packet(Origin::Sent, "10.0.0.1".parse().expect("an address")).expect("a packet");
    let end = End::NoRoute { why: "unreachable".to_owned() };
    Fate { left_out, ..example::fate(packet, Vec::new(), end) }
}

#[test]
fn an_agent_that_predicted_with_the_rules_is_not_believed() {
    let rule: RuleKey = "inet site fw 2".parse().expect("a rule");
    let without = Without::from([rule.clone()]);
    let cluster = Cluster::default();
    let client = example::client();
    let begins = Begins {
        client: &client,
        protocol: Protocol::Tcp,
        source_port: 61_001,
        destination: "10.96.0.7".parse().expect("an address"),
        port: 80,
        without: &without,
        tunnels: Tunnels::Followed,
    };
    let (_, needs) = ways(&cluster, begins, &mut |_| None);
    let Some(Topic::Fate(request)) = needs.first().map(|need| &need.topic) else { panic!("{needs:?}") };
    assert_eq!(request.without, without);
    let end = |left_out: Vec<LeftOut>| {
        let value = Observation::Fate(Arc::new(fate(request, left_out)));
        let reading = Reading::Seen { value, at: Timestamp::UNIX_EPOCH };
        let (followed, _) = ways(&cluster, begins, &mut |_| Some(&reading));
        followed.ways[0].end.clone()
    };
    let WayEnd::Unseen { gap } = end(Vec::new()) else { panic!("it was believed") };
    assert_eq!(gap.reason, GapReason::WireVersion);
    assert_eq!(end(vec![LeftOut { rule, role: LeftOutRole::NotMet }]), WayEnd::Stopped);
}

/// Of a packet in the node's namespace, with this decision.
fn leg(direction: Direction, source: &str, destination: &str, decision: Option<Decision>) -> Leg {
    let [source, destination] = [source, destination].map(|end| end.parse().expect("an address"));
    let transport = FateTransport::Udp { source_port: Some(1), destination_port: Some(2) };
    let request = FateRequest::new(FateOrigin::Sent, Some(source), destination, transport);
    let mut told = fate(&request, Vec::new());
    told.outcome.paths[0].decisions.extend(decision);
    let place = Place { node: "n1".to_owned(), netns: Netns::Host };
    Leg { direction, place, request, fate: Arc::new(told), at: Timestamp::UNIX_EPOCH, path: 0, carrier: None }
}

#[test]
fn an_answer_that_a_bridge_hands_on_past_the_rules_comes_from_who_answers() {
    let end = |from: &str, filtered: bool| {
        let switched = Decision::Switched { hook: Hook::Forward, bridge: 4, port: 5, filtered };
        let legs = [
            leg(Direction::Forward, "10.244.1.2", "10.96.0.7", None),
            leg(Direction::Reply, from, "10.244.1.2", Some(switched)),
        ];
        returned(&legs, &legs[1])
    };
    let WayEnd::Untranslated { from, why } = end("10.244.1.3", false) else { panic!("it was translated") };
    assert!(from.to_string() == "10.244.1.3" && why.starts_with("a bridge handed it on"), "{from} {why}");
    // Through the rules, and of a pod that was asked itself.
    assert!(matches!(end("10.244.1.3", true), WayEnd::Unseen { .. }));
    assert_eq!(end("10.96.0.7", false), WayEnd::Answered);
}

/// On this node, for a Service whose address becomes its endpoint's.
fn translated(node: &str) -> Leg {
    let mut leg = leg(Direction::Forward, "10.244.1.2", "10.96.0.7", None);
    node.clone_into(&mut leg.place.node);
    let request = FateRequest { destination: "10.244.1.3".parse().expect("an address"), ..leg.request.clone() };
    let packet = request.packet(Origin::Sent, "10.244.1.2".parse().expect("an address")).expect("a packet");
    Arc::get_mut(&mut leg.fate).expect("its only owner").outcome.paths[0].packet = packet;
    leg
}

#[test]
fn an_answer_that_misses_the_node_that_translated_comes_from_who_answers() {
    let end = |translator: &str, gaps: &[&str]| {
        let mut answer = leg(Direction::Reply, "10.244.1.3", "10.244.1.2", None);
        let fate = Arc::get_mut(&mut answer.fate).expect("its only owner");
        fate.outcome.paths[0].gaps.extend(gaps.iter().map(|gap| (*gap).to_owned()));
        let asked = leg(Direction::Forward, "10.244.1.2", "10.96.0.7", None);
        let legs = [asked, translated(translator), answer];
        returned(&legs, &legs[2])
    };
    let WayEnd::Untranslated { why, .. } = end("n2", &[]) else { panic!("it was translated") };
    assert!(why.starts_with("node n2 translated the packet"), "{why}");
    // Something may translate it that is not evaluated: IPVS where it came by before, or a program on its way.
    for (translator, gaps) in [("n1", &[][..]), ("n2", &["BPF program theirs"][..])] {
        let WayEnd::Unseen { gap } = end(translator, gaps) else { panic!("{translator} {gaps:?}") };
        assert_eq!(gap.node.as_deref(), Some(translator));
    }
}
