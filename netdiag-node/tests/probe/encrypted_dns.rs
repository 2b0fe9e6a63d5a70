//! DNS over TLS and HTTPS (RFC 7858, RFC 8484), from servers that answer well and from those that do not.

use std::io::{Read as _, Write as _};
use std::net::SocketAddr;
use std::sync::Arc;

use netdiag_common::observation::series::FailureClass::Certificate;
use netdiag_common::observation::series::ProbeStage::Tls;
use netdiag_common::observation::series::dns::{DnsAsking, DnsTransport, DnsType};
use netdiag_common::observation::series::{DnsProbe, Probe};
use rustls::{ServerConnection, StreamOwned};

use crate::dns::good;
use crate::host::{Host, LOCAL, failure, hold};
use crate::tls::{NAME, unknown};
use crate::way::report;

const PATIENT_MS: u32 = 10_000;

/// Answers one query over TLS: behind its length, or as the body of a POST where `is_https`.
fn name_server(host: &Host, is_https: bool) -> SocketAddr {
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
        let bytes = good(&query);
        let before = if is_https {
            format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", bytes.len()).into_bytes()
        } else {
            u16::try_from(bytes.len()).unwrap().to_be_bytes().to_vec()
        };
        let _ = stream.write_all(&[before, bytes].concat());
        hold(stream.sock);
    })
}

#[test]
fn names_are_asked_over_tls_and_https() {
    let Some(host) = Host::new("names_are_asked_over_tls_and_https") else { return };
    let ask = |server, transport| {
        let asking = DnsAsking::Server { server, transport };
        let records = vec![DnsType::A];
        host.attempt(Probe::Dns(DnsProbe { name: NAME.to_owned(), records, asking, edns_bytes: None }), PATIENT_MS)
    };
    let transport = |name: Option<&str>| DnsTransport::Tls { server_name: name.map(ToOwned::to_owned) };
    let attempt = ask(name_server(&host, false), transport(None));
    assert_eq!((failure(&attempt), report!(attempt, Dns).addresses.len()), (None, 1), "{attempt:?}");
    let https = DnsTransport::Https { host: NAME.to_owned(), path: "/dns-query".to_owned() };
    for (is_https, transport, word) in [(false, transport(Some(NAME)), "tls"), (true, https, "https")] {
        let attempt = ask(name_server(&host, is_https), transport);
        let found = report!(attempt, Dns);
        assert_eq!(failure(&attempt), Some((Certificate, Tls, None)), "judged where a name is given: {attempt:?}");
        assert_eq!((found.addresses.len(), found.queries[0].transport.as_str()), (1, word), "{attempt:?}");
    }
}
