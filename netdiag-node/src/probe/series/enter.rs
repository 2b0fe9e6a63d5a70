//! A thread inside a network namespace, with a reactor of its own: every socket that it makes belongs to the namespace.
//!
//! Such a thread serves one series and ends with it. Owner (fsuid) and namespace are the thread's alone, so nothing of them is
//! left behind.

use std::panic::AssertUnwindSafe;

use netdiag_common::GapReason;
use netdiag_common::observation::series::Identity;
use nix::unistd::Uid;
use tokio::sync::oneshot;

use crate::gap::{Failure, OtherFailure};
use crate::host::ReadError;
use crate::netns::NetnsHandle;

/// TLS and HTTP in a build without optimisation use more than half of 1 MiB; only touched pages count.
const STACK_BYTES: usize = 2 * 1024 * 1024;

/// Runs `work` on a new thread inside the namespace. The receiver fails when it panicked.
pub(super) fn start<T: Send + 'static>(
    netns: NetnsHandle,
    identity: Identity,
    work: impl AsyncFnOnce() -> T + Send + 'static,
) -> Result<oneshot::Receiver<Result<T, Failure>>, Failure> {
    let (sender, receiver) = oneshot::channel();
    let run = move || {
        // The default hook has logged the panic; dropping the sender tells the series.
        let ended = std::panic::catch_unwind(AssertUnwindSafe(|| inside(&netns, identity, work)));
        if let Ok(result) = ended {
            let _ = sender.send(result);
        }
    };
    std::thread::Builder::new()
        .name("probe".to_owned())
        .stack_size(STACK_BYTES)
        .spawn(run)
        .map_err(|source| ReadError::Call { step: "start a thread".to_owned(), source })?;
    Ok(receiver)
}

fn inside<T>(netns: &NetnsHandle, identity: Identity, work: impl AsyncFnOnce() -> T) -> Result<T, Failure> {
    netns.enter()?;
    if let Some(uid) = identity.uid {
        own_sockets_as(uid)?;
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|source| ReadError::Call { step: "start a reactor".to_owned(), source })?;
    let found = runtime.block_on(work());
    // What still hangs must not hold up the result.
    runtime.shutdown_background();
    Ok(found)
}

/// A socket's owner is the file system uid of the thread that makes it (`sock_alloc`, net/socket.c).
fn own_sockets_as(uid: u32) -> Result<(), Failure> {
    nix::unistd::setfsuid(Uid::from_raw(uid));
    // The call returns the uid before it and no error; a second one, to no uid at all, changes nothing and tells.
    if nix::unistd::setfsuid(Uid::from_raw(u32::MAX)).as_raw() == uid {
        return Ok(());
    }
    Err(Failure::Other(OtherFailure {
        reason: GapReason::Rights,
        why: format!("this agent may not send as uid {uid}: it lacks the capability SETUID"),
        remedy: "add SETUID to securityContext.capabilities.add of the agent, or ask without a uid".to_owned(),
    }))
}
