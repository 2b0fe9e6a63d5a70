//! Queries over a stream (RFC 1035 §4.2.2, RFC 7858): each message behind two bytes of its length.

use std::io;

use netdiag_common::observation::series::{FailureClass, ProbeFailure, ProbeStage};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

use super::super::context::of_errno;
use super::message::{Answer, Heard, Question};

/// Messages that may come before the answers. A server has no reason to send any.
const MAX_STRANGE: u32 = 16;

/// The answers that came, in the order of the questions, and why the rest did not.
#[derive(Default)]
pub(super) struct Exchange {
    pub(super) answers: Vec<Option<Answer>>,
    /// Messages that were no answer.
    pub(super) ignored: u32,
    pub(super) failure: Option<ProbeFailure>,
}

/// Asks all questions at once, as glibc does (`send_vc`, resolv/res_send.c), and reads until each has its answer.
pub(super) async fn ask<S: AsyncRead + AsyncWrite + Unpin>(
    stream: &mut S,
    questions: &[&Question],
    exchange: &mut Exchange,
) {
    exchange.answers = vec![None; questions.len()];
    exchange.failure = go_on(stream, questions, exchange).await.err();
}

async fn go_on<S: AsyncRead + AsyncWrite + Unpin>(
    stream: &mut S,
    questions: &[&Question],
    exchange: &mut Exchange,
) -> Result<(), ProbeFailure> {
    let mut bytes = Vec::new();
    for question in questions {
        // A query has at most a name, a type and an OPT record: less than 300 bytes.
        let length = u16::try_from(question.bytes.len()).unwrap_or(u16::MAX);
        bytes.extend(length.to_be_bytes());
        bytes.extend(&question.bytes);
    }
    stream.write_all(&bytes).await.map_err(|error| broken(ProbeStage::Send, &error))?;
    stream.flush().await.map_err(|error| broken(ProbeStage::Send, &error))?;
    let mut message = Vec::new();
    while exchange.answers.iter().any(Option::is_none) {
        let length = stream.read_u16().await.map_err(|error| broken(ProbeStage::Answer, &error))?;
        message.resize(length.into(), 0);
        stream.read_exact(&mut message).await.map_err(|error| broken(ProbeStage::Body, &error))?;
        let mut malformed = None;
        let mut place = None;
        for (number, question) in questions.iter().enumerate() {
            match question.hear(&message) {
                Heard::Answer(answer) => place = Some((number, *answer)),
                Heard::NotOurs => {}
                Heard::Malformed(why) => malformed = Some(why),
            }
        }
        match (place, malformed) {
            (Some((number, answer)), _) => exchange.answers[number] = Some(answer),
            (None, Some(why)) => return Err(strange(format!("malformed: {why}"))),
            (None, None) => {
                exchange.ignored += 1;
                if exchange.ignored > MAX_STRANGE {
                    return Err(strange(format!("{} messages came that answer nothing", exchange.ignored)));
                }
            }
        }
    }
    Ok(())
}

fn strange(why: String) -> ProbeFailure {
    let class = FailureClass::Protocol;
    ProbeFailure { stage: ProbeStage::Answer, class, errno: None, said_by: None, icmp: None, why }
}

fn broken(stage: ProbeStage, error: &io::Error) -> ProbeFailure {
    if error.kind() != io::ErrorKind::UnexpectedEof && error.kind() != io::ErrorKind::WriteZero {
        return of_errno(stage, error);
    }
    let class = FailureClass::Closed;
    let why = if stage == ProbeStage::Body { "closed in the middle of its answer" } else { "closed without an answer" };
    ProbeFailure { stage, class, errno: None, said_by: None, icmp: None, why: why.to_owned() }
}
