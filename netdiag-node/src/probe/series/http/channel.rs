//! One connection that speaks HTTP, its buffers kept small: a thousand of them may wait at a time.

use std::sync::{Arc, Mutex, PoisonError};

use http::{Request, Response};
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::{http1, http2};
use hyper::rt::Executor;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::task::JoinSet;

use super::super::tls::{FirstBytes, Watched};

/// A head of this size is refused. nginx and Envoy send at most 64 KiB.
pub(super) const MAX_HEAD_BYTES: u32 = 64 * 1024;
/// Fields of a head.
pub(super) const MAX_HEAD_FIELDS: usize = 256;
/// The least that RFC 9113 §6.9.2 has: what a server may send before we take it.
const WINDOW_BYTES: u32 = 65_535;
const FRAME_BYTES: u32 = 16_384;
/// What is kept of a request that waits to be sent; ours are small.
const SEND_BYTES: usize = 16 * 1024;
/// What frames, fields and a forgotten end may cost beside the body: a server that floods ends here.
const BESIDE_BODY_BYTES: u64 = 512 * 1024;

pub(super) trait Duplex: AsyncRead + AsyncWrite + Unpin + Send {}
impl<S: AsyncRead + AsyncWrite + Unpin + Send> Duplex for S {}

/// Its tasks end with it.
pub(super) struct Channel {
    sender: Sender,
    pub(super) first: FirstBytes,
    tasks: Tasks,
    ended: Ended,
}

/// Why the connection ended by itself: a request that it did not take knows only that it was not taken.
type Ended = Arc<Mutex<Option<hyper::Error>>>;

enum Sender {
    One(http1::SendRequest<Full<Bytes>>),
    Two(http2::SendRequest<Full<Bytes>>),
}

/// What a connection does beside its requests.
#[derive(Clone, Default)]
struct Tasks(Arc<Mutex<JoinSet<()>>>);

impl Channel {
    /// `body_bytes`: what will be read of a body.
    pub(super) async fn open(stream: Box<dyn Duplex>, is_two: bool, body_bytes: u64) -> hyper::Result<Self> {
        let stream = Watched::with_limit(stream, body_bytes + BESIDE_BODY_BYTES);
        let first = stream.first();
        let io = TokioIo::new(stream);
        let (tasks, ended) = (Tasks::default(), Ended::default());
        // Dropped on every way out, so that a connection which never opens leaves no task.
        let mut guard = Unopened(tasks.clone());
        let sender = if is_two {
            let (sender, connection) = http2::Builder::new(tasks.clone())
                .initial_stream_window_size(WINDOW_BYTES)
                .initial_connection_window_size(WINDOW_BYTES)
                .max_frame_size(FRAME_BYTES)
                .max_header_list_size(MAX_HEAD_BYTES)
                .max_send_buf_size(SEND_BYTES)
                .handshake(io)
                .await?;
            tasks.execute(remember(connection, Arc::clone(&ended)));
            Sender::Two(sender)
        } else {
            let (sender, connection) = http1::Builder::new()
                .max_buf_size(MAX_HEAD_BYTES as usize)
                .max_headers(MAX_HEAD_FIELDS)
                .handshake(io)
                .await?;
            tasks.execute(remember(connection, Arc::clone(&ended)));
            Sender::One(sender)
        };
        guard.0 = Tasks::default();
        Ok(Self { sender, first, tasks, ended })
    }

    pub(super) async fn send(&mut self, request: Request<Full<Bytes>>) -> hyper::Result<Response<Incoming>> {
        let sent = match &mut self.sender {
            Sender::One(sender) => sender.send_request(request).await,
            Sender::Two(sender) => sender.send_request(request).await,
        };
        sent.map_err(|error| {
            let cause = self.ended.lock().unwrap_or_else(PoisonError::into_inner).take();
            if error.is_canceled() || error.is_closed() { cause.unwrap_or(error) } else { error }
        })
    }

    pub(super) fn is_two(&self) -> bool {
        matches!(self.sender, Sender::Two(_))
    }
}

async fn remember(connection: impl Future<Output = hyper::Result<()>>, ended: Ended) {
    if let Err(error) = connection.await {
        *ended.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
    }
}

impl<F> Executor<F> for Tasks
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    fn execute(&self, work: F) {
        let mut tasks = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        tasks.spawn(async move { drop(work.await) });
    }
}

impl Tasks {
    /// By hand: a connection's own tasks hold this, so it is never dropped by itself.
    fn end(&self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).abort_all();
    }
}

impl Drop for Channel {
    fn drop(&mut self) {
        self.tasks.end();
    }
}

/// A channel whose opening may be given up.
struct Unopened(Tasks);

impl Drop for Unopened {
    fn drop(&mut self) {
        self.0.end();
    }
}
