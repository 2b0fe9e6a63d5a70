//! A round's thread: enters the node's namespace, makes each attempt when it is due, and ends with the lease.

use std::io;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use tokio::task::{JoinSet, LocalSet};
use tokio::time::sleep_until;

use super::attempt;
use super::means::Means;
use super::round::Round;
use super::schedule::{Schedule, Turn};
use crate::host::ReadError;
use crate::netns::NetnsHandle;
use crate::probe::series::Shares;

/// Returns when the thread is in its namespace; a round that could not start schedules nothing. The last is the node's proc
/// filesystem.
pub(super) fn start(
    netns: &NetnsHandle,
    round: &Arc<Round>,
    (shares, proc): (Shares, PathBuf),
) -> Result<(), ReadError> {
    let (netns, round) = (netns.clone(), Arc::clone(round));
    let (ready, started) = mpsc::channel();
    let work = move || {
        let entered = netns.enter().and_then(|()| runtime());
        match entered {
            Err(error) => drop(ready.send(Err(error))),
            Ok(runtime) => {
                // Whoever asked waits for it.
                let _ = ready.send(Ok(()));
                let means = Rc::new(Means::new(&round.assignment.targets, &shares, &proc));
                // What attempts are made with stays in this thread, and so do they.
                LocalSet::new().block_on(&runtime, run(&round, &means));
            }
        }
    };
    let failed = |source: io::Error| ReadError::Call { step: "start a thread for the mesh".to_owned(), source };
    std::thread::Builder::new().name("mesh".to_owned()).spawn(work).map_err(failed)?;
    started.recv().unwrap_or_else(|_| Err(failed(io::Error::other("it panicked; the agent's log has the place"))))
}

fn runtime() -> Result<tokio::runtime::Runtime, ReadError> {
    let built = tokio::runtime::Builder::new_current_thread().enable_all().build();
    built.map_err(|source| ReadError::Call { step: "start a reactor for the mesh".to_owned(), source })
}

/// Until the lease ends or another round takes over; then until nothing is open any more.
async fn run(round: &Arc<Round>, means: &Rc<Means>) {
    let assignment = &round.assignment;
    let interval = Duration::from_millis(assignment.interval_ms.into());
    let timeout = Duration::from_millis(assignment.timeout_ms.into());
    let schedule = Schedule::new(Instant::now(), interval, assignment.targets.len());
    let mut open = JoinSet::new();
    let mut number = 0;
    loop {
        let due = if assignment.targets.is_empty() { round.until() } else { schedule.due(number) };
        tokio::select! {
            () = round.replaced.cancelled() => break,
            () = sleep_until(due.min(round.until()).into()) => {}
        }
        let now = Instant::now();
        if round.end_if_over(now) {
            break;
        }
        if now < due || assignment.targets.is_empty() {
            continue;
        }
        let target = schedule.target(number);
        let is_turn = schedule.is_turn(number, assignment.targets[target].every);
        number += 1;
        if !is_turn {
            continue;
        }
        let behind = now.saturating_duration_since(due);
        match schedule.turn(due, now) {
            Turn::Missed => round.missed(target),
            Turn::OnTime | Turn::Late => {
                if round.begin(target, behind) {
                    let (round, means) = (Arc::clone(round), Rc::clone(means));
                    open.spawn_local(async move {
                        let asked = &round.assignment.targets[target];
                        let within = asked.timeout_ms.map_or(timeout, |ms| Duration::from_millis(ms.into()));
                        let ended = attempt::make(&asked.probe, within, &means).await;
                        round.finish(target, behind, &ended);
                    });
                }
            }
        }
        while open.try_join_next().is_some() {}
    }
    while open.join_next().await.is_some() {}
    means.farewell().await;
}
