//! netdiag's server reached as kubectl port-forward does: through the API server, with the caller's own rights.

use std::time::Duration;

use ::kube::Api;
use http::{Request, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Bytes;
use hyper_util::rt::TokioIo;
use k8s_openapi::api::core::v1::Pod;
use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::Access;
use super::error::{RequestError, innermost};
use super::list;
use crate::ask::SourceError;
use crate::evidence::object::Pod as SlimPod;

/// Where netdiag installs itself.
pub const NAMESPACE: &str = "netdiag-system";
/// The label of the server's pods, as in `charts/`.
const LABEL: &str = "app.kubernetes.io/name%3Dnetdiag";
/// Where the server listens inside its pod, on the pod's loopback: port-forward starts there.
pub const SERVER_PORT: u16 = 8080;
/// An answer with all its steps is below 1 MiB; a scan of a large cluster is some.
const MAX_ANSWER_BYTES: usize = 64 << 20;
/// The API server asks the kubelet, the kubelet the container runtime.
const OPEN_TIMEOUT: Duration = Duration::from_secs(5);

/// A ready pod of netdiag's server.
pub struct Server {
    access: Access,
    pod: String,
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
            (Some(pod), _) => Ok(Self { access: access.clone(), pod: pod.metadata.name.clone() }),
            (None, Some(pod)) => Err(format!("its pod {NAMESPACE}/{} is not ready", pod.metadata.name)),
            (None, None) => Err(format!("namespace {NAMESPACE} has no pod of it")),
        })
    }

    /// One POST with JSON there and back.
    pub async fn post<T: DeserializeOwned>(
        &self,
        path: &str,
        body: &impl serde::Serialize,
        patience: Duration,
    ) -> Result<T, ForwardError> {
        let unreached = |why: String| ForwardError::Unreached(format!("pod {NAMESPACE}/{}: {why}", self.pod));
        let body = serde_json::to_vec(body).map_err(|error| ForwardError::Refused(error.to_string()))?;
        let pods: Api<Pod> = Api::namespaced(self.access.client.clone(), NAMESPACE);
        let mut forwarder = tokio::time::timeout(OPEN_TIMEOUT, pods.portforward(&self.pod, &[SERVER_PORT]))
            .await
            .map_err(|_| unreached(format!("port-forward did not open within {} s", OPEN_TIMEOUT.as_secs())))?
            .map_err(|error| unreached(format!("port-forward failed: {}", RequestError::from(error))))?;
        let stream = forwarder.take_stream(SERVER_PORT).expect("the port was asked for");
        let exchange = async {
            let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
            let driver = tokio::spawn(connection);
            let request = Request::post(path)
                .header(header::HOST, "localhost")
                .header(header::CONTENT_TYPE, "application/json")
                .body(Full::new(Bytes::from(body)))
                .expect("the path is a constant");
            let response = sender.send_request(request).await;
            drop(driver);
            response
        };
        let response = tokio::time::timeout(patience, exchange)
            .await
            .map_err(|_| unreached(format!("no answer within {:.1} s", patience.as_secs_f64())))?
            .map_err(|error| unreached(innermost(&error)))?;
        let status = response.status();
        let collected = tokio::time::timeout(patience, Limited::new(response.into_body(), MAX_ANSWER_BYTES).collect())
            .await
            .map_err(|_| unreached("its answer broke off".to_owned()))?;
        let bytes = collected.map_err(|error| unreached(format!("its answer broke off: {error}")))?.to_bytes();
        forwarder.abort();
        if !status.is_success() {
            let said: Result<Said, _> = serde_json::from_slice(&bytes);
            return Err(ForwardError::Refused(
                said.map_or_else(|_| format!("netdiag's server answered {status}"), |s| s.error),
            ));
        }
        serde_json::from_slice(&bytes).map_err(|error| {
            ForwardError::Refused(format!(
                "netdiag's server speaks another version: {error}; use the same version here"
            ))
        })
    }
}
