//! Writes metrics as OpenMetrics text, the format that Prometheus asks for.

use std::fmt;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::text::encode;
use prometheus_client::encoding::{DescriptorEncoder, MetricEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::{Registry, Unit as OpenMetricsUnit};

use super::{Family, Kind, Unit, Value};

/// Of [`text`].
pub(super) const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// The text of one look.
pub(super) fn text(families: Vec<Family>) -> String {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(Look(families)));
    let mut text = String::new();
    encode(&mut text, &registry).expect("a String takes everything");
    text
}

#[derive(Debug)]
struct Look(Vec<Family>);

impl Collector for Look {
    fn encode(&self, mut encoder: DescriptorEncoder) -> Result<(), fmt::Error> {
        for Family { metric, samples } in &self.0 {
            // The encoder adds unit and `_total` by itself.
            let base = metric.name.trim_end_matches("_total");
            let (base, unit) = match metric.unit {
                Unit::Seconds => (base.trim_end_matches("_seconds"), Some(OpenMetricsUnit::Seconds)),
                Unit::Bytes => (base.trim_end_matches("_bytes"), Some(OpenMetricsUnit::Bytes)),
                Unit::One => (base, None),
            };
            let kind = match metric.kind {
                Kind::Counter => MetricType::Counter,
                Kind::Gauge => MetricType::Gauge,
                Kind::Histogram => MetricType::Histogram,
            };
            let mut family = encoder.encode_descriptor(base, metric.help, unit.as_ref(), kind)?;
            for sample in samples {
                let labels: Vec<(&str, &str)> =
                    metric.labels.iter().copied().zip(sample.labels.iter().map(String::as_str)).collect();
                let labels = labels.as_slice();
                if labels.is_empty() {
                    write_value(&mut family, metric.kind, sample.value)?;
                } else {
                    write_value(&mut family.encode_family(&labels)?, metric.kind, sample.value)?;
                }
            }
        }
        Ok(())
    }
}

fn write_value(series: &mut MetricEncoder<'_>, kind: Kind, value: Value) -> Result<(), fmt::Error> {
    match (kind, value) {
        (_, Value::Times(times)) => {
            series.encode_histogram::<NoLabelSet>(times.sum_s(), times.count(), &times.buckets(), None)
        }
        (Kind::Counter, Value::Count(count)) => series.encode_counter::<NoLabelSet, _, u64>(&count, None),
        (Kind::Counter, Value::Number(number)) => series.encode_counter::<NoLabelSet, _, u64>(&number, None),
        (Kind::Gauge | Kind::Histogram, Value::Count(count)) => series.encode_gauge(&count),
        (Kind::Gauge | Kind::Histogram, Value::Number(number)) => series.encode_gauge(&number),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::{Families, Times, catalogue};

    #[test]
    fn names_units_and_labels_are_those_of_the_page() {
        let mut families = Families::default();
        families.add(&catalogue::DROPS, &["NETFILTER_DROP"], 7_u64);
        families.add(&catalogue::DROPS, &["NO_\"SOCKET\""], 2_u64);
        families.add(&catalogue::PROCESS_CPU, &[], 1.5);
        families.add(&catalogue::PROCESS_MEMORY, &[], 4096_u64);
        let mut times = Times::default();
        times.add(8, 3, 600);
        times.add(40, 1, 200_000_000);
        families.add(&catalogue::TCP_HANDSHAKE, &[], times);
        let text = text(families.finish());
        for line in [
            "# TYPE netdiag_drops counter",
            "netdiag_drops_total{reason=\"NETFILTER_DROP\"} 7",
            "netdiag_drops_total{reason=\"NO_\\\"SOCKET\\\"\"} 2",
            "# UNIT process_cpu_seconds seconds",
            "process_cpu_seconds_total 1.5",
            "# TYPE process_resident_memory_bytes gauge",
            "process_resident_memory_bytes 4096",
            "# TYPE netdiag_tcp_handshake_seconds histogram",
            "netdiag_tcp_handshake_seconds_count 4",
            "netdiag_tcp_handshake_seconds_sum 200.0006",
            "netdiag_tcp_handshake_seconds_bucket{le=\"0.000128\"} 0",
            "netdiag_tcp_handshake_seconds_bucket{le=\"0.000256\"} 3",
            "netdiag_tcp_handshake_seconds_bucket{le=\"+Inf\"} 4",
            "# EOF",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} is not in\n{text}");
        }
    }
}
