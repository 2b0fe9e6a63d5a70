//! HTTP/2 and gRPC health: a server that keeps the protocol, and frames of servers that do not.

use std::convert::Infallible;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};

use http::{HeaderMap, HeaderValue, Request, Response};
use http_body_util::{BodyExt as _, Collected, Full};
use hyper::body::{Bytes, Incoming};
use hyper_util::rt::{TokioExecutor, TokioIo};
use netdiag_common::observation::series::FailureClass::{Limit, Protocol, Silence, Status};
use netdiag_common::observation::series::ProbeStage::Answer;
use netdiag_common::observation::series::http::HttpVersion;
use netdiag_common::observation::series::{HttpProbe, Probe};

use crate::host::{Host, LOCAL, failure, hold, why};
use crate::http::get;
use crate::way::report;

const PATIENT_MS: u32 = 10_000;
const SHORT_MS: u32 = 1_500;

/// Answers by HTTP/2; the health of `web`, and of nothing else.
fn serve(host: &Host, address: &str) -> SocketAddr {
    let listener = host.namespace.run(|| TcpListener::bind((address, 0)).unwrap());
    let bound = listener.local_addr().unwrap();
    listener.set_nonblocking(true).unwrap();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async move {
            let listener = tokio::net::TcpListener::from_std(listener).unwrap();
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(async move {
                    let service = hyper::service::service_fn(respond);
                    let builder = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
                    let _ = builder.serve_connection(TokioIo::new(stream), service).await;
                });
            }
        });
    });
    bound
}

async fn respond(
    request: Request<Incoming>,
) -> Result<Response<impl hyper::body::Body<Data = Bytes, Error = Infallible>>, Infallible> {
    let path = request.uri().path().to_owned();
    let asked = request.into_body().collect().await.map(Collected::to_bytes).unwrap_or_default();
    let (status, body) = match (path.as_str(), asked.ends_with(b"web")) {
        ("/grpc.health.v1.Health/Check", true) => ("0", Bytes::from_static(&[0, 0, 0, 0, 2, 8, 1])),
        ("/grpc.health.v1.Health/Check", false) => ("5", Bytes::new()),
        _ => ("", Bytes::from_static(b"plain")),
    };
    let trailers =
        HeaderMap::from_iter([(http::HeaderName::from_static("grpc-status"), HeaderValue::from_static(status))]);
    let body = Full::new(body).with_trailers(std::future::ready(Some(Ok(trailers))));
    Ok(Response::builder().header("content-type", "application/grpc").body(body).unwrap())
}

fn two(to: SocketAddr) -> HttpProbe {
    HttpProbe { version: HttpVersion::Http2, ..get(to) }
}

#[test]
fn prior_knowledge_is_spoken_in_both_families() {
    let Some(host) = Host::new("prior_knowledge_is_spoken_in_both_families") else { return };
    for address in LOCAL {
        let attempt = host.attempt(Probe::Http(two(serve(&host, address))), PATIENT_MS);
        assert_eq!(failure(&attempt), None, "{attempt:?}");
        let exchange = &report!(attempt, Http).exchanges[0];
        assert_eq!((exchange.version.as_deref(), exchange.body_bytes, exchange.whole), (Some("HTTP/2"), 5, true));
    }
}

#[test]
fn grpc_health_is_told_by_its_word() {
    let Some(host) = Host::new("grpc_health_is_told_by_its_word") else { return };
    let to = serve(&host, LOCAL[0]);
    let health = |service: &str| HttpProbe { grpc_health: Some(service.to_owned()), ..get(to) };
    let attempt = host.attempt(Probe::Http(health("web")), PATIENT_MS);
    assert_eq!(
        (failure(&attempt), report!(attempt, Http).grpc_health.as_deref()),
        (None, Some("SERVING")),
        "{attempt:?}"
    );
    assert_eq!(report!(attempt, Http).grpc_status, Some(0));
    let attempt = host.attempt(Probe::Http(health("other")), PATIENT_MS);
    assert_eq!(failure(&attempt), Some((Status, Answer, None)), "{attempt:?}");
    assert_eq!(report!(attempt, Http).grpc_health.as_deref(), Some("SERVICE_UNKNOWN"));
}

/// RFC 9113 §4.1.
fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// SETTINGS, and then the same frame as long as anybody reads.
fn floods(frame_bytes: Vec<u8>) -> impl Fn(TcpStream) + Send + Sync + 'static {
    let many = frame_bytes.repeat(500);
    move |mut stream| {
        // A reader that does not answer keeps neither side waiting.
        let mut other = stream.try_clone().unwrap();
        std::thread::spawn(move || while matches!(other.read(&mut [0; 4_096]), Ok(count) if count > 0) {});
        let _ = stream.write_all(&frame(4, 0, 0, &[]));
        while stream.write_all(&many).is_ok() {}
    }
}

#[test]
fn floods_of_frames_end_soon() {
    let Some(host) = Host::new("floods_of_frames_end_soon") else { return };
    let goaway = frame(7, 0, 0, &[0, 0, 0, 0, 0, 0, 0, 11]);
    let cases = [
        ("GOAWAY", goaway),
        ("RST_STREAM of our stream", frame(3, 0, 1, &[0, 0, 0, 2])),
        ("RST_STREAM of no stream", frame(3, 0, 2, &[0, 0, 0, 8])),
        ("PING", frame(6, 0, 0, &[0; 8])),
        ("SETTINGS", frame(4, 0, 0, &[])),
        ("WINDOW_UPDATE", frame(8, 0, 0, &[0x7f, 0xff, 0xff, 0xff])),
        ("an unknown type", frame(99, 0, 0, &[0; 100])),
    ];
    for (name, bytes) in cases {
        let to = host.serve(LOCAL[0], floods(bytes));
        let attempt = host.attempt(Probe::Http(two(to)), PATIENT_MS);
        let (class, ..) = failure(&attempt).unwrap();
        assert!(matches!(class, Protocol | Limit), "{name}: {attempt:?}");
        assert!(attempt.elapsed_us < u64::from(PATIENT_MS) * 1_000, "{name} ended by itself: {attempt:?}");
    }
}

const REFUSAL: &[u8] = b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n";

#[test]
fn server_of_http1_is_told_by_what_it_says() {
    let Some(host) = Host::new("server_of_http1_is_told_by_what_it_says") else { return };
    let polite = host.serve(LOCAL[0], |mut stream| {
        let _ = stream.write_all(REFUSAL);
        let _ = stream.shutdown(std::net::Shutdown::Write);
        while matches!(stream.read(&mut [0; 4_096]), Ok(count) if count > 0) {}
    });
    // Closing with the rest unread resets the connection under a client that still writes.
    let hasty = host.serve(LOCAL[0], |mut stream| {
        let _ = stream.read(&mut [0; 24]);
        let _ = stream.write_all(REFUSAL);
    });
    for to in std::iter::once(polite).chain([hasty; 30]) {
        let attempt = host.attempt(Probe::Http(two(to)), PATIENT_MS);
        assert_eq!(failure(&attempt), Some((Protocol, Answer, None)), "{attempt:?}");
        assert!(why(&attempt).contains("HTTP/1.1 400"), "{}", why(&attempt));
    }
    let silent = host.serve(LOCAL[0], hold);
    let attempt = host.attempt(Probe::Http(two(silent)), SHORT_MS);
    assert_eq!(failure(&attempt), Some((Silence, Answer, None)), "{attempt:?}");
}
