//! Paths that kube-proxy's rules lead on.

use std::net::IpAddr;
use std::sync::Arc;

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
