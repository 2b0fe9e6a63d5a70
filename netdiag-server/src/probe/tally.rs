//! What came of a series, made so that parts of it can be joined without losing anything: counts add, histograms add bucket by
//! bucket, and failures stay told by what they were.

use std::collections::BTreeMap;
use std::io::Cursor;
use std::net::SocketAddr;

use data_encoding::BASE64;
use hdrhistogram::Histogram;
use hdrhistogram::serialization::{Deserializer, Serializer, V2Serializer};
use netdiag_common::observation::series::{FailureClass, PhaseTimes, ProbeStage, SeriesAttempt, SeriesResult};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Attempts that are told one by one; failed ones first.
const MAX_KEPT: usize = 1_000;

/// Identities: `asked = made + untried`, `made = succeeded + failed`, `made = attempts + not_kept`.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
pub struct Tally {
    pub asked: u64,
    pub made: u64,
    pub succeeded: u64,
    pub failed: u64,
    /// Not begun: the time was over, or the node's caps were reached.
    pub untried: u64,
    /// Why the first of them was not tried; empty when all were.
    pub untried_because: String,
    /// Begun more than a millisecond after their scheduled time.
    pub late: u64,
    /// By what they were, the most frequent first.
    pub failures: Vec<FailureCount>,
    /// Endpoints behind a translated address, as the node's connection tracking has them.
    pub endpoints: Vec<EndpointCount>,
    /// Times of the attempts that succeeded, by phase.
    pub times: Vec<PhaseEntry>,
    pub attempts: Vec<AttemptEntry>,
    pub not_kept: u64,
    /// What could not be seen beside the attempts.
    pub unseen: Vec<String>,
    /// From the request to the first packet, microseconds.
    pub entered_us: Option<u64>,
}

/// Attempts that failed in the same way.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct FailureCount {
    pub class: FailureClass,
    pub stage: ProbeStage,
    /// `ECONNREFUSED`; empty where the kernel named none.
    pub errno: String,
    /// Who sent the reset or the ICMP error; empty for silence and for what the client's own kernel decided.
    pub said_by: String,
    /// `port unreachable (type 3, code 3)`; empty where no ICMP error said so.
    pub icmp: String,
    pub count: u64,
    /// From the attempt's start to its end, microseconds.
    pub min_us: u64,
    pub max_us: u64,
    /// Of the first one.
    pub why: String,
}

/// Attempts that were led to one endpoint.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
pub struct EndpointCount {
    /// `10.244.1.4:8080`
    pub endpoint: String,
    /// `pod shop/web-1 on n1`; empty when nobody of the cluster has the address.
    pub object: String,
    pub made: u64,
    pub failed: u64,
    /// By class.
    pub failures: BTreeMap<String, u64>,
    /// The exact 95 % interval of its chance to fail (Clopper-Pearson).
    pub low: f64,
    pub high: f64,
    /// How likely it is to differ that much from the others by chance (Fisher's exact test); none where there are no others.
    pub p: Option<f64>,
}

/// How long one phase took, over all attempts that got through it, microseconds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct PhaseEntry {
    /// `connect`, `lookup`, `tls`, `first_byte`, `total`, `rtt`.
    pub phase: String,
    pub count: u64,
    pub min_us: u64,
    pub p50_us: u64,
    pub p90_us: u64,
    pub p99_us: u64,
    pub max_us: u64,
    /// Base64 of HdrHistogram's V2 serialization.
    pub histogram: String,
}

/// One attempt.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct AttemptEntry {
    pub number: u64,
    /// Begun so long after the series, microseconds.
    pub at_us: u64,
    pub elapsed_us: u64,
    pub source: String,
    pub to: String,
    /// Where the node's connection tracking translated `to`; empty where it did not, or was not seen to.
    pub endpoint: String,
    /// None for a success.
    pub failure: Option<AttemptFailure>,
    /// By kind of probe.
    pub report: serde_json::Value,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct AttemptFailure {
    pub class: FailureClass,
    pub stage: ProbeStage,
    pub errno: String,
    pub said_by: String,
    pub icmp: String,
    pub why: String,
}

impl Tally {
    /// Of one answer of an agent. `known` names the pod that has an address.
    pub fn of(result: &SeriesResult, known: impl Fn(SocketAddr) -> String) -> Self {
        let mut tally = Self {
            asked: result.asked.into(),
            made: result.made.into(),
            succeeded: result.succeeded.into(),
            failed: result.failed.into(),
            untried: result.untried.into(),
            untried_because: result.untried_because.clone().unwrap_or_default(),
            late: result.late.into(),
            times: result.times.iter().map(PhaseEntry::of).collect(),
            not_kept: result.not_kept.into(),
            unseen: result.unseen.clone(),
            entered_us: result.entered_us,
            ..Self::default()
        };
        for attempt in &result.attempts {
            tally.count(attempt, &known);
            tally.attempts.push(AttemptEntry::of(attempt));
        }
        tally.arrange();
        tally
    }

    /// The same of a request that brought nothing.
    pub fn none(asked: u32, why: &str) -> Self {
        Self { asked: asked.into(), untried: asked.into(), untried_because: why.to_owned(), ..Self::default() }
    }

    fn count(&mut self, attempt: &SeriesAttempt, known: &impl Fn(SocketAddr) -> String) {
        if let Some(endpoint) = attempt.endpoint {
            let mut entry = EndpointCount { endpoint: endpoint.to_string(), made: 1, ..EndpointCount::default() };
            entry.object = known(endpoint);
            if let Some(failure) = &attempt.failure {
                entry.failed = 1;
                entry.failures.insert(failure.class.to_string(), 1);
            }
            self.add_endpoint(entry);
        }
        let Some(failure) = AttemptEntry::of(attempt).failure else { return };
        let AttemptFailure { class, stage, errno, said_by, icmp, why } = failure;
        let (min_us, max_us) = (attempt.elapsed_us, attempt.elapsed_us);
        self.add_failure(FailureCount { class, stage, errno, said_by, icmp, count: 1, min_us, max_us, why });
    }

    /// The same series, continued `later_us` after this one began.
    pub fn join(&mut self, next: Self, later_us: u64) {
        let offset = self.asked;
        self.asked += next.asked;
        self.made += next.made;
        self.succeeded += next.succeeded;
        self.failed += next.failed;
        self.untried += next.untried;
        if self.untried_because.is_empty() {
            self.untried_because = next.untried_because;
        }
        self.late += next.late;
        self.not_kept += next.not_kept;
        self.entered_us = self.entered_us.or(next.entered_us);
        next.failures.into_iter().for_each(|failure| self.add_failure(failure));
        next.endpoints.into_iter().for_each(|endpoint| self.add_endpoint(endpoint));
        next.times.into_iter().for_each(|times| self.add_times(times));
        for why in next.unseen {
            if !self.unseen.contains(&why) {
                self.unseen.push(why);
            }
        }
        self.attempts.extend(next.attempts.into_iter().map(|mut attempt| {
            attempt.number += offset;
            attempt.at_us += later_us;
            attempt
        }));
        self.arrange();
    }

    fn add_failure(&mut self, failure: FailureCount) {
        let key = |f: &FailureCount| (f.class, f.stage, f.errno.clone(), f.said_by.clone(), f.icmp.clone());
        match self.failures.iter_mut().find(|known| key(known) == key(&failure)) {
            Some(known) => {
                known.count += failure.count;
                known.min_us = known.min_us.min(failure.min_us);
                known.max_us = known.max_us.max(failure.max_us);
            }
            None => self.failures.push(failure),
        }
    }

    fn add_endpoint(&mut self, endpoint: EndpointCount) {
        match self.endpoints.iter_mut().find(|known| known.endpoint == endpoint.endpoint) {
            Some(known) => {
                known.made += endpoint.made;
                known.failed += endpoint.failed;
                for (class, count) in endpoint.failures {
                    *known.failures.entry(class).or_default() += count;
                }
            }
            None => self.endpoints.push(endpoint),
        }
    }

    fn add_times(&mut self, times: PhaseEntry) {
        let Some(known) = self.times.iter_mut().find(|known| known.phase == times.phase) else {
            self.times.push(times);
            return;
        };
        if let Err(why) = known.add(&times) {
            let why = format!(
                "times of phase {} of a part of the series: {why}; run the same version everywhere",
                times.phase
            );
            if !self.unseen.contains(&why) {
                self.unseen.push(why);
            }
        }
    }

    /// Most frequent failures first, endpoints by address, and no more attempts than are kept.
    fn arrange(&mut self) {
        self.failures.sort_by(|a, b| b.count.cmp(&a.count).then_with(|| a.why.cmp(&b.why)));
        self.endpoints.sort_by(|a, b| a.endpoint.cmp(&b.endpoint));
        if self.attempts.len() > MAX_KEPT {
            self.attempts.sort_by_key(|attempt| (attempt.failure.is_none(), attempt.number));
            self.not_kept += (self.attempts.len() - MAX_KEPT) as u64;
            self.attempts.truncate(MAX_KEPT);
            self.attempts.sort_by_key(|attempt| attempt.number);
        }
        super::endpoints::judge(&mut self.endpoints);
    }

    /// Everything that was asked for was tried, and worked.
    pub fn is_well(&self) -> bool {
        self.made > 0 && self.failed == 0 && self.untried == 0
    }

    /// The report of the first attempt that has one, as this type.
    pub fn report<T: serde::de::DeserializeOwned>(&self) -> Option<T> {
        self.attempts.iter().find_map(|attempt| serde_json::from_value(attempt.report.clone()).ok())
    }
}

impl PhaseEntry {
    fn of(times: &PhaseTimes) -> Self {
        Self {
            phase: times.phase.clone(),
            count: times.count,
            min_us: times.min_us,
            p50_us: times.p50_us,
            p90_us: times.p90_us,
            p99_us: times.p99_us,
            max_us: times.max_us,
            histogram: times.histogram.clone(),
        }
    }

    /// Nothing changes when one of the histograms cannot be read.
    fn add(&mut self, other: &Self) -> Result<(), String> {
        let mut sum = decoded(&self.histogram)?;
        sum.auto(true);
        sum.add(decoded(&other.histogram)?).map_err(|error| error.to_string())?;
        let histogram = encoded(&sum)?;
        // The histogram's ends are those of its buckets; the agents' are exact.
        *self = Self {
            phase: std::mem::take(&mut self.phase),
            count: self.count + other.count,
            min_us: self.min_us.min(other.min_us),
            max_us: self.max_us.max(other.max_us),
            p50_us: sum.value_at_quantile(0.5),
            p90_us: sum.value_at_quantile(0.9),
            p99_us: sum.value_at_quantile(0.99),
            histogram,
        };
        Ok(())
    }
}

pub(crate) fn decoded(text: &str) -> Result<Histogram<u64>, String> {
    let bytes = BASE64.decode(text.as_bytes()).map_err(|error| format!("its histogram is no base64: {error}"))?;
    let read = Deserializer::new().deserialize::<u64, _>(&mut Cursor::new(bytes));
    read.map_err(|error| format!("its histogram does not decode: {error}"))
}

pub(crate) fn encoded(histogram: &Histogram<u64>) -> Result<String, String> {
    let mut bytes = Vec::new();
    V2Serializer::new()
        .serialize(histogram, &mut bytes)
        .map_err(|error| format!("cannot write a histogram: {error}"))?;
    Ok(BASE64.encode(&bytes))
}

impl AttemptEntry {
    fn of(attempt: &SeriesAttempt) -> Self {
        let text = |address: Option<SocketAddr>| address.map(super::shots::shown).unwrap_or_default();
        Self {
            number: attempt.number.into(),
            at_us: attempt.at_us,
            elapsed_us: attempt.elapsed_us,
            source: text(attempt.source),
            to: text(attempt.to),
            endpoint: text(attempt.endpoint),
            failure: attempt.failure.as_ref().map(|failure| AttemptFailure {
                class: failure.class,
                stage: failure.stage,
                errno: failure.errno.clone().unwrap_or_default(),
                said_by: failure.said_by.as_ref().map(ToString::to_string).unwrap_or_default(),
                icmp: failure
                    .icmp
                    .as_ref()
                    .map(|icmp| format!("{} (type {}, code {})", icmp.words, icmp.kind, icmp.code))
                    .unwrap_or_default(),
                why: failure.why.clone(),
            }),
            report: serde_json::to_value(&attempt.report).unwrap_or_default(),
        }
    }
}

#[cfg(test)]
mod tests;
