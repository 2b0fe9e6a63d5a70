//! How netdiag itself is doing, schema `netdiag.status/v1`: agents, rights, certificates, load, versions.

use jiff::Timestamp;
use netdiag_common::observation::preflight::{Check, Preflight};
use netdiag_common::{Gap, wire};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::NotSeen;
use super::page::{Page, Paint, Tone};
use super::text::ago;

pub const STATUS_SCHEMA: &str = "netdiag.status/v1";
/// A certificate with less left than this is named in text: time for a person to renew it in working hours.
const SOON_S: i64 = 14 * 24 * 3_600;

/// What an agent says about itself besides its readings.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct AgentVersion {
    pub wire: u32,
    pub agent: String,
    pub instance: String,
    /// As in [`NodeStatus::restarts`].
    pub restarts: u64,
}

/// What `netdiag status` says.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Status {
    /// Always `netdiag.status/v1`.
    pub schema: String,
    pub cluster: String,
    /// RFC 3339.
    #[schemars(with = "String")]
    pub at: Timestamp,
    /// Version of the program that wrote this.
    pub version: String,
    /// Wire versions it speaks with agents.
    pub wire_min: u32,
    pub wire_max: u32,
    /// One per node of the cluster, by name.
    pub nodes: Vec<NodeStatus>,
    /// Kinds of the API that could not be listed.
    pub not_seen: Vec<NotSeen>,
}

#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub struct NodeStatus {
    pub node: String,
    pub reachable: bool,
    /// Why not, and the way out; empty when reachable.
    pub why: String,
    pub remedy: String,
    /// Version of the agent.
    pub agent: String,
    pub wire: u32,
    /// Random for each start of the agent; empty from agents that do not say.
    #[serde(default)]
    pub instance: String,
    /// Starts of the agent that this server has seen since its own: each began to count anew.
    #[serde(default)]
    pub restarts: u64,
    /// `uname -r`.
    pub kernel: String,
    /// Kernel programs that run, and by which way each is attached.
    #[serde(default)]
    pub programs: Vec<Program>,
    /// What this kernel or these rights do not allow.
    pub missing: Vec<Missing>,
    /// RFC 3339; empty when the agent does not say.
    pub certificate_expires: String,
    pub resident_bytes: u64,
    /// Requests refused because the agent was at its limit.
    pub shed_requests: u64,
}

/// One kernel program.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Program {
    /// `kfree_skb`, `dns`, …
    pub name: String,
    /// `tp_btf`, `raw_tracepoint`, …: earlier ways cost less or see more.
    pub tier: String,
}

/// One check of the agent that failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Missing {
    /// `btf`, `capability SYS_ADMIN`, …
    pub what: String,
    pub detail: String,
    /// What cannot be seen without it.
    pub lost: String,
    pub remedy: String,
}

impl Status {
    pub fn new(cluster: &str, at: Timestamp, mut nodes: Vec<NodeStatus>, not_seen: Vec<NotSeen>) -> Self {
        nodes.sort_by(|a, b| a.node.cmp(&b.node));
        Self {
            schema: STATUS_SCHEMA.to_owned(),
            cluster: cluster.to_owned(),
            at,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            wire_min: wire::WIRE_MIN,
            wire_max: wire::WIRE_MAX,
            nodes,
            not_seen,
        }
    }

    /// Every agent answers and has all rights.
    pub fn is_complete(&self) -> bool {
        self.not_seen.is_empty() && self.nodes.iter().all(|node| node.reachable && node.missing.is_empty())
    }

    pub fn text(&self, paint: Paint) -> String {
        let mut page = Page::new(paint);
        let reachable = self.nodes.iter().filter(|node| node.reachable).count();
        let tone = if reachable == self.nodes.len() { Tone::Good } else { Tone::Bad };
        page.toned("agents", &format!("{reachable} of {} reachable", self.nodes.len()), tone);
        page.line("cluster", &self.cluster);
        page.line("netdiag", &format!("{}, wire {} to {}", self.version, self.wire_min, self.wire_max));
        for node in &self.nodes {
            node.lines(&mut page, self.at);
        }
        for (index, gap) in self.not_seen.iter().enumerate() {
            page.line(if index == 0 { "not seen" } else { "" }, &format!("{}: {}; {}", gap.what, gap.why, gap.remedy));
        }
        page.finish()
    }
}

impl NodeStatus {
    /// An agent that answered with its preflight.
    pub fn reachable(node: &str, version: &AgentVersion, preflight: &Preflight) -> Self {
        let program = |check: &Check| {
            let name = check.name.strip_prefix("program ").filter(|_| check.ok)?;
            Some(Program { name: name.to_owned(), tier: check.detail.clone() })
        };
        let missing = preflight.checks.iter().filter(|check| !check.ok).map(|check| Missing {
            what: check.name.clone(),
            detail: check.detail.clone(),
            lost: check.lost.clone(),
            remedy: check.remedy.clone(),
        });
        Self {
            node: node.to_owned(),
            reachable: true,
            agent: version.agent.clone(),
            wire: version.wire,
            instance: version.instance.clone(),
            restarts: version.restarts,
            kernel: preflight.kernel.clone(),
            programs: preflight.checks.iter().filter_map(program).collect(),
            missing: missing.collect(),
            certificate_expires: preflight.certificate_expires.clone().unwrap_or_default(),
            resident_bytes: preflight.resident_bytes,
            shed_requests: preflight.shed_requests,
            ..Self::default()
        }
    }

    /// A node whose agent did not answer, or could not say what it may do.
    pub fn dark(node: &str, gap: &Gap) -> Self {
        Self { node: node.to_owned(), why: gap.why.clone(), remedy: gap.remedy.clone(), ..Self::default() }
    }

    fn lines(&self, page: &mut Page, now: Timestamp) {
        if !self.reachable {
            page.line("node", &format!("{}: not reachable: {}; {}", self.node, self.why, self.remedy));
            return;
        }
        let mebibytes = self.resident_bytes / (1024 * 1024);
        let mut words =
            format!("{}: agent {}, kernel {}, {mebibytes} MiB resident", self.node, self.agent, self.kernel);
        if self.shed_requests > 0 {
            words.push_str(&format!(", {} requests refused under load", self.shed_requests));
        }
        match self.restarts {
            0 => {}
            1 => words.push_str(", started anew once since the server looks"),
            times => words.push_str(&format!(", started anew {times} times since the server looks")),
        }
        if let Ok(expires) = self.certificate_expires.parse::<Timestamp>() {
            let left = expires.duration_since(now).as_secs();
            if left < 0 {
                words.push_str(&format!(", certificate expired {}", ago(expires, now)));
            } else if left < SOON_S {
                words.push_str(&format!(", certificate expires {}", ago(expires, now)));
            }
        }
        page.line("node", &words);
        if !self.programs.is_empty() {
            let programs: Vec<String> =
                self.programs.iter().map(|program| format!("{} ({})", program.name, program.tier)).collect();
            page.column("", "programs", &programs.join(", "));
        }
        for same in self.missing.chunk_by(|a, b| (&a.detail, &a.remedy) == (&b.detail, &b.remedy)) {
            let all = |of: fn(&Missing) -> &str, between: &str| same.iter().map(of).collect::<Vec<_>>().join(between);
            let (whats, lost) = (all(|missing| &missing.what, ", "), all(|missing| &missing.lost, "; "));
            page.column("", "missing", &format!("{whats} ({}): {lost}; {}", same[0].detail, same[0].remedy));
        }
    }
}

#[cfg(test)]
mod tests {
    use netdiag_common::GapReason;

    use super::*;

    #[test]
    fn a_dark_node_and_a_missing_right_say_the_way_out() {
        let now: Timestamp = "2026-11-21T12:00:00Z".parse().expect("a time");
        let check = |name: &str, ok: bool| Check {
            name: name.to_owned(),
            ok,
            detail: "not permitted".to_owned(),
            lost: "probes from pods".to_owned(),
            remedy: "add SYS_ADMIN to the agent's capabilities".to_owned(),
        };
        let program = |name: &str, tier: &str| Check {
            name: format!("program {name}"),
            ok: true,
            detail: tier.to_owned(),
            ..Check::default()
        };
        let preflight = Preflight {
            kernel: "6.18.0".to_owned(),
            checks: vec![check("btf", true), program("kfree_skb", "tp_btf"), check("capability SYS_ADMIN", false)],
            resident_bytes: 23 << 20,
            shed_requests: 2,
            certificate_expires: Some("2026-11-24T12:00:00Z".to_owned()),
        };
        let gap = Gap {
            what: "abilities of the agent".to_owned(),
            node: Some("n2".to_owned()),
            reason: GapReason::NoAgent,
            why: "no netdiag-node pod is ready there".to_owned(),
            remedy: "kubectl -n netdiag-system get pods -o wide".to_owned(),
        };
        let version = AgentVersion { wire: 1, agent: "0.1.0".to_owned(), instance: "b7".to_owned(), restarts: 2 };
        let nodes = vec![NodeStatus::dark("n2", &gap), NodeStatus::reachable("n1", &version, &preflight)];
        let status = Status::new("lab", now, nodes, Vec::new());
        assert!(!status.is_complete());
        insta::assert_snapshot!(status.text(Paint::Plain));
    }
}
