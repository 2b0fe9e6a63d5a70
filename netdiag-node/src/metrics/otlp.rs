//! Sends metrics by OTLP over HTTP with protobuf. Settings are the ones that OpenTelemetry's exporters share.
//!
//! The messages are OpenTelemetry's own; its SDK is left out, since the numbers are not kept in instruments but read when they
//! are sent.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use jiff::Timestamp;
use opentelemetry_proto::tonic::collector::metrics::v1::ExportMetricsServiceRequest;
use opentelemetry_proto::tonic::common::v1::any_value::Value as Any;
use opentelemetry_proto::tonic::common::v1::{AnyValue, InstrumentationScope, KeyValue};
use opentelemetry_proto::tonic::metrics::v1::metric::Data;
use opentelemetry_proto::tonic::metrics::v1::number_data_point::Value as Point;
use opentelemetry_proto::tonic::metrics::v1::{
    AggregationTemporality, Gauge, Histogram, HistogramDataPoint, Metric, NumberDataPoint, ResourceMetrics,
    ScopeMetrics, Sum,
};
use opentelemetry_proto::tonic::resource::v1::Resource;
use prost::Message as _;
use reqwest::header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;

use super::{Export, Families, Family, Gather, Kind, Sample, Unit, Value, catalogue};
use crate::clock;
use crate::host::file;

/// Where and how to send.
#[derive(Debug, Clone, clap::Args)]
pub struct Settings {
    /// Send metrics by OTLP to this collector, http://HOST:4318; nothing is sent without it
    #[arg(long = "otlp-endpoint", env = "OTEL_EXPORTER_OTLP_ENDPOINT")]
    pub endpoint: Option<String>,
    /// Headers of each export: KEY=VALUE,KEY=VALUE
    #[arg(long = "otlp-headers", env = "OTEL_EXPORTER_OTLP_HEADERS", hide_env_values = true, default_value = "")]
    pub headers: String,
    /// PEM file with the authority that signed the collector's certificate, for https
    #[arg(long = "otlp-certificate", env = "OTEL_EXPORTER_OTLP_CERTIFICATE")]
    pub certificate: Option<PathBuf>,
    /// Milliseconds between two exports
    #[arg(long = "otlp-interval-ms", env = "OTEL_METRIC_EXPORT_INTERVAL", default_value_t = 60_000,
          value_parser = clap::value_parser!(u64).range(1_000..))]
    pub interval_ms: u64,
}

/// Why nothing can be sent. The agent does not start: a setting is wrong.
#[derive(Debug, thiserror::Error)]
pub enum OtlpError {
    #[error("{0:?} is not a header: expected KEY=VALUE, separated by commas")]
    Header(String),
    #[error(transparent)]
    Certificate(#[from] crate::host::ReadError),
    #[error("{endpoint} needs OTEL_EXPORTER_OTLP_CERTIFICATE: the agent trusts no authority by default")]
    NoAuthority { endpoint: String },
    #[error("cannot make a client for {endpoint}: {why}")]
    Client { endpoint: String, why: String },
}

/// How many exports worked.
#[derive(Debug, Default)]
pub struct Exports {
    succeeded: AtomicU64,
    failed: AtomicU64,
}

/// A collector may be far away, but the next export waits.
const TIMEOUT: Duration = Duration::from_secs(10);
const CERTIFICATE_BYTES: u64 = 256 * 1024;

/// A configured sender.
pub struct Otlp {
    url: String,
    client: reqwest::Client,
    every: Duration,
}

impl Otlp {
    /// None when no endpoint is set.
    pub fn new(settings: &Settings) -> Result<Option<Self>, OtlpError> {
        let Some(endpoint) = settings.endpoint.clone().filter(|endpoint| !endpoint.is_empty()) else { return Ok(None) };
        let failed = |why: String| OtlpError::Client { endpoint: endpoint.clone(), why };
        let mut roots = rustls::RootCertStore::empty();
        match &settings.certificate {
            Some(path) => {
                let text = file::text(path, CERTIFICATE_BYTES)?;
                for certificate in CertificateDer::pem_slice_iter(text.as_bytes()) {
                    let certificate = certificate.map_err(|error| failed(error.to_string()))?;
                    roots.add(certificate).map_err(|error| failed(error.to_string()))?;
                }
            }
            None if endpoint.starts_with("https:") => return Err(OtlpError::NoAuthority { endpoint }),
            None => {}
        }
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let tls = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|error| failed(error.to_string()))?
            .with_root_certificates(roots)
            .with_no_client_auth();
        let client = reqwest::Client::builder()
            .tls_backend_preconfigured(tls)
            .default_headers(headers(&settings.headers)?)
            .redirect(reqwest::redirect::Policy::none())
            .no_proxy()
            .timeout(TIMEOUT)
            .build()
            .map_err(|error| failed(error.to_string()))?;
        let url = format!("{}/v1/metrics", endpoint.trim_end_matches('/'));
        Ok(Some(Self { url, client, every: Duration::from_millis(settings.interval_ms) }))
    }

    /// For ever. The first failure of a row is logged, every one is counted.
    pub async fn run(self, gather: Arc<Gather>) {
        let mut complained = false;
        loop {
            tokio::time::sleep(self.every).await;
            let failure = self.send(&gather).await.err();
            let counter = if failure.is_some() { &gather.exports().failed } else { &gather.exports().succeeded };
            counter.fetch_add(1, Ordering::Relaxed);
            if let Some(error) = &failure
                && !complained
            {
                tracing::warn!(url = self.url, error, "metrics were not exported");
            }
            complained = failure.is_some();
        }
    }

    async fn send(&self, gather: &Arc<Gather>) -> Result<(), String> {
        let look = Arc::clone(gather);
        let message = tokio::task::spawn_blocking(move || request(&look, look.families(), clock::now()))
            .await
            .map_err(|_| "the look at the node panicked".to_owned())?;
        let request = self.client.post(&self.url).header(CONTENT_TYPE, "application/x-protobuf");
        let response = request.body(message.encode_to_vec()).send().await.map_err(|error| error.to_string())?;
        match response.status() {
            status if status.is_success() => Ok(()),
            status => Err(format!("status {status}")),
        }
    }
}

impl Export for Exports {
    fn export(&self, into: &mut Families) {
        let counts = [("succeeded", &self.succeeded), ("failed", &self.failed)];
        let counts = counts.map(|(result, counter)| (result, counter.load(Ordering::Relaxed)));
        if counts.iter().any(|(_, count)| *count > 0) {
            for (result, count) in counts {
                into.add(&catalogue::OTLP_EXPORTS, &[result], count);
            }
        }
    }
}

fn headers(text: &str) -> Result<HeaderMap, OtlpError> {
    let mut headers = HeaderMap::new();
    for pair in text.split(',').map(str::trim).filter(|pair| !pair.is_empty()) {
        // The value may be a secret: a wrong pair is named by its key only.
        let (key, value) = pair.split_once('=').ok_or_else(|| OtlpError::Header(pair.to_owned()))?;
        let wrong = || OtlpError::Header(key.to_owned());
        let name: HeaderName = key.trim().parse().map_err(|_| wrong())?;
        headers.insert(name, HeaderValue::from_str(value.trim()).map_err(|_| wrong())?);
    }
    Ok(headers)
}

fn request(gather: &Gather, families: Vec<Family>, now: Timestamp) -> ExportMetricsServiceRequest {
    let version = env!("CARGO_PKG_VERSION");
    // Names of OpenTelemetry's semantic conventions for resources.
    let attributes = [
        ("service.name", "netdiag-node"),
        ("service.version", version),
        ("service.instance.id", gather.instance()),
        ("k8s.node.name", gather.node()),
    ];
    let resource =
        Resource { attributes: attributes.map(|(key, value)| attribute(key, value)).into(), ..Resource::default() };
    let scope = InstrumentationScope {
        name: "netdiag-node".to_owned(),
        version: version.to_owned(),
        ..InstrumentationScope::default()
    };
    let metrics = families.into_iter().map(|family| metric(family, gather.started(), now)).collect();
    let scope_metrics = vec![ScopeMetrics { scope: Some(scope), metrics, ..ScopeMetrics::default() }];
    let metrics = ResourceMetrics { resource: Some(resource), scope_metrics, ..ResourceMetrics::default() };
    ExportMetricsServiceRequest { resource_metrics: vec![metrics] }
}

fn metric(family: Family, started: Timestamp, now: Timestamp) -> Metric {
    let (start, now) = (unix_ns(started), unix_ns(now));
    let cumulative = AggregationTemporality::Cumulative.into();
    let data = match family.metric.kind {
        Kind::Counter => Data::Sum(Sum {
            data_points: points(&family, start, now),
            aggregation_temporality: cumulative,
            is_monotonic: true,
        }),
        Kind::Gauge => Data::Gauge(Gauge { data_points: points(&family, 0, now) }),
        Kind::Histogram => Data::Histogram(Histogram {
            data_points: histograms(&family, start, now),
            aggregation_temporality: cumulative,
        }),
    };
    // UCUM, as OpenTelemetry asks for.
    let unit = match family.metric.unit {
        Unit::Seconds => "s",
        Unit::Bytes => "By",
        Unit::One => "1",
    };
    Metric {
        name: family.metric.name.to_owned(),
        description: family.metric.help.to_owned(),
        unit: unit.to_owned(),
        data: Some(data),
        ..Metric::default()
    }
}

fn points(family: &Family, start_time_unix_nano: u64, time_unix_nano: u64) -> Vec<NumberDataPoint> {
    let point = |sample: &Sample| {
        let value = match sample.value {
            Value::Count(count) => Point::AsInt(i64::try_from(count).unwrap_or(i64::MAX)),
            Value::Number(number) => Point::AsDouble(number),
            Value::Times(_) => return None,
        };
        let attributes = attributes(family, sample);
        Some(NumberDataPoint {
            attributes,
            start_time_unix_nano,
            time_unix_nano,
            value: Some(value),
            ..NumberDataPoint::default()
        })
    };
    family.samples.iter().filter_map(point).collect()
}

fn histograms(family: &Family, start_time_unix_nano: u64, time_unix_nano: u64) -> Vec<HistogramDataPoint> {
    let point = |sample: &Sample| {
        let Value::Times(times) = sample.value else { return None };
        let buckets = times.buckets();
        Some(HistogramDataPoint {
            attributes: attributes(family, sample),
            start_time_unix_nano,
            time_unix_nano,
            count: times.count(),
            sum: Some(times.sum_s()),
            bucket_counts: buckets.iter().map(|(_, count)| *count).collect(),
            // The last bucket has no bound.
            explicit_bounds: buckets
                .iter()
                .map(|(bound_s, _)| *bound_s)
                .filter(|bound_s| bound_s.is_finite())
                .collect(),
            ..HistogramDataPoint::default()
        })
    };
    family.samples.iter().filter_map(point).collect()
}

fn attributes(family: &Family, sample: &Sample) -> Vec<KeyValue> {
    family.metric.labels.iter().zip(&sample.labels).map(|(key, value)| attribute(key, value)).collect()
}

fn attribute(key: &str, value: &str) -> KeyValue {
    let value = AnyValue { value: Some(Any::StringValue(value.to_owned())) };
    KeyValue { key: key.to_owned(), value: Some(value), ..KeyValue::default() }
}

fn unix_ns(at: Timestamp) -> u64 {
    u64::try_from(at.as_nanosecond()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::Times;

    #[test]
    fn headers_are_read_and_secrets_are_not_shown() {
        let found = headers("authorization=Bearer x=y, x-scope-orgid=7,").unwrap();
        assert_eq!(found["authorization"], "Bearer x=y");
        assert_eq!(found["x-scope-orgid"], "7");
        assert!(headers("").unwrap().is_empty());
        let error = headers("a b=secret").unwrap_err().to_string();
        assert!(error.contains("a b") && !error.contains("secret"), "{error}");
    }

    #[test]
    fn https_asks_for_an_authority() {
        let settings = |endpoint: Option<&str>| Settings {
            endpoint: endpoint.map(str::to_owned),
            headers: String::new(),
            certificate: None,
            interval_ms: 1_000,
        };
        assert!(Otlp::new(&settings(None)).unwrap().is_none());
        let error = Otlp::new(&settings(Some("https://collector:4318"))).err().unwrap().to_string();
        assert!(error.contains("OTEL_EXPORTER_OTLP_CERTIFICATE"), "{error}");
        let sender = Otlp::new(&settings(Some("http://127.0.0.1:4318/"))).unwrap().unwrap();
        assert_eq!(sender.url, "http://127.0.0.1:4318/v1/metrics");
    }

    #[test]
    fn counters_become_cumulative_sums_with_their_start() {
        let (started, now) = (Timestamp::from_second(100).unwrap(), Timestamp::from_second(160).unwrap());
        let mut families = Families::default();
        families.add(&catalogue::DROPS, &["NO_SOCKET"], 7_u64);
        families.add(&catalogue::PROCESS_MEMORY, &[], 4096_u64);
        let metrics: Vec<Metric> = families.finish().into_iter().map(|family| metric(family, started, now)).collect();
        let Some(Data::Sum(sum)) = &metrics[0].data else { panic!("{:?}", metrics[0]) };
        assert!(sum.is_monotonic && sum.aggregation_temporality == 2);
        let point = &sum.data_points[0];
        assert_eq!((point.start_time_unix_nano, point.time_unix_nano), (100_000_000_000, 160_000_000_000));
        assert_eq!(point.value, Some(Point::AsInt(7)));
        assert_eq!(point.attributes, [attribute("reason", "NO_SOCKET")]);
        assert!(matches!(&metrics[1].data, Some(Data::Gauge(_))) && metrics[1].unit == "By");
    }

    #[test]
    fn times_become_a_histogram_whose_last_bucket_has_no_bound() {
        let mut times = Times::default();
        times.add(8, 3, 600);
        times.add(40, 1, 200_000_000);
        let mut families = Families::default();
        families.add(&catalogue::TCP_HANDSHAKE, &[], times);
        let family = families.finish().remove(0);
        let metric = metric(family, Timestamp::from_second(100).unwrap(), Timestamp::from_second(160).unwrap());
        let Some(Data::Histogram(histogram)) = &metric.data else { panic!("{metric:?}") };
        let point = &histogram.data_points[0];
        assert_eq!((point.count, point.start_time_unix_nano), (4, 100_000_000_000));
        assert_eq!(point.bucket_counts.len(), point.explicit_bounds.len() + 1);
        assert_eq!((point.bucket_counts[1], point.bucket_counts.last()), (3, Some(&1)));
    }
}
