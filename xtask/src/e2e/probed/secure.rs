//! TLS of a server in a pod, in both families: trusted, of an authority that nobody was told of, for another name, and expired;
//! DNS over TLS and over HTTPS. CoreDNS serves it all, with the API server's certificate, and at one port with one of its own.

use anyhow::{Context, Result};
use rcgen::{CertificateParams, KeyPair, date_time_ymd};
use serde_json::Value;

use super::super::world::CLIENT;
use super::{READY_WITHIN, probe};
use crate::cluster::Cluster;
use crate::install::Installed;

const SERVER: &str = "
apiVersion: v1
kind: ConfigMap
metadata: {name: secure, namespace: shop}
data:
  Corefile: |
    tls://.:853 {
      tls /tls/tls.crt /tls/tls.key
      hosts {
        192.0.2.7 secure.example
        2001:db8::7 secure.example
      }
    }
    https://.:443 {
      tls /tls/tls.crt /tls/tls.key
      hosts {
        192.0.2.7 secure.example
        2001:db8::7 secure.example
      }
    }
    tls://.:8853 {
      tls /old/tls.crt /old/tls.key
      whoami
    }
---
apiVersion: v1
kind: Pod
metadata: {name: secure, namespace: shop, labels: {app: secure}}
spec:
  nodeName: n2
  terminationGracePeriodSeconds: 0
  containers:
  - name: secure
    image: netdiag/coredns:1
    imagePullPolicy: Never
    args: [-conf, /etc/coredns/Corefile]
    volumeMounts: [{name: c, mountPath: /etc/coredns}, {name: tls, mountPath: /tls}, {name: old, mountPath: /old}]
  volumes:
  - {name: c, configMap: {name: secure}}
  - {name: tls, secret: {secretName: secure-tls}}
  - {name: old, secret: {secretName: secure-old}}
";

const TO: &str = "pod/shop/secure:853";
const TO_EXPIRED: &str = "pod/shop/secure:8853";
/// A name of the API server's certificate.
const NAME: &str = "localhost";
const OBJECTS: [&str; 4] = ["pod/secure", "configmap/secure", "secret/secure-tls", "secret/secure-old"];

pub(super) fn looked_at(cluster: &Cluster, installed: &Installed) -> Result<Vec<String>> {
    let pki = cluster.scratch("pki")?;
    let path = |name: &str| pki.join(name).display().to_string();
    expired(&path("expired.crt"), &path("expired.key"))?;
    for (secret, file) in [("secure-tls", "apiserver"), ("secure-old", "expired")] {
        let option = |option: &str, end: &str| format!("--{option}={}", path(&format!("{file}.{end}")));
        let (cert, key) = (option("cert", "crt"), option("key", "key"));
        cluster.kubectl(&["-n", "shop", "create", "secret", "tls", secret, &cert, &key])?;
    }
    cluster.apply(SERVER)?;
    cluster.kubectl(&["-n", "shop", "wait", "--for=condition=Ready", "pod/secure", "--timeout=90s"])?;
    let authority = path("ca.crt");
    let trusted = ["tls", "--server-name", NAME, "--ca", &authority];
    cluster.wait_until("trusted TLS of pod shop/secure in both families", READY_WITHIN, || {
        probe(cluster, installed, &trusted, CLIENT, TO).is_ok_and(|answer| super::not_well(&answer, 2).is_none())
    })?;
    let mut wrong = Vec::new();
    let distrusted: [(&[&str], &str, &str); 3] = [
        (&["tls", "--server-name", NAME], TO, "unknown_authority"),
        (&["tls", "--server-name", "shop.example", "--ca", &authority], TO, "wrong_name"),
        (&["tls", "--server-name", NAME], TO_EXPIRED, "expired"),
    ];
    for (words, to, problem) in distrusted {
        let answer = probe(cluster, installed, words, CLIENT, to)?;
        let has = |series: &Value| series.to_string().contains(&format!("\"problem\":\"{problem}\""));
        if !is_distrusted(&answer, 2) || !series(&answer).iter().all(has) {
            wrong.push(format!("TLS that is {problem}: {answer}"));
        }
    }
    wrong.extend(dns(cluster, installed)?);
    cluster.kubectl(&[&["-n", "shop", "delete"], &OBJECTS[..]].concat())?;
    Ok(wrong)
}

/// To whomever without a name; with one the certificate is held against it, and the answer told all the same.
fn dns(cluster: &Cluster, installed: &Installed) -> Result<Vec<String>> {
    let addresses =
        cluster.kubectl(&["-n", "shop", "get", "pod", "secure", "-o", "jsonpath={.status.podIPs[*].ip}"])?;
    let mut wrong = Vec::new();
    for address in addresses.split_whitespace() {
        let host = if address.contains(':') { format!("[{address}]") } else { address.to_owned() };
        let (by_tls, by_https) = (format!("{host}:853"), format!("{host}:443"));
        let asked: [(&[&str], bool); 3] = [
            (&["--server", &by_tls, "--transport", "tls"], true),
            (&["--server", &by_tls, "--transport", "tls", "--server-name", NAME], false),
            (&["--server", &by_https, "--transport", "https", "--server-name", NAME], false),
        ];
        for (words, is_trusted) in asked {
            let answer = probe(cluster, installed, &[&["dns"], words].concat(), CLIENT, "secure.example")?;
            let is_judged = if is_trusted { answer["status"] == "well" } else { is_distrusted(&answer, 1) };
            let text = answer["series"].to_string();
            if !is_judged || !["192.0.2.7", "2001:db8::7"].iter().all(|record| text.contains(record)) {
                wrong.push(format!("dns {}: {answer}", words.join(" ")));
            }
        }
    }
    Ok(wrong)
}

fn series(answer: &Value) -> &[Value] {
    answer["series"].as_array().map_or(&[][..], Vec::as_slice)
}

/// Each of so many targets, for its certificate alone.
fn is_distrusted(answer: &Value, targets: usize) -> bool {
    let is_it = |series: &Value| {
        let failures = series["tally"]["failures"].as_array().map_or(&[][..], Vec::as_slice);
        failures.len() == 1 && failures[0]["class"] == "certificate" && failures[0]["stage"] == "tls"
    };
    series(answer).len() == targets && series(answer).iter().all(is_it)
}

/// A certificate of its own that ended long ago.
fn expired(certificate: &str, key: &str) -> Result<()> {
    let mut parameters = CertificateParams::new([NAME.to_owned()]).context("cannot make a certificate")?;
    (parameters.not_before, parameters.not_after) = (date_time_ymd(2020, 1, 1), date_time_ymd(2021, 1, 1));
    let pair = KeyPair::generate().context("cannot make a key")?;
    let signed = parameters.self_signed(&pair).context("cannot sign a certificate")?;
    std::fs::write(certificate, signed.pem()).with_context(|| format!("cannot write {certificate}"))?;
    std::fs::write(key, pair.serialize_pem()).with_context(|| format!("cannot write {key}"))
}
