//! Listens to the kernel's announcements of flows within a budget, on a thread of its own.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::changes::{Changes, Heard};
use crate::host::ReadError;
use crate::host::conntrack::listen::Listener;
use crate::host::conntrack::{is_there, statistics};

/// How many announcements a second the kernel may make for us in the long run. See the numbers in [`super`]: 0.2 % of a core.
const ANNOUNCEMENTS_PER_S: f64 = 1000.0;
/// How many of them may come at once: a burst of two seconds' worth is heard whole.
const MOST_TOKENS: f64 = 2.0 * ANNOUNCEMENTS_PER_S;
/// After a pause there must be enough for a sample worth taking.
const ENOUGH_TOKENS: f64 = ANNOUNCEMENTS_PER_S;
/// The statistics are looked at this often: about 50 µs each time.
const SAMPLE_EVERY: Duration = Duration::from_secs(5);
/// How long the thread waits for an announcement before it looks at the time. Also how late it notices that it shall stop.
pub(super) const WAIT: Duration = Duration::from_secs(1);
/// Announcements are taken in batches: one wake-up for each would cost more than the announcement. The socket's buffer (some
/// 3 000) holds what comes meanwhile below 30 000 a second.
const BATCH_PAUSE: Duration = Duration::from_millis(100);
/// While many come: then the buffer holds up to 600 000 a second.
const BUSY_PAUSE: Duration = Duration::from_millis(5);
const BUSY: u64 = 50;
/// Taken at one time, so that a flood cannot keep the thread from looking at its budget.
const BATCH: usize = 4096;

/// How much may still be heard.
struct Budget {
    tokens: f64,
    at: Instant,
}

impl Budget {
    fn new(now: Instant) -> Self {
        Self { tokens: MOST_TOKENS, at: now }
    }

    #[expect(clippy::cast_precision_loss, reason = "announcements between two looks are thousands")]
    fn spend(&mut self, announcements: u64, now: Instant) {
        let earned = now.duration_since(self.at).as_secs_f64() * ANNOUNCEMENTS_PER_S;
        self.tokens = (self.tokens + earned).min(MOST_TOKENS) - announcements as f64;
        self.at = now;
    }

    fn is_spent(&self) -> bool {
        self.tokens < 0.0
    }

    /// Until there is enough for the next sample. At most [`WAIT`], so that the caller looks around.
    fn pause(&self) -> Duration {
        let missing = (ENOUGH_TOKENS - self.tokens).max(0.0);
        Duration::from_secs_f64(missing / ANNOUNCEMENTS_PER_S).min(WAIT)
    }
}

/// What the thread works with.
pub(super) struct Listening<'a> {
    pub proc: &'a Path,
    pub changes: &'a Mutex<Changes>,
    pub stop: &'a AtomicBool,
    /// Zero of the clock of `changes`.
    pub started: Instant,
}

impl Listening<'_> {
    /// Until it is told to stop. The calling thread is in the node's namespace.
    pub fn run(&self) {
        let mut listener = None;
        let mut budget = Budget::new(Instant::now());
        let mut listening_since = None;
        let mut sampled: Option<Instant> = None;
        while !self.stop.load(Ordering::Relaxed) {
            if sampled.is_none_or(|at| at.elapsed() >= SAMPLE_EVERY) {
                sampled = Some(Instant::now());
                self.sample();
                if listener.is_none() {
                    listener = self.open();
                }
            }
            let Some(open) = listener.as_mut() else {
                std::thread::sleep(WAIT);
                continue;
            };
            match self.step(open, &mut budget, &mut listening_since) {
                Ok(pause) => std::thread::sleep(pause),
                Err(error) => {
                    self.say(Some(error.to_string()));
                    (listener, listening_since) = (None, None);
                }
            }
        }
    }

    /// Hears what there is, or waits for the budget. Returns how long to sleep.
    fn step(
        &self,
        listener: &mut Listener,
        budget: &mut Budget,
        listening_since: &mut Option<Instant>,
    ) -> Result<Duration, ReadError> {
        let Some(since) = *listening_since else {
            budget.spend(0, Instant::now());
            if budget.tokens < ENOUGH_TOKENS {
                return Ok(budget.pause());
            }
            listener.join()?;
            self.say(None);
            *listening_since = Some(Instant::now());
            return Ok(Duration::ZERO);
        };
        let mut heard = Heard::default();
        let lost = listener.hear(BATCH, &mut |announcement| heard.add(announcement))?;
        heard.lost(lost);
        budget.spend(heard.announced(), Instant::now());
        let pause = if heard.announced() >= BUSY { BUSY_PAUSE } else { BATCH_PAUSE };
        if budget.is_spent() {
            listener.leave()?;
            // What was announced before that belongs to the time listened.
            let end = Instant::now();
            let lost = listener.rest(usize::MAX, &mut |announcement| heard.add(announcement))?;
            heard.lost(lost);
            self.note(since, end, heard);
            *listening_since = None;
            return Ok(Duration::ZERO);
        }
        let end = Instant::now();
        self.note(since, end, heard);
        *listening_since = Some(end);
        Ok(pause)
    }

    fn note(&self, start: Instant, end: Instant, heard: Heard) {
        self.lock().heard(self.ns(start), self.ns(end), heard);
    }

    fn sample(&self) {
        if matches!(is_there(self.proc), Ok(true))
            && let Ok(cpus) = statistics()
        {
            self.lock().sampled(self.ns(Instant::now()), &cpus);
        }
    }

    /// A socket once there is something to listen to.
    fn open(&self) -> Option<Listener> {
        match is_there(self.proc) {
            Ok(true) => match Listener::open(WAIT) {
                Ok(listener) => return Some(listener),
                Err(error) => self.say(Some(error.to_string())),
            },
            Ok(false) => self.say(Some("this kernel does no connection tracking".to_owned())),
            Err(error) => self.say(Some(error.to_string())),
        }
        None
    }

    fn say(&self, not_listening: Option<String>) {
        self.lock().not_listening = not_listening;
    }

    fn ns(&self, at: Instant) -> u64 {
        u64::try_from(at.duration_since(self.started).as_nanos()).unwrap_or(u64::MAX)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Changes> {
        self.changes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quiet_node_is_heard_all_the_time() {
        let start = Instant::now();
        let mut budget = Budget::new(start);
        for second in 1..1000 {
            budget.spend(900, start + Duration::from_secs(second));
            assert!(!budget.is_spent());
        }
    }

    #[test]
    fn a_busy_node_is_sampled() {
        let start = Instant::now();
        let mut budget = Budget::new(start);
        let mut now = start;
        let (mut heard, mut passed) = (0u64, Duration::ZERO);
        // 40 000 a second, heard every 5 ms while the budget lasts.
        while passed < Duration::from_mins(1) {
            now += BUSY_PAUSE;
            budget.spend(200, now);
            heard += 200;
            passed += BUSY_PAUSE;
            while budget.is_spent() {
                let pause = budget.pause();
                now += pause;
                passed += pause;
                budget.spend(0, now);
            }
        }
        let per_second = heard / 60;
        assert!((900..1200).contains(&per_second), "{per_second} a second");
        assert!(budget.pause() <= WAIT);
    }
}
