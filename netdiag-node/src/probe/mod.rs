//! Active probes from a pod's or the node's network namespace: same source address, policy and identity as the workload.
//!
//! A socket belongs to the namespace of the thread that made it, wherever it is used later. So a short-lived thread enters
//! the namespace and makes the socket, and the reactor does the rest.

pub(crate) mod dns;
pub mod series;
pub(crate) mod tcp;

use std::io;
use std::time::Duration;

use netdiag_common::observation::probe::{
    Attempt, MAX_PROBE_ATTEMPTS, MAX_PROBE_TIMEOUT_MS, Outcome, ProbeRequest, ProbeResult, Stage,
};
use nix::errno::Errno;
use socket2::{Domain, Protocol, Socket, Type};

use crate::netns::NetnsHandle;

/// Why a request is not tried at all.
#[derive(Debug, thiserror::Error)]
pub enum ProbeRefused {
    #[error(
        "a probe of {timeout_ms} ms and {attempts} attempts was asked, an agent makes 1 to {MAX_PROBE_ATTEMPTS} attempts of 1 to {MAX_PROBE_TIMEOUT_MS} ms"
    )]
    Limits { timeout_ms: u32, attempts: u8 },
    #[error("port 0 cannot be probed")]
    Port,
    #[error("{name:?} is not a DNS name: {why}")]
    Name { name: String, why: String },
}

/// Sends what was asked and tells how it ended. An error of the network is a result, not an error of this function.
pub async fn run(netns: &NetnsHandle, request: &ProbeRequest) -> Result<ProbeResult, ProbeRefused> {
    match request {
        ProbeRequest::TcpConnect { address, port, timeout_ms, attempts, source_port } => {
            let timeout = checked(*timeout_ms, *attempts, *port)?;
            Ok(tcp::run(netns, *source_port, (*address, *port).into(), timeout, *attempts).await)
        }
        ProbeRequest::Dns { server, zone, port, name, record, timeout_ms } => {
            let timeout = checked(*timeout_ms, 1, *port)?;
            let query = dns::Query::new(name, *record)?;
            let attempt = dns::run(netns, (*server, *port).into(), zone.as_deref(), &query, timeout).await;
            Ok(ProbeResult { attempts: vec![attempt] })
        }
    }
}

fn checked(timeout_ms: u32, attempts: u8, port: u16) -> Result<Duration, ProbeRefused> {
    if !(1..=MAX_PROBE_TIMEOUT_MS).contains(&timeout_ms) || !(1..=MAX_PROBE_ATTEMPTS).contains(&attempts) {
        return Err(ProbeRefused::Limits { timeout_ms, attempts });
    }
    if port == 0 {
        return Err(ProbeRefused::Port);
    }
    Ok(Duration::from_millis(timeout_ms.into()))
}

/// A socket of the namespace, ready for the reactor.
async fn socket_in(netns: &NetnsHandle, domain: Domain, kind: Type, protocol: Protocol) -> io::Result<Socket> {
    let netns = netns.clone();
    let make = move || {
        let mut made = Err(io::Error::other("the namespace could not be entered"));
        let entered = netns.run(|| {
            made = Socket::new(domain, kind.nonblocking(), Some(protocol));
            Ok(())
        });
        match entered {
            Err(crate::host::ReadError::Call { source, .. }) => Err(source),
            _ => made,
        }
    };
    tokio::task::spawn_blocking(make).await.map_err(io::Error::other)?
}

/// An attempt that the kernel ended with an error.
fn failed(stage: Stage, error: &io::Error) -> Outcome {
    let errno = match error.raw_os_error() {
        Some(number) => format!("{:?}", Errno::from_raw(number)),
        None => error.kind().to_string(),
    };
    Outcome::Failed { stage, errno }
}

/// An attempt that never got a socket.
pub(crate) fn without_socket(error: &io::Error) -> Attempt {
    Attempt { elapsed_us: 0, source: None, outcome: failed(Stage::Socket, error) }
}

fn micros(elapsed: Duration) -> u64 {
    u64::try_from(elapsed.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests;
