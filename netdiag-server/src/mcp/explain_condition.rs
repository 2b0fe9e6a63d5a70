//! Tool `explain_condition`: what a code means, how it is known, when it stays silent, what to do.

use rmcp::model::{JsonObject, Tool};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::reply::{FULL_BYTES, Reply, input, read_only};
use crate::answer::Paint;
use crate::answer::explain::{self, Explanation};
use crate::answer::schema;

pub const NAME: &str = "explain_condition";

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Input {
    #[serde(default)]
    code: String,
}

#[derive(Serialize, JsonSchema)]
struct Explanations {
    conditions: Vec<Explanation>,
}

pub fn tool() -> Tool {
    let input = json!({
        "type": "object",
        "additionalProperties": false,
        "properties": {
            "code": {"type": "string", "default": "", "description": "A code from causes, excluded or undecided; empty for all conditions"}
        }
    });
    read_only(
        NAME,
        "What does this code mean?",
        "Explains a condition by its code: what it means, how netdiag knows, when it stays silent, what to do, what looks alike.",
        input,
        schema::of::<Explanations>("netdiag.conditions/v1"),
    )
}

pub fn call(arguments: JsonObject) -> Reply {
    let input: Input = match input(arguments) {
        Ok(input) => input,
        Err(reply) => return reply,
    };
    let (text, conditions) = match input.code.as_str() {
        "" => {
            let all = explain::all();
            let lines: Vec<String> = all.iter().map(|entry| format!("{}: {}", entry.code, entry.means)).collect();
            (lines.join("\n"), all)
        }
        code => match explain::explain(code) {
            Ok(entry) => (entry.text(Paint::Plain), vec![entry]),
            Err(error) => return Reply::error(error.to_string()),
        },
    };
    match serde_json::to_value(Explanations { conditions }) {
        Ok(content) => Reply::fitted(&text, content, FULL_BYTES, "ask for one code"),
        Err(error) => Reply::error(format!("the explanation could not be written as JSON: {error}")),
    }
}
