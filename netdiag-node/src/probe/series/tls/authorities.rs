//! Whom to trust: the asker's authorities, else those of the agent's own system.

use std::path::Path;
use std::sync::{Arc, LazyLock};

use rustls::RootCertStore;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;

use crate::host::file;

/// Where distributions keep their authorities (the list of Go's crypto/x509/root_linux.go); an image may have none of them.
const FILES: [&str; 5] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
    "/etc/ssl/cert.pem",
];
/// Debian's file of 140 authorities has 220 KB.
const MAX_FILE_BYTES: u64 = 4 * 1024 * 1024;
/// A cluster's bundle has a few; more would only slow each judgement down.
const MAX_ASKED: usize = 500;
/// PEM in one request.
const MAX_ASKED_BYTES: usize = 1024 * 1024;

static SYSTEM: LazyLock<Arc<Authorities>> = LazyLock::new(|| Arc::new(Authorities::of_system()));

#[derive(Debug)]
pub(super) struct Authorities {
    pub(super) roots: RootCertStore,
    /// As they were given: a server's own certificate may be among them.
    pub(super) certificates: Vec<CertificateDer<'static>>,
    /// Named in the request.
    pub(super) asked: bool,
}

impl Authorities {
    /// Of PEM; none: of the agent's system, read once.
    pub(super) fn new(pem: Option<&str>) -> Result<Arc<Self>, String> {
        let Some(pem) = pem else { return Ok(Arc::clone(&SYSTEM)) };
        if pem.len() > MAX_ASKED_BYTES {
            return Err(format!("authorities of {} bytes are too many; at most {MAX_ASKED_BYTES}", pem.len()));
        }
        let certificates: Vec<_> = CertificateDer::pem_slice_iter(pem.as_bytes())
            .take(MAX_ASKED)
            .collect::<Result<_, _>>()
            .map_err(|error| format!("the authorities are no PEM: {error}"))?;
        let mut roots = RootCertStore::empty();
        let (added, _) = roots.add_parsable_certificates(certificates.iter().cloned());
        if added == 0 {
            return Err("the authorities hold no usable certificate; give PEM blocks CERTIFICATE".to_owned());
        }
        Ok(Arc::new(Self { roots, certificates, asked: true }))
    }

    fn of_system() -> Self {
        let text = FILES.iter().find_map(|path| file::text(Path::new(path), MAX_FILE_BYTES).ok()).unwrap_or_default();
        let certificates = CertificateDer::pem_slice_iter(text.as_bytes()).filter_map(Result::ok);
        let mut roots = RootCertStore::empty();
        roots.add_parsable_certificates(certificates);
        Self { roots, certificates: Vec::new(), asked: false }
    }

    /// Whether a root has this name, given as DER.
    pub(super) fn has_name(&self, name: &[u8]) -> bool {
        // A trust anchor's subject is the content of the name's SEQUENCE, without its header.
        self.roots
            .roots
            .iter()
            .any(|root| name.ends_with(root.subject.as_ref()) && name.len() <= root.subject.len() + 6)
    }
}
