//! Paths that kube-proxy's rules lead on.

use std::net::IpAddr;
use std::sync::Arc;

use super::Verdict;
use crate::evidence::View;
use crate::evidence::object::{Service, ServicePort};
use crate::path::Path;
use crate::path::forwarding::is_proxied;

/// The Service and its port; why kube-proxy has nothing to do with the path, otherwise.
pub(super) fn proxied(path: &Path) -> Result<(&Arc<Service>, &ServicePort), &'static str> {
    let (Some(service), Some(port)) = (path.service(), path.service_port()) else {
        return Err("the path does not lead to a Service's port");
    };
    if is_proxied(service) { Ok((service, port)) } else { Err("the Service has no address that kube-proxy serves") }
}

/// Of the addresses that are dialled those that kube-proxy serves as the Service's own.
pub(super) fn asked_cluster_ips(path: &Path, service: &Service) -> Vec<IpAddr> {
    let own = service.cluster_ips();
    path.addresses.iter().copied().filter(|address| own.contains(address)).collect()
}

/// What the rules of one client's node, and its probes, show of a fault of these rules.
pub(super) enum Shown<T> {
    Fault(T),
    /// It is not what keeps this client away.
    Harmless(&'static str),
    /// Whether it is was not to be seen, nor was it wanted.
    Silent(&'static str),
    Dark,
}

/// What all clients show.
pub(super) struct Clients<T> {
    pub(super) faults: Vec<T>,
    harmless: &'static str,
    silent: Option<&'static str>,
    dark: bool,
}

impl<T> Clients<T> {
    pub(super) fn new() -> Self {
        let harmless = "no client speaks to an address of the Service";
        Self { faults: Vec::new(), harmless, silent: None, dark: false }
    }

    pub(super) fn add(&mut self, shown: Shown<T>) {
        match shown {
            Shown::Fault(found) => self.faults.push(found),
            Shown::Harmless(because) => self.harmless = because,
            Shown::Silent(because) => self.silent = Some(because),
            Shown::Dark => self.dark = true,
        }
    }

    /// The verdict where none of them shows the fault.
    pub(super) fn without_fault(&self, view: &View) -> Verdict {
        match self.silent {
            _ if self.dark => Verdict::unknown(view),
            Some(because) => Verdict::not_applicable(because),
            None => Verdict::clear(self.harmless),
        }
    }
}
