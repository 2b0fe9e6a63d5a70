//! A stapled OCSP answer is told as being there, and its absence too.

use std::io::Read as _;
use std::sync::Arc;

use netdiag_common::observation::series::tls::TlsWords;
use netdiag_common::observation::series::{Probe, TlsProbe};
use rcgen::{CertificateParams, KeyPair};
use rustls::pki_types::PrivateKeyDer;
use rustls::{ServerConfig, ServerConnection, StreamOwned};

use crate::host::{Host, LOCAL, hold};
use crate::way::report;

const NAME: &str = "web.shop.example";
/// Clients are handed it unread (RFC 8446 §4.4.2.1).
const ANSWER: &[u8] = &[0x30, 3, 10, 1, 6];

fn config(ocsp: &[u8]) -> ServerConfig {
    let key = KeyPair::generate().unwrap();
    let certificate = CertificateParams::new(vec![NAME.to_owned()]).unwrap().self_signed(&key).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ServerConfig::builder_with_provider(provider).with_protocol_versions(rustls::ALL_VERSIONS).unwrap();
    let key = PrivateKeyDer::Pkcs8(key.serialize_der().into());
    let chain = vec![certificate.der().clone()];
    builder.with_no_client_auth().with_single_cert_with_ocsp(chain, key, ocsp.to_vec()).unwrap()
}

#[test]
fn stapled_answer_is_told() {
    let Some(host) = Host::new("stapled_answer_is_told") else { return };
    for (ocsp, is_stapled) in [(ANSWER, true), (&ANSWER[..0], false)] {
        let config = Arc::new(config(ocsp));
        let to = host.serve(LOCAL[0], move |stream| {
            let mut stream = StreamOwned::new(ServerConnection::new(Arc::clone(&config)).unwrap(), stream);
            let _ = stream.read(&mut [0; 64]);
            hold(stream.sock);
        });
        let words = TlsWords { server_name: Some(NAME.to_owned()), alpn: Vec::new(), authorities: None };
        let attempt = host.attempt(Probe::Tls(TlsProbe { to, source_port: None, words, each_version: false }), 10_000);
        assert_eq!(report!(attempt, Tls).ocsp_stapled, is_stapled, "{attempt:?}");
    }
}
