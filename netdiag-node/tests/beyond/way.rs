//! A node between a client and a backend, and packets through it.
//!
//! ```text
//! client eth0 ── r0 node r1 ── eth0 backend
//!    10.1.0.2   .1       10.2.0.1    10.2.0.2
//!     fd01::2  ::1       fd02::1     fd02::2
//! ```

use netdiag_common::observation::fate::{Fate, FateInterfaceKey, FateOrigin, FateRequest, FateTransport};

use crate::lab::{self, Namespace, ip};

pub const CLIENT: &str = "10.1.0.2";
pub const BACKEND: &str = "10.2.0.2";
pub const NODE: &str = "10.1.0.1";

pub struct Way {
    pub node: Namespace,
    pub client: Namespace,
    pub backend: Namespace,
}

impl Way {
    /// None, said loudly, when this machine cannot have it.
    pub fn start(role: &str) -> Option<Self> {
        if !lab::can_run() {
            return None;
        }
        let node = Namespace::new(&format!("{role}-node"));
        let client = Namespace::new(&format!("{role}-client"));
        let backend = Namespace::new(&format!("{role}-backend"));
        node.connect("r0", &client);
        node.connect("r1", &backend);
        for (namespace, device, v4, v6) in [
            (&node, "r0", "10.1.0.1/24", "fd01::1/64"),
            (&node, "r1", "10.2.0.1/24", "fd02::1/64"),
            (&client, "eth0", "10.1.0.2/24", "fd01::2/64"),
            (&backend, "eth0", "10.2.0.2/24", "fd02::2/64"),
        ] {
            ip(&format!("-n {} addr add {v4} dev {device}", namespace.name));
            ip(&format!("-n {} addr add {v6} dev {device} nodad", namespace.name));
        }
        for (namespace, v4, v6) in [(&client, "10.1.0.1", "fd01::1"), (&backend, "10.2.0.1", "fd02::1")] {
            ip(&format!("-n {} route add default via {v4}", namespace.name));
            ip(&format!("-n {} -6 route add default via {v6}", namespace.name));
        }
        node.sh("echo 1 > /proc/sys/net/ipv4/ip_forward; echo 1 > /proc/sys/net/ipv6/conf/all/forwarding");
        Some(Self { node, client, backend })
    }

    /// What becomes in the node of a packet of the client.
    pub fn received(&self, destination: &str, port: u16) -> Fate {
        self.node.run(|| {
            lab::fate(&request(FateOrigin::Received(FateInterfaceKey::Name("r0".into())), destination, port)).unwrap()
        })
    }
}

/// The first packet of a TCP connection of the client's address.
pub fn request(origin: FateOrigin, destination: &str, port: u16) -> FateRequest {
    let source = (origin != FateOrigin::Sent).then(|| CLIENT.parse().unwrap());
    let transport = FateTransport::Tcp { source_port: Some(40_000), destination_port: Some(port), flags: 2 };
    FateRequest::new(origin, source, destination.parse().unwrap(), transport)
}

/// What was not seen, in words.
pub fn unseen(fate: &Fate) -> Vec<String> {
    fate.unseen.iter().map(|gap| gap.what.clone()).collect()
}
