//! Ingresses (networking.k8s.io/v1) that lead to a Service.

use super::super::ladder::RungName;
use super::super::secret::SecretName;
use super::{Asking, Door, Entrances, HTTP, HTTPS, Wanted, below, plain};
use crate::evidence::Cluster;
use crate::evidence::object::{Ingress, IngressBackend, IngressPath, IngressTls, Service, ServicePort};

/// Ingresses lead to Services of their own namespace alone.
pub(super) fn find(
    cluster: &Cluster,
    service: &Service,
    port: &ServicePort,
    wanted: Wanted<'_>,
    found: &mut Entrances,
) {
    for ingress in cluster.ingresses.in_namespace(&service.metadata.namespace) {
        let leads = |backend: &IngressBackend| leads(backend, service, port);
        let object = format!("Ingress {}/{}", ingress.metadata.namespace, ingress.metadata.name);
        let listed = ingress.status.load_balancer.ingress.iter();
        let addresses: Vec<String> = listed
            .map(|address| if address.ip.is_empty() { address.hostname.clone() } else { address.ip.clone() })
            .filter(|address| !address.is_empty())
            .collect();
        let mut add = |host: &str, asking: Result<Asking, String>| {
            let entry = tls_of(ingress, host);
            let https = entry.is_some();
            let secrets = entry.map(|tls| secrets(ingress, tls)).unwrap_or_default();
            let port = if https { HTTPS } else { HTTP };
            let door = Door {
                rung: RungName::Ingress,
                object: &object,
                host,
                https,
                port,
                secrets: &secrets,
                addresses: &addresses,
            };
            found.add(&door, asking, wanted);
        };
        for rule in &ingress.spec.rules {
            let paths = rule.http.iter().flat_map(|http| &http.paths);
            for path in paths.filter(|path| leads(&path.backend)) {
                let taken = |text: &str| is_taken(ingress, &rule.host, text, &leads);
                add(&rule.host, path_of(path, taken).map(Asking::get));
            }
        }
        if ingress.spec.default_backend.as_ref().is_some_and(leads) {
            let asking = if ingress.spec.rules.iter().any(|rule| rule.host.is_empty() && rule.http.is_some()) {
                Err("the Service gets what no rule takes, and its rules are for every host".to_owned())
            } else {
                Ok(Asking::get("/".to_owned()))
            };
            add("", asking);
        }
    }
}

fn leads(backend: &IngressBackend, service: &Service, port: &ServicePort) -> bool {
    backend.service.as_ref().is_some_and(|wanted| {
        let is_port =
            if wanted.port.name.is_empty() { wanted.port.number == port.port } else { wanted.port.name == port.name };
        wanted.name == service.metadata.name && is_port
    })
}

/// The entry with the certificate for a host: a wildcard stands for one label.
fn tls_of<'i>(ingress: &'i Ingress, host: &str) -> Option<&'i IngressTls> {
    ingress.spec.tls.iter().find(|tls| {
        let is_for = |known: &String| {
            known == host
                || known.strip_prefix("*.").is_some_and(|end| host.split_once('.').is_some_and(|(_, rest)| rest == end))
        };
        tls.hosts.is_empty() || tls.hosts.iter().any(is_for)
    })
}

/// None where the controller has a certificate of its own.
fn secrets(ingress: &Ingress, tls: &IngressTls) -> Vec<SecretName> {
    let name = Some(&tls.secret_name).filter(|name| !name.is_empty());
    let named = |name: &String| SecretName { namespace: ingress.metadata.namespace.clone(), name: name.clone() };
    name.map(named).into_iter().collect()
}

/// Whether an exact path of the same host leads elsewhere.
fn is_taken(ingress: &Ingress, host: &str, text: &str, leads: &impl Fn(&IngressBackend) -> bool) -> bool {
    let rules = ingress.spec.rules.iter().filter(|rule| rule.host == host);
    let mut paths = rules.flat_map(|rule| &rule.http).flat_map(|http| &http.paths);
    paths.any(|path| path.path_type == "Exact" && path.path == text && !leads(&path.backend))
}

fn path_of(path: &IngressPath, taken: impl Fn(&str) -> bool) -> Result<String, String> {
    let text = path.path.as_str();
    match path.path_type.as_str() {
        "Exact" => Ok(text.to_owned()),
        "Prefix" => Ok(below(text, taken)),
        // Many controllers read it as a prefix, some with `*` at its end, others as a regular expression.
        _ => {
            let prefix = text.strip_suffix('*').unwrap_or(text);
            if prefix.is_empty() || plain(prefix) {
                return Ok(below(prefix, taken));
            }
            Err(format!("what its path {text:?} takes is known to the controller alone ({})", path.path_type))
        }
    }
}
