//! The server's side of mTLS with the agents: our certificate, their authority, and one name for all of them.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use netdiag_common::wire::AGENT_TLS_NAME;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};

use crate::ask::SourceError;

/// The files of a TLS directory on the server's side, as `netdiag certs` writes them.
pub const CA_FILE: &str = "ca.crt";
pub const CERTIFICATE_FILE: &str = "server.crt";
pub const KEY_FILE: &str = "server.key";

/// A client configuration from a directory. An error names the file and how to make it.
pub fn client_config(directory: &Path) -> Result<ClientConfig, SourceError> {
    let mut roots = RootCertStore::empty();
    let authority = directory.join(CA_FILE);
    for certificate in certificates(&authority)? {
        roots.add(certificate).map_err(|error| unusable(&authority, &error))?;
    }
    let chain = certificates(&directory.join(CERTIFICATE_FILE))?;
    let key_file = directory.join(KEY_FILE);
    let key = PrivateKeyDer::from_pem_slice(&read(&key_file)?).map_err(|error| unusable(&key_file, &error))?;
    let verifier =
        WebPkiServerVerifier::builder(Arc::new(roots)).build().map_err(|error| unusable(&authority, &error))?;
    let mut config = ClientConfig::builder()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(OneName { verifier }))
        .with_client_auth_cert(chain, key)
        .map_err(|error| unusable(&key_file, &error))?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(config)
}

/// The certificates of one file.
pub fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, SourceError> {
    let text = read(path)?;
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&text).collect();
    let found = found.map_err(|error| unusable(path, &error))?;
    if found.is_empty() { Err(unusable(path, &"it holds no certificate")) } else { Ok(found) }
}

#[expect(clippy::disallowed_methods, reason = "certificates are files; this is the module that opens them")]
fn read(path: &Path) -> Result<Vec<u8>, SourceError> {
    std::fs::read(path).map_err(|error| SourceError {
        message: format!("cannot read {}: {error}; `netdiag certs --out DIR` writes such a directory", path.display()),
    })
}

fn unusable(path: &Path, why: &impl ToString) -> SourceError {
    let path: PathBuf = path.to_owned();
    let why = why.to_string();
    SourceError { message: format!("cannot use {}: {why}; `netdiag certs` makes a new set", path.display()) }
}

/// Agents are dialled by the addresses of their nodes, which change, and all carry one certificate with one name. So the
/// usual verification runs against that name instead of the address; nothing else of it is relaxed.
#[derive(Debug)]
struct OneName {
    verifier: Arc<WebPkiServerVerifier>,
}

impl ServerCertVerifier for OneName {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _dialled: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let name = ServerName::try_from(AGENT_TLS_NAME).expect("the constant is a DNS name");
        self.verifier.verify_server_cert(end_entity, intermediates, &name, ocsp_response, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.verifier.verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.verifier.verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.verifier.supported_verify_schemes()
    }
}
