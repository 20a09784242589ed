//! Whether a cell keeps failing, and how long it rests before it is tried again.

use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::limits::{REST_MAX, REST_MIN};

/// Counts failures in a row; one success forgets them.
#[derive(Debug)]
pub(crate) struct Health {
    /// Failures in a row that are let pass before the first rest.
    before_rest: u32,
    /// Failed in a row. Outside the lock, so that success after success takes none.
    failed: AtomicU32,
    rest: Mutex<Option<Rest>>,
}

#[derive(Debug)]
struct Rest {
    until: Instant,
    reason: String,
}

impl Health {
    pub(crate) const fn new(before_rest: u32) -> Self {
        Self { before_rest, failed: AtomicU32::new(0), rest: Mutex::new(None) }
    }

    /// Why nothing is tried now, and for how long.
    pub(crate) fn resting(&self) -> Option<(String, Duration)> {
        if self.failed.load(Relaxed) < self.before_rest {
            return None;
        }
        let left = |rest: &Rest| rest.until.checked_duration_since(Instant::now());
        self.rest().as_ref().and_then(|rest| Some((rest.reason.clone(), left(rest)?)))
    }

    pub(crate) fn succeeded(&self) {
        if self.failed.load(Relaxed) > 0 {
            let mut rest = self.rest();
            self.failed.store(0, Relaxed);
            *rest = None;
        }
    }

    /// Counts a failure; from the last one that is let pass, each brings a rest twice as long as the
    /// one before. What fails during a rest was begun before it and does not count.
    pub(crate) fn failed(&self, reason: &str) {
        let mut rest = self.rest();
        let now = Instant::now();
        if rest.as_ref().is_some_and(|rest| now < rest.until) {
            return;
        }
        let failed = self.failed.load(Relaxed).saturating_add(1);
        self.failed.store(failed, Relaxed);
        if let Some(doublings) = failed.checked_sub(self.before_rest) {
            let long = REST_MIN.saturating_mul(1 << doublings.min(16)).min(REST_MAX);
            let reason = format!("failed {failed} times in a row, the last time with: {reason}");
            *rest = Some(Rest { until: now + long, reason });
        }
    }

    fn rest(&self) -> MutexGuard<'_, Option<Rest>> {
        self.rest.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rests_grow_and_success_ends_them() {
        let health = Health::new(3);
        for _ in 0..2 {
            health.failed("a");
            assert!(health.resting().is_none());
        }
        health.failed("b");
        let (reason, left) = health.resting().unwrap();
        assert!(reason.contains("3 times") && reason.ends_with("b"), "{reason}");
        assert!(left <= REST_MIN);
        // Begun before the rest: they change nothing.
        for _ in 0..100 {
            health.failed("c");
        }
        assert!(health.resting().is_none_or(|(reason, _)| reason.ends_with("b")));
        std::thread::sleep(left);
        assert!(health.resting().is_none());
        health.failed("d");
        let (_, longer) = health.resting().unwrap();
        assert!(longer > REST_MIN, "{longer:?}");
        health.succeeded();
        assert!(health.resting().is_none());
        health.failed("e");
        assert!(health.resting().is_none());
    }
}
