//! Tool `get_evidence`: the readings and steps behind an earlier answer.

use std::collections::BTreeSet;
use std::sync::Arc;

use netdiag_common::{Netns, Reading};
use rmcp::model::{JsonObject, Tool};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::reply::{FULL_BYTES, Reply, input, read_only};
use super::{Caller, State};
use crate::answer::schema;
use crate::ask::{Inquiry, Source, Step};
use crate::condition::{self, Read};
use crate::path::SYMPTOM_READS;

pub const NAME: &str = "get_evidence";
/// Readings of one page.
const PAGE: usize = 20;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Input {
    handle: String,
    #[serde(default)]
    node: String,
    #[serde(default)]
    topic: String,
    #[serde(default)]
    offset: usize,
}

/// Schema `netdiag.evidence/v1`.
#[derive(Serialize, JsonSchema)]
struct EvidencePage {
    /// Always `netdiag.evidence/v1`.
    schema: String,
    handle: String,
    cluster: String,
    /// What was asked in which order, of the chosen node.
    steps: Vec<Step>,
    readings: Vec<ReadingEntry>,
    /// Readings that match the filter.
    total: usize,
    /// Where the next page starts; 0 on the last one.
    next_offset: usize,
    /// What was left out to keep this short, and how to get it; empty when nothing was.
    truncated: String,
}

/// One reading, as the node or the API gave it.
#[derive(Serialize, JsonSchema)]
struct ReadingEntry {
    node: String,
    /// `host`, or the UID of a pod.
    netns: String,
    topic: String,
    /// `seen`, `absent`, `unavailable` or `not_asked`.
    state: String,
    /// What was read, or the gap; of many shapes, one per topic.
    content: Value,
}

pub fn tool() -> Tool {
    let input = json!({
        "type": "object",
        "additionalProperties": false,
        "required": ["handle"],
        "properties": {
            "handle": {"type": "string", "description": "Field handle of an earlier diagnose result"},
            "node": {"type": "string", "default": "", "description": "Only readings of this node"},
            "topic": {"type": "string", "default": "", "description": format!("Only this topic: {}", topics())},
            "offset": {"type": "integer", "minimum": 0, "default": 0, "description": "Where the page starts; next_offset of the page before"}
        }
    });
    read_only(
        NAME,
        "Show what an answer rests on",
        "Shows the raw readings and the steps behind an earlier diagnose result, by its handle. Use it when a proof needs a closer \
         look: sockets, routes, rules, probes, drops. Narrow with node and topic; rulesets are large.",
        input,
        schema::of::<EvidencePage>("netdiag.evidence/v1"),
    )
}

/// What an answer may rest on: nothing else is read for one.
fn topics() -> String {
    let of_conditions = condition::ALL.iter().flat_map(|condition| condition.reads).filter_map(|read| match read {
        Read::Topic(topic) => Some(*topic),
        Read::Kind(_) => None,
    });
    let topics: BTreeSet<&str> = of_conditions.chain(SYMPTOM_READS).collect();
    topics.into_iter().collect::<Vec<_>>().join(", ")
}

pub fn call<S: Source + Send + 'static>(state: &Arc<State<S>>, arguments: JsonObject, caller: &Caller) -> Reply {
    let input: Input = match input(arguments) {
        Ok(input) => input,
        Err(reply) => return reply,
    };
    let Some(inquiry) = state.store.get(&caller.user, &input.handle) else {
        let kept = match state.store.handles(&caller.user).as_slice() {
            [] => "none is kept: run diagnose first".to_owned(),
            handles => format!("kept are {}; run diagnose again for an older one", handles.join(", ")),
        };
        return Reply::error(format!("there is no answer with handle {:?}; {kept}", input.handle));
    };
    let page = page(&inquiry, &input);
    let text = format!("{} of {} readings, {} steps", page.readings.len(), page.total, page.steps.len());
    match serde_json::to_value(&page) {
        Ok(content) => Reply::fitted(&text, content, FULL_BYTES, "narrow with node and topic"),
        Err(error) => Reply::error(format!("the readings could not be written as JSON: {error}; narrow with topic")),
    }
}

fn page(inquiry: &Inquiry, input: &Input) -> EvidencePage {
    let evidence = &inquiry.evidence;
    let matching = evidence.readings().filter(|(need, _)| {
        (input.node.is_empty() || need.node == input.node)
            && (input.topic.is_empty() || need.topic.name() == input.topic)
    });
    let all: Vec<_> = matching.collect();
    let shown = all.iter().skip(input.offset).take(PAGE);
    let readings: Vec<ReadingEntry> = shown
        .map(|(need, reading)| ReadingEntry {
            node: need.node.clone(),
            netns: match &need.netns {
                Netns::Host => "host".to_owned(),
                Netns::Pod(uid) => uid.clone(),
            },
            topic: need.topic.name().to_owned(),
            state: state_name(reading).to_owned(),
            content: serde_json::to_value(reading).unwrap_or_default(),
        })
        .collect();
    let end = input.offset.saturating_add(readings.len());
    let steps = inquiry.steps.iter().filter(|step| input.node.is_empty() || step.node == input.node);
    EvidencePage {
        schema: "netdiag.evidence/v1".to_owned(),
        handle: input.handle.clone(),
        cluster: evidence.cluster.name.clone(),
        steps: if input.offset == 0 { steps.cloned().collect() } else { Vec::new() },
        total: all.len(),
        next_offset: if end < all.len() { end } else { 0 },
        readings,
        truncated: String::new(),
    }
}

fn state_name<T>(reading: &Reading<T>) -> &'static str {
    match reading {
        Reading::Seen { .. } => "seen",
        Reading::Absent { .. } => "absent",
        Reading::Unavailable { .. } => "unavailable",
        Reading::NotAsked { .. } => "not_asked",
    }
}
