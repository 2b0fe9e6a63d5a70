//! One attempt at one target, from the namespace of the calling thread.

use std::time::{Duration, Instant};

use netdiag_common::observation::mesh::{FailureClass, TargetProbe};
use netdiag_common::observation::probe::{Attempt, Outcome, Stage};
use socket2::{Domain, Protocol, Socket, Type};

use super::icmp;
use crate::probe::dns::Query;
use crate::probe::{dns, tcp, without_socket};

/// How it ended, and when.
pub(super) struct Ended {
    pub took: Duration,
    pub end: Result<(), FailureClass>,
}

/// Takes at most `within`, and a little for making the socket.
pub(super) async fn make(probe: &TargetProbe, within: Duration) -> Ended {
    match probe {
        TargetProbe::Icmp { address } => {
            let started = Instant::now();
            let end = icmp::echo(*address, within).await;
            Ended { took: started.elapsed(), end }
        }
        TargetProbe::Tcp { .. } => {
            let to = probe.destination();
            let socket = Socket::new(Domain::for_address(to), Type::STREAM.nonblocking(), Some(Protocol::TCP));
            of(match socket {
                Ok(socket) => tcp::connect(socket, to, within).await,
                Err(error) => without_socket(&error),
            })
        }
        TargetProbe::Dns { name, record, .. } => {
            let server = probe.destination();
            let socket = Socket::new(Domain::for_address(server), Type::DGRAM.nonblocking(), Some(Protocol::UDP));
            match (socket, Query::new(name, *record)) {
                (Ok(socket), Ok(query)) => of(dns::ask(socket, server, &query, within).await),
                // The name was checked when it was assigned.
                _ => Ended { took: Duration::ZERO, end: Err(FailureClass::NotSent) },
            }
        }
    }
}

fn of(attempt: Attempt) -> Ended {
    Ended { took: Duration::from_micros(attempt.elapsed_us), end: end(&attempt.outcome) }
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
}
