//! What an attempt may use: sockets of the namespace, the allow-list, the node's caps, and how it tells its end.

use std::cell::OnceCell;
use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::{Duration, Instant};

use netdiag_common::observation::resolver::Resolver;
use netdiag_common::observation::series::{FailureClass, Identity, ProbeFailure, ProbeReport, ProbeStage};
use nix::errno::Errno;
use nix::sys::socket::{setsockopt, sockopt};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::sync::SemaphorePermit;
use tokio::time::timeout;
use tokio_util::task::TaskTracker;

use super::caps::Caps;
use super::errqueue::QueuedError;
use super::schedule::micros;
use super::sockets::Maker;

/// One thread's place in the world, shared by the attempts that it makes. The thread is in the namespace, and its fsuid is the
/// owner that was asked for: every socket that it makes is the namespace's and the owner's.
pub(super) struct Context {
    identity: Identity,
    /// The namespace's resolv.conf; none where it could not be read, and why is the series' to say.
    pub(super) resolver: Option<Arc<Resolver>>,
    caps: Arc<Caps>,
    /// Makes the sockets where they are to be of a control group.
    maker: Option<Maker>,
    asked: Instant,
    /// How long after the request the first socket was made.
    first_socket: OnceCell<Duration>,
    /// Has the kernel note when packets come.
    stamps: OnceCell<Option<Socket>>,
    /// Connections that say goodbye after their attempt.
    farewells: TaskTracker,
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
    pub(super) fn new(identity: Identity, resolver: Option<Arc<Resolver>>, caps: Arc<Caps>, asked: Instant) -> Self {
        let (first_socket, stamps, farewells) = (OnceCell::new(), OnceCell::new(), TaskTracker::new());
        Self { identity, resolver, caps, maker: None, asked, first_socket, stamps, farewells }
    }

    /// From now on sockets are made there.
    pub(super) fn make_sockets_by(&mut self, maker: Maker) {
        self.maker = Some(maker);
    }

    /// A non-blocking socket of the namespace, with the identity that was asked for.
    pub(super) async fn socket(&self, domain: Domain, kind: Type, protocol: Protocol) -> Result<Socket, ProbeFailure> {
        self.make(domain, kind, protocol).await.map_err(|error| local(ProbeStage::Socket, &error))
    }

    async fn make(&self, domain: Domain, kind: Type, protocol: Protocol) -> io::Result<Socket> {
        let socket = match &self.maker {
            Some(maker) => maker.socket(domain, kind, protocol).await?,
            None => Socket::new(domain, kind.nonblocking(), Some(protocol))?,
        };
        if let Some(mark) = self.identity.mark {
            socket.set_mark(mark)?;
        }
        self.first_socket.get_or_init(|| self.asked.elapsed());
        Ok(socket)
    }

    /// The kernel notes when each packet comes, until the series ends. It changes its own code for that while any socket asks for it
    /// (`net_enable_timestamp`, net/core/dev.c), so one socket asks all the time, not each attempt's in its turn. Where that cannot be
    /// made, stamps are those of reading.
    pub(super) fn stamp_packets(&self) {
        self.stamps.get_or_init(|| {
            let socket = Socket::new(Domain::IPV4, Type::DGRAM, Some(Protocol::UDP)).ok()?;
            setsockopt(&socket, sockopt::ReceiveTimestampns, &true).ok()?;
            Some(socket)
        });
    }

    /// From the request to the first socket, microseconds.
    pub(super) fn entered_us(&self) -> Option<u64> {
        self.first_socket.get().copied().map(micros)
    }

    /// Goes on beside the next attempts, and for a moment after the last one.
    pub(super) fn afterwards(&self, work: impl Future<Output = ()> + Send + 'static) {
        self.farewells.spawn(work);
    }

    /// Waits for what goes on afterwards; what takes longer ends unfinished.
    pub(super) async fn farewell(&self, within: Duration) {
        self.farewells.close();
        let _ = timeout(within, self.farewells.wait()).await;
    }

    /// Whether this agent may send to an address at all; asked before each connect, also of redirects and looked-up names.
    pub(super) fn allow(&self, to: IpAddr) -> Result<(), ProbeFailure> {
        self.caps.allow(to)
    }

    /// Waits for the node's share of packets and bytes before they are sent.
    pub(super) async fn spend(&self, packets: u32, bytes: u64) {
        self.caps.spend(packets, bytes).await;
    }

    /// The turn to fill a link; an error where the operator does not want that.
    pub(super) async fn fill_link(&self) -> Result<SemaphorePermit<'_>, ProbeFailure> {
        self.caps.fill_link().await
    }
}

impl Ending {
    /// An attempt that failed without a report.
    pub(super) fn failed(source: Option<SocketAddr>, to: Option<SocketAddr>, failure: ProbeFailure) -> Self {
        Self { source, to, failure: Some(failure), ..Self::default() }
    }
}

/// The address that packets to there leave with from the calling thread's namespace; none is sent. None: there is no route.
pub(super) fn source_to(to: SocketAddr) -> Option<IpAddr> {
    let any: SocketAddr = if to.is_ipv4() { ([0; 4], 0).into() } else { ([0u16; 8], 0).into() };
    let socket = UdpSocket::bind(any).ok()?;
    let mut to = to;
    // Port 0 is no destination.
    to.set_port(to.port().max(1));
    socket.connect(to).ok()?;
    socket.local_addr().ok().map(|source| source.ip())
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
        Some(
            Errno::EHOSTUNREACH
            | Errno::ENETUNREACH
            | Errno::EHOSTDOWN
            | Errno::ENETDOWN
            | Errno::EACCES
            | Errno::EPERM,
        ) => FailureClass::Unreachable,
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

/// What an error of the socket's error queue means: who said so, and what.
pub(super) fn of_queued(stage: ProbeStage, queued: &QueuedError) -> ProbeFailure {
    let mut failure = of_errno(stage, &io::Error::from_raw_os_error(queued.errno));
    failure.said_by = queued.offender;
    failure.icmp = queued.icmp();
    if let Some(icmp) = &failure.icmp {
        // Protocol unreachable and parameter problems have errnos of their own.
        if failure.class == FailureClass::Local {
            failure.class = FailureClass::Unreachable;
        }
        let by = queued.offender.map_or_else(String::new, |offender| format!(" from {offender}"));
        let errno = failure.errno.as_deref().map_or_else(String::new, |errno| format!(" ({errno})"));
        failure.why = format!("ICMP {}{by}{errno}", icmp.words);
    }
    failure
}

/// Nothing came before the timeout.
pub(super) fn silence(stage: ProbeStage, why: String) -> ProbeFailure {
    ProbeFailure { stage, class: FailureClass::Silence, errno: None, said_by: None, icmp: None, why }
}
