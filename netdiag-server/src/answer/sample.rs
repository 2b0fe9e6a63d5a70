//! A small recorded shop for the tests of answers: one client, one Service, two nodes.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use jiff::Timestamp;
use netdiag_common::observation::Observation;
use netdiag_common::observation::probe::{Attempt, Outcome, ProbeResult, Stage};
use netdiag_common::{Gap, GapReason, Need, Reading, Tier, Topic};
use serde_json::{Value, json};

use super::Answer;
use crate::ask::{Source, SourceError, ask};
use crate::evidence::{Cluster, parse};
use crate::question::{DEFAULT_BUDGET, Origin, Purpose, Question};

/// Objects and readings held in memory. What is not among the readings is a gap; probes end as `probes` says.
pub struct Shop {
    pub cluster: Cluster,
    pub readings: BTreeMap<Need, Reading<Observation>>,
    /// How every probe ends; none for agents that do not answer.
    pub probes: Option<Outcome>,
}

impl Shop {
    /// Two nodes, client `shop/client`, Service `shop/web:80` selecting `selector`, pod `shop/web-1` labelled `app=web`.
    pub fn new(selector: &str) -> Self {
        let mut cluster = Cluster { name: "lab".to_owned(), ..Cluster::default() };
        let changed = "2026-11-21T11:50:12Z";
        let pod = |name: &str, app: &str, ip: &str, node: &str| {
            json!({"kind": "Pod", "metadata": {"name": name, "namespace": "shop", "uid": format!("uid-{name}"),
                "labels": {"app": app}},
                "spec": {"nodeName": node, "containers": [{"name": "c", "ports": [{"containerPort": 8080}]}]},
                "status": {"phase": "Running", "podIP": ip, "conditions": [{"type": "Ready", "status": "True"}]}})
        };
        let node = |name: &str, ip: &str| {
            json!({"kind": "Node", "metadata": {"name": name, "uid": format!("uid-{name}")},
                "status": {"addresses": [{"type": "InternalIP", "address": ip}]}})
        };
        let endpoints: Vec<Value> = match selector {
            "web" => vec![json!({"addresses": ["10.244.2.9"], "nodeName": "n2", "conditions": {"ready": true},
                "targetRef": {"kind": "Pod", "namespace": "shop", "name": "web-1"}})],
            _ => Vec::new(),
        };
        let objects = [
            json!({"kind": "Namespace", "metadata": {"name": "shop"}}),
            node("n1", "172.30.0.1"),
            node("n2", "172.30.0.2"),
            pod("client", "client", "10.244.1.4", "n1"),
            pod("web-1", "web", "10.244.2.9", "n2"),
            json!({"kind": "Service", "metadata": {"name": "web", "namespace": "shop", "uid": "uid-svc",
                "creationTimestamp": changed},
                "spec": {"clusterIP": "10.96.0.7", "clusterIPs": ["10.96.0.7"], "selector": {"app": selector},
                "ports": [{"port": 80, "targetPort": 8080}]}}),
            json!({"kind": "EndpointSlice", "metadata": {"name": "web-x2f4", "namespace": "shop",
                "labels": {"kubernetes.io/service-name": "web"}},
                "addressType": "IPv4", "ports": [{"name": "", "port": 8080, "protocol": "TCP"}], "endpoints": endpoints}),
        ];
        for object in objects {
            parse::add(&mut cluster, object).expect("the sample's objects are valid");
        }
        Self { cluster, readings: BTreeMap::new(), probes: None }
    }

    pub fn probes_end(mut self, outcome: Outcome) -> Self {
        self.probes = Some(outcome);
        self
    }

    pub fn ask(&self, from: &str, to: &str) -> Answer {
        let from = if from.is_empty() { Origin::EveryNode } else { from.parse().expect("a source") };
        let question = Question {
            from,
            to: to.parse().expect("a target"),
            protocol: netdiag_common::observation::Protocol::Tcp,
            purpose: Purpose::Diagnose,
            tier: Tier::Probe,
            budget: DEFAULT_BUDGET,
        };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        super::build(&runtime.block_on(ask(self, &question)).expect("an inquiry"))
    }
}

/// What a client meets whose Service has no endpoints.
pub fn refused() -> Outcome {
    Outcome::Failed { stage: Stage::Connect, errno: "ECONNREFUSED".to_owned() }
}

pub fn no_answer() -> Outcome {
    Outcome::TimedOut { stage: Stage::Connect }
}

impl Source for Shop {
    async fn cluster(&self) -> Result<Arc<Cluster>, SourceError> {
        Ok(Arc::new(self.cluster.clone()))
    }

    async fn gather(&self, needs: Vec<Need>, _: Instant) -> Vec<(Need, Reading<Observation>)> {
        let reading = |need: &Need| match (&need.topic, &self.probes) {
            (Topic::Probe(_), Some(outcome)) => {
                let attempt = Attempt { elapsed_us: 1_200, source: None, outcome: outcome.clone() };
                let value = Observation::Probe(ProbeResult { attempts: vec![attempt; 3] });
                Reading::Seen { value, at: self.now() }
            }
            _ => self.readings.get(need).cloned().unwrap_or_else(|| Reading::Unavailable { gap: no_agent(need) }),
        };
        needs.into_iter().map(|need| (need.clone(), reading(&need))).collect()
    }

    fn now(&self) -> Timestamp {
        "2026-11-21T12:04:31Z".parse().expect("a timestamp")
    }

    fn is_live(&self) -> bool {
        false
    }
}

fn no_agent(need: &Need) -> Gap {
    Gap {
        what: crate::ask::step::need_in_words(need, None),
        node: Some(need.node.clone()),
        reason: GapReason::NoAgent,
        why: format!("no netdiag-node pod is ready on node {}", need.node),
        remedy: format!("kubectl -n netdiag-system get pods --field-selector spec.nodeName={}", need.node),
    }
}
