//! One DNS query over UDP, without search list, cache or retry: what does this server answer to this pod.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::{Duration, Instant};

use hickory_proto::op::{Message, Query as Question};
use hickory_proto::rr::{Name, RData, RecordType};
use netdiag_common::observation::probe::{Attempt, DnsRecord, Outcome, Stage};
use socket2::{Domain, Protocol, Type};
use tokio::net::UdpSocket;
use tokio::time::timeout;

use super::{ProbeRefused, failed, micros, socket_in, without_socket};
use crate::netns::NetnsHandle;
use crate::rcode::rcode_name;

/// Without EDNS an answer has at most 512 bytes (RFC 1035 §4.2.1); servers that send more are still read.
const ANSWER_BYTES: usize = 4_096;

/// A query that can be sent.
pub(crate) struct Query {
    id: u16,
    question: Question,
    bytes: Vec<u8>,
}

impl Query {
    pub(crate) fn new(name: &str, record: DnsRecord) -> Result<Self, ProbeRefused> {
        let refused = |why: String| ProbeRefused::Name { name: name.to_owned(), why };
        let mut absolute = Name::from_ascii(name).map_err(|error| refused(error.to_string()))?;
        absolute.set_fqdn(true);
        let kind = match record {
            DnsRecord::A => RecordType::A,
            DnsRecord::Aaaa => RecordType::AAAA,
        };
        let question = Question::query(absolute, kind);
        let mut message = Message::query();
        message.metadata.recursion_desired = true;
        message.add_query(question.clone());
        let bytes = message.to_vec().map_err(|error| refused(error.to_string()))?;
        Ok(Self { id: message.metadata.id, question, bytes })
    }
}

/// `zone`: the interface of a link-local server, by name or index.
pub(super) async fn run(
    netns: &NetnsHandle,
    server: SocketAddr,
    zone: Option<&str>,
    query: &Query,
    within: Duration,
) -> Attempt {
    let made = socket_in(netns, Domain::for_address(server), Type::DGRAM, Protocol::UDP).await;
    match made.and_then(|socket| Ok((behind(&socket, server, zone)?, socket))) {
        Ok((server, socket)) => ask(socket, server, query, within).await,
        Err(error) => without_socket(&error),
    }
}

/// The server's address, behind the interface that it is asked by. A name stands for an interface of the socket's own namespace.
fn behind(socket: &socket2::Socket, server: SocketAddr, zone: Option<&str>) -> io::Result<SocketAddr> {
    let (SocketAddr::V6(mut server), Some(zone)) = (server, zone) else { return Ok(server) };
    match zone.parse() {
        Ok(index) => server.set_scope_id(index),
        // As glibc: names count for link-local addresses only.
        Err(_) if server.ip().is_unicast_link_local() => socket.bind_device(Some(zone.as_bytes()))?,
        Err(_) => {}
    }
    Ok(server.into())
}

/// With a UDP socket that does not block.
pub(crate) async fn ask(socket: socket2::Socket, server: SocketAddr, query: &Query, within: Duration) -> Attempt {
    let start = Instant::now();
    let mut source = None;
    let outcome = match begin(&socket, server, &mut source).and_then(|()| UdpSocket::from_std(socket.into())) {
        Err(error) => failed(Stage::Connect, &error),
        Ok(socket) => match timeout(within, exchange(&socket, query)).await {
            Err(_) => Outcome::TimedOut { stage: Stage::Answer },
            Ok(outcome) => outcome,
        },
    };
    Attempt { elapsed_us: micros(start.elapsed()), source, outcome }
}

/// Connected, so that an ICMP error about our packet comes back as an errno, and answers of others do not.
fn begin(socket: &socket2::Socket, server: SocketAddr, source: &mut Option<SocketAddr>) -> io::Result<()> {
    socket.connect(&server.into())?;
    *source = socket.local_addr()?.as_socket();
    Ok(())
}

async fn exchange(socket: &UdpSocket, query: &Query) -> Outcome {
    // EPERM here is a packet filter's drop in the OUTPUT hook.
    if let Err(error) = socket.send(&query.bytes).await {
        return failed(Stage::Connect, &error);
    }
    let mut bytes = [0; ANSWER_BYTES];
    loop {
        match socket.recv(&mut bytes).await {
            Err(error) => return failed(Stage::Answer, &error),
            Ok(length) => {
                if let Some(outcome) = parse(&bytes[..length], query) {
                    return outcome;
                }
            }
        }
    }
}

/// None for a message that does not answer this query: late, forged or broken.
fn parse(bytes: &[u8], query: &Query) -> Option<Outcome> {
    let message = Message::from_vec(bytes).ok()?;
    if message.metadata.id != query.id || message.queries.first() != Some(&query.question) {
        return None;
    }
    let addresses = message.answers.iter().filter_map(|record| match &record.data {
        RData::A(address) => Some(Ipv4Addr::from(*address).into()),
        RData::AAAA(address) => Some(Ipv6Addr::from(*address).into()),
        _ => None,
    });
    Some(Outcome::Answered {
        rcode: rcode_name(message.metadata.response_code.into()),
        addresses: addresses.collect(),
        truncated: message.metadata.truncation,
    })
}
