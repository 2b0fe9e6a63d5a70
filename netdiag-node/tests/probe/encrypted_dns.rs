//! DNS over TLS and HTTPS (RFC 7858, RFC 8484), from servers that answer well and from those that do not.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::Arc;

use netdiag_common::observation::series::FailureClass::{Certificate, Closed, Protocol, Reset, Silence};
use netdiag_common::observation::series::ProbeStage::{Answer, Body, Tls};
use netdiag_common::observation::series::dns::{DnsAsking, DnsTransport, DnsType};
use netdiag_common::observation::series::{DnsProbe, FailureClass, Probe, ProbeStage, SeriesAttempt};
use rustls::{ServerConnection, StreamOwned};

use crate::dns::good;
use crate::host::{Host, LOCAL, drip, failure, hold, reset, why};
use crate::tls::{NAME, unknown};
use crate::way::report;

const PATIENT_MS: u32 = 10_000;
const SHORT_MS: u32 = 1_500;

type Stream = StreamOwned<ServerConnection, TcpStream>;
/// What a server does with a good answer to its query.
type Then = fn(Stream, Vec<u8>);
type Expected = (FailureClass, ProbeStage, Option<&'static str>);

/// Shakes hands and reads one query: behind its length, or as the body of a POST where `is_https`.
fn serve(host: &Host, is_https: bool, then: Then) -> SocketAddr {
    let config = Arc::new(unknown());
    host.serve(LOCAL[0], move |stream| {
        let mut stream = StreamOwned::new(ServerConnection::new(Arc::clone(&config)).unwrap(), stream);
        let mut head = Vec::new();
        let mut byte = [0];
        while is_https && !head.ends_with(b"\r\n\r\n") {
            stream.read_exact(&mut byte).unwrap();
            head.extend(byte);
        }
        let mut length = [0; 2];
        let mut query = vec![0; 512];
        if is_https {
            let count = stream.read(&mut query).unwrap();
            query.truncate(count);
        } else {
            stream.read_exact(&mut length).unwrap();
            query.truncate(u16::from_be_bytes(length).into());
            stream.read_exact(&mut query).unwrap();
        }
        then(stream, good(&query));
    })
}

fn name_server(host: &Host, is_https: bool) -> SocketAddr {
    let then: Then = if is_https {
        |stream, answer| keep(stream, &posted(&answer, 0))
    } else {
        |stream, answer| keep(stream, &framed(&answer, 0))
    };
    serve(host, is_https, then)
}

/// Behind a length that is so much more, or less, than the answer has.
fn framed(answer: &[u8], more: i16) -> Vec<u8> {
    let length = u16::try_from(answer.len()).unwrap().wrapping_add_signed(more);
    [&length.to_be_bytes()[..], answer].concat()
}

/// As a body whose length is so much more, or less.
fn posted(answer: &[u8], more: i16) -> Vec<u8> {
    let length = u16::try_from(answer.len()).unwrap().wrapping_add_signed(more);
    [format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n").as_bytes(), answer].concat()
}

/// Says so much, and nothing more.
fn keep(mut stream: Stream, bytes: &[u8]) {
    let _ = stream.write_all(bytes);
    hold(stream.sock);
}

/// Says so much, and ends the session in good order.
fn close(mut stream: Stream, bytes: &[u8]) {
    let _ = stream.write_all(bytes);
    stream.conn.send_close_notify();
    let _ = stream.flush();
    let _ = stream.sock.shutdown(Shutdown::Write);
    hold(stream.sock);
}

fn https() -> DnsTransport {
    DnsTransport::Https { host: NAME.to_owned(), path: "/dns-query".to_owned() }
}

fn ask(host: &Host, server: SocketAddr, transport: DnsTransport, timeout_ms: u32) -> SeriesAttempt {
    let asking = DnsAsking::Server { server, transport };
    let records = vec![DnsType::A];
    host.attempt(Probe::Dns(DnsProbe { name: NAME.to_owned(), records, asking, edns_bytes: None }), timeout_ms)
}

#[test]
fn names_are_asked_over_tls_and_https() {
    let Some(host) = Host::new("names_are_asked_over_tls_and_https") else { return };
    let ask = |server, transport| ask(&host, server, transport, PATIENT_MS);
    let transport = |name: Option<&str>| DnsTransport::Tls { server_name: name.map(ToOwned::to_owned) };
    let attempt = ask(name_server(&host, false), transport(None));
    assert_eq!((failure(&attempt), report!(attempt, Dns).addresses.len()), (None, 1), "{attempt:?}");
    for (is_https, transport, word) in [(false, transport(Some(NAME)), "tls"), (true, https(), "https")] {
        let attempt = ask(name_server(&host, is_https), transport);
        let found = report!(attempt, Dns);
        assert_eq!(failure(&attempt), Some((Certificate, Tls, None)), "judged where a name is given: {attempt:?}");
        assert_eq!((found.addresses.len(), found.queries[0].transport.as_str()), (1, word), "{attempt:?}");
    }
}

#[test]
fn answer_that_drips_to_its_end_is_an_answer() {
    let Some(host) = Host::new("answer_that_drips_to_its_end_is_an_answer") else { return };
    let to = serve(&host, false, |stream, answer| drip(stream, framed(&answer, 0)));
    let attempt = ask(&host, to, DnsTransport::Tls { server_name: None }, PATIENT_MS);
    assert_eq!((failure(&attempt), report!(attempt, Dns).addresses.len()), (None, 1), "{attempt:?}");
}

/// What the server does, how asking it fails, in so many milliseconds, and with which words.
type Case = (&'static str, Then, Expected, u32, &'static str);

fn check(test: &str, is_https: bool, cases: &[Case]) {
    let Some(host) = Host::new(test) else { return };
    for &(name, then, expected, timeout_ms, words) in cases {
        let transport = if is_https { https() } else { DnsTransport::Tls { server_name: None } };
        let attempt = ask(&host, serve(&host, is_https, then), transport, timeout_ms);
        assert_eq!(failure(&attempt), Some(expected), "a server that {name}: {attempt:?}");
        assert!(why(&attempt).contains(words), "a server that {name}: {}", why(&attempt));
        let found = report!(attempt, Dns);
        assert_eq!((found.queries.len(), found.addresses.len()), (1, 0), "a server that {name}: {attempt:?}");
    }
}

#[test]
fn servers_by_tls_that_break_have_their_class() {
    check(
        "servers_by_tls_that_break_have_their_class",
        false,
        &[
            (
                "drips without end",
                |stream, _| drip(stream, std::iter::repeat(0xff)),
                (Silence, Answer, None),
                SHORT_MS,
                "no whole answer",
            ),
            (
                "says half a length",
                |stream, _| keep(stream, &[0]),
                (Silence, Answer, None),
                SHORT_MS,
                "no whole answer",
            ),
            (
                "closes behind half a length",
                |stream, _| close(stream, &[0]),
                (Closed, Answer, None),
                PATIENT_MS,
                "without an answer",
            ),
            (
                "closes in its answer",
                |stream, answer| close(stream, &framed(&answer, 0)[..20]),
                (Closed, Body, None),
                PATIENT_MS,
                "in the middle",
            ),
            (
                "resets before it answers",
                |stream, _| reset(stream.sock),
                (Reset, Answer, Some("ECONNRESET")),
                PATIENT_MS,
                "",
            ),
            (
                "names more than it says",
                |stream, answer| keep(stream, &framed(&answer, 1)),
                (Silence, Answer, None),
                SHORT_MS,
                "no whole answer",
            ),
            (
                "names less than it says",
                |stream, answer| keep(stream, &framed(&answer, -1)),
                (Protocol, Answer, None),
                PATIENT_MS,
                "malformed",
            ),
            (
                "sends empty messages",
                |stream, _| keep(stream, &[0; 64]),
                (Protocol, Answer, None),
                PATIENT_MS,
                "17 messages",
            ),
        ],
    );
}

#[test]
fn servers_by_https_that_break_have_their_class() {
    check(
        "servers_by_https_that_break_have_their_class",
        true,
        &[
            (
                "drips its head",
                |stream, _| drip(stream, b"HTTP/1.1 200 OK\r\nX: ".iter().copied().chain(std::iter::repeat(b'x'))),
                (Silence, Answer, None),
                SHORT_MS,
                "the head did not end",
            ),
            (
                "drips its body",
                |mut stream, _| {
                    let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 60000\r\n\r\n");
                    drip(stream, std::iter::repeat_n(b'x', 60_000));
                },
                (Silence, Body, None),
                SHORT_MS,
                "the body did not end",
            ),
            (
                "closes in its first line",
                |stream, _| close(stream, b"HTTP/1.1 20"),
                (Closed, Answer, None),
                PATIENT_MS,
                "after 11 bytes",
            ),
            (
                "names more than it says",
                |stream, answer| close(stream, &posted(&answer, 1)),
                (Closed, Body, None),
                PATIENT_MS,
                "before the body's end",
            ),
            (
                "names less than it says",
                |stream, answer| keep(stream, &posted(&answer, -1)),
                (Protocol, Answer, None),
                PATIENT_MS,
                "malformed",
            ),
            (
                "says nothing at length",
                |stream, _| keep(stream, &posted(&[], 0)),
                (Protocol, Answer, None),
                PATIENT_MS,
                "no answer to the question",
            ),
            (
                "says more than an answer can have",
                |mut stream, _| {
                    let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 4294967295\r\n\r\n");
                    while stream.write_all(&[b'x'; 16_384]).is_ok() {}
                },
                (Protocol, Answer, None),
                PATIENT_MS,
                "no answer to the question",
            ),
        ],
    );
}
