//! The ladder's rung of a load balancer: by each of its addresses, or by its name.

use netdiag_common::observation::series::DnsReport;

use super::*;
use crate::probe::ladder::{Rung, RungName};

/// As the client asks for it.
pub(super) const BALANCER: &str = "lb.cloud.example.";

pub(super) fn looked_up(number: u32) -> SeriesAttempt {
    let addresses = vec!["203.0.113.9".parse().expect("an address")];
    SeriesAttempt {
        number,
        at_us: 0,
        elapsed_us: 900,
        source: None,
        to: None,
        endpoint: None,
        failure: None,
        report: ProbeReport::Dns(DnsReport { addresses, ..DnsReport::default() }),
    }
}

async fn external(ingress: &Value) -> Rung {
    let service = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "web", "namespace": "shop"},
        "spec": {"type": "LoadBalancer", "clusterIP": "10.96.0.80",
            "ports": [{"name": "http", "port": 80, "nodePort": 30080, "protocol": "TCP"}]},
        "status": {"loadBalancer": {"ingress": [ingress]}}});
    let mut cluster = Cluster::clone(&world());
    parse::add(&mut cluster, service).expect("an object");
    let request = ProbeRequest::new(Kind::Ladder, "pod/shop/client", "service/shop/web:80");
    let mut answer = asked_in(Arc::new(cluster), &request, &[]).await;
    let rungs = answer.ladders.swap_remove(0).rungs;
    rungs.into_iter().find(|rung| rung.rung == RungName::ExternalIp).expect("the rung")
}

fn targets(rung: &Rung) -> Vec<(&str, &str)> {
    rung.attempts.iter().map(|climbed| (climbed.to.as_str(), climbed.object.as_str())).collect()
}

#[tokio::test]
async fn a_load_balancer_that_is_a_name_is_looked_up_by_the_client() {
    let rung = external(&json!({"hostname": "lb.cloud.example"})).await;
    assert_eq!(targets(&rung), [("203.0.113.9:80", "load balancer lb.cloud.example"); 3], "client, twin and node");
    let rung = external(&json!({"hostname": "nowhere.cloud.example"})).await;
    assert!(rung.attempts.is_empty() && rung.not_tried.contains("known as nowhere.cloud.example alone"), "{rung:?}");
}

#[tokio::test]
async fn an_address_that_nodes_leave_to_the_load_balancer_is_a_rung_all_the_same() {
    let rung = external(&json!({"ip": "203.0.113.7", "ipMode": "Proxy"})).await;
    assert_eq!(targets(&rung), [("203.0.113.7:80", ""); 3]);
}
