//! Which endpoint stands behind a Service's address: what the node's connection tracking made of an attempt's tuple.
//!
//! An entry is asked for by its tuple after the attempt. That is too late where a reset answered the SYN, since the kernel
//! removes such an entry at once (`nf_conntrack_tcp_packet`), so the announcements of new entries are heard as well.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use netdiag_common::observation::Protocol;
use netdiag_common::observation::series::Probe;
use netdiag_common::observation::series::dns::{DnsAsking, DnsTransport};
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

use super::context::source_to;
use super::{Place, request};
use crate::host::ReadError;
use crate::host::conntrack::entry::Entry;
use crate::host::conntrack::listen::{Announcement, Listener};
use crate::host::conntrack::lookup::Lookup;

/// Announcements that are taken at one time; the kernel keeps some 3 000.
const MOST_AT_ONCE: usize = 4_096;
const STACK_BYTES: usize = 256 * 1024;

/// A thread in the node's namespace that looks for entries.
pub(super) struct Finder {
    asker: Option<Asker>,
    found: Option<oneshot::Receiver<Found>>,
    unseen: Option<String>,
}

/// How a series asks it.
#[derive(Clone)]
pub(super) struct Asker {
    questions: Sender<Question>,
    ready: CancellationToken,
}

struct Question {
    number: u32,
    source: SocketAddr,
    to: SocketAddr,
}

/// Endpoints by the attempts' numbers, and what kept some from being found.
type Found = (BTreeMap<u32, SocketAddr>, Vec<String>);

impl Finder {
    pub(super) fn start(place: &Place, probe: &Probe) -> Self {
        let protocols = protocols(probe);
        if protocols.is_empty() {
            return Self { asker: None, found: None, unseen: None };
        }
        let (questions, asked) = channel();
        let (answer, found) = oneshot::channel();
        let ready = CancellationToken::new();
        let is_ready = ready.clone();
        let (place, to) = (place.clone(), request::address(probe));
        let work = move || {
            // Also when it panics.
            let _is_ready = is_ready.clone().drop_guard();
            let found = look(&place, to, &protocols, &asked, &is_ready);
            let _ = answer.send(found);
        };
        let thread = std::thread::Builder::new().name("endpoints".to_owned()).stack_size(STACK_BYTES).spawn(work);
        match thread {
            Ok(_) => Self { asker: Some(Asker { questions, ready }), found: Some(found), unseen: None },
            Err(error) => {
                let unseen = Some(format!("endpoints behind Services: cannot start a thread: {error}"));
                Self { asker: None, found: None, unseen }
            }
        }
    }

    pub(super) fn asker(&self) -> Option<Asker> {
        self.asker.clone()
    }

    /// When every [`Asker`] is gone.
    pub(super) async fn finish(self) -> Found {
        drop(self.asker);
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
        let _ = self.questions.send(Question { number, source, to });
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

fn look(
    place: &Place,
    to: Option<SocketAddr>,
    protocols: &[Protocol],
    questions: &Receiver<Question>,
    is_ready: &CancellationToken,
) -> Found {
    let mut unseen = Vec::new();
    let mut open = || {
        // First as the pod, to learn which of its addresses it will use: then the kernel leaves out the flows of others.
        let source = to.and_then(|to| place.netns.enter().ok().and_then(|()| source_to(to)));
        place.node.enter()?;
        let listener = listen(source, to).inspect_err(|error| unseen.push(heard_nothing(error))).ok();
        Ok::<_, ReadError>((Lookup::open()?, listener))
    };
    let opened = open();
    is_ready.cancel();
    let (mut lookup, mut listener) = match opened {
        Ok(opened) => opened,
        Err(error) => {
            unseen.push(format!("endpoints behind Services: {error}"));
            return (BTreeMap::new(), unseen);
        }
    };
    let mut announced = Announced::default();
    let mut endpoints = BTreeMap::new();
    let mut failed = None;
    for question in questions {
        if let Some(listener) = &mut listener {
            announced.take(listener);
        }
        let found = announced.of(&question, protocols).or_else(|| {
            let mut each = protocols.iter().map(|protocol| lookup.find(*protocol, question.source, question.to));
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

fn heard_nothing(error: &ReadError) -> String {
    format!("endpoints that refused at once are not told: {error}")
}

/// Where an entry leads, when that is another place than was meant.
fn endpoint(entry: &Entry) -> Option<SocketAddr> {
    let leads_to = SocketAddr::new(entry.reply.source, entry.reply.source_port);
    let meant = SocketAddr::new(entry.original.destination, entry.original.destination_port);
    (leads_to != meant).then_some(leads_to)
}

fn listen(source: Option<IpAddr>, to: Option<SocketAddr>) -> Result<Listener, ReadError> {
    let listener = Listener::open(Duration::ZERO)?;
    listener.only(source, to.map(|to| to.ip()))?;
    listener.join()?;
    Ok(listener)
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
