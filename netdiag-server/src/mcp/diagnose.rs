//! Tool `diagnose`: why one connection fails, with proof, exclusions and the fix.

use std::sync::Arc;

use netdiag_common::Tier;
use netdiag_common::observation::Protocol;
use rmcp::model::{JsonObject, Tool};
use serde::Deserialize;
use serde_json::{Value, json};

use super::reply::{FULL_BYTES, Reply, SUMMARY_BYTES, input, read_only};
use super::{Caller, State, budget};
use crate::answer::{self, Answer, schema, text};
use crate::ask::{Source, ask};
use crate::question::{DEFAULT_BUDGET, Origin, Purpose, Question, Target};

pub const NAME: &str = "diagnose";

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Input {
    to: String,
    #[serde(default)]
    from: String,
    #[serde(default)]
    protocol: String,
    #[serde(default = "yes")]
    probe: bool,
    #[serde(default)]
    timeout_s: u64,
    #[serde(default)]
    detail: String,
}

fn yes() -> bool {
    true
}

pub fn tool() -> Tool {
    let input = json!({
        "type": "object",
        "additionalProperties": false,
        "required": ["to"],
        "properties": {
            "to": {"type": "string", "description": "What is dialled: service/NAMESPACE/NAME:PORT, pod/NAMESPACE/NAME:PORT, node/NAME:PORT, ip/ADDRESS:PORT (IPv6 in brackets) or name/FQDN:PORT"},
            "from": {"type": "string", "default": "", "description": "Who dials: pod/NAMESPACE/NAME or node/NAME. Without it, every node's host; a pod finds policy and DNS causes that a host cannot"},
            "protocol": {"type": "string", "enum": ["tcp", "udp"], "default": "tcp", "description": "Transport of the connection"},
            "probe": {"type": "boolean", "default": true, "description": "Send a few connection attempts from the source; without them the answer rests on what is configured and programmed"},
            "timeout_s": {"type": "integer", "minimum": 0, "maximum": 50, "default": 0, "description": "Seconds the answer may take; 0 for 20"},
            "detail": {"type": "string", "enum": ["summary", "full"], "default": "summary", "description": "full adds the steps that were taken"}
        }
    });
    read_only(
        NAME,
        "Why does this connection fail?",
        "Finds the cause of one failing connection: names it with a stable code, proves it with readings, lists what it is not and \
         what could not be seen, and gives a fix with a command that verifies it. Use it first when a connection, Service, pod, \
         address or name does not answer.",
        input,
        schema::of::<Answer>("netdiag.answer/v1"),
    )
}

pub async fn call<S: Source + Send + 'static>(state: &Arc<State<S>>, arguments: JsonObject, caller: &Caller) -> Reply {
    let input: Input = match input(arguments) {
        Ok(input) => input,
        Err(reply) => return reply,
    };
    let question = match question(&input) {
        Ok(question) => question,
        Err(text) => return Reply::error(text),
    };
    if let Some(denied) = probe_denied(state, &question, caller).await {
        return Reply::error(denied);
    }
    let Ok(_permit) = state.questions.try_acquire() else {
        return Reply::error("too many questions are being answered right now; ask again in a few seconds");
    };
    match ask(&state.source, &question).await {
        Ok(inquiry) => {
            let inquiry = Arc::new(inquiry);
            let mut answer = answer::build(&inquiry);
            answer.handle = state.store.keep(&caller.user, inquiry);
            reply(answer, input.detail == "full")
        }
        Err(error) => {
            Reply::error(format!("{error}. Check the name with kubectl get, or run scan to see every Service"))
        }
    }
}

fn question(input: &Input) -> Result<Question, String> {
    let from = match input.from.as_str() {
        "" => Origin::EveryNode,
        text => text.parse::<Origin>().map_err(|error| format!("from: {error}"))?,
    };
    let to = input.to.parse::<Target>().map_err(|error| format!("to: {error}"))?;
    let protocol = match input.protocol.as_str() {
        "" | "tcp" => Protocol::Tcp,
        "udp" => Protocol::Udp,
        other => return Err(format!("protocol: {other:?} is not tcp or udp")),
    };
    if !matches!(input.detail.as_str(), "" | "summary" | "full") {
        return Err(format!("detail: {:?} is not summary or full", input.detail));
    }
    let tier = if input.probe { Tier::Probe } else { Tier::Passive };
    Ok(Question {
        from,
        to,
        protocol,
        purpose: Purpose::Diagnose,
        tier,
        budget: budget(input.timeout_s, DEFAULT_BUDGET),
    })
}

async fn probe_denied<S>(state: &Arc<State<S>>, question: &Question, caller: &Caller) -> Option<String> {
    let gate = state.gate.as_ref().filter(|_| question.tier == Tier::Probe)?;
    let namespace = match &question.from {
        Origin::Pod { namespace, .. } => namespace.as_str(),
        Origin::Node { .. } | Origin::EveryNode => "",
    };
    let denied = gate.may_probe(caller, namespace).await.err()?;
    Some(format!("{denied}; ask again with probe: false to get an answer without probes"))
}

fn reply(mut answer: Answer, full: bool) -> Reply {
    let text = format!("{}. Handle: {}", text::summary(&answer), answer.handle);
    let narrow = format!("read them with get_evidence(handle: {:?}) or narrow with from", answer.handle);
    if !full && !answer.steps.is_empty() {
        answer.truncated = format!("{} steps left out: ask with detail: full", answer.steps.len());
        answer.steps.clear();
    }
    let bytes = if full { FULL_BYTES } else { SUMMARY_BYTES };
    match serde_json::to_value(&answer) {
        Ok(content) => Reply::fitted(&text, content, bytes, &narrow),
        Err(error) => Reply::fitted(&text, Value::Null, bytes, &error.to_string()),
    }
}
