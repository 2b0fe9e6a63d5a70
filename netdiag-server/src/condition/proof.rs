//! Proofs that several conditions share.

use netdiag_common::observation::service_rules::ServiceAction;

use crate::evidence::{Look, View};
use crate::finding::Proof;
use crate::path::Path;

/// The first client's node was told to refuse the Service's address: kube-proxy, too, knows no endpoint.
/// Nothing when the rules say otherwise or cannot be seen; then the claim stands on its other proofs.
pub fn nothing_to_forward_to(path: &Path, view: &mut View) -> Option<Proof> {
    let client = path.clients.first()?;
    let (port, address) = (path.port?, *path.addresses.first()?);
    let Look::Seen(rules) = view.service_rules(&client.node, &netdiag_common::Netns::Host) else { return None };
    let rule = rules.value.find(address, path.protocol, port)?;
    let told = match &rule.action {
        ServiceAction::Reject => "refuse",
        ServiceAction::Drop => "drop",
        ServiceAction::Endpoints(_) => return None,
    };
    let socket = std::net::SocketAddr::new(address, port);
    let text = format!("the rules {told} connections to {socket} ({})", path.protocol);
    Some(Proof::programmed("kube-proxy's rules", &client.node, rules.at, text))
}
