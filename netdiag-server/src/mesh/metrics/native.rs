//! The same metrics in Prometheus' protobuf format, where histograms are native and classic at once: a Prometheus that scrapes native
//! histograms asks for it, since its text formats have no words for them.
//!
//! Messages are those of `io/prometheus/client/metrics.proto` of prometheus/client_model, v0.6, as far as they are used here.

use prost::Message;

use super::super::ledger::Ledger;
use super::super::{Slo, judge};
use super::{ALL, Metric, Page, Times, word};

/// `Content-Type` of [`protobuf`]. Each family has its length before it.
pub const PROTOBUF: &str =
    "application/vnd.google.protobuf; proto=io.prometheus.client.MetricFamily; encoding=delimited";
/// Eight buckets for each power of two: each is 9 % wide, and the HDR histograms they are made from are exact to 0.1 %.
const SCHEMA: i32 = 3;
const BUCKETS_PER_DOUBLING: f64 = 8.0;
/// What client_golang takes (`DefNativeHistogramZeroThreshold`, 2^-128). Above 0 it also marks a histogram without times as native.
const ZERO_THRESHOLD: f64 = 2.938_735_877_055_719e-39;

/// `MetricType`.
const COUNTER: i32 = 0;
const GAUGE: i32 = 1;
const HISTOGRAM: i32 = 4;

#[derive(Clone, PartialEq, Message)]
struct MetricFamily {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(string, tag = "2")]
    help: String,
    #[prost(int32, tag = "3")]
    kind: i32,
    #[prost(message, repeated, tag = "4")]
    metric: Vec<Series>,
}

/// Its `Metric`.
#[derive(Clone, PartialEq, Message)]
struct Series {
    #[prost(message, repeated, tag = "1")]
    label: Vec<LabelPair>,
    #[prost(message, optional, tag = "2")]
    gauge: Option<Value>,
    #[prost(message, optional, tag = "3")]
    counter: Option<Value>,
    #[prost(message, optional, tag = "7")]
    histogram: Option<Histogram>,
}

#[derive(Clone, PartialEq, Message)]
struct LabelPair {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(string, tag = "2")]
    value: String,
}

/// Its `Gauge` and `Counter`. Optional, so that 0 is written: in proto2 what is missing is not there.
#[derive(Clone, PartialEq, Message)]
struct Value {
    #[prost(double, optional, tag = "1")]
    value: Option<f64>,
}

#[derive(Clone, PartialEq, Message)]
struct Histogram {
    #[prost(uint64, optional, tag = "1")]
    sample_count: Option<u64>,
    #[prost(double, optional, tag = "2")]
    sample_sum: Option<f64>,
    /// The classic ones.
    #[prost(message, repeated, tag = "3")]
    bucket: Vec<Bucket>,
    #[prost(sint32, optional, tag = "5")]
    schema: Option<i32>,
    #[prost(double, optional, tag = "6")]
    zero_threshold: Option<f64>,
    #[prost(uint64, optional, tag = "7")]
    zero_count: Option<u64>,
    #[prost(message, repeated, tag = "12")]
    positive_span: Vec<BucketSpan>,
    /// From each bucket's count to the next one's, the first from 0.
    #[prost(sint64, repeated, packed = "false", tag = "13")]
    positive_delta: Vec<i64>,
}

#[derive(Clone, PartialEq, Message)]
struct Bucket {
    #[prost(uint64, optional, tag = "1")]
    cumulative_count: Option<u64>,
    #[prost(double, optional, tag = "2")]
    upper_bound: Option<f64>,
}

/// Buckets in a row.
#[derive(Clone, PartialEq, Message)]
struct BucketSpan {
    /// From the end of the span before; of the first one its first index.
    #[prost(sint32, optional, tag = "1")]
    offset: Option<i32>,
    #[prost(uint32, optional, tag = "2")]
    length: Option<u32>,
}

/// The page of one look.
pub fn protobuf(ledger: &Ledger, slo: &Slo) -> Vec<u8> {
    families(&Page::new(ledger, slo)).iter().flat_map(Message::encode_length_delimited_to_vec).collect()
}

/// The bucket of a time: above 2^((index - 1) / 8) s, and at most 2^(index / 8) s. None of no time at all.
#[expect(clippy::cast_possible_truncation, reason = "from a microsecond to minutes it is within ±200")]
pub(super) fn index(time_s: f64) -> Option<i32> {
    (time_s > 0.0).then(|| (time_s.log2() * BUCKETS_PER_DOUBLING).ceil() as i32)
}

#[expect(clippy::cast_precision_loss, reason = "counts are far below 2^53")]
fn families(page: &Page) -> Vec<MetricFamily> {
    let [attempts, late, times, phases, loss, p99, states, omitted] = ALL else { return Vec::new() };
    let results = page.attempts.iter().flat_map(|(of, counts)| {
        let failed = counts.failed.iter().map(|(class, count)| (class.name(), *count));
        let all = failed.chain([("answered", counts.answered), ("untried", counts.untried)]);
        all.map(move |(result, count)| counter(attempts, of.iter().map(String::as_str).chain([result]), count as f64))
    });
    let late_ones = page.attempts.iter().map(|(of, counts)| counter(late, words(of), counts.late as f64));
    let p99s = page.links.iter().filter_map(|(of, _, time_s)| Some(gauge(p99, words(of), (*time_s)?)));
    let by_state = page
        .states
        .iter()
        .map(|(state, count): &(judge::State, u64)| gauge(states, [word(*state)].into_iter(), *count as f64));
    vec![
        family(attempts, COUNTER, results.collect()),
        family(late, COUNTER, late_ones.collect()),
        family(times, HISTOGRAM, page.times.iter().map(|(of, found)| histogram(times, words(of), found)).collect()),
        family(phases, HISTOGRAM, page.phases.iter().map(|(of, found)| histogram(phases, words(of), found)).collect()),
        family(loss, GAUGE, page.links.iter().map(|(of, share, _)| gauge(loss, words(of), *share)).collect()),
        family(p99, GAUGE, p99s.collect()),
        family(states, GAUGE, by_state.collect()),
        family(omitted, GAUGE, vec![gauge(omitted, std::iter::empty(), page.omitted as f64)]),
    ]
}

fn family(metric: &Metric, kind: i32, series: Vec<Series>) -> MetricFamily {
    let (name, help) = (metric.name.to_owned(), metric.meaning.to_owned());
    MetricFamily { name, help, kind, metric: series }
}

fn words(of: &[String]) -> impl Iterator<Item = &str> {
    of.iter().map(String::as_str)
}

fn labelled<'l>(metric: &Metric, values: impl Iterator<Item = &'l str>) -> Series {
    let pair = |(name, value): (&str, &str)| LabelPair { name: name.to_owned(), value: value.to_owned() };
    Series { label: metric.labels.split(' ').zip(values).map(pair).collect(), ..Series::default() }
}

fn counter<'l>(metric: &Metric, labels: impl Iterator<Item = &'l str>, value: f64) -> Series {
    Series { counter: Some(Value { value: Some(value) }), ..labelled(metric, labels) }
}

fn gauge<'l>(metric: &Metric, labels: impl Iterator<Item = &'l str>, value: f64) -> Series {
    Series { gauge: Some(Value { value: Some(value) }), ..labelled(metric, labels) }
}

fn histogram<'l>(metric: &Metric, labels: impl Iterator<Item = &'l str>, times: &Times) -> Series {
    let mut cumulative = 0;
    let bucket = |(bound, count): &(f64, u64)| {
        cumulative += count;
        Bucket { cumulative_count: Some(cumulative), upper_bound: Some(*bound) }
    };
    let bucket = times.buckets.iter().map(bucket).collect();
    let mut found = Histogram {
        sample_count: Some(times.count),
        sample_sum: Some(times.sum_s),
        bucket,
        schema: Some(SCHEMA),
        zero_threshold: Some(ZERO_THRESHOLD),
        zero_count: Some(times.zero),
        positive_span: Vec::new(),
        positive_delta: Vec::new(),
    };
    let (mut next, mut before) = (0, 0);
    for (index, count) in &times.native {
        match found.positive_span.last_mut() {
            Some(span) if *index == next => span.length = span.length.map(|length| length + 1),
            _ => found.positive_span.push(BucketSpan { offset: Some(index - next), length: Some(1) }),
        }
        let count = i64::try_from(*count).unwrap_or(i64::MAX);
        found.positive_delta.push(count - before);
        (next, before) = (index + 1, count);
    }
    Series { histogram: Some(found), ..labelled(metric, labels) }
}

#[cfg(test)]
mod tests {
    use super::super::tests::ledger;
    use super::*;

    /// As a scraper reads it.
    fn decoded(mut bytes: &[u8]) -> Vec<MetricFamily> {
        let mut families = Vec::new();
        while !bytes.is_empty() {
            families.push(MetricFamily::decode_length_delimited(&mut bytes).unwrap());
        }
        families
    }

    #[test]
    fn what_is_served_is_read_again() {
        let families = decoded(&protobuf(&ledger(), &Slo::default()));
        let names: Vec<&str> = families.iter().map(|family| &*family.name).collect();
        assert_eq!(names, ALL.iter().map(|metric| metric.name).collect::<Vec<_>>());
        let times = &families[2];
        let peer = times.metric.iter().find(|series| series.label[0].value == "peer").unwrap();
        let labels: Vec<&str> = peer.label.iter().map(|label| &*label.name).collect();
        assert_eq!(labels, ["target", "from_zone", "to_zone", "kind"]);
        let found = peer.histogram.as_ref().unwrap();
        assert_eq!((found.sample_count, found.schema, found.zero_count), (Some(3), Some(SCHEMA), Some(0)));
        // 40 µs, 900 µs and 9 s: log2 is -14.61, -10.12 and 3.17.
        let mut index = 0;
        let mut buckets = Vec::new();
        let mut deltas = found.positive_delta.iter();
        let mut count = 0;
        for span in &found.positive_span {
            index += span.offset.unwrap();
            for _ in 0..span.length.unwrap() {
                count += deltas.next().unwrap();
                buckets.push((index, count));
                index += 1;
            }
        }
        assert_eq!(buckets, [(-116, 1), (-80, 1), (26, 1)]);
        assert_eq!(deltas.next(), None);
        let last = found.bucket.last().unwrap();
        assert_eq!((last.cumulative_count, last.upper_bound), (Some(3), Some(f64::INFINITY)));
        let attempts = &families[0].metric;
        let value = |result: &str| {
            let is_it = |series: &&Series| series.label[1].value == "peer" && series.label[3].value == result;
            attempts.iter().find(is_it)?.counter.as_ref()?.value
        };
        assert_eq!([value("answered"), value("no_answer"), value("untried")], [Some(3.0), Some(2.0), Some(1.0)]);
        let omitted = families[7].metric[0].gauge.as_ref().unwrap();
        assert_eq!(omitted.value, Some(0.0), "0 is written");
    }

    #[test]
    fn bounds_of_buckets_are_those_of_the_schema() {
        // A time at a bucket's bound is in it: 2^(8/8), 2^(0/8), 2^(-8/8).
        assert_eq!([2.0, 1.0, 0.5].map(index), [Some(8), Some(0), Some(-8)]);
        assert_eq!([1.01, 1.09, 1.1].map(index), [Some(1), Some(1), Some(2)]);
        assert_eq!(index(0.0), None);
    }

    #[test]
    fn the_wire_is_that_of_the_message() {
        // Hand-made from metrics.proto: name "a", type GAUGE, one metric whose gauge is 1.
        let series = Series { gauge: Some(Value { value: Some(1.0) }), ..Series::default() };
        let family = MetricFamily { name: "a".to_owned(), help: String::new(), kind: GAUGE, metric: vec![series] };
        let gauge = [0x12, 0x09, 0x09, 0, 0, 0, 0, 0, 0, 0xf0, 0x3f];
        let wanted = [&[0x0a, 1, b'a', 0x18, 1, 0x22, 11][..], &gauge].concat();
        assert_eq!(family.encode_to_vec(), wanted);
        let empty = Times { sum_s: 0.0, count: 0, buckets: Vec::new(), native: [].into(), zero: 0 };
        let found = histogram(&ALL[7], std::iter::empty(), &empty).histogram.unwrap();
        assert!(found.zero_threshold > Some(0.0), "or nothing tells that it is native");
    }
}
