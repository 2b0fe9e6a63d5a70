//! One cause per file. A condition is a pure function from a path and the evidence to a verdict.
//!
//! Adding one: a file here, a fixture of the same name in `fixtures/`, a line in [`ALL`].

use netdiag_common::Gap;

use crate::evidence::{KindName, View};
use crate::finding::Finding;
use crate::path::Path;

pub mod address_families_differ;
mod between;
pub(crate) mod bridge;
pub mod bridge_nf_call_iptables_off;
pub mod checksums_arrive_wrong;
pub mod cluster_dns_has_no_endpoints;
pub mod cluster_domain_not_served;
pub mod cni_agent_not_ready;
mod connected;
pub mod conntrack_entry_stale;
pub mod conntrack_table_full;
mod dns;
pub mod dns_policy_excludes_cluster_dns;
pub mod egress_not_masqueraded;
pub mod egress_policy_blocks_dns;
mod enforced;
pub mod external_traffic_policy_has_no_local_endpoint;
pub mod foreign_rule_translates_path;
pub mod hairpin_mode_off;
pub mod headless_port_not_translated;
mod hop;
pub mod host_firewall_drops_path;
pub mod internal_traffic_policy_has_no_local_endpoint;
pub mod ip_forwarding_off;
pub mod iptables_legacy_and_nft_mixed;
pub mod kube_proxy_rules_stale;
pub mod kube_proxy_sync_fails;
pub mod kubelet_names_wrong_dns;
pub mod listen_queue_overflows;
pub mod listener_bound_to_loopback;
pub mod load_balancer_source_ranges_exclude_client;
pub mod name_does_not_exist;
pub mod neighbour_table_full;
pub mod neighbour_unresolved;
pub mod networkd_removed_routes;
pub mod node_clock_wrong;
pub mod node_link_faulty;
mod overlay;
pub mod overlay_ends_differ;
pub mod overlay_port_blocked;
mod passes;
pub mod path_mtu_black_hole;
pub mod plugin_rule_stops_path;
pub mod pod_address_duplicated;
pub mod pod_address_without_pod;
pub mod pod_default_route_missing;
pub mod pod_network_route_missing;
pub mod pod_range_overlaps_network;
pub mod pods_lost_between_nodes;
pub mod policy_denies_path;
pub mod policy_map_lacks_entry;
mod proof;
mod proxied;
pub mod reverse_path_filter_drops;
pub mod routing_rule_missing;
pub(crate) mod rule;
pub mod server_cpu_throttled;
pub mod service_has_no_ready_endpoints;
pub mod service_port_not_defined;
pub(crate) mod service_range;
pub mod service_selects_no_pods;
pub mod service_traffic_untracked;
pub mod session_affinity_keeps_bad_endpoint;
mod sockets;
pub mod target_port_not_listening;
pub mod topology_hints_leave_no_working_endpoint;
mod trace;
pub mod two_network_plugins;
mod unready;
mod way;

/// Every condition, in the order of the path a packet takes.
pub const ALL: &[&Condition] = &[
    &name_does_not_exist::CONDITION,
    &dns_policy_excludes_cluster_dns::CONDITION,
    &kubelet_names_wrong_dns::CONDITION,
    &cluster_domain_not_served::CONDITION,
    &egress_policy_blocks_dns::CONDITION,
    &cluster_dns_has_no_endpoints::CONDITION,
    &service_port_not_defined::CONDITION,
    &headless_port_not_translated::CONDITION,
    &address_families_differ::CONDITION,
    &service_selects_no_pods::CONDITION,
    &service_has_no_ready_endpoints::CONDITION,
    &cni_agent_not_ready::CONDITION,
    &pod_default_route_missing::CONDITION,
    &service_traffic_untracked::CONDITION,
    &foreign_rule_translates_path::CONDITION,
    &internal_traffic_policy_has_no_local_endpoint::CONDITION,
    &external_traffic_policy_has_no_local_endpoint::CONDITION,
    &topology_hints_leave_no_working_endpoint::CONDITION,
    &session_affinity_keeps_bad_endpoint::CONDITION,
    &load_balancer_source_ranges_exclude_client::CONDITION,
    &kube_proxy_sync_fails::CONDITION,
    &kube_proxy_rules_stale::CONDITION,
    &conntrack_entry_stale::CONDITION,
    &hairpin_mode_off::CONDITION,
    &bridge_nf_call_iptables_off::CONDITION,
    &policy_denies_path::CONDITION,
    &plugin_rule_stops_path::CONDITION,
    &policy_map_lacks_entry::CONDITION,
    &host_firewall_drops_path::CONDITION,
    &ip_forwarding_off::CONDITION,
    &reverse_path_filter_drops::CONDITION,
    &iptables_legacy_and_nft_mixed::CONDITION,
    &pod_address_without_pod::CONDITION,
    &two_network_plugins::CONDITION,
    &pod_address_duplicated::CONDITION,
    &pod_network_route_missing::CONDITION,
    &routing_rule_missing::CONDITION,
    &networkd_removed_routes::CONDITION,
    &pod_range_overlaps_network::CONDITION,
    &egress_not_masqueraded::CONDITION,
    &overlay_port_blocked::CONDITION,
    &overlay_ends_differ::CONDITION,
    &pods_lost_between_nodes::CONDITION,
    &checksums_arrive_wrong::CONDITION,
    &path_mtu_black_hole::CONDITION,
    &node_link_faulty::CONDITION,
    &neighbour_unresolved::CONDITION,
    &neighbour_table_full::CONDITION,
    &conntrack_table_full::CONDITION,
    &target_port_not_listening::CONDITION,
    &listener_bound_to_loopback::CONDITION,
    &listen_queue_overflows::CONDITION,
    &server_cpu_throttled::CONDITION,
    &node_clock_wrong::CONDITION,
];

/// The condition with this code.
pub fn find(code: &str) -> Option<&'static Condition> {
    ALL.iter().copied().find(|condition| condition.code == code)
}

/// A condition's words, metadata and judgement.
pub struct Condition {
    /// File name, fixture name and the code in answers.
    pub code: &'static str,
    pub severity: Severity,
    pub words: Words,
    /// Ids of the fault catalogue that it covers.
    pub faults: &'static [&'static str],
    /// What it looks at; a test compares this with what it really looked at.
    pub reads: &'static [Read],
    /// Codes that look alike from outside. Certainty asks that each of them is clear.
    pub lookalikes: &'static [&'static str],
    /// What else it accounts for when it is found.
    pub explains: &'static [Explains],
    pub judge: fn(&Path, &mut View) -> Verdict,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Severity {
    Critical,
    High,
    Medium,
}

impl Severity {
    pub fn name(self) -> &'static str {
        match self {
            Self::Critical => "critical",
            Self::High => "high",
            Self::Medium => "medium",
        }
    }
}

/// What people read about a condition (`netdiag explain CODE`).
pub struct Words {
    /// One sentence.
    pub means: &'static str,
    pub how_we_know: &'static str,
    pub silent_when: &'static str,
    pub what_to_do: &'static str,
    /// Documents and kernel functions the rule rests on.
    pub sources: &'static [&'static str],
}

/// One thing a condition looks at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Read {
    Kind(KindName),
    /// By [`Topic::name`](netdiag_common::Topic::name).
    Topic(&'static str),
}

/// A consequence: when both are found and related like this, only the cause is a cause.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Explains {
    pub code: &'static str,
    pub relation: Relation,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Relation {
    /// Both name the same Service.
    SameService,
    /// Both name the same node.
    SameNode,
    /// Both name the same NetworkPolicy.
    SamePolicy,
    /// Both were found for the same question.
    SamePath,
}

/// What a condition says about one path.
#[derive(Debug, Clone, PartialEq)]
pub enum Verdict {
    Found(Box<Finding>),
    Clear(Because),
    /// It could not see enough; the gaps it met. Empty while needs are still open.
    Unknown(Vec<Gap>),
}

impl Verdict {
    pub fn found(finding: Finding) -> Self {
        Self::Found(Box::new(finding))
    }

    /// The verdict of a condition that could not see enough.
    pub fn unknown(view: &View) -> Self {
        Self::Unknown(view.gaps().to_vec())
    }

    /// The proof that it is not this: one clause, lower case, with what was seen.
    pub fn clear(because: impl Into<String>) -> Self {
        Self::Clear(Because::Seen(because.into()))
    }

    /// The condition speaks about something this path does not have.
    pub fn not_applicable(because: impl Into<String>) -> Self {
        Self::Clear(Because::NotApplicable(because.into()))
    }
}

/// Why a condition is silent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Because {
    /// We looked, and saw this.
    Seen(String),
    /// Nothing to look at: no name was asked, the target is no Service.
    NotApplicable(String),
}

impl Because {
    pub fn text(&self) -> &str {
        match self {
            Self::Seen(text) | Self::NotApplicable(text) => text,
        }
    }
}
