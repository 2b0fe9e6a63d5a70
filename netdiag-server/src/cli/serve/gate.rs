//! The gate of a server that listens beyond loopback: Kubernetes says who calls and what they may do.

use std::pin::Pin;

use crate::kube::review::Verb;
use crate::kube::{Access, review};
use crate::mcp::{Caller, Denied, Gate};
use crate::probe::rights;

pub(super) struct ByReview {
    pub access: Access,
}

type Check<'g, T> = Pin<Box<dyn Future<Output = Result<T, Denied>> + Send + 'g>>;

impl Gate for ByReview {
    fn identify<'g>(&'g self, bearer: &'g str) -> Check<'g, Caller> {
        Box::pin(async move {
            let known = review::who(&self.access, bearer).await;
            let user = known.map_err(|error| Denied::Unavailable(error.message))?;
            let user = user.ok_or_else(|| {
                Denied::Unauthenticated("the API server does not accept this token; it may have expired".to_owned())
            })?;
            Ok(Caller { user: user.name, uid: user.uid, groups: user.groups, extra: user.extra })
        })
    }

    fn may_probe<'g>(&'g self, caller: &'g Caller, namespace: &'g str) -> Check<'g, ()> {
        Box::pin(async move {
            if self.may(caller, Verb::Create, namespace).await? {
                return Ok(());
            }
            let place =
                if namespace.is_empty() { "all namespaces".to_owned() } else { format!("namespace {namespace}") };
            let user = &caller.user;
            Err(Denied::Forbidden(format!("{user} may not create probes.netdiag.dev in {place}")))
        })
    }

    fn may_choose_probes<'g>(&'g self, caller: &'g Caller, namespace: &'g str) -> Check<'g, ()> {
        Box::pin(async move {
            if self.may(caller, Verb::Probe, namespace).await? {
                return Ok(());
            }
            Err(Denied::Forbidden(rights::denied(&caller.user, namespace)))
        })
    }

    fn may_get_secret<'g>(&'g self, caller: &'g Caller, namespace: &'g str, name: &'g str) -> Check<'g, ()> {
        Box::pin(async move {
            let may = review::may_get_secret(&self.access, &user(caller), namespace, name).await;
            if may.map_err(|error| Denied::Unavailable(error.message))? {
                return Ok(());
            }
            Err(Denied::Forbidden(rights::no_secret(&caller.user, namespace, name)))
        })
    }
}

fn user(caller: &Caller) -> review::User {
    review::User {
        name: caller.user.clone(),
        uid: caller.uid.clone(),
        groups: caller.groups.clone(),
        extra: caller.extra.clone(),
    }
}

impl ByReview {
    async fn may(&self, caller: &Caller, verb: Verb, namespace: &str) -> Result<bool, Denied> {
        let may = review::may(&self.access, &user(caller), verb, namespace).await;
        may.map_err(|error| Denied::Unavailable(error.message))
    }
}
