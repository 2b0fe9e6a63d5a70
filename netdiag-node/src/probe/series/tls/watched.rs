//! A stream that remembers when and with which bytes the far side began to speak, and until when it was spoken to before.

use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Instant;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// First bytes that are kept: enough for `HTTP/1.1 400 Bad Request` or a greeting.
const KEPT_BYTES: usize = 64;

/// What was said until now.
#[derive(Debug, Clone, Default)]
pub(in super::super) struct FirstBytes(Arc<Mutex<Kept>>);

#[derive(Debug, Clone, Default)]
pub(in super::super) struct Kept {
    /// When the last byte was written before any was read.
    pub(in super::super) sent: Option<Instant>,
    /// When the first byte was read.
    pub(in super::super) at: Option<Instant>,
    /// At most 64 of them.
    pub(in super::super) bytes: Vec<u8>,
    /// All of them.
    pub(in super::super) count: u64,
    /// More came than is read: see [`Watched::with_limit`].
    pub(in super::super) is_too_much: bool,
}

impl FirstBytes {
    pub(in super::super) fn kept(&self) -> Kept {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn too_much(&self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).is_too_much = true;
    }

    fn sent(&self) {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.at.is_none() {
            kept.sent = Some(Instant::now());
        }
    }

    fn add(&self, bytes: &[u8]) {
        if bytes.is_empty() {
            return;
        }
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        kept.at.get_or_insert_with(Instant::now);
        let room = KEPT_BYTES.saturating_sub(kept.bytes.len());
        kept.bytes.extend_from_slice(&bytes[..bytes.len().min(room)]);
        kept.count = kept.count.saturating_add(bytes.len() as u64);
    }
}

#[derive(Debug)]
pub(in super::super) struct Watched<S> {
    inner: S,
    first: FirstBytes,
    /// Bytes that may still be read.
    left: u64,
    /// Why nothing can be written any more, while the far side's last words are awaited.
    broken: Option<io::Error>,
}

impl<S> Watched<S> {
    pub(in super::super) fn new(inner: S) -> Self {
        Self::with_limit(inner, u64::MAX)
    }

    /// Fails once more than so many bytes were read: a far side that floods would keep its reader busy.
    pub(in super::super) fn with_limit(inner: S, limit: u64) -> Self {
        Self { inner, first: FirstBytes::default(), left: limit, broken: None }
    }

    /// The same record, to be looked at while the stream is in other hands.
    pub(in super::super) fn first(&self) -> FirstBytes {
        self.first.clone()
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Watched<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.left == 0 {
            self.first.too_much();
            return Poll::Ready(Err(io::Error::other("more bytes came than are read")));
        }
        let before = buffer.filled().len();
        let polled = Pin::new(&mut self.inner).poll_read(cx, buffer);
        let read = &buffer.filled()[before..];
        self.first.add(read);
        self.left = self.left.saturating_sub(read.len() as u64);
        polled
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Watched<S> {
    /// Ready when what the far side said before it hung up is kept: whoever fails to write does not read any more.
    /// A stream that cannot be written to any more is readable soon, be it only its end.
    fn poll_last_words(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.first.kept().count > 0 {
            return Poll::Ready(());
        }
        let mut bytes = [0; KEPT_BYTES];
        let mut buffer = ReadBuf::new(&mut bytes);
        Pin::new(&mut self.inner).poll_read(cx, &mut buffer).map(|_| self.first.add(buffer.filled()))
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Watched<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let error = match self.broken.take() {
            Some(error) => error,
            None => match ready!(Pin::new(&mut self.inner).poll_write(cx, bytes)) {
                Ok(count) => {
                    self.first.sent();
                    return Poll::Ready(Ok(count));
                }
                Err(error) => error,
            },
        };
        if self.poll_last_words(cx).is_pending() {
            self.broken = Some(error);
            return Poll::Pending;
        }
        Poll::Ready(Err(error))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}
