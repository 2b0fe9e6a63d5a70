//! The three faults: one of each view that can be wrong.

/// A change of the world, and its way back, as shell commands. `@n1`, `@web-1`, … at a line's start name the network
/// namespace that the line runs in.
pub(super) struct Fault {
    pub(super) code: &'static str,
    pub(super) title: &'static str,
    pub(super) inject: &'static [&'static str],
    pub(super) restore: &'static [&'static str],
}

pub(super) const FAULTS: [Fault; 3] = [
    Fault {
        code: "listener_bound_to_loopback",
        title: "the servers are restarted and bind 127.0.0.1 only (the workload is wrong)",
        inject: &["serve web-1 127.0.0.1:8080", "serve web-2 127.0.0.1:8080"],
        restore: &["serve web-1 0.0.0.0:8080", "serve web-2 0.0.0.0:8080"],
    },
    Fault {
        code: "kube_proxy_rules_stale",
        title: "something removes kube-proxy's rules from node n1 (programmed is not what is intended)",
        inject: &["@n1 nft delete table ip kube-proxy"],
        restore: &["@n1 nft -f RULES"],
    },
    Fault {
        code: "host_firewall_drops_path",
        title: "an administrator's firewall on node n1 drops the pods' port (observed is not what is programmed for)",
        inject: &[
            "@n1 nft add table inet site",
            "@n1 nft add chain inet site fw { type filter hook forward priority 10 ; policy accept ; }",
            "@n1 nft add rule inet site fw ip saddr 10.98.1.0/24 tcp dport 8080 counter drop comment \"maintenance\"",
        ],
        restore: &["@n1 nft delete table inet site"],
    },
];

impl Fault {
    pub(super) fn announce(&self) {
        println!("break: {}", self.title);
    }
}
