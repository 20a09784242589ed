//! How fast a cell's counters grow. Nothing is kept for a cell that nobody calls.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// A rate is over the counters of this long ago, or of the look before that.
const WINDOW: Duration = Duration::from_secs(2);

/// Marks of one cell's counters.
#[derive(Debug, Default)]
pub(super) struct Rates(Mutex<VecDeque<Mark>>);

#[derive(Debug, Clone, Copy)]
struct Mark {
    at: Instant,
    calls: u64,
    fuel: u64,
}

impl Rates {
    /// Calls and fuel a second, with one decimal; zeros at the first look, and while nothing grows.
    pub(super) fn look(&self, calls: u64, fuel: u64) -> (f64, f64) {
        self.look_at(Instant::now(), calls, fuel)
    }

    fn look_at(&self, at: Instant, calls: u64, fuel: u64) -> (f64, f64) {
        let mut marks = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let is_older = |mark: &Mark| at.saturating_duration_since(mark.at) >= WINDOW;
        // The youngest of the old ones is what is compared with.
        while marks.get(1).is_some_and(is_older) {
            marks.pop_front();
        }
        let Some(first) = marks.front().copied() else {
            marks.push_back(Mark { at, calls, fuel });
            return (0.0, 0.0);
        };
        if first.calls == calls && first.fuel == fuel {
            // It will grow from here on, if it does; until then one mark is enough.
            marks.clear();
            marks.push_back(Mark { at, calls, fuel });
            return (0.0, 0.0);
        }
        marks.push_back(Mark { at, calls, fuel });
        let seconds = at.saturating_duration_since(first.at).as_secs_f64();
        (rate(calls - first.calls, seconds), rate(fuel - first.fuel, seconds))
    }

    /// Forgets all marks, for a cell that sleeps.
    pub(super) fn forget(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = VecDeque::new();
    }
}

#[expect(clippy::cast_precision_loss, reason = "a rate is a rough figure")]
fn rate(count: u64, seconds: f64) -> f64 {
    if seconds > 0.0 { (count as f64 / seconds * 10.0).round() / 10.0 } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_over_the_window() {
        let rates = Rates::default();
        let start = Instant::now();
        let at = |ms: u64| start + Duration::from_millis(ms);
        assert_eq!(rates.look_at(at(0), 5, 50), (0.0, 0.0));
        assert_eq!(rates.look_at(at(500), 10, 150), (10.0, 200.0));
        for step in 2..=10 {
            rates.look_at(at(step * 500), step * 5 + 5, step * 100 + 50);
        }
        assert_eq!(rates.look_at(at(5500), 60, 1150), (10.0, 200.0));
        assert!(rates.0.lock().unwrap().len() <= 6);
        // Nothing more comes: the rate falls, and then is none.
        assert_eq!(rates.look_at(at(6500), 60, 1150), (5.0, 100.0));
        assert_eq!(rates.look_at(at(8500), 60, 1150), (0.0, 0.0));
        assert_eq!(rates.0.lock().unwrap().len(), 1);
        rates.forget();
        assert!(rates.0.lock().unwrap().is_empty());
    }
}
