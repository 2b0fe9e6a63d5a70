//! Threads that read: each does one thing, may enter a namespace for it, and is not used again.

use std::panic::AssertUnwindSafe;

use tokio::sync::{OwnedSemaphorePermit, oneshot};

use crate::gap::Failure;
use crate::host::ReadError;

/// Rules of a large node are walked recursively nowhere; 1 MiB is plenty and only touched pages count.
const READER_STACK_BYTES: usize = 1024 * 1024;

/// Of readings that go through whole rulesets (nice(2)): on nodes with very many Services these take seconds of a processor, and a
/// question about one packet is not to wait for them.
const BACKGROUND_NICE: libc::c_int = 10;

/// Lets other threads go first for the rest of the calling one, which has to end with this work: to take it back needs a right that
/// the agent does not have. In a container this counts among the agent's own threads, as its control group has a share of its own.
pub(crate) fn step_back() {
    // SAFETY: only numbers are passed. The kernel takes 0 for the calling thread (setpriority(2), "C library/kernel differences").
    let _ = unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, BACKGROUND_NICE) };
}

/// Runs `work` on a new thread, which holds `place` until it ends. The receiver fails when it panicked.
pub(crate) fn on_thread<T: Send + 'static>(
    place: OwnedSemaphorePermit,
    work: impl FnOnce() -> Result<T, Failure> + Send + 'static,
) -> Result<oneshot::Receiver<Result<T, Failure>>, Failure> {
    let (sender, receiver) = oneshot::channel();
    let run = move || {
        // The default hook has logged the panic; dropping the sender tells the reader.
        if let Ok(result) = std::panic::catch_unwind(AssertUnwindSafe(work)) {
            let _ = sender.send(result);
        }
        drop(place);
    };
    std::thread::Builder::new()
        .name("reader".to_owned())
        .stack_size(READER_STACK_BYTES)
        .spawn(run)
        .map_err(|source| ReadError::Call { step: "start a thread".to_owned(), source })?;
    Ok(receiver)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use tokio::sync::Semaphore;

    use super::*;

    async fn place(places: &Arc<Semaphore>) -> OwnedSemaphorePermit {
        Arc::clone(places).acquire_owned().await.unwrap()
    }

    #[tokio::test]
    async fn panic_of_a_reader_ends_with_its_thread() {
        let places = Arc::new(Semaphore::new(1));
        let answer = on_thread::<()>(place(&places).await, || panic!("a reader's bug")).unwrap();
        assert!(answer.await.is_err());
        // The place comes back: one bug does not use up the agent.
        let answer = on_thread(place(&places).await, || Ok(7)).unwrap();
        assert_eq!(answer.await.unwrap().unwrap(), 7);
    }

    #[tokio::test]
    async fn who_steps_back_leaves_other_threads_where_they_are() {
        // SAFETY: only numbers are passed; 0 is the calling thread.
        let nice = || unsafe { libc::getpriority(libc::PRIO_PROCESS, 0) };
        let before = nice();
        let places = Arc::new(Semaphore::new(1));
        let answer = on_thread(place(&places).await, move || {
            step_back();
            Ok(nice())
        });
        assert_eq!(answer.unwrap().await.unwrap().unwrap(), BACKGROUND_NICE);
        assert_eq!(nice(), before);
    }

    #[tokio::test]
    async fn hanging_reader_keeps_its_place() {
        let places = Arc::new(Semaphore::new(1));
        let (release, wait) = std::sync::mpsc::channel::<()>();
        let answer = on_thread(place(&places).await, move || {
            let _ = wait.recv();
            Ok(())
        });
        assert!(tokio::time::timeout(Duration::from_millis(50), answer.unwrap()).await.is_err());
        assert_eq!(places.available_permits(), 0);
        release.send(()).unwrap();
        drop(place(&places).await);
    }
}
