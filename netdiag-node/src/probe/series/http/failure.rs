//! What the client's errors mean: who ended it, where, and as what.

use std::error::Error as _;
use std::io;

use netdiag_common::observation::series::{FailureClass, ProbeFailure, ProbeStage};
use nix::errno::Errno;

use super::super::context::of_errno;
use super::super::tls::{FirstBytes, alert_of, alert_words};
use super::channel::{MAX_HEAD_BYTES, MAX_HEAD_FIELDS};

/// Most characters of what the far side or a library wrote.
const MAX_TEXT: usize = 160;

/// Of an error while a head was awaited. `is_two`: HTTP/2 was spoken to it.
pub(super) fn of_head(error: &hyper::Error, first: &FirstBytes, is_two: bool) -> ProbeFailure {
    match spoken(&first.kept().bytes) {
        // Whoever hangs up after it leaves an error of its own, which says less.
        Some(line) if is_two && line.starts_with("HTTP/1.") => {
            failed(ProbeStage::Answer, FailureClass::Protocol, format!("does not speak HTTP/2: it said {line:?}"))
        }
        _ => of(error, ProbeStage::Answer, first),
    }
}

/// Of an error while a head or body was awaited.
pub(super) fn of(error: &hyper::Error, stage: ProbeStage, first: &FirstBytes) -> ProbeFailure {
    let kept = first.kept();
    if kept.is_too_much {
        return failed(stage, FailureClass::Limit, format!("more came than is read: {} bytes", kept.count));
    }
    if let Some(error) = io_error(error) {
        if let Some(number) = alert_of(error) {
            return failed(stage, FailureClass::Alert, format!("alert {number} ({})", alert_words(number)));
        }
        if error.raw_os_error().is_some() {
            return of_errno(stage, error);
        }
        match error.kind() {
            io::ErrorKind::UnexpectedEof | io::ErrorKind::BrokenPipe => return closed(stage, kept.count),
            // The library for HTTP/2 keeps an error's kind, and not its number.
            io::ErrorKind::ConnectionReset => return of_errno(stage, &Errno::ECONNRESET.into()),
            _ => {}
        }
        return failed(stage, FailureClass::Protocol, cut(&error.to_string()));
    }
    if error.is_parse_too_large() {
        let why = format!("its head is larger than {MAX_HEAD_BYTES} bytes or has more than {MAX_HEAD_FIELDS} fields");
        return failed(stage, FailureClass::Limit, why);
    }
    if error.is_incomplete_message() || error.is_canceled() || error.is_closed() {
        return closed(stage, kept.count);
    }
    let spoke = spoken(&kept.bytes);
    let why = match spoke {
        // Its first line says what it speaks instead.
        Some(line) if stage == ProbeStage::Answer => format!("{}: it said {line:?}", words(error)),
        _ => words(error),
    };
    failed(stage, FailureClass::Protocol, why)
}

fn closed(stage: ProbeStage, count: u64) -> ProbeFailure {
    let why = match (stage, count) {
        (ProbeStage::Body, _) => "closed before the body's end".to_owned(),
        (_, 0) => "closed without an answer".to_owned(),
        (_, count) => format!("closed after {count} bytes of its answer"),
    };
    failed(stage, FailureClass::Closed, why)
}

/// The first line, where it is text.
fn spoken(bytes: &[u8]) -> Option<String> {
    let line: Vec<u8> = bytes.iter().copied().take_while(|byte| !matches!(byte, b'\r' | b'\n')).collect();
    let is_text = !line.is_empty() && line.iter().all(|byte| (b' '..=b'~').contains(byte));
    is_text.then(|| String::from_utf8_lossy(&line).into_owned())
}

/// The error and its causes, in a line.
fn words(error: &hyper::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        source = cause.source();
    }
    cut(&text)
}

fn io_error(error: &hyper::Error) -> Option<&io::Error> {
    let mut source = error.source();
    while let Some(cause) = source {
        if let Some(error) = cause.downcast_ref::<io::Error>() {
            return Some(error);
        }
        source = cause.source();
    }
    None
}

/// Printable and short.
pub(super) fn cut(text: &str) -> String {
    text.chars().take(MAX_TEXT).map(|one| if one.is_control() { '?' } else { one }).collect()
}

pub(super) fn failed(stage: ProbeStage, class: FailureClass, why: String) -> ProbeFailure {
    ProbeFailure { stage, class, errno: None, said_by: None, icmp: None, why }
}
