//! Who may let probes start where. The node checks its own allow-list of destinations besides, whatever is said here.

use std::collections::BTreeMap;

use http::StatusCode;
use tokio::sync::Mutex;

use crate::kube::{Access, review};

/// Why somebody is not let in. The text is shown.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Denied {
    /// Nobody says who asks, or what they show proves nothing.
    #[error("{0}")]
    Unauthenticated(String),
    /// Known, but not allowed.
    #[error("{0}")]
    Forbidden(String),
    /// The check itself failed: asking again may help.
    #[error("{0}")]
    Unavailable(String),
}

impl Denied {
    /// As HTTP says it.
    pub fn status(&self) -> StatusCode {
        match self {
            Self::Unauthenticated(_) => StatusCode::UNAUTHORIZED,
            Self::Forbidden(_) => StatusCode::FORBIDDEN,
            Self::Unavailable(_) => StatusCode::SERVICE_UNAVAILABLE,
        }
    }
}

/// Answers for whoever asks.
pub trait Rights: Sync {
    /// Whether probes may start in pods of this namespace; empty stands for the nodes themselves, which is the right in all of them.
    fn may_start(&self, namespace: &str) -> impl Future<Output = Result<(), Denied>> + Send;

    /// Whether the certificate of a Secret may be told.
    fn may_get_secret(&self, namespace: &str, name: &str) -> impl Future<Output = Result<(), Denied>> + Send;
}

/// For who holds the agents' certificates: nothing here could hold them back.
pub struct Unchecked;

impl Rights for Unchecked {
    async fn may_start(&self, _namespace: &str) -> Result<(), Denied> {
        Ok(())
    }

    async fn may_get_secret(&self, _namespace: &str, _name: &str) -> Result<(), Denied> {
        Ok(())
    }
}

/// Rights that end with some namespaces, as a request says itself.
pub struct Only<'r, R> {
    pub rights: &'r R,
    /// None: all of them.
    pub namespaces: Option<&'r [String]>,
}

impl<R: Rights> Rights for Only<'_, R> {
    async fn may_start(&self, namespace: &str) -> Result<(), Denied> {
        if self.namespaces.is_some_and(|only| !only.iter().any(|one| one == namespace)) {
            return Err(Denied::Forbidden(denied("you", namespace)));
        }
        self.rights.may_start(namespace).await
    }

    async fn may_get_secret(&self, namespace: &str, name: &str) -> Result<(), Denied> {
        self.rights.may_get_secret(namespace, name).await
    }
}

/// The identity of a kubeconfig asks for itself (SelfSubjectAccessReview), so that who lacks the right learns it before anything
/// is sent on their behalf.
pub struct Own {
    access: Access,
    known: Mutex<BTreeMap<String, Result<(), Denied>>>,
}

impl Own {
    pub fn new(access: Access) -> Self {
        Self { access, known: Mutex::default() }
    }
}

impl Rights for Own {
    async fn may_start(&self, namespace: &str) -> Result<(), Denied> {
        let mut known = self.known.lock().await;
        if let Some(answer) = known.get(namespace) {
            return answer.clone();
        }
        let answer = match review::i_may_probe(&self.access, namespace).await {
            Ok(true) => Ok(()),
            Ok(false) => Err(Denied::Forbidden(denied("you", namespace))),
            Err(error) => Err(Denied::Unavailable(error.message)),
        };
        known.insert(namespace.to_owned(), answer.clone());
        answer
    }

    async fn may_get_secret(&self, namespace: &str, name: &str) -> Result<(), Denied> {
        match review::i_may_get_secret(&self.access, namespace, name).await {
            Ok(true) => Ok(()),
            Ok(false) => Err(Denied::Forbidden(no_secret("you", namespace, name))),
            Err(error) => Err(Denied::Unavailable(error.message)),
        }
    }
}

/// `USER may not get Secret shop/web-tls`.
pub(crate) fn no_secret(user: &str, namespace: &str, name: &str) -> String {
    format!("{user} may not get Secret {namespace}/{name}")
}

/// `USER may not probe from …`, with the rule that would allow it.
pub(crate) fn denied(user: &str, namespace: &str) -> String {
    let (place, kind) = match namespace {
        "" => ("nodes, which takes the right in all namespaces".to_owned(), "a ClusterRole"),
        namespace => (format!("pods of namespace {namespace}"), "a Role"),
    };
    format!("{user} may not probe from {place}: {kind} with the verb probe on probes.netdiag.dev allows it")
}
