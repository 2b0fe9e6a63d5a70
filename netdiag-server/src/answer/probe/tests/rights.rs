//! From where the asker may not probe nothing is sent, and that is said.

use super::*;
use crate::probe::ladder::Role;
use crate::probe::rights::Only;
use crate::probe::{Denied, Rights, RunError};

/// May probe from the namespace `shop` alone.
pub(super) struct ShopAlone;

impl Rights for ShopAlone {
    async fn may_start(&self, namespace: &str) -> Result<(), Denied> {
        let place = if namespace.is_empty() { "nodes" } else { namespace };
        let text = format!("ann may not probe from {place}");
        if namespace == "shop" { Ok(()) } else { Err(Denied::Forbidden(text)) }
    }

    async fn may_get_secret(&self, _namespace: &str, _name: &str) -> Result<(), Denied> {
        Ok(())
    }
}

/// Agents that are not to be asked from nodes.
struct PodsAlone(Agents);

impl Source for PodsAlone {
    async fn cluster(&self) -> Result<Arc<Cluster>, SourceError> {
        self.0.cluster().await
    }

    async fn gather(&self, needs: Vec<Need>, deadline: Instant) -> Vec<(Need, Reading<Observation>)> {
        assert!(needs.iter().all(|need| need.netns != Netns::Host), "{needs:?}");
        self.0.gather(needs, deadline).await
    }

    fn now(&self) -> Timestamp {
        self.0.now()
    }

    fn is_live(&self) -> bool {
        self.0.is_live()
    }
}

async fn asked_by_ann(kind: Kind, from: &str) -> Result<ProbeAnswer, RunError> {
    let agents = PodsAlone(Agents { cluster: world(), broken: BTreeMap::new(), armed: Mutex::default() });
    let cluster = agents.0.cluster.clone();
    let plan = probe::plan(&ProbeRequest::new(kind, from, "service/shop/web:80"), &cluster).expect("a plan");
    let sender = Sender { source: &agents, cluster, rights: &ShopAlone, asked_by: None };
    Ok(build(&probe::run(&sender, plan).await?, agents.now()))
}

#[tokio::test]
async fn nothing_is_sent_from_where_the_asker_may_not() {
    let refused = asked_by_ann(Kind::Tcp, "node/n1").await.expect_err("no right");
    assert!(matches!(refused, RunError::Right(_)), "{refused}");
    assert_eq!(refused.to_string(), "ann may not probe from nodes");
    assert_eq!(asked_by_ann(Kind::Tcp, "pod/shop/client").await.expect("an answer").status, ProbeStatus::Well);
}

#[tokio::test]
async fn a_node_does_not_climb_for_who_may_not_probe_from_it() {
    let answer = asked_by_ann(Kind::Ladder, "pod/shop/client").await.expect("an answer");
    let ladder = &answer.ladders[0];
    let node = ladder.climbers.iter().find(|climber| climber.role == Role::Node).expect("a node");
    assert_eq!(node.why_not, "ann may not probe from nodes");
    assert!(ladder.rungs.iter().flat_map(|rung| &rung.attempts).all(|climbed| climbed.role != Role::Node));
}

#[tokio::test]
async fn what_a_request_says_of_its_asker_holds() {
    let shop = ["shop".to_owned()];
    let only = Only { rights: &Unchecked, namespaces: Some(&shop) };
    assert_eq!(only.may_start("shop").await, Ok(()));
    for namespace in ["", "pay"] {
        let denied = only.may_start(namespace).await.expect_err("no right");
        assert!(denied.to_string().starts_with("you may not probe from"), "{denied}");
    }
    let ann = Only { rights: &ShopAlone, namespaces: None };
    assert!(ann.may_start("shop").await.is_ok() && ann.may_start("pay").await.is_err());
}

#[tokio::test]
async fn a_pod_on_its_nodes_network_takes_the_right_to_probe_from_nodes() {
    let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "exporter", "namespace": "shop", "uid": "uid-exporter"},
        "spec": {"nodeName": "n1", "hostNetwork": true, "containers": [{"name": "exporter"}]},
        "status": {"phase": "Running", "podIP": "172.30.0.11", "podIPs": [{"ip": "172.30.0.11"}]}});
    let mut cluster = Cluster::clone(&world());
    parse::add(&mut cluster, pod).expect("an object");
    let agents = Agents { cluster: Arc::new(cluster), broken: BTreeMap::new(), armed: Mutex::default() };
    let request = ProbeRequest::new(Kind::Tcp, "pod/shop/exporter", "service/shop/web:80");
    let plan = probe::plan(&request, &agents.cluster).expect("a plan");
    let shop = ["shop".to_owned()];
    let rights = &Only { rights: &Unchecked, namespaces: Some(&shop) };
    let sender = Sender { source: &agents, cluster: agents.cluster.clone(), rights, asked_by: None };
    let refused = probe::run(&sender, plan).await.expect_err("no right");
    assert!(refused.to_string().starts_with("you may not probe from nodes"), "{refused}");
}

#[tokio::test]
async fn rows_of_the_matrix_that_the_asker_may_not_fill_are_gaps() {
    let answer = asked_by_ann(Kind::Matrix, "pod/shop/client").await.expect("an answer");
    let unseen: Vec<&str> = answer.not_seen.iter().map(|gap| gap.what.as_str()).collect();
    assert_eq!(unseen.len(), 2, "{unseen:?}");
    assert!(unseen.iter().all(|what| what.starts_with("the row of node/")), "{unseen:?}");
    assert_eq!(answer.status, ProbeStatus::Unknown);
}
