//! What went wrong with one request to the API, sorted by what the caller does about it.

use std::time::Duration;

use super::Access;
use super::list::PAGE_TIMEOUT;
use crate::ask::SourceError;

/// One request's failure. `Forbidden` and `NotServed` concern that resource alone; the others usually all of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum RequestError {
    /// 403, with the API server's sentence: it names user, verb and resource.
    Forbidden(String),
    /// 401.
    Unauthorized(String),
    /// 404: this API server does not have the resource.
    NotServed(String),
    /// 410: the list or watch has to start again.
    Expired(String),
    /// No connection, or it broke.
    Unreachable(String),
    /// Nothing within this time.
    TimedOut(Duration),
    /// 409: it exists already.
    Conflict(String),
    /// Any other status, or an answer that is not what was asked for.
    Failed(String),
}

impl std::fmt::Display for RequestError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Forbidden(why)
            | Self::Unauthorized(why)
            | Self::NotServed(why)
            | Self::Expired(why)
            | Self::Unreachable(why)
            | Self::Conflict(why)
            | Self::Failed(why) => f.write_str(why),
            Self::TimedOut(limit) => write!(f, "no answer within {} s", limit.as_secs_f64()),
        }
    }
}

impl From<::kube::Error> for RequestError {
    fn from(error: ::kube::Error) -> Self {
        match error {
            ::kube::Error::Api(status) => match status.code {
                401 => Self::Unauthorized(status.message),
                403 => Self::Forbidden(status.message),
                404 => Self::NotServed(status.message),
                409 => Self::Conflict(status.message),
                410 => Self::Expired(status.message),
                code => Self::Failed(format!("the API server answered {code}: {}", status.message)),
            },
            error @ (::kube::Error::HyperError(_) | ::kube::Error::Service(_) | ::kube::Error::ReadEvents(_)) => {
                Self::Unreachable(innermost(&error))
            }
            error @ ::kube::Error::Auth(_) => Self::Unauthorized(error.to_string()),
            other => Self::Failed(innermost(&other)),
        }
    }
}

impl RequestError {
    /// When no kind at all could be read: the sentence for the whole source.
    pub fn of_source(&self, access: &Access) -> SourceError {
        let server = &access.server;
        let who = match access.context.as_str() {
            "" => "this Pod's service account".to_owned(),
            context => format!("context {context:?}"),
        };
        let message = match self {
            Self::Unauthorized(why) => {
                format!("the API server {server} does not accept the credentials of {who}: {why}; log in again")
            }
            Self::TimedOut(limit) => format!(
                "the API server {server} of {who} did not answer within {} s: check that it is not overloaded and that \
                 nothing on the way holds packets back",
                limit.as_secs_f64()
            ),
            Self::Unreachable(why) => format!(
                "cannot reach the API server {server} of {who}: {why}; check that it runs and that the kubeconfig's \
                 address is right"
            ),
            other => format!("the API server {server} of {who} answers nothing that could be judged: {other}"),
        };
        SourceError { message }
    }
}

/// One request of kube's typed client, bounded in time.
pub(crate) async fn bounded<T>(request: impl Future<Output = ::kube::Result<T>>) -> Result<T, RequestError> {
    match tokio::time::timeout(PAGE_TIMEOUT, request).await {
        Ok(result) => result.map_err(RequestError::from),
        Err(_) => Err(RequestError::TimedOut(PAGE_TIMEOUT)),
    }
}

/// The cause at the bottom of an error's chain: the outer layers only repeat that something failed.
pub(super) fn innermost(error: &(dyn std::error::Error + 'static)) -> String {
    let mut current = error;
    while let Some(source) = current.source() {
        current = source;
    }
    current.to_string()
}
