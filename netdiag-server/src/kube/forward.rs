//! netdiag's server reached as kubectl port-forward does: through the API server, with the caller's own rights.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use ::kube::Api;
use ::kube::api::Portforwarder;
use futures::FutureExt;
use futures::future::{BoxFuture, Fuse};
use http::{HeaderValue, Request, StatusCode, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Bytes;
use hyper_util::rt::TokioIo;
use k8s_openapi::api::core::v1::Pod;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use tokio::sync::OnceCell;

use super::Access;
use super::error::{RequestError, innermost};
use super::list;
use super::proof::Prover;
use crate::ask::SourceError;
use crate::evidence::object::Pod as SlimPod;

/// Where netdiag installs itself.
pub const NAMESPACE: &str = "netdiag-system";
/// The label of the server's pods, as in `charts/`.
const LABEL: &str = "app.kubernetes.io/name%3Dnetdiag";
/// Where the server listens inside its pod, on the pod's loopback: port-forward starts there.
pub const SERVER_PORT: u16 = 8080;
/// The answer is JSON. MCP's endpoint answers only who takes a stream of events as well (MCP 2025-06-18, Transports, Streamable HTTP),
/// which netdiag's never sends.
const TAKEN: &str = "application/json, text/event-stream";
/// An answer with all its steps is below 1 MiB; a scan of a large cluster is some.
const MAX_ANSWER_BYTES: usize = 64 << 20;
/// The API server asks the kubelet, the kubelet the container runtime.
const OPEN_TIMEOUT: Duration = Duration::from_secs(5);
/// Port-forwards that are opened before one of them carries something.
const TRIES: usize = 3;
/// What the server says of a path that it does not have.
const MAX_HELLO_BYTES: usize = 64 << 10;

/// A ready pod of netdiag's server.
pub struct Server {
    access: Access,
    /// Its name; once it is gone, that of the one in its place.
    pod: Mutex<String>,
    prover: OnceCell<Prover>,
}

/// Why there is no answer of the server.
pub enum ForwardError {
    /// It was not reached: the question can be asked elsewhere.
    Unreached(String),
    /// It said no, in its own words.
    Refused(String),
}

#[derive(Deserialize)]
struct Pods {
    items: Vec<SlimPod>,
}

/// What the server answers instead of a result.
#[derive(Deserialize)]
struct Said {
    error: String,
}

impl Server {
    /// Looks for a ready pod; an error of the API itself concerns every other way to answer, too.
    pub async fn find(access: &Access) -> Result<Result<Self, String>, SourceError> {
        let found = ready_pod(access).await?;
        Ok(found.map(|pod| Self { access: access.clone(), pod: Mutex::new(pod), prover: OnceCell::new() }))
    }

    /// One POST with JSON there and back. A server that has to know who asks, for what takes a right or since it listens beyond its
    /// loopback, is shown a proof: see [`Self::withdraw`].
    pub async fn post<T: DeserializeOwned>(
        &self,
        path: &str,
        body: &impl serde::Serialize,
        patience: Duration,
    ) -> Result<T, ForwardError> {
        match self.send(path, body, patience, None).await? {
            (StatusCode::UNAUTHORIZED, _) => self.post_proven(path, body, patience).await,
            (status, answer) => read(status, &answer),
        }
    }

    /// The same with a proof of who asks from the beginning, for what takes a right. In place of one that is not accepted, as it is older
    /// than this machine knows or a token that only a proxy knows, another one is made once.
    pub async fn post_proven<T: DeserializeOwned>(
        &self,
        path: &str,
        body: &impl serde::Serialize,
        patience: Duration,
    ) -> Result<T, ForwardError> {
        let shown = self.proof().await?;
        let (status, answer) = self.send(path, body, patience, Some(shown.clone())).await?;
        if status == StatusCode::UNAUTHORIZED
            && let Some(prover) = self.prover.get()
        {
            prover.refused(&shown).await;
            let (status, answer) = self.send(path, body, patience, Some(self.proof().await?)).await?;
            return read(status, &answer);
        }
        read(status, &answer)
    }

    /// The value of `Authorization`.
    async fn proof(&self) -> Result<HeaderValue, ForwardError> {
        let proof = async {
            let prover = self.prover.get_or_try_init(|| std::future::ready(Prover::new(&self.access))).await?;
            prover.authorization().await
        };
        proof
            .await
            .map_err(|why: String| ForwardError::Refused(format!("cannot prove to netdiag's server who asks: {why}")))
    }

    /// Takes back what a proof left in the cluster, if something was: for when nothing more is asked.
    pub async fn withdraw(&self) {
        if let Some(prover) = self.prover.get() {
            prover.withdraw().await;
        }
    }

    async fn send(
        &self,
        path: &str,
        body: &impl serde::Serialize,
        patience: Duration,
        proof: Option<HeaderValue>,
    ) -> Result<(StatusCode, Bytes), ForwardError> {
        let unreached = |why: String| ForwardError::Unreached(format!("pod {NAMESPACE}/{}: {why}", self.pod()));
        let body = serde_json::to_vec(body).map_err(|error| ForwardError::Refused(error.to_string()))?;
        let mut way = self.way().await.map_err(unreached)?;
        let mut request = Request::post(path)
            .header(header::HOST, "localhost")
            .header(header::CONTENT_TYPE, "application/json")
            .header(header::ACCEPT, TAKEN)
            .body(Full::new(Bytes::from(body)))
            .expect("the path is a constant");
        if let Some(proof) = proof {
            request.headers_mut().insert(header::AUTHORIZATION, proof);
        }
        let response = way.exchange(request, patience).await.map_err(unreached)?;
        let status = response.status();
        let collected = tokio::time::timeout(patience, Limited::new(response.into_body(), MAX_ANSWER_BYTES).collect())
            .await
            .map_err(|_| unreached("its answer broke off".to_owned()))?;
        let bytes = collected.map_err(|error| unreached(format!("its answer broke off: {error}")))?.to_bytes();
        Ok((status, bytes))
    }

    /// A way to the known pod, or to one that took its place since: whoever asks again and again outlives pods. Nothing was sent to the
    /// first one then, so that nothing is sent twice.
    async fn way(&self) -> Result<Way, String> {
        let known = self.pod();
        let why = match self.proven_way(&known).await {
            Ok(way) => return Ok(way),
            Err(why) => why,
        };
        match ready_pod(&self.access).await {
            Ok(Ok(pod)) if pod != known => {
                self.pod.lock().unwrap_or_else(PoisonError::into_inner).clone_from(&pod);
                self.proven_way(&pod).await
            }
            _ => Err(why),
        }
    }

    fn pod(&self) -> String {
        // A name is whole, whoever panicked.
        self.pod.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// A way on which the server has answered something, whatever it was: an opened port-forward may carry nothing, and to
    /// find that out must not take as long as the longest answer.
    async fn proven_way(&self, pod: &str) -> Result<Way, String> {
        let mut last = String::new();
        for _ in 0..TRIES {
            match Way::over(self.open(pod).await?).await {
                Ok(way) => return Ok(way),
                Err(why) => last = why,
            }
        }
        Err(last)
    }

    async fn open(&self, pod: &str) -> Result<Forwarder, String> {
        let pods: Api<Pod> = Api::namespaced(self.access.client.clone(), NAMESPACE);
        let opened = tokio::time::timeout(OPEN_TIMEOUT, pods.portforward(pod, &[SERVER_PORT]))
            .await
            .map_err(|_| format!("port-forward did not open within {} s", OPEN_TIMEOUT.as_secs()))?;
        opened.map(Forwarder).map_err(|error| format!("port-forward failed: {}", RequestError::from(error)))
    }
}

/// The name of a pod that answers, or why there is none.
async fn ready_pod(access: &Access) -> Result<Result<String, String>, SourceError> {
    let uri = format!("/api/v1/namespaces/{NAMESPACE}/pods?labelSelector={LABEL}&limit=50");
    let pods: Pods = match list::get(access, &uri).await {
        Ok(pods) => pods,
        Err(error @ (RequestError::Forbidden(_) | RequestError::NotServed(_) | RequestError::Failed(_))) => {
            return Ok(Err(error.to_string()));
        }
        Err(error) => return Err(error.of_source(access)),
    };
    let ready = pods.items.iter().find(|pod| pod.is_ready() && pod.metadata.deleted_at.is_none());
    Ok(match (ready, pods.items.first()) {
        (Some(pod), _) => Ok(pod.metadata.name.clone()),
        (None, Some(pod)) => Err(format!("its pod {NAMESPACE}/{} is not ready", pod.metadata.name)),
        (None, None) => Err(format!("namespace {NAMESPACE} has no pod of it")),
    })
}

fn read<T: DeserializeOwned>(status: StatusCode, answer: &[u8]) -> Result<T, ForwardError> {
    if !status.is_success() {
        let said: Result<Said, _> = serde_json::from_slice(answer);
        return Err(ForwardError::Refused(
            said.map_or_else(|_| format!("netdiag's server answered {status}"), |s| s.error),
        ));
    }
    serde_json::from_slice(answer).map_err(|error| {
        ForwardError::Refused(format!("netdiag's server speaks another version: {error}; use the same version here"))
    })
}

/// An HTTP connection to the server's own loopback.
struct Way {
    sender: hyper::client::conn::http1::SendRequest<Full<Bytes>>,
    /// What the kubelet said against it.
    refused: Fuse<BoxFuture<'static, Option<String>>>,
    _forwarder: Forwarder,
}

impl Way {
    /// The server has answered something on it.
    async fn over(mut forwarder: Forwarder) -> Result<Self, String> {
        let stream = forwarder.0.take_stream(SERVER_PORT).expect("the port was asked for");
        let refused = forwarder.0.take_error(SERVER_PORT).expect("the port was asked for");
        let (sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|error| innermost(&error))?;
        tokio::spawn(connection);
        let mut way = Way { sender, refused: refused.boxed().fuse(), _forwarder: forwarder };
        let hello = Request::get("/").header(header::HOST, "localhost").body(Full::default()).expect("it is constant");
        let answer = way.exchange(hello, OPEN_TIMEOUT).await?;
        // The next request waits for the end of this answer.
        let ended = tokio::time::timeout(OPEN_TIMEOUT, Limited::new(answer.into_body(), MAX_HELLO_BYTES).collect());
        ended.await.map_err(|_| "its first answer broke off".to_owned())?.map_err(|error| error.to_string())?;
        Ok(way)
    }

    async fn exchange(
        &mut self,
        request: Request<Full<Bytes>>,
        patience: Duration,
    ) -> Result<hyper::Response<hyper::body::Incoming>, String> {
        let sent = async {
            self.sender.ready().await?;
            self.sender.send_request(request).await
        };
        let refused = async {
            match (&mut self.refused).await {
                Some(why) => why,
                // Nothing was said: the connection itself tells its end.
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            answer = tokio::time::timeout(patience, sent) => answer
                .map_err(|_| format!("no answer within {:.1} s", patience.as_secs_f64()))?
                .map_err(|error| innermost(&error)),
            why = refused => Err(format!("port-forward failed: {}", why.trim_end())),
        }
    }
}

/// Ends with its value; kube's own goes on by itself.
struct Forwarder(Portforwarder);

impl Drop for Forwarder {
    fn drop(&mut self) {
        self.0.abort();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use ::kube::Config;
    use ::kube::client::Body;
    use http::Response;
    use tower::BoxError;

    use super::*;

    /// An API server that lists one pod, forwards no port, and writes down what it was asked for.
    fn fake_access(pod: &'static str, seen: &Arc<Mutex<Vec<String>>>) -> Access {
        let seen = seen.clone();
        let server = tower::service_fn(move |request: Request<Body>| {
            let path = request.uri().path().to_owned();
            let (code, answer) = if path.ends_with("/portforward") {
                (404, serde_json::json!({"kind": "Status", "status": "Failure", "message": "gone", "code": 404}))
            } else {
                let ready = serde_json::json!({"conditions": [{"type": "Ready", "status": "True"}]});
                (200, serde_json::json!({"items": [{"metadata": {"name": pod}, "status": ready}]}))
            };
            seen.lock().expect("nobody panicked").push(path);
            let answer = Response::builder().status(code).body(Body::from(answer.to_string().into_bytes()));
            std::future::ready(answer.map_err(BoxError::from))
        });
        Access {
            client: ::kube::Client::new(server, "default"),
            context: String::new(),
            server: String::new(),
            config: Arc::new(Config::new("https://10.0.0.1:6443".parse().expect("an address"))),
        }
    }

    async fn asked(known: &str, listed: &'static str) -> (String, Vec<String>) {
        let seen = Arc::default();
        let access = fake_access(listed, &seen);
        let server = Server { access, pod: Mutex::new(known.to_owned()), prover: OnceCell::new() };
        let answer: Result<serde_json::Value, _> = server.post("/v1/status", &(), Duration::from_secs(1)).await;
        let Err(ForwardError::Unreached(why)) = answer else { panic!("no port is forwarded") };
        let seen = seen.lock().expect("nobody panicked").clone();
        (why, seen)
    }

    #[tokio::test]
    async fn the_pod_that_took_its_place_is_asked() {
        let pods = "/api/v1/namespaces/netdiag-system/pods";
        let (why, seen) = asked("first", "second").await;
        assert_eq!(why, "pod netdiag-system/second: port-forward failed: gone");
        assert_eq!(seen, [format!("{pods}/first/portforward"), pods.to_owned(), format!("{pods}/second/portforward")]);
        let (why, seen) = asked("first", "first").await;
        assert_eq!(why, "pod netdiag-system/first: port-forward failed: gone");
        assert_eq!(seen, [format!("{pods}/first/portforward"), pods.to_owned()]);
    }
}
