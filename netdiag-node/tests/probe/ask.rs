//! Requests with every word of theirs, sent from one namespace.

use std::time::{Duration, Instant};

use netdiag_common::observation::series::transport::TcpClose;
use netdiag_common::observation::series::{Identity, Probe, SeriesRequest, SeriesResult, TcpProbe};
use netdiag_node::gap::Failure;
use netdiag_node::netns::NetnsHandle;
use netdiag_node::probe::series::{AllowList, Engine, Place};

use crate::support::{Namespace, patient};

/// One attempt with much time.
pub fn request(probe: Probe) -> SeriesRequest {
    let identity = Identity::default();
    SeriesRequest { probe, count: 1, interval_us: 0, timeout_ms: 10_000, parallel: 1, identity, asked_by: None }
}

pub fn tcp(to: &str, close: TcpClose) -> Probe {
    Probe::Tcp(TcpProbe { to: to.parse().unwrap(), source_port: None, close })
}

pub fn handle(namespace: &Namespace) -> NetnsHandle {
    namespace.run(|| NetnsHandle::open("/proc/thread-self/ns/net".as_ref()).unwrap())
}

/// From a pod behind a node.
pub fn ask_behind(node: &Namespace, pod: &Namespace, request: &SeriesRequest) -> Result<SeriesResult, Failure> {
    ask_of(&Engine::new(AllowList::default(), false), node, pod, request, patient(Duration::from_secs(25)))
}

pub fn ask(namespace: &Namespace, request: &SeriesRequest) -> Result<SeriesResult, Failure> {
    ask_behind(namespace, namespace, request)
}

pub fn ask_of(
    engine: &Engine,
    node: &Namespace,
    pod: &Namespace,
    request: &SeriesRequest,
    within: Duration,
) -> Result<SeriesResult, Failure> {
    let place = Place { netns: handle(pod), node: handle(node), resolver: None, group: None, unseen: Vec::new() };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let result = runtime.block_on(engine.run(place, request, Instant::now() + within));
    if let Ok(result) = &result {
        assert_eq!(result.asked, result.made + result.untried, "{result:?}");
        assert_eq!(result.made, result.succeeded + result.failed, "{result:?}");
        assert_eq!(result.made as usize, result.attempts.len() + result.not_kept as usize, "{result:?}");
    }
    result
}
