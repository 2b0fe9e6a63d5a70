//! Which network configuration of a node its pods are connected by, for conditions that tell whose a pod's link, routes or address
//! are.

use std::net::IpAddr;

use ipnet::IpNet;
use jiff::Timestamp;
use netdiag_common::Netns;
use netdiag_common::observation::cni::{CniIpam, CniPlugin};

use crate::evidence::{Look, View};

/// The one configuration that gives pods such an address.
pub struct Connected<'e> {
    /// `10-pods.conflist`
    pub file: &'e str,
    /// What makes the pod's interface. It sets the routes that the address plugin returns (CNI specification 1.1, section 4).
    pub plugin: &'e CniPlugin,
    /// What gives the address.
    pub ipam: &'e CniIpam,
    /// What it gives addresses of.
    pub net: IpNet,
    pub at: Timestamp,
}

/// None where the configurations do not tell, or several may be meant.
pub fn connected<'e>(node: &str, address: IpAddr, view: &mut View<'e>) -> Option<Connected<'e>> {
    let Look::Seen(cni) = view.cni(node, &Netns::Host) else { return None };
    if cni.value.omitted > 0 {
        return None;
    }
    let mut found = cni.value.files.iter().filter_map(|file| {
        let network = file.network()?;
        let mut ipams = network.plugins.iter().filter_map(|plugin| plugin.ipam.as_ref());
        let (ipam, net) = ipams.find_map(|ipam| {
            let net = ipam.subnets.iter().find(|net| net.contains(&address))?;
            Some((ipam, *net))
        })?;
        Some(Connected { file: &file.name, plugin: network.main_plugin()?, ipam, net, at: cni.at })
    });
    let (Some(one), None) = (found.next(), found.next()) else { return None };
    Some(one)
}
