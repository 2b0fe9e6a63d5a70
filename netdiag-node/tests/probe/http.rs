//! HTTP from servers that answer well, and from those that do not.

use std::io::Write as _;
use std::net::{SocketAddr, TcpStream};

use netdiag_common::observation::resolver::Resolver;
use netdiag_common::observation::series::FailureClass::{
    Closed, Limit, Local, Protocol, Refused, Reset, Silence, Status,
};
use netdiag_common::observation::series::ProbeStage::{Answer, Body, Connect, Lookup, Socket};
use netdiag_common::observation::series::http::HttpVersion;
use netdiag_common::observation::series::tls::TlsWords;
use netdiag_common::observation::series::{FailureClass, HttpProbe, Probe, ProbeStage};

use crate::host::{Host, LOCAL, drip, failure, hold, read_head, reset, why};
use crate::way::report;

/// Long enough for a busy machine to answer, where an answer comes.
const PATIENT_MS: u32 = 10_000;
/// For servers that never end.
const SHORT_MS: u32 = 1_500;

pub fn get(to: SocketAddr) -> HttpProbe {
    HttpProbe {
        url: format!("http://{to}/"),
        to: None,
        source_port: None,
        version: HttpVersion::Any,
        method: "GET".to_owned(),
        headers: Vec::new(),
        tls: TlsWords::default(),
        any_certificate: false,
        redirects: 0,
        body_bytes: 1024 * 1024,
        expect: Vec::new(),
        grpc_health: None,
    }
}

type Serve = Box<dyn Fn(TcpStream) + Send + Sync>;
type Expected = (FailureClass, ProbeStage, Option<&'static str>);

/// Reads the request and writes this.
fn says(answer: &'static str) -> impl Fn(TcpStream) + Send + Sync + 'static {
    move |mut stream| {
        read_head(&mut stream);
        let _ = stream.write_all(answer.as_bytes());
    }
}

#[test]
fn good_answer_is_told_by_phases_in_both_families() {
    let Some(host) = Host::new("good_answer_is_told_by_phases_in_both_families") else { return };
    for address in LOCAL {
        let answer = "HTTP/1.1 200 OK\r\nServer: byhand\r\nX-Envoy-A: 1\r\nX-Other: 2\r\nProxy-Status: edge; error=\"x\"\r\nContent-Length: 2\r\n\r\nhi";
        let to = host.serve(address, says(answer));
        let attempt = host.attempt(Probe::Http(HttpProbe { source_port: Some(61_500), ..get(to) }), PATIENT_MS);
        let found = report!(attempt, Http);
        assert_eq!(failure(&attempt), None, "{attempt:?}");
        let exchange = &found.exchanges[0];
        assert_eq!((exchange.status, exchange.version.as_deref()), (Some(200), Some("HTTP/1.1")));
        assert_eq!((exchange.to, exchange.body_bytes, exchange.whole), (Some(to), 2, true));
        let headers: Vec<_> = exchange.headers.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(headers, ["server", "x-envoy-a", "proxy-status", "content-length"]);
        let phases = exchange.phases;
        assert!(phases.connect_us.is_some() && phases.first_byte_us.is_some() && phases.body_us.is_some());
        assert!(phases.lookup_us.is_none() && phases.tls_us.is_none() && phases.total_us >= phases.first_byte_us);
        assert_eq!(attempt.source, Some(SocketAddr::new(to.ip(), 61_500)));
    }
}

#[test]
fn each_fault_has_its_class_stage_and_errno() {
    let Some(host) = Host::new("each_fault_has_its_class_stage_and_errno") else { return };
    let after_head = |then: fn(TcpStream)| -> Serve {
        Box::new(move |mut stream| {
            read_head(&mut stream);
            then(stream);
        })
    };
    let cases: Vec<(&str, Serve, Expected, u32, &str)> = vec![
        ("closes", after_head(drop), (Closed, Answer, None), PATIENT_MS, "without an answer"),
        ("resets", after_head(reset), (Reset, Answer, Some("ECONNRESET")), PATIENT_MS, ""),
        (
            "resets in the head",
            after_head(|mut stream| {
                stream.write_all(b"HTTP/1.1 200 OK\r\nServ").unwrap();
                reset(stream);
            }),
            (Reset, Answer, Some("ECONNRESET")),
            PATIENT_MS,
            "",
        ),
        (
            "resets in the body",
            after_head(|mut stream| {
                // So much goes into no buffer: when all of it is written, the head has been read.
                socket2::SockRef::from(&stream).set_send_buffer_size(4_096).unwrap();
                stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n").unwrap();
                stream.write_all(&[b'x'; 900_000]).unwrap();
                reset(stream);
            }),
            (Reset, Body, Some("ECONNRESET")),
            PATIENT_MS,
            "",
        ),
        ("never answers", Box::new(hold), (Silence, Answer, None), SHORT_MS, "no byte of an answer"),
        (
            "drips its head",
            after_head(|stream| drip(stream, b"HTTP/1.1 200 OK\r\nX: ".iter().copied().chain(std::iter::repeat(b'x')))),
            (Silence, Answer, None),
            SHORT_MS,
            "the head did not end",
        ),
        (
            "drips its body",
            after_head(|mut stream| {
                stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 60000\r\n\r\n").unwrap();
                drip(stream, std::iter::repeat_n(b'x', 60_000));
            }),
            (Silence, Body, None),
            SHORT_MS,
            "the body did not end",
        ),
        (
            "says it is longer than it is",
            Box::new(says("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhi")),
            (Closed, Body, None),
            PATIENT_MS,
            "before the body's end",
        ),
        (
            "breaks its chunks",
            Box::new(says("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nnothex\r\n")),
            (Protocol, Body, None),
            PATIENT_MS,
            "",
        ),
        (
            "has a huge head",
            after_head(|mut stream| {
                let _ = stream.write_all(format!("HTTP/1.1 200 OK\r\nX: {}\r\n\r\n", "x".repeat(1 << 20)).as_bytes());
                hold(stream);
            }),
            (Limit, Answer, None),
            PATIENT_MS,
            "larger than 65536 bytes",
        ),
        (
            "has many fields",
            after_head(|mut stream| {
                let _ = stream.write_all(format!("HTTP/1.1 200 OK\r\n{}\r\n", "X: y\r\n".repeat(300)).as_bytes());
                hold(stream);
            }),
            (Limit, Answer, None),
            PATIENT_MS,
            "more than 256 fields",
        ),
        (
            "speaks another protocol",
            Box::new(says("220 mail.example ESMTP\r\n")),
            (Protocol, Answer, None),
            PATIENT_MS,
            "220 mail",
        ),
        (
            "is not there",
            Box::new(says("HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n")),
            (Status, Answer, None),
            PATIENT_MS,
            "status 503 (Service Unavailable)",
        ),
    ];
    for (name, serve, expected, timeout_ms, words) in cases {
        let to = host.serve(LOCAL[0], serve);
        let attempt = host.attempt(Probe::Http(get(to)), timeout_ms);
        assert_eq!(failure(&attempt), Some(expected), "a server that {name}: {attempt:?}");
        assert!(why(&attempt).contains(words), "a server that {name}: {}", why(&attempt));
    }
    let nobody = get("127.0.0.1:9".parse().unwrap());
    let attempt = host.attempt(Probe::Http(nobody), PATIENT_MS);
    assert_eq!(failure(&attempt), Some((Refused, Connect, Some("ECONNREFUSED"))), "{attempt:?}");
}

#[test]
fn body_is_read_as_far_as_it_is_wanted() {
    let Some(host) = Host::new("body_is_read_as_far_as_it_is_wanted") else { return };
    // What lies behind the length that was said is not read.
    let to = host.serve(LOCAL[0], says("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi and much more"));
    let attempt = host.attempt(Probe::Http(get(to)), PATIENT_MS);
    let exchange = &report!(attempt, Http).exchanges[0];
    assert_eq!((failure(&attempt), exchange.body_bytes, exchange.whole), (None, 2, true));

    let to = host.serve(LOCAL[0], |mut stream| {
        read_head(&mut stream);
        let gib = 1 << 30;
        let _ = stream.write_all(format!("HTTP/1.1 200 OK\r\nContent-Length: {gib}\r\n\r\n").as_bytes());
        let part = vec![b'x'; 1 << 16];
        while stream.write_all(&part).is_ok() {}
    });
    let probe = HttpProbe { body_bytes: u32::MAX, ..get(to) };
    let attempt = host.attempt(Probe::Http(probe), PATIENT_MS);
    let exchange = &report!(attempt, Http).exchanges[0];
    assert_eq!((failure(&attempt), exchange.body_bytes, exchange.whole), (None, 1 << 20, false), "{attempt:?}");
}

#[test]
fn redirects_are_followed_so_far_and_not_to_everywhere() {
    let Some(host) = Host::new("redirects_are_followed_so_far_and_not_to_everywhere") else { return };
    let end = host.serve(LOCAL[1], says("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"));
    let to = host.serve(LOCAL[0], move |mut stream| {
        read_head(&mut stream);
        let _ = write!(stream, "HTTP/1.1 302 Found\r\nLocation: http://{end}/end\r\nContent-Length: 0\r\n\r\n");
    });
    let attempt = host.attempt(Probe::Http(HttpProbe { redirects: 1, ..get(to) }), PATIENT_MS);
    let exchanges = &report!(attempt, Http).exchanges;
    assert_eq!((failure(&attempt), exchanges.len(), exchanges[1].to), (None, 2, Some(end)), "{attempt:?}");
    let attempt = host.attempt(Probe::Http(get(to)), PATIENT_MS);
    assert_eq!(report!(attempt, Http).exchanges[0].status, Some(302), "not followed, not a failure");

    let ring = host.serve(LOCAL[0], says("HTTP/1.1 301 Moved\r\nLocation: /again\r\nContent-Length: 0\r\n\r\n"));
    let attempt = host.attempt(Probe::Http(HttpProbe { redirects: 255, ..get(ring) }), PATIENT_MS);
    assert_eq!(failure(&attempt), Some((Limit, Answer, None)), "{attempt:?}");
    assert_eq!(report!(attempt, Http).exchanges.len(), 11);

    let away = host
        .serve(LOCAL[0], says("HTTP/1.1 302 Found\r\nLocation: http://169.254.169.254/\r\nContent-Length: 0\r\n\r\n"));
    let attempt = host.attempt(Probe::Http(HttpProbe { redirects: 1, ..get(away) }), PATIENT_MS);
    assert!(
        attempt.failure.is_some() && report!(attempt, Http).exchanges[1].phases.connect_us.is_none(),
        "{attempt:?}"
    );
}

#[test]
fn what_may_not_be_sent_is_said_and_not_sent() {
    let Some(host) = Host::new("what_may_not_be_sent_is_said_and_not_sent") else { return };
    let to = host.serve(LOCAL[0], says("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"));
    for probe in [
        HttpProbe { method: "DELETE".to_owned(), ..get(to) },
        HttpProbe { headers: vec![("Transfer-Encoding".to_owned(), "chunked".to_owned())], ..get(to) },
        HttpProbe { url: "file:///etc/passwd".to_owned(), ..get(to) },
    ] {
        let attempt = host.attempt(Probe::Http(probe), PATIENT_MS);
        assert_eq!(failure(&attempt), Some((Local, Socket, None)), "{attempt:?}");
    }
    let named = HttpProbe { url: "http://nowhere.invalid/".to_owned(), ..get(to) };
    let attempt = host.attempt_with(Probe::Http(named), PATIENT_MS, Some(Resolver::default()));
    assert_eq!(
        failure(&attempt).map(|(class, stage, _)| (class, stage)),
        Some((Refused, Lookup)),
        "nobody listens: {attempt:?}"
    );
}

#[test]
fn host_is_what_was_asked() {
    let Some(host) = Host::new("host_is_what_was_asked") else { return };
    let (sender, receiver) = std::sync::mpsc::channel();
    let to = host.serve(LOCAL[0], move |mut stream| {
        use std::io::Read as _;
        let mut bytes = [0; 2_048];
        let length = stream.read(&mut bytes).unwrap();
        sender.send(String::from_utf8_lossy(&bytes[..length]).to_lowercase()).unwrap();
        let _ = stream.write_all(b"HTTP/1.1 204 No Content\r\n\r\n");
    });
    let headers = vec![("Host".to_owned(), "shop.example".to_owned()), ("User-Agent".to_owned(), "me".to_owned())];
    let probe = HttpProbe {
        url: "http://web.example/a?b=c".to_owned(),
        to: Some(to),
        method: "HEAD".to_owned(),
        headers,
        ..get(to)
    };
    let attempt = host.attempt(Probe::Http(probe), PATIENT_MS);
    assert_eq!(failure(&attempt), None, "{attempt:?}");
    let request = receiver.recv().unwrap();
    assert!(request.starts_with("head /a?b=c http/1.1\r\n"), "{request}");
    assert!(request.contains("\r\nhost: shop.example\r\n") && request.contains("\r\nuser-agent: me\r\n"), "{request}");
    assert_eq!(request.matches("host:").count(), 1, "{request}");
}
