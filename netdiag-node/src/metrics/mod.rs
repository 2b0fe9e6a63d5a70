//! What the agent exports for dashboards and alerts: numbers with bounded labels, as OpenMetrics text and by OTLP.
//!
//! One [`Family`] list is made per look and written by both exporters. Counters count since the agent's start, or since boot
//! where the kernel counts.

use std::collections::BTreeMap;

pub(crate) mod catalogue;
mod gather;
pub mod otlp;
mod serve;
mod text;
mod times;

pub use catalogue::{ALL, page};
pub use gather::Gather;
pub use serve::serve;
pub use times::Times;

/// Port of `--metrics-listen` when none is given.
pub const METRICS_PORT: u16 = 9_444;

/// Time series of one metric. What is beyond is left out, and how many were is a metric itself.
pub const MAX_SERIES: usize = 512;

/// A metric as the documentation lists it.
#[derive(Debug)]
pub struct Metric {
    /// As Prometheus shows it: with unit and `_total`.
    pub name: &'static str,
    pub kind: Kind,
    pub unit: Unit,
    pub labels: &'static [&'static str],
    pub help: &'static str,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Counter,
    Gauge,
    /// Of [`Times`].
    Histogram,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unit {
    Seconds,
    Bytes,
    /// Things that are counted.
    One,
}

/// One metric with its values now.
#[derive(Debug, Clone)]
pub struct Family {
    pub metric: &'static Metric,
    pub samples: Vec<Sample>,
}

/// One time series.
#[derive(Debug, Clone, PartialEq)]
pub struct Sample {
    /// Values of the metric's labels, in their order.
    pub labels: Vec<String>,
    pub value: Value,
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Value {
    Count(u64),
    Number(f64),
    Times(Times),
}

impl From<u64> for Value {
    fn from(count: u64) -> Self {
        Self::Count(count)
    }
}

impl From<f64> for Value {
    fn from(number: f64) -> Self {
        Self::Number(number)
    }
}

impl From<Times> for Value {
    fn from(times: Times) -> Self {
        Self::Times(times)
    }
}

/// A subject that counts: it adds its numbers when somebody looks.
pub trait Export {
    fn export(&self, into: &mut Families);
}

/// Metrics under construction.
#[derive(Debug, Default)]
pub struct Families {
    by_name: BTreeMap<&'static str, Family>,
    omitted: BTreeMap<&'static str, u64>,
}

impl Families {
    /// Adds a time series. `labels` are the values of the metric's labels in their order.
    pub fn add(&mut self, metric: &'static Metric, labels: &[&str], value: impl Into<Value>) {
        debug_assert_eq!(labels.len(), metric.labels.len(), "{}", metric.name);
        let family = self.by_name.entry(metric.name).or_insert_with(|| Family { metric, samples: Vec::new() });
        if family.samples.len() >= MAX_SERIES {
            *self.omitted.entry(metric.name).or_default() += 1;
            return;
        }
        let labels = labels.iter().map(|label| (*label).to_owned()).collect();
        family.samples.push(Sample { labels, value: value.into() });
    }

    /// All of them by name, with what was left out.
    pub fn finish(mut self) -> Vec<Family> {
        for (name, series) in std::mem::take(&mut self.omitted) {
            self.add(&catalogue::SERIES_OMITTED, &[name], series);
        }
        self.by_name.into_values().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn series_are_bounded_and_what_is_left_out_is_told() {
        let mut families = Families::default();
        for n in 0..MAX_SERIES + 7 {
            families.add(&catalogue::DROPS, &[&n.to_string()], n as u64);
        }
        let finished = families.finish();
        let of = |metric: &Metric| finished.iter().find(|family| family.metric.name == metric.name).unwrap();
        assert_eq!(of(&catalogue::DROPS).samples.len(), MAX_SERIES);
        let omitted = &of(&catalogue::SERIES_OMITTED).samples;
        assert_eq!(*omitted, [Sample { labels: vec!["netdiag_drops_total".to_owned()], value: Value::Count(7) }]);
    }
}
