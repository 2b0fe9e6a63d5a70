//! One node and one pod, joined by a veth pair, with the node's agent.

use super::{Agent, CONTAINER, FakePod, LISTENS, Namespace, UID, can_run, ip, kubelet_root};

pub const NODE_ADDRESS: &str = "10.202.0.1";
pub const POD_ADDRESS: &str = "10.202.0.2";

pub struct Lab {
    pub agent: Agent,
    pub pod: FakePod,
    pub node: Namespace,
    pub inside: Namespace,
    /// The kubelet's cgroup root.
    pub root: String,
}

impl Lab {
    /// `role` keeps tests of one process apart. None, said loudly, when this machine cannot do it.
    pub fn start(role: &str) -> Option<Self> {
        if !can_run() {
            return None;
        }
        let node = Namespace::new(&format!("{role}-node"));
        let inside = Namespace::new(&format!("{role}-pod"));
        node.connect("toPod", &inside);
        ip(&format!("-n {} addr add {NODE_ADDRESS}/24 dev toPod", node.name));
        ip(&format!("-n {} addr add {POD_ADDRESS}/24 dev eth0", inside.name));
        let root = kubelet_root(role);
        let pod = FakePod::start(&inside, &root, UID, CONTAINER, LISTENS.parse().unwrap());
        let agent = Agent::of_node(&node, &root);
        Some(Self { agent, pod, node, inside, root })
    }
}
