//! Accepts connections, one TLS handshake and one HTTP connection each, until told to stop.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

use crate::tls::Tls;

/// Connections at one time, also those that only began a handshake.
const MAX_CONNECTIONS: usize = 64;
const HANDSHAKE_WITHIN: Duration = Duration::from_secs(5);
/// Until a request's head is there; also the longest time that an idle connection is kept.
const HEAD_WITHIN: Duration = Duration::from_mins(1);
const PING_EVERY: Duration = Duration::from_secs(20);
/// Streams of one HTTP/2 connection.
const MAX_STREAMS: u32 = 16;
/// After SIGTERM: requests in work may end, but not hold up the node's shutdown.
const END_WITHIN: Duration = Duration::from_secs(3);
/// When accept fails (out of descriptors), trying at once would only burn a CPU.
const ACCEPT_AGAIN_AFTER: Duration = Duration::from_millis(100);

/// Runs until `stop`, then lets the requests in work end.
pub async fn run(listener: TcpListener, router: Router, tls: Arc<Tls>, stop: CancellationToken) {
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let graceful = GracefulShutdown::new();
    let http = http();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = stop.cancelled() => break,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection");
                tokio::time::sleep(ACCEPT_AGAIN_AFTER).await;
                continue;
            }
        };
        let Ok(place) = Arc::clone(&places).try_acquire_owned() else {
            tracing::warn!(limit = MAX_CONNECTIONS, "too many connections, one was closed");
            continue;
        };
        let connection = Connection { stream, acceptor: TlsAcceptor::from(tls.config()), place };
        tokio::spawn(connection.serve(http.clone(), router.clone(), graceful.watcher()));
    }
    drop(listener);
    if timeout(END_WITHIN, graceful.shutdown()).await.is_err() {
        tracing::info!("requests were still in work and are cut off");
    }
}

struct Connection {
    stream: TcpStream,
    acceptor: TlsAcceptor,
    place: OwnedSemaphorePermit,
}

impl Connection {
    async fn serve(self, http: Builder<TokioExecutor>, router: Router, watcher: hyper_util::server::graceful::Watcher) {
        let _place = self.place;
        let peer = self.stream.peer_addr().ok();
        // Answers are small and somebody waits for each: never hold one back for a fuller packet.
        let _ = self.stream.set_nodelay(true);
        let stream = match timeout(HANDSHAKE_WITHIN, self.acceptor.accept(self.stream)).await {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => {
                tracing::info!(?peer, %error, "handshake refused");
                return;
            }
            Err(_) => {
                tracing::info!(?peer, "handshake not finished in {} s", HANDSHAKE_WITHIN.as_secs());
                return;
            }
        };
        let connection = http.serve_connection(TokioIo::new(stream), TowerToHyperService::new(router)).into_owned();
        if let Err(error) = watcher.watch(connection).await {
            tracing::debug!(?peer, %error, "connection ended");
        }
    }
}

fn http() -> Builder<TokioExecutor> {
    let mut builder = Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(HEAD_WITHIN);
    builder.http2().timer(TokioTimer::new()).keep_alive_interval(PING_EVERY).max_concurrent_streams(MAX_STREAMS);
    builder
}
