//! A probe's way as the kernels saw it, in words: for whoever shows a probe's result.

use netdiag_common::observation::Owner;
use netdiag_common::observation::rules::Hook;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::trace::stopped;
use crate::evidence::Cluster;
use crate::followed::{Dropped, End, Ends, Followed, Step, What};

/// What became of a probe's first packet.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[schemars(inline)]
pub struct FollowedEntry {
    /// In one line: `sent from n1 → DNAT to 10.244.2.9:8080 → dropped on n2 by …`.
    pub way: String,
    pub end: End,
    /// The last drop on the way; none where it was not dropped.
    pub dropped: Option<DropEntry>,
    pub steps: Vec<StepEntry>,
}

/// Where and by what it was dropped.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(inline)]
pub struct DropEntry {
    pub node: String,
    /// `pod shop/client`, or `node`.
    pub place: String,
    /// `NETFILTER_DROP`, `NO_SOCKET`, … as that node's kernel names it.
    pub reason: String,
    /// The kernel's function.
    pub function: String,
    /// Of netfilter: `prerouting`, `forward`, …; empty where it was dropped elsewhere.
    pub hook: String,
    /// The rule or route that stops such a packet there; empty where none was found to.
    pub by: String,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[schemars(inline)]
pub struct StepEntry {
    pub node: String,
    /// `pod shop/client`, or `node`.
    pub place: String,
    /// Empty where no device is involved.
    pub interface: String,
    pub what: String,
}

/// Puts what was followed into words. Pure.
pub fn entry(followed: &Followed, cluster: &Cluster) -> FollowedEntry {
    let steps: Vec<StepEntry> = followed
        .steps
        .iter()
        .map(|step| StepEntry {
            node: step.node.clone(),
            place: place(cluster, &step.netns),
            interface: step.interface.clone().unwrap_or_default(),
            what: what(step),
        })
        .collect();
    let dropped = followed.steps.iter().rev().find_map(|step| match &step.what {
        What::Dropped(drop) => Some(drop_entry(step, drop, cluster)),
        _ => None,
    });
    FollowedEntry { way: way(followed), end: followed.end, dropped, steps }
}

fn drop_entry(step: &Step, drop: &Dropped, cluster: &Cluster) -> DropEntry {
    DropEntry {
        node: step.node.clone(),
        place: place(cluster, &step.netns),
        reason: drop.reason.clone(),
        function: drop.function.clone(),
        hook: drop.hook.map(hook).unwrap_or_default(),
        by: drop.by.as_deref().map(stopped).unwrap_or_default(),
    }
}

/// The turns of the way: where it begins, what it is translated to, which nodes it comes to, how it ends.
fn way(followed: &Followed) -> String {
    let Some(first) = followed.steps.first() else { return end(followed.end).to_owned() };
    let mut turns = vec![format!("sent from {}", first.node)];
    let mut node = &first.node;
    for step in &followed.steps {
        let is_last_word = matches!(step.what, What::Dropped(_) | What::Delivered);
        if step.node != *node && !is_last_word {
            turns.push(format!("to {}", step.node));
        }
        node = &step.node;
        match &step.what {
            What::Translated { from } => turns.push(translated(from, &step.ends)),
            What::Dropped(drop) => turns.push(format!("dropped on {} by {}", step.node, cause(drop))),
            What::Delivered => turns.push(format!("delivered on {}", step.node)),
            What::Sent | What::Received => {}
        }
    }
    match followed.end {
        End::Dropped => {}
        End::Delivered if turns.last().is_some_and(|turn| turn.starts_with("delivered")) => {}
        ends => turns.push(end(ends).to_owned()),
    }
    turns.join(" → ")
}

fn what(step: &Step) -> String {
    match &step.what {
        What::Sent => "sent".to_owned(),
        What::Received => format!("received: {} → {}", step.ends.source, step.ends.destination),
        What::Translated { from } => translated(from, &step.ends),
        What::Dropped(drop) => format!("dropped by {}", cause(drop)),
        What::Delivered => format!("delivered: a listener has a connection from {}", step.ends.source),
    }
}

fn translated(from: &Ends, to: &Ends) -> String {
    match (from.source == to.source, from.destination == to.destination) {
        (true, _) => format!("DNAT to {}", to.destination),
        (false, true) => format!("SNAT to {}", to.source),
        (false, false) => format!("DNAT to {}, SNAT to {}", to.destination, to.source),
    }
}

/// `NETFILTER_DROP at nft_do_chain in forward (dropped by inet t c rule 3: …)`.
fn cause(drop: &Dropped) -> String {
    let mut words = format!("{} at {}", drop.reason, drop.function);
    if let Some(hook) = drop.hook {
        words.push_str(&format!(" in {}", self::hook(hook)));
    }
    if let Some(leg) = &drop.by {
        words.push_str(&format!(" ({})", stopped(leg)));
    }
    words
}

fn hook(hook: Hook) -> String {
    format!("{hook:?}").to_lowercase()
}

fn end(end: End) -> &'static str {
    match end {
        End::Answered => "answered",
        End::Delivered => "arrived, and no answer was seen at the client",
        End::Dropped => "dropped",
        End::AnswerDropped => "arrived, and its answer was dropped",
        End::Refused => "refused",
        End::Lost => "not seen again",
        End::NotSeen => "not seen on any node",
    }
}

fn place(cluster: &Cluster, netns: &Owner) -> String {
    match netns {
        Owner::Host => "node".to_owned(),
        Owner::Pod { uid } => match cluster.pods.iter().find(|pod| pod.metadata.uid == *uid) {
            Some(pod) => format!("pod {}/{}", pod.metadata.namespace, pod.metadata.name),
            None => format!("pod {uid}"),
        },
        Owner::Unknown { .. } => "no namespace".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::evidence::Cluster;
    use crate::followed::tests::{dropped_on_the_second_node, masqueraded};

    #[test]
    fn a_drop_behind_a_translation_is_one_line() {
        let entry = entry(&dropped_on_the_second_node(), &Cluster::default());
        let wanted = "sent from n1 → DNAT to 10.244.2.9:8080 → to n2 → dropped on n2 by NETFILTER_DROP at nft_do_chain in forward";
        assert_eq!(entry.way, wanted);
        assert_eq!((entry.steps[0].place.as_str(), entry.steps[0].interface.as_str()), ("pod client", "eth0"));
        assert_eq!(entry.end, End::Dropped);
        let dropped = entry.dropped.unwrap();
        assert_eq!((dropped.node.as_str(), dropped.place.as_str(), dropped.hook.as_str()), ("n2", "node", "forward"));
        assert_eq!((dropped.reason.as_str(), dropped.function.as_str()), ("NETFILTER_DROP", "nft_do_chain"));
    }

    #[test]
    fn a_translated_source_is_named() {
        let entry = entry(&masqueraded(), &Cluster::default());
        let wanted =
            "sent from n1 → DNAT to 10.244.2.9:8080, SNAT to 10.0.0.11:40000 → to n2 → delivered on n2 → answered";
        assert_eq!(entry.way, wanted);
    }
}
