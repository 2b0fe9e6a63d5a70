//! Why a node did not answer, and what its needs become: one gap that names the node and the remedy.

use std::error::Error;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use netdiag_common::wire::{Refusal, WIRE_MAX, WIRE_MIN};
use netdiag_common::{Gap, GapReason, Need};

use crate::ask::step::need_in_words;

/// One request to one agent that brought nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Failure {
    /// No agents are asked: netdiag runs without a TLS directory and without its server.
    NotAsked,
    /// The API does not know the node, or no address of it.
    NoAddress(String),
    Refused(SocketAddr),
    TimedOut(SocketAddr, Duration),
    /// The connection failed or broke otherwise.
    Broken(SocketAddr, String),
    /// The handshake failed: one side does not accept the other's certificate.
    Tls(SocketAddr, String),
    /// Versions that the agent speaks, lowest and highest.
    Wire(u32, u32),
    /// The agent is at its limit.
    Busy(String),
    /// The agent answered something else than a report.
    Malformed(String),
    /// The agent started anew after it had given this reading: what it counted before is lost.
    Restarted,
}

impl Failure {
    /// From the HTTP client's error, by the innermost cause that says what happened.
    pub fn of_request(error: &reqwest::Error, address: SocketAddr, limit: Duration) -> Self {
        let mut current: Option<&(dyn Error + 'static)> = Some(error);
        let mut last = error.to_string();
        while let Some(layer) = current {
            if let Some(tls) = layer.downcast_ref::<rustls::Error>() {
                return Self::Tls(address, tls.to_string());
            }
            last = layer.to_string();
            current = match layer.downcast_ref::<io::Error>() {
                Some(io) if io.kind() == io::ErrorKind::ConnectionRefused => return Self::Refused(address),
                // An io::Error's `source()` skips the error that it wraps.
                Some(io) => io.get_ref().map(|inner| inner as &(dyn Error + 'static)),
                None => layer.source(),
            };
        }
        if error.is_timeout() { Self::TimedOut(address, limit) } else { Self::Broken(address, last) }
    }

    /// From an answer that is not a report.
    pub fn of_refusal(status: u16, body: &[u8]) -> Self {
        match serde_json::from_slice::<Refusal>(body) {
            Ok(refusal) if refusal.wire_min > WIRE_MAX || refusal.wire_max < WIRE_MIN => {
                Self::Wire(refusal.wire_min, refusal.wire_max)
            }
            Ok(refusal) if status == 503 => Self::Busy(refusal.error),
            Ok(refusal) => Self::Malformed(format!("status {status}: {}", refusal.error)),
            Err(_) => Self::Malformed(format!("status {status} without a reason")),
        }
    }

    pub fn gap(&self, need: &Need) -> Gap {
        let node = &need.node;
        let pods = format!("kubectl -n netdiag-system get pods -o wide --field-selector spec.nodeName={node}");
        let (reason, why, remedy) = match self {
            Self::NotAsked => (
                GapReason::AgentUnreachable,
                "no agent was asked: netdiag's server was not reached, and no --direct --tls-dir was given".to_owned(),
                "install netdiag in the cluster, or ask again with --direct --tls-dir DIR".to_owned(),
            ),
            Self::NoAddress(why) => {
                (GapReason::AgentUnreachable, why.clone(), format!("see `kubectl get node {node} -o wide`"))
            }
            Self::Refused(address) => (
                GapReason::NoAgent,
                format!("no agent listens on {address} of node {node}: connection refused"),
                format!("install netdiag-node there or see why it is not running: {pods}"),
            ),
            Self::TimedOut(address, limit) => (
                GapReason::AgentUnreachable,
                format!("the agent of node {node} ({address}) did not answer within {:.1} s", limit.as_secs_f64()),
                format!("see whether the node is reachable and its agent is running: {pods}"),
            ),
            Self::Broken(address, why) => (
                GapReason::AgentUnreachable,
                format!("cannot reach the agent of node {node} at {address}: {why}"),
                format!("see whether the node is reachable and its agent is running: {pods}"),
            ),
            Self::Tls(address, why) => (
                GapReason::Rights,
                format!("TLS with the agent of node {node} ({address}) failed: {why}"),
                "use certificates of one authority on both sides: `netdiag certs`, then restart agents and server"
                    .to_owned(),
            ),
            Self::Wire(min, max) => (
                GapReason::WireVersion,
                format!(
                    "the agent of node {node} speaks wire versions {min} to {max}, this netdiag {WIRE_MIN} to {WIRE_MAX}"
                ),
                format!("upgrade {}", if *max < WIRE_MIN { "netdiag-node on that node" } else { "netdiag" }),
            ),
            Self::Busy(why) => (
                GapReason::AgentUnreachable,
                format!("the agent of node {node} is at its limit: {why}"),
                "ask again in a few seconds".to_owned(),
            ),
            Self::Malformed(why) => (
                GapReason::Malformed,
                format!("the agent of node {node} answered something unexpected: {why}"),
                "run the same version of netdiag-node and netdiag".to_owned(),
            ),
            Self::Restarted => (
                GapReason::Gone,
                format!("the agent of node {node} started anew while it was asked, and counts from zero"),
                format!("ask again; if it keeps restarting, see why: {pods}"),
            ),
        };
        Gap { what: need_in_words(need, None), node: Some(node.clone()), reason, why, remedy }
    }
}
