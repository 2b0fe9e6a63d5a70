//! Tool `scan`: everything that is wrong in a namespace or in the cluster, each fault once.

use std::sync::Arc;
use std::time::Duration;

use netdiag_common::Tier;
use rmcp::model::{JsonObject, Tool};
use serde::Deserialize;
use serde_json::json;

use super::reply::{Reply, SUMMARY_BYTES, input, read_only};
use super::{Caller, State, budget};
use crate::answer::escape::plain;
use crate::answer::scan::{Scan, build_scan};
use crate::answer::schema;
use crate::ask::{Scope, Source, scan};

pub const NAME: &str = "scan";
/// A scan asks more than one question; still below the patience of clients.
const DEFAULT_SCAN: Duration = Duration::from_secs(40);

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Input {
    #[serde(default)]
    namespace: String,
    #[serde(default)]
    probe: bool,
    #[serde(default)]
    timeout_s: u64,
}

pub fn tool() -> Tool {
    let input = json!({
        "type": "object",
        "additionalProperties": false,
        "properties": {
            "namespace": {"type": "string", "default": "", "description": "Only Services of this namespace; empty for all"},
            "probe": {"type": "boolean", "default": false, "description": "Also connect to every Service from every node's host"},
            "timeout_s": {"type": "integer", "minimum": 0, "maximum": 50, "default": 0, "description": "Seconds the scan may take; 0 for 40"}
        }
    });
    read_only(
        NAME,
        "What is wrong here?",
        "Judges every port of every Service from every node and lists each fault once with the paths it touches. What a policy is \
         meant to deny stays quiet. Use it without a concrete complaint, then diagnose a path for proof.",
        input,
        schema::of::<Scan>("netdiag.scan/v1"),
    )
}

pub async fn call<S: Source + Send + 'static>(state: &Arc<State<S>>, arguments: JsonObject, caller: &Caller) -> Reply {
    let input: Input = match input(arguments) {
        Ok(input) => input,
        Err(reply) => return reply,
    };
    if let (true, Some(gate)) = (input.probe, &state.gate)
        && let Err(denied) = gate.may_probe(caller, "").await
    {
        return Reply::error(format!("{denied}; scan again with probe: false"));
    }
    let Ok(_permit) = state.questions.try_acquire() else {
        return Reply::error("too many questions are being answered right now; scan again in a few seconds");
    };
    let scope = Scope {
        namespace: input.namespace,
        tier: if input.probe { Tier::Probe } else { Tier::Passive },
        budget: budget(input.timeout_s, DEFAULT_SCAN),
    };
    let (cluster, outcome) = (state.source.cluster().await, scan(&state.source, &scope).await);
    match (cluster, outcome) {
        (Ok(cluster), Ok(scanned)) => {
            if scanned.inquiries.is_empty()
                && !scope.namespace.is_empty()
                && cluster.namespaces.get("", &scope.namespace).is_none()
            {
                return Reply::error(format!(
                    "there is no namespace {:?}; scan without namespace to see all",
                    scope.namespace
                ));
            }
            reply(&build_scan(&scanned, &scope.namespace, state.source.now(), &cluster.name))
        }
        (Err(error), _) => Reply::error(error.to_string()),
        (_, Err(error)) => Reply::error(format!("{error}; an object may have gone meanwhile: scan again")),
    }
}

fn reply(scan: &Scan) -> Reply {
    let mut text = scan.summary();
    for finding in scan.findings.iter().take(10) {
        text.push_str(&format!("\n{} ({} paths): {}", finding.cause.code, finding.paths, plain(&finding.cause.claim)));
    }
    for unexplained in scan.unexplained.iter().take(10) {
        text.push_str(&format!("\nseen, not explained: {}; {}", plain(&unexplained.failing.words()), unexplained.ask));
    }
    if !scan.not_seen.is_empty() {
        text.push_str(&format!("\n{} things were not seen: see not_seen", scan.not_seen.len()));
    }
    match serde_json::to_value(scan) {
        Ok(content) => Reply::fitted(&text, content, SUMMARY_BYTES, "narrow with namespace, or diagnose one path"),
        Err(error) => Reply::error(format!("the scan could not be written as JSON: {error}")),
    }
}
