use std::pin::Pin;

use axum::body::Body;
use http::{Request, header};
use serde_json::json;
use tower::ServiceExt as _;

use super::*;
use crate::ask::live::Intent;
use crate::evidence::{Cluster, parse};
use crate::probe::Kind;

type Check<'g, T> = Pin<Box<dyn Future<Output = Result<T, Denied>> + Send + 'g>>;

/// Everybody is who they say, and ann alone may choose probes.
struct AnnAlone;

impl Gate for AnnAlone {
    fn lets_nameless_look(&self) -> bool {
        true
    }

    fn identify<'g>(&'g self, bearer: &'g str) -> Check<'g, Caller> {
        Box::pin(async move { Ok(caller(bearer)) })
    }

    fn may_probe<'g>(&'g self, _caller: &'g Caller, _namespace: &'g str) -> Check<'g, ()> {
        Box::pin(async { Ok(()) })
    }

    fn may_choose_probes<'g>(&'g self, caller: &'g Caller, _namespace: &'g str) -> Check<'g, ()> {
        let is_ann = caller.user == "ann";
        Box::pin(async move { if is_ann { Ok(()) } else { Err(Denied::Forbidden("only ann may".to_owned())) } })
    }

    fn may_get_secret<'g>(&'g self, _caller: &'g Caller, _namespace: &'g str, _name: &'g str) -> Check<'g, ()> {
        Box::pin(async { Ok(()) })
    }
}

fn caller(name: &str) -> Caller {
    Caller { user: name.to_owned(), ..Caller::default() }
}

fn source() -> Arc<LiveSource> {
    let mut cluster = Cluster::default();
    parse::add(&mut cluster, json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n1"}})).expect("a node");
    Arc::new(LiveSource::new(Intent::Recorded(Arc::new(cluster)), None, 9_444))
}

#[tokio::test]
async fn who_may_not_probe_takes_no_place() {
    let api = Api {
        source: source(),
        gate: Arc::new(AnnAlone),
        questions: Arc::new(Semaphore::new(MAX_QUESTIONS)),
        // All are taken.
        probes: Arc::new(Semaphore::new(0)),
        mesh: None,
        modules: Arc::new(Modules::of(None).expect("ours")),
    };
    let request = ProbeRequest::new(Kind::Tcp, "node/n1", "10.0.0.1:80");
    for (name, expected) in [("ann", StatusCode::SERVICE_UNAVAILABLE), ("bob", StatusCode::FORBIDDEN)] {
        let refused = api.probe(Some(Extension(caller(name))), &request).await.err();
        assert_eq!(refused.map(|Refused(status, _)| status), Some(expected), "{name}");
    }
}

/// What becomes of a question with so many KiB of targets.
async fn status(path: &str, kib: usize) -> StatusCode {
    let router = router(source(), Arc::new(AnnAlone), None, Modules::of(None).expect("ours"));
    let text = json!({"targets": ["x".repeat(kib * 1_024)]}).to_string();
    let request = Request::post(path).header(header::CONTENT_TYPE, "application/json").body(Body::from(text));
    router.oneshot(request.expect("a request")).await.expect("an answer").status()
}

#[tokio::test]
async fn a_question_about_a_mesh_has_room_for_its_targets() {
    assert_eq!(status("/v1/mesh", 200).await, StatusCode::FORBIDDEN, "it is read, and then takes a right");
    assert_eq!(status("/v1/mesh", 600).await, StatusCode::PAYLOAD_TOO_LARGE);
    assert_eq!(status("/v1/scan", 200).await, StatusCode::PAYLOAD_TOO_LARGE);
}
