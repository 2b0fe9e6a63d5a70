//! Threads that go into network namespaces, with a reactor of their own: every socket that such a thread makes belongs to the
//! namespace.
//!
//! A thread serves one series, goes home into the namespace where it was started, and waits for the next one: to make a thread and
//! a reactor takes longer than to enter. It ends where anything of a series might stay: when it cannot go home, when its sockets had
//! another owner (fsuid), or when the series panicked.

use std::panic::AssertUnwindSafe;
use std::path::Path;
use std::sync::mpsc::{SendError, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use netdiag_common::GapReason;
use netdiag_common::observation::series::Identity;
use nix::unistd::Uid;
use tokio::runtime::Runtime;
use tokio::sync::oneshot;

use crate::gap::{Failure, OtherFailure};
use crate::host::ReadError;
use crate::netns::NetnsHandle;

/// TLS and HTTP in a build without optimisation use more than half of 1 MiB; only touched pages count.
const STACK_BYTES: usize = 2 * 1024 * 1024;
/// Threads that may wait for the next series: as many as a series has at most.
const MOST_WAITING: usize = 2;

/// The threads of one engine. Those that wait end with it.
#[derive(Default)]
pub(super) struct Threads(Arc<Waiting>);

/// How to reach the threads that wait.
#[derive(Default)]
struct Waiting(Mutex<Vec<Sender<Job>>>);

type Job = Box<dyn FnOnce(&mut Seat) + Send>;

/// What a thread has from one series to the next.
#[derive(Default)]
struct Seat {
    runtime: Option<Runtime>,
    /// Something of a series is left in this thread: it serves no other.
    is_used_up: bool,
}

impl Threads {
    /// Runs `first` on a thread, wherever that is, and then `work` inside the namespace. The receiver fails when one of them
    /// panicked.
    pub(super) fn start<T: Send + 'static>(
        &self,
        netns: NetnsHandle,
        identity: Identity,
        first: impl FnOnce() + Send + 'static,
        work: impl AsyncFnOnce() -> T + Send + 'static,
    ) -> Result<oneshot::Receiver<Result<T, Failure>>, Failure> {
        let (sender, receiver) = oneshot::channel();
        let mut job: Job = Box::new(move |seat: &mut Seat| {
            // The default hook has logged the panic; dropping the sender tells the series.
            match std::panic::catch_unwind(AssertUnwindSafe(|| seat.serve(&netns, identity, first, work))) {
                Ok(result) => drop(sender.send(result)),
                Err(_) => seat.is_used_up = true,
            }
        });
        while let Some(thread) = self.0.take() {
            match thread.send(job) {
                Ok(()) => return Ok(receiver),
                Err(SendError(refused)) => job = refused,
            }
        }
        let waiting = Arc::downgrade(&self.0);
        std::thread::Builder::new()
            .name("probe".to_owned())
            .stack_size(STACK_BYTES)
            .spawn(move || live(&waiting, job))
            .map_err(|source| ReadError::Call { step: "start a thread".to_owned(), source })?;
        Ok(receiver)
    }
}

impl Waiting {
    fn lock(&self) -> MutexGuard<'_, Vec<Sender<Job>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The one that has waited for the shortest time: its memory is still in the processor's caches.
    fn take(&self) -> Option<Sender<Job>> {
        self.lock().pop()
    }

    /// False: enough wait already.
    fn put(&self, thread: Sender<Job>) -> bool {
        let mut waiting = self.lock();
        let has_place = waiting.len() < MOST_WAITING;
        if has_place {
            waiting.push(thread);
        }
        has_place
    }
}

/// A thread's life, series after series.
fn live(waiting: &Weak<Waiting>, mut job: Job) {
    // Without a way home it serves one series.
    let home = NetnsHandle::open(Path::new("/proc/thread-self/ns/net"));
    let mut seat = Seat::default();
    loop {
        job(&mut seat);
        let is_home = !seat.is_used_up && home.as_ref().is_ok_and(|home| home.enter().is_ok());
        let Some(next) = is_home.then(|| wait(waiting)).flatten() else { return };
        job = next;
    }
}

/// None: there are enough others, or the engine has ended.
fn wait(waiting: &Weak<Waiting>) -> Option<Job> {
    let (thread, jobs) = channel();
    // Not held while this waits: the engine's end is the end of the channel.
    let is_kept = waiting.upgrade()?.put(thread);
    if is_kept { jobs.recv().ok() } else { None }
}

impl Seat {
    fn serve<T>(
        &mut self,
        netns: &NetnsHandle,
        identity: Identity,
        first: impl FnOnce(),
        work: impl AsyncFnOnce() -> T,
    ) -> Result<T, Failure> {
        first();
        netns.enter()?;
        if let Some(uid) = identity.uid {
            self.is_used_up = true;
            own_sockets_as(uid)?;
        }
        let runtime = match self.runtime.take() {
            Some(runtime) => runtime,
            None => tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .map_err(|source| ReadError::Call { step: "start a reactor".to_owned(), source })?,
        };
        let found = runtime.block_on(work());
        // What still hangs must not hold up the result, nor be there in the next series.
        if runtime.metrics().num_alive_tasks() == 0 {
            self.runtime = Some(runtime);
        } else {
            runtime.shutdown_background();
        }
        Ok(found)
    }
}

/// A socket's owner is the file system uid of the thread that makes it (`sock_alloc`, net/socket.c).
pub(super) fn own_sockets_as(uid: u32) -> Result<(), Failure> {
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
