//! Pods belong to the Service, or would be made for it, but none of them takes connections.

use super::unready::{self, Endpoints};
use super::{Condition, Read, Severity, Verdict, Words, proof};
use crate::evidence::object::Object;
use crate::evidence::{KindName, View};
use crate::finding::{Fate, Finding, Fix, Impact};
use crate::path::Path;

pub const CONDITION: Condition = Condition {
    code: "service_has_no_ready_endpoints",
    severity: Severity::High,
    words: Words {
        means: "the Service's selector is right, but no endpoint takes connections",
        how_we_know: "its EndpointSlices hold no ready endpoint, and its pods or their workload say why",
        silent_when: "at least one endpoint is ready, terminating endpoints still serve, or the selector matches nothing",
        what_to_do: "make the pods ready, scale the workload up, or name a port that the pods have",
        sources: &[
            "https://kubernetes.io/docs/concepts/services-networking/endpoint-slices/#conditions",
            "https://github.com/kubernetes/enhancements/tree/master/keps/sig-network/1669-proxy-terminating-endpoints",
        ],
    },
    faults: &["svc-pods-not-ready"],
    reads: &[
        Read::Kind(KindName::EndpointSlices),
        Read::Kind(KindName::Pods),
        Read::Kind(KindName::Workloads),
        Read::Kind(KindName::Nodes),
        Read::Kind(KindName::Events),
        Read::Topic("service_rules"),
    ],
    lookalikes: &["service_selects_no_pods", "service_port_not_defined"],
    explains: &[],
    judge,
};

fn judge(path: &Path, view: &mut View) -> Verdict {
    let Some(service) = path.service() else {
        return Verdict::not_applicable("the path does not lead to a Service");
    };
    if service.spec.kind == "ExternalName" {
        return Verdict::not_applicable("the Service is a name for something outside the cluster");
    }
    if path.service_port().is_none() && !service.spec.ports.is_empty() {
        return Verdict::not_applicable("the Service does not have the asked port");
    }
    let reference = service.reference();
    let lack = match unready::endpoints(service, path.service_port(), view) {
        Endpoints::Dark => return Verdict::unknown(view),
        Endpoints::Ready { ready, total } => {
            return Verdict::clear(format!("{ready} of {total} endpoints of {reference} are ready"));
        }
        Endpoints::Draining(count) => {
            return Verdict::clear(format!("{count} terminating endpoints of {reference} still serve"));
        }
        Endpoints::SelectsNothing => return Verdict::clear(format!("{reference} selects nothing, ready or not")),
        Endpoints::Lacking(lack) => lack,
    };
    let mut subjects = lack.subjects;
    subjects.insert(0, reference.clone());
    let mut proofs = lack.proofs;
    proofs.extend(proof::nothing_to_forward_to(path, view));
    let predicts: &'static [Fate] = match (service.is_headless(), &path.name) {
        // Most proxies refuse; some drop what has nowhere to go.
        (false, _) => &[Fate::Refused, Fate::Unreachable, Fate::Silence],
        (true, Some(_)) => &[Fate::LookupNoSuchName],
        (true, None) => &[],
    };
    Verdict::found(Finding {
        subjects,
        since: lack.since,
        impact: Impact::Breaks,
        claim: format!("{reference} has no ready endpoint: {}", lack.why),
        proofs,
        predicts,
        fix: Fix { verify: path.ask_again(), ..lack.fix },
    })
}
