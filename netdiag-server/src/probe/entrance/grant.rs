//! References from one namespace to another, which a ReferenceGrant of the other one must allow.

use super::super::secret::SecretName;
use crate::evidence::object::{GATEWAY_GROUP, Gateway, GrantFrom, Rule, Service};
use crate::evidence::{Cluster, Meta};

/// That a route may not lead to the Service; none where it may, and where grants could not be listed.
pub(super) fn lacking_to_service<R: Rule>(cluster: &Cluster, route: &Meta, service: &Service) -> Option<String> {
    let service = &service.metadata;
    lacking(cluster, R::ROUTE, &route.namespace, "Service", &service.namespace, &service.name)
}

/// The same of a Gateway and the Secrets with its certificates.
pub(super) fn lacking_to_secrets<'s>(
    cluster: &'s Cluster,
    gateway: &'s Gateway,
    secrets: &'s [SecretName],
) -> impl Iterator<Item = String> + 's {
    let from = &gateway.metadata.namespace;
    secrets
        .iter()
        .filter_map(move |secret| lacking(cluster, "Gateway", from, "Secret", &secret.namespace, &secret.name))
}

fn lacking(
    cluster: &Cluster,
    from_kind: &str,
    from_namespace: &str,
    kind: &str,
    namespace: &str,
    name: &str,
) -> Option<String> {
    // A list that could not be read is a gap of its own.
    if from_namespace == namespace || cluster.reference_grants.gap().is_some() {
        return None;
    }
    let from =
        GrantFrom { group: GATEWAY_GROUP.to_owned(), kind: from_kind.to_owned(), namespace: from_namespace.to_owned() };
    let mut grants = cluster.reference_grants.in_namespace(namespace);
    let is_granted = grants.any(|grant| grant.allows(&from, "", kind, name));
    (!is_granted).then(|| {
        format!("no ReferenceGrant in {namespace} allows {from_kind} of {from_namespace} to refer to {kind} {name}")
    })
}
