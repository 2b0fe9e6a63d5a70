//! Counters of one network namespace, by the kernel's own names, and how much each grew in the window.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// `/proc/net/{snmp,netstat,snmp6,sctp/snmp}`: every counter, also those whose names nobody here has heard of.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Counters {
    /// When the earlier look was that the deltas are measured from: at or before the start of the window where the agent
    /// had looked by then. None when this was the first look; then there are no deltas.
    #[serde(default)]
    pub since: Option<Timestamp>,
    /// Seconds from `since` to this reading; 0 without.
    #[serde(default)]
    pub window_s: f64,
    /// By `Group.Name`: `TcpExt.ListenOverflows`, `Udp.RcvbufErrors`, `Ip6.InDiscards`. Only those that are not 0.
    pub counters: BTreeMap<String, Counter>,
    /// Names of the counters that are 0. A name that is in neither list does not exist on this kernel.
    #[serde(default)]
    pub zeros: Vec<String>,
    /// What was not read, and why; empty when complete.
    #[serde(default)]
    pub left_out: Vec<String>,
}

/// A number that only grows, unless it is one of [`GAUGES`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Counter {
    pub value: u64,
    /// Growth in the window. None on the first look, and for gauges.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub delta: Option<u64>,
    /// The first look within the window that found it grown: it began at most one interval between two looks earlier.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub first_at: Option<Timestamp>,
    /// The last look that found it grown.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_at: Option<Timestamp>,
    /// It was set back within the window; what it had grown before that look is not in `delta`.
    #[serde(default, skip_serializing_if = "is_false")]
    pub was_reset: bool,
}

/// Names under `Group.Name` that are no counters: they go up and down, or are settings that the kernel prints beside them
/// (RFC 4293, RFC 4022; `MPCurrEstab` since Linux 6.10).
pub const GAUGES: [&str; 8] = [
    "Ip.Forwarding",
    "Ip.DefaultTTL",
    "Tcp.RtoAlgorithm",
    "Tcp.RtoMin",
    "Tcp.RtoMax",
    "Tcp.MaxConn",
    "Tcp.CurrEstab",
    "MPTcpExt.MPCurrEstab",
];

impl Counters {
    /// None when this kernel does not have it. One that never moved is 0 with a delta of 0.
    pub fn get(&self, name: &str) -> Option<Counter> {
        self.counters.get(name).copied().or_else(|| {
            let is_zero = self.zeros.iter().any(|zero| zero == name);
            is_zero.then(|| Counter { delta: self.since.map(|_| 0), ..Counter::default() })
        })
    }

    /// Growth per second in the window.
    pub fn rate(&self, name: &str) -> Option<f64> {
        self.get(name)?.rate(self.window_s)
    }
}

impl Counter {
    /// Growth in the window; 0 also where it is not known, on the first look.
    pub fn grown(self) -> u64 {
        self.delta.unwrap_or(0)
    }

    /// Growth per second of a window this long.
    #[expect(clippy::cast_precision_loss, reason = "a rate does not need more than 52 bits")]
    pub fn rate(&self, window_s: f64) -> Option<f64> {
        (window_s > 0.0).then_some(self.delta? as f64 / window_s)
    }

    /// Whether it grew in the window, as far as anybody looked.
    pub fn grew(&self) -> bool {
        self.delta.is_some_and(|delta| delta > 0)
    }
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "the signature that serde asks for")]
fn is_false(value: &bool) -> bool {
    !*value
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zero_is_told_apart_from_unknown() {
        let since = Some("2026-11-21T12:00:00Z".parse().unwrap());
        let zeros = vec!["TcpExt.ListenDrops".to_owned()];
        let counters = Counters { since, window_s: 60.0, zeros, ..Counters::default() };
        assert_eq!(counters.get("TcpExt.ListenDrops").unwrap().delta, Some(0));
        assert_eq!(counters.rate("TcpExt.ListenDrops"), Some(0.0));
        assert_eq!(counters.get("TcpExt.NoSuchThing"), None);
    }

    #[test]
    fn first_look_has_no_rate() {
        let counter = Counter { value: 7, ..Counter::default() };
        assert_eq!((counter.rate(0.0), counter.rate(10.0), counter.grew()), (None, None, false));
    }
}
