//! Which answers of agents are believed.

use jiff::Timestamp;
use netdiag_common::forwarding::packet::Origin;
use netdiag_common::forwarding::{Outcome, Path as Fated, RuleKey};
use netdiag_common::observation::fate::{LeftOut, LeftOutRole};

use super::*;
use crate::evidence::ObjectRef;

/// The packet is stopped at its first hop.
fn fate(request: &FateRequest, left_out: Vec<LeftOut>) -> Fate {
    let packet = request.packet(Origin::Sent, "10.0.0.1".parse().expect("an address")).expect("a packet");
    let path = Fated {
        assumptions: Vec::new(),
        decisions: Vec::new(),
        gaps: Vec::new(),
        end: End::NoRoute { why: "unreachable".to_owned() },
        packet: packet.clone(),
        connection: None,
    };
    Fate {
        generation: None,
        packet,
        outcome: Outcome { paths: vec![path], cut: false },
        rules: Vec::new(),
        interfaces: Vec::new(),
        deliveries: Vec::new(),
        neighbours: Vec::new(),
        unseen: Vec::new(),
        left_out,
    }
}

#[test]
fn an_agent_that_predicted_with_the_rules_is_not_believed() {
    let rule: RuleKey = "inet site fw 2".parse().expect("a rule");
    let without = Without::from([rule.clone()]);
    let cluster = Cluster::default();
    let client = Client {
        reference: ObjectRef::of_node("n1"),
        node: "n1".to_owned(),
        netns: Netns::Host,
        pod: None,
        addresses: Vec::new(),
    };
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
