//! What an attempt may use: sockets of the namespace, the allow-list, the node's caps, and how it tells its end.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use netdiag_common::observation::resolver::Resolver;
use netdiag_common::observation::series::{FailureClass, Identity, ProbeFailure, ProbeReport, ProbeStage};
use nix::errno::Errno;
use socket2::{Domain, Protocol, Socket, Type};

use super::caps::Caps;
use crate::netns::NetnsHandle;

/// One series' place in the world, shared by its attempts.
pub(super) struct Context {
    pub(super) netns: NetnsHandle,
    pub(super) identity: Identity,
    /// The namespace's resolv.conf; none where it could not be read, and why is the series' to say.
    pub(super) resolver: Option<Arc<Resolver>>,
    pub(super) caps: Arc<Caps>,
}

/// How one attempt ended.
#[derive(Debug, Default)]
pub(super) struct Ending {
    pub(super) source: Option<SocketAddr>,
    pub(super) to: Option<SocketAddr>,
    pub(super) failure: Option<ProbeFailure>,
    pub(super) report: ProbeReport,
    /// What goes into the series' histograms, microseconds: `connect`, `tls`, … The total is the series' own.
    pub(super) phases: Vec<(&'static str, u64)>,
}

impl Context {
    /// A non-blocking socket of the namespace, with the identity that was asked for.
    pub(super) async fn socket(&self, domain: Domain, kind: Type, protocol: Protocol) -> Result<Socket, ProbeFailure> {
        let identity = self.identity;
        let made = super::enter::socket(&self.netns, domain, kind, protocol, identity).await;
        made.map_err(|error| local(ProbeStage::Socket, &error))
    }

    /// Whether this agent may send to an address at all; asked before each connect, also of redirects and looked-up names.
    pub(super) fn allow(&self, to: IpAddr) -> Result<(), ProbeFailure> {
        self.caps.allow(to)
    }

    /// Waits for the node's share of packets and bytes before they are sent.
    pub(super) async fn spend(&self, packets: u32, bytes: u64) {
        self.caps.spend(packets, bytes).await;
    }
}

impl Ending {
    /// An attempt that failed without a report.
    pub(super) fn failed(source: Option<SocketAddr>, to: Option<SocketAddr>, failure: ProbeFailure) -> Self {
        Self { source, to, failure: Some(failure), ..Self::default() }
    }
}

/// This node could not do it: no socket, no right, no such namespace.
pub(super) fn local(stage: ProbeStage, error: &io::Error) -> ProbeFailure {
    let mut failure = of_errno(stage, error);
    failure.class = FailureClass::Local;
    failure
}

/// What the kernel's error means for a packet that was sent.
pub(super) fn of_errno(stage: ProbeStage, error: &io::Error) -> ProbeFailure {
    let errno = error.raw_os_error().map(Errno::from_raw);
    let class = match errno {
        Some(Errno::ECONNREFUSED) => FailureClass::Refused,
        Some(Errno::ETIMEDOUT) => FailureClass::Silence,
        Some(Errno::ECONNRESET | Errno::EPIPE) => FailureClass::Reset,
        Some(Errno::EHOSTUNREACH | Errno::ENETUNREACH | Errno::EHOSTDOWN | Errno::ENETDOWN | Errno::EACCES | Errno::EPERM) => {
            FailureClass::Unreachable
        }
        Some(Errno::EMSGSIZE) => FailureClass::TooBig,
        _ => FailureClass::Local,
    };
    let name = errno.map(|errno| format!("{errno:?}"));
    let why = match (&name, errno) {
        (Some(name), Some(errno)) => format!("{} ({name})", errno.desc().to_lowercase()),
        _ => error.to_string(),
    };
    ProbeFailure { stage, class, errno: name, said_by: None, icmp: None, why }
}

/// Nothing came before the timeout.
pub(super) fn silence(stage: ProbeStage, why: String) -> ProbeFailure {
    ProbeFailure { stage, class: FailureClass::Silence, errno: None, said_by: None, icmp: None, why }
}
