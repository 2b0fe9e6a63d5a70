//! Many questions at once: every port of every Service, from every node's host, and every path whose own traffic fails.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use netdiag_common::observation::Protocol;
use netdiag_common::{Gap, Need, Reading, Tier, Window};

use super::{AskError, Inquiry, Source, ask_many, named};
use crate::condition::policy_denies_path;
use crate::correlate::correlate;
use crate::evidence::Cluster;
use crate::observed::{Failing, Names, Rows, Subject, Wanted, failing};
use crate::path::{self, Path};
use crate::question::{Origin, PortName, Purpose, Question, Target};

/// Paths of one scan. Every path is judged by every condition in each round; this many take seconds.
pub const MAX_SCAN_PATHS: usize = 512;

/// Failing paths that a scan asks about besides; the ones that fail most.
const MAX_FAILING: usize = 16;
/// The nodes were asked a moment ago: one that is slower now is a gap.
const LOOK_LIMIT: Duration = Duration::from_secs(3);

/// What a scan covers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Scope {
    /// Empty for every namespace.
    pub namespace: String,
    pub tier: Tier,
    pub budget: Duration,
}

/// What a scan brought.
pub struct Scanned {
    pub inquiries: Vec<Inquiry>,
    /// Paths that were not asked because of [`MAX_SCAN_PATHS`].
    pub left_out: usize,
    /// Traffic that fails, and no cause was found.
    pub unexplained: Vec<Failing>,
    /// Why traffic could not be looked at.
    pub gaps: Vec<Gap>,
}

/// Looks at what fails by itself, asks about every Service, and then about what fails and is not explained by that.
pub async fn scan<S: Source>(source: &S, scope: &Scope) -> Result<Scanned, AskError> {
    let started = Instant::now();
    let cluster = source.cluster().await?;
    let mut questions = questions(&cluster, scope);
    let left_out = questions.len().saturating_sub(MAX_SCAN_PATHS);
    questions.truncate(MAX_SCAN_PATHS);
    // Before the first probe: the kernels count ours like everybody's connections.
    let mut gaps = Vec::new();
    let failing = look(source, &cluster, scope, &mut gaps).await;
    let inquiries = ask_many(source, &questions).await?;
    let mut scanned = Scanned { inquiries, left_out, unexplained: Vec::new(), gaps };
    let rest = scope.budget.saturating_sub(started.elapsed());
    explain(source, &cluster, &Scope { budget: rest, ..scope.clone() }, failing, &mut scanned).await?;
    Ok(scanned)
}

/// What fails by itself in the scope, as the nodes' kernels counted it in the last minute.
async fn look<S: Source>(source: &S, cluster: &Arc<Cluster>, scope: &Scope, gaps: &mut Vec<Gap>) -> Vec<Failing> {
    let wanted = Wanted { namespace: scope.namespace.clone(), window: Window::Minute, ..Wanted::default() };
    // A namespace that is gone meanwhile has no traffic.
    let Ok(selection) = wanted.select(cluster) else { return Vec::new() };
    let subjects = [Subject::Drops, Subject::Rejects, Subject::Tcp, Subject::Dns];
    let of_node = |node: &String| subjects.map(|subject| Need::host(node, subject.topic()).over(wanted.window));
    let needs: Vec<Need> = selection.nodes.iter().flat_map(of_node).collect();
    let names = Names::of(cluster);
    let mut rows = Rows::default();
    for (need, reading) in source.gather(needs, Instant::now() + LOOK_LIMIT.min(scope.budget)).await {
        match named(need, reading, cluster) {
            (need, Reading::Seen { value, .. }) => rows.add(&need, &value, &names, &selection),
            (_, Reading::Unavailable { gap }) => gaps.push(gap),
            (_, Reading::Absent { .. } | Reading::NotAsked { .. }) => {}
        }
    }
    let mut failing = failing(&rows);
    failing.truncate(MAX_FAILING);
    failing
}

/// Asks why. What a policy is meant to deny is no fault, and stays quiet as in the rest of the scan.
async fn explain<S: Source>(
    source: &S,
    cluster: &Cluster,
    scope: &Scope,
    failing: Vec<Failing>,
    scanned: &mut Scanned,
) -> Result<(), AskError> {
    let mut asked = Vec::new();
    for failing in failing {
        if is_explained(&failing, &scanned.inquiries) {
            continue;
        }
        // What cannot be asked about, because an end of it is gone or not known, is still seen.
        match question_about(&failing, scope).filter(|question| path::resolve(question, cluster, None).is_ok()) {
            Some(question) => asked.push((failing, question)),
            None => scanned.unexplained.push(failing),
        }
    }
    let questions: Vec<Question> = asked.iter().map(|(_, question)| question.clone()).collect();
    let inquiries = match ask_many(source, &questions).await {
        Ok(inquiries) => inquiries,
        Err(AskError::Question(_)) => Vec::new(),
        Err(error) => return Err(error),
    };
    let mut inquiries = inquiries.into_iter();
    for (failing, _) in asked {
        match inquiries.next().map(|inquiry| (correlate(&inquiry.judged).causes, inquiry)) {
            Some((causes, _))
                if causes.iter().any(|cause| cause.condition.code == policy_denies_path::CONDITION.code) => {}
            Some((causes, inquiry)) if !causes.is_empty() => scanned.inquiries.push(inquiry),
            _ => scanned.unexplained.push(failing),
        }
    }
    Ok(())
}

/// A cause was found for a path to the same address.
fn is_explained(failing: &Failing, inquiries: &[Inquiry]) -> bool {
    let Ok(to) = failing.to.address.parse::<SocketAddr>() else { return false };
    let leads_there = |path: &Path| {
        let dialled = path.port == Some(to.port()) && path.addresses.contains(&to.ip());
        dialled || path.backends.iter().any(|backend| backend.address == to.ip() && backend.port == to.port())
    };
    inquiries.iter().any(|inquiry| leads_there(&inquiry.judged.path) && super::has_cause(inquiry))
}

fn question_about(failing: &Failing, scope: &Scope) -> Option<Question> {
    Some(Question {
        from: if failing.from.is_empty() { Origin::EveryNode } else { failing.from.parse().ok()? },
        to: failing.to.target().parse().ok()?,
        protocol: if failing.protocol == "udp" { Protocol::Udp } else { Protocol::Tcp },
        purpose: Purpose::Diagnose,
        tier: scope.tier,
        budget: scope.budget,
    })
}

fn questions(cluster: &Cluster, scope: &Scope) -> Vec<Question> {
    let in_scope = cluster
        .services
        .iter()
        .filter(|service| scope.namespace.is_empty() || service.metadata.namespace == scope.namespace)
        // An ExternalName Service is a name for something outside: it has no addresses to reach.
        .filter(|service| service.spec.kind != "ExternalName");
    let ports = in_scope.flat_map(|service| service.spec.ports.iter().map(move |port| (service, port)));
    let question =
        |(service, port): (&Arc<crate::evidence::object::Service>, &crate::evidence::object::ServicePort)| Question {
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
