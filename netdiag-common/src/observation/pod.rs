//! Pods as the node knows them: from cgroup paths and network namespaces, without the Kubernetes API.

use serde::{Deserialize, Serialize};

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodOnNode {
    /// The pod's UID, from its cgroup path.
    pub uid: String,
    pub container_ids: Vec<String>,
    /// Inode of the pod's network namespace (`/proc/PID/ns/net`).
    pub netns_inode: u64,
    /// `SO_NETNS_COOKIE` (Linux 5.14); none on older kernels.
    #[serde(default)]
    pub netns_cookie: Option<u64>,
    /// The pod uses the node's own namespace.
    #[serde(default)]
    pub host_network: bool,
    /// How the pod was tied to the namespace.
    pub method: AttributionMethod,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AttributionMethod {
    /// A process of the pod's cgroup lives in the namespace, and a veth of the node leads into it.
    CgroupAndVeth,
    /// A process of the pod's cgroup lives in the namespace.
    Cgroup,
}
