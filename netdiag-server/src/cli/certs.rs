//! `netdiag certs`: one authority and two leaves, into a directory or into the cluster's Secret.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use ::kube::Api;
use ::kube::api::{ObjectMeta, Patch, PatchParams, PostParams};
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::{Namespace, Secret};
use netdiag_common::wire::{AGENT_TLS_NAME, SERVER_TLS_NAME};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
};

use super::{EXIT_HEALTHY, Failure};
use crate::kube::forward::NAMESPACE;
use crate::kube::{self as cluster, AccessOptions, RequestError};

const SECRET: &str = "netdiag-tls";

/// Makes the certificates by which agents and server know each other
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Write files here instead of the Secret netdiag-system/netdiag-tls
    #[arg(long, value_name = "DIR", conflicts_with_all = ["kubeconfig", "context"])]
    out: Option<PathBuf>,
    /// Days that the certificates are valid
    #[arg(long, default_value_t = 365, value_parser = clap::value_parser!(u32).range(1..=3650))]
    days: u32,
    /// The kubeconfig; else KUBECONFIG, else ~/.kube/config
    #[arg(long, value_name = "FILE")]
    kubeconfig: Option<PathBuf>,
    /// The kubeconfig's context; else its current one
    #[arg(long, value_name = "NAME")]
    context: Option<String>,
}

pub(super) async fn run(args: Args) -> Result<u8, Failure> {
    let files = certificates(args.days).map_err(|error| Failure(format!("cannot make certificates: {error}")))?;
    match &args.out {
        Some(directory) => {
            write(directory, &files)?;
            println!("wrote {} to {}", names(&files), directory.display());
        }
        None => {
            apply(&AccessOptions { kubeconfig: args.kubeconfig, context: args.context }, &files).await?;
            println!("wrote {} to Secret {NAMESPACE}/{SECRET}; agents and server reload by themselves", names(&files));
        }
    }
    Ok(EXIT_HEALTHY)
}

fn names(files: &BTreeMap<&'static str, String>) -> String {
    files.keys().copied().collect::<Vec<_>>().join(", ")
}

/// The authority's key is not kept: new certificates are a new set.
fn certificates(days: u32) -> Result<BTreeMap<&'static str, String>, rcgen::Error> {
    let mut authority = parameters("netdiag authority", &[], days)?;
    authority.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    authority.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let key = KeyPair::generate()?;
    let certificate = authority.self_signed(&key)?;
    let issuer = Issuer::new(authority, key);
    let mut files = BTreeMap::from([("ca.crt", certificate.pem())]);
    for (name, crt, file_of_key, usage) in [
        (AGENT_TLS_NAME, "node.crt", "node.key", ExtendedKeyUsagePurpose::ServerAuth),
        (SERVER_TLS_NAME, "server.crt", "server.key", ExtendedKeyUsagePurpose::ClientAuth),
    ] {
        let mut leaf = parameters(name, &[name], days)?;
        leaf.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        leaf.extended_key_usages = vec![usage];
        let key = KeyPair::generate()?;
        files.insert(crt, leaf.signed_by(&key, &issuer)?.pem());
        files.insert(file_of_key, key.serialize_pem());
    }
    Ok(files)
}

/// Valid from an hour ago, since clocks of nodes differ.
#[expect(clippy::disallowed_methods, reason = "a certificate's validity starts with the clock of whoever makes it")]
fn parameters(name: &str, dns_names: &[&str], days: u32) -> Result<CertificateParams, rcgen::Error> {
    let mut parameters = CertificateParams::new(dns_names.iter().map(ToString::to_string).collect::<Vec<_>>())?;
    parameters.distinguished_name.push(DnType::CommonName, name);
    let now = std::time::SystemTime::now();
    parameters.not_before = (now - std::time::Duration::from_hours(1)).into();
    parameters.not_after = (now + std::time::Duration::from_hours(24 * u64::from(days))).into();
    Ok(parameters)
}

/// Keys are for their owner alone.
fn write(directory: &Path, files: &BTreeMap<&'static str, String>) -> Result<(), Failure> {
    use std::io::Write;
    use std::os::unix::fs::OpenOptionsExt;

    let failed = |path: &Path, error: std::io::Error| Failure(format!("cannot write {}: {error}", path.display()));
    std::fs::create_dir_all(directory).map_err(|error| failed(directory, error))?;
    for (name, text) in files {
        let path = directory.join(name);
        let mode = if Path::new(name).extension().is_some_and(|end| end == "key") { 0o600 } else { 0o644 };
        // A key must never have been readable by others, and an old file keeps its mode: so it goes first.
        let _ = std::fs::remove_file(&path);
        std::fs::OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(mode)
            .open(&path)
            .and_then(|mut file| file.write_all(text.as_bytes()))
            .map_err(|error| failed(&path, error))?;
    }
    Ok(())
}

async fn apply(options: &AccessOptions, files: &BTreeMap<&'static str, String>) -> Result<(), Failure> {
    let access = cluster::connect(options).await?;
    let namespace = Namespace {
        metadata: ObjectMeta { name: Some(NAMESPACE.to_owned()), ..ObjectMeta::default() },
        ..Namespace::default()
    };
    let namespaces = Api::<Namespace>::all(access.client.clone());
    let parameters = PostParams::default();
    match cluster::bounded(namespaces.create(&parameters, &namespace)).await {
        Err(error) if !matches!(error, RequestError::Conflict(_)) => {
            // Whoever may write the Secret alone needs no right to create namespaces, when this one is there.
            tracing::debug!(%error, "the namespace was not created");
        }
        _ => {}
    }
    let secret = Secret {
        metadata: ObjectMeta {
            name: Some(SECRET.to_owned()),
            namespace: Some(NAMESPACE.to_owned()),
            ..ObjectMeta::default()
        },
        data: Some(
            files.iter().map(|(name, text)| ((*name).to_owned(), ByteString(text.clone().into_bytes()))).collect(),
        ),
        type_: Some("Opaque".to_owned()),
        ..Secret::default()
    };
    let secrets = Api::<Secret>::namespaced(access.client.clone(), NAMESPACE);
    let parameters = PatchParams::apply("netdiag").force();
    let patch = Patch::Apply(&secret);
    cluster::bounded(secrets.patch(SECRET, &parameters, &patch)).await.map_err(|error| {
        Failure(format!(
            "cannot write Secret {NAMESPACE}/{SECRET}: {}; it needs the verbs create on namespaces and patch on secrets, \
             or use --out DIR",
            error.of_source(&access).message
        ))
    })?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_two_leaves_carry_the_names_that_each_side_asks_for() {
        let files = certificates(30).expect("certificates");
        for (file, name) in [("node.crt", AGENT_TLS_NAME), ("server.crt", SERVER_TLS_NAME)] {
            let (_, pem) = x509_parser::pem::parse_x509_pem(files[file].as_bytes()).expect("PEM");
            let certificate = pem.parse_x509().expect("a certificate");
            let names = certificate.subject_alternative_name().expect("an extension").expect("names").value;
            assert_eq!(names.general_names, [x509_parser::extensions::GeneralName::DNSName(name)]);
            assert!(!certificate.is_ca());
            let days =
                (certificate.validity().not_after.timestamp() - certificate.validity().not_before.timestamp()) / 86_400;
            assert_eq!(days, 30);
        }
    }

    #[test]
    fn keys_are_readable_by_their_owner_alone() {
        use std::os::unix::fs::PermissionsExt;
        let directory = tempfile::tempdir().expect("a directory");
        write(directory.path(), &certificates(1).expect("certificates")).expect("files");
        for key in ["node.key", "server.key"] {
            let mode = std::fs::metadata(directory.path().join(key)).expect(key).permissions().mode();
            assert_eq!(mode & 0o777, 0o600);
        }
        assert!(crate::nodes::tls::client_config(directory.path()).is_ok());
    }
}
