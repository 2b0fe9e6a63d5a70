//! Rounds against agents that only exist in memory.

use std::collections::BTreeMap;

use jiff::Timestamp;
use netdiag_common::observation::mesh::{
    Counts, KEPT_ROUNDS, MeshReport, Phase, RefusedTarget, RoundReport, TargetReport, Times, empty,
};
use serde_json::json;

use super::*;
use crate::evidence::{Cluster, parse};
use crate::mesh::{Slo, UserTarget};

/// Every agent has answered half of what it was assigned in its last round, and all of those before.
struct Agents {
    cluster: Arc<Cluster>,
    assigned: Mutex<BTreeMap<String, Vec<Assignment>>>,
    /// What this node's agent says instead.
    odd: Option<(&'static str, Odd)>,
}

#[derive(Clone, Copy)]
enum Odd {
    Dark,
    Lies,
    /// One target of all.
    Refuses,
}

impl Agents {
    fn new(odd: Option<(&'static str, Odd)>) -> Self {
        let mut cluster = Cluster { name: "lab".to_owned(), ..Cluster::default() };
        for (node, address) in [("n1", "10.0.0.1"), ("n2", "10.0.0.2"), ("n3", "10.0.0.3")] {
            let addresses = json!([{"type": "InternalIP", "address": address}]);
            let object = json!({"kind": "Node", "metadata": {"name": node}, "status": {"addresses": addresses}});
            parse::add(&mut cluster, object).unwrap();
        }
        Self { cluster: Arc::new(cluster), assigned: Mutex::default(), odd }
    }

    fn report(&self, node: &str) -> MeshReport {
        let assigned = self.assigned.lock().unwrap();
        let all = assigned.get(node).map_or(&[][..], Vec::as_slice);
        let kept = all.iter().skip(all.len().saturating_sub(KEPT_ROUNDS));
        let rounds = kept.map(|assignment| {
            let is_last = Some(assignment) == all.last();
            let targets = assignment.targets.iter().map(|target| {
                let answered = if is_last { 2 } else { 4 };
                let mut times = empty::<u32>();
                (0..answered).for_each(|n| times.record(200 + n).unwrap());
                let counts = Counts { scheduled: 4, answered, open: 4 - answered, ..Counts::default() };
                let phases = BTreeMap::from([(Phase::Connect, Times::of(&times))]);
                TargetReport { name: target.name.clone(), counts, phases }
            });
            RoundReport {
                generation: assignment.generation,
                started: Timestamp::from_second(1_800_000_000 + i64::try_from(assignment.generation).unwrap() * 20)
                    .unwrap(),
                ended: !is_last,
                delay: Times::default(),
                targets: targets.collect(),
            }
        });
        let mut rounds: Vec<RoundReport> = rounds.collect();
        let is_forbidden = matches!(self.odd, Some((who, Odd::Refuses)) if who == node);
        let refused = is_forbidden.then(|| RefusedTarget {
            name: "user/registry/tcp".to_owned(),
            why: "this agent may not probe 8.8.8.8".to_owned(),
            remedy: "start the agents with --probe-allow".to_owned(),
        });
        let refused = refused.into_iter().collect();
        if let (Some((liar, Odd::Lies)), Some(round)) = (self.odd, rounds.first_mut())
            && liar == node
        {
            round.targets[0].counts.scheduled += 1;
        }
        MeshReport { rounds, refused }
    }
}

impl Source for Agents {
    async fn cluster(&self) -> Result<Arc<Cluster>, SourceError> {
        Ok(self.cluster.clone())
    }

    async fn gather(&self, needs: Vec<Need>, _: Instant) -> Vec<(Need, Reading<Observation>)> {
        let answer = |need: Need| {
            if let Some((dark, Odd::Dark)) = self.odd
                && dark == need.node
            {
                let gap = Gap {
                    what: String::new(),
                    node: Some(need.node.clone()),
                    reason: GapReason::AgentUnreachable,
                    why: "it hangs".to_owned(),
                    remedy: "restart it".to_owned(),
                };
                return (need, Reading::Unavailable { gap });
            }
            if let Topic::Mesh(MeshRequest::Assign(assignment)) = &need.topic {
                self.assigned.lock().unwrap().entry(need.node.clone()).or_default().push(assignment.clone());
            }
            let value = Observation::Mesh(self.report(&need.node));
            (need, Reading::Seen { value, at: self.now() })
        };
        needs.into_iter().map(answer).collect()
    }

    fn now(&self) -> Timestamp {
        Timestamp::from_second(1_800_000_100).unwrap()
    }

    fn is_live(&self) -> bool {
        false
    }
}

fn rounds() -> Rounds {
    Rounds::new(Settings { targets: Vec::new(), agent_port: 9443, slo: Slo::default() })
}

#[tokio::test]
async fn one_round_by_itself_shows_every_pair() {
    let (agents, rounds) = (Agents::new(None), rounds());
    rounds.once(&agents).await.unwrap();
    let look = rounds.look();
    // Three nodes, two peers each, by TCP and ICMP.
    assert_eq!(look.links.len(), 12);
    assert!(look.links.iter().all(|link| link.counts.scheduled == 4 && link.times.len() == link.counts.answered));
    assert_eq!((look.rounds, look.cluster.as_str()), (1, "lab"));
    let assigned = agents.assigned.lock().unwrap();
    assert_eq!(assigned["n1"][0].lease_ms, 5_000, "it ends by itself");
}

#[test]
fn a_short_round_waits_for_its_longest_attempts() {
    for (timeout_ms, wait_ms) in [(None, 6_200), (Some(300), 6_200), (Some(5_000), 10_200)] {
        let slow = UserTarget { timeout_ms, .."slow=10.0.0.9:80".parse().unwrap() };
        let targets = vec!["web=10.0.0.9:81".parse().unwrap(), slow];
        let rounds = Rounds::new(Settings { targets, agent_port: 9443, slo: Slo::default() });
        assert_eq!(rounds.longest_of_once(), Duration::from_millis(wait_ms), "{timeout_ms:?}");
    }
}

#[tokio::test]
async fn what_was_open_at_the_end_of_a_round_comes_with_the_next_one() {
    let (agents, rounds) = (Agents::new(None), rounds());
    for generation in 0..5 {
        rounds.round(&agents).await.unwrap();
        let assigned = agents.assigned.lock().unwrap();
        let newest = assigned["n2"].last().unwrap();
        assert_eq!((newest.generation, newest.asker.as_str()), (generation, rounds.asker.as_str()));
    }
    let answered: u64 = rounds.look().links.iter().map(|link| link.counts.answered).sum();
    assert_eq!(answered, 12 * (4 * 4 + 2), "four rounds have ended, and each answer counts once");
}

#[tokio::test]
async fn every_fourth_step_is_a_new_round() {
    let (agents, rounds) = (Agents::new(None), rounds());
    for _ in 0..9 {
        rounds.step(&agents).await.unwrap();
    }
    assert_eq!(rounds.look().rounds, 3);
}

#[tokio::test]
async fn an_agent_that_is_dark_or_lies_is_named_and_the_others_count() {
    for (odd, says) in [(Odd::Dark, "it hangs"), (Odd::Lies, "do not add up")] {
        let (agents, rounds) = (Agents::new(Some(("n2", odd))), rounds());
        rounds.once(&agents).await.unwrap();
        let look = rounds.look();
        assert!(look.links.iter().all(|link| link.from != "n2"));
        assert_eq!(look.links.len(), 8);
        let gap = look.gaps.iter().find(|gap| gap.node.as_deref() == Some("n2")).unwrap();
        assert_eq!(gap.what, "the mesh from node n2");
        assert!(gap.why.contains(says), "{gap:?}");
    }
}

#[tokio::test]
async fn a_target_that_an_agent_may_not_probe_is_named_and_the_others_count() {
    let (agents, rounds) = (Agents::new(Some(("n2", Odd::Refuses))), rounds());
    rounds.once(&agents).await.unwrap();
    let look = rounds.look();
    assert_eq!(look.links.len(), 12);
    let gap = look.gaps.iter().find(|gap| gap.node.as_deref() == Some("n2")).unwrap();
    assert_eq!((gap.what.as_str(), gap.reason), ("continuous probes of target registry", GapReason::NotAllowed));
    assert!(gap.remedy.contains("--probe-allow"), "{gap:?}");
}

#[test]
fn metrics_of_a_mesh_that_has_not_begun_are_there() {
    assert!(rounds().metrics().contains("netdiag_mesh_links{state=\"good\"} 0"));
}
