//! Who may let probes start where. The node checks its own allow-list of destinations besides, whatever is said here.

use std::collections::BTreeMap;

use tokio::sync::Mutex;

use crate::kube::{Access, review};

/// No right to start there, or nobody who could tell. The text is shown.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text}")]
pub struct NoRight {
    pub text: String,
    /// The check itself failed: asking again may help.
    pub is_passing: bool,
}

/// Answers for whoever asks.
pub trait Rights: Sync {
    /// Whether probes may start in pods of this namespace; empty stands for the nodes themselves, which is the right in all of them.
    fn may_start(&self, namespace: &str) -> impl Future<Output = Result<(), NoRight>> + Send;

    /// Whether the certificate of a Secret may be told.
    fn may_get_secret(&self, namespace: &str, name: &str) -> impl Future<Output = Result<(), NoRight>> + Send;
}

/// For who holds the agents' certificates: nothing here could hold them back.
pub struct Unchecked;

impl Rights for Unchecked {
    async fn may_start(&self, _namespace: &str) -> Result<(), NoRight> {
        Ok(())
    }

    async fn may_get_secret(&self, _namespace: &str, _name: &str) -> Result<(), NoRight> {
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
    async fn may_start(&self, namespace: &str) -> Result<(), NoRight> {
        if self.namespaces.is_some_and(|only| !only.iter().any(|one| one == namespace)) {
            return Err(NoRight { text: denied("you", namespace), is_passing: false });
        }
        self.rights.may_start(namespace).await
    }

    async fn may_get_secret(&self, namespace: &str, name: &str) -> Result<(), NoRight> {
        self.rights.may_get_secret(namespace, name).await
    }
}

/// The identity of a kubeconfig asks for itself (SelfSubjectAccessReview), so that who lacks the right learns it before anything
/// is sent on their behalf.
pub struct Own {
    access: Access,
    known: Mutex<BTreeMap<String, Result<(), NoRight>>>,
}

impl Own {
    pub fn new(access: Access) -> Self {
        Self { access, known: Mutex::default() }
    }
}

impl Rights for Own {
    async fn may_start(&self, namespace: &str) -> Result<(), NoRight> {
        let mut known = self.known.lock().await;
        if let Some(answer) = known.get(namespace) {
            return answer.clone();
        }
        let answer = match review::i_may_probe(&self.access, namespace).await {
            Ok(true) => Ok(()),
            Ok(false) => Err(NoRight { text: denied("you", namespace), is_passing: false }),
            Err(error) => Err(NoRight { text: error.message, is_passing: true }),
        };
        known.insert(namespace.to_owned(), answer.clone());
        answer
    }

    async fn may_get_secret(&self, namespace: &str, name: &str) -> Result<(), NoRight> {
        match review::i_may_get_secret(&self.access, namespace, name).await {
            Ok(true) => Ok(()),
            Ok(false) => Err(NoRight { text: no_secret("you", namespace, name), is_passing: false }),
            Err(error) => Err(NoRight { text: error.message, is_passing: true }),
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
