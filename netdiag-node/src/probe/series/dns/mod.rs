//! DNS: one server's answer, or the lookup that a program in the namespace would make.

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use netdiag_common::observation::series::dns::{DnsAsking, DnsProbe, DnsReport, DnsTransport, DnsType};
use netdiag_common::observation::series::{FailureClass, ProbeFailure, ProbeReport, ProbeStage};

mod ledger;
mod lookup;
mod message;
mod options;
mod send;
mod server;
mod stream;
mod udp;

use super::context::{Context, Ending};
use super::schedule::micros;
use crate::rcode::rcode_name;
use ledger::Ledger;
use lookup::failed;
use message::{Answer, Question};
use server::Asker;

/// Record types of one attempt: there are nine.
const MAX_RECORDS: usize = 9;

pub(super) async fn attempt(context: &Context, probe: &DnsProbe, within: Duration) -> Ending {
    let mut records = Vec::new();
    for record in &probe.records {
        if !records.contains(record) {
            records.push(*record);
        }
    }
    if records.is_empty() {
        let failure = failed(FailureClass::Local, "no record type was asked for; name one, as A".to_owned());
        return Ending::failed(None, None, failure);
    }
    records.truncate(MAX_RECORDS);
    let until = Instant::now() + within;
    match &probe.asking {
        DnsAsking::Lookup { together } => by_resolver(context, probe, &records, *together, until).await,
        DnsAsking::Server { server, transport } => {
            at_server(context, probe, &records, (*server, transport), until).await
        }
    }
}

/// The addresses of a host, as getaddrinfo would find them; the time that it took.
pub(super) async fn addresses(
    context: &Context,
    host: &str,
    until: Instant,
) -> Result<(Vec<IpAddr>, u64), ProbeFailure> {
    let start = Instant::now();
    let resolver = context.resolver.as_deref().ok_or_else(without_resolver)?;
    let records = [DnsType::A, DnsType::Aaaa];
    let looked = lookup::lookup(context, resolver, host, &records, true, None, until).await;
    match looked.failure {
        Some(failure) => Err(failure),
        None => Ok((looked.addresses, micros(start.elapsed()))),
    }
}

async fn by_resolver(
    context: &Context,
    probe: &DnsProbe,
    records: &[DnsType],
    together: bool,
    until: Instant,
) -> Ending {
    let Some(resolver) = context.resolver.as_deref() else { return Ending::failed(None, None, without_resolver()) };
    let start = Instant::now();
    let looked = lookup::lookup(context, resolver, &probe.name, records, together, probe.edns_bytes, until).await;
    let phases = if looked.failure.is_none() { vec![("lookup", micros(start.elapsed()))] } else { Vec::new() };
    let (source, to) = (looked.ledger.source, looked.ledger.server);
    let report = DnsReport {
        queries: looked.ledger.queries,
        addresses: looked.addresses,
        by_hosts: looked.by_hosts,
        getaddrinfo: looked.code.map(ToOwned::to_owned),
        timeouts: looked.timeouts,
    };
    Ending { source, to, failure: looked.failure, report: ProbeReport::Dns(report), phases }
}

async fn at_server(
    context: &Context,
    probe: &DnsProbe,
    records: &[DnsType],
    (server, transport): (SocketAddr, &DnsTransport),
    until: Instant,
) -> Ending {
    if let Err(failure) = context.allow(server.ip()) {
        return Ending::failed(None, Some(server), failure);
    }
    let (ledger, phases) = (Ledger::default(), Vec::new());
    let mut asker = Asker { context, server, ledger, phases, distrust: None };
    let mut answers = Vec::new();
    let mut failure = None;
    for (number, record) in records.iter().enumerate() {
        let question = match Question::new(&probe.name, *record, probe.edns_bytes) {
            Ok(question) => question,
            Err(why) => return Ending::failed(None, Some(server), failed(FailureClass::Local, why)),
        };
        // Each has its share of what is left: the first one's silence does not keep the others from being asked.
        let left = until.saturating_duration_since(Instant::now());
        let share = left / u32::try_from(records.len() - number).unwrap_or(1).max(1);
        let start = Instant::now();
        match asker.ask(question, transport, start + share).await {
            Ok(answer) => {
                asker.phases.push(("rtt", micros(start.elapsed())));
                answers.push(answer);
            }
            Err(met) => failure = failure.or(Some(met)),
        }
    }
    let failure = failure.or(asker.distrust).or_else(|| said(&answers, &probe.name));
    let addresses = answers.iter().flat_map(|answer| answer.told.addresses.iter().copied()).collect();
    let source = asker.ledger.source;
    let report = DnsReport { queries: asker.ledger.queries, addresses, ..DnsReport::default() };
    Ending { source, to: Some(server), failure, report: ProbeReport::Dns(report), phases: asker.phases }
}

/// What the answers say that is no success: the first rcode, or that none of them has a record.
fn said(answers: &[Answer], name: &str) -> Option<ProbeFailure> {
    let refusal = answers.iter().find(|answer| answer.rcode != 0);
    let (class, why) = match refusal {
        Some(answer) => (FailureClass::Rcode, rcode_name(answer.rcode)),
        None if answers.iter().all(|answer| answer.answers == 0) => {
            (FailureClass::NoData, "the name exists without a record of this type".to_owned())
        }
        None => return None,
    };
    Some(ProbeFailure { stage: ProbeStage::Answer, ..failed(class, format!("{name}: {why}")) })
}

fn without_resolver() -> ProbeFailure {
    let why = "the namespace's resolv.conf could not be read; ask a server by its address".to_owned();
    failed(FailureClass::Local, why)
}
