//! How long a cell's calls took lately. Nothing is kept for a cell that nobody calls.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;

/// Calls older than this, or up to twice as old, do not count any more.
const WINDOW: Duration = Duration::from_secs(5);
/// Longest time that is told apart, in microseconds: an hour, as long as any call may take.
pub(super) const TIME_US_MAX: u64 = 3_600_000_000;

/// Times of the calls of one cell.
#[derive(Debug, Default)]
pub(super) struct Times {
    recent: Mutex<Option<Box<Recent>>>,
    /// Of all calls since the worker started: how many, and their time in microseconds.
    count: AtomicU64,
    sum_us: AtomicU64,
}

#[derive(Debug)]
struct Recent {
    now: Histogram<u32>,
    before: Histogram<u32>,
    since: Instant,
    /// When the last call ended.
    last: Instant,
}

impl Times {
    pub(super) fn record(&self, started: Instant, ended: Instant) {
        let time = ended.saturating_duration_since(started);
        let micros = u64::try_from(time.as_micros()).unwrap_or(u64::MAX).max(1);
        self.count.fetch_add(1, Relaxed);
        self.sum_us.fetch_add(micros.min(TIME_US_MAX), Relaxed);
        let mut recent = self.lock();
        if recent.is_none() {
            *recent = Recent::new();
        }
        if let Some(recent) = recent.as_mut() {
            recent.now.saturating_record(micros);
            recent.last = ended;
        }
    }

    /// The 50th and the 99th percentile, in microseconds; zeros without calls. A cell that sleeps
    /// keeps none.
    pub(super) fn percentiles(&self, awake: bool) -> (u64, u64) {
        let mut kept = self.lock();
        if !awake {
            *kept = None;
        }
        let Some(recent) = kept.as_mut() else { return (0, 0) };
        recent.turn();
        let mut all = recent.before.clone();
        // Both have the same bounds.
        let _ = all.add(&recent.now);
        if all.is_empty() {
            return (0, 0);
        }
        (all.value_at_quantile(0.5), all.value_at_quantile(0.99))
    }

    /// When the last call ended, as far as that is remembered.
    pub(super) fn last(&self) -> Option<Instant> {
        self.lock().as_ref().map(|recent| recent.last)
    }

    /// How many calls there were since the worker started, and the sum of their times in microseconds.
    pub(super) fn sums(&self) -> (u64, u64) {
        (self.count.load(Relaxed), self.sum_us.load(Relaxed))
    }

    fn lock(&self) -> MutexGuard<'_, Option<Box<Recent>>> {
        self.recent.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Recent {
    /// `None` is never returned for these bounds.
    fn new() -> Option<Box<Self>> {
        let histogram = || Histogram::new_with_bounds(1, TIME_US_MAX, 2).ok();
        let (now, before) = (histogram()?, histogram()?);
        Some(Box::new(Self { now, before, since: Instant::now(), last: Instant::now() }))
    }

    fn turn(&mut self) {
        if self.since.elapsed() >= WINDOW {
            std::mem::swap(&mut self.now, &mut self.before);
            self.now.reset();
            self.since = Instant::now();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_of_what_was_recorded() {
        let (times, start) = (Times::default(), Instant::now());
        assert_eq!(times.percentiles(true), (0, 0));
        for micros in 1..=1000 {
            times.record(start, start + Duration::from_micros(micros));
        }
        let (p50, p99) = times.percentiles(true);
        assert!((495..=505).contains(&p50) && (980..=1000).contains(&p99), "{p50} {p99}");
        times.record(start, start + Duration::from_secs(100_000));
        assert_eq!(times.sums(), (1001, 500_500 + TIME_US_MAX));
        assert_eq!(times.percentiles(false), (0, 0));
        assert!(times.lock().is_none(), "a cell that sleeps keeps nothing");
    }
}
