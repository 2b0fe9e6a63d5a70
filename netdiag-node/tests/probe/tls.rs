//! TLS as it is served well and badly: everything that is wrong is told at once.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;

use netdiag_common::observation::series::FailureClass::{Alert, Certificate, Closed, Protocol, Reset, Silence};
use netdiag_common::observation::series::ProbeStage::Tls;
use netdiag_common::observation::series::tls::{TlsProblem, TlsWords};
use netdiag_common::observation::series::{FailureClass, HttpProbe, Probe, SeriesAttempt, TlsProbe};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, date_time_ymd};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig, ServerConnection, StreamOwned, SupportedProtocolVersion};

use crate::host::{Host, LOCAL, drip, failure, hold, reset, why};
use crate::http::get;
use crate::way::report;

const PATIENT_MS: u32 = 10_000;
const SHORT_MS: u32 = 1_500;
pub const NAME: &str = "web.shop.example";

type Serve = Box<dyn Fn(TcpStream) + Send + Sync>;
type Issuer = CertifiedIssuer<'static, KeyPair>;

/// A root, an intermediate below it, and what they sign.
struct Authority {
    root: Issuer,
    below: Issuer,
}

struct Leaf {
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
}

impl Authority {
    fn new() -> Self {
        let root = Issuer::self_signed(authority("test root"), KeyPair::generate().unwrap()).unwrap();
        let below = Issuer::signed_by(authority("test intermediate"), KeyPair::generate().unwrap(), &root).unwrap();
        Self { root, below }
    }

    /// Signed by the intermediate, which is served with it.
    fn leaf(&self, change: impl FnOnce(&mut CertificateParams)) -> Leaf {
        let mut params = CertificateParams::new(vec![NAME.to_owned()]).unwrap();
        params.distinguished_name.push(DnType::CommonName, "leaf");
        change(&mut params);
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.below).unwrap();
        let chain = vec![certificate.der().clone(), self.below.der().clone()];
        Leaf { chain, key: PrivateKeyDer::Pkcs8(key.serialize_der().into()) }
    }
}

fn authority(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params
}

fn self_signed() -> Leaf {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(vec![NAME.to_owned()]).unwrap();
    params.distinguished_name.push(DnType::CommonName, "alone");
    let certificate = params.self_signed(&key).unwrap();
    Leaf { chain: vec![certificate.der().clone()], key: PrivateKeyDer::Pkcs8(key.serialize_der().into()) }
}

fn config(leaf: Leaf, versions: &[&'static SupportedProtocolVersion], clients: Option<&Authority>) -> ServerConfig {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ServerConfig::builder_with_provider(Arc::clone(&provider)).with_protocol_versions(versions).unwrap();
    let builder = match clients {
        None => builder.with_no_client_auth(),
        Some(authority) => {
            let mut roots = RootCertStore::empty();
            roots.add(authority.root.der().clone()).unwrap();
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build().unwrap();
            builder.with_client_cert_verifier(verifier)
        }
    };
    let mut config = builder.with_single_cert(leaf.chain, leaf.key).unwrap();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    config
}

/// Of a server whose certificate nobody knows.
pub fn unknown() -> ServerConfig {
    config(self_signed(), rustls::ALL_VERSIONS, None)
}

/// Shakes hands, answers one HTTP request, and closes.
fn serve(host: &Host, address: &str, config: ServerConfig) -> SocketAddr {
    serve_by(host, address, config, |_| "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi")
}

/// The same, with an answer to the request's head.
fn serve_by(
    host: &Host,
    address: &str,
    config: ServerConfig,
    answer: impl Fn(&str) -> &'static str + Send + Sync + 'static,
) -> SocketAddr {
    let config = Arc::new(config);
    host.serve(address, move |stream| {
        let mut stream = StreamOwned::new(ServerConnection::new(Arc::clone(&config)).unwrap(), stream);
        let mut bytes = [0; 4_096];
        if let Ok(length @ 1..) = stream.read(&mut bytes) {
            let _ = stream.write_all(answer(&String::from_utf8_lossy(&bytes[..length])).as_bytes());
        }
        stream.conn.send_close_notify();
        let _ = stream.flush();
        hold(stream.sock);
    })
}

fn words(authority: &Authority) -> TlsWords {
    TlsWords { server_name: Some(NAME.to_owned()), alpn: Vec::new(), authorities: Some(authority.root.pem()) }
}

fn probe(host: &Host, to: SocketAddr, words: TlsWords, timeout_ms: u32) -> SeriesAttempt {
    host.attempt(Probe::Tls(TlsProbe { to, source_port: None, words, each_version: false }), timeout_ms)
}

#[test]
fn good_server_is_told_with_its_chain_in_both_families() {
    let Some(host) = Host::new("good_server_is_told_with_its_chain_in_both_families") else { return };
    let authority = Authority::new();
    for address in LOCAL {
        let to = serve(&host, address, config(authority.leaf(|_| {}), rustls::ALL_VERSIONS, None));
        let words = TlsWords { alpn: vec!["h2".to_owned(), "http/1.1".to_owned()], ..words(&authority) };
        let attempt =
            host.attempt(Probe::Tls(TlsProbe { to, source_port: None, words, each_version: true }), PATIENT_MS);
        let found = report!(attempt, Tls);
        assert_eq!((failure(&attempt), found.problems.as_slice()), (None, [].as_slice()), "{attempt:?}");
        assert_eq!((found.version.as_deref(), found.alpn.as_deref()), (Some("TLSv1.3"), Some("http/1.1")));
        assert_eq!(found.chain.len(), 2);
        assert_eq!(found.chain[0].names, [NAME]);
        assert_eq!(
            (found.chain[0].issuer.as_str(), found.chain[1].issuer.as_str()),
            ("CN=test intermediate", "CN=test root")
        );
        assert_eq!(found.chain[0].sha256.len(), 64);
        let others: Vec<_> = found.others.iter().map(|other| (other.variant.as_str(), other.works)).collect();
        assert_eq!(others, [("TLSv1.2", true), ("TLSv1.3", true), ("without SNI", true)], "{found:?}");
        assert!(found.others.iter().all(|other| other.sha256.as_ref() == Some(&found.chain[0].sha256)));
    }
}

#[test]
fn all_that_is_wrong_with_a_certificate_is_told_at_once() {
    let Some(host) = Host::new("all_that_is_wrong_with_a_certificate_is_told_at_once") else { return };
    let (authority, stranger) = (Authority::new(), Authority::new());
    let check = |leaf: Leaf, words: TlsWords, expected: &[TlsProblem]| {
        let to = serve(&host, LOCAL[0], config(leaf, rustls::ALL_VERSIONS, None));
        let attempt = probe(&host, to, words, PATIENT_MS);
        assert_eq!(report!(attempt, Tls).problems, expected, "{attempt:?}");
        assert_eq!(failure(&attempt), Some((Certificate, Tls, None)), "{attempt:?}");
    };
    let expired = TlsProblem::Expired { not_after: "2020-01-02T00:00:00Z".to_owned() };
    let past = |params: &mut CertificateParams| {
        params.not_before = date_time_ymd(2020, 1, 1);
        params.not_after = date_time_ymd(2020, 1, 2);
    };
    check(authority.leaf(past), words(&authority), std::slice::from_ref(&expired));
    let future = authority.leaf(|params| {
        params.not_before = date_time_ymd(2090, 1, 1);
        params.not_after = date_time_ymd(2091, 1, 1);
    });
    check(future, words(&authority), &[TlsProblem::NotYetValid { not_before: "2090-01-01T00:00:00Z".to_owned() }]);
    let wrong_name = TlsProblem::WrongName { wanted: "other.example".to_owned(), names: vec![NAME.to_owned()] };
    let other = TlsWords { server_name: Some("other.example".to_owned()), ..words(&authority) };
    check(authority.leaf(|_| {}), other.clone(), std::slice::from_ref(&wrong_name));
    check(authority.leaf(past), other, &[expired.clone(), wrong_name]);
    check(self_signed(), words(&authority), &[TlsProblem::SelfSigned]);

    let mut alone = authority.leaf(|_| {});
    alone.chain.truncate(1);
    check(alone, words(&authority), &[TlsProblem::MissingIntermediate { issuer: "CN=test intermediate".to_owned() }]);
    // A root of the same name with another key: it was renewed.
    check(
        stranger.leaf(|_| {}),
        words(&authority),
        &[TlsProblem::UnknownAuthority { issuer: "CN=test root".to_owned() }],
    );
    let mut whole = stranger.leaf(past);
    whole.chain.push(stranger.root.der().clone());
    let unknown = TlsProblem::UnknownAuthority { issuer: "CN=test root".to_owned() };
    check(whole, words(&authority), &[expired, unknown]);
}

#[test]
fn own_certificate_among_the_authorities_is_trusted() {
    let Some(host) = Host::new("own_certificate_among_the_authorities_is_trusted") else { return };
    let leaf = self_signed();
    let pem = pem(&leaf.chain[0]);
    let to = serve(&host, LOCAL[0], config(leaf, rustls::ALL_VERSIONS, None));
    let words = TlsWords { server_name: Some(NAME.to_owned()), alpn: Vec::new(), authorities: Some(pem) };
    let attempt = probe(&host, to, words, PATIENT_MS);
    assert_eq!(failure(&attempt), None, "{attempt:?}");
}

fn pem(der: &CertificateDer<'_>) -> String {
    let text = base64(der);
    format!("-----BEGIN CERTIFICATE-----\n{text}\n-----END CERTIFICATE-----\n")
}

/// Base64 (RFC 4648).
fn base64(der: &[u8]) -> String {
    const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let letters = der.chunks(3).flat_map(|chunk| {
        let number = chunk.iter().chain([0, 0].iter()).take(3).fold(0u32, |sum, byte| (sum << 8) | u32::from(*byte));
        (0..4usize).map(move |place| {
            if place > chunk.len() { '=' } else { char::from(LETTERS[(number >> (18 - 6 * place)) as usize & 63]) }
        })
    });
    letters.collect()
}

#[test]
fn client_certificate_that_is_wanted_is_told_by_each_version() {
    let Some(host) = Host::new("client_certificate_that_is_wanted_is_told_by_each_version") else { return };
    let authority = Authority::new();
    for version in [&rustls::version::TLS12, &rustls::version::TLS13] {
        let to = serve(&host, LOCAL[0], config(authority.leaf(|_| {}), &[version], Some(&authority)));
        let attempt = probe(&host, to, words(&authority), PATIENT_MS);
        let found = report!(attempt, Tls);
        assert!(found.client_certificate_wanted, "{attempt:?}");
        assert_eq!(failure(&attempt).unwrap().0, Alert, "{attempt:?}");
        assert_eq!(found.problems[0], TlsProblem::ClientCertificateWanted, "{attempt:?}");
        assert!(matches!(found.problems[1], TlsProblem::Alert { number: 116 | 40, .. }), "{attempt:?}");
    }
}

#[test]
fn handshakes_that_break_have_their_class() {
    let Some(host) = Host::new("handshakes_that_break_have_their_class") else { return };
    let authority = Authority::new();
    let after_hello = |then: fn(TcpStream)| -> Serve {
        Box::new(move |mut stream| {
            let _ = stream.read(&mut [0; 4_096]);
            then(stream);
        })
    };
    let alert = |number: u8| -> Serve {
        Box::new(move |mut stream| {
            let _ = stream.read(&mut [0; 4_096]);
            let _ = stream.write_all(&[21, 3, 3, 0, 2, 2, number]);
            hold(stream);
        })
    };
    let plain = |spoke: Option<&str>| vec![TlsProblem::PlainPort { spoke: spoke.map(ToOwned::to_owned) }];
    let alerted = |number, words: &str| TlsProblem::Alert { number, words: words.to_owned() };
    let cases: Vec<(&str, Serve, FailureClass, u32, Vec<TlsProblem>)> = vec![
        ("closes", after_hello(drop), Closed, PATIENT_MS, vec![]),
        ("resets", after_hello(reset), Reset, PATIENT_MS, vec![]),
        ("says nothing", Box::new(hold), Silence, SHORT_MS, vec![]),
        (
            "drips a record",
            after_hello(|stream| drip(stream, [22, 3, 3, 64, 0].into_iter().chain(std::iter::repeat(2)))),
            Silence,
            SHORT_MS,
            vec![],
        ),
        (
            "speaks HTTP",
            after_hello(|mut stream| {
                let _ = stream.write_all(b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n");
            }),
            Protocol,
            PATIENT_MS,
            plain(Some("HTTP/1.1 400 Bad Request")),
        ),
        (
            "greets as mail does",
            Box::new(|mut stream| {
                let _ = stream.write_all(b"220 mail.example ESMTP\r\n");
                hold(stream);
            }),
            Protocol,
            PATIENT_MS,
            plain(Some("220 mail.example ESMTP")),
        ),
        (
            "greets in bytes",
            Box::new(|mut stream| {
                let _ = stream.write_all(&[0, 1, 2, 3, 4, 5, 6]);
                hold(stream);
            }),
            Protocol,
            PATIENT_MS,
            plain(None),
        ),
        (
            "knows older versions only",
            alert(70),
            Alert,
            PATIENT_MS,
            vec![TlsProblem::NothingInCommon, alerted(70, "protocol version")],
        ),
        ("does not know the name", alert(112), Alert, PATIENT_MS, vec![alerted(112, "unrecognized name")]),
    ];
    for (name, serve, class, timeout_ms, problems) in cases {
        let to = host.serve(LOCAL[0], serve);
        let attempt = probe(&host, to, words(&authority), timeout_ms);
        assert_eq!(
            failure(&attempt).map(|(class, stage, _)| (class, stage)),
            Some((class, Tls)),
            "a server that {name}: {attempt:?}"
        );
        assert_eq!(report!(attempt, Tls).problems, problems, "a server that {name}: {attempt:?}");
    }
}

#[test]
fn hostile_certificate_is_a_problem_and_no_crash() {
    let Some(host) = Host::new("hostile_certificate_is_a_problem_and_no_crash") else { return };
    let authority = Authority::new();
    let mut leaf = authority.leaf(|params| {
        let names = (0..1_000).map(|n| rcgen::SanType::DnsName(format!("n{n}.example").try_into().unwrap()));
        params.subject_alt_names.extend(names);
    });
    for _ in 0..20 {
        leaf.chain.push(CertificateDer::from(vec![0x30, 0x84, 0xff, 0xff, 0xff, 0xff, 0]));
    }
    let to = serve(&host, LOCAL[0], config(leaf, rustls::ALL_VERSIONS, None));
    let attempt = probe(&host, to, words(&authority), PATIENT_MS);
    let found = report!(attempt, Tls);
    assert_eq!((found.chain.len(), found.chain[0].names.len()), (10, 100), "bounded");
    assert!(found.problems.iter().all(|problem| matches!(problem, TlsProblem::Other { .. })), "{:?}", found.problems);
    assert_eq!(failure(&attempt).unwrap().0, Certificate);
}

#[test]
fn https_is_told_with_its_certificate() {
    let Some(host) = Host::new("https_is_told_with_its_certificate") else { return };
    let authority = Authority::new();
    let to = serve(&host, LOCAL[0], config(authority.leaf(|_| {}), rustls::ALL_VERSIONS, None));
    let https = |authorities: &Authority| HttpProbe {
        url: format!("https://{NAME}:{}/", to.port()),
        to: Some(to),
        tls: TlsWords { server_name: None, ..words(authorities) },
        headers: vec![("Authorization".to_owned(), "Bearer x".to_owned())],
        ..get(to)
    };
    let attempt = host.attempt(Probe::Http(https(&authority)), PATIENT_MS);
    assert_eq!(failure(&attempt), None, "{attempt:?}");
    let found = report!(attempt, Http);
    assert_eq!(found.tls.as_ref().unwrap().chain[0].names, [NAME]);
    assert!(found.exchanges[0].phases.tls_us.is_some());

    let attempt = host.attempt(Probe::Http(https(&Authority::new())), PATIENT_MS);
    assert_eq!(failure(&attempt), Some((Certificate, Tls, None)), "{attempt:?}");
    assert_eq!(report!(attempt, Http).exchanges[0].status, Some(200), "the status behind it is known");
    assert!(why(&attempt).contains("not known here"), "{}", why(&attempt));
}

#[test]
fn any_certificate_will_do_where_the_asker_says_so() {
    let Some(host) = Host::new("any_certificate_will_do_where_the_asker_says_so") else { return };
    let to = serve_by(&host, LOCAL[0], unknown(), |head| {
        let is_known = head.contains("authorization: Bearer x\r\n");
        match (is_known, head.starts_with("GET /in ")) {
            (false, _) => "HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\n\r\n",
            (true, false) => "HTTP/1.1 302 Found\r\nLocation: /in\r\nContent-Length: 0\r\n\r\n",
            (true, true) => "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
        }
    });
    let asked = |any_certificate, expect| {
        let probe = HttpProbe {
            url: format!("https://{NAME}:{}/", to.port()),
            to: Some(to),
            headers: vec![("Authorization".to_owned(), "Bearer x".to_owned())],
            redirects: 1,
            any_certificate,
            expect: vec![expect],
            ..get(to)
        };
        let attempt = host.attempt(Probe::Http(probe), PATIENT_MS);
        let statuses: Vec<_> = report!(attempt, Http).exchanges.iter().filter_map(|exchange| exchange.status).collect();
        (statuses, failure(&attempt).map(|(class, ..)| class))
    };
    assert_eq!(asked(false, 200), (vec![401], Some(Certificate)), "who is not trusted gets no fields");
    assert_eq!(asked(true, 200), (vec![302, 200], Some(Certificate)), "what is wrong is told all the same");
    assert_eq!(asked(true, 204), (vec![302, 200], Some(FailureClass::Status)), "another failure comes first");
}
