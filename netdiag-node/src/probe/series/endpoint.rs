//! Which endpoint stands behind a Service's address: what the node's connection tracking made of an attempt's tuple.
//!
//! An entry is asked for by its tuple after the attempt. That is too late where a reset answered the SYN, since the kernel
//! removes such an entry at once (`nf_conntrack_tcp_packet`), so the announcements of new entries are heard as well.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use netdiag_common::observation::Protocol;
use netdiag_common::observation::series::Probe;
use netdiag_common::observation::series::dns::{DnsAsking, DnsTransport};
use tokio::sync::oneshot;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::context::source_to;
use super::{Place, request};
use crate::host::ReadError;
use crate::host::conntrack::entry::Entry;
use crate::host::conntrack::listen::{Announcement, Listener};
use crate::host::conntrack::lookup::Lookup;
use crate::netns::NetnsHandle;

/// Announcements that are taken at one time; the kernel keeps some 3 000.
const MOST_AT_ONCE: usize = 4_096;
const STACK_BYTES: usize = 256 * 1024;

/// A thread that looks for entries, by sockets that the series' own thread opens: that one is awake already.
#[derive(Default)]
pub(super) struct Finder {
    asker: Option<Asker>,
    opener: Option<Opener>,
    search: Option<Search>,
    found: Option<oneshot::Receiver<Found>>,
    unseen: Option<String>,
}

/// How a series asks it.
#[derive(Clone)]
pub(super) struct Asker {
    /// None: there is nothing more to ask.
    questions: Sender<Option<Question>>,
    ready: CancellationToken,
}

/// What the thread does.
struct Search {
    protocols: Vec<Protocol>,
    sockets: Receiver<Result<Sockets, ReadError>>,
    questions: Receiver<Option<Question>>,
}

/// Both of the node's namespace.
struct Sockets {
    lookup: Lookup,
    /// An error: flows that end at once are not seen.
    listener: Result<Listener, ReadError>,
}

/// Opens the sockets. When it is gone, whatever came of it, the series begins.
pub(super) struct Opener {
    node: NetnsHandle,
    to: Option<SocketAddr>,
    sockets: Sender<Result<Sockets, ReadError>>,
    _ready: DropGuard,
}

/// What came of it, not heard by anybody yet.
pub(super) struct Opened {
    opener: Opener,
    sockets: Result<Sockets, ReadError>,
}

struct Question {
    number: u32,
    source: SocketAddr,
    to: SocketAddr,
}

/// Endpoints by the attempts' numbers, and what kept some from being found.
type Found = (BTreeMap<u32, SocketAddr>, Vec<String>);

impl Finder {
    pub(super) fn new(place: &Place, probe: &Probe) -> Self {
        let protocols = protocols(probe);
        if protocols.is_empty() {
            return Self::default();
        }
        let (questions, asked) = channel();
        let (opened, sockets) = channel();
        let ready = CancellationToken::new();
        let (node, to, is_ready) = (place.node.clone(), request::address(probe), ready.clone().drop_guard());
        Self {
            asker: Some(Asker { questions, ready }),
            opener: Some(Opener { node, to, sockets: opened, _ready: is_ready }),
            search: Some(Search { protocols, sockets, questions: asked }),
            ..Self::default()
        }
    }

    pub(super) fn asker(&self) -> Option<Asker> {
        self.asker.clone()
    }

    /// For one thread of the series; none for the others.
    pub(super) fn opener(&mut self) -> Option<Opener> {
        self.opener.take()
    }

    /// After the series' own threads: none of them waits for this one.
    pub(super) fn start(&mut self) {
        let Some(search) = self.search.take() else { return };
        let (answer, found) = oneshot::channel();
        let work = move || drop(answer.send(search.run()));
        match std::thread::Builder::new().name("endpoints".to_owned()).stack_size(STACK_BYTES).spawn(work) {
            Ok(_) => self.found = Some(found),
            Err(error) => self.unseen = Some(format!("endpoints behind Services: cannot start a thread: {error}")),
        }
    }

    /// When every [`Asker`] is gone.
    pub(super) async fn finish(self) -> Found {
        drop((self.asker, self.opener));
        let (endpoints, mut unseen) = match self.found {
            Some(found) => found.await.unwrap_or_default(),
            None => Found::default(),
        };
        unseen.extend(self.unseen);
        (endpoints, unseen)
    }
}

impl Asker {
    /// Waits until announcements are heard: what is sent before is not.
    pub(super) async fn ready(&self) {
        self.ready.cancelled().await;
    }

    /// Never waits.
    pub(super) fn ask(&self, number: u32, source: SocketAddr, to: SocketAddr) {
        let _ = self.questions.send(Some(Question { number, source, to }));
    }

    /// Nothing more will be asked: new flows are not announced any more.
    pub(super) fn enough(&self) {
        let _ = self.questions.send(None);
    }
}

impl Opener {
    /// The calling thread is in the node's namespace afterwards.
    pub(super) fn open(self) -> Opened {
        let open = || {
            self.node.enter()?;
            Ok::<_, ReadError>(Sockets { lookup: Lookup::open()?, listener: Listener::open(Duration::ZERO) })
        };
        let sockets = open();
        Opened { opener: self, sockets }
    }
}

impl Opened {
    /// Called in the place's namespace, which knows which address it will send from: the kernel leaves out the flows of others.
    pub(super) fn listen(self) {
        let Self { opener, mut sockets } = self;
        if let Ok(sockets) = &mut sockets
            && let Ok(listener) = &sockets.listener
        {
            let source = opener.to.and_then(source_to);
            let joined = listener.only(source, opener.to.map(|to| to.ip())).and_then(|()| listener.join_new());
            if let Err(error) = joined {
                sockets.listener = Err(error);
            }
        }
        let _ = opener.sockets.send(sockets);
    }
}

/// By which protocols a probe goes to an address that may be a Service's.
fn protocols(probe: &Probe) -> Vec<Protocol> {
    match probe {
        Probe::Tcp(_) | Probe::Http(_) | Probe::Tls(_) | Probe::Throughput(_) => vec![Protocol::Tcp],
        Probe::Udp(_) => vec![Protocol::Udp],
        Probe::Dns(probe) => match &probe.asking {
            DnsAsking::Server { transport: DnsTransport::Tls { .. } | DnsTransport::Https { .. }, .. } => {
                vec![Protocol::Tcp]
            }
            _ => vec![Protocol::Udp, Protocol::Tcp],
        },
        Probe::Icmp(_) | Probe::PathMtu(_) | Probe::Path(_) | Probe::Raw(_) => Vec::new(),
    }
}

impl Search {
    fn run(self) -> Found {
        let mut unseen = Vec::new();
        let (mut lookup, mut listener) = match self.sockets.recv() {
            Ok(Ok(Sockets { lookup, listener })) => {
                (lookup, listener.inspect_err(|error| unseen.push(heard_nothing(error))).ok())
            }
            Ok(Err(error)) => return (BTreeMap::new(), vec![format!("endpoints behind Services: {error}")]),
            // The series has ended before it began, and says why.
            Err(_) => return Found::default(),
        };
        let mut announced = Announced::default();
        let mut endpoints = BTreeMap::new();
        let mut failed = None;
        while let Ok(Some(question)) = self.questions.recv() {
            if let Some(listener) = &mut listener {
                announced.take(listener);
            }
            let found = announced.of(&question, &self.protocols).or_else(|| {
                let mut each =
                    self.protocols.iter().map(|protocol| lookup.find(*protocol, question.source, question.to));
                each.find_map(|found| {
                    found.unwrap_or_else(|error| {
                        failed.get_or_insert(error);
                        None
                    })
                })
            });
            if let Some(endpoint) = found.and_then(|entry| endpoint(&entry)) {
                endpoints.insert(question.number, endpoint);
            }
        }
        unseen.extend(failed.map(|error| format!("endpoints behind Services: {error}")));
        if announced.lost > 0 {
            unseen.push(format!(
                "{} new flows were announced faster than they were read: endpoints that refused may be missing; ask again",
                announced.lost
            ));
        }
        (endpoints, unseen)
    }
}

fn heard_nothing(error: &ReadError) -> String {
    format!("endpoints that refused at once are not told: {error}")
}

/// Where an entry leads, when that is another place than was meant.
fn endpoint(entry: &Entry) -> Option<SocketAddr> {
    let leads_to = SocketAddr::new(entry.reply.source, entry.reply.source_port);
    let meant = SocketAddr::new(entry.original.destination, entry.original.destination_port);
    (leads_to != meant).then_some(leads_to)
}

/// The newest entry of each tuple.
#[derive(Default)]
struct Announced {
    entries: BTreeMap<(u8, SocketAddr, SocketAddr), Entry>,
    lost: u64,
}

impl Announced {
    fn take(&mut self, listener: &mut Listener) {
        let heard = listener.rest(MOST_AT_ONCE, &mut |announcement| {
            if let Announcement::New(entry) = announcement {
                let source = SocketAddr::new(entry.original.source, entry.original.source_port);
                let to = SocketAddr::new(entry.original.destination, entry.original.destination_port);
                // Others' flows to the same address come too where the source is not known; they are forgotten in bulk.
                if self.entries.len() >= MOST_AT_ONCE {
                    self.entries.clear();
                }
                self.entries.insert((entry.protocol, source, to), entry);
            }
        });
        self.lost += heard.unwrap_or(0);
    }

    fn of(&mut self, question: &Question, protocols: &[Protocol]) -> Option<Entry> {
        let key = |protocol: &Protocol| (protocol.number(), plain(question.source), plain(question.to));
        protocols.iter().find_map(|protocol| self.entries.remove(&key(protocol)))
    }
}

/// Without scope and flow label, which connection tracking does not know.
fn plain(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip(), address.port())
}
