//! `GET /metrics`, without encryption or authentication, as the agents': for loopback, or behind something that decides who may
//! look. Text, or protobuf for a Prometheus that scrapes native histograms.

use std::sync::Arc;

use axum::Router;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use http::{HeaderMap, StatusCode, header};

use crate::mesh::metrics::{CONTENT_TYPE, PROTOBUF};
use crate::mesh::rounds::Rounds;

pub(super) fn router(mesh: Arc<Rounds>) -> Router {
    Router::new().route("/metrics", get(move |headers: HeaderMap| metrics(mesh.clone(), headers)))
}

/// Merging what is kept takes some milliseconds, in large clusters more.
async fn metrics(mesh: Arc<Rounds>, headers: HeaderMap) -> Response {
    let accept = headers.get(header::ACCEPT).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let wants_protobuf = wants_protobuf(accept);
    let page = move || {
        if wants_protobuf { (PROTOBUF, mesh.metrics_protobuf()) } else { (CONTENT_TYPE, mesh.metrics().into_bytes()) }
    };
    match tokio::task::spawn_blocking(page).await {
        Ok((content_type, page)) => ([(header::CONTENT_TYPE, content_type)], page).into_response(),
        Err(_) => {
            (StatusCode::INTERNAL_SERVER_ERROR, "writing the metrics panicked; the log has the place\n").into_response()
        }
    }
}

/// Whether the protobuf format is named with a higher weight than any text. Prometheus names it first where it scrapes native
/// histograms (`scrape_protocols`), and then texts with lower ones.
fn wants_protobuf(accept: &str) -> bool {
    let (mut protobuf, mut text) = (0.0_f64, 0.0_f64);
    for range in accept.split(',') {
        let mut words = range.split(';').map(str::trim);
        let kind = words.next().unwrap_or_default().to_ascii_lowercase();
        let parameters: Vec<(&str, &str)> = words.filter_map(|word| word.split_once('=')).collect();
        let parameter = |name: &str| parameters.iter().find(|(own, _)| *own == name).map(|(_, value)| *value);
        let weight = parameter("q").and_then(|q| q.parse::<f64>().ok()).unwrap_or(1.0);
        let is_ours = parameter("proto").is_none_or(|proto| proto == "io.prometheus.client.MetricFamily")
            && parameter("encoding").is_none_or(|encoding| encoding == "delimited");
        match &*kind {
            "application/vnd.google.protobuf" if is_ours => protobuf = protobuf.max(weight),
            "application/openmetrics-text" | "text/plain" => text = text.max(weight),
            _ => {}
        }
    }
    protobuf > text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn protobuf_is_for_who_prefers_it() {
        for (accept, wants) in [
            // Prometheus 3 with scrape_native_histograms, and without.
            (
                "application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=delimited;q=0.6,\
                 application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.5,text/plain;version=0.0.4;q=0.3,*/*;q=0.2",
                true,
            ),
            ("application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.3,*/*;q=0.2", false),
            ("text/plain, application/vnd.google.protobuf;q=0.5", false),
            ("application/vnd.google.protobuf; proto=io.prometheus.client.MetricFamily; encoding=text", false),
            ("*/*", false),
            ("", false),
        ] {
            assert_eq!(wants_protobuf(accept), wants, "{accept}");
        }
    }
}
