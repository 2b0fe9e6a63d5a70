//! A node's clock is wrong, so that its programs take a valid certificate for expired, or for not yet valid.

use std::net::SocketAddr;

use jiff::{SignedDuration, Timestamp};
use netdiag_common::observation::Protocol;
use netdiag_common::observation::series::tls::{Certificate, TlsProblem, TlsReport, TlsWords};
use netdiag_common::observation::series::{Identity, Probe, ProbeReport, SeriesRequest, TlsProbe};
use netdiag_common::{Gap, GapReason, Netns};

use super::{Condition, Read, Severity, Verdict, Words};
use crate::evidence::{KindName, Look, ObjectRef, View};
use crate::finding::{Fate, Finding, Fix, Impact, Proof};
use crate::path::{Client, MAX_CLIENT_PROBES, Path};

pub const CONDITION: Condition = Condition {
    code: "node_clock_wrong",
    severity: Severity::Medium,
    words: Words {
        means: "the clock of the client's node is wrong, so that programs there take the server's certificate for expired or for not yet \
                valid, while it is valid",
        how_we_know: "the node's agent tells another time than netdiag's own clock, with which another node agrees; and a TLS handshake \
                      from the client's place meets a certificate whose time has come, and is not over, by every clock but the node's",
        silent_when: "the certificate is outdated by the other clocks as well, the node's error does not reach its dates, other nodes \
                      agree with the node (then netdiag's own clock is wrong), or the port is not one of TLS by its name or number; \
                      not seen are servers that refuse their clients' certificates or tokens, and nodes whose agents take netdiag's \
                      own certificate for outdated and do not answer",
        what_to_do: "set the node's clock, and find out why its time service (chrony, systemd-timesyncd, the hypervisor's) does not",
        sources: &["RFC 5280 4.1.2.5 (notBefore, notAfter)", "https://linkerd.io/2/checks/#pre-k8s-clock-skew"],
    },
    faults: &["host-clock-skew"],
    reads: &[Read::Kind(KindName::Nodes), Read::Topic("network"), Read::Topic("series")],
    lookalikes: &[],
    explains: &[],
    judge,
};

/// Beyond this a clock is wrong, and beyond what the question may take, since a reading is at most as old as that. Clocks that a time
/// service keeps differ by less than a second.
const TOLERANCE: SignedDuration = SignedDuration::from_secs(60);
/// Other nodes whose clocks are compared.
const MAX_PEERS: usize = 3;
/// One handshake, with a SYN and its first retransmission before it (RFC 6298).
const HANDSHAKE_MS: u32 = 3_000;
/// Ports at which TLS is usual: HTTPS, the Kubernetes API, webhooks and dashboards.
const PORTS: &[u16] = &[443, 6_443, 8_443];
/// How ports of TLS are called, alone or before a dash (Istio's protocol selection by names).
const NAMES: &[&str] = &["https", "tls", "grpcs"];

/// A client that distrusts the server because of its node's clock.
struct Wrong<'p> {
    client: &'p Client,
    claim: String,
    proofs: Vec<Proof>,
}

enum Found<'p> {
    Wrong(Box<Wrong<'p>>),
    Fine(String),
    Dark,
}

fn judge(path: &Path, view: &mut View) -> Verdict {
    if !path.is_asked() || path.protocol != Protocol::Tcp {
        return Verdict::not_applicable("certificates are asked for on TCP paths that somebody asks about");
    }
    let Some(port) = path.port.filter(|port| is_for_tls(path, *port)) else {
        return Verdict::not_applicable("the port is not one of TLS by its name or number");
    };
    let tolerance =
        SignedDuration::try_from(path.question.budget).map_or(SignedDuration::MAX, |all| all.max(TOLERANCE));
    let (mut wrong, mut fine, mut dark): (Vec<Wrong>, Vec<String>, bool) = (Vec::new(), Vec::new(), false);
    for client in path.clients.iter().take(MAX_CLIENT_PROBES) {
        let Some(address) = path.addresses.iter().copied().find(|address| client.speaks_to(*address)) else { continue };
        match look(client, SocketAddr::new(address, port), tolerance, view) {
            Found::Wrong(found) => wrong.push(*found),
            Found::Fine(because) => fine.push(because),
            Found::Dark => dark = true,
        }
    }
    let Some(first) = wrong.first() else {
        return match fine.first() {
            _ if dark => Verdict::unknown(view),
            Some(because) => Verdict::clear(because.clone()),
            None => Verdict::not_applicable("the path has no address that the client could ask for a certificate"),
        };
    };
    let mut subjects: Vec<ObjectRef> = Vec::new();
    for one in &wrong {
        ObjectRef::of_node(&one.client.node).add_once(&mut subjects);
    }
    let node = &first.client.node;
    let fix = Fix {
        text: format!(
            "set the clock of node {node}: see that its time service runs, reaches its servers and may step the clock (chronyc makestep); \
             certificates and tokens that were issued there meanwhile may have to be made anew"
        ),
        commands: vec![format!("timedatectl  # on node {node}"), format!("chronyc tracking  # on node {node}")],
        verify: path.ask_again(),
    };
    let impact = if wrong.len() == path.clients.len() { Impact::Breaks } else { Impact::Degrades };
    let claim = first.claim.clone();
    let proofs = wrong.iter().flat_map(|one| one.proofs.clone()).collect();
    Verdict::found(Finding { subjects, since: None, impact, claim, proofs, predicts: &[Fate::Distrusted], fix })
}

/// By the number that is dialled or answered, or by the name in the Service.
fn is_for_tls(path: &Path, port: u16) -> bool {
    let name = path.service_port().map_or("", |port| port.name.as_str());
    let word = name.split('-').next().unwrap_or_default();
    let answered = path.ready_backends().any(|backend| PORTS.contains(&backend.port));
    answered || PORTS.contains(&port) || NAMES.contains(&word)
}

fn look<'p>(client: &'p Client, to: SocketAddr, tolerance: SignedDuration, view: &mut View) -> Found<'p> {
    let node = client.node.as_str();
    let Look::Seen(network) = view.network(node, &Netns::Host) else { return Found::Dark };
    // Any reading says what time it was there; this one is asked for anyway.
    let (there, here) = (network.at, view.now());
    let ahead = there.duration_since(here);
    if ahead.abs() <= tolerance {
        return Found::Fine(format!("the clock of node {node} is right"));
    }
    let witness = match witness(node, ahead, tolerance, view) {
        Witness::Agrees(proof) => proof,
        Witness::Contradicts(other) => {
            return Found::Fine(format!(
                "the clock of node {other} agrees with that of node {node}: netdiag's is wrong"
            ));
        }
        Witness::None => {
            view.leave_open(unjudged(node));
            return Found::Dark;
        }
        Witness::Dark => return Found::Dark,
    };
    let Look::Seen(seen) = view.series(node, &client.netns, handshake(to)) else { return Found::Dark };
    let report = seen.value.attempts.first().map(|attempt| &attempt.report);
    let Some(ProbeReport::Tls(report)) = report else {
        return Found::Fine(format!("no TLS handshake with {to} came about"));
    };
    let Some((certificate, word)) = distrusted(report, here) else {
        return Found::Fine(format!("the certificates of {to} are valid on node {node}, or outdated everywhere"));
    };
    let by = apart(ahead);
    let Certificate { subject, not_before, not_after, .. } = certificate;
    let claim = format!(
        "the clock of node {node} is {by}: {} takes the certificate of {to} for {word}, which is valid from {not_before} to {not_after}",
        client.reference
    );
    let met =
        format!("the certificate {subject} of {to} is {word} there; it is valid from {not_before} to {not_after}");
    let proofs = vec![
        Proof::programmed("clock", node, there, format!("it is {there} there when it is {here} here")),
        witness,
        Proof::probe(format!("TLS handshake from {}", client.reference), node, seen.at, met),
    ];
    Found::Wrong(Box::new(Wrong { client, claim, proofs }))
}

/// What another node's clock says of two that differ.
enum Witness {
    /// With netdiag's.
    Agrees(Proof),
    /// This node's agrees with the one that is looked at.
    Contradicts(String),
    /// No clock agrees with either.
    None,
    Dark,
}

fn witness(node: &str, ahead: SignedDuration, tolerance: SignedDuration, view: &mut View) -> Witness {
    let Look::Seen(nodes) = view.nodes() else { return Witness::Dark };
    let names = nodes.value.iter().map(|other| other.metadata.name.clone()).filter(|name| name != node);
    let names: Vec<String> = names.take(MAX_PEERS).collect();
    let mut dark = false;
    let mut like = None;
    for name in names {
        let Look::Seen(network) = view.network(&name, &Netns::Host) else {
            dark = true;
            continue;
        };
        let own = network.at.duration_since(view.now());
        if own.abs() <= tolerance {
            let text = format!("it is {} there when it is {} here", network.at, view.now());
            return Witness::Agrees(Proof::programmed("clock", &name, network.at, text));
        }
        if own.saturating_sub(ahead).abs() <= tolerance {
            like = Some(name);
        }
    }
    match like {
        // One that has not answered may agree with netdiag's.
        _ if dark => Witness::Dark,
        Some(name) => Witness::Contradicts(name),
        None => Witness::None,
    }
}

/// Without a name: whom the certificate is for is another question.
fn handshake(to: SocketAddr) -> SeriesRequest {
    let probe = Probe::Tls(TlsProbe { to, source_port: None, words: TlsWords::default(), each_version: false });
    SeriesRequest {
        probe,
        count: 1,
        interval_us: 0,
        timeout_ms: HANDSHAKE_MS,
        parallel: 1,
        identity: Identity::default(),
        asked_by: None,
    }
}

/// The certificate that is outdated by the node's clock and not by ours, and as what.
fn distrusted(report: &TlsReport, now: Timestamp) -> Option<(&Certificate, &'static str)> {
    report.problems.iter().find_map(|problem| {
        let mut chain = report.chain.iter();
        let (certificate, word) = match problem {
            TlsProblem::Expired { not_after } => (chain.find(|one| one.not_after == *not_after)?, "expired"),
            TlsProblem::NotYetValid { not_before } => {
                (chain.find(|one| one.not_before == *not_before)?, "not yet valid")
            }
            _ => return None,
        };
        let (from, to): (Timestamp, Timestamp) =
            (certificate.not_before.parse().ok()?, certificate.not_after.parse().ok()?);
        (from <= now && now <= to).then_some((certificate, word))
    })
}

/// `365 days ahead`, `90 minutes behind`.
fn apart(ahead: SignedDuration) -> String {
    const MINUTE: u64 = 60;
    const HOUR: u64 = 60 * MINUTE;
    const DAY: u64 = 24 * HOUR;
    let seconds = ahead.unsigned_abs().as_secs();
    // Two of a unit at least, so that it stays exact enough.
    let length = match seconds {
        0..120 => format!("{seconds} seconds"),
        120..7_200 => format!("{} minutes", seconds / MINUTE),
        7_200..172_800 => format!("{} hours", seconds / HOUR),
        _ => format!("{} days", seconds / DAY),
    };
    format!("{length} {}", if ahead.is_positive() { "ahead" } else { "behind" })
}

fn unjudged(node: &str) -> Gap {
    Gap {
        what: format!("whether the clock of node {node} or netdiag's own is wrong"),
        node: Some(node.to_owned()),
        reason: GapReason::Failed,
        why: "the two differ, and no other node's clock agrees with either".to_owned(),
        remedy: "compare `date -u` on the node and where netdiag runs with a clock that is right".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distance_is_told_in_the_unit_that_fits() {
        let cases = [
            (61, "61 seconds ahead"),
            (-5_400, "90 minutes behind"),
            (7_200, "2 hours ahead"),
            (-31_536_000, "365 days behind"),
        ];
        for (seconds, words) in cases {
            assert_eq!(apart(SignedDuration::from_secs(seconds)), words);
        }
    }
}
