//! The certificate in a Secret of type kubernetes.io/tls. Only `tls.crt` is decoded: keys are dropped with the answer's text.

use data_encoding::BASE64;
use netdiag_common::{Gap, GapReason};
use serde::Deserialize;
use x509_parser::extensions::{GeneralName, ParsedExtension};

use super::Access;
use super::error::RequestError;
use super::list::get;

/// Names of one certificate that are told, as of a served one.
const MAX_NAMES: usize = 100;

/// The certificate of a Secret. Its key was never decoded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kept {
    /// Of the DER, hex.
    pub sha256: String,
    pub serial: String,
    /// RFC 3339.
    pub not_after: String,
    pub names: Vec<String>,
}

#[derive(Deserialize)]
struct Secret {
    #[serde(default)]
    data: Option<Certificates>,
}

/// Everything else of the data is skipped while it is read.
#[derive(Deserialize)]
struct Certificates {
    #[serde(rename = "tls.crt")]
    chain: Option<String>,
}

/// The first certificate of a Secret; none when there is no such Secret.
pub async fn certificate(access: &Access, namespace: &str, name: &str) -> Result<Option<Kept>, Gap> {
    let gap = |reason, why: String, remedy: String| Gap {
        what: format!("the certificate of Secret {namespace}/{name}"),
        node: None,
        reason,
        why,
        remedy,
    };
    let strange = |why: &str| {
        gap(GapReason::Malformed, why.to_owned(), format!("look at `kubectl -n {namespace} describe secret {name}`"))
    };
    if ![namespace, name].into_iter().all(is_name) {
        return Err(strange("this is no name of an object"));
    }
    let secret: Secret = match get(access, &format!("/api/v1/namespaces/{namespace}/secrets/{name}")).await {
        Ok(secret) => secret,
        Err(RequestError::NotServed(_)) => return Ok(None),
        Err(RequestError::Forbidden(why)) => {
            let remedy = "allow it where that is wanted: charts/netdiag/optional/certificates.yaml gives netdiag's server the \
                          right to get Secrets, which is off by default";
            return Err(gap(GapReason::Rights, why, remedy.to_owned()));
        }
        Err(error) => {
            let remedy = format!("see whether `kubectl -n {namespace} get secret {name}` works, then ask again");
            return Err(gap(GapReason::Failed, format!("cannot be read: {error}"), remedy));
        }
    };
    let Some(chain) = secret.data.and_then(|data| data.chain) else {
        return Err(strange("it has no tls.crt"));
    };
    let pem = BASE64.decode(chain.as_bytes()).map_err(|_| strange("its tls.crt is no base64"))?;
    kept(&pem).map(Some).map_err(|why| strange(&why))
}

/// Of the first certificate in a PEM: what a server shows for itself.
fn kept(pem: &[u8]) -> Result<Kept, String> {
    let (_, block) =
        x509_parser::pem::parse_x509_pem(pem).map_err(|error| format!("its tls.crt is no PEM: {error}"))?;
    if block.label != "CERTIFICATE" {
        return Err("its tls.crt begins with something else than a certificate".to_owned());
    }
    let parsed = block.parse_x509().map_err(|error| format!("its certificate cannot be read: {error}"))?;
    let alternatives = parsed.extensions().iter().filter_map(|extension| match extension.parsed_extension() {
        ParsedExtension::SubjectAlternativeName(names) => Some(&names.general_names),
        _ => None,
    });
    let names = alternatives.flatten().filter_map(|name| match name {
        GeneralName::DNSName(name) => Some((*name).to_owned()),
        _ => None,
    });
    let not_after = jiff::Timestamp::from_second(parsed.validity().not_after.timestamp());
    Ok(Kept {
        sha256: data_encoding::HEXLOWER.encode(ring::digest::digest(&ring::digest::SHA256, &block.contents).as_ref()),
        serial: parsed.raw_serial_as_string(),
        not_after: not_after.map(|at| at.to_string()).unwrap_or_default(),
        names: names.take(MAX_NAMES).collect(),
    })
}

/// RFC 1123's alphabet: nothing that would lead a URL elsewhere.
fn is_name(text: &str) -> bool {
    let is_plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-.".contains(&byte);
    !text.is_empty() && text.len() <= 253 && text.bytes().all(is_plain) && !text.contains("..") && text != "."
}

#[cfg(test)]
mod tests {
    use super::*;

    fn made() -> rcgen::CertifiedKey<rcgen::KeyPair> {
        rcgen::generate_simple_self_signed(["shop.example".to_owned()]).expect("a certificate")
    }

    #[test]
    fn the_first_certificate_is_kept_and_no_key() {
        let made = made();
        let kept = kept(made.cert.pem().as_bytes()).expect("a certificate");
        assert_eq!(kept.names, ["shop.example"]);
        assert_eq!((kept.sha256.len(), kept.not_after.is_empty()), (64, false));
        let key = super::kept(made.signing_key.serialize_pem().as_bytes());
        assert!(key.is_err_and(|why| why.contains("something else than a certificate")));
        assert!(super::kept(b"-----BEGIN CERTIFICATE-----").is_err());
    }

    #[test]
    fn what_is_no_name_is_asked_of_nobody() {
        assert!(is_name("web-tls") && is_name("web.tls"));
        for text in ["", ".", "../secrets", "a/b", "a?b", "..", "A"] {
            assert!(!is_name(text), "{text:?}");
        }
    }
}
