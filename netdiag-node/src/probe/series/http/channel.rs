//! One connection that speaks HTTP, its buffers kept small: a thousand of them may wait at a time.

use std::future::poll_fn;
use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{self, Poll};

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

/// All of it ends with this.
pub(super) struct Channel {
    spoken: Spoken,
    pub(super) first: FirstBytes,
}

type Io = TokioIo<Watched<Box<dyn Duplex>>>;

enum Spoken {
    One(Box<One>),
    Two(Two),
}

/// HTTP/1.1. Whoever waits for something of the connection moves it on, in one task: to hand a request and its answer over between
/// two of them takes a turn of the reactor each time.
struct One {
    sender: http1::SendRequest<Full<Bytes>>,
    line: Line,
}

/// The connection of [`One`].
struct Line {
    /// None when it has ended.
    connection: Option<http1::Connection<Io, Full<Bytes>>>,
    /// The stream of a connection that has ended.
    kept: Option<Io>,
    ended: Option<hyper::Error>,
}

/// HTTP/2, whose library has tasks. They end with this.
struct Two {
    sender: http2::SendRequest<Full<Bytes>>,
    tasks: Tasks,
    ended: Ended,
}

/// Why the connection ended by itself: a request that it did not take knows only that it was not taken.
type Ended = Arc<Mutex<Option<hyper::Error>>>;

/// What a connection does beside its requests.
#[derive(Clone, Default)]
struct Tasks(Arc<Mutex<JoinSet<()>>>);

impl Channel {
    /// `body_bytes`: what will be read of a body.
    pub(super) async fn open(stream: Box<dyn Duplex>, is_two: bool, body_bytes: u64) -> hyper::Result<Self> {
        let stream = Watched::with_limit(stream, body_bytes + BESIDE_BODY_BYTES);
        let first = stream.first();
        let io = TokioIo::new(stream);
        let spoken =
            if is_two { Spoken::Two(Two::open(io).await?) } else { Spoken::One(Box::new(One::open(io).await?)) };
        Ok(Self { spoken, first })
    }

    pub(super) async fn send(&mut self, request: Request<Full<Bytes>>) -> hyper::Result<Response<Incoming>> {
        let sent = match &mut self.spoken {
            Spoken::One(one) => one.line.beside(one.sender.send_request(request)).await,
            Spoken::Two(two) => two.sender.send_request(request).await,
        };
        sent.map_err(|error| {
            let cause = match &mut self.spoken {
                Spoken::One(one) => one.line.ended.take(),
                Spoken::Two(two) => two.ended.lock().unwrap_or_else(PoisonError::into_inner).take(),
            };
            if error.is_canceled() || error.is_closed() { cause.unwrap_or(error) } else { error }
        })
    }

    /// Waits for something that comes by this connection.
    pub(super) async fn beside<T>(&mut self, awaited: impl Future<Output = T>) -> T {
        match &mut self.spoken {
            Spoken::One(one) => one.line.beside(awaited).await,
            Spoken::Two(_) => awaited.await,
        }
    }

    pub(super) fn is_two(&self) -> bool {
        matches!(self.spoken, Spoken::Two(_))
    }
}

impl One {
    async fn open(io: Io) -> hyper::Result<Self> {
        let (sender, connection) = http1::Builder::new()
            .max_buf_size(MAX_HEAD_BYTES as usize)
            .max_headers(MAX_HEAD_FIELDS)
            .handshake(io)
            .await?;
        Ok(Self { sender, line: Line { connection: Some(connection), kept: None, ended: None } })
    }
}

impl Line {
    async fn beside<T>(&mut self, awaited: impl Future<Output = T>) -> T {
        let mut awaited = pin!(awaited);
        poll_fn(|context| {
            // First, so that the connection knows what is wanted of it.
            if let Poll::Ready(found) = awaited.as_mut().poll(context) {
                return Poll::Ready(found);
            }
            self.advance(context);
            awaited.as_mut().poll(context)
        })
        .await
    }

    fn advance(&mut self, context: &mut task::Context<'_>) {
        let Some(connection) = &mut self.connection else { return };
        // Without its shutdown, which comes as soon as the last byte was read, and sends a FIN before anybody is told of that byte.
        if let Poll::Ready(ended) = connection.poll_without_shutdown(context) {
            self.ended = ended.err();
            // Whoever still waits hears of the end by this.
            self.kept = self.connection.take().map(|connection| connection.into_parts().io);
        }
    }
}

impl Two {
    async fn open(io: Io) -> hyper::Result<Self> {
        let (tasks, ended) = (Tasks::default(), Ended::default());
        // Dropped on every way out, so that a connection which never opens leaves no task.
        let mut guard = Unopened(tasks.clone());
        let (sender, connection) = http2::Builder::new(tasks.clone())
            .initial_stream_window_size(WINDOW_BYTES)
            .initial_connection_window_size(WINDOW_BYTES)
            .max_frame_size(FRAME_BYTES)
            .max_header_list_size(MAX_HEAD_BYTES)
            .max_send_buf_size(SEND_BYTES)
            .handshake(io)
            .await?;
        tasks.execute(remember(connection, Arc::clone(&ended)));
        guard.0 = Tasks::default();
        Ok(Self { sender, tasks, ended })
    }
}

impl Drop for Two {
    fn drop(&mut self) {
        self.tasks.end();
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

/// A connection whose opening may be given up.
struct Unopened(Tasks);

impl Drop for Unopened {
    fn drop(&mut self) {
        self.0.end();
    }
}
