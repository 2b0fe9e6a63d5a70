//! Who is asking, and what they may do: TokenReview and SubjectAccessReview.

use std::collections::BTreeMap;

use ::kube::Api;
use ::kube::api::PostParams;
use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec};
use k8s_openapi::api::authorization::v1::{
    ResourceAttributes, SelfSubjectAccessReview, SelfSubjectAccessReviewSpec, SubjectAccessReview,
    SubjectAccessReviewSpec,
};

use super::Access;
use super::error::bounded;
use crate::ask::SourceError;

/// Somebody whom the API server knows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct User {
    pub name: String,
    pub uid: String,
    pub groups: Vec<String>,
    pub extra: BTreeMap<String, Vec<String>>,
}

/// Whose bearer token this is; none when the API server does not accept it.
pub async fn who(access: &Access, token: &str) -> Result<Option<User>, SourceError> {
    let review = TokenReview {
        spec: TokenReviewSpec { token: token.to_owned(), ..TokenReviewSpec::default() },
        ..TokenReview::default()
    };
    let reviewed = create(access, review, "tokenreviews.authentication.k8s.io").await?;
    let status = reviewed.status.unwrap_or_default();
    Ok(status.user.filter(|_| status.authenticated == Some(true)).map(|user| User {
        name: user.username.unwrap_or_default(),
        uid: user.uid.unwrap_or_default(),
        groups: user.groups.unwrap_or_default(),
        extra: user.extra.unwrap_or_default(),
    }))
}

/// What somebody wants to do with `probes.netdiag.dev`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verb {
    /// Let an answer send its few attempts along the asked path.
    Create,
    /// Choose what is sent, where to and how often.
    Probe,
}

impl Verb {
    pub fn name(self) -> &'static str {
        match self {
            Self::Create => "create",
            Self::Probe => "probe",
        }
    }
}

/// Hosts of nodes belong to no namespace, so starting there (empty) asks for the right in all of them.
fn attributes(verb: Verb, namespace: &str) -> ResourceAttributes {
    ResourceAttributes {
        group: Some("netdiag.dev".to_owned()),
        resource: Some("probes".to_owned()),
        verb: Some(verb.name().to_owned()),
        namespace: Some(namespace.to_owned()).filter(|namespace| !namespace.is_empty()),
        ..ResourceAttributes::default()
    }
}

fn of_secret(namespace: &str, name: &str) -> ResourceAttributes {
    ResourceAttributes {
        resource: Some("secrets".to_owned()),
        verb: Some("get".to_owned()),
        namespace: Some(namespace.to_owned()),
        name: Some(name.to_owned()),
        ..ResourceAttributes::default()
    }
}

/// Whether the identity of this access may choose probes that start in a namespace.
pub async fn i_may_probe(access: &Access, namespace: &str) -> Result<bool, SourceError> {
    i_may(access, attributes(Verb::Probe, namespace)).await
}

/// Whether the identity of this access may get a Secret.
pub async fn i_may_get_secret(access: &Access, namespace: &str, name: &str) -> Result<bool, SourceError> {
    i_may(access, of_secret(namespace, name)).await
}

async fn i_may(access: &Access, attributes: ResourceAttributes) -> Result<bool, SourceError> {
    let review = SelfSubjectAccessReview {
        spec: SelfSubjectAccessReviewSpec {
            resource_attributes: Some(attributes),
            ..SelfSubjectAccessReviewSpec::default()
        },
        ..SelfSubjectAccessReview::default()
    };
    let reviewed = create(access, review, "selfsubjectaccessreviews.authorization.k8s.io").await?;
    Ok(reviewed.status.is_some_and(|status| status.allowed))
}

/// Whether this user may let probes start in a namespace.
pub async fn may(access: &Access, user: &User, verb: Verb, namespace: &str) -> Result<bool, SourceError> {
    user_may(access, user, attributes(verb, namespace)).await
}

/// Whether this user may get a Secret.
pub async fn may_get_secret(access: &Access, user: &User, namespace: &str, name: &str) -> Result<bool, SourceError> {
    user_may(access, user, of_secret(namespace, name)).await
}

async fn user_may(access: &Access, user: &User, attributes: ResourceAttributes) -> Result<bool, SourceError> {
    let review = SubjectAccessReview {
        spec: SubjectAccessReviewSpec {
            user: Some(user.name.clone()),
            uid: Some(user.uid.clone()),
            groups: Some(user.groups.clone()),
            extra: Some(user.extra.clone()),
            resource_attributes: Some(attributes),
            ..SubjectAccessReviewSpec::default()
        },
        ..SubjectAccessReview::default()
    };
    let reviewed = create(access, review, "subjectaccessreviews.authorization.k8s.io").await?;
    Ok(reviewed.status.is_some_and(|status| status.allowed))
}

async fn create<K>(access: &Access, review: K, resource: &str) -> Result<K, SourceError>
where
    K: ::kube::Resource<DynamicType = ()> + serde::Serialize + serde::de::DeserializeOwned + Clone + std::fmt::Debug,
{
    let api: Api<K> = Api::all(access.client.clone());
    let parameters = PostParams::default();
    bounded(api.create(&parameters, &review)).await.map_err(|error| SourceError {
        message: format!("cannot check who asks: {error}; it takes the verb create on {resource}"),
    })
}
