//! What every query of an attempt came to, told in order.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use netdiag_common::observation::series::dns::DnsQuery;

use super::super::schedule::micros;
use super::message::{Answer, Question};

/// Queries of one attempt. A search list of 32 domains with two types, three servers and five tries has 990.
const MAX_QUERIES: usize = 1_000;

/// The queries so far.
#[derive(Debug, Default)]
pub(super) struct Ledger {
    pub(super) queries: Vec<DnsQuery>,
    /// Where the first query came from.
    pub(super) source: Option<SocketAddr>,
    /// Whom it was sent to.
    pub(super) server: Option<SocketAddr>,
}

/// One query on its way.
pub(super) struct Sent {
    place: usize,
    at: Instant,
}

impl Sent {
    pub(super) fn elapsed(&self) -> Duration {
        self.at.elapsed()
    }
}

impl Ledger {
    /// Whether another pair may still be sent.
    pub(super) fn is_full(&self) -> bool {
        self.queries.len() + 2 > MAX_QUERIES
    }

    pub(super) fn sent(
        &mut self,
        question: &Question,
        server: SocketAddr,
        transport: &str,
        source: Option<SocketAddr>,
    ) -> Sent {
        self.source = self.source.or(source);
        self.server = self.server.or(Some(server));
        self.queries.push(DnsQuery {
            server,
            transport: transport.to_owned(),
            name: question.name.clone(),
            record: question.record,
            source_port: source.map(|source| source.port()),
            elapsed_us: 0,
            answer: None,
            failure: None,
            ignored: 0,
        });
        Sent { place: self.queries.len() - 1, at: Instant::now() }
    }

    pub(super) fn answered(&mut self, sent: &Sent, answer: &Answer) {
        let query = self.ended(sent);
        query.answer = Some(answer.told.clone());
        query.failure = answer.broken.as_ref().map(|why| format!("malformed: {why}"));
    }

    pub(super) fn failed(&mut self, sent: &Sent, why: &str) {
        self.ended(sent).failure = Some(why.to_owned());
    }

    /// Something came that was no answer to it.
    pub(super) fn ignored(&mut self, sent: &Sent, count: u32) {
        if let Some(query) = self.queries.get_mut(sent.place) {
            query.ignored = query.ignored.saturating_add(count);
        }
    }

    fn ended(&mut self, sent: &Sent) -> &mut DnsQuery {
        let query = &mut self.queries[sent.place];
        query.elapsed_us = micros(sent.at.elapsed());
        query
    }
}
