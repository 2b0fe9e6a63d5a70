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

/// A thread that looks for entries. What must be there before the first packet, the socket that hears announcements, is opened by
/// the series' own thread, which is awake already; all else is done beside it.
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
    /// Where the series is sent from, and to.
    netns: NetnsHandle,
    to: Option<SocketAddr>,
    node: NetnsHandle,
    /// An error: flows that end at once are not seen.
    listener: Receiver<Result<Listener, ReadError>>,
    questions: Receiver<Option<Question>>,
}

/// Opens the socket that hears announcements. When it is gone, whatever came of it, the series begins.
pub(super) struct Opener {
    node: NetnsHandle,
    listener: Sender<Result<Listener, ReadError>>,
    _ready: DropGuard,
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
        let (opened, listener) = channel();
        let ready = CancellationToken::new();
        let is_ready = ready.clone().drop_guard();
        let (netns, to, node) = (place.netns.clone(), request::address(probe), place.node.clone());
        Self {
            asker: Some(Asker { questions, ready }),
            opener: Some(Opener { node: node.clone(), listener: opened, _ready: is_ready }),
            search: Some(Search { protocols, netns, to, node, listener, questions: asked }),
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
    /// New flows are announced from here on. The calling thread is in the node's namespace afterwards.
    pub(super) fn open(self) {
        let open = || {
            self.node.enter()?;
            let listener = Listener::open(Duration::ZERO)?;
            listener.join_new()?;
            Ok::<_, ReadError>(listener)
        };
        let _ = self.listener.send(open());
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
    /// The kernel leaves out the flows of others from here on. Compiling the filter takes as long as all that the series' first
    /// packet waits for, and what is announced until then is told apart by its tuple. The calling thread is in the place's
    /// namespace afterwards, which knows which address it sends from.
    fn narrow(&self, listener: &Listener) -> Result<(), ReadError> {
        let to = self.to.filter(|_| self.netns.enter().is_ok());
        listener.only(to.and_then(source_to), self.to.map(|to| to.ip()))
    }

    fn run(self) -> Found {
        // The series has ended before it began, and says why.
        let Ok(opened) = self.listener.recv() else { return Found::default() };
        let mut unseen = Vec::new();
        let narrowed = opened.and_then(|listener| self.narrow(&listener).map(|()| listener));
        let mut listener = narrowed.inspect_err(|error| unseen.push(heard_nothing(error))).ok();
        let mut lookup = match self.node.enter().and_then(|()| Lookup::open()) {
            Ok(lookup) => lookup,
            Err(error) => return (BTreeMap::new(), vec![format!("endpoints behind Services: {error}")]),
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
