//! What a tool returns: structured content within a byte limit, and a short text. Errors are results with a next step.

use rmcp::model::{CallToolResult, ContentBlock, JsonObject, Tool, ToolAnnotations};
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::answer::{compact, escape};

/// Bytes of structured content by default: some 4 000 tokens.
pub const SUMMARY_BYTES: usize = 16 * 1024;
/// With `detail: full`, and for evidence: below the 50 000 characters beyond which clients put results aside.
pub const FULL_BYTES: usize = 40 * 1024;
/// The text next to it is for people and clients without structured content.
const TEXT_CHARACTERS: usize = 4_000;

pub enum Reply {
    Answer { text: String, content: Value },
    Error { text: String },
}

impl Reply {
    pub fn error(text: impl Into<String>) -> Self {
        Self::Error { text: text.into() }
    }

    /// `value` made to fit; what was left out is said in its field `truncated` and in the text.
    pub fn fitted(text: &str, mut content: Value, max_bytes: usize, narrow: &str) -> Self {
        escape::value(&mut content);
        // Room for the sentence itself and for escapes, which the count leaves out.
        let left_out = compact::fit(&mut content, max_bytes - max_bytes / 8, narrow);
        let mut text: String = escape::lines(text).chars().take(TEXT_CHARACTERS).collect();
        if !left_out.is_empty() {
            text.push_str(&format!("\n({left_out})"));
            let said = content.get("truncated").and_then(Value::as_str).unwrap_or_default();
            let sentence = if said.is_empty() { left_out } else { format!("{said}; {left_out}") };
            content["truncated"] = Value::String(sentence);
        }
        Self::Answer { text, content }
    }

    pub fn into_result(self) -> CallToolResult {
        match self {
            Self::Answer { text, content } => {
                let mut result = CallToolResult::structured(content);
                result.content = vec![ContentBlock::text(text)];
                result
            }
            Self::Error { text } => {
                let text: String = escape::plain(&text).chars().take(TEXT_CHARACTERS).collect();
                CallToolResult::error(vec![ContentBlock::text(text)])
            }
        }
    }
}

/// A tool that reads and never changes anything, with the schema of what it takes and returns.
pub fn read_only(name: &'static str, title: &str, description: &'static str, input: Value, output: Value) -> Tool {
    let annotations =
        ToolAnnotations::with_title(title).read_only(true).destructive(false).idempotent(true).open_world(false);
    tool(name, title, description, input, output, annotations)
}

/// A tool that sends: servers answer and log it, each call anew, and they may be outside of the cluster.
pub fn sending(name: &'static str, title: &str, description: &'static str, input: Value, output: Value) -> Tool {
    let annotations =
        ToolAnnotations::with_title(title).read_only(false).destructive(false).idempotent(false).open_world(true);
    tool(name, title, description, input, output, annotations)
}

fn tool(
    name: &'static str,
    title: &str,
    description: &'static str,
    input: Value,
    output: Value,
    annotations: ToolAnnotations,
) -> Tool {
    Tool::new(name, description, object(input))
        .with_title(title)
        .with_raw_output_schema(object(output).into())
        .with_annotations(annotations)
}

fn object(schema: Value) -> JsonObject {
    match schema {
        Value::Object(map) => map,
        other => unreachable!("a schema is an object, not {other}"),
    }
}

/// Arguments as the tool's input; the error names the argument and the tool's own arguments.
pub fn input<T: DeserializeOwned>(arguments: JsonObject) -> Result<T, Reply> {
    serde_json::from_value(Value::Object(arguments)).map_err(|error| Reply::error(format!("arguments: {error}")))
}
