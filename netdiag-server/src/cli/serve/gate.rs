//! The server's gate: Kubernetes says who calls and what they may do.
//!
//! On loopback, which is reached by whoever may open a port of the server's pod, nobody has to say who they are in order to look; a
//! diagnosis that they ask for sends its few attempts, as ever. To choose what is sent they have to, as beyond loopback. Web pages
//! are kept out before: see [`super::local`].

use std::pin::Pin;

use crate::kube::review::Verb;
use crate::kube::{Access, proof, review};
use crate::mcp::{Caller, Denied, Gate};
use crate::probe::rights;

/// What may be done about it when nobody says who asks.
const NAMELESS: &str = "it is not known who asks: use the netdiag command line, which proves it, or send a token as \
    Authorization: Bearer TOKEN (kubectl create token)";

pub(super) struct ByReview {
    pub access: Access,
    pub is_on_loopback: bool,
}

type Check<'g, T> = Pin<Box<dyn Future<Output = Result<T, Denied>> + Send + 'g>>;

impl Gate for ByReview {
    fn lets_nameless_look(&self) -> bool {
        self.is_on_loopback
    }

    fn identify<'g>(&'g self, bearer: &'g str) -> Check<'g, Caller> {
        Box::pin(async move {
            let known = proof::who(&self.access, bearer).await;
            let user = known.map_err(|error| Denied::Unavailable(error.message))?;
            let user = user.filter(|user| !user.name.is_empty()).ok_or_else(|| {
                let why = "the API server does not accept this token; it may have expired";
                Denied::Unauthenticated(why.to_owned())
            })?;
            Ok(Caller { user: user.name, uid: user.uid, groups: user.groups, extra: user.extra })
        })
    }

    fn may_probe<'g>(&'g self, caller: &'g Caller, namespace: &'g str) -> Check<'g, ()> {
        Box::pin(async move {
            let may_look = caller.is_nameless() && self.is_on_loopback;
            if may_look || self.may(caller, Verb::Create, namespace).await? {
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
            named(caller)?;
            if self.may(caller, Verb::Probe, namespace).await? {
                return Ok(());
            }
            Err(Denied::Forbidden(rights::denied(&caller.user, namespace)))
        })
    }

    fn may_get_secret<'g>(&'g self, caller: &'g Caller, namespace: &'g str, name: &'g str) -> Check<'g, ()> {
        Box::pin(async move {
            named(caller)?;
            let may = review::may_get_secret(&self.access, &user(caller), namespace, name).await;
            if may.map_err(|error| Denied::Unavailable(error.message))? {
                return Ok(());
            }
            Err(Denied::Forbidden(rights::no_secret(&caller.user, namespace, name)))
        })
    }
}

fn named(caller: &Caller) -> Result<(), Denied> {
    if caller.is_nameless() { Err(Denied::Unauthenticated(NAMELESS.to_owned())) } else { Ok(()) }
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
