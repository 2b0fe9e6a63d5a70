use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use netdiag_common::forwarding::conntrack::Direction;
use netdiag_common::observation::rules::Hook;
use netdiag_common::observation::series::dns::{DnsAsking, DnsProbe};
use netdiag_common::observation::series::http::HttpExchange;
use netdiag_common::observation::series::tls::{Certificate, TlsProblem};
use netdiag_common::observation::series::{
    FailureClass, HttpProbe, HttpReport, IcmpError, Probe, ProbeFailure, ProbeReport, ProbeStage, SeriesAttempt,
    SeriesRequest, SeriesResult, TcpReport, TlsReport,
};
use netdiag_common::observation::tag::{TagAccounts, TagEvent, TagPoint, TagTuple, Tagged};
use netdiag_common::observation::{Observation, Owner};
use netdiag_common::{Gap, GapReason, Need, Netns, Reading, Topic};
use serde_json::{Value, json};

use super::*;
use crate::answer::Paint;
use crate::ask::{Source, SourceError};
use crate::evidence::{Cluster, parse};
use crate::probe::rights::Unchecked;
use crate::probe::{ProbeRequest, Sender};

mod entrances;
mod followed;
mod mtu;
mod outside;
mod paths;
mod rights;
mod servers;
mod zones;

/// Agents that answer by the target alone.
struct Agents {
    cluster: Arc<Cluster>,
    /// Targets that fail, and as what; by source (a pod's UID or a node) and target, either of them `*`.
    broken: BTreeMap<(&'static str, &'static str), FailureClass>,
    /// Tags that were asked for.
    armed: Mutex<Vec<TagTuple>>,
}

const NOW: &str = "2026-01-01T12:00:00Z";
const VIP: &str = "10.96.0.80:80";

pub(crate) fn world() -> Arc<Cluster> {
    let node = |name: &str, address: &str| {
        json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name},
            "status": {"addresses": [{"type": "InternalIP", "address": address}]}})
    };
    let pod = |name: &str, app: &str, node: &str, address: &str| {
        json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": "shop", "uid": name, "labels": {"app": app}},
            "spec": {"nodeName": node},
            "status": {"phase": "Running", "podIP": address, "conditions": [{"type": "Ready", "status": "True"}]}})
    };
    let endpoint = |name: &str, node: &str, address: &str| {
        json!({"addresses": [address], "conditions": {"ready": true}, "nodeName": node,
            "targetRef": {"kind": "Pod", "namespace": "shop", "name": name}})
    };
    let service = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "web", "namespace": "shop"},
        "spec": {"type": "NodePort", "clusterIP": "10.96.0.80",
            "ports": [{"name": "http", "port": 80, "nodePort": 30080, "protocol": "TCP"}]}});
    let slice = json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": {"name": "web-1", "namespace": "shop", "labels": {"kubernetes.io/service-name": "web"}},
        "endpoints": [endpoint("web-1", "n1", "10.244.1.4"), endpoint("web-2", "n2", "10.244.2.5")],
        "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}]});
    let mut cluster = Cluster { name: "world".to_owned(), ..Cluster::default() };
    for object in [
        node("n1", "172.30.0.11"),
        node("n2", "172.30.0.12"),
        pod("client", "client", "n1", "10.244.1.2"),
        pod("client-2", "client", "n2", "10.244.2.2"),
        pod("web-1", "web", "n1", "10.244.1.4"),
        pod("web-2", "web", "n2", "10.244.2.5"),
        service,
        slice,
    ] {
        parse::add(&mut cluster, object).expect("an object");
    }
    Arc::new(cluster)
}

impl Agents {
    fn answer(&self, place: &str, request: &SeriesRequest) -> SeriesResult {
        let to = match &request.probe {
            Probe::Tcp(probe) => Some(probe.to),
            Probe::Icmp(probe) => Some((probe.to, 0).into()),
            Probe::PathMtu(probe) => Some(probe.to),
            Probe::Dns(DnsProbe { asking: DnsAsking::Server { server, .. }, .. }) => Some(*server),
            Probe::Http(probe) => probe.to,
            Probe::Tls(probe) => Some(probe.to),
            _ => None,
        };
        let endpoints = ["10.244.1.4:8080", "10.244.2.5:8080"];
        let attempts: Vec<SeriesAttempt> = (0..request.count)
            .map(|number| {
                let led = to.filter(|to| to.to_string() == VIP).map(|_| endpoints[number as usize % 2]);
                let target =
                    led.map_or_else(|| to.map_or_else(|| "name".to_owned(), |to| to.to_string()), str::to_owned);
                let class = [(place, target.as_str()), ("*", target.as_str()), (place, "*")]
                    .iter()
                    .find_map(|(place, target)| self.broken.iter().find(|((p, t), _)| p == place && t == target))
                    .map(|(_, class)| *class);
                match &request.probe {
                    Probe::Http(probe) if probe.grpc_health.is_some() => {
                        return entrances::over_grpc(number, probe, class);
                    }
                    Probe::Http(probe) => return over_http(number, probe, class),
                    Probe::Tls(probe) => return entrances::over_tls(number, probe, class),
                    Probe::PathMtu(probe) => return mtu::searched(number, probe, class),
                    Probe::Dns(probe) if probe.name == outside::BALANCER => return outside::looked_up(number),
                    _ => {}
                }
                let failure = class.map(|class| ProbeFailure {
                    stage: ProbeStage::Connect,
                    class,
                    errno: Some("ECONNREFUSED".to_owned()),
                    said_by: led.and_then(|led| led.parse::<std::net::SocketAddr>().ok()).map(|led| led.ip()),
                    icmp: Some(IcmpError { kind: 3, code: 3, words: "port unreachable".to_owned(), mtu: None }),
                    why: "refused at once\u{1b}[31m".to_owned(),
                });
                let report = TcpReport { handshake_us: 210, send_mss: Some(1_448), ..TcpReport::default() };
                SeriesAttempt {
                    number,
                    at_us: u64::from(number) * 1_000,
                    elapsed_us: 250 + u64::from(number),
                    source: None,
                    to,
                    endpoint: led.and_then(|led| led.parse().ok()),
                    report: if failure.is_some() { ProbeReport::Nothing } else { ProbeReport::Tcp(report) },
                    failure,
                }
            })
            .collect();
        let failed = u32::try_from(attempts.iter().filter(|attempt| !attempt.succeeded()).count()).expect("few");
        SeriesResult {
            asked: request.count,
            made: request.count,
            succeeded: request.count - failed,
            failed,
            untried: 0,
            untried_because: None,
            late: 0,
            attempts,
            not_kept: 0,
            times: Vec::new(),
            entered_us: Some(150),
            unseen: Vec::new(),
        }
    }
}

/// Status 200; 503 for one that fails by its status, 404 for each path of `/none`, and an issuer that nobody knows by TLS.
fn over_http(number: u32, probe: &HttpProbe, class: Option<FailureClass>) -> SeriesAttempt {
    let status = match class {
        Some(FailureClass::Status) => 503,
        _ if probe.url.ends_with("/none") => 404,
        _ => 200,
    };
    let issuer = "CN=shop".to_owned();
    let tls = probe.url.starts_with("https").then(|| TlsReport {
        chain: vec![certificate(&issuer)],
        problems: vec![TlsProblem::UnknownAuthority { issuer }],
        ..TlsReport::default()
    });
    let class =
        class.or(tls.as_ref().map(|_| FailureClass::Certificate)).or((status == 404).then_some(FailureClass::Status));
    let failure = class.map(|class| ProbeFailure {
        stage: ProbeStage::Answer,
        class,
        errno: None,
        said_by: None,
        icmp: None,
        why: format!("status {status}"),
    });
    let exchange = HttpExchange { url: probe.url.clone(), status: Some(status), ..HttpExchange::default() };
    let report = HttpReport { exchanges: vec![exchange], tls, ..HttpReport::default() };
    SeriesAttempt {
        number,
        at_us: u64::from(number) * 1_000,
        elapsed_us: 900,
        source: None,
        to: probe.to,
        endpoint: None,
        failure,
        report: ProbeReport::Http(Box::new(report)),
    }
}

fn certificate(issuer: &str) -> Certificate {
    Certificate {
        subject: "CN=shop.example".to_owned(),
        issuer: issuer.to_owned(),
        names: vec!["shop.example".to_owned()],
        not_before: NOW.to_owned(),
        not_after: "2027-01-01T12:00:00Z".to_owned(),
        sha256: "ab".to_owned(),
        serial: "01".to_owned(),
    }
}

impl Agents {
    /// Node n1 drops what its client sends; node n2 cannot follow packets.
    fn tagged(&self, node: &str, topic: &Topic) -> Reading<Observation> {
        let at = NOW.parse().expect("a time");
        let value = match topic {
            Topic::Tags => Observation::Tags(self.armed.lock().expect("nobody panicked").clone()),
            Topic::Tagged(request) if node == "n1" => {
                self.armed.lock().expect("nobody panicked").push(request.tuple);
                let stop = TagPoint::Dropped {
                    reason: "NETFILTER_DROP".to_owned(),
                    function: "nft_do_chain".to_owned(),
                    hook: Some(Hook::Prerouting),
                };
                let client = Owner::Pod { uid: "client".to_owned() };
                let way = [(client, TagPoint::Sent), (Owner::Host, TagPoint::Received), (Owner::Host, stop)];
                let event = |(netns, point)| TagEvent {
                    at_ns: 0,
                    netns,
                    ifindex: 2,
                    interface: Some("eth0".to_owned()),
                    point,
                    direction: Direction::Original,
                    source: request.tuple.source.expect("a source"),
                    destination: request.tuple.destination,
                    source_port: request.tuple.source_port.expect("a port"),
                    destination_port: 80,
                    protocol_number: 6,
                    ttl: 64,
                    tcp_flags: 2,
                    length: 60,
                    sequence: 9,
                };
                let events: Vec<TagEvent> = way.into_iter().map(event).collect();
                let accounts = TagAccounts { seen: 3, kept: 3, ..TagAccounts::default() };
                Observation::Tagged(Tagged { armed: at, disarmed: at, events, accounts, unseen: Vec::new() })
            }
            Topic::Tagged(_) => {
                let gap = Gap {
                    what: "the way of a packet".to_owned(),
                    node: Some(node.to_owned()),
                    reason: GapReason::Kernel,
                    why: "this kernel has no tracepoint".to_owned(),
                    remedy: "use a newer one".to_owned(),
                };
                return Reading::Unavailable { gap };
            }
            Topic::Fate(_) => return Reading::Absent { at },
            other => panic!("{other:?} is not asked for"),
        };
        Reading::Seen { value, at }
    }
}

impl Source for Agents {
    async fn cluster(&self) -> Result<Arc<Cluster>, SourceError> {
        Ok(self.cluster.clone())
    }

    async fn gather(&self, needs: Vec<Need>, _: Instant) -> Vec<(Need, Reading<Observation>)> {
        let answer = |need: Need| {
            let request = match &need.topic {
                Topic::Series(request) => request,
                Topic::Resolver => return servers::resolver(need),
                other => return (need.clone(), self.tagged(&need.node, other)),
            };
            let place = match &need.netns {
                Netns::Host => need.node.clone(),
                Netns::Pod(uid) => uid.clone(),
            };
            let value = Observation::Series(self.answer(&place, request));
            (need, Reading::Seen { value, at: NOW.parse().expect("a time") })
        };
        needs.into_iter().map(answer).collect()
    }

    fn now(&self) -> Timestamp {
        NOW.parse().expect("a time")
    }

    fn is_live(&self) -> bool {
        false
    }
}

async fn asked(kind: Kind, count: u32, broken: &[((&'static str, &'static str), FailureClass)]) -> ProbeAnswer {
    let request =
        ProbeRequest { count: Some(count), ..ProbeRequest::new(kind, "pod/shop/client", "service/shop/web:80") };
    asked_for(&request, broken).await
}

async fn asked_for(request: &ProbeRequest, broken: &[((&'static str, &'static str), FailureClass)]) -> ProbeAnswer {
    asked_in(world(), request, broken).await
}

async fn asked_in(
    cluster: Arc<Cluster>,
    request: &ProbeRequest,
    broken: &[((&'static str, &'static str), FailureClass)],
) -> ProbeAnswer {
    let agents = Agents { cluster, broken: broken.iter().copied().collect(), armed: Mutex::default() };
    let plan = probe::plan(request, &agents.cluster).expect("a plan");
    let sender = Sender { source: &agents, cluster: agents.cluster.clone(), rights: &Unchecked, asked_by: None };
    build(&probe::run(&sender, plan).await.expect("results"), agents.now())
}

#[tokio::test]
async fn one_of_two_endpoints_refuses() {
    let answer = asked(Kind::Tcp, 12, &[(("*", "10.244.2.5:8080"), FailureClass::Refused)]).await;
    assert_eq!(answer.status, ProbeStatus::Failed);
    insta::assert_snapshot!("one_of_two", answer.text(Paint::Plain));
}

#[tokio::test]
async fn everything_is_well() {
    let answer = asked(Kind::Tcp, 3, &[]).await;
    assert_eq!(answer.status, ProbeStatus::Well);
    insta::assert_snapshot!("well", answer.text(Paint::Plain));
}

#[tokio::test]
async fn the_ladder_stops_where_it_breaks() {
    let answer = asked(Kind::Ladder, 3, &[(("client", "10.244.2.5:8080"), FailureClass::Silence)]).await;
    insta::assert_snapshot!("ladder", answer.text(Paint::Plain));
}

/// Two hosts: one plain, one by TLS; and a path that the program does not have.
fn with_ingress() -> Arc<Cluster> {
    let path = |path: &str| json!({"path": path, "pathType": "Prefix", "backend": {"service": {"name": "web", "port": {"name": "http"}}}});
    let ingress = json!({"apiVersion": "networking.k8s.io/v1", "kind": "Ingress",
        "metadata": {"name": "web", "namespace": "shop"},
        "spec": {"tls": [{"hosts": ["safe.example"]}], "rules": [
            {"host": "shop.example", "http": {"paths": [path("/"), path("/none")]}},
            {"host": "safe.example", "http": {"paths": [path("/")]}}]},
        "status": {"loadBalancer": {"ingress": [{"ip": "203.0.113.5"}]}}});
    let mut cluster = Cluster::clone(&world());
    parse::add(&mut cluster, ingress).expect("an object");
    Arc::new(cluster)
}

#[tokio::test]
async fn what_the_program_answers_by_itself_is_not_the_entrances_fault() {
    let request = ProbeRequest::new(Kind::Ladder, "pod/shop/client", "service/shop/web:80");
    let answer = asked_in(with_ingress(), &request, &[]).await;
    assert_eq!(answer.status, ProbeStatus::Well, "{}", answer.verdict);
    insta::assert_snapshot!("ladder_to_ingress", answer.text(Paint::Plain));
}

#[tokio::test]
async fn an_entrance_that_fails_is_the_last_rung_and_the_next_host_is_tried_all_the_same() {
    let request = ProbeRequest::new(Kind::Ladder, "pod/shop/client", "service/shop/web:80");
    let answer = asked_in(with_ingress(), &request, &[(("*", "203.0.113.5:80"), FailureClass::Status)]).await;
    assert_eq!(answer.status, ProbeStatus::Failed);
    assert_eq!(
        answer.verdict,
        "the node port holds, the Ingress host shop.example fails (status); pod/shop/client-2 and node/n1 fail too, so it is the \
         entrance itself, not who comes"
    );
    let safe = answer.ladders[0].rungs.iter().find(|rung| rung.of == "safe.example").expect("the other host");
    assert_eq!(safe.holds(safe.main_role()), Some(true), "{safe:?}");
}

#[tokio::test]
async fn the_matrix_of_a_partition() {
    let cross = [
        ("client", "10.244.2.5:8080"),
        ("client-2", "10.244.1.4:8080"),
        ("n1", "172.30.0.12:0"),
        ("n2", "172.30.0.11:0"),
    ];
    let broken: Vec<_> = cross.into_iter().map(|key| (key, FailureClass::Silence)).collect();
    let answer = asked(Kind::Matrix, 6, &broken).await;
    insta::assert_snapshot!("matrix", answer.text(Paint::Plain));
}

#[tokio::test]
async fn parts_of_a_long_series_are_one_answer() {
    let mut whole = asked(Kind::Tcp, 4, &[]).await;
    whole.join(asked(Kind::Tcp, 4, &[(("*", "10.244.2.5:8080"), FailureClass::Refused)]).await, 9_000);
    let tally = &whole.series[0].tally;
    assert_eq!((tally.asked, tally.succeeded, tally.failed), (8, 6, 2));
    assert_eq!(whole.status, ProbeStatus::Failed);
    assert!(whole.verdict.starts_with("fails 2 of 8 times: refused (ECONNREFUSED) at connect"), "{}", whole.verdict);
}

#[tokio::test]
async fn an_answer_follows_its_schema_and_comes_back_as_it_was() {
    let answer = asked(Kind::Ladder, 3, &[]).await;
    let value: Value = serde_json::to_value(&answer).expect("JSON");
    let schema = crate::answer::schema::of::<ProbeAnswer>(PROBE_SCHEMA);
    jsonschema::validate(&schema, &value).expect("as the schema says");
    assert_eq!(serde_json::from_value::<ProbeAnswer>(value).expect("an answer"), answer);
}
