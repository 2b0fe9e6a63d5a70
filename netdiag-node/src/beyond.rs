//! Whose namespaces lie at the other ends of a namespace's cables.

use std::collections::HashMap;

use netdiag_common::Netns;
use netdiag_common::observation::Owner;
use nix::sys::socket::SockProtocol;

use crate::attribution::{Attribution, netns_id};
use crate::host::netlink::Netlink;
use crate::host::{Host, ReadError};
use crate::netns::NetnsHandle;

/// Owners by the numbers that the calling thread's namespace gives to others (`ip netns list-id`), looked up when the first
/// is asked for: that opens the namespace of every pod.
pub(crate) struct Beyond<'a> {
    host: &'a Host,
    attribution: &'a Attribution,
    own: Owner,
    known: Option<HashMap<i32, Owner>>,
}

impl<'a> Beyond<'a> {
    pub(crate) fn new(host: &'a Host, attribution: &'a Attribution, netns: &Netns) -> Self {
        let own = match netns {
            Netns::Host => Owner::Host,
            Netns::Pod(uid) => Owner::Pod { uid: uid.clone() },
        };
        Self { host, attribution, own, known: None }
    }

    /// None when the namespace is neither the node's nor one of its pods', or cannot be told.
    pub(crate) fn owner(&mut self, number: Option<i32>) -> Option<Owner> {
        let Some(number) = number else { return Some(self.own.clone()) };
        let known = match self.known.take() {
            Some(known) => known,
            None => self.look().unwrap_or_else(|error| {
                tracing::debug!(%error, "peers of interfaces not told");
                HashMap::new()
            }),
        };
        self.known.insert(known).get(&number).cloned()
    }

    fn look(&self) -> Result<HashMap<i32, Owner>, ReadError> {
        let mut netlink = Netlink::open(SockProtocol::NetlinkRoute)?;
        let mut known = HashMap::new();
        let mut number = |netns: &NetnsHandle| netns_id(&mut netlink, netns).map(u32::cast_signed);
        for pod in self.attribution.pods()?.pods.iter().filter(|pod| !pod.observed.host_network) {
            let Ok(netns) = self.attribution.open(pod) else { continue };
            if let Some(number) = number(&netns) {
                known.insert(number, Owner::Pod { uid: pod.observed.uid.clone() });
            }
        }
        if let Some(number) = number(&self.host.netns) {
            known.insert(number, Owner::Host);
        }
        Ok(known)
    }
}
