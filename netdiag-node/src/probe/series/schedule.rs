//! When each attempt begins: by an absolute schedule, so that a slow one does not move those after it (coordinated omission).

use std::cell::RefCell;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use netdiag_common::observation::series::{ProbeStage, SeriesAttempt, SeriesRequest};
use nix::sys::time::TimeSpec;
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};
use tokio::io::Interest;
use tokio::sync::{Mutex, SemaphorePermit};
use tokio::time::{timeout, timeout_at};

use super::caps::{Caps, MAX_CONCURRENT};
use super::context::{Context, Ending, silence};
use super::endpoint::Asker;
use super::ready::watch;
use super::tally::{Fit, Tally};

/// An attempt that began later than this after its time is counted.
const LATE: Duration = Duration::from_millis(1);
/// A kind ends its attempts itself; this is for what does not.
pub(super) const GRACE: Duration = Duration::from_millis(250);
/// The endpoints of so many attempts are looked for.
const ENDPOINTS: u32 = 1_000;

/// What the threads of one series share.
pub(super) struct Series {
    request: SeriesRequest,
    caps: Arc<Caps>,
    within: Duration,
    until: Instant,
    /// Later than this nothing begins: what begins should have its whole timeout. Where the timeout is longer than half of the
    /// series, the first half of it still begins.
    last_begin: Instant,
    begun: OnceLock<Instant>,
    next: AtomicU32,
    asker: Option<Asker>,
    /// Attempts whose endpoints are to be looked for, and that have not ended.
    unasked: AtomicU32,
}

/// One thread's part in it.
struct Worker<'a> {
    context: &'a Context,
    series: &'a Series,
    begun: Instant,
    /// Who holds it waits for the next attempt's time; the others wait for it.
    turn: Mutex<Pacer>,
    tally: RefCell<Tally>,
}

/// An attempt that begins now.
struct Turn<'a> {
    number: u32,
    is_late: bool,
    _place: SemaphorePermit<'a>,
}

/// Waits more finely than the reactor's timers, which are a millisecond apart. None: this process has no descriptor left, and
/// the reactor's timers must do.
struct Pacer(Option<TimerFd>);

impl Series {
    pub(super) fn new(
        request: SeriesRequest,
        caps: Arc<Caps>,
        asked: Instant,
        until: Instant,
        asker: Option<Asker>,
    ) -> Self {
        let within = Duration::from_millis(request.timeout_ms.into());
        let half = asked + until.saturating_duration_since(asked) / 2;
        let last_begin = until.checked_sub(within).map_or(half, |last| last.max(half));
        let (begun, next, unasked) = (OnceLock::new(), AtomicU32::new(0), AtomicU32::new(request.count.min(ENDPOINTS)));
        Self { request, caps, within, until, last_begin, begun, next, asker, unasked }
    }

    /// Where an attempt ended whose endpoint is to be looked for. After the last of them nothing is asked any more: each
    /// announcement of a new flow costs the kernel as much as a packet.
    fn ended(&self, number: u32, ending: &Ending) {
        let Some(asker) = self.asker.as_ref().filter(|_| number < ENDPOINTS) else { return };
        if let (Some(source), Some(to)) = (ending.source, ending.to) {
            asker.ask(number, source, to);
        }
        if self.unasked.fetch_sub(1, Ordering::AcqRel) == 1 {
            asker.enough();
        }
    }

    fn time_is_over(&self) -> String {
        let length = self.until.saturating_duration_since(self.begun.get().copied().unwrap_or(self.until));
        format!("the {} ms of the series were over: ask for fewer attempts, or for longer", length.as_millis())
    }
}

/// Makes attempts in the calling thread, `lanes` at one time, until there are no more.
pub(super) async fn run(context: &Context, series: &Series, lanes: u16) -> Tally {
    let pacer = Pacer::new(series.request.interval_us > 0);
    if let Some(asker) = &series.asker {
        asker.ready().await;
    }
    let begun = *series.begun.get_or_init(Instant::now);
    let worker = Worker { context, series, begun, turn: Mutex::new(pacer), tally: RefCell::default() };
    let mut running: FuturesUnordered<_> = (0..lanes).map(|_| worker.lane()).collect();
    while running.next().await.is_some() {}
    drop(running);
    let mut tally = worker.tally.into_inner();
    tally.entered(context.entered_us());
    tally
}

impl<'a> Worker<'a> {
    async fn lane(&'a self) {
        while let Some(turn) = self.turn().await {
            self.one(turn).await;
        }
    }

    /// None when there is nothing more to begin.
    async fn turn(&self) -> Option<Turn<'a>> {
        let pacer = self.turn.lock().await;
        if Instant::now() > self.series.last_begin {
            self.gave_up(self.series.time_is_over());
            return None;
        }
        let Ok(place) = timeout_at(self.series.last_begin.into(), self.series.caps.attempt()).await else {
            self.gave_up(format!(
                "{MAX_CONCURRENT} attempts were on their way on this node, which is the limit: ask for less at one time"
            ));
            return None;
        };
        let number = self.series.next.fetch_add(1, Ordering::Relaxed);
        if number >= self.series.request.count {
            return None;
        }
        let interval_us = self.series.request.interval_us;
        if interval_us == 0 {
            return Some(Turn { number, is_late: false, _place: place });
        }
        let at = self.begun + Duration::from_micros(interval_us.saturating_mul(number.into()));
        if at > self.series.last_begin {
            self.gave_up(self.series.time_is_over());
            return None;
        }
        pacer.until(at).await;
        Some(Turn { number, is_late: at.elapsed() > LATE, _place: place })
    }

    fn gave_up(&self, because: String) {
        if self.series.next.load(Ordering::Relaxed) < self.series.request.count {
            self.tally.borrow_mut().gave_up(because);
        }
    }

    async fn one(&self, turn: Turn<'_>) {
        let begun = Instant::now();
        let left = self.series.until.saturating_duration_since(begun);
        let within = self.series.within.min(left);
        let attempt = super::attempt(self.context, &self.series.request.probe, within);
        let ending = timeout(within + GRACE, attempt).await.unwrap_or_else(|_| unended(within));
        let elapsed = begun.elapsed();
        self.series.ended(turn.number, &ending);
        let attempt = SeriesAttempt {
            number: turn.number,
            at_us: micros(begun.saturating_duration_since(self.begun)),
            elapsed_us: micros(elapsed),
            source: ending.source,
            to: ending.to,
            endpoint: None,
            failure: ending.failure,
            report: ending.report,
        };
        let fit = Fit { is_late: turn.is_late, is_cut: within < self.series.within && elapsed >= within };
        self.tally.borrow_mut().add(attempt, fit, &ending.phases);
    }
}

pub(super) fn unended(within: Duration) -> Ending {
    let why = format!("it had not ended after {} ms and was given up", (within + GRACE).as_millis());
    Ending::failed(None, None, silence(ProbeStage::Answer, why))
}

impl Pacer {
    fn new(is_needed: bool) -> Self {
        let flags = TimerFlags::TFD_NONBLOCK | TimerFlags::TFD_CLOEXEC;
        Self(is_needed.then(|| TimerFd::new(ClockId::CLOCK_MONOTONIC, flags).ok()).flatten())
    }

    async fn until(&self, at: Instant) {
        let wait = at.saturating_duration_since(Instant::now());
        if wait.is_zero() {
            return;
        }
        if let Some(timer) = &self.0 {
            let once = Expiration::OneShot(TimeSpec::from_duration(wait));
            // Setting it again takes the last expiration back.
            if timer.set(once, TimerSetTimeFlags::empty()).is_ok()
                && let Ok(watched) = watch(timer, Interest::READABLE)
                && watched.readable().await.is_ok()
            {
                return;
            }
        }
        tokio::time::sleep_until(at.into()).await;
    }
}

pub(super) fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use std::os::fd::{AsFd as _, AsRawFd as _};

    use super::*;

    /// Whoever sets the wall clock moves no attempt: `Instant` is CLOCK_MONOTONIC, and so is what is waited on.
    #[test]
    #[expect(
        clippy::disallowed_methods,
        reason = "the kernel tells a timer's clock there (fs/timerfd.c, timerfd_show)"
    )]
    fn the_schedule_is_not_kept_by_the_wall_clock() {
        let Pacer(Some(timer)) = Pacer::new(true) else { panic!("no timer") };
        let path = format!("/proc/self/fdinfo/{}", timer.as_fd().as_raw_fd());
        let told = std::fs::read_to_string(path).unwrap();
        let clock = told.lines().find_map(|line| line.strip_prefix("clockid: "));
        assert_eq!(clock, Some(libc::CLOCK_MONOTONIC.to_string().as_str()), "{told}");
    }
}
