//! Serves `GET /metrics`, without encryption: for loopback, or behind something that decides who may look.

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use axum::routing::get;
use tokio::net::TcpListener;
use tokio::sync::Mutex;
use tokio_util::sync::CancellationToken;

use super::{Gather, text};
use crate::serve::{self, Door};

/// Looks at the node are at most this frequent, however many scrape.
const REUSE_FOR: Duration = Duration::from_secs(1);

struct Page {
    gather: Arc<Gather>,
    latest: Mutex<Option<(Instant, String)>>,
}

/// Runs until `stop`.
pub async fn serve(listener: TcpListener, gather: Arc<Gather>, stop: CancellationToken) {
    let page = Arc::new(Page { gather, latest: Mutex::new(None) });
    let router = Router::new().route("/metrics", get(metrics)).with_state(page);
    serve::run(listener, router, Door::Open, stop).await;
}

async fn metrics(State(page): State<Arc<Page>>) -> Response {
    // Held while looking: scrapes that come meanwhile want the same text.
    let mut latest = page.latest.lock().await;
    if let Some((at, text)) = latest.as_ref()
        && at.elapsed() < REUSE_FOR
    {
        return answer(text.clone());
    }
    let gather = Arc::clone(&page.gather);
    match tokio::task::spawn_blocking(move || text::text(gather.families())).await {
        Ok(text) => {
            *latest = Some((Instant::now(), text.clone()));
            answer(text)
        }
        Err(_) => (StatusCode::INTERNAL_SERVER_ERROR, "the look at the node panicked; the log has the place\n")
            .into_response(),
    }
}

fn answer(text: String) -> Response {
    ([(header::CONTENT_TYPE, text::CONTENT_TYPE)], text).into_response()
}
