//! Waiting for a descriptor that somebody else owns.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Tells when the descriptor is ready, for as long as it is borrowed.
pub(super) fn watch(descriptor: &impl AsFd, interest: Interest) -> io::Result<AsyncFd<BorrowedFd<'_>>> {
    // SAFETY: the borrow keeps the descriptor open, and the same, until the `AsyncFd` is gone.
    let watched = unsafe { AsyncFd::register_with_interest(descriptor.as_fd(), interest) };
    watched.map_err(|error| error.into_parts().1)
}
