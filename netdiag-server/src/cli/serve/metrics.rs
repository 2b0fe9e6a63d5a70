//! `GET /metrics`, without encryption or authentication, as the agents': for loopback, or behind something that decides who may
//! look.

use std::sync::Arc;

use axum::Router;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use http::{StatusCode, header};

use crate::mesh::metrics::CONTENT_TYPE;
use crate::mesh::rounds::Rounds;

pub(super) fn router(mesh: Arc<Rounds>) -> Router {
    Router::new().route("/metrics", get(move || metrics(mesh.clone())))
}

/// Merging what is kept takes some milliseconds, in large clusters more.
async fn metrics(mesh: Arc<Rounds>) -> Response {
    match tokio::task::spawn_blocking(move || mesh.metrics()).await {
        Ok(text) => ([(header::CONTENT_TYPE, CONTENT_TYPE)], text).into_response(),
        Err(_) => {
            (StatusCode::INTERNAL_SERVER_ERROR, "writing the metrics panicked; the log has the place\n").into_response()
        }
    }
}
