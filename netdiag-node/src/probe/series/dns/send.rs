//! One name, one or two types, asked of a namespace's servers as glibc does (`__res_context_send`, resolv/res_send.c, 2.36).

use std::time::Instant;

use netdiag_common::observation::series::{ProbeFailure, ProbeStage};
use tokio::time::timeout_at;

use super::super::context::{Context, silence};
use super::ledger::{Ledger, Sent};
use super::message::{Answer, Heard, Question};
use super::options::Options;
use super::stream::{self, Exchange};
use super::udp::{Came, Udp};

/// Datagrams of one query that are no answer to it, before the server is given up.
const MAX_IGNORED: u32 = 1_000;
/// RFC 1035 §4.1.1: what a server says that cannot or will not answer.
const SERVFAIL: u16 = 2;
const NOTIMP: u16 = 4;
const REFUSED: u16 = 5;

/// The resolver's state over the queries of one lookup: what it learnt about its servers stays.
pub(super) struct Sender<'a> {
    context: &'a Context,
    options: Options,
    /// The lookup's own end: the resolver would go on.
    until: Instant,
    first_server: usize,
    pub(super) ledger: Ledger,
    /// Waits that lasted to their end.
    pub(super) timeouts: u32,
    /// The last thing that a server or the network did instead of answering.
    pub(super) trouble: Option<ProbeFailure>,
    /// The last rcode by which a server refused to answer.
    pub(super) refusal: Option<u16>,
}

/// Why no server answered.
pub(super) enum Unanswered {
    /// No server was ever heard of or waited for: the resolver gives up the search (`ECONNREFUSED`).
    Nobody,
    /// Every try was in vain (`ETIMEDOUT`).
    InVain,
    /// The attempt's time is over.
    Over,
}

/// What became of the questions at one server.
enum AtServer {
    /// In the questions' order; one may be missing.
    Answers(Vec<Option<Answer>>),
    Next,
    Truncated,
    Over,
}

impl<'a> Sender<'a> {
    pub(super) fn new(context: &'a Context, options: Options, until: Instant) -> Self {
        // glibc starts at a random server with `rotate` (`nameserver_offset`), a new one in each process.
        let random = std::hash::BuildHasher::hash_one(&std::hash::RandomState::new(), 0u8);
        let count = options.servers.len().max(1) as u64;
        let first_server = if options.rotate { usize::try_from(random % count).unwrap_or(0) } else { 0 };
        let ledger = Ledger::default();
        Self { context, options, until, first_server, ledger, timeouts: 0, trouble: None, refusal: None }
    }

    pub(super) async fn send(&mut self, questions: &[Question]) -> Result<Vec<Option<Answer>>, Unanswered> {
        let mut by_tcp = self.options.use_tcp;
        let mut got_somewhere = false;
        let count = self.options.servers.len();
        for _ in 0..self.options.attempts {
            for shift in 0..count {
                let server = (shift + self.first_server) % count;
                if Instant::now() >= self.until || self.ledger.is_full() {
                    return Err(Unanswered::Over);
                }
                let mut end = AtServer::Truncated;
                if !by_tcp {
                    end = self.by_datagrams(server, questions, &mut got_somewhere).await;
                }
                if matches!(end, AtServer::Truncated) {
                    // From here on every server is asked so.
                    by_tcp = true;
                    got_somewhere = true;
                    end = self.by_stream(server, questions).await;
                }
                match end {
                    AtServer::Answers(answers) => return Ok(answers),
                    AtServer::Over => return Err(Unanswered::Over),
                    AtServer::Next | AtServer::Truncated => {}
                }
            }
        }
        Err(if got_somewhere { Unanswered::InVain } else { Unanswered::Nobody })
    }

    /// `send_dg`: both questions from one socket, at once or one after the other.
    async fn by_datagrams(&mut self, server: usize, questions: &[Question], got_somewhere: &mut bool) -> AtServer {
        let address = self.options.servers[server];
        let mut udp = match Udp::open(self.context, address).await {
            Ok(udp) => udp,
            Err(failure) => return self.unsent(server, "udp", questions, failure),
        };
        'retry: loop {
            let wait = self.options.wait(server);
            let until = self.until.min(Instant::now() + wait);
            let mut answers: Vec<Option<Answer>> = vec![None; questions.len()];
            // Done with: answered, or refused by the server.
            let mut is_done = vec![false; questions.len()];
            let mut sent: Vec<Sent> = Vec::new();
            let at_once = if self.options.single_request { 1 } else { questions.len() };
            for question in &questions[..at_once] {
                if let Err(failure) = self.send_one(&udp, question, address, &mut sent).await {
                    return self.broken(&sent, &is_done, failure);
                }
            }
            let mut ignored = 0;
            while is_done.contains(&false) {
                let came = match timeout_at(until.into(), udp.receive()).await {
                    Ok(Ok(came)) => came,
                    Ok(Err(failure)) => return self.broken(&sent, &is_done, failure),
                    Err(_) => {
                        self.nothing_came(&sent, &is_done);
                        *got_somewhere = true;
                        if Instant::now() >= self.until {
                            return AtServer::Over;
                        }
                        if !answers.iter().any(Option::is_some) {
                            return AtServer::Next;
                        }
                        // One of two came: a server, or a translation on the way, that cannot do with two at once.
                        if !self.options.single_request {
                            self.options.single_request = true;
                            continue 'retry;
                        }
                        if !self.options.single_request_reopen {
                            self.options.single_request_reopen = true;
                            match Udp::open(self.context, address).await {
                                Ok(anew) => udp = anew,
                                Err(failure) => return self.unsent(server, "udp", questions, failure),
                            }
                            continue 'retry;
                        }
                        return AtServer::Answers(answers);
                    }
                };
                let heard = match &came {
                    Came::FromOther => None,
                    Came::FromServer(bytes) => heard(bytes, &questions[..sent.len()], &is_done),
                };
                let Some((place, answer)) = heard else {
                    // Told of the question that is waited for.
                    let waiting = is_done.iter().position(|done| !done).unwrap_or(0).min(sent.len() - 1);
                    self.ledger.ignored(&sent[waiting], 1);
                    ignored += 1;
                    if ignored >= MAX_IGNORED {
                        let why = format!("gave up after {ignored} datagrams that are no answer");
                        return self.broken(&sent, &is_done, silence(ProbeStage::Lookup, why));
                    }
                    continue;
                };
                *got_somewhere = true;
                self.ledger.answered(&sent[place], &answer);
                if matches!(answer.rcode, SERVFAIL | NOTIMP | REFUSED) || answer.is_lame {
                    self.refusal = Some(answer.rcode);
                    if answers.iter().any(Option::is_some) {
                        return AtServer::Answers(answers);
                    }
                    is_done[place] = true;
                    if questions.len() == 1 || is_done.iter().all(|done| *done) {
                        return AtServer::Next;
                    }
                } else if answer.truncated {
                    return AtServer::Truncated;
                } else {
                    is_done[place] = true;
                    answers[place] = Some(answer);
                }
                if sent.len() < questions.len() {
                    if self.options.single_request_reopen {
                        match Udp::open(self.context, address).await {
                            Ok(anew) => udp = anew,
                            Err(failure) => return self.broken(&sent, &is_done, failure),
                        }
                    }
                    if let Err(failure) = self.send_one(&udp, &questions[sent.len()], address, &mut sent).await {
                        return self.broken(&sent, &is_done, failure);
                    }
                }
            }
            return AtServer::Answers(answers);
        }
    }

    async fn send_one(
        &mut self,
        udp: &Udp,
        question: &Question,
        server: std::net::SocketAddr,
        sent: &mut Vec<Sent>,
    ) -> Result<(), ProbeFailure> {
        let result = udp.send(self.context, &question.bytes).await;
        sent.push(self.ledger.sent(question, server, "udp", udp.source()));
        result
    }

    /// `send_vc`: all questions on one connection.
    async fn by_stream(&mut self, server: usize, questions: &[Question]) -> AtServer {
        let address = self.options.servers[server];
        let wait = self.options.wait(server).min(self.until.saturating_duration_since(Instant::now()));
        let until = Instant::now() + wait;
        let (mut stream, _) = match super::super::tcp::connect(self.context, None, address, wait).await {
            Ok(connected) => connected,
            Err(failure) => return self.unsent(server, "tcp", questions, failure),
        };
        let source = stream.local_addr().ok();
        let sent: Vec<_> = questions.iter().map(|one| self.ledger.sent(one, address, "tcp", source)).collect();
        let mut exchange = Exchange::default();
        let asked: Vec<_> = questions.iter().collect();
        let ended = timeout_at(until.into(), stream::ask(&mut stream, &asked, &mut exchange)).await;
        let mut is_done = vec![false; questions.len()];
        for (place, answer) in exchange.answers.iter().enumerate() {
            if let Some(answer) = answer {
                is_done[place] = true;
                self.ledger.answered(&sent[place], answer);
                if matches!(answer.rcode, SERVFAIL | NOTIMP | REFUSED) {
                    self.refusal = Some(answer.rcode);
                }
            }
        }
        self.ledger.ignored(&sent[0], exchange.ignored);
        if ended.is_err() {
            self.nothing_came(&sent, &is_done);
            return if Instant::now() >= self.until { AtServer::Over } else { AtServer::Next };
        }
        match exchange.failure {
            Some(failure) => self.broken(&sent, &is_done, failure),
            None => AtServer::Answers(exchange.answers),
        }
    }

    /// The questions that were sent and not answered ended so; the next server is asked.
    fn broken(&mut self, sent: &[Sent], is_done: &[bool], mut failure: ProbeFailure) -> AtServer {
        for (sent, _) in sent.iter().zip(is_done).filter(|(_, done)| !**done) {
            self.ledger.failed(sent, &failure.why);
        }
        failure.stage = ProbeStage::Lookup;
        self.trouble = Some(failure);
        AtServer::Next
    }

    fn unsent(&mut self, server: usize, transport: &str, questions: &[Question], failure: ProbeFailure) -> AtServer {
        let address = self.options.servers[server];
        let sent: Vec<_> = questions.iter().map(|one| self.ledger.sent(one, address, transport, None)).collect();
        self.broken(&sent, &vec![false; questions.len()], failure)
    }

    fn nothing_came(&mut self, sent: &[Sent], is_done: &[bool]) {
        let is_whole = Instant::now() < self.until;
        self.timeouts += u32::from(is_whole);
        for (sent, _) in sent.iter().zip(is_done).filter(|(_, done)| !**done) {
            let ms = sent.elapsed().as_millis();
            let why = if is_whole {
                format!("no answer in {ms} ms")
            } else {
                format!("no answer in {ms} ms, then the attempt's time was over")
            };
            self.ledger.failed(sent, &why);
        }
        self.trouble = Some(silence(ProbeStage::Lookup, "no answer from any server".to_owned()));
    }
}

/// Whose answer a datagram is.
fn heard(bytes: &[u8], questions: &[Question], is_done: &[bool]) -> Option<(usize, Answer)> {
    let mut open = questions.iter().enumerate().filter(|(place, _)| !is_done[*place]);
    open.find_map(|(place, question)| match question.hear(bytes) {
        Heard::Answer(answer) => Some((place, *answer)),
        Heard::NotOurs | Heard::Malformed(_) => None,
    })
}
