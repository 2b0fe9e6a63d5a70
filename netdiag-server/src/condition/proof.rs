//! Proofs that several conditions share.

use std::net::IpAddr;

use netdiag_common::Netns;
use netdiag_common::observation::Protocol;
use netdiag_common::observation::service_rules::ServiceAction;

use crate::evidence::{Look, View};
use crate::finding::Proof;
use crate::path::{Client, Path};

/// The first client's node was told to refuse the Service's address: kube-proxy, too, knows no endpoint.
/// Nothing when the rules say otherwise or cannot be seen; then the claim stands on its other proofs.
pub fn nothing_to_forward_to(path: &Path, view: &mut View) -> Option<Proof> {
    refused_by_rules(path.clients.first()?, *path.addresses.first()?, path.port?, path.protocol, view)
}

/// The client's node was told to refuse this address, or to drop what goes there.
pub fn refused_by_rules(
    client: &Client,
    address: IpAddr,
    port: u16,
    protocol: Protocol,
    view: &mut View,
) -> Option<Proof> {
    let Look::Seen(rules) = view.service_rules(&client.node, &Netns::Host) else { return None };
    let told = match &rules.value.find(address, protocol, port)?.action {
        ServiceAction::Reject => "refuse",
        ServiceAction::Drop => "drop",
        ServiceAction::Endpoints(_) => return None,
    };
    let socket = std::net::SocketAddr::new(address, port);
    let text = format!("the rules {told} connections to {socket} ({protocol})");
    Some(Proof::programmed("kube-proxy's rules", &client.node, rules.at, text))
}
