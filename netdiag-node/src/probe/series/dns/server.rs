//! One query to one server, by any of its transports: what does this server answer to this pod.

use std::net::SocketAddr;
use std::time::Instant;

use netdiag_common::observation::series::dns::DnsTransport;
use netdiag_common::observation::series::tls::TlsWords;
use netdiag_common::observation::series::{FailureClass, ProbeFailure, ProbeStage};
use tokio::time::timeout_at;

use super::super::context::{Context, silence};
use super::super::tls::{self, Wanted};
use super::super::{http, tcp};
use super::ledger::{Ledger, Sent};
use super::message::{Answer, Heard, Question};
use super::stream::{self, Exchange};
use super::udp::{Came, Udp};

/// Datagrams that are no answer, before the wait is given up.
const MAX_IGNORED: u32 = 1_000;

/// The queries of one attempt, and what was met on the way to the server.
pub(super) struct Asker<'a> {
    pub(super) context: &'a Context,
    pub(super) server: SocketAddr,
    pub(super) ledger: Ledger,
    pub(super) phases: Vec<(&'static str, u64)>,
    /// What is wrong with the server's certificate, beside its answer.
    pub(super) distrust: Option<ProbeFailure>,
}

impl Asker<'_> {
    pub(super) async fn ask(
        &mut self,
        question: Question,
        transport: &DnsTransport,
        until: Instant,
    ) -> Result<Answer, ProbeFailure> {
        match transport {
            DnsTransport::Udp => {
                let answer = self.by_udp(&question, until).await?;
                if answer.truncated { self.by_tcp(&question, until).await } else { Ok(answer) }
            }
            DnsTransport::Tcp => self.by_tcp(&question, until).await,
            DnsTransport::Tls { server_name } => self.by_tls(&question, server_name.as_ref(), until).await,
            DnsTransport::Https { host, path } => self.by_https(question.for_https(), host, path, until).await,
        }
    }

    async fn by_udp(&mut self, question: &Question, until: Instant) -> Result<Answer, ProbeFailure> {
        let opened = Udp::open(self.context, self.server).await;
        let udp = self.or_unsent(opened, question, "udp")?;
        let result = udp.send(self.context, &question.bytes).await;
        let sent = self.ledger.sent(question, self.server, "udp", udp.source());
        if let Err(failure) = result {
            return self.failed(&sent, failure);
        }
        // A message that cannot be read may be forged: the true one may still come.
        let (mut ignored, mut malformed) = (0, None);
        while ignored < MAX_IGNORED {
            match timeout_at(until.into(), udp.receive()).await {
                Err(_) => {
                    let waited = format!("no answer in {} ms", sent.elapsed().as_millis());
                    let failure = match malformed {
                        Some(why) => protocol(format!("malformed: {why}")),
                        None => silence(ProbeStage::Answer, waited),
                    };
                    return self.failed(&sent, failure);
                }
                Ok(Err(failure)) => return self.failed(&sent, failure),
                Ok(Ok(Came::FromOther)) => {}
                Ok(Ok(Came::FromServer(bytes))) => match question.hear(&bytes) {
                    Heard::Answer(answer) if answer.broken.is_none() => {
                        self.ledger.answered(&sent, &answer);
                        return Ok(*answer);
                    }
                    Heard::Answer(answer) => malformed = answer.broken,
                    Heard::Malformed(why) => malformed = Some(why),
                    Heard::NotOurs => {}
                },
            }
            ignored += 1;
            self.ledger.ignored(&sent, 1);
        }
        let why = format!("gave up after {ignored} datagrams that are no answer");
        self.failed(&sent, ProbeFailure { class: FailureClass::Limit, ..protocol(why) })
    }

    async fn by_tcp(&mut self, question: &Question, until: Instant) -> Result<Answer, ProbeFailure> {
        let left = until.saturating_duration_since(Instant::now());
        let connected = tcp::connect(self.context, None, self.server, left).await;
        let (mut stream, connect_us) = self.or_unsent(connected, question, "tcp")?;
        self.phases.push(("connect", connect_us));
        let sent = self.ledger.sent(question, self.server, "tcp", stream.local_addr().ok());
        self.over(&mut stream, question, &sent, until).await
    }

    async fn by_tls(
        &mut self,
        question: &Question,
        name: Option<&String>,
        until: Instant,
    ) -> Result<Answer, ProbeFailure> {
        // RFC 7858 knows no ALPN, and a server that has others refuses one that it does not know (RFC 7301 §3.2).
        let words = TlsWords { server_name: name.cloned(), alpn: Vec::new(), authorities: None };
        let wanted = Wanted::new(&words).map_err(|why| super::lookup::failed(FailureClass::Local, why))?;
        let left = until.saturating_duration_since(Instant::now());
        let connected = tcp::connect(self.context, None, self.server, left).await;
        let (stream, connect_us) = self.or_unsent(connected, question, "tls")?;
        self.phases.push(("connect", connect_us));
        let sent = self.ledger.sent(question, self.server, "tls", stream.local_addr().ok());
        let shaken = tls::handshake(stream, &wanted, until).await;
        // Without a name the server is not known: encrypted, to whomever (RFC 7858 §4.1).
        if name.is_some() {
            self.distrust = self.distrust.take().or_else(|| tls::distrust(&shaken.report));
        }
        match (shaken.stream, shaken.failure) {
            (Some(mut stream), _) => {
                self.phases.push(("tls", shaken.report.handshake_us));
                self.over(&mut stream, question, &sent, until).await
            }
            (None, failure) => {
                let failure = failure.unwrap_or_else(|| silence(ProbeStage::Tls, "no handshake".to_owned()));
                self.failed(&sent, failure)
            }
        }
    }

    async fn by_https(
        &mut self,
        question: Question,
        host: &str,
        path: &str,
        until: Instant,
    ) -> Result<Answer, ProbeFailure> {
        let left = until.saturating_duration_since(Instant::now());
        let connected = tcp::connect(self.context, None, self.server, left).await;
        let (stream, connect_us) = self.or_unsent(connected, &question, "https")?;
        self.phases.push(("connect", connect_us));
        let sent = self.ledger.sent(&question, self.server, "https", stream.local_addr().ok());
        let posted = http::post_dns(self.context, stream, (host, path), &question.bytes, until).await;
        if let Some(tls_us) = posted.tls_us {
            self.phases.push(("tls", tls_us));
        }
        self.distrust = self.distrust.take().or(posted.distrust);
        let body = match posted.body {
            Ok(body) => body,
            Err(failure) => return self.failed(&sent, failure),
        };
        match question.hear(&body) {
            Heard::Answer(answer) => {
                self.ledger.answered(&sent, &answer);
                match &answer.broken {
                    None => Ok(*answer),
                    Some(why) => Err(protocol(format!("malformed: {why}"))),
                }
            }
            Heard::NotOurs => self.failed(&sent, protocol("the body is no answer to the question".to_owned())),
            Heard::Malformed(why) => self.failed(&sent, protocol(format!("malformed: {why}"))),
        }
    }

    async fn over<S>(
        &mut self,
        stream: &mut S,
        question: &Question,
        sent: &Sent,
        until: Instant,
    ) -> Result<Answer, ProbeFailure>
    where
        S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin,
    {
        let mut exchange = Exchange::default();
        self.context.spend(1, question.bytes.len() as u64).await;
        let ended = timeout_at(until.into(), stream::ask(stream, &[question], &mut exchange)).await;
        self.ledger.ignored(sent, exchange.ignored);
        if ended.is_err() {
            let why = format!("no whole answer in {} ms", sent.elapsed().as_millis());
            return self.failed(sent, silence(ProbeStage::Answer, why));
        }
        match (exchange.answers.pop().flatten(), exchange.failure) {
            (Some(answer), _) => {
                self.ledger.answered(sent, &answer);
                match &answer.broken {
                    None => Ok(answer),
                    Some(why) => Err(protocol(format!("malformed: {why}"))),
                }
            }
            (None, failure) => {
                let failure = failure.unwrap_or_else(|| protocol("no answer came".to_owned()));
                self.failed(sent, failure)
            }
        }
    }

    /// What could not be sent is told as a query too.
    fn or_unsent<T>(
        &mut self,
        result: Result<T, ProbeFailure>,
        question: &Question,
        transport: &str,
    ) -> Result<T, ProbeFailure> {
        result.inspect_err(|failure| {
            let sent = self.ledger.sent(question, self.server, transport, None);
            self.ledger.failed(&sent, &failure.why);
        })
    }

    fn failed(&mut self, sent: &Sent, failure: ProbeFailure) -> Result<Answer, ProbeFailure> {
        self.ledger.failed(sent, &failure.why);
        Err(failure)
    }
}

fn protocol(why: String) -> ProbeFailure {
    let class = FailureClass::Protocol;
    ProbeFailure { stage: ProbeStage::Answer, class, errno: None, said_by: None, icmp: None, why }
}
