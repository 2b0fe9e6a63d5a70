//! Many questions at once: every port of every Service, from every node's host.

use std::time::Duration;

use netdiag_common::Tier;

use super::{AskError, Inquiry, Source, ask_many};
use crate::evidence::Cluster;
use crate::question::{Origin, PortName, Purpose, Question, Target};

/// Paths of one scan. Every path is judged by every condition in each round; this many take seconds.
pub const MAX_SCAN_PATHS: usize = 512;

/// What a scan covers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Scope {
    /// Empty for every namespace.
    pub namespace: String,
    pub tier: Tier,
    pub budget: Duration,
}

/// The inquiries of a scan and how many paths were left out because of [`MAX_SCAN_PATHS`].
pub async fn scan<S: Source>(source: &S, scope: &Scope) -> Result<(Vec<Inquiry>, usize), AskError> {
    let cluster = source.cluster().await?;
    let mut questions = questions(&cluster, scope);
    let left_out = questions.len().saturating_sub(MAX_SCAN_PATHS);
    questions.truncate(MAX_SCAN_PATHS);
    Ok((ask_many(source, &questions).await?, left_out))
}

fn questions(cluster: &Cluster, scope: &Scope) -> Vec<Question> {
    let in_scope = cluster
        .services
        .iter()
        .filter(|service| scope.namespace.is_empty() || service.metadata.namespace == scope.namespace)
        // An ExternalName Service is a name for something outside: it has no addresses to reach.
        .filter(|service| service.spec.kind != "ExternalName");
    let ports = in_scope.flat_map(|service| service.spec.ports.iter().map(move |port| (service, port)));
    let question = |(service, port): (
        &std::sync::Arc<crate::evidence::object::Service>,
        &crate::evidence::object::ServicePort,
    )| Question {
        from: Origin::EveryNode,
        to: Target::Service {
            namespace: service.metadata.namespace.clone(),
            name: service.metadata.name.clone(),
            port: Some(PortName::Number(port.port)),
        },
        protocol: port.protocol.0,
        purpose: Purpose::Scan,
        tier: scope.tier,
        budget: scope.budget,
    };
    ports.map(question).collect()
}
