//! The agent's certificate and whom it lets in: clients whose certificate is signed by our CA and names [`SERVER_TLS_NAME`].
//!
//! Files change under a running agent when the Secret is renewed. They are looked at every few seconds; a broken set
//! leaves the old one in use.

use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use jiff::Timestamp;
use netdiag_common::wire::SERVER_TLS_NAME;
use rustls::client::danger::HandshakeSignatureValid;
use rustls::client::verify_server_name;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{ParsedCertificate, WebPkiClientVerifier};
use rustls::{DigitallySignedStruct, DistinguishedName, RootCertStore, ServerConfig, SignatureScheme};

use crate::host::file;

/// Kubelets need up to a minute to renew a mounted Secret; a few seconds more do not matter.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// A chain of a few certificates.
const MAX_FILE_BYTES: u64 = 256 * 1024;

/// Why the certificates cannot be used. At start the agent stops; later it keeps what it has.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    #[error(transparent)]
    Read(#[from] crate::host::ReadError),
    #[error("{path} holds no usable {what}: {why}")]
    Content { path: PathBuf, what: &'static str, why: String },
    #[error("{folder}: certificate and key do not make a server: {why}")]
    Config { folder: PathBuf, why: String },
}

/// The current certificates of one folder: `ca.crt`, `node.crt`, `node.key`.
pub struct Tls {
    folder: PathBuf,
    current: RwLock<Current>,
}

#[derive(Clone)]
struct Current {
    files: Files,
    config: Arc<ServerConfig>,
    expires: Option<Timestamp>,
}

/// The text of the three files: small, and the only sign of change that works for links, mounts and copies alike.
#[derive(Clone, PartialEq)]
struct Files {
    ca: String,
    certificate: String,
    key: String,
}

impl Tls {
    pub fn load(folder: &Path) -> Result<Self, TlsError> {
        let current = build(folder, read(folder)?)?;
        Ok(Self { folder: folder.to_owned(), current: RwLock::new(current) })
    }

    pub fn config(&self) -> Arc<ServerConfig> {
        Arc::clone(&self.now().config)
    }

    /// End of the certificate's validity, RFC 3339.
    pub fn expires(&self) -> Option<String> {
        self.now().expires.map(|at| at.to_string())
    }

    /// Takes new files into use, for ever.
    pub async fn follow(&self) {
        let mut complained = String::new();
        loop {
            tokio::time::sleep(LOOK_EVERY).await;
            let changed = match read(&self.folder) {
                Ok(files) if files == self.now().files => continue,
                Ok(files) => build(&self.folder, files),
                Err(error) => Err(error),
            };
            match changed {
                Ok(current) => {
                    tracing::info!(expires = ?current.expires, "certificates renewed");
                    *self.current.write().unwrap_or_else(PoisonError::into_inner) = current;
                    complained.clear();
                }
                Err(error) => {
                    let text = error.to_string();
                    if text != complained {
                        tracing::warn!(%error, "new certificates not used, the old ones stay");
                        complained = text;
                    }
                }
            }
        }
    }

    fn now(&self) -> Current {
        self.current.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

fn read(folder: &Path) -> Result<Files, TlsError> {
    let text = |name| file::text(&folder.join(name), MAX_FILE_BYTES);
    Ok(Files { ca: text("ca.crt")?, certificate: text("node.crt")?, key: text("node.key")? })
}

fn build(folder: &Path, files: Files) -> Result<Current, TlsError> {
    let unusable = |name: &str, what, why: String| TlsError::Content { path: folder.join(name), what, why };
    let certificates = |name: &str, text: &str| {
        let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(text.as_bytes()).collect();
        match found {
            Ok(list) if list.is_empty() => Err(unusable(name, "certificate", "no PEM block CERTIFICATE".to_owned())),
            Ok(list) => Ok(list),
            Err(error) => Err(unusable(name, "certificate", error.to_string())),
        }
    };
    let mut roots = RootCertStore::empty();
    for authority in certificates("ca.crt", &files.ca)? {
        roots.add(authority).map_err(|error| unusable("ca.crt", "certificate", error.to_string()))?;
    }
    let chain = certificates("node.crt", &files.certificate)?;
    let key = PrivateKeyDer::from_pem_slice(files.key.as_bytes())
        .map_err(|error| unusable("node.key", "private key", error.to_string()))?;
    let expires = expiry(&chain[0]);

    let failed = |why: String| TlsError::Config { folder: folder.to_owned(), why };
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let chain_verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider))
        .build()
        .map_err(|error| failed(error.to_string()))?;
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| failed(error.to_string()))?
        .with_client_cert_verifier(Arc::new(OnlyServer { chain: chain_verifier }))
        .with_single_cert(chain, key)
        .map_err(|error| failed(error.to_string()))?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(Current { files, config: Arc::new(config), expires })
}

fn expiry(certificate: &CertificateDer<'_>) -> Option<Timestamp> {
    let (_, parsed) = x509_parser::parse_x509_certificate(certificate).ok()?;
    Timestamp::from_second(parsed.validity().not_after.timestamp()).ok()
}

/// The usual verification of a client, and its name: our CA also signs the agents, which must not ask each other.
#[derive(Debug)]
struct OnlyServer {
    chain: Arc<dyn ClientCertVerifier>,
}

impl ClientCertVerifier for OnlyServer {
    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        let verified = self.chain.verify_client_cert(end_entity, intermediates, now)?;
        let name = ServerName::try_from(SERVER_TLS_NAME).expect("a constant, valid DNS name");
        verify_server_name(&ParsedCertificate::try_from(end_entity)?, &name)?;
        Ok(verified)
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.chain.root_hint_subjects()
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.chain.verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.chain.verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.chain.supported_verify_schemes()
    }
}
