//! The mesh for Prometheus: OpenMetrics text with classic histograms, or protobuf with native ones beside them.
//!
//! The classic bounds are powers of two of a second, which are among those of the native ones: both count the same.

use std::collections::BTreeMap;
use std::fmt;

use hdrhistogram::Histogram;
use netdiag_common::observation::mesh::Counts;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::text::encode;
use prometheus_client::encoding::{DescriptorEncoder, MetricEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::{Registry, Unit};

use super::ledger::{Ledger, Link};
use super::{Role, Slo, judge};

mod native;

pub use native::{PROTOBUF, protobuf};

/// Of [`text`].
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
/// Time series of one metric about single links; what is beyond is counted. Zones and sorts of targets have no limit: they are
/// few.
pub const MAX_LINKS: usize = 1_024;
/// From 2^-14 s (61 µs), below which there are few round trips between two hosts, to 2^3 s, above the longest timeout.
const BOUNDS: std::ops::RangeInclusive<i32> = -14..=3;

/// A metric as the documentation lists it.
#[derive(Debug)]
pub struct Metric {
    /// As Prometheus shows it: with unit and `_total`.
    pub name: &'static str,
    pub labels: &'static str,
    pub meaning: &'static str,
}

/// Every metric of the mesh.
pub const ALL: &[Metric] = &[
    Metric {
        name: "netdiag_mesh_attempts_total",
        labels: "node target kind result",
        meaning: "Attempts by the node that made them, the sort of target (peer, dns, api, or a user's name), how (tcp, icmp, \
                  icmp4, icmp6, dns, tls, http) and how they ended; untried ones were not made",
    },
    Metric {
        name: "netdiag_mesh_attempts_late_total",
        labels: "node target kind",
        meaning: "Attempts that the agent made more than 10 ms after their time, which their times include",
    },
    Metric {
        name: "netdiag_mesh_time_seconds",
        labels: "target from_zone to_zone kind",
        meaning: "Times of answered attempts, as a histogram with bounds 2^-14 to 2^3 s, merged exactly from the agents' HDR \
                  histograms; the sum is exact to a thousandth",
    },
    Metric {
        name: "netdiag_mesh_phase_seconds",
        labels: "target from_zone kind phase",
        meaning: "Times of parts of attempts at users' targets by tls and http, as a histogram of the same bounds: lookup, connect, \
                  tls, first_byte; also of attempts that failed later",
    },
    Metric {
        name: "netdiag_mesh_link_loss_ratio",
        labels: "from to kind",
        meaning: "Share of failed attempts between two nodes in the last minutes",
    },
    Metric {
        name: "netdiag_mesh_link_p99_seconds",
        labels: "from to kind",
        meaning: "What 99 of 100 answers between two nodes took at most in the last minutes",
    },
    Metric {
        name: "netdiag_mesh_links",
        labels: "state",
        meaning: "Links between nodes, and to targets, by how they stand to their target: good, slow, loses, unknown",
    },
    Metric {
        name: "netdiag_mesh_links_omitted",
        labels: "",
        meaning: "Links beyond the 1024 that the metrics about single links show; those that break their target come first",
    },
];

/// The text of one look.
pub fn text(ledger: &Ledger, slo: &Slo) -> String {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(Page::new(ledger, slo)));
    let mut text = String::new();
    encode(&mut text, &registry).expect("a String takes everything");
    text
}

/// What is shown, apart from the ledger, which goes on.
#[derive(Debug)]
struct Page {
    attempts: Vec<([String; 3], Counts)>,
    times: Vec<([String; 4], Times)>,
    phases: Vec<([String; 4], Times)>,
    links: Vec<([String; 3], f64, Option<f64>)>,
    states: [(judge::State, u64); 4],
    omitted: u64,
}

#[derive(Debug)]
struct Times {
    sum_s: f64,
    count: u64,
    /// Upper bounds in seconds with the count of their own bucket.
    buckets: Vec<(f64, u64)>,
    /// The same in the finer buckets of a native histogram, by their index.
    native: BTreeMap<i32, u64>,
    /// Shorter than a microsecond.
    zero: u64,
}

impl Page {
    fn new(ledger: &Ledger, slo: &Slo) -> Self {
        let attempts = ledger.results().iter().map(|(series, counts)| {
            ([series.node.clone(), series.target.clone(), series.kind.name().to_owned()], counts.clone())
        });
        let times = ledger.times().iter().map(|(way, times)| {
            let zones = (way.from_zone.clone(), way.to_zone.clone());
            ([way.target.clone(), zones.0, zones.1, way.kind.name().to_owned()], Times::of(times))
        });
        let phases = ledger.parts().iter().map(|((way, phase), times)| {
            let (kind, phase) = (way.kind.name().to_owned(), phase.name().to_owned());
            ([way.target.clone(), way.from_zone.clone(), kind, phase], Times::of(times))
        });
        let phases = phases.collect();
        let links = ledger.links();
        let mut states = [judge::State::Good, judge::State::Slow, judge::State::Loses, judge::State::Unknown]
            .map(|state| (state, 0));
        let mut judged: Vec<(judge::State, &Link)> = Vec::new();
        for link in &links {
            let state = judge::state(link, slo);
            states.iter_mut().filter(|(of, _)| *of == state).for_each(|(_, count)| *count += 1);
            judged.push((state, link));
        }
        judged.retain(|(state, link)| *state != judge::State::Unknown && matches!(link.subject.role, Role::Peer(_)));
        judged.sort_by_key(|(state, _)| std::cmp::Reverse(*state));
        let omitted = judged.len().saturating_sub(MAX_LINKS) as u64;
        judged.truncate(MAX_LINKS);
        let links = judged.into_iter().filter_map(|(_, link)| shown(link)).collect();
        Self { attempts: attempts.collect(), times: times.collect(), phases, links, states, omitted }
    }
}

#[expect(clippy::cast_precision_loss, reason = "counts and microseconds of some minutes are far below 2^53")]
fn shown(link: &Link) -> Option<([String; 3], f64, Option<f64>)> {
    let Role::Peer(to) = &link.subject.role else { return None };
    let loss = link.counts.failures() as f64 / link.counts.told().max(1) as f64;
    let p99 = link.times.at_quantile(0.99).map(|us| us as f64 / 1e6);
    Some(([link.from.clone(), to.clone(), link.subject.kind.name().to_owned()], loss, p99))
}

impl Times {
    #[expect(clippy::cast_precision_loss, reason = "2^53 microseconds are 285 years")]
    fn of(histogram: &Histogram<u64>) -> Self {
        let mut buckets: Vec<(f64, u64)> = BOUNDS.map(|power| (2_f64.powi(power), 0)).collect();
        buckets.push((f64::INFINITY, 0));
        let (mut sum_s, mut native, mut zero) = (0.0, BTreeMap::new(), 0);
        for step in histogram.iter_recorded() {
            // The middle of what the histogram takes for equal: a thousandth wide.
            let time_s = histogram.median_equivalent(step.value_iterated_to()) as f64 / 1e6;
            let bucket = buckets.iter_mut().find(|(bound, _)| time_s <= *bound);
            bucket.expect("the last bound is infinite").1 += step.count_at_value();
            sum_s += time_s * step.count_at_value() as f64;
            match native::index(time_s) {
                Some(index) => *native.entry(index).or_insert(0) += step.count_at_value(),
                None => zero += step.count_at_value(),
            }
        }
        Self { sum_s, count: histogram.len(), buckets, native, zero }
    }
}

impl Collector for Page {
    fn encode(&self, mut encoder: DescriptorEncoder) -> Result<(), fmt::Error> {
        let [attempts, late, times, phases, loss, p99, states, omitted] = ALL else { return Err(fmt::Error) };
        let mut family = begin(&mut encoder, attempts, None, MetricType::Counter)?;
        for (of, counts) in &self.attempts {
            let results = counts.failed.iter().map(|(class, count)| (class.name(), *count));
            for (result, count) in results.chain([("answered", counts.answered), ("untried", counts.untried)]) {
                write(&mut family, attempts, of.iter().map(String::as_str).chain([result]), |series| {
                    series.encode_counter::<NoLabelSet, _, u64>(&count, None)
                })?;
            }
        }
        let mut family = begin(&mut encoder, late, None, MetricType::Counter)?;
        for (of, counts) in &self.attempts {
            write(&mut family, late, of.iter().map(String::as_str), |series| {
                series.encode_counter::<NoLabelSet, _, u64>(&counts.late, None)
            })?;
        }
        for (metric, all) in [(times, &self.times), (phases, &self.phases)] {
            let mut family = begin(&mut encoder, metric, Some(&Unit::Seconds), MetricType::Histogram)?;
            for (of, found) in all {
                write(&mut family, metric, of.iter().map(String::as_str), |series| {
                    series.encode_histogram::<NoLabelSet>(found.sum_s, found.count, &found.buckets, None)
                })?;
            }
        }
        let mut family = begin(&mut encoder, loss, None, MetricType::Gauge)?;
        for (of, share, _) in &self.links {
            write(&mut family, loss, of.iter().map(String::as_str), |series| series.encode_gauge(share))?;
        }
        let mut family = begin(&mut encoder, p99, Some(&Unit::Seconds), MetricType::Gauge)?;
        for (of, _, time_s) in &self.links {
            if let Some(time_s) = time_s {
                write(&mut family, p99, of.iter().map(String::as_str), |series| series.encode_gauge(time_s))?;
            }
        }
        let mut family = begin(&mut encoder, states, None, MetricType::Gauge)?;
        for (state, count) in self.states {
            write(&mut family, states, [word(state)].into_iter(), |series| series.encode_gauge(&count))?;
        }
        begin(&mut encoder, omitted, None, MetricType::Gauge)?.encode_gauge(&self.omitted)
    }
}

fn word(state: judge::State) -> &'static str {
    match state {
        judge::State::Good => "good",
        judge::State::Slow => "slow",
        judge::State::Loses => "loses",
        judge::State::Unknown => "unknown",
    }
}

fn begin<'e>(
    encoder: &'e mut DescriptorEncoder<'_>,
    metric: &Metric,
    unit: Option<&'e Unit>,
    kind: MetricType,
) -> Result<MetricEncoder<'e>, fmt::Error> {
    // The encoder adds unit and `_total` by itself.
    let base = metric.name.trim_end_matches("_total");
    let base = unit.map_or(base, |unit| base.trim_end_matches(unit.as_str()).trim_end_matches('_'));
    encoder.encode_descriptor(base, metric.meaning, unit, kind)
}

fn write<'l>(
    family: &mut MetricEncoder<'_>,
    metric: &Metric,
    values: impl Iterator<Item = &'l str>,
    value: impl FnOnce(&mut MetricEncoder<'_>) -> Result<(), fmt::Error>,
) -> Result<(), fmt::Error> {
    let labels: Vec<(&str, &str)> = metric.labels.split(' ').zip(values).collect();
    value(&mut family.encode_family(&labels.as_slice())?)
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;
    use netdiag_common::observation::mesh::{
        FailureClass, MeshReport, Phase, RoundReport, TargetReport, Times as Sent, empty,
    };

    use super::*;

    pub(super) fn ledger() -> Ledger {
        let mut times = empty::<u32>();
        // One below the shortest bound, one in the bucket up to 2^-10 s = 977 µs, one above the longest.
        for us in [40, 900, 9_000_000] {
            times.record(us).unwrap();
        }
        let failed = BTreeMap::from([(FailureClass::NoAnswer, 2)]);
        let counts = Counts { scheduled: 6, answered: 3, failed, untried: 1, open: 0, late: 1 };
        let phases = BTreeMap::from([(Phase::Connect, Sent::of(&times))]);
        let peer = TargetReport { name: "peer/n2/tcp".to_owned(), counts: counts.clone(), phases };
        let phases = BTreeMap::from([(Phase::FirstByte, Sent::of(&times)), (Phase::Total, Sent::of(&times))]);
        let web = TargetReport { name: "user/web/http".to_owned(), counts, phases };
        let (generation, started, ended) = (1, Timestamp::from_second(1_800_000_000).unwrap(), true);
        let round = RoundReport { generation, started, ended, delay: Sent::default(), targets: vec![peer, web] };
        let mut ledger = Ledger::default();
        ledger.place(&["n1", "n2"].map(|node| (node.to_owned(), "eu-\"1\"".to_owned())).into());
        ledger.record("n1", &MeshReport { rounds: vec![round], refused: Vec::new() }, started).unwrap();
        ledger
    }

    #[test]
    fn names_units_labels_and_buckets_are_those_of_the_page() {
        let text = text(&ledger(), &Slo::default());
        let way = r#"target="peer",from_zone="eu-\"1\"",to_zone="eu-\"1\"",kind="tcp""#;
        for line in [
            r#"netdiag_mesh_attempts_total{node="n1",target="peer",kind="tcp",result="no_answer"} 2"#,
            r#"netdiag_mesh_attempts_total{node="n1",target="peer",kind="tcp",result="answered"} 3"#,
            r#"netdiag_mesh_attempts_total{node="n1",target="peer",kind="tcp",result="untried"} 1"#,
            r#"netdiag_mesh_attempts_late_total{node="n1",target="peer",kind="tcp"} 1"#,
            "# TYPE netdiag_mesh_time_seconds histogram",
            &format!("netdiag_mesh_time_seconds_bucket{{le=\"0.00006103515625\",{way}}} 1"),
            &format!("netdiag_mesh_time_seconds_bucket{{le=\"0.00048828125\",{way}}} 1"),
            &format!("netdiag_mesh_time_seconds_bucket{{le=\"0.0009765625\",{way}}} 2"),
            &format!("netdiag_mesh_time_seconds_bucket{{le=\"8.0\",{way}}} 2"),
            &format!("netdiag_mesh_time_seconds_bucket{{le=\"+Inf\",{way}}} 3"),
            &format!("netdiag_mesh_time_seconds_count{{{way}}} 3"),
            r#"netdiag_mesh_link_loss_ratio{from="n1",to="n2",kind="tcp"} 0.4"#,
            r#"netdiag_mesh_links{state="loses"} 2"#,
            r#"netdiag_mesh_phase_seconds_count{target="web",from_zone="eu-\"1\"",kind="http",phase="first_byte"} 3"#,
            r#"netdiag_mesh_time_seconds_count{target="web",from_zone="eu-\"1\"",to_zone="",kind="http"} 3"#,
            "netdiag_mesh_links_omitted 0",
            "# EOF",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} is not in\n{text}");
        }
        for metric in ALL {
            assert!(text.contains(metric.name), "{} is not in\n{text}", metric.name);
        }
    }
}
