//! What is wrong with a served chain: everything at once, each apart from the others.

use netdiag_common::observation::series::tls::{Certificate, TlsProblem};
use rustls::client::{verify_server_cert_signed_by_trust_anchor, verify_server_name};
use rustls::crypto::WebPkiSupportedAlgorithms;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{CertificateError, Error};
use std::time::Duration;
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::{ParsedExtension, X509Extension};

use super::authorities::Authorities;
use super::certificate::{cut, describe, time, unreadable};

/// Certificates of a chain that are looked at. OpenSSL's default depth is 100, public chains have 4.
const MAX_CHAIN: usize = 10;

/// Against what a chain is held.
pub(super) struct Standard<'a> {
    /// None: the name is not checked.
    pub(super) name: Option<&'a ServerName<'static>>,
    /// The same, as it was asked.
    pub(super) wanted: &'a str,
    pub(super) authorities: &'a Authorities,
    pub(super) algorithms: WebPkiSupportedAlgorithms,
    pub(super) now: UnixTime,
}

/// The chain in words, and what is wrong with it, worst first.
pub(super) fn judge(chain: &[CertificateDer<'static>], standard: &Standard<'_>) -> (Vec<Certificate>, Vec<TlsProblem>) {
    let mut problems = Vec::new();
    let looked_at = &chain[..chain.len().min(MAX_CHAIN)];
    if chain.len() > MAX_CHAIN {
        let why = format!("{} certificates were served, only the first {MAX_CHAIN} were looked at", chain.len());
        problems.push(TlsProblem::Other { why });
    }
    let mut parsed = Vec::new();
    let mut told = Vec::new();
    for (number, der) in looked_at.iter().enumerate() {
        match x509_parser::parse_x509_certificate(der) {
            Ok((_, one)) => {
                told.push(describe(der, &one));
                parsed.push(one);
            }
            Err(error) => {
                told.push(unreadable(der));
                let why = cut(&format!("certificate {} of the chain cannot be read: {error}", number + 1));
                problems.push(TlsProblem::Other { why });
            }
        }
    }
    match (looked_at.first(), parsed.first()) {
        (Some(der), Some(leaf)) if leaf.as_raw() == der.as_ref() => {
            problems.extend(validity(leaf, standard.now));
            problems.extend(name(der, &told[0], standard));
            problems.extend(trust(looked_at, &parsed, standard));
        }
        (None, _) => problems.push(TlsProblem::Other { why: "no certificate was served".to_owned() }),
        // Its own problem is there already: without the server's own certificate nothing else can be said.
        _ => {}
    }
    problems.sort();
    problems.dedup();
    (told, problems)
}

fn validity(one: &X509Certificate<'_>, now: UnixTime) -> Option<TlsProblem> {
    let now = i64::try_from(now.as_secs()).unwrap_or(i64::MAX);
    let validity = one.validity();
    if validity.not_after.timestamp() < now {
        return Some(TlsProblem::Expired { not_after: time(validity.not_after) });
    }
    if validity.not_before.timestamp() > now {
        return Some(TlsProblem::NotYetValid { not_before: time(validity.not_before) });
    }
    None
}

fn name(leaf: &CertificateDer<'_>, told: &Certificate, standard: &Standard<'_>) -> Option<TlsProblem> {
    let wanted = standard.name?;
    let verified = ParsedCertificate::try_from(leaf).and_then(|parsed| verify_server_name(&parsed, wanted));
    match verified {
        Ok(()) => None,
        Err(Error::InvalidCertificate(
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
        )) => Some(TlsProblem::WrongName { wanted: standard.wanted.to_owned(), names: told.names.clone() }),
        Err(error) => Some(other(&error)),
    }
}

/// Whether a way leads from the server's certificate to an authority, apart from the server's own dates.
fn trust(
    chain: &[CertificateDer<'static>],
    parsed: &[X509Certificate<'_>],
    standard: &Standard<'_>,
) -> Option<TlsProblem> {
    let (first, leaf) = (chain.first()?, parsed.first()?);
    // A server's own certificate may be what the asker trusts.
    if standard.authorities.certificates.contains(first) {
        return None;
    }
    if is_signed_by_itself(leaf) {
        return Some(TlsProblem::SelfSigned);
    }
    match way(chain, standard, standard.now) {
        Ok(()) => return None,
        Err(Error::InvalidCertificate(error)) if is_about_time(&error) => {}
        Err(error) => return Some(without_way(&error, parsed, standard)),
    }
    // Either the server's own dates, which are told already, or another's.
    match way(chain, standard, within(leaf, standard.now)) {
        Ok(()) if validity(leaf, standard.now).is_some() => None,
        Err(Error::InvalidCertificate(error)) if !is_about_time(&error) => {
            Some(without_way(&Error::InvalidCertificate(error), parsed, standard))
        }
        _ => {
            let outdated = parsed[1..].iter().find_map(|one| validity(one, standard.now));
            let why = || "an authority's certificate is not valid now".to_owned();
            Some(outdated.unwrap_or_else(|| TlsProblem::Other { why: why() }))
        }
    }
}

fn way(chain: &[CertificateDer<'static>], standard: &Standard<'_>, now: UnixTime) -> Result<(), Error> {
    let leaf = ParsedCertificate::try_from(&chain[0])?;
    let algorithms = standard.algorithms.all;
    verify_server_cert_signed_by_trust_anchor(&leaf, &standard.authorities.roots, &chain[1..], now, algorithms)
}

/// The moment nearest to now at which the certificate is valid.
fn within(one: &X509Certificate<'_>, now: UnixTime) -> UnixTime {
    let seconds = |at: i64| u64::try_from(at).unwrap_or_default();
    let (from, to) = (seconds(one.validity().not_before.timestamp()), seconds(one.validity().not_after.timestamp()));
    // Not by `clamp`, which panics for a certificate that ends before it begins.
    UnixTime::since_unix_epoch(Duration::from_secs(now.as_secs().max(from).min(to)))
}

fn is_about_time(error: &CertificateError) -> bool {
    matches!(
        error,
        CertificateError::Expired
            | CertificateError::ExpiredContext { .. }
            | CertificateError::NotValidYet
            | CertificateError::NotValidYetContext { .. }
    )
}

/// Names the place where the way ends.
fn without_way(error: &Error, parsed: &[X509Certificate<'_>], standard: &Standard<'_>) -> TlsProblem {
    if !matches!(error, Error::InvalidCertificate(CertificateError::UnknownIssuer | CertificateError::BadSignature)) {
        return other(error);
    }
    let mut top = &parsed[0];
    // Each step leads to another certificate of the chain, so there are fewer than it has.
    for _ in 1..parsed.len() {
        let issuer = parsed[1..].iter().find(|one| one.subject().as_raw() == top.issuer().as_raw());
        match issuer {
            Some(issuer) if !std::ptr::eq(issuer, top) => top = issuer,
            _ => break,
        }
    }
    let issuer = cut(&top.issuer().to_string());
    let ends_in_root = top.subject().as_raw() == top.issuer().as_raw();
    // A root of the same name is there, and has not signed this one: its key was changed.
    if ends_in_root || standard.authorities.has_name(top.issuer().as_raw()) {
        return TlsProblem::UnknownAuthority { issuer };
    }
    // The issuer is neither served nor known. Whether it is a root that servers need not send cannot be seen from here, but
    // certificates that say where their issuer's is to be had come from an intermediate, and an asker who names authorities
    // means that the way ends there.
    if standard.authorities.asked || says_where_issuer_is(top) {
        return TlsProblem::MissingIntermediate { issuer };
    }
    TlsProblem::UnknownAuthority { issuer }
}

fn is_signed_by_itself(one: &X509Certificate<'_>) -> bool {
    one.subject().as_raw() == one.issuer().as_raw() && one.verify_signature(None).is_ok()
}

/// Authority Information Access (RFC 5280 §4.2.2.1).
fn says_where_issuer_is(one: &X509Certificate<'_>) -> bool {
    let parsed = one.extensions().iter().map(X509Extension::parsed_extension);
    parsed.into_iter().any(|extension| match extension {
        ParsedExtension::AuthorityInfoAccess(access) => {
            let mut methods = access.accessdescs.iter().map(|one| &one.access_method);
            methods.any(|method| *method == x509_parser::oid_registry::OID_PKIX_ACCESS_DESCRIPTOR_CA_ISSUERS)
        }
        _ => false,
    })
}

fn other(error: &Error) -> TlsProblem {
    TlsProblem::Other { why: cut(&error.to_string()) }
}
