//! What a story tells of single probes: connections and lookups, and how each attempt ends.

use std::net::{IpAddr, SocketAddr};

use netdiag_common::observation::Observation;
use netdiag_common::observation::probe::{Attempt, Outcome, ProbeRequest, ProbeResult, Stage};
use netdiag_common::{Need, Netns};
use serde::Deserialize;

/// One line of `yaml probes`, which tells of series too.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ToldProbe {
    /// `any`, a node's name for its host, or a pod's UID.
    pub(super) from: String,
    #[serde(default)]
    pub(super) to: Option<SocketAddr>,
    /// `connected`, `timeout`, `unseen` (no agent answers), an errno name, or a list with one per attempt.
    #[serde(default)]
    pub(super) result: Option<Results>,
    /// How long each attempt takes; untold: 1 ms.
    #[serde(default)]
    pub(super) after_ms: Option<u64>,
    /// Echoes to here, up to the largest that gets through: `fits`, `hole` (larger ones vanish), `too_big` (somebody says so),
    /// `timeout` (none is answered). Untold: all fit.
    #[serde(default)]
    pub(super) mtu: Option<IpAddr>,
    #[serde(default)]
    pub(super) bytes: Option<u32>,
    /// What TCP from there to `mtu` may send in one segment, bytes; untold: what a device of 1500 bytes gives.
    #[serde(default)]
    pub(super) segment: Option<u32>,
    /// TLS handshakes with this address meet a certificate that is `valid` from the one time to the other, with a `problem` by the
    /// agent's clock: `expired`, `not_yet_valid`, or untold none. Without `valid` no handshake comes about.
    #[serde(default)]
    pub(super) tls: Option<SocketAddr>,
    #[serde(default)]
    pub(super) valid: Option<(String, String)>,
    #[serde(default)]
    pub(super) problem: Option<String>,
    #[serde(default)]
    pub(super) dns: Option<SocketAddr>,
    /// The name asked for, `*` for any.
    #[serde(default)]
    pub(super) name: Option<String>,
    #[serde(default)]
    pub(super) rcode: Option<String>,
    #[serde(default)]
    pub(super) addresses: Vec<IpAddr>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(untagged)]
pub(super) enum Results {
    One(String),
    Each(Vec<String>),
}

/// None when no agent answers.
pub(super) fn answer(need: &Need, request: &ProbeRequest, told: &[ToldProbe]) -> Option<Observation> {
    let mut from_here = told.iter().filter(|line| line.from == "any" || line.from == origin(need));
    let unseen = |line: &ToldProbe| matches!(&line.result, Some(Results::One(result)) if result == "unseen");
    let (after_ms, outcomes): (Option<u64>, Vec<Outcome>) = match request {
        ProbeRequest::TcpConnect { address, port, attempts, .. } => {
            let to = SocketAddr::new(*address, *port);
            let line = from_here.find(|line| line.to == Some(to)).filter(|line| !unseen(line))?;
            let result = |index: usize| match line.result.as_ref().expect("a connect has a result") {
                Results::One(result) => connect_outcome(result),
                Results::Each(results) => connect_outcome(&results[index % results.len()]),
            };
            (line.after_ms, (0..usize::from(*attempts)).map(result).collect())
        }
        ProbeRequest::Dns { server, port, name, .. } => {
            let to = SocketAddr::new(*server, *port);
            let asked = |line: &&ToldProbe| line.name.as_deref().is_some_and(|n| n == "*" || n == name);
            let line = from_here.find(|line| line.dns == Some(to) && asked(line))?;
            let outcome = match (&line.rcode, &line.result) {
                (Some(rcode), _) => {
                    Outcome::Answered { rcode: rcode.clone(), addresses: line.addresses.clone(), truncated: false }
                }
                (None, Some(Results::One(result))) if result == "timeout" => Outcome::TimedOut { stage: Stage::Answer },
                (None, Some(Results::One(errno))) => Outcome::Failed { stage: Stage::Answer, errno: errno.clone() },
                _ => panic!("a dns probe has an rcode or one result"),
            };
            (line.after_ms, vec![outcome])
        }
    };
    let elapsed_us = after_ms.unwrap_or(1) * 1_000;
    let attempts = outcomes.into_iter().map(|outcome| Attempt { elapsed_us, source: None, outcome }).collect();
    Some(Observation::Probe(ProbeResult { attempts }))
}

/// As `from` of [`ToldProbe`] names it.
pub(super) fn origin(need: &Need) -> &str {
    match &need.netns {
        Netns::Host => need.node.as_str(),
        Netns::Pod(uid) => uid.as_str(),
    }
}

fn connect_outcome(result: &str) -> Outcome {
    match result {
        "connected" => Outcome::Connected,
        "timeout" => Outcome::TimedOut { stage: Stage::Connect },
        errno => Outcome::Failed { stage: Stage::Connect, errno: errno.to_owned() },
    }
}
