//! Whether a cause rests on something that moved while the question was asked. Pure.

use std::net::IpAddr;
use std::time::Duration;

use super::Inquiry;
use crate::condition::Verdict;
use crate::evidence::Cluster;
use crate::path::{self, Backend, Path, SymptomState};

/// An object that changed this recently may not have reached the nodes: it is read once more before anybody concludes.
/// kube-proxy's default minimum between two syncs is 1 s, Cilium needs less (measured).
const SETTLE: Duration = Duration::from_secs(3);

/// How long to wait before the question is asked once more; none when its answer stands.
pub(super) fn wait(inquiry: &Inquiry) -> Option<Duration> {
    unsettled(inquiry).or_else(|| unexplained(inquiry))
}

/// A cause rests on an object that changed a moment ago.
fn unsettled(inquiry: &Inquiry) -> Option<Duration> {
    let newest = inquiry
        .judged
        .verdicts
        .iter()
        .filter_map(|(_, verdict)| match verdict {
            Verdict::Found(finding) => finding.since,
            Verdict::Clear(_) | Verdict::Unknown(_) => None,
        })
        .max()?;
    let age = Duration::try_from(inquiry.evidence.now.duration_since(newest)).unwrap_or(Duration::ZERO);
    SETTLE.checked_sub(age).filter(|wait| !wait.is_zero())
}

/// A failure that nothing explains may be ahead of the API: endpoints and rules follow a change within seconds.
fn unexplained(inquiry: &Inquiry) -> Option<Duration> {
    let judged = &inquiry.judged;
    let fails = matches!(judged.symptom.state, SymptomState::Fails | SymptomState::Partial);
    (fails && !super::has_cause(inquiry)).then_some(SETTLE)
}

/// The Service's endpoints are others by now. Then what the nodes said may be newer than what it was compared with: in a
/// rolling update, rules that are right look old.
pub(super) fn endpoints_moved(path: &Path, now: &Cluster) -> bool {
    let (Some(service), Some(port)) = (path.service(), path.service_port()) else { return false };
    let Some(fresh) = now.services.get(&service.metadata.namespace, &service.metadata.name) else { return true };
    // Slices that cannot be listed any more show nothing.
    if now.endpoint_slices.gap().is_some() {
        return false;
    }
    // The port is left out: a headless path carries the one that was dialled.
    let essence = |backends: &[Backend]| {
        let mut essence: Vec<(IpAddr, bool, bool)> =
            backends.iter().map(|backend| (backend.address, backend.ready, backend.terminating)).collect();
        essence.sort_unstable();
        essence
    };
    essence(&path.backends) != essence(&path::backends(now, fresh, port))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::Instant;

    use jiff::Timestamp;
    use netdiag_common::observation::{Observation, Protocol};
    use netdiag_common::{Need, Reading, Tier, Topic};
    use serde_json::json;

    use super::*;
    use crate::ask::{self, Source, SourceError};
    use crate::evidence::parse;
    use crate::question::{DEFAULT_BUDGET, Purpose, Question};

    /// A rolling update replaces the endpoint while the question is asked: the node's rules follow at once.
    struct Rolling {
        /// Endpoints of the Service, one for each time the objects are read; the last stays.
        endpoints: [&'static str; 2],
        reads: AtomicUsize,
        /// Where the node's rules lead.
        rules: &'static str,
    }

    impl Source for Rolling {
        async fn cluster(&self) -> Result<Arc<Cluster>, SourceError> {
            let endpoint = self.endpoints[self.reads.fetch_add(1, Ordering::Relaxed).min(1)];
            let objects = [
                json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n1"},
                       "status": {"addresses": [{"type": "InternalIP", "address": "172.30.0.11"}]}}),
                json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "web", "namespace": "shop"},
                       "spec": {"clusterIP": "10.96.0.7", "ports": [{"port": 80}]}}),
                json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
                       "metadata": {"name": "web-1", "namespace": "shop",
                                    "labels": {"kubernetes.io/service-name": "web"}},
                       "ports": [{"port": 8080}], "endpoints": [{"addresses": [endpoint]}]}),
            ];
            let mut cluster = Cluster::default();
            for object in objects {
                parse::add(&mut cluster, object).expect("an object");
            }
            Ok(Arc::new(cluster))
        }

        async fn gather(&self, needs: Vec<Need>, _: Instant) -> Vec<(Need, Reading<Observation>)> {
            let rules = json!({"topic": "service_rules", "value": {"proxier": "nftables", "hooked": true, "entries": [
                {"address": "10.96.0.7", "protocol": "tcp", "port": 80,
                 "action": {"endpoints": [{"address": self.rules, "port": 8080}]}}]}});
            let reading = |need: &Need| match need.topic {
                Topic::ServiceRules => {
                    Reading::Seen { value: serde_json::from_value(rules.clone()).expect("rules"), at: self.now() }
                }
                _ => Reading::Unavailable { gap: ask::not_recorded(need) },
            };
            needs.into_iter().map(|need| (need.clone(), reading(&need))).collect()
        }

        fn now(&self) -> Timestamp {
            "2026-01-01T12:00:00Z".parse().expect("a time")
        }

        fn is_live(&self) -> bool {
            true
        }
    }

    async fn causes(endpoints: [&'static str; 2], rules: &'static str) -> Vec<&'static str> {
        let question = Question {
            from: "node/n1".parse().expect("a source"),
            to: "service/shop/web:80".parse().expect("a target"),
            protocol: Protocol::Tcp,
            purpose: Purpose::Scan,
            tier: Tier::Passive,
            budget: DEFAULT_BUDGET,
        };
        let source = Rolling { endpoints, reads: AtomicUsize::new(0), rules };
        let inquiries = ask::ask_many(&source, &[question.clone(), question]).await.expect("inquiries");
        let found = |inquiry: &Inquiry| {
            let found = inquiry.judged.verdicts.iter().filter(|(_, v)| matches!(v, Verdict::Found(_)));
            found.map(|(condition, _)| condition.code).collect::<Vec<_>>()
        };
        assert_eq!(found(&inquiries[0]), found(&inquiries[1]));
        found(&inquiries[0])
    }

    #[tokio::test]
    async fn rules_newer_than_the_objects_are_not_stale() {
        assert_eq!(causes(["10.244.1.3", "10.244.1.9"], "10.244.1.9").await, Vec::<&str>::new());
    }

    #[tokio::test]
    async fn rules_that_stay_behind_are_stale() {
        assert_eq!(causes(["10.244.1.3", "10.244.1.9"], "10.244.1.5").await, ["kube_proxy_rules_stale"]);
        assert_eq!(causes(["10.244.1.9", "10.244.1.9"], "10.244.1.3").await, ["kube_proxy_rules_stale"]);
    }
}
