//! Neighbours of one namespace: who does not answer now, and how often somebody did not during the window.

use netdiag_common::observation::Owner;
use netdiag_common::observation::neighbour::Neighbours;
use netdiag_common::{Gap, Need};

use crate::attribution::Pod;
use crate::gap::gap;
use crate::host::{ReadError, neighbour};
use crate::watch::Watch;

/// Adds what was counted in the calling thread's namespace, which is the pod's, or the node's. The list is worth telling without.
pub(crate) fn with_failures(
    listed: Neighbours,
    watch: &Watch,
    need: &Need,
    pod: Option<&Pod>,
) -> Result<Neighbours, ReadError> {
    let mut counted = match watch.neighbours.observe(need.window) {
        Ok(counted) => counted,
        Err(failure) => return Ok(Neighbours { unseen: vec![gap(need, &failure)], ..listed }),
    };
    let owner = match pod.filter(|pod| !pod.observed.host_network) {
        None => Owner::Host,
        Some(pod) => Owner::Pod { uid: pod.observed.uid.clone() },
    };
    let unseen = std::mem::take(&mut counted.unseen);
    let unseen = unseen.into_iter().map(|gap| Gap { node: Some(need.node.clone()), ..gap }).collect();
    Ok(Neighbours { failures: Some(counted.of(&owner, &neighbour::devices()?)), unseen, ..listed })
}
