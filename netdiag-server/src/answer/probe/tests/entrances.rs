//! What an entrance says beside what its endpoint says by itself: by gRPC, and by TLS that is passed on.

use std::net::SocketAddr;

use netdiag_common::observation::series::TlsProbe;

use super::*;
use crate::probe::ladder::{Climbed, Role, Rung};

/// UNAVAILABLE where the way is broken; `bare.example` has no health service.
pub(super) fn over_grpc(number: u32, probe: &HttpProbe, class: Option<FailureClass>) -> SeriesAttempt {
    let code = match class {
        Some(_) => 14,
        None if probe.url.contains("//bare.example") => 12,
        None => 0,
    };
    let report = HttpReport {
        exchanges: vec![HttpExchange { url: probe.url.clone(), status: Some(200), ..HttpExchange::default() }],
        grpc_health: (code == 0).then(|| "SERVING".to_owned()),
        grpc_status: Some(code),
        ..HttpReport::default()
    };
    let class = (code != 0).then_some(FailureClass::Status);
    attempt(number, probe.to, class, ProbeReport::Http(Box::new(report)))
}

/// A certificate that has expired where the way is broken, and at `old.example`.
pub(super) fn over_tls(number: u32, probe: &TlsProbe, class: Option<FailureClass>) -> SeriesAttempt {
    let is_old = class.is_some() || probe.words.server_name.as_deref() == Some("old.example");
    let expired = TlsProblem::Expired { not_after: NOW.to_owned() };
    let report = TlsReport {
        chain: vec![certificate("CN=shop")],
        problems: if is_old { vec![expired] } else { Vec::new() },
        ..TlsReport::default()
    };
    let class = is_old.then_some(FailureClass::Certificate);
    attempt(number, Some(probe.to), class, ProbeReport::Tls(Box::new(report)))
}

fn attempt(number: u32, to: Option<SocketAddr>, class: Option<FailureClass>, report: ProbeReport) -> SeriesAttempt {
    let failure = class.map(|class| ProbeFailure {
        stage: ProbeStage::Answer,
        class,
        errno: None,
        said_by: None,
        icmp: None,
        why: "not as it should be".to_owned(),
    });
    SeriesAttempt {
        number,
        at_us: u64::from(number) * 1_000,
        elapsed_us: 900,
        source: None,
        to,
        endpoint: None,
        failure,
        report,
    }
}

fn with_gateway() -> Arc<Cluster> {
    let gateway = json!({"apiVersion": "gateway.networking.k8s.io/v1", "kind": "Gateway",
        "metadata": {"name": "gw", "namespace": "shop"},
        "spec": {"listeners": [{"name": "plain", "port": 80, "protocol": "HTTP"},
            {"name": "tls", "port": 8443, "protocol": "TLS", "tls": {"mode": "Passthrough"}}]},
        "status": {"addresses": [{"value": "203.0.113.7"}]}});
    let route = |kind: &str, hosts: [&str; 2]| {
        json!({"apiVersion": "gateway.networking.k8s.io/v1", "kind": kind, "metadata": {"name": "web", "namespace": "shop"},
            "spec": {"parentRefs": [{"name": "gw"}], "hostnames": hosts,
                "rules": [{"backendRefs": [{"name": "web", "port": 80}]}]}})
    };
    let mut cluster = Cluster::clone(&world());
    let grpc = route("GRPCRoute", ["bare.example", "shop.example"]);
    let tls = route("TLSRoute", ["old.example", "db.example"]);
    for object in [gateway, grpc, tls] {
        parse::add(&mut cluster, object).expect("an object");
    }
    Arc::new(cluster)
}

async fn climbed(broken: &[((&'static str, &'static str), FailureClass)]) -> ProbeAnswer {
    let request = ProbeRequest::new(Kind::Ladder, "pod/shop/client", "service/shop/web:80");
    asked_in(with_gateway(), &request, broken).await
}

fn at<'a>(answer: &'a ProbeAnswer, host: &str) -> &'a Rung {
    answer.ladders[0].rungs.iter().find(|rung| rung.of == host).expect("a rung of the host")
}

fn excuse<'a>(answer: &'a ProbeAnswer, host: &str) -> &'a str {
    let is_clients = |climbed: &&Climbed| climbed.role == Role::Client;
    &at(answer, host).attempts.iter().find(is_clients).expect("the client's attempts").excuse
}

#[tokio::test]
async fn what_the_endpoint_says_by_grpc_and_shows_by_tls_is_not_the_entrances_fault() {
    let answer = climbed(&[]).await;
    assert_eq!(answer.status, ProbeStatus::Well, "{}", answer.verdict);
    let own = "pod shop/web-1 (10.244.1.4:8080)";
    assert_eq!(excuse(&answer, "bare.example"), format!("{own} answers grpc-status 12 to it, too"));
    assert_eq!(excuse(&answer, "old.example"), format!("{own} serves this certificate itself, with the same fault"));
    for host in ["shop.example", "db.example"] {
        assert_eq!(excuse(&answer, host), "", "{host}");
    }
}

#[tokio::test]
async fn an_entrance_that_says_something_else_than_its_endpoint_fails() {
    let broken =
        [(("*", "203.0.113.7:80"), FailureClass::Status), (("*", "203.0.113.7:8443"), FailureClass::Certificate)];
    let answer = climbed(&broken).await;
    for host in ["bare.example", "shop.example", "db.example"] {
        assert_eq!(at(&answer, host).holds(Role::Client), Some(false), "{host}");
    }
    assert_eq!(at(&answer, "old.example").holds(Role::Client), Some(true), "the endpoint's own is as old");
}
