//! Accepts connections, one HTTP connection each, behind a TLS handshake or not, until told to stop.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use hyper_util::server::graceful::{GracefulShutdown, Watcher};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};
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

/// Who may come in.
#[derive(Clone)]
pub enum Door {
    /// Whoever has the server's certificate.
    Server(Arc<Tls>),
    /// Everybody who reaches the address.
    Open,
}

/// Runs until `stop`, then lets the requests in work end.
pub async fn run(listener: TcpListener, router: Router, door: Door, stop: CancellationToken) {
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
        let acceptor = match &door {
            Door::Server(tls) => Some(TlsAcceptor::from(tls.config())),
            Door::Open => None,
        };
        let connection = Connection { stream, acceptor, place };
        tokio::spawn(connection.serve(http.clone(), router.clone(), graceful.watcher()));
    }
    drop(listener);
    if timeout(END_WITHIN, graceful.shutdown()).await.is_err() {
        tracing::info!("requests were still in work and are cut off");
    }
}

struct Connection {
    stream: TcpStream,
    acceptor: Option<TlsAcceptor>,
    place: OwnedSemaphorePermit,
}

impl Connection {
    async fn serve(self, http: Builder<TokioExecutor>, router: Router, watcher: Watcher) {
        let _place = self.place;
        let peer = self.stream.peer_addr().ok();
        // Answers are small and somebody waits for each: never hold one back for a fuller packet.
        let _ = self.stream.set_nodelay(true);
        let served = match self.acceptor {
            None => serve_http(self.stream, &http, router, watcher).await,
            Some(acceptor) => match timeout(HANDSHAKE_WITHIN, acceptor.accept(self.stream)).await {
                Ok(Ok(stream)) => serve_http(stream, &http, router, watcher).await,
                // Other nodes' mesh connects and closes, again and again: that is no attempt to come in.
                Ok(Err(error)) if error.kind() == io::ErrorKind::UnexpectedEof => {
                    return tracing::debug!(?peer, "closed before a handshake");
                }
                Ok(Err(error)) => return tracing::info!(?peer, %error, "handshake refused"),
                Err(_) => {
                    return tracing::info!(?peer, "handshake not finished in {} s", HANDSHAKE_WITHIN.as_secs());
                }
            },
        };
        if let Err(error) = served {
            tracing::debug!(?peer, %error, "connection ended");
        }
    }
}

async fn serve_http(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    http: &Builder<TokioExecutor>,
    router: Router,
    watcher: Watcher,
) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let connection = http.serve_connection(TokioIo::new(stream), TowerToHyperService::new(router)).into_owned();
    watcher.watch(connection).await
}

fn http() -> Builder<TokioExecutor> {
    let mut builder = Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(HEAD_WITHIN);
    builder.http2().timer(TokioTimer::new()).keep_alive_interval(PING_EVERY).max_concurrent_streams(MAX_STREAMS);
    builder
}
