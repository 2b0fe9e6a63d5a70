//! The cluster's certificates and kubeconfigs.

use anyhow::{Context, Result};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};

use super::Cluster;
use super::address::API_SERVICE;
use crate::template;

/// The group whose members may do everything.
const ADMINISTRATORS: &str = "system:masters";

/// Writes `pki/*` and a kubeconfig for every user of the API.
pub(super) fn create(cluster: &Cluster) -> Result<()> {
    let authority = authority(cluster)?;

    let accounts = KeyPair::generate().context("cannot make a key")?;
    cluster.write("pki/accounts.key", &accounts.serialize_pem())?;
    cluster.write("pki/accounts.pub", &accounts.public_key_pem())?;

    let address = cluster.subnet.control_plane();
    let names = [
        "kubernetes",
        "kubernetes.default",
        "kubernetes.default.svc",
        "kubernetes.default.svc.cluster.local",
        "localhost",
        "127.0.0.1",
        &address,
        API_SERVICE,
    ];
    leaf(cluster, &authority, "apiserver", None, "kube-apiserver", &names)?;
    leaf(cluster, &authority, "kubelet-client", Some(ADMINISTRATORS), "apiserver-kubelet-client", &[])?;

    user(cluster, &authority, "admin", Some(ADMINISTRATORS), "admin", &[])?;
    user(cluster, &authority, "controller-manager", None, "system:kube-controller-manager", &[])?;
    user(cluster, &authority, "scheduler", None, "system:kube-scheduler", &[])?;
    user(cluster, &authority, "kube-proxy", None, "system:kube-proxy", &[])?;
    for index in 1..=cluster.options.nodes {
        let node = format!("n{index}");
        let names = [node.as_str(), &cluster.subnet.node(index)];
        user(cluster, &authority, &node, Some("system:nodes"), &format!("system:node:{node}"), &names)?;
    }
    Ok(())
}

fn authority(cluster: &Cluster) -> Result<Issuer<'static, KeyPair>> {
    let mut parameters = CertificateParams::new([]).context("cannot make the authority's certificate")?;
    // Named after the cluster: two authorities of one name make TLS errors that nobody understands.
    parameters.distinguished_name = subject(None, &format!("{}-ca", cluster.options.name));
    parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    parameters.key_usages =
        vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign, KeyUsagePurpose::DigitalSignature];
    let key = KeyPair::generate().context("cannot make a key")?;
    let certificate = parameters.self_signed(&key).context("cannot sign the authority's certificate")?;
    cluster.write("pki/ca.crt", &certificate.pem())?;
    cluster.write("pki/ca.key", &key.serialize_pem())?;
    Ok(Issuer::new(parameters, key))
}

fn leaf(
    cluster: &Cluster,
    authority: &Issuer<'_, KeyPair>,
    file: &str,
    group: Option<&str>,
    name: &str,
    addresses: &[&str],
) -> Result<()> {
    let addresses: Vec<String> = addresses.iter().map(|&address| address.to_owned()).collect();
    let mut parameters =
        CertificateParams::new(addresses).with_context(|| format!("cannot make the certificate {file}"))?;
    parameters.distinguished_name = subject(group, name);
    parameters.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyEncipherment];
    parameters.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    parameters.use_authority_key_identifier_extension = true;
    let key = KeyPair::generate().context("cannot make a key")?;
    let certificate =
        parameters.signed_by(&key, authority).with_context(|| format!("cannot sign the certificate {file}"))?;
    cluster.write(&format!("pki/{file}.crt"), &certificate.pem())?;
    cluster.write(&format!("pki/{file}.key"), &key.serialize_pem())
}

fn user(
    cluster: &Cluster,
    authority: &Issuer<'_, KeyPair>,
    file: &str,
    group: Option<&str>,
    name: &str,
    addresses: &[&str],
) -> Result<()> {
    leaf(cluster, authority, file, group, name, addresses)?;
    let config = template::fill(
        include_str!("kubeconfig.yaml"),
        &[
            ("cluster", &cluster.options.name),
            ("server", &cluster.subnet.control_plane()),
            ("pki", &cluster.folder.join("pki").display().to_string()),
            ("user", file),
        ],
    )?;
    cluster.write(&format!("{file}.conf"), &config)
}

fn subject(group: Option<&str>, name: &str) -> DistinguishedName {
    let mut subject = DistinguishedName::new();
    if let Some(group) = group {
        subject.push(DnType::OrganizationName, group);
    }
    subject.push(DnType::CommonName, name);
    subject
}
