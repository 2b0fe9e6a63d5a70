//! One attempt at one target, from the namespace of the calling thread.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use netdiag_common::observation::mesh::{FailureClass, Phase, TargetProbe};
use netdiag_common::observation::probe::{Attempt, Outcome, Stage};
use netdiag_common::observation::series::{self, Probe, ProbeFailure, ProbeStage};
use socket2::{Domain, Protocol, Socket, Type};

use super::icmp;
use super::means::{self, Means};
use crate::probe::dns::Query;
use crate::probe::series::Tried;
use crate::probe::{dns, tcp, without_socket};

/// How it ended, and when.
pub(super) struct Ended {
    pub took: Duration,
    /// Parts that were got through, microseconds; none where the whole attempt is one.
    pub parts: Vec<(Phase, u64)>,
    pub end: End,
}

#[derive(Debug, PartialEq, Eq)]
pub(super) enum End {
    /// Something about the network.
    Told(Result<(), FailureClass>),
    /// Nothing was sent: the agent's own list of destinations does not have what the name stands for.
    NotAllowed { why: String, remedy: String },
}

impl Ended {
    pub fn told(took: Duration, end: Result<(), FailureClass>) -> Self {
        Self { took, parts: Vec::new(), end: End::Told(end) }
    }
}

/// Takes at most `within`, and a little for making the socket.
pub(super) async fn make(probe: &TargetProbe, within: Duration, means: &Means) -> Ended {
    match probe {
        TargetProbe::Icmp { address } => {
            let started = Instant::now();
            let end = icmp::echo(*address, within).await;
            Ended::told(started.elapsed(), end)
        }
        TargetProbe::Tcp { address, port } => {
            let to = SocketAddr::new(*address, *port);
            let socket = Socket::new(Domain::for_address(to), Type::STREAM.nonblocking(), Some(Protocol::TCP));
            of(match socket {
                Ok(socket) => tcp::connect(socket, to, within).await,
                Err(error) => without_socket(&error),
            })
        }
        TargetProbe::Dns { server, port, name, record } => {
            let server = SocketAddr::new(*server, *port);
            let socket = Socket::new(Domain::for_address(server), Type::DGRAM.nonblocking(), Some(Protocol::UDP));
            match (socket, Query::new(name, *record)) {
                (Ok(socket), Ok(query)) => of(dns::ask(socket, server, &query, within).await),
                // The name was checked when it was assigned.
                _ => Ended::told(Duration::ZERO, Err(FailureClass::NotSent)),
            }
        }
        TargetProbe::Tls { address, port, server_name, authorities } => {
            let to = SocketAddr::new(*address, *port);
            let words = means::tls(to, server_name.as_deref(), authorities.as_deref());
            by_series(means, probe, &Probe::Tls(words), within).await
        }
        TargetProbe::Http { url, dns: _, expect, authorities } => {
            let words = means::http(url, expect, authorities.as_deref());
            by_series(means, probe, &Probe::Http(words), within).await
        }
    }
}

fn of(attempt: Attempt) -> Ended {
    Ended::told(Duration::from_micros(attempt.elapsed_us), end(&attempt.outcome))
}

async fn by_series(means: &Means, target: &TargetProbe, words: &Probe, within: Duration) -> Ended {
    let single = means.of(target).expect("a round begins with the means for all of its targets");
    let Tried { failure, took, phases } = single.attempt(words, within).await;
    let parts = phases.into_iter().filter_map(|(name, us)| Some((part(name)?, us))).collect();
    Ended { took, parts, end: failure.as_ref().map_or(End::Told(Ok(())), end_of_series) }
}

/// Of the phases that series have; a body's is in the whole attempt.
fn part(name: &str) -> Option<Phase> {
    match name {
        "lookup" => Some(Phase::Lookup),
        "connect" => Some(Phase::Connect),
        "tls" => Some(Phase::Tls),
        "first_byte" => Some(Phase::FirstByte),
        _ => None,
    }
}

fn end_of_series(failure: &ProbeFailure) -> End {
    use series::FailureClass as Series;
    let errno = failure.errno.as_deref().unwrap_or_default();
    End::Told(Err(match failure.class {
        // Only the list of destinations is met before there is a socket.
        Series::Limit if failure.stage == ProbeStage::Socket => {
            let (why, remedy) = failure.why.split_once("; ").unwrap_or((&failure.why, "probe another address"));
            return End::NotAllowed { why: why.to_owned(), remedy: remedy.to_owned() };
        }
        Series::Refused | Series::Reset => FailureClass::Refused,
        Series::Silence => FailureClass::NoAnswer,
        // A rule of the own packet filter.
        Series::Unreachable if failure.icmp.is_none() && matches!(errno, "EPERM" | "EACCES") => FailureClass::NotSent,
        Series::Unreachable => FailureClass::Unreachable,
        Series::Closed
        | Series::Protocol
        | Series::Rcode
        | Series::NoData
        | Series::Certificate
        | Series::Alert
        | Series::Status
        | Series::Limit => FailureClass::BadAnswer,
        Series::TooBig | Series::Local => FailureClass::NotSent,
    }))
}

fn end(outcome: &Outcome) -> Result<(), FailureClass> {
    match outcome {
        Outcome::Connected => Ok(()),
        Outcome::Answered { rcode, .. } if rcode == "NOERROR" => Ok(()),
        Outcome::Answered { .. } => Err(FailureClass::BadAnswer),
        Outcome::TimedOut { .. } => Err(FailureClass::NoAnswer),
        Outcome::Failed { stage, errno } => Err(match (stage, errno.as_str()) {
            (_, "ECONNREFUSED" | "ECONNRESET") => FailureClass::Refused,
            (_, "ETIMEDOUT") => FailureClass::NoAnswer,
            (Stage::Connect | Stage::Answer, "EHOSTUNREACH" | "ENETUNREACH" | "EHOSTDOWN") => FailureClass::Unreachable,
            // Before the answer it was this kernel that said no: no memory, no port, a rule of the own packet filter (EPERM).
            (Stage::Socket | Stage::Connect, _) => FailureClass::NotSent,
            (Stage::Answer, _) => FailureClass::NoAnswer,
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_outcome_has_its_class() {
        let failed = |stage, errno: &str| Outcome::Failed { stage, errno: errno.to_owned() };
        let answered =
            |rcode: &str| Outcome::Answered { rcode: rcode.to_owned(), addresses: Vec::new(), truncated: false };
        for (outcome, expected) in [
            (Outcome::Connected, Ok(())),
            (answered("NOERROR"), Ok(())),
            (answered("SERVFAIL"), Err(FailureClass::BadAnswer)),
            (Outcome::TimedOut { stage: Stage::Answer }, Err(FailureClass::NoAnswer)),
            (failed(Stage::Connect, "ECONNREFUSED"), Err(FailureClass::Refused)),
            (failed(Stage::Answer, "ECONNREFUSED"), Err(FailureClass::Refused)),
            (failed(Stage::Connect, "EHOSTUNREACH"), Err(FailureClass::Unreachable)),
            (failed(Stage::Connect, "EPERM"), Err(FailureClass::NotSent)),
            (failed(Stage::Socket, "EMFILE"), Err(FailureClass::NotSent)),
        ] {
            assert_eq!(end(&outcome), expected, "{outcome:?}");
        }
    }

    #[test]
    fn what_a_series_met_has_its_class() {
        use series::FailureClass as Series;
        let failed = |class, stage, errno: Option<&str>| ProbeFailure {
            stage,
            class,
            errno: errno.map(ToOwned::to_owned),
            said_by: None,
            icmp: None,
            why: "this agent may not probe 198.51.100.1; start the agents with --probe-allow".to_owned(),
        };
        for (class, stage, errno, expected) in [
            (Series::Silence, ProbeStage::Lookup, None, FailureClass::NoAnswer),
            (Series::Reset, ProbeStage::Answer, Some("ECONNRESET"), FailureClass::Refused),
            (Series::Status, ProbeStage::Answer, None, FailureClass::BadAnswer),
            (Series::Certificate, ProbeStage::Tls, None, FailureClass::BadAnswer),
            (Series::Limit, ProbeStage::Body, None, FailureClass::BadAnswer),
            (Series::Unreachable, ProbeStage::Connect, Some("EHOSTUNREACH"), FailureClass::Unreachable),
            (Series::Unreachable, ProbeStage::Connect, Some("EPERM"), FailureClass::NotSent),
            (Series::Local, ProbeStage::Lookup, None, FailureClass::NotSent),
        ] {
            assert_eq!(end_of_series(&failed(class, stage, errno)), End::Told(Err(expected)), "{class:?} {errno:?}");
        }
        let refusal = End::NotAllowed {
            why: "this agent may not probe 198.51.100.1".to_owned(),
            remedy: "start the agents with --probe-allow".to_owned(),
        };
        assert_eq!(end_of_series(&failed(Series::Limit, ProbeStage::Socket, None)), refusal);
    }
}
