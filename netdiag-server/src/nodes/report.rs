//! A node's report, decoded reading by reading: one that this build does not understand costs itself alone.

use jiff::Timestamp;
use netdiag_common::observation::Observation;
use netdiag_common::wire::NodeReading;
use netdiag_common::{Need, Reading};
use serde::Deserialize;
use serde_json::Value;

/// [`Report`](netdiag_common::wire::Report) with its readings still raw.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct RawReport {
    pub wire: u32,
    #[serde(default)]
    pub agent: String,
    pub at: Timestamp,
    #[serde(default)]
    pub boot_id: String,
    #[serde(default)]
    pub instance: String,
    #[serde(default)]
    pub boottime_ns: u64,
    #[serde(default)]
    pub sequence: u64,
    #[serde(default)]
    pub readings: Vec<RawReading>,
}

#[derive(Debug, Clone, Deserialize)]
pub(crate) struct RawReading {
    #[serde(default)]
    pub need: Value,
    #[serde(default)]
    pub reading: Value,
}

/// A reading that does not decode. `need` is what it answers, when at least that was understood.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Undecoded {
    pub need: Option<Box<Need>>,
    /// One sentence with the topic, the node and the decoder's complaint.
    pub why: String,
}

impl RawReading {
    pub fn decode(self) -> Result<NodeReading, Undecoded> {
        let shown = format!("the reading of {} on node {}", topic(&self.need), self.need["node"]);
        let why = |error: serde_json::Error| format!("{shown} does not decode: {error}");
        let need: Need = match serde_json::from_value(self.need) {
            Ok(need) => need,
            Err(error) => return Err(Undecoded { need: None, why: why(error) }),
        };
        match serde_json::from_value::<Reading<Observation>>(self.reading) {
            Ok(reading) => Ok(NodeReading { need, reading }),
            Err(error) => Err(Undecoded { need: Some(Box::new(need)), why: why(error) }),
        }
    }
}

/// A topic's name, also when it carries a request: `"listeners"`, `{"probe": {…}}`.
fn topic(need: &Value) -> String {
    match &need["topic"] {
        Value::String(name) => name.clone(),
        Value::Object(tagged) => tagged.keys().next().cloned().unwrap_or_default(),
        _ => "an unnamed topic".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_reading_of_a_newer_agent_costs_itself_alone() {
        let report: RawReport = serde_json::from_value(serde_json::json!({
            "wire": 1, "agent": "9.9.9", "node": "n1", "boot_id": "b", "at": "2026-01-01T00:00:00Z",
            "boottime_ns": 1, "sequence": 1, "from_the_future": {},
            "readings": [
                {"need": {"node": "n1", "netns": "host", "topic": "listeners"},
                 "reading": {"state": "seen", "value": {"topic": "listeners", "value": []}, "at": "2026-01-01T00:00:00Z"}},
                {"need": {"node": "n1", "netns": "host", "topic": "quantum"}, "reading": {"state": "seen"}},
                {"need": {"node": "n1", "netns": "host", "topic": "network"}, "reading": {"state": "entangled"}},
            ],
        }))
        .expect("a report");
        let decoded: Vec<_> = report.readings.into_iter().map(RawReading::decode).collect();
        assert!(decoded[0].is_ok(), "{decoded:?}");
        let unknown_topic = decoded[1].as_ref().expect_err("an unknown topic");
        assert!(unknown_topic.need.is_none() && unknown_topic.why.contains("quantum"), "{unknown_topic:?}");
        let unknown_state = decoded[2].as_ref().expect_err("an unknown state");
        assert_eq!(unknown_state.need.as_deref(), Some(&Need::host("n1", netdiag_common::Topic::Network)));
    }
}
