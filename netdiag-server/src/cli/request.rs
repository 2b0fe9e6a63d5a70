//! A question as it is typed or sent: text that becomes a [`Question`].

use std::time::Duration;

use netdiag_common::Tier;
use netdiag_common::observation::Protocol;
use serde::{Deserialize, Serialize};

use crate::question::{DEFAULT_BUDGET, Origin, ParseError, Purpose, Question};

/// The longest answer that may be asked for: a connection held longer is more likely forgotten than wanted.
const MAX_BUDGET: Duration = Duration::from_mins(10);

/// `POST /v1/diagnose`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct DiagnoseRequest {
    /// `pod/NAMESPACE/NAME` or `node/NAME`; none for every node's host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<String>,
    pub to: String,
    #[serde(default)]
    pub protocol: TransportProtocol,
    #[serde(default)]
    pub no_probe: bool,
    #[serde(default = "default_timeout_ms")]
    pub timeout_ms: u64,
}

/// `POST /v1/scan`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ScanRequest {
    /// Empty for all.
    #[serde(default)]
    pub namespace: String,
    #[serde(default)]
    pub no_probe: bool,
    #[serde(default = "default_timeout_ms")]
    pub timeout_ms: u64,
}

/// The protocols a path can be asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
pub(super) enum TransportProtocol {
    #[default]
    Tcp,
    Udp,
}

impl From<TransportProtocol> for Protocol {
    fn from(protocol: TransportProtocol) -> Self {
        match protocol {
            TransportProtocol::Tcp => Self::Tcp,
            TransportProtocol::Udp => Self::Udp,
        }
    }
}

pub(super) fn default_timeout_ms() -> u64 {
    u64::try_from(DEFAULT_BUDGET.as_millis()).unwrap_or(u64::MAX)
}

impl DiagnoseRequest {
    pub fn question(&self) -> Result<Question, ParseError> {
        let from = self.from.as_deref().map_or(Ok(Origin::EveryNode), str::parse)?;
        Ok(Question {
            from,
            to: self.to.parse()?,
            protocol: self.protocol.into(),
            purpose: Purpose::Diagnose,
            tier: tier(self.no_probe),
            budget: budget(self.timeout_ms),
        })
    }
}

pub(super) fn tier(no_probe: bool) -> Tier {
    if no_probe { Tier::Passive } else { Tier::Probe }
}

pub(super) fn budget(timeout_ms: u64) -> Duration {
    Duration::from_millis(timeout_ms).min(MAX_BUDGET)
}

/// How long to wait for a server that was given this time: it first reads once more what changed a moment ago.
pub(super) fn patience(timeout_ms: u64) -> Duration {
    budget(timeout_ms) * 2 + Duration::from_secs(10)
}

/// `500ms`, `20s`, `2m`, or seconds without a unit; as milliseconds.
pub(super) fn parse_timeout(text: &str) -> Result<u64, String> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let factor = match &text[digits.len()..] {
        "ms" => 1,
        "" | "s" => 1_000,
        "m" => 60_000,
        _ => 0,
    };
    match digits.parse::<u64>() {
        Ok(number) if number > 0 && factor > 0 => Ok(number.saturating_mul(factor)),
        _ => Err("use a time such as 500ms, 20s or 2m".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_with_and_without_unit() {
        assert_eq!(parse_timeout("500ms"), Ok(500));
        assert_eq!(parse_timeout("20"), Ok(20_000));
        assert_eq!(parse_timeout("2m"), Ok(120_000));
        for wrong in ["", "0", "s", "-1s", "5h", "1.5s"] {
            assert!(parse_timeout(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_question_without_source_starts_at_every_node() {
        let request: DiagnoseRequest = serde_json::from_str(r#"{"to": "service/shop/web:80"}"#).expect("a request");
        let question = request.question().expect("a question");
        assert_eq!(question.from, Origin::EveryNode);
        assert_eq!(question.tier, Tier::Probe);
    }
}
